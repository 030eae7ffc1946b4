"""
Calling somebody else's code with a bound on the time: on a thread of its own, waiting no longer than a deadline.

A thread cannot be ended from outside. One that does not answer is left alone: nothing more is asked of it until it has
answered, and it is a daemon thread, so that the process can end without it. `close` ends the thread of a caller that is
not needed any more; while its call has not come back, the thread is *stuck*. Stuck threads are counted, and no new
thread is started beyond MAX_STUCK of them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from lb.errors import PolicyError

Result = TypeVar("Result")
_Job: TypeAlias = tuple["Future[Any]", Callable[[], Any]]
# None: there will be none any more.
_Jobs: TypeAlias = "SimpleQueue[_Job | None]"

# Threads that were given up and have not come back; beyond these, user code is not called by new threads.
MAX_STUCK = 16

_abandoned: set[Future[Any]] = set()


def stuck_threads() -> int:
    """Return how many threads were given up and still run a call that has not come back."""
    for call in [call for call in _abandoned if call.done()]:
        _abandoned.discard(call)
    return len(_abandoned)


class Caller:
    """Calls functions, one at a time. All calls of it come from one thread. `name`: of the thread, for debuggers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: _Jobs | None = None
        self._last: Future[Any] | None = None

    def call(self, function: Callable[[], Result], deadline_s: float) -> Result:
        """
        Call a function.

        Args:
            function: takes nothing.
            deadline_s: how long to wait for it.

        Raises:
            PolicyError: it takes longer, the call before it has not come back yet, or too many threads are stuck.
            Exception: what the function raises.
        """
        if self._last is not None and not self._last.done():
            raise PolicyError("the call before has not come back yet")
        if self._jobs is None:
            self._jobs = self._start()
        job: Future[Result] = Future()
        self._last = job
        self._jobs.put((job, function))
        try:
            return job.result(deadline_s)
        except TimeoutError:
            if job.done():  # the function's own
                raise
            raise PolicyError(f"no answer within {deadline_s:g} s") from None

    def close(self) -> None:
        """End the thread, once its call has come back. A later `call` starts another."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
        if self._last is not None and not self._last.done():
            _abandoned.add(self._last)
        self._last = None

    def _start(self) -> _Jobs:
        if (stuck := stuck_threads()) >= MAX_STUCK:
            raise PolicyError(f"{stuck} calls of policies have not come back: restart lb to be rid of their threads")
        jobs: _Jobs = SimpleQueue()
        # The thread knows the queue alone, so that a caller which nothing refers to any more ends it too.
        threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True).start()
        weakref.finalize(self, jobs.put, None)
        return jobs


def _serve(jobs: _Jobs) -> None:
    while (work := jobs.get()) is not None:
        _answer(*work)
        # Kept until the next call, it would keep alive what ends this thread.
        del work


def _answer(job: Future[Any], function: Callable[[], Any]) -> None:
    try:
        job.set_result(function())
    except Exception as error:  # somebody's code
        job.set_exception(error)
    except BaseException as error:  # SystemExit ends nothing here
        job.set_exception(RuntimeError(repr(error)))
