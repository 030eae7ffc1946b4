"""
The deadline executor: runs users' code on a separate thread, and waits no longer than a deadline.

A thread cannot be ended from outside. While one does not return, nothing more is run on it; it is a daemon thread, so
that the process can end without it. `close` ends the thread of an executor that is not needed any more; while its last
call has not returned, the thread is *stuck*. Stuck threads are counted, and no new thread is started beyond MAX_STUCK
of them.
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
# None: the executor is closed.
_Jobs: TypeAlias = "SimpleQueue[_Job | None]"

# The most threads whose call has not returned; with more, no new thread is started for users' code.
MAX_STUCK = 16

_abandoned: set[Future[Any]] = set()


def stuck_threads() -> int:
    """Return the number of threads of closed executors whose call has not returned."""
    for call in [call for call in _abandoned if call.done()]:
        _abandoned.discard(call)
    return len(_abandoned)


class DeadlineExecutor:
    """Runs functions, one at a time, for callers on one thread. `name`: of its own thread, for debuggers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: _Jobs | None = None
        self._last: Future[Any] | None = None

    def call(self, function: Callable[[], Result], deadline_s: float) -> Result:
        """
        Run a function and return its result.

        Args:
            function: without arguments.
            deadline_s: seconds to wait for it.

        Raises:
            PolicyError: it takes longer, the call before has not returned yet, or too many threads are stuck.
            Exception: what the function raises.
        """
        if self._last is not None and not self._last.done():
            raise PolicyError("the call before has not returned yet")
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
        """End the thread once its call has returned. A later `call` starts another."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
        if self._last is not None and not self._last.done():
            _abandoned.add(self._last)
        self._last = None

    def _start(self) -> _Jobs:
        if (stuck := stuck_threads()) >= MAX_STUCK:
            raise PolicyError(f"{stuck} calls of policies have not returned: restart lb to end their threads")
        jobs: _Jobs = SimpleQueue()
        # The thread refers to the queue alone, so that it also ends when its executor is garbage collected.
        threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True).start()
        weakref.finalize(self, jobs.put, None)
        return jobs


def _serve(jobs: _Jobs) -> None:
    while (work := jobs.get()) is not None:
        _answer(*work)
        # A reference kept until the next call would keep the executor alive.
        del work


def _answer(job: Future[Any], function: Callable[[], Any]) -> None:
    try:
        job.set_result(function())
    except Exception as error:  # users' code
        job.set_exception(error)
    except BaseException as error:  # SystemExit ends nothing here
        job.set_exception(RuntimeError(repr(error)))
