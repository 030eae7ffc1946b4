"""How the balancer ends: `lb stop`, draining before it, and what `on_stop` does with the flows that are left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from served import INTERFACE, ServedBalancer, serving
from test_operate import lb

from lb.config import load
from lb.control import stopping
from lb.control.api import handlers
from lb.control.api.client import change, fetch
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.daemon import Daemon
from lb.control.preparation import Prepared
from lb.control.stopping import Stopping
from lb.control.tasks import Supervisor
from lb.errors import LbError, RemoteError

DEADLINE_S = 20.0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedBalancer]:
    """Give a balancer behind an API whose process is not seen by its callers: it is that of the test."""
    monkeypatch.setattr(handlers, "process_identity", lambda: {"pid": os.getpid(), "pid_namespace": 0})
    made = ServedBalancer(tmp_path, "python")
    with serving(made):
        yield made


class Draining:
    """`lb stop --drain` as a program, for a block."""

    def __init__(self, served: ServedBalancer, *options: str) -> None:
        self.served = served
        command = [sys.executable, "-c", "from lb.cli import main; main()", "stop", "--drain", *options]
        settings = {**os.environ, "LB_CONTROL": str(served.control), "NO_COLOR": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings)

    def __enter__(self) -> Draining:
        until(lambda: fetch(self.served.control, "/stop")["draining"])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ends(self) -> tuple[int, str]:
        """Wait for its end; return exit status and what it has said."""
        _, said = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, said.strip().splitlines()[-1]


def until(condition: Any) -> None:
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.01)
    pytest.fail("not in time")


def test_stop_without_drain_ends_the_balancer_whatever_flows_there_are(served: ServedBalancer) -> None:
    """Rule 18.3, stopping: as SIGTERM does; the command returns when nothing answers any more."""
    served.open("198.18.1.21", 40000)
    done = lb(served.control, "stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "the balancer has stopped\n")
    assert not served.control.exists()


def test_stop_without_balancer_exit_5(tmp_path: Path) -> None:
    done = lb(tmp_path / "none.sock", "stop", "--drain")
    assert (done.returncode, done.stdout) == (5, "")
    assert "no balancer answers" in done.stderr


def test_stop_drain_waits_for_the_last_flow_and_takes_no_new_one(served: ServedBalancer) -> None:
    """Rule 18.3, stopping: new flows are refused, old ones counted, and the status says so."""
    served.open("198.18.1.21", 40000)
    with Draining(served) as draining:
        status = fetch(served.control, "/status")
        assert 0 < status["stops_within_s"] <= 60
        states = {server["state"] for service in status["services"] for server in service["servers"]}
        assert states == {"draining"}
        shown = lb(served.control, "status").stdout
        assert "stopping: no new flows; stops when no flow is active, in " in shown
        with pytest.raises(AssertionError, match="no_server"):
            served.open("198.18.1.21", 40001)
        assert fetch(served.control, "/stop")["flows_active"] == 1
        served.reset_some(100)
        assert draining.ends() == (0, "the balancer has stopped: 0 active flows left")


def test_stop_drain_deadline_says_how_many_flows_are_left(served: ServedBalancer) -> None:
    """Rule 18.3, stopping: at the deadline it stops all the same, with 0: it has stopped."""
    served.open("198.18.1.21", 40000)
    done = lb(served.control, "stop", "--drain", "--timeout", "100ms")
    assert done.returncode == 0
    assert done.stderr.endswith("the balancer has stopped: 1 active flow left\n")


def test_stop_drain_interrupted_goes_on(served: ServedBalancer) -> None:
    """Ctrl-C ends the waiting; the balancer drains on and stops by itself."""
    served.open("198.18.1.21", 40000)
    with Draining(served) as draining:
        draining.process.send_signal(signal.SIGINT)
        code, said = draining.ends()
        assert code == 130
        assert said == "the balancer goes on draining, and stops by itself; `lb stop --cancel` cancels that"
        assert fetch(served.control, "/stop")["draining"]
        served.reset_some(100)
        until(lambda: not served.control.exists())


def test_stop_cancel_lets_servers_take_flows_again(served: ServedBalancer) -> None:
    """What the operator has set meanwhile holds; who waits for the end learns that it does not come."""
    served.open("198.18.1.21", 40000)
    with Draining(served) as draining:
        change(served.control, "/drain", {"service": "video", "server": "server2"})
        done = lb(served.control, "stop", "--cancel")
        assert (done.returncode, done.stderr) == (0, "the balancer goes on: servers get new flows\n")
        assert draining.ends() == (1, "lb: the stop was cancelled: the balancer goes on")
    states = {server.name: server.state for server in served.controller.services()[0].servers}
    assert states == {"server1": "active", "server2": "draining"}
    assert served.open("198.18.1.22", 40001) == "server1"
    assert lb(served.control, "stop", "--cancel").stderr == "nothing to cancel\n"
    assert fetch(served.control, "/status")["stops_within_s"] is None


def test_stop_drain_survives_a_reload(served: ServedBalancer) -> None:
    """Servers that a reload adds take no flows either."""
    served.open("198.18.1.21", 40000)
    with Draining(served):
        more = '  [[service.server]]\n  name = "ns2"\n  address = "198.18.1.34"\n  port = 5353\n'
        served.path.write_text(served.path.read_text() + more)
        change(served.control, "/reload", {})
        servers = served.controller.services()[1].servers
        assert [(server.name, server.state) for server in servers] == [("ns1", "draining"), ("ns2", "draining")]


def test_stop_drain_again_sets_the_time_anew(served: ServedBalancer) -> None:
    served.open("198.18.1.21", 40000)
    change(served.control, "/stop", {"drain": True, "timeout_s": 1000})
    change(served.control, "/stop", {"drain": True, "timeout_s": 0.01})
    until(lambda: not served.control.exists())


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({"drain": 1}, "drain: true or false is needed"),
        ({"drain": True, "timeout_s": "60s"}, "timeout_s: seconds are needed"),
        ({"drain": True, "timeout_s": True}, "timeout_s: seconds are needed"),
        ({"drain": True, "timeout_s": -1}, "timeout_s: seconds are needed"),
        ({"drain": True, "timeout_s": float("nan")}, "timeout_s: seconds are needed"),
        ({"drain": True, "cancel": True}, "drain and cancel cannot be combined"),
        ({"now": True}, "unknown: now; allowed: drain, timeout_s, cancel"),
    ],
)
def test_stop_wrong_request_stops_nothing(served: ServedBalancer, request_body: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError, match=message):
        change(served.control, "/stop", request_body)
    assert not fetch(served.control, "/stop")["draining"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--drain", "--cancel"), "--drain cannot be used with --cancel"),
        (("--drain", "--timeout", "60"), '"60" is not a duration'),
    ],
)
def test_stop_wrong_use_exit_2(served: ServedBalancer, arguments: tuple[str, ...], message: str) -> None:
    done = lb(served.control, "stop", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not fetch(served.control, "/stop")["draining"]


class Flows:
    """Has a number of flows, of which each call resets as many as asked; raises `error` once when there is one."""

    def __init__(self, count: int, error: LbError | None = None) -> None:
        self.count, self.error = count, error
        self.limits: list[int] = []

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        return [self.count] + [0] * (len(servers) - 1)

    def reset_some(self, limit: int) -> int:
        self.limits.append(limit)
        if self.error is not None:
            raise self.error
        removed = min(limit, self.count)
        self.count -= removed
        return removed


def end_flows(served: ServedBalancer, flows: Flows, on_stop: str, *, refuses: bool = True) -> Controller:
    """Let a balancer with these flows end them; return what it has published. `refuses`: changes can be made."""
    served.path.write_text(f'on_stop = "{on_stop}"\n{served.path.read_text()}')
    controller = Controller(load(served.path), (INTERFACE,), cast(Any, served))

    async def run() -> None:
        supervisor = Supervisor()
        changes = Changes(controller, supervisor)
        if refuses:
            changes.start()
        await Stopping(controller, changes, flows, supervisor, lambda: None).end_flows()
        await supervisor.stop()
        await changes.close()

    asyncio.run(run())
    return controller


def test_drain_that_is_over_says_how_many_flows_were_left_when_they_cannot_be_counted(tmp_path: Path) -> None:
    """The data path ends before the last one who asked has an answer."""

    class Ending:
        def __init__(self) -> None:
            self.answers = iter([[2], [1, 0]])

        def active_flows(self, _: Sequence[int]) -> list[int]:
            if (answer := next(self.answers, None)) is None:
                raise LbError("the packet loop does not run")
            return answer

        def reset_some(self, _: int) -> int:
            raise AssertionError

    async def run() -> None:
        served = ServedBalancer(tmp_path, "python")
        controller = Controller(load(served.path), (INTERFACE,), cast(Any, served))
        supervisor = Supervisor()
        changes = Changes(controller, supervisor)
        made = Stopping(controller, changes, Ending(), supervisor, lambda: None)
        assert (await made.progress()).flows_active == 2
        assert (await made.progress()).flows_active == 1
        with pytest.raises(LbError, match="the packet loop does not run"):
            await made.progress()
        made.stop_now()
        assert await made.progress() == (False, 1, None, True)
        await changes.close()

    asyncio.run(run())


@pytest.mark.parametrize("is_counting", [False, True], ids=["waits", "counts"])
def test_progress_is_told_at_the_end_although_it_is_cancelled(tmp_path: Path, is_counting: bool) -> None:
    """Rule 18.3, stopping: all that is asked is cancelled then; before the end, a cancellation is one."""
    begun, gate = threading.Event(), threading.Event()

    class Counted:
        def active_flows(self, _: Sequence[int]) -> list[int]:
            begun.set()
            gate.wait(DEADLINE_S)
            return [0]

        def reset_some(self, _: int) -> int:
            raise AssertionError

    async def run() -> None:
        served = ServedBalancer(tmp_path, "python")
        controller = Controller(load(served.path), (INTERFACE,), cast(Any, served))
        changes = Changes(controller, Supervisor())
        made = Stopping(controller, changes, Counted(), Supervisor(), lambda: None)
        made._deadline_s = None if is_counting else made._loop.time() + DEADLINE_S
        for is_end in (False, True):
            begun.clear()
            asked = asyncio.create_task(made.progress())
            await (asyncio.to_thread(begun.wait, DEADLINE_S) if is_counting else asyncio.sleep(0))
            if is_end:
                made.stop_now()
            asked.cancel()
            await asyncio.wait({asked})
            assert asked.cancelled() is not is_end
        assert asked.result().is_over
        gate.set()
        await changes.close()

    asyncio.run(run())


def test_on_stop_reset_resets_all_a_part_at_a_time_and_takes_no_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 18.3, stopping: who connects again at once is refused, instead of getting a flow that nobody resets."""
    monkeypatch.setattr(stopping, "RESET_PART", 10)
    caplog.set_level(logging.INFO)
    flows = Flows(25)
    controller = end_flows(ServedBalancer(tmp_path, "python"), flows, "reset")
    assert (flows.count, flows.limits) == (0, [10, 10, 10])
    assert controller.spec.is_stopping
    assert "on_stop: 25 flows reset" in caplog.text


