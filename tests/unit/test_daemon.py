"""Background tasks and reloads of the daemon, without sockets: tasks survive failures, reloads are one at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import lb.backends
from lb.backends import sharded
from lb.config import Config
from lb.control import housekeeping, recycle
from lb.control import reload as reload_module
from lb.control.api.client import CHANGE_TIMEOUT_S
from lb.control.changes import ANSWER_S, Changes
from lb.control.controller import Controller
from lb.control.health.checks import Checks
from lb.control.housekeeping import Housekeeping
from lb.control.http_connections import CONNECTION_S
from lb.control.interfaces import InterfaceFollower
from lb.control.preparation import Prepared
from lb.control.reload import Reloader, ReloadRecord, as_it_runs, load_config
from lb.control.runtime import Runtime, capabilities_of, ignored_settings
from lb.control.seed import with_seed
from lb.control.tasks import Supervisor, TaskState
from lb.control.telemetry.sampler import Sampler
from lb.errors import ConfigError, LbError, UnderWayError
from lb.model.poll import POLLS
from lb.model.snapshot import Interface, Snapshot

DEADLINE_S = 20.0
INTERFACES = (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),)
CONFIG = """\
[flows]
closing = "1s"
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
policy = { name = "adaptive", interval = "10ms" }
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
  [[service.server]]
  name = "server2"
  address = "198.18.1.32"
  port = 8031
"""


class DataPath:
    """Takes snapshots; raises each of `faults` once."""

    def __init__(self) -> None:
        self.faults: dict[str, list[Exception]] = {}
        self.published: list[Snapshot] = []
        self.measured = 0
        self.reset: list[int] = []
        # How many active flows servers have, those that have any flow beside them, and what was walked for.
        self.active: dict[int, int] = {}
        self.others: set[int] = set()
        self.walks: list[list[int]] = []

    def _call(self, name: str) -> None:
        if self.faults.get(name):
            raise self.faults[name].pop()

    def publish(self, snapshot: Snapshot) -> None:
        self.published.append(snapshot)

    def active_flows(self, servers: list[int]) -> list[int]:
        self._call("active_flows")
        return [self.active.get(server, 0) for server in servers]

    def find_flows(
        self, now_ns: int, offset: int, limit: int, client: None, servers: list[int]
    ) -> tuple[int, list[Any]]:
        self.walks.append(list(servers))
        return len(self.others & set(servers)), []

    def measurements(self, now_ns: int) -> dict[str, Any]:
        self._call("measurements")
        self.measured += 1
        return {}

    def retire_servers(self, servers: list[int]) -> list[int]:
        self._call("retire_servers")
        return list(servers)

    def retire_services(self, services: list[int]) -> list[int]:
        self._call("retire_services")
        return list(services)

    def reset_flows(self, server: int, limit: int, now_ns: int) -> int:
        self._call("reset_flows")
        self.reset.append(server)
        return 0


class Kernel:
    """Knows one interface."""

    def configure(self, config: object) -> None: ...

    async def read_interfaces(self) -> tuple[Interface, ...]:
        return INTERFACES

    async def refresh(self) -> None: ...

    def use(self, addresses: object) -> None: ...


class Metrics:
    """Serves nothing, and takes any place."""

    @asynccontextmanager
    async def moving(self, where: object) -> Any:
        yield


class FlowLog:
    """Writes nothing."""

    missed = 0

    def __init__(self) -> None:
        self.wanted: list[bool] = []

    def follow(self, is_on: bool) -> None:
        self.wanted.append(is_on)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lb.toml"
    path.write_text(CONFIG)
    path.chmod(0o600)
    return path


class Parts:
    """
    The parts of a daemon that have tasks of their own, around a data path and a kernel that are played.

    Args:
        file: the configuration.
    """

    def __init__(self, file: Path) -> None:
        self.path, self.kernel, self.metrics, self.flow_log = DataPath(), Kernel(), Metrics(), FlowLog()
        self.supervisor, self.failures = Supervisor(), list[Exception]()
        start = with_seed(load_config(file), 1)
        sources = cast(Any, self.kernel)
        backend = lb.backends.load("python")
        self.runtime = Runtime(start, backend, Prepared(), sources, self.supervisor, self.failures.append)
        self.runtime._engine = self.runtime._attachment = cast(Any, self.path)
        self.publisher = Unguarded(self.path, self.runtime)
        self.controller = Controller(start, INTERFACES, self.publisher)
        self.changes = Changes(self.controller, self.supervisor)
        self.housekeeping = Housekeeping(self.controller, self.changes, self.runtime)
        self.interfaces = InterfaceFollower(self.controller, self.changes, self.supervisor, self.failures.append)
        self.record = ReloadRecord()
        self.reloader = Reloader(
            file,
            start,
            self.controller,
            self.changes,
            self.kernel,
            self.metrics,
            self.flow_log,
            self.supervisor,
            self.record,
        )
        self.sampler = Sampler(
            "python",
            file,
            self.runtime,
            self.controller,
            Checks(self.controller, self.changes, self.supervisor),
            self.flow_log,
            self.record,
            self.supervisor.states,
            lambda: (self.interfaces.trouble,),
        )


class Unguarded:
    """Publishes to a data path without a host guard."""

    def __init__(self, path: DataPath, runtime: Runtime) -> None:
        self.publish = path.publish
        self.reset_flows = runtime.reset_flows


def run(file: Path, scenario: Callable[[Parts], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with parts whose changes are made."""

    async def bounded() -> None:
        made = Parts(file)
        made.changes.start()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await scenario(made)
        finally:
            await made.supervisor.stop()
            await made.changes.close()

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_reset_of_flows_waits_while_they_are_left_to_a_successor(file: Path) -> None:
    """Rule 23.2, taking over: it does them; if it fails, this process goes on where it was."""

    async def scenario(parts: Parts) -> None:
        runtime = parts.runtime

        def leave(*_: object) -> int:
            runtime._has_left = True
            raise LbError("the packet loop does not run")

        parts.path.others = {8, 9}
        real, parts.path.reset_flows = parts.path.reset_flows, leave  # type: ignore[method-assign]
        runtime.reset_flows(8)
        await until(lambda: runtime._has_left)
        parts.path.reset_flows = real  # type: ignore[method-assign]
        runtime.reset_flows(9)
        for _ in range(10):
            await asyncio.sleep(0)
        assert parts.path.reset == []
        runtime._has_left = False
        await until(lambda: sorted(parts.path.reset) == [8, 9])
        assert parts.supervisor.states().get("reset of flows", TaskState()).failures == 0

    run(file, scenario)


