"""
Background tasks of the running balancer that change it by and by: the sweep and the measurement timer.

The sweep ends drains that are over, forgets removed servers without flows, and lets ids be used again. The timer lets
policies plan from new measurements. Both make their changes through the queue. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Protocol

from lb.compiler.compile import IdKind
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.measurement_timer import MeasurementTimer
from lb.control.recycle import Recycler
from lb.control.removed import RemovedServers
from lb.policies.base import Measurements

# Seconds between two sweeps.
SWEEP_S = 1.0


class FlowQueries(Protocol):
    """What the data path knows of its flows: `lb.control.runtime.Runtime`. Called in threads."""

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """Return the number of active flows of each server. `servers`: their ids."""

    def retire(self, kind: IdKind, ids: Sequence[int]) -> list[int]:
        """Return the ids of servers or services that no flow refers to, and forget their counters."""

    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """Return what was measured about each server, by service and server name."""


class Housekeeping:
    """
    The sweep and the measurement timer; each is a job for `Supervisor.run`.

    Args:
        controller: makes the changes.
        changes: the queue of changes.
        flows: of the data path.
    """

    def __init__(self, controller: Controller, changes: Changes, flows: FlowQueries) -> None:
        self._controller = controller
        self._changes = changes
        self._flows = flows

    async def sweep(self) -> None:
        """Every SWEEP_S: end drains that are over, release ids, and forget removed servers without flows."""
        removed = RemovedServers()
        recyclers: dict[IdKind, Recycler] = {"server": Recycler(), "service": Recycler()}
        while True:
            await asyncio.sleep(SWEEP_S)
            (await self._changes.make(self._controller.end_drains)).result()
            for kind, recycler in recyclers.items():
                await self._recycle(kind, recycler)
            await self._forget(removed)

    async def _recycle(self, kind: IdKind, recycler: Recycler) -> None:
        """Release the ids of servers or services that are gone for good."""
        if due := recycler.due(self._controller.absent(kind), time.monotonic_ns()):
            retired = await asyncio.to_thread(self._flows.retire, kind, list(due))
            free = {number: due[number] for number in retired}
            (await self._changes.make(functools.partial(self._controller.release, kind, free))).result()

    async def _forget(self, removed: RemovedServers) -> None:
        """Forget the removed servers that have been without flows for long enough."""
        if servers := self._controller.removed_servers():
            active = await asyncio.to_thread(self._flows.active_flows, list(servers.values()))
            flows = dict(zip(servers, active, strict=True))
            if gone := removed.gone(flows, self._controller.config.flows.closing, time.monotonic_ns()):
                (await self._changes.make(functools.partial(self._controller.forget, gone))).result()

    async def replan(self) -> None:
        """Replan the services whose policies plan from measurements, each at its interval."""
        timer = MeasurementTimer(lambda: self._controller.config)
        while True:
            if due := timer.due(now_ns := time.monotonic_ns()):
                measured = await asyncio.to_thread(self._measured, timer, due, now_ns)
                outcome = await self._changes.make(functools.partial(self._controller.replan_all, measured))
                outcome.result()
            await asyncio.sleep(timer.wait_s(time.monotonic_ns()))

    def _measured(self, timer: MeasurementTimer, due: list[str], now_ns: int) -> dict[str, Measurements]:
        return timer.measured(due, now_ns, self._flows.measurements(now_ns))