def test_on_stop_keep_leaves_flows_alone(tmp_path: Path) -> None:
    flows = Flows(25)
    controller = end_flows(ServedBalancer(tmp_path, "python"), flows, "keep")
    assert (flows.count, flows.limits, controller.spec.is_stopping) == (25, [], False)


def test_on_stop_reset_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 18.3, stopping: what cannot be reset in time is left alone, and the log says so."""
    monkeypatch.setattr(stopping, "RESET_PART", 10)
    monkeypatch.setattr(stopping, "RESET_S", 0.0)
    flows = Flows(25)
    end_flows(ServedBalancer(tmp_path, "python"), flows, "reset")
    assert flows.limits == [10]
    assert "some flows are left alone: resetting all takes longer than 0 s" in caplog.text


def test_on_stop_reset_goes_on_where_new_flows_cannot_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A change that hangs does not keep flows from being reset."""
    monkeypatch.setattr(stopping, "REFUSE_S", 0.01)
    flows = Flows(5)
    end_flows(ServedBalancer(tmp_path, "python"), flows, "reset", refuses=False)
    assert flows.count == 0
    assert "new flows are not refused while flows are reset" in caplog.text


def test_on_stop_reset_that_fails_does_not_keep_the_balancer_from_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    end_flows(ServedBalancer(tmp_path, "python"), Flows(5, LbError("the loop is gone")), "reset")
    assert "flows are left alone although on_stop is reset: the loop is gone" in caplog.text