def test_resets_of_many_servers_walk_the_table_for_those_with_flows_only(file: Path) -> None:
    """At a start there are as many as servers that are down, and few of these have flows."""

    async def scenario(parts: Parts) -> None:
        parts.path.active, parts.path.others = {3: 2, 400: 1}, {77}
        for server in range(500):
            parts.runtime._to_reset.add(server)
        parts.runtime.reset_flows(500)
        await until(lambda: parts.runtime._resets is not None and parts.runtime._resets.done())
        assert set(parts.path.reset) >= {3, 77, 400}
        # Of the last two that were asked for, one has none.
        assert len(parts.path.reset) <= 4
        assert len(parts.path.walks) < 25

    run(file, scenario)


def test_resets_under_way_are_finished_before_the_table_is_left(file: Path) -> None:
    """Rule 23.2, taking over: nobody else knows which flows an operator's command or a deadline is to reset."""

    async def scenario(parts: Parts) -> None:
        gate, real = threading.Event(), parts.path.reset_flows

        def held_up(server: int, limit: int, now_ns: int) -> int:
            gate.wait(DEADLINE_S)
            return real(server, limit, now_ns)

        parts.path.reset_flows = held_up  # type: ignore[method-assign]
        parts.runtime.reset_flows(1)
        await until(lambda: parts.runtime._resets)
        finished = asyncio.create_task(parts.runtime.finish_resets())
        await asyncio.sleep(0)
        assert not finished.done()
        gate.set()
        await finished
        assert parts.path.reset == [1]

    run(file, scenario)


