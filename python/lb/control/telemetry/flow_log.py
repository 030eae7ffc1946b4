"""
One line in the log for each flow that is over, while the configuration says `flow_log = true`.

The data path keeps the ends in bounded memory, off the packets' way; here they are taken on a timer and written by a
thread. What found no room is counted and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from lb.backends.base import DataPath, FlowEnd
from lb.control.tasks import Supervisor
from lb.errors import LbError

# Ends kept between two takings: at 100 bytes each, some 7 MB at the very most.
MOST_ENDS = 65_536
PERIOD_S = 0.5
NS_PER_S = 10**9

log = logging.getLogger("lb.flows")
own_log = logging.getLogger(__name__)


class FlowLog:
    """Writes how flows end. Belongs to one asyncio loop. `missed`: ends that found no room, so far."""

    def __init__(self, data_path: DataPath, supervisor: Supervisor | None = None) -> None:
        self.missed = 0
        self._data_path = data_path
        self._supervisor = supervisor or Supervisor()
        self._task: asyncio.Task[None] | None = None

    def follow(self, wanted: bool) -> None:
        """Write from now on, or no more."""
        if wanted == (self._task is not None):
            return
        self._data_path.keep_flow_ends(MOST_ENDS if wanted else 0)
        if self._task is not None:
            self._task.cancel()
        self._task = self._supervisor.run("flow log", self._run) if wanted else None

    async def stop(self) -> None:
        """Write what is there, and no more after that."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with contextlib.suppress(LbError):
            self._write()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            # A data path that fails is told, and acted upon, elsewhere.
            with contextlib.suppress(LbError):
                await asyncio.to_thread(self._write)

    def _write(self) -> None:
        ends, missed = self._data_path.take_flow_ends()
        write(ends, time.time(), time.monotonic_ns())
        if missed:
            self.missed += missed
            own_log.warning("%d flows ended too fast to be logged, %d so far", missed, self.missed)


def write(ends: Iterable[FlowEnd], now: float, now_ns: int) -> None:
    """
    Write a line for each end.

    Args:
        ends: of flows.
        now: Unix time in seconds.
        now_ns: the same instant as the data path's monotonic clock has it.
    """
    for end in ends:
        facts = describe(end, now - (now_ns - end.last_seen_ns) / NS_PER_S)
        log.info("%s", sentence(end, facts["duration_s"]), extra={"facts": facts})


def describe(end: FlowEnd, last_seen: float) -> dict[str, Any]:
    """Return what is known about the end of a flow. `last_seen`: Unix time of its last packet in seconds."""
    began_ns = end.began_ns
    return {
        "event": "flow_end",
        "service": end.service,
        "server": end.server,
        "protocol": end.protocol,
        "client": end.client,
        "client_port": end.client_port,
        "ended": end.ended,
        "last_packet": round(last_seen, 3),
        "duration_s": None if began_ns is None else round((end.last_seen_ns - began_ns) / NS_PER_S, 6),
        "bytes_forward": end.bytes_forward,
        "bytes_reply": end.bytes_reply,
    }


def sentence(end: FlowEnd, duration_s: float | None) -> str:
    """Return the end of a flow as a line of text."""
    client = f"[{end.client}]" if ":" in end.client else end.client
    lasted = "a time unknown" if duration_s is None else f"{duration_s:.3f} s"
    return (
        f"flow {end.protocol} {client}:{end.client_port} -> {end.service}/{end.server} {end.ended} after {lasted}, "
        f"{end.bytes_forward} bytes forward, {end.bytes_reply} bytes reply"
    )
