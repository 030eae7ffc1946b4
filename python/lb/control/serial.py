"""
Work one after the other: functions on a thread of their own, and long jobs on the asyncio loop.

A reload is more than one change: before it come the new address of the metrics and the interfaces, after it the flow
log and the status. So it is a job of its own (`SerialJobs`). A caller that has waited long enough is told that the job
is in progress; the job itself goes on to its end, and the next one waits until then. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from lb.control.tasks import Supervisor
from lb.errors import LbError, UnderWayError

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class SerialJobs:
    """
    Runs long jobs one after the other, each to its end: reloads and dry runs.

    Args:
        supervisor: ends a job that is in progress when the process stops.
        name: of the jobs, in messages and in the status.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self._supervisor = supervisor
        self._name = name
        self._lock = asyncio.Lock()

    async def run(self, job: Callable[[], Coroutine[Any, Any, Result]], deadline_s: float | None = None) -> Result:
        """
        Run a job after those before it, and return what it returns.

        Args:
            job: called when it begins.
            deadline_s: how long the caller waits; None: until the job is done.

        Raises:
            LbError: it was not begun in time, and will not be run; or as the job.
            UnderWayError: it has begun, and goes on.
        """
        due_s = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        await self._begin(due_s, deadline_s)
        task = self._supervisor.attend(self._name, job())
        task.add_done_callback(lambda _: self._lock.release())
        try:
            async with asyncio.timeout_at(due_s):
                return await asyncio.shield(task)
        except TimeoutError:
            if task.done():
                raise
            task.add_done_callback(self._note_late)
            raise UnderWayError(
                f"the {self._name} is still in progress after {deadline_s:g} s and goes on; "
                "`lb status` and the log tell how it ends"
            ) from None

    async def _begin(self, due_s: float | None, deadline_s: float | None) -> None:
        """Wait until no other job runs. Raise LbError when that takes too long."""
        try:
            async with asyncio.timeout_at(due_s):
                await self._lock.acquire()
        except TimeoutError:
            raise LbError(
                f"the {self._name} was given up: another one has been in progress for {deadline_s:g} s; see the log"
            ) from None

    def _note_late(self, task: asyncio.Task[Any]) -> None:
        """Log how a job ended whose caller has stopped waiting."""
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            log.info("the delayed %s is done", self._name)
        elif not isinstance(error, LbError):
            self._supervisor.note(self._name, error)


class SerialThread:
    """
    Runs functions one after the other on a daemon thread of its own, so that a stuck one does not keep the process from
    ending. The thread starts with the first call, and has the capabilities that its caller has then.

    Args:
        name: of the thread, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns, or raise what it raises. Belongs to one asyncio loop."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        job: Future[Result] = Future()
        self._jobs.put((job, function))
        return await asyncio.wrap_future(job)

    async def close(self, deadline_s: float) -> bool:
        """Let the thread end after its current function; return whether it ended within `deadline_s` seconds."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, deadline_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, function = work
            if not job.set_running_or_notify_cancel():
                continue
            try:
                job.set_result(function())
            except Exception as error:
                job.set_exception(error)
            except BaseException as error:  # SystemExit of user code ends nothing here
                job.set_exception(RuntimeError(repr(error)))