def test_table_that_was_left_loses_no_flow(file: Path) -> None:
    """Rule 23.2, taking over: those that are removed then would end without a reset, for no packet leaves any more."""

    async def scenario(parts: Parts) -> None:
        runtime, seen = parts.runtime, list[bool]()

        def reset_flows(*_: object) -> int:
            seen.append(runtime._leaving.locked())
            return 0

        parts.path.reset_flows = reset_flows  # type: ignore[method-assign]
        parts.path.active = {1: 1}
        runtime._reset_servers([1, 2])
        # So the table is not left in the middle of it.
        assert seen == [True, True]
        runtime._has_left = True
        with pytest.raises(LbError, match="the flow table is left to another process"):
            runtime._reset_servers([1, 2])
        assert seen == [True, True]

    run(file, scenario)


def test_sweep_that_raises_runs_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that left is forgotten although looking at its flows failed; the failure is counted and shown."""
    monkeypatch.setattr(housekeeping, "SWEEP_S", 0.001)

    async def scenario(made: Parts) -> None:
        made.path.faults["active_flows"] = [KeyError("servers")]
        (await made.changes.make(lambda: made.controller.remove("video", "server2"))).result()
        made.supervisor.run("sweep", made.housekeeping.sweep)
        await until(lambda: not made.controller.removed_servers())
        assert made.controller.snapshot.servers[1] is None
        state = made.supervisor.states()["sweep"]
        assert (state.failures, state.restarts, state.last_error) == (1, 1, "KeyError: 'servers'")
        assert made.sampler.facts().tasks["sweep"] == state

    run(file, scenario)


def test_sweep_releases_the_ids_of_a_service_that_is_gone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that has another port now leaves no slot behind, nor do its servers; a failure only delays that."""
    monkeypatch.setattr(housekeeping, "SWEEP_S", 0.001)
    monkeypatch.setattr(recycle, "QUARANTINE_NS", 0)

    async def move(made: Parts, port: int) -> list[int | None]:
        file.write_text(CONFIG.replace("9876", str(port)))
        await made.reloader.reload()
        return [found and found.port for found in made.controller.snapshot.services]

    async def scenario(made: Parts) -> None:
        made.path.faults["retire_services"] = [LbError("no answer")]
        made.supervisor.run("sweep", made.housekeeping.sweep)
        assert await move(made, 9877) == [9876, 9877]
        await until(lambda: 9876 not in ports(made))
        await until(lambda: not (made.controller.absent("service") or made.controller.absent("server")))
        assert made.supervisor.states()["sweep"].failures == 1
        assert await move(made, 9878) == [9878, 9877]
        assert len(made.controller.snapshot.servers) == 4

    run(file, scenario)


def ports(made: Parts) -> list[int]:
    """Return the ports of the services in the snapshot."""
    return [found.port for found in made.controller.snapshot.services if found is not None]


def test_replan_that_raises_runs_again(file: Path) -> None:
    """Adaptive policies plan on after a failure."""

    async def scenario(made: Parts) -> None:
        made.path.faults["measurements"] = [LbError("no answer")]
        made.supervisor.run("replan", made.housekeeping.replan)
        await until(lambda: made.path.measured >= 3)
        assert made.supervisor.states()["replan"].failures == 1

    run(file, scenario)


def test_reset_flows_that_raises_is_tried_again(file: Path) -> None:
    """Rule 18.2, servers that leave or fail: clients of a server that is down learn it, if not at the first try."""

    async def scenario(made: Parts) -> None:
        made.path.faults["reset_flows"] = [LbError("busy")]
        made.runtime.reset_flows(0)
        await until(lambda: made.supervisor.states().get("reset of flows") is not None)
        await until(lambda: made.supervisor.states()["reset of flows"].restarts == 1)
        assert not made.path.faults["reset_flows"]

    run(file, scenario)