class Recorder:
    """Notes what a daemon asks of its parts at its end, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def close(self, *, has_failed: bool) -> None:
        self.asked.append("send successors away" if has_failed else "wait for a successor")

    def keep_host(self) -> None:
        self.asked.append("keep the host guard")

    async def end_flows(self) -> None:
        self.asked.append("end flows")

    def write(self, _source: object) -> None:
        self.asked.append("snapshot")

    async def stop(self) -> None:
        self.asked.append("stop tasks")


FAILURE = LbError("the loop is gone")


@pytest.mark.parametrize(
    ("is_replaced", "failure", "state", "asked"),
    [
        (False, None, object(), ["wait for a successor", "end flows", "snapshot", "stop tasks"]),
        (True, None, object(), ["wait for a successor", "stop tasks"]),
        (False, FAILURE, None, ["send successors away", "stop tasks"]),
        (False, FAILURE, object(), ["send successors away", "keep the host guard", "stop tasks"]),
    ],
    ids=["stopped", "replaced", "failed", "failed-with-state"],
)
def test_daemon_that_ends_does_what_flows_need_that_go_on_or_do_not(
    is_replaced: bool, failure: LbError | None, state: object, asked: list[str]
) -> None:
    """
    Rule 18.3, stopping: another process goes on with them, or the data path can tell nobody any more. Rule 20.1,
    restoring the host: who goes on with them after a failure needs the kernel silent until then.
    """
    recorder = Recorder()
    daemon = Daemon.__new__(Daemon)
    parts = {
        "_stopping": recorder,
        "_supervisor": recorder,
        "_runtime": recorder,
        "_successors": recorder,
        "_stored_flows": None,
        "_failure": failure,
        "_is_replaced": is_replaced,
    }
    made = Prepared(snapshots=cast(Any, recorder), state=cast(Any, state))
    for name, part in {**parts, "_made": made}.items():
        setattr(daemon, name, part)
    daemon._cleanup = AsyncExitStack()
    with pytest.raises(LbError) if failure else nullcontext():
        asyncio.run(daemon.stop())
    assert recorder.asked == asked
