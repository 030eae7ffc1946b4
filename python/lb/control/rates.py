"""
How fast counters grow, per service and server: from two looks at them.

Nothing is sampled while nobody asks: an idle balancer stays idle. The look that a question takes is the next one's
earlier look; when there is none that is recent, a second one follows shortly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# An earlier look is of use between these ages; younger ones tell too little, older ones tell of another time.
MIN_AGE_S, MAX_AGE_S = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class Rates:
    """By name: `flows_per_s` (new ones), `packets_per_s` and `bytes_per_s` (both directions)."""

    services: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    servers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def rates_between(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> Rates:
    """Return the rates between two looks at the counters."""
    return Rates(
        _grown(before["services"], after["services"], seconds), _grown(before["servers"], after["servers"], seconds)
    )


def _grown(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]], seconds: float
) -> dict[str, dict[str, float]]:
    return {name: _rates(before.get(name, {}), traffic, seconds) for name, traffic in after.items()}


def _rates(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> dict[str, float]:
    def rate(*keys: str) -> float:
        # A server that came back under its name may have counted less: that is no negative rate.
        return round(max(0, sum(after[key] - before.get(key, 0) for key in keys)) / seconds, 1)

    return {
        "flows_per_s": rate("flows_created"),
        "packets_per_s": rate("packets_forward", "packets_reply"),
        "bytes_per_s": rate("bytes_forward", "bytes_reply"),
    }


class RateMeter:
    """
    Gives counters and rates to those who ask.

    Args:
        counters: reads the data path's counters.
    """

    def __init__(self, counters: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._counters = counters
        self._earlier: tuple[float, dict[str, Any]] | None = None

    async def read(self) -> tuple[dict[str, Any], Rates]:
        """Return the counters now, and the rates since an earlier look."""
        now_s, counters = time.monotonic(), await self._counters()
        if self._earlier is None or not MIN_AGE_S <= now_s - self._earlier[0] <= MAX_AGE_S:
            await asyncio.sleep(MIN_AGE_S)
            self._earlier = now_s, counters
            now_s, counters = time.monotonic(), await self._counters()
        then_s, earlier = self._earlier
        self._earlier = now_s, counters
        return counters, rates_between(earlier, counters, now_s - then_s)