def test_reloads_at_once_are_one_after_the_other(file: Path) -> None:
    """SIGHUP and the API together: the second reads the file when the first is done, whatever the first waits for."""

    async def scenario(made: Parts) -> None:
        order: list[str] = []
        gate, real = asyncio.Event(), made.kernel.read_interfaces

        async def read_interfaces() -> tuple[Interface, ...]:
            order.append("interfaces")
            await gate.wait()
            return await real()

        made.kernel.read_interfaces = read_interfaces  # type: ignore[method-assign]
        made.reloader.request()
        second = asyncio.create_task(made.reloader.reload())
        dry = asyncio.create_task(made.reloader.preview())
        await until(lambda: order)
        file.write_text(CONFIG.replace("9876", "80").replace("[flows]", "flow_log = true\n[flows]"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == ["interfaces"]
        gate.set()
        lines = await second
        assert lines == [
            "~ flow_log: false -> true",
            "~ service video: 198.18.1.100:9876/tcp -> 198.18.1.100:80/tcp: old flows go on",
        ]
        assert (await dry).diff == []
        assert [event.change for event in made.controller.history] == ["reloaded", "reloaded"]
        assert made.flow_log.wanted == [False, True]

    run(file, scenario)


def test_reload_metrics_port_that_cannot_be_had_fails_the_answer(file: Path) -> None:
    """Rule 18.1, reloads and changes: nothing of the file is applied then, and the status says why."""

    async def scenario(made: Parts) -> None:
        @asynccontextmanager
        async def refuse(where: object) -> Any:
            raise LbError("metrics: cannot listen")
            yield

        made.metrics.moving = refuse  # type: ignore[method-assign]
        file.write_text(CONFIG.replace("9876", "80"))
        with pytest.raises(LbError, match="cannot listen"):
            await made.reloader.reload()
        assert (made.controller.generation, made.path.published) == (1, [])
        assert made.record.last_error == "metrics: cannot listen"

    run(file, scenario)


def test_reload_policy_file_that_hangs_has_a_deadline(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that never ends when it is run keeps neither the loop nor later reloads."""
    monkeypatch.setattr(reload_module, "READ_DEADLINE_S", 0.05)
    gate = threading.Event()

    def hang(path: Path) -> Any:
        if not gate.is_set():
            gate.wait(DEADLINE_S)
        return load_config(path)

    async def scenario(made: Parts) -> None:
        monkeypatch.setattr(reload_module, "load_config", hang)
        with pytest.raises(ConfigError, match=r"not read within 0\.05 s"):
            await made.reloader.reload()
        gate.set()
        monkeypatch.setattr(reload_module, "READ_DEADLINE_S", DEADLINE_S)
        assert await made.reloader.reload() == []

    run(file, scenario)


def test_as_it_runs_keeps_the_macs_of_the_start(file: Path) -> None:
    """A configured MAC needs a promiscuous socket, which is opened at the start."""
    running = load_config(file)
    file.write_text(CONFIG.replace('name = "eth0"', 'name = "eth0"\nmac = "aa:aa:aa:00:00:77"\nmtu = 1400'))
    entry = as_it_runs(load_config(file), running).interfaces[0]
    assert (entry.mac, entry.mtu) == (None, 1400)


POLICY = """\
from lb.policies.round_robin import RoundRobin
class Mine:
    def plan(self, service, servers, measurements=None):
        return RoundRobin().plan(service, servers, measurements)
"""


def test_reload_policy_file_with_another_text_is_told(file: Path) -> None:
    """
    Rule 18.1, reloads and changes: a policy file with another text is in the diff, dry or not; a touched file is not.
    """

    async def scenario(made: Parts) -> None:
        policy = file.with_name("mine.py")

        def write(text: str) -> None:
            policy.write_text(text)
            policy.chmod(0o600)

        write(POLICY)
        file.write_text(CONFIG.replace('{ name = "adaptive", interval = "10ms" }', '"./mine.py:Mine"'))
        await made.reloader.reload()
        write(POLICY)
        assert await made.reloader.reload() == []
        write(POLICY.replace("servers, measurements)", "servers[:1], measurements)"))
        line = "~ service video: policy ./mine.py:Mine: its file has changed"
        assert (await made.reloader.preview()).diff == [line]
        assert await made.reloader.reload() == [line]
        found = made.controller.snapshot.services[0]
        assert found is not None
        assert found.plan.slots == (0,)
        assert await made.reloader.reload() == []

    run(file, scenario)


class Slow:
    """What surrounds a reload, written down; the publication waits for `gate`."""

    def __init__(self, made: Parts) -> None:
        self.gate, self.failure = threading.Event(), cast(LbError | None, None)
        self.metrics: list[str] = []
        self.ports: list[int] = []
        made.publisher.publish = self.publish
        made.metrics.moving = self.moving  # type: ignore[method-assign]
        made.kernel.configure = self.configure  # type: ignore[method-assign]
        self._path = made.path

    def publish(self, snapshot: Snapshot) -> None:
        assert self.gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        self._path.publish(snapshot)

    @asynccontextmanager
    async def moving(self, where: object) -> Any:
        self.metrics.append("both")
        try:
            yield
        except BaseException:
            self.metrics.append("old")
            raise
        self.metrics.append("new")

    def configure(self, config: Config) -> None:
        self.ports.append(config.services[0].port)


def slow_reload(file: Path) -> None:
    file.write_text(CONFIG.replace("9876", "80").replace("[flows]", "flow_log = true\n[flows]"))


def test_reload_that_outlasts_its_answer_is_carried_through_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Rule 18.1, reloads and changes: its caller hears that it is in progress; all of it happens when it ends, and the
    next one waits.
    """
    closed: list[Config] = []
    monkeypatch.setattr(reload_module, "close_policies", lambda unused, used: closed.append(unused))

    async def scenario(made: Parts) -> None:
        slow = Slow(made)
        slow_reload(file)
        with pytest.raises(UnderWayError, match=r"still in progress after 0\.5 s and goes on"):
            await made.reloader.reload(0.5)
        assert (made.record.counts, slow.metrics, made.flow_log.wanted) == ({}, ["both"], [])
        for ask in (made.reloader.reload, made.reloader.preview):
            with pytest.raises(LbError, match="was given up: another one has been in progress"):
                await ask(0.01)
        next_one = asyncio.create_task(made.reloader.reload())
        slow.gate.set()
        assert await next_one == []
        assert (made.record.counts, made.record.last_error, ports(made)) == ({"success": 2}, None, [9876, 80])
        assert (slow.metrics, made.flow_log.wanted) == (["both", "new"] * 2, [True, True])
        assert (slow.ports, closed) == ([80, 80], [])

    run(file, scenario)


def test_reload_that_fails_after_its_answer_is_taken_back_whole(file: Path) -> None:
    """Rule 18.1, reloads and changes: nothing of it stays, and the status says why."""

    async def scenario(made: Parts) -> None:
        slow = Slow(made)
        slow.failure = LbError("nft: no")
        slow_reload(file)
        with pytest.raises(UnderWayError):
            await made.reloader.reload(0.5)
        slow.gate.set()
        await until(lambda: made.record.counts)
        assert (made.record.counts, made.record.last_error) == ({"failure": 1}, "nft: no")
        assert (slow.metrics, slow.ports) == (["both", "old"], [80, 9876])
        assert (made.controller.generation, made.controller.config.flow_log, made.flow_log.wanted) == (1, False, [])

    run(file, scenario)


def test_reload_fault_of_ours_is_taken_back_and_told(file: Path) -> None:
    """An unexpected exception is a failed reload like any other."""

    async def scenario(made: Parts) -> None:
        slow = Slow(made)

        async def fail() -> tuple[Interface, ...]:
            raise ZeroDivisionError("a fault")

        made.kernel.read_interfaces = fail  # type: ignore[method-assign]
        slow_reload(file)
        with pytest.raises(ZeroDivisionError):
            await made.reloader.reload()
        assert (made.record.last_error, slow.ports) == ("ZeroDivisionError('a fault')", [80, 9876])
        assert made.supervisor.states()["reload"].failures == 0

    run(file, scenario)


def test_interfaces_change_waits_for_a_slow_change_and_is_followed(file: Path) -> None:
    """The kernel does not report it again: it is published after the change in progress, however late."""

    async def scenario(made: Parts) -> None:
        slow = Slow(made)
        with pytest.raises(UnderWayError):
            await made.changes.make(lambda: made.controller.set_weight("video", "server1", 2), 0.5)
        made.interfaces.on_change((replace(INTERFACES[0], mtu=1400),))
        await asyncio.sleep(0)
        slow.gate.set()
        await until(lambda: made.controller.snapshot.interfaces[0].mtu == 1400)
        assert made.supervisor.states()["interfaces"].failures == 0

    run(file, scenario)


def test_answers_come_before_connections_are_closed() -> None:
    """A later answer would reach no client; reading has a deadline and a message of its own."""
    assert reload_module.READ_DEADLINE_S < ANSWER_S < min(CONNECTION_S, CHANGE_TIMEOUT_S)


class Guard:
    """Keeps the host's kernel out, in words; `apply` waits for `gate`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.entered, self.gate = threading.Event(), threading.Event()

    def apply(self, snapshot: Snapshot) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        self.done.append("apply")

    def remove(self) -> None:
        self.done.append("remove")


def test_publish_after_the_end_leaves_nothing_on_the_host(file: Path) -> None:
    """Rule 20.1, restoring the host: a change that was left alone at the stop makes no table after it is removed."""

    async def scenario(made: Parts) -> None:
        guard = Guard()
        made.runtime._guard = cast(Any, guard)
        late = asyncio.create_task(asyncio.to_thread(made.runtime.publish, made.controller.snapshot))
        await asyncio.to_thread(guard.entered.wait, DEADLINE_S)
        end = asyncio.create_task(asyncio.to_thread(made.runtime.release_host))
        guard.gate.set()
        await asyncio.gather(late, end)
        with pytest.raises(LbError, match="is stopping"):
            made.runtime.publish(made.controller.snapshot)
        assert (guard.done, len(made.path.published)) == (["apply", "remove"], 1)

    run(file, scenario)


def test_settings_that_a_backend_cannot_follow_are_told(file: Path, backend: str) -> None:
    """A setting is never left out in silence: what `capabilities` lacks is said at the start, and nothing else."""
    module = lb.backends.load(backend)
    assert ignored_settings(load_config(file), module) == []
    text = file.read_text().replace('name = "eth0"\n', 'name = "eth0"\ntransmit = "direct"\n')
    file.write_text('poll = "busy"\n' + text)
    config = load_config(file)
    assert (config.poll, config.interfaces[0].transmit) == ("busy", "direct")
    lines = {
        "rust": [],
        "python": [
            'backend python has no poll = "busy": it waits as with "sleep"',
            'backend python has no transmit = "direct": eth0 sends as with "queue"',
        ],
    }
    assert ignored_settings(config, module) == lines[backend]


def test_settings_of_several_workers_are_told_by_what_they_can_together(file: Path) -> None:
    """Also a backend that does all by itself cannot send directly from several workers."""
    can = replace(lb.backends.load("python").capabilities(), sends_directly=True, polls=POLLS)
    module = cast(Any, SimpleNamespace(NAME="able", capabilities=lambda: can))
    one = load_config(file)
    direct = one.interfaces[0].model_copy(update={"transmit": "direct"})
    several = one.model_copy(update={"workers": 2, "interfaces": (direct,)})
    assert (capabilities_of(one, module), capabilities_of(several, module)) == (can, sharded.capabilities(can))
    assert ignored_settings(several, module) == ['backend able has no transmit = "direct": eth0 sends as with "queue"']


def test_sample_has_what_the_backend_does_not_measure(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics leave out what would be 0 only because nothing measures it."""
    python = lb.backends.load("python")
    blind = replace(python.capabilities(), not_measured=frozenset({"stalled_ns"}))
    monkeypatch.setattr(python, "capabilities", lambda: blind)

    async def scenario(made: Parts) -> None:
        cast(Any, made.path).counters = lambda: {"io": {"rx_dropped": 0}}
        cast(Any, made.flow_log).missed = 0
        assert made.sampler.sample().not_measured == {"stalled_ns"}

    run(file, scenario)
