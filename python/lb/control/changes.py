"""
One queue for all changes of a running balancer: they are made in order, on a thread of their own, together.

All changes pass through it: compiling, a user's `plan`, nft and the publication run here, and never on the asyncio
loop. Changes that come while others are made wait, and become one publication (`Controller.apply`). Changes by the
operator and reloads are made at once, together with those that wait. Changes by checks and timers are gathered, so that
hundreds of servers that recover together cost one publication per TICK_S and not one each. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from lb.control.outcome import Change, Outcome
from lb.control.serial import SerialThread
from lb.control.tasks import Supervisor
from lb.control.transactions import Transactions
from lb.errors import LbError, UnderWayError

# Shortest time between two publications of changes by checks and timers; and this many times what the last one took, so
# that large configurations leave most of the time to others.
TICK_S = 0.1
TICK_SHARE = 3.0
# How long an operator waits for an answer: less than the admin API keeps a connection.
ANSWER_S = 25.0
# How long the stop waits for the change in progress.
CLOSE_S = 5.0
TASK = "changes"

# Called on the loop just before the change is made, so that it is made from the latest values.
Prepare: TypeAlias = Callable[[], Change]
Done: TypeAlias = Callable[[Outcome], None]

log = logging.getLogger(__name__)


class Requests(Protocol):
    """The part of the queue that checks and timers use."""

    def request(self, name: str, prepare: Prepare, done: Done) -> None:
        """
        Queue a change for the next tick.

        Args:
            name: a second request of a name that waits already is dropped.
            prepare: returns the change; called just before it is made.
            done: gets the outcome.
        """


@dataclass(slots=True)
class _Waiting:
    """A change that waits. `prepare` returns it; `future`: of its outcome."""

    prepare: Prepare
    future: asyncio.Future[Outcome]
    urgent: bool
    name: str | None = None


class Changes:
    """
    The queue.

    Args:
        controller: makes the changes.
        supervisor: keeps the queue running.
        tick_s: seconds between two publications of changes that are not urgent.
    """

    def __init__(self, controller: Transactions, supervisor: Supervisor, tick_s: float = TICK_S) -> None:
        self._controller = controller
        self._supervisor = supervisor
        self._tick_s = tick_s
        self._waiting: list[_Waiting] = []
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._not_before_s = 0.0
        self._is_closed = False
        # Held while changes are made.
        self._turn = asyncio.Lock()
        self._thread = SerialThread("lb-changes")

    def start(self) -> None:
        """Begin to make changes, those first that were requested before."""
        self._supervisor.run(TASK, self._work)

    async def close(self) -> None:
        """Cancel the changes that wait, refuse new ones, and wait up to CLOSE_S for the one that is in progress."""
        self._is_closed = True
        for each in self._take():
            each.future.cancel()
        if not await self._thread.close(CLOSE_S):
            log.warning("a change is still in progress after %g s and is left alone", CLOSE_S)

    async def hold(self) -> None:
        """Make no changes from now on, after those in progress, until `release`: they wait."""
        await self._turn.acquire()

    def release(self) -> None:
        """Go on making changes after `hold`."""
        self._turn.release()

    async def make(self, change: Change, deadline_s: float | None = None) -> Outcome:
        """
        Make a change now, after all that wait, and return its outcome; `Outcome.result` raises its error.

        Args:
            change: a call of a method of `Controller`; called on the queue's thread, twice when others fail with it.
            deadline_s: how long to wait; None: until it is made.

        Raises:
            LbError: it was not begun in time, and will not be made.
            UnderWayError: it has begun, and goes on; how it ends goes to the log.
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
                    f"the change was given up: the one before it has been in progress for {deadline_s:g} s; see the log"
                ) from None
            waiting.future.add_done_callback(_log_late)
            raise UnderWayError(
                f"the change is still in progress after {deadline_s:g} s and goes on; the log tells how it ends"
            ) from None

    def request(self, name: str, prepare: Prepare, done: Done) -> None:
        """Queue a change for the next tick, as `Requests.request`."""
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
            async with self._turn:
                await self._make_all(self._take())

    async def _gather(self) -> None:
        """Wait for the next tick, unless a change is urgent."""
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
            outcomes = await self._thread.run(lambda: self._controller.apply(changes))
        except Exception as error:
            # No caller waits for ever, and the supervisor notes the error.
            outcomes = [Outcome(self._controller.generation, error=error)] * len(taken)
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
        """Return a change; an exception while it is prepared is its error."""
        try:
            return waiting.prepare()
        except Exception as error:
            failure = error

        def fail() -> None:
            raise failure

        return fail


def _log_late(future: asyncio.Future[Outcome]) -> None:
    """Log the outcome of a change whose caller has stopped waiting."""
    if future.cancelled():
        return
    outcome = future.result()
    if outcome.error is None:
        log.info("the delayed change is made: generation %d", outcome.generation)
    else:
        log.error("the delayed change could not be made: %s", outcome.error)
