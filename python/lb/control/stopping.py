"""
How the balancer ends: at once, or once its flows have ended (`lb stop --drain`); and what becomes of the flows that are
left then (`on_stop`, rule 18.3, stopping).

The daemon asks it to end the flows before anything is closed; the admin API starts and cancels drains. Belongs to the
daemon's asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from lb.control.changes import ANSWER_S, Changes
from lb.control.controller import Controller
from lb.control.tasks import Supervisor
from lb.errors import LbError

TASK = "drain before the stop"
# Between two looks at how many flows are left.
POLL_S = 0.25
# How long a caller who waits for the end is kept waiting for one answer.
ANSWER_PROGRESS_S = 0.5
# How long the stop may take to keep new flows out, and then to reset all flows; that many at once.
REFUSE_S, RESET_S, RESET_PART = 1.0, 5.0, 20_000

log = logging.getLogger(__name__)


class Flows(Protocol):
    """The flows of the data path: `lb.control.runtime.Runtime`. Called in threads."""

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """Return the number of active flows of each server. `servers`: their ids."""

    def reset_some(self, limit: int) -> int:
        """Reset flows of any server, `limit` at most; return how many, fewer when there are none left."""


class Progress(NamedTuple):
    """
    How far a drain before the stop is.

    Args:
        draining: whether there is one; False: it was cancelled, or never began.
        flows_active: how many active flows are left.
        seconds_left: until the balancer stops all the same; None: it does not.
        is_over: the balancer is stopping now.
    """

    draining: bool
    flows_active: int
    seconds_left: float | None
    is_over: bool


class Stopping:
    """
    Ends the balancer.

    Args:
        controller: keeps new flows out, and has the configuration.
        changes: the queue of changes.
        flows: of the data path.
        supervisor: runs the drain.
        request_stop: ends the balancer; called on the loop.
    """

    def __init__(
        self,
        controller: Controller,
        changes: Changes,
        flows: Flows,
        supervisor: Supervisor,
        request_stop: Callable[[], None],
    ) -> None:
        self._controller = controller
        self._changes = changes
        self._flows = flows
        self._supervisor = supervisor
        self._request_stop = request_stop
        self._loop = asyncio.get_running_loop()
        # Of the loop's clock; None: no drain.
        self._deadline_s: float | None = None
        self._drain: asyncio.Task[None] | None = None
        # A drain and its cancellation follow each other, whichever comes first.
        self._turn = asyncio.Lock()
        self._is_over = asyncio.Event()
        # Active flows when they were last counted: of a data path that ends, they cannot be.
        self._left = 0

    def seconds_left(self) -> float | None:
        """Return how long a drain may still take before the balancer stops; None: there is none."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - self._loop.time())

    async def progress(self) -> Progress:
        """Return how far the drain is: at its end, or after a moment."""
        try:
            if self._deadline_s is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_PROGRESS_S):
                        await self._is_over.wait()
            await self._count()
        except (asyncio.CancelledError, LbError):
            # At the end the answer is given, although all that is asked is cancelled and the data path ends then.
            if not self._is_over.is_set():
                raise
        left_s = self.seconds_left()
        return Progress(left_s is not None, self._left, left_s, self._is_over.is_set())

    def stop_now(self) -> None:
        """Let the balancer end, as SIGTERM does."""
        self._is_over.set()
        self._request_stop()

    async def drain(self, timeout_s: float) -> None:
        """
        Let no server take new flows; stop once no flow is active, or after `timeout_s`, which counts from now also
        where a drain is in progress. Errors: as `Changes.make`.
        """
        async with self._turn:
            await self._set_stopping(True, ANSWER_S)
            self._deadline_s = self._loop.time() + timeout_s
            if self._drain is None or self._drain.done():
                log.info("draining: the balancer stops when its flows have ended, in %g s at the latest", timeout_s)
                self._drain = self._supervisor.run(TASK, self._wait_and_stop)

    async def cancel(self) -> bool:
        """Go on as before; return whether there was a drain. Errors: as `Changes.make`."""
        async with self._turn:
            was_draining, self._deadline_s = self._deadline_s is not None, None
            if self._drain is not None:
                self._drain.cancel()
                self._drain = None
            await self._set_stopping(False, ANSWER_S)
            return was_draining

    async def _wait_and_stop(self) -> None:
        while await self._count() and (rest_s := self.seconds_left()):
            await asyncio.sleep(min(POLL_S, rest_s))
        log.info("drained: %d active flow%s left", self._left, "" if self._left == 1 else "s")
        self.stop_now()

    async def _count(self) -> int:
        """Return how many active flows there are, of all servers. Raise LbError when the data path has ended."""
        servers = [number for number, server in enumerate(self._controller.snapshot.servers) if server is not None]
        self._left = sum(await asyncio.to_thread(self._flows.active_flows, servers))
        return self._left

    async def _set_stopping(self, is_stopping: bool, deadline_s: float) -> None:
        change = functools.partial(self._controller.set_stopping, is_stopping)
        (await self._changes.make(change, deadline_s)).result()

    async def end_flows(self) -> None:
        """
        Do with all flows what `on_stop` says, before sockets close: `reset` lets both ends of each know, for as long as
        RESET_S. Never raises LbError: the balancer stops whatever happens.
        """
        if self._controller.config.on_stop == "keep":
            return
        try:
            # Who connects again at once must not get a flow that nobody would reset.
            await self._set_stopping(True, REFUSE_S)
        except LbError as error:
            log.warning("new flows are not refused while flows are reset: %s", error)
        try:
            await self._reset_all()
        except LbError as error:
            log.warning("flows are left alone although on_stop is reset: %s", error)

    async def _reset_all(self) -> None:
        end_s, total = self._loop.time() + RESET_S, 0
        while True:
            count = await asyncio.to_thread(self._flows.reset_some, RESET_PART)
            total += count
            if count < RESET_PART:
                break
            if self._loop.time() >= end_s:
                log.warning("some flows are left alone: resetting all takes longer than %g s", RESET_S)
                break
        log.info("on_stop: %d flow%s reset", total, "" if total == 1 else "s")
