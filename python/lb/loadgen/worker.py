"""
One client host of the testbed: plays its part of a plan, started as `python -m lb.loadgen.worker`.

Standard input: the plan on one line, then, on another, when to start, on the monotonic clock that all processes of a
machine share. Standard output: a line of JSON that says it is ready, then one per record. SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from contextlib import suppress

from lb.loadgen.engine import play
from lb.loadgen.plan import Plan, from_json
from lb.loadgen.records import Record, to_json

FLUSH_S = 0.1
READY = json.dumps({"kind": "ready"})


class _Lines:
    """Records on their way out: many go in one write, for a load may fetch thousands of times a second."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def take(self, record: Record) -> None:
        self._waiting.append(to_json(record))

    def flush(self) -> None:
        if self._waiting:
            sys.stdout.write("\n".join([*self._waiting, ""]))
            sys.stdout.flush()
            self._waiting.clear()


async def _play(plan: Plan, origin_s: float) -> None:
    lines = _Lines()
    player = asyncio.create_task(play(plan, lines.take, origin_s))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, player.cancel)
    try:
        while not player.done():
            await asyncio.wait([player], timeout=FLUSH_S)
            lines.flush()
        with suppress(asyncio.CancelledError):
            await player
    finally:
        player.cancel()
        lines.flush()


def main() -> None:
    """Play the plan on standard input."""
    plan = from_json(sys.stdin.readline())
    gc.freeze()
    print(READY, flush=True)
    if not (start := sys.stdin.readline()):
        return
    try:
        asyncio.run(_play(plan, float(start)))
    except (KeyboardInterrupt, BrokenPipeError):
        # Who started us is gone, or has heard enough; nothing more can be said.
        os._exit(0)


if __name__ == "__main__":
    main()
