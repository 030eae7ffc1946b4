"""
Long jobs one after the other, each carried through whole: reloads and dry runs.

A reload is more than one change: before it come the metrics' new place and the interfaces, after it the flow log and
what the status says of it. So it is a task of its own, which its caller only waits for. A caller who has waited long
enough is told that the job is under way; the job itself, and all that follows from it, goes on to its end, and the next
one waits until then. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lb.control.tasks import Supervisor
from lb.errors import LbError, UnderWayError

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Turns:
    """
    The order of jobs.

    Args:
        supervisor: ends a job that is under way when the process stops.
        name: of the jobs, in messages and in the status.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self._supervisor = supervisor
        self._name = name
        self._turn = asyncio.Lock()

    async def take(self, job: Callable[[], Coroutine[Any, Any, Result]], deadline_s: float | None = None) -> Result:
        """
        Do a job when those before it are done, and return what it returns.

        Args:
            job: called when its turn has come.
            deadline_s: how long the caller waits; None: until the job is done.

        Raises:
            LbError: its turn had not come in time, and it will not be done; or as the job.
            UnderWayError: it has begun, and is carried through.
        """
        due_s = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        try:
            async with asyncio.timeout_at(due_s):
                await self._turn.acquire()
        except TimeoutError:
            raise LbError(
                f"the {self._name} was given up: another one has been under way for {deadline_s:g} s; see the log"
            ) from None
        task = self._supervisor.attend(self._name, job())
        task.add_done_callback(lambda _: self._turn.release())
        try:
            async with asyncio.timeout_at(due_s):
                return await asyncio.shield(task)
        except TimeoutError:
            if task.done():
                raise
            task.add_done_callback(self._note_late)
            raise UnderWayError(
                f"the {self._name} is still under way after {deadline_s:g} s and goes on; "
                "`lb status` and the log tell how it ends"
            ) from None

    def _note_late(self, task: asyncio.Task[Any]) -> None:
        """Log how a job ended whose caller is gone."""
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            log.info("the %s that took so long is done", self._name)
        elif not isinstance(error, LbError):
            self._supervisor.note(self._name, error)
