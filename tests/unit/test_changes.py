"""The queue of changes: in order, off the loop, what waits together is one publication, each has its own result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from test_controller import Recorder, config, extra, names, server, start_controller

from lb.compiler.spec import ServerKey
from lb.control import changes
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.outcome import HealthUpdate, Outcome
from lb.control.serial import SerialThread
from lb.control.tasks import Supervisor
from lb.errors import LbError, UnderWayError, UnknownNameError
from lb.model.snapshot import Snapshot

DEADLINE_S = 20.0


class Held(Recorder):
    """Publishes on command: `entered` tells that a publication waits for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.threads: set[str] = set()

    def publish(self, snapshot: Snapshot) -> None:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        if not self.gate.wait(DEADLINE_S):
            raise LbError("the test never opened the gate")
        super().publish(snapshot)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(bounded())


def queue(servers: int = 3, tick_s: float = 0.0) -> tuple[Changes, Controller, Held, Supervisor]:
    """Make a queue whose first snapshot is published."""
    controller, _ = start_controller(config(*(server(number + 1) for number in range(servers))))
    held, supervisor = Held(), Supervisor()
    controller._publisher = held
    queued = Changes(controller, supervisor, tick_s)
    queued.start()
    return queued, controller, held, supervisor


async def entered(held: Held) -> None:
    assert await asyncio.to_thread(held.entered.wait, DEADLINE_S)


def test_make_loop_runs_on_while_a_publication_takes_its_time() -> None:
    """Nothing blocks the loop: changes that come while one is being published are made together afterwards."""

    async def scenario() -> None:
        queued, controller, held, supervisor = queue()
        first = asyncio.create_task(queued.make(lambda: controller.set_weight("video", "server1", 2)))
        await entered(held)
        others = [
            asyncio.create_task(queued.make(change))
            for change in (
                lambda: controller.set_weight("video", "server2", 3),
                lambda: controller.set_weight("video", "nope", 3),
                lambda: controller.add("video", extra(7)),
            )
        ]
        await asyncio.sleep(0)
        assert controller.generation == 1
        held.gate.set()
        assert (await first).generation == 2
        outcomes = [await other for other in others]
        assert [(each.generation, each.changed) for each in outcomes] == [(3, True), (3, False), (3, True)]
        with pytest.raises(UnknownNameError):
            outcomes[1].result()
        assert [snapshot.generation for snapshot in held.published] == [2, 3]
        assert held.threads == {"lb-changes"}
        await supervisor.stop()
        await queued.close()

    run(scenario)


def test_request_many_at_once_are_one_publication_per_tick() -> None:
    """What checks say while a publication is in progress becomes one more, however much; requests do not pile up."""

    async def scenario() -> None:
        queued, controller, held, supervisor = queue(3)
        verdicts: dict[ServerKey, HealthUpdate] = {}
        outcomes: list[Outcome] = []
        finished = asyncio.Event()

        def prepare() -> Callable[[], object]:
            nonlocal verdicts
            taken, verdicts = verdicts, {}
            return lambda: controller.update_health(taken)

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            finished.set()

        def say(name: str, part: float) -> None:
            verdicts[ServerKey("video", name)] = HealthUpdate(ramp=part)
            queued.request("conditions", prepare, done)

        say("server1", 0.5)
        await entered(held)
        for step in range(1, 21):
            say("server2", step / 20)
            say("server3", step / 40)
        held.gate.set()
        while len(outcomes) < 2:
            finished.clear()
            await finished.wait()
        assert [each.generation for each in outcomes] == [2, 3]
        assert {key.server: each.ramp for key, each in controller.spec.health.items()} == {
            "server1": 0.5, "server3": 0.5
        }  # fmt: skip
        assert controller.publications == 2
        await supervisor.stop()
        await queued.close()

    run(scenario)


def test_make_urgent_change_does_not_wait_for_the_tick() -> None:
    """A command is made at once, and takes along what waits for the next tick, which comes before it."""

    async def scenario() -> None:
        queued, controller, held, supervisor = queue(3, tick_s=3600.0)
        held.gate.set()
        first: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        queued.request("a", lambda: lambda: controller.set_ramp("video", "server1", 0.5), first.set_result)
        await first
        second: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        queued.request("a", lambda: lambda: controller.set_ramp("video", "server1", 1.0), second.set_result)
        outcome = await queued.make(lambda: controller.set_state("video", "server3", "draining"))
        assert outcome.generation == (await second).generation == 3
        assert names(controller.snapshot) == ["server1", "server2"]
        await supervisor.stop()
        await queued.close()

    run(scenario)


def test_make_stuck_publication_has_a_deadline_and_the_process_may_end(caplog: pytest.LogCaptureFixture) -> None:
    """A change that has not begun in time is given up; one that has is reported as in progress; no caller hangs."""
    caplog.set_level("INFO")

    async def scenario() -> None:
        queued, controller, held, supervisor = queue()
        begun = asyncio.create_task(queued.make(lambda: controller.set_weight("video", "server1", 2), deadline_s=0.2))
        await entered(held)
        with pytest.raises(LbError, match="was given up: the one before it has been in progress"):
            await queued.make(lambda: controller.set_weight("video", "server2", 9), deadline_s=0.01)
        with pytest.raises(UnderWayError, match="still in progress"):
            await begun
        held.gate.set()
        outcome = await queued.make(lambda: controller.set_weight("video", "server3", 4))
        assert outcome.generation == 3
        assert [each.weight for each in controller.services()[0].servers] == [2, 1, 4]
        assert "the delayed change is made: generation 2" in caplog.text
        await supervisor.stop()
        await queued.close()

    run(scenario)


def test_close_change_that_never_returns_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits for a change that is in progress, and not for ever."""

    async def scenario() -> None:
        queued, controller, held, supervisor = queue()
        stuck = asyncio.create_task(queued.make(lambda: controller.set_weight("video", "server1", 2)))
        await entered(held)
        await supervisor.stop()
        await queued.close()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        with pytest.raises(LbError, match="is stopping"):
            await queued.make(lambda: controller.set_weight("video", "server1", 2))
        held.gate.set()

    monkeypatch.setattr(changes, "CLOSE_S", 0.01)
    run(scenario)


def test_work_fault_in_the_queue_itself_reaches_its_callers_and_the_supervisor() -> None:
    """An exception that is no change's own: its callers learn it, it is counted, and the next change is made."""

    async def scenario() -> None:
        queued, controller, held, supervisor = queue()
        held.gate.set()
        real = controller.apply

        def broken(_: object) -> list[Outcome]:
            controller.apply = real  # type: ignore[method-assign]
            raise ZeroDivisionError("a fault")

        controller.apply = broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            (await queued.make(lambda: controller.set_weight("video", "server1", 2))).result()
        assert supervisor.states()["changes"].failures == 1
        assert (await queued.make(lambda: controller.set_weight("video", "server1", 2))).changed
        await supervisor.stop()
        await queued.close()

    run(scenario)


def test_serial_thread_system_exit_is_an_error_like_any_other() -> None:
    """User code that calls sys.exit() ends neither the thread nor the loop."""

    async def scenario() -> None:
        thread = SerialThread("t")

        def leave() -> None:
            raise SystemExit(3)

        with pytest.raises(RuntimeError, match="SystemExit"):
            await thread.run(leave)
        assert await thread.run(lambda: 4) == 4
        assert await thread.close(DEADLINE_S)

    run(scenario)
