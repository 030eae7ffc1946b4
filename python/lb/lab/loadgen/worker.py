"""
One client host of the testbed: plays its part of plans, one after the other, started as
`python -m lb.lab.loadgen.worker`.

Standard input: a plan on one line, then, on another, when to start, on the monotonic clock that all processes of a
machine share; then the next plan, or the end. Standard output: for each plan a line of JSON that says it is ready, one
per record, and one that says it is done. SIGTERM ends a plan in order.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from contextlib import suppress

from lb.lab.loadgen.engine import play
from lb.lab.loadgen.plan import Plan, from_json
from lb.lab.loadgen.records import DONE, READY, Record, to_json

FLUSH_S = 0.1


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
    """Play the plans on standard input."""
    gc.freeze()
    try:
        while plan := sys.stdin.readline():
            made = from_json(plan)
            print(READY, flush=True)
            if not (start := sys.stdin.readline()):
                return
            asyncio.run(_play(made, float(start)))
            print(DONE, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        # Who started us is gone, or has heard enough; nothing more can be said.
        os._exit(0)


if __name__ == "__main__":
    main()
