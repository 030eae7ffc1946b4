"""
Rates of counters per service and server, from two readings of them.

Counters are read only on request: an idle balancer stays idle. Each reading is kept as an earlier reading for the
requests that follow, of any client: the last few are kept, some time apart, so that several clients, however often each
asks, measure over about a second and none shortens the window of another. When no kept reading fits, a second one
follows shortly.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Ages of an earlier reading that fits; rates from younger ones are too coarse, from older ones out of date.
MIN_AGE_S, MAX_AGE_S = 0.2, 10.0
# Readings are kept at least this far apart, up to this number; the one nearest to the best age is compared with.
APART_S, KEPT, BEST_AGE_S = 0.4, 4, 1.0
# The counters that are kept of a reading, per name: a reading of 10 000 servers has many more.
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
    """Return the rates between two readings of the counters."""
    return Rates(
        _grown(before["services"], after["services"], seconds), _grown(before["servers"], after["servers"], seconds)
    )


def _grown(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]], seconds: float
) -> dict[str, dict[str, float]]:
    return {name: _rates(before.get(name, {}), traffic, seconds) for name, traffic in after.items()}


def _rates(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> dict[str, float]:
    # The counters of a server that was removed and added again start at 0: that is no negative rate.
    return {
        name: round(max(0, sum(after[key] - before.get(key, 0) for key in keys)) / seconds, 1)
        for name, keys in RATES.items()
    }


def kept(counters: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the counters that rates are computed from."""
    return {
        what: {name: {key: traffic[key] for key in COUNTED} for name, traffic in counters[what].items()}
        for what in ("services", "servers")
    }


class RateMeter:
    """
    Reads counters and rates.

    Args:
        counters: reads the counters of the data path.
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
        self._readings: deque[tuple[float, dict[str, Any]]] = deque(maxlen=KEPT)

    async def read(self) -> tuple[dict[str, Any], Rates]:
        """Return the counters now, and the rates since an earlier reading."""
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
        """Return the reading to compare with."""
        fitting = [reading for reading in self._readings if MIN_AGE_S <= now_s - reading[0] <= MAX_AGE_S]
        return min(fitting, key=lambda reading: abs(now_s - reading[0] - BEST_AGE_S), default=None)

    def _keep(self, now_s: float, counters: Mapping[str, Any]) -> None:
        if not self._readings or now_s - self._readings[-1][0] >= APART_S:
            self._readings.append((now_s, kept(counters)))
