"""
Long work on the asyncio loop, in slices: what there is to do for each of many servers keeps nobody else waiting.

For work whose state belongs to the loop; what does not is better done on a thread.
"""

from __future__ import annotations

import asyncio
import time

# A slice: far below what health checks, answers and timers notice.
SLICE_S = 0.002


class Pace:
    """One long work. It begins when this is made."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    async def keep(self) -> None:
        """Let others have the loop if a slice is over. To be called after each small part of the work."""
        if time.perf_counter() - self._since_s >= SLICE_S:
            await asyncio.sleep(0)
            self._since_s = time.perf_counter()
