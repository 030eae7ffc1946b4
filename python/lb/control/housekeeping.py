"""
Background tasks of the running balancer that change it by and by: the sweep and the measurement timer.

The sweep ends drains that are over, forgets removed servers without flows, and lets ids be used again. The timer lets
policies plan from new measurements. Both make their changes through the queue. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from lb.compiler.compile import IdKind
from lb.compiler.spec import ServerIdentity
from lb.config import Config
from lb.control.changes import Changes
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


class Upkeep(Protocol):
    """The changes of the sweep and of the timer, and what they start from: `lb.control.controller.Controller`."""

    @property
    def config(self) -> Config:
        """The configuration in use."""

    def end_drains(self) -> None:
        """End the drains of servers that have drained for their `drain_timeout`."""

    def removed_servers(self) -> dict[ServerIdentity, int]:
        """Return the removed servers that are kept for their flows, with their ids."""

    def forget(self, gone: Collection[ServerIdentity]) -> None:
        """Drop removed servers that have no flow any more."""

    def absent(self, kind: IdKind) -> dict[int, int]:
        """Return the ids that the published snapshot does not have, with the generation that left them out."""

    def release(self, kind: IdKind, retired: Mapping[int, int]) -> None:
        """Release ids, so that other servers or services can have them. `retired`: as `absent` returns them."""

    def replan_all(self, measured: Mapping[str, Measurements]) -> list[str]:
        """Replan services from measurements, by service. Return the services whose plans changed."""


class Housekeeping:
    """
    The sweep and the measurement timer; each is a job for `Supervisor.run`.

    Args:
        upkeep: makes the changes.
        changes: the queue of changes.
        flows: of the data path.
    """

    def __init__(self, upkeep: Upkeep, changes: Changes, flows: FlowQueries) -> None:
        self._upkeep = upkeep
        self._changes = changes
        self._flows = flows

    async def sweep(self) -> None:
        """Every SWEEP_S: end drains that are over, release ids, and forget removed servers without flows."""
        removed = RemovedServers()
        recyclers: dict[IdKind, Recycler] = {"server": Recycler(), "service": Recycler()}
        while True:
            await asyncio.sleep(SWEEP_S)
            (await self._changes.make(self._upkeep.end_drains)).result()
            for kind, recycler in recyclers.items():
                await self._recycle(kind, recycler)
            await self._forget(removed)

    async def _recycle(self, kind: IdKind, recycler: Recycler) -> None:
        """Release the ids of servers or services that are gone for good."""
        if due := recycler.due(self._upkeep.absent(kind), time.monotonic_ns()):
            retired = await asyncio.to_thread(self._flows.retire, kind, list(due))
            free = {number: due[number] for number in retired}
            (await self._changes.make(functools.partial(self._upkeep.release, kind, free))).result()

    async def _forget(self, removed: RemovedServers) -> None:
        """Forget the removed servers that have been without flows for long enough."""
        if servers := self._upkeep.removed_servers():
            active = await asyncio.to_thread(self._flows.active_flows, list(servers.values()))
            flows = dict(zip(servers, active, strict=True))
            if gone := removed.gone(flows, self._upkeep.config.flows.closing, time.monotonic_ns()):
                (await self._changes.make(functools.partial(self._upkeep.forget, gone))).result()

    async def replan(self) -> None:
        """Replan the services whose policies plan from measurements, each at its interval."""
        timer = MeasurementTimer(lambda: self._upkeep.config)
        while True:
            if due := timer.due(now_ns := time.monotonic_ns()):
                measured = await asyncio.to_thread(self._measured, timer, due, now_ns)
                outcome = await self._changes.make(functools.partial(self._upkeep.replan_all, measured))
                outcome.result()
            await asyncio.sleep(timer.wait_s(time.monotonic_ns()))

    def _measured(self, timer: MeasurementTimer, due: list[str], now_ns: int) -> dict[str, Measurements]:
        return timer.measured(due, now_ns, self._flows.measurements(now_ns))
