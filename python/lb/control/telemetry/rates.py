"""
How fast counters grow, per service and server: from two looks at them.

Nothing is sampled while nobody asks: an idle balancer stays idle. The look that a question takes is kept as an earlier
look for those that follow, whoever asks them: the last few are kept, some time apart, so that several readers, however
often each asks, measure over about a second and none shortens another's. When there is none of use, a second look
follows shortly.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# An earlier look is of use between these ages; younger ones tell too little, older ones tell of another time.
MIN_AGE_S, MAX_AGE_S = 0.2, 10.0
# Looks are kept this far apart, so many of them; of those of use, the one nearest to this age is compared with.
APART_S, KEPT, BEST_AGE_S = 0.4, 4, 1.0
# What is kept of a look, per name: a look at 10 000 servers has many more numbers.
RATES = {
    "flows_per_s": ("flows_created",),
    "packets_per_s": ("packets_forward", "packets_reply"),
    "bytes_per_s": ("bytes_forward", "bytes_reply"),
}
COUNTED = tuple(key for keys in RATES.values() for key in keys)


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
    # A server that came back under its name may have counted less: that is no negative rate.
    return {
        name: round(max(0, sum(after[key] - before.get(key, 0) for key in keys)) / seconds, 1)
        for name, keys in RATES.items()
    }


def kept(counters: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Return what rates are made of."""
    return {
        what: {name: {key: traffic[key] for key in COUNTED} for name, traffic in counters[what].items()}
        for what in ("services", "servers")
    }


class RateMeter:
    """
    Gives counters and rates to those who ask.

    Args:
        counters: reads the data path's counters.
        now: returns seconds of a monotonic clock.
        sleep: waits.
    """

    def __init__(
        self,
        counters: Callable[[], Awaitable[dict[str, Any]]],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._counters = counters
        self._now = now
        self._sleep = sleep
        self._looks: deque[tuple[float, dict[str, Any]]] = deque(maxlen=KEPT)

    async def read(self) -> tuple[dict[str, Any], Rates]:
        """Return the counters now, and the rates since an earlier look."""
        now_s, counters = self._now(), await self._counters()
        earlier = self._earlier(now_s)
        if earlier is None:
            earlier = now_s, kept(counters)
            self._keep(*earlier)
            await self._sleep(MIN_AGE_S)
            now_s, counters = self._now(), await self._counters()
        self._keep(now_s, counters)
        return counters, rates_between(earlier[1], counters, now_s - earlier[0])

    def _earlier(self, now_s: float) -> tuple[float, dict[str, Any]] | None:
        """Return the look to compare with."""
        of_use = [look for look in self._looks if MIN_AGE_S <= now_s - look[0] <= MAX_AGE_S]
        return min(of_use, key=lambda look: abs(now_s - look[0] - BEST_AGE_S), default=None)

    def _keep(self, now_s: float, counters: Mapping[str, Any]) -> None:
        if not self._looks or now_s - self._looks[-1][0] >= APART_S:
            self._looks.append((now_s, kept(counters)))
