"""
Long work on the asyncio loop, in slices: work for each of many servers does not hold up the loop.

For work whose state belongs to the loop; other work is better done on a thread.
"""

from __future__ import annotations

import asyncio
import time

# Length of a slice: far below what health checks, API answers and timers notice.
SLICE_S = 0.002


class Pace:
    """The slices of one long work, which begins when this is made."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    async def keep(self) -> None:
        """Give up the loop for a moment if a slice is over. Call it after each small part of the work."""
        if time.perf_counter() - self._since_s >= SLICE_S:
            await asyncio.sleep(0)
            self._since_s = time.perf_counter()
