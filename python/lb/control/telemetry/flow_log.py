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
MOST_EXPORTS = 65_536
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
        self._exports.keep_flow_exports(MOST_EXPORTS if is_on else 0)
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
        taken, missed = self._exports.take_flow_exports()
        write(taken, time.time(), time.monotonic_ns())
        if missed:
            self.missed += missed
            own_log.warning("%d flows ended too fast to be logged, %d so far", missed, self.missed)


def write(exports: Iterable[FlowRecord], now: float, now_ns: int) -> None:
    """
    Write a line for each export.

    Args:
        exports: of the data path.
        now: Unix time in seconds.
        now_ns: the same instant on the monotonic clock of the data path.
    """
    for export in exports:
        facts = describe(export, now - (now_ns - export.last_seen_ns) / NS_PER_S)
        log.info("%s", sentence(export, facts["duration_s"]), extra={"facts": facts})


def describe(export: FlowRecord, last_seen: float) -> dict[str, Any]:
    """Return the fields of an export for JSON. `last_seen`: Unix time of the last packet in seconds."""
    began_ns = export.began_ns
    return {
        "event": "flow_end",
        "service": export.service,
        "server": export.server,
        "protocol": export.protocol,
        "client": export.client,
        "client_port": export.client_port,
        "ended": export.ended,
        "last_packet": round(last_seen, 3),
        "duration_s": None if began_ns is None else round((export.last_seen_ns - began_ns) / NS_PER_S, 6),
        "bytes_forward": export.bytes_forward,
        "bytes_reply": export.bytes_reply,
    }


def sentence(export: FlowRecord, duration_s: float | None) -> str:
    """Return an export as a line of text."""
    client = f"[{export.client}]" if ":" in export.client else export.client
    lasted = "a time unknown" if duration_s is None else f"{duration_s:.3f} s"
    return (
        f"flow {export.protocol} {client}:{export.client_port} -> {export.service}/{export.server} {export.ended} "
        f"after {lasted}, {export.bytes_forward} bytes forward, {export.bytes_reply} bytes reply"
    )
