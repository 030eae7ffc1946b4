"""The supervisor: a background task that fails is logged, counted and started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lb.control import tasks as supervisor
from lb.control.tasks import FIRST_DELAY_S, JITTER, LONGEST_DELAY_S, STEADY_S, Supervisor

DEADLINE_S = 20.0


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(bounded())


class Time:
    """A clock that moves with each sleep, or when a job says how long it ran."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


def supervise(time: Time) -> Supervisor:
    return Supervisor(sleep=time.sleep, now=lambda: 1000.0, monotonic=time.monotonic)


def test_run_job_that_raises_restarts_with_growing_delay(caplog: pytest.LogCaptureFixture) -> None:
    """Each restart waits longer, within its jitter, up to the longest delay; the traceback is in the log."""

    async def scenario() -> None:
        time, starts = Time(), 0

        async def job() -> None:
            nonlocal starts
            starts += 1
            if starts <= 12:
                raise ValueError(f"start {starts}\nmore")

        watched = supervise(time)
        await watched.run("sweep", job)
        state = watched.states()["sweep"]
        assert (state.failures, state.restarts, state.last_error) == (12, 12, "ValueError: start 12")
        assert state.last_failure_at == 1000.0
        for number, slept in enumerate(time.slept):
            longest = min(FIRST_DELAY_S * 2**number, LONGEST_DELAY_S)
            assert longest * (1 - JITTER) <= slept <= longest

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "background task sweep failed" in caplog.text
    assert "Traceback" in caplog.text


def test_run_job_that_ran_well_starts_over_with_the_first_delay() -> None:
    """A failure long after the one before is a first failure again."""

    async def scenario() -> None:
        time, lasting = Time(), [0.0, 0.0, STEADY_S, 0.0]

        async def job() -> None:
            if lasting:
                time.now_s += lasting.pop(0)
                raise ValueError

        await supervise(time).run("sweep", job)
        assert time.slept[1] > FIRST_DELAY_S * (1 - JITTER)
        assert time.slept[2] <= FIRST_DELAY_S
        assert time.slept[3] <= 2 * FIRST_DELAY_S

    run(scenario)


def test_run_job_that_returns_is_over() -> None:
    """A job that ends by itself is not started again, and shows without failures."""

    async def scenario() -> None:
        starts: list[int] = []

        async def job() -> None:
            starts.append(1)

        watched = Supervisor()
        await watched.run("once", job)
        assert (len(starts), watched.states()["once"].failures) == (1, 0)

    run(scenario)


def test_spawn_coroutine_that_raises_is_noted_once() -> None:
    """What runs once is not repeated; its failure shows."""

    async def scenario() -> None:
        async def job() -> None:
            raise OSError(5, "broken")

        watched = Supervisor(now=lambda: 50.0)
        await watched.spawn("resolve", job())
        state = watched.states()["resolve"]
        assert (state.failures, state.restarts) == (1, 0)
        assert (state.is_recent(51.0), state.is_recent(50.0 + supervisor.RECENT_S + 1)) == (True, False)

    run(scenario)


def test_stop_ends_every_task() -> None:
    """Nothing is left, and a task in its delay does not start again."""

    async def scenario() -> None:
        failed, cancelled = asyncio.Event(), asyncio.Event()

        async def waiting() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async def failing() -> None:
            failed.set()
            raise ValueError

        async def endless(_: float) -> None:
            await asyncio.Event().wait()

        watched = Supervisor(sleep=endless)
        watched.run("waiting", waiting)
        task = watched.run("failing", failing)
        await failed.wait()
        await watched.stop()
        assert cancelled.is_set()
        assert task.cancelled()
        assert watched.states()["failing"].restarts == 0

    run(scenario)


def test_watch_loop_callback_that_raises_is_noted() -> None:
    """A callback of the loop belongs to no task: its exception is counted all the same."""

    async def scenario() -> None:
        watched, loop, after = Supervisor(), asyncio.get_running_loop(), asyncio.Event()
        watched.watch_loop(loop)
        loop.call_soon(lambda: [][0])
        loop.call_soon(after.set)
        await after.wait()
        assert watched.states()["event loop"].failures == 1

    run(scenario)


def test_run_job_that_a_cancelled_future_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """A CancelledError from inside, of something that the job waited for, is a failure like any other."""

    async def scenario() -> None:
        starts = 0

        async def job() -> None:
            nonlocal starts
            starts += 1
            if starts == 1:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

        watched = supervise(Time())
        await watched.run("sweep", job)
        state = watched.states()["sweep"]
        assert (starts, state.failures, state.restarts, state.last_error) == (2, 1, 1, "CancelledError")

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "background task sweep failed" in caplog.text


def test_spawn_coroutine_that_a_cancelled_future_ends_is_noted() -> None:
    """What runs once fails by a CancelledError from inside as well."""

    async def scenario() -> None:
        async def job() -> None:
            raise asyncio.CancelledError("of another")

        watched = Supervisor()
        await watched.spawn("resolve", job())
        state = watched.states()["resolve"]
        assert (state.failures, state.last_error) == (1, "CancelledError: of another")

    run(scenario)


def test_run_timeout_inside_the_job_is_a_failure() -> None:
    """A deadline cancels the task for a moment, and takes that back: the job is not at its end."""

    async def scenario() -> None:
        starts = 0

        async def job() -> None:
            nonlocal starts
            starts += 1
            if starts == 1:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()

        watched = supervise(Time())
        await watched.run("sweep", job)
        assert (starts, watched.states()["sweep"].failures) == (2, 1)

    run(scenario)


@pytest.mark.parametrize("kind", ["run", "spawn"])
def test_stop_job_that_raises_when_cancelled_ends_and_is_noted(kind: str) -> None:
    """An exception in what a job cleans up does not start it again: a task is cancelled once."""

    async def scenario() -> None:
        begun = asyncio.Event()

        async def job() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError(5, "broken")

        watched = Supervisor()
        task = watched.run("job", job) if kind == "run" else watched.spawn("job", job())
        await begun.wait()
        await watched.stop()
        state = watched.states()["job"]
        assert (task.cancelled(), state.failures, state.restarts) == (True, 1, 0)

    run(scenario)


def test_stop_job_that_waits_is_not_noted() -> None:
    """A true cancellation is no failure."""

    async def scenario() -> None:
        begun = asyncio.Event()

        async def job() -> None:
            begun.set()
            await asyncio.Event().wait()

        watched = Supervisor()
        tasks = watched.run("a", job), watched.spawn("b", job())
        await begun.wait()
        await watched.stop()
        assert [task.cancelled() for task in tasks] == [True, True]
        assert [state.failures for state in watched.states().values()] == [0, 0]

    run(scenario)
