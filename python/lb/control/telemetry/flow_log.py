"""
The flow log: one line for each flow that is over, while the configuration has `flow_log = true`.

The data path keeps flow exports in bounded memory; here they are taken on a timer and written by a thread. Exports that
found no room are counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from lb.backends.base import FlowRecord
from lb.control.tasks import Supervisor
from lb.errors import LbError

# Exports kept between two readings: at 100 bytes each, 7 MB at most.
MOST_ENDS = 65_536
PERIOD_S = 0.5
NS_PER_S = 10**9

log = logging.getLogger("lb.flows")
own_log = logging.getLogger(__name__)


class FlowExports(Protocol):
    """The flow exports of the data path: `lb.control.runtime.Runtime`."""

    def keep_flow_exports(self, most: int) -> None:
        """Keep up to `most` exports from now on; 0: none."""

    def take_flow_exports(self) -> tuple[list[FlowRecord], int]:
        """Return the exports since the last call, and how many found no room."""


class FlowLog:
    """
    Writes how flows end. Belongs to one asyncio loop.

    Args:
        exports: of the data path.
        supervisor: runs the timer; None: one of its own.

    `missed`: exports that found no room, so far.
    """

    def __init__(self, exports: FlowExports, supervisor: Supervisor | None = None) -> None:
        self.missed = 0
        self._exports = exports
        self._supervisor = supervisor or Supervisor()
        self._task: asyncio.Task[None] | None = None

    def follow(self, is_on: bool) -> None:
        """Write from now on, or stop writing."""
        if is_on == (self._task is not None):
            return
        self._exports.keep_flow_exports(MOST_ENDS if is_on else 0)
        if self._task is not None:
            self._task.cancel()
        self._task = self._supervisor.run("flow log", self._run) if is_on else None

    async def stop(self) -> None:
        """Write the exports that there are, and stop."""
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
            # A failure of the data path is handled where it runs.
            with contextlib.suppress(LbError):
                await asyncio.to_thread(self._write)

    def _write(self) -> None:
        ends, missed = self._exports.take_flow_exports()
        write(ends, time.time(), time.monotonic_ns())
        if missed:
            self.missed += missed
            own_log.warning("%d flows ended too fast to be logged, %d so far", missed, self.missed)


def write(ends: Iterable[FlowRecord], now: float, now_ns: int) -> None:
    """
    Write a line for each export.

    Args:
        ends: exports.
        now: Unix time in seconds.
        now_ns: the same instant on the monotonic clock of the data path.
    """
    for end in ends:
        facts = describe(end, now - (now_ns - end.last_seen_ns) / NS_PER_S)
        log.info("%s", sentence(end, facts["duration_s"]), extra={"facts": facts})


def describe(end: FlowRecord, last_seen: float) -> dict[str, Any]:
    """Return the fields of an export for JSON. `last_seen`: Unix time of the last packet in seconds."""
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


def sentence(end: FlowRecord, duration_s: float | None) -> str:
    """Return an export as a line of text."""
    client = f"[{end.client}]" if ":" in end.client else end.client
    lasted = "a time unknown" if duration_s is None else f"{duration_s:.3f} s"
    return (
        f"flow {end.protocol} {client}:{end.client_port} -> {end.service}/{end.server} {end.ended} after {lasted}, "
        f"{end.bytes_forward} bytes forward, {end.bytes_reply} bytes reply"
    )
