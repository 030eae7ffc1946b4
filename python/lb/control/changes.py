"""
One queue for all changes of a running balancer: they are made in order, on a thread of their own, together.

The control walk's narrow place: compiling, a user's `plan`, nft and the publication take their time here, and never on
the asyncio loop. Changes that come while others are made wait, and become one publication (`Steering.apply`). What an
operator or a reload asks for goes at once, and takes along what waits; what checks and timers say is gathered, so that
hundreds of servers that recover together cost one publication per TICK_S and not one each. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from lb.control.controller import Change, Outcome, Steering
from lb.control.tasks import Supervisor
from lb.errors import LbError, UnderWayError

# Between two publications of what checks and timers say, at least; and this many times what the last one took, so that
# large configurations leave most of the time to others.
TICK_S = 0.1
TICK_SHARE = 3.0
# How long an operator waits for an answer: less than the door of the admin API keeps a connection.
ANSWER_S = 25.0
# How long the end waits for the change under way.
CLOSE_S = 5.0
TASK = "changes"

Result = TypeVar("Result")
# Called on the loop when its turn has come, so that what it is made of is as fresh as can be.
Prepare: TypeAlias = Callable[[], Change]
Done: TypeAlias = Callable[[Outcome], None]

log = logging.getLogger(__name__)


class Requests(Protocol):
    """What checks and timers need to know of the queue."""

    def request(self, name: str, prepare: Prepare, done: Done) -> None:
        """
        Have a change made at the next tick.

        Args:
            name: a request of the same name that waits already is the same request.
            prepare: returns the change; called when its turn has come.
            done: gets what became of it.
        """


@dataclass(slots=True)
class _Waiting:
    """A change that waits. `future`: of what becomes of it; `prepare` returns it."""

    prepare: Prepare
    future: asyncio.Future[Outcome]
    urgent: bool
    name: str | None = None


class Changes:
    """
    The queue.

    Args:
        steering: makes the changes.
        supervisor: keeps the queue running.
        tick_s: seconds between two publications of what is not urgent.
    """

    def __init__(self, steering: Steering, supervisor: Supervisor, tick_s: float = TICK_S) -> None:
        self._steering = steering
        self._supervisor = supervisor
        self._tick_s = tick_s
        self._waiting: list[_Waiting] = []
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._not_before_s = 0.0
        self._is_closed = False
        self._thread = SerialThread("lb-changes")

    def start(self) -> None:
        """Begin to make changes. What was asked for before is made now."""
        self._supervisor.run(TASK, self._work)

    async def close(self) -> None:
        """Fail what still waits and what comes, and wait for the change that is under way, though not for ever."""
        self._is_closed = True
        for each in self._take():
            each.future.cancel()
        if not await self._thread.close(CLOSE_S):
            log.warning("a change is still under way after %g s and is left alone", CLOSE_S)

    async def make(self, change: Change, deadline_s: float | None = None) -> Outcome:
        """
        Make a change now, with all that wait; they come before it.

        Args:
            change: a call of a method of `Steering`; called on the queue's thread, twice when others fail with it.
            deadline_s: how long to wait; None: until it is made.

        Returns:
            What became of it; `Outcome.result` raises its error.

        Raises:
            LbError: its turn had not come in time, and it will not be made.
            UnderWayError: it has begun, and is carried through; how it ends goes to the log.
        """
        if self._is_closed:
            raise LbError("the balancer is stopping")
        waiting = self._put(_Waiting(lambda: change, self._future(), urgent=True))
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(waiting.future)
        except TimeoutError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                raise LbError(
                    f"the change was given up: the one before it has been under way for {deadline_s:g} s; see the log"
                ) from None
            waiting.future.add_done_callback(_log_late)
            raise UnderWayError(
                f"the change is still under way after {deadline_s:g} s and goes on; the log tells how it ends"
            ) from None

    def request(self, name: str, prepare: Prepare, done: Done) -> None:
        """Have a change made at the next tick, as `Requests.request`."""
        if any(each.name == name for each in self._waiting):
            return
        waiting = self._put(_Waiting(prepare, self._future(), urgent=False, name=name))
        waiting.future.add_done_callback(lambda future: None if future.cancelled() else done(future.result()))

    @staticmethod
    def _future() -> asyncio.Future[Outcome]:
        return asyncio.get_running_loop().create_future()

    def _put(self, waiting: _Waiting) -> _Waiting:
        self._waiting.append(waiting)
        self._something.set()
        if waiting.urgent:
            self._urgent.set()
        return waiting

    def _take(self) -> list[_Waiting]:
        taken, self._waiting = self._waiting, []
        self._something.clear()
        self._urgent.clear()
        return taken

    async def _work(self) -> None:
        while True:
            await self._something.wait()
            await self._gather()
            await self._make_all(self._take())

    async def _gather(self) -> None:
        """Wait for the next tick, unless something is urgent."""
        delay_s = self._not_before_s - asyncio.get_running_loop().time()
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._urgent.wait()

    async def _make_all(self, taken: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            changes = [self._prepared(each) for each in taken]
            outcomes = await self._thread.run(lambda: self._steering.apply(changes))
        except Exception as error:
            # Nobody waits for ever, and the supervisor hears of it.
            outcomes = [Outcome(self._steering.generation, error=error)] * len(taken)
            self._supervisor.note(TASK, error)
        except asyncio.CancelledError:
            for each in taken:
                each.future.cancel()
            raise
        for each, outcome in zip(taken, outcomes, strict=True):
            if not each.future.done():
                each.future.set_result(outcome)
        took_s = loop.time() - began_s
        self._not_before_s = began_s + max(self._tick_s, TICK_SHARE * took_s)

    def _prepared(self, waiting: _Waiting) -> Change:
        """Return a change; what goes wrong while it is prepared is its error."""
        try:
            return waiting.prepare()
        except Exception as error:
            failure = error

        def fail() -> None:
            raise failure

        return fail


def _log_late(future: asyncio.Future[Outcome]) -> None:
    """Log what became of a change whose caller is gone."""
    if future.cancelled():
        return
    outcome = future.result()
    if outcome.error is None:
        log.info("the change that took so long is made: generation %d", outcome.generation)
    else:
        log.error("the change that took so long could not be made: %s", outcome.error)


class SerialThread:
    """
    Runs functions one after the other on a daemon thread of its own, so that a stuck one does not keep the process from
    ending. `name`: of the thread, for debuggers. The thread starts with the first call, and has the capabilities that
    its caller has then.
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
        """Let the thread end after what it does now; tell whether it has within the deadline, in seconds."""
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
