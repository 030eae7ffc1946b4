"""
Calling somebody else's code with a bound on the time: on a thread of its own, waiting no longer than a deadline.

A thread cannot be ended from outside. One that does not answer is left alone: nothing more is asked of it until it has
answered, and it is a daemon thread, so that the process can end without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from lb.errors import PolicyError

Result = TypeVar("Result")
_Job: TypeAlias = tuple["Future[Any]", Callable[[], Any]]


class Caller:
    """Calls functions, one at a time. All calls of it come from one thread. `name`: of the thread, for debuggers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Future[Any] | None = None

    def call(self, function: Callable[[], Result], deadline_s: float) -> Result:
        """
        Call a function.

        Args:
            function: takes nothing.
            deadline_s: how long to wait for it.

        Raises:
            PolicyError: it takes longer, or the call before it has not come back yet.
            Exception: what the function raises.
        """
        if self._last is not None and not self._last.done():
            raise PolicyError("the call before has not come back yet")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        job: Future[Result] = Future()
        self._last = job
        self._jobs.put((job, function))
        try:
            return job.result(deadline_s)
        except TimeoutError:
            if job.done():  # the function's own
                raise
            raise PolicyError(f"no answer within {deadline_s:g} s") from None

    def _serve(self) -> None:
        while True:
            job, function = self._jobs.get()
            try:
                job.set_result(function())
            except Exception as error:  # somebody's code
                job.set_exception(error)
            except BaseException as error:  # SystemExit ends nothing here
                job.set_exception(RuntimeError(repr(error)))
