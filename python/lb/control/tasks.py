"""
Background tasks that survive their own exceptions: each is watched, and started again when it fails.

Lowest part of the control side: health checks, the measurement timer, the sweep, the kernel's events and the flow log
all run as such tasks. An exception in one of them goes to the log with its traceback, is counted, and shows in `lb
status` and in the metrics; the task starts again after a delay that doubles while it keeps failing. Belongs to one
asyncio loop; `note` and `call_on` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

# Delay before the first restart, and the longest delay; each is shortened by up to this share of itself.
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
JITTER = 0.5
# A task that ran this long has recovered: its next failure waits the first delay again.
STEADY_S = 60.0
# `lb status` shows a failure for this long.
RECENT_S = 3600.0

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskState:
    """
    The state of a background task. `failures`: exceptions so far; `restarts`: how often it was started again;
    `last_error`: the last exception, in one line; `last_failure_at`: its Unix time in seconds. None when there was
    none.
    """

    failures: int = 0
    restarts: int = 0
    last_error: str | None = None
    last_failure_at: float | None = None

    def is_recent(self, now: float) -> bool:
        """Return whether it failed within the last hour. `now`: Unix time in seconds."""
        return self.last_failure_at is not None and now - self.last_failure_at <= RECENT_S


class Supervisor:
    """
    Runs background tasks.

    Args:
        sleep: waits between restarts.
        now: returns Unix time, for the status.
        monotonic: returns seconds of a monotonic clock, to tell how long a task ran.
    """

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._now = now
        self._monotonic = monotonic
        self._tasks: set[asyncio.Task[Any]] = set()
        self._states: dict[str, TaskState] = {}
        self._lock = threading.Lock()

    def run(self, name: str, job: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """
        Run a job until it returns, and start it again whenever it raises; also after a `CancelledError`, unless the
        task itself was cancelled.

        Args:
            name: of the task, in the log, the status and the metrics; from a fixed set.
            job: called anew for each start.

        Returns:
            The task; cancelling it ends the job for good.
        """
        return self._start(name, self._keep_running(name, job))

    def spawn(self, name: str, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine once. An exception is noted as with `run`, and it is not started again."""
        task = self._start(name, self._run_once(name, job))
        # When it is cancelled before it began, Python would warn that it was never awaited.
        task.add_done_callback(lambda _: job.close())
        return task

    def attend(self, name: str, job: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run a coroutine once; its caller awaits the result or exception. `stop` ends it with the other tasks."""
        task = self._start(name, job)
        # When the caller has stopped waiting, the exception is no error of the loop.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def note(self, name: str, error: BaseException) -> None:
        """Log and count an exception of a task that continues. From any thread."""
        words = ": ".join(filter(None, (type(error).__name__, str(error)))).partition("\n")[0]
        facts = {"task": name, "error": words}
        log.error("background task %s failed: %r", name, error, exc_info=error, extra={"facts": facts})
        with self._lock:
            state = self._states.get(name, TaskState())
            self._states[name] = TaskState(state.failures + 1, state.restarts, words, self._now())

    @contextlib.contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Note an exception of the block under the name of a task, and continue."""
        try:
            yield
        except Exception as error:
            self.note(name, error)

    def states(self) -> dict[str, TaskState]:
        """Return the state of each task by name: of those that run, and of those that have failed."""
        with self._lock:
            return dict(sorted(self._states.items()))

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note exceptions in callbacks of a loop, under the name `event loop`."""

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, Exception):
                self.note("event loop", error)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)

    def _start(self, name: str, job: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        with self._lock:
            self._states.setdefault(name, TaskState())
        task = asyncio.get_running_loop().create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_running(self, name: str, job: Callable[[], Awaitable[None]]) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            began_s = self._monotonic()
            if await self._succeeds(name, job):
                return
            if self._monotonic() - began_s >= STEADY_S:
                delay_s = FIRST_DELAY_S
            await self._sleep(delay_s * random.uniform(1 - JITTER, 1))
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            self._count_restart(name)

    async def _run_once(self, name: str, job: Coroutine[Any, Any, None]) -> None:
        await self._succeeds(name, lambda: job)

    async def _succeeds(self, name: str, job: Callable[[], Awaitable[None]]) -> bool:
        """Run a job once and return whether it returned; an exception is noted. Ends when it is cancelled."""
        try:
            await job()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            # Not this task was cancelled, but something that the job waited for.
            self.note(name, error)
        except Exception as error:
            self.note(name, error)
            if _is_cancelled():
                # It was cancelled and failed while ending. Started again it would never end: a task is cancelled once.
                raise asyncio.CancelledError from error
        else:
            return True
        return False

    def _count_restart(self, name: str) -> None:
        with self._lock:
            state = self._states[name]
            self._states[name] = TaskState(state.failures, state.restarts + 1, state.last_error, state.last_failure_at)


def call_on(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call a function on a loop, from any thread. Does nothing when the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
