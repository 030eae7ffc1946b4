"""
Pauses of the packet loop: a histogram of the time between two polls of its sockets, as `rust/core/src/io/pauses.rs`.

One value per round of the loop, from the end of a poll to the start of the next: how long a frame waits that arrives
just after a poll. Waiting for frames is not a pause: a frame ends it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from lb.backends.base import PAUSE_BOUNDS_NS


class Histogram:
    """Values in nanoseconds, counted by bucket."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(PAUSE_BOUNDS_NS) + 1)
        self.sum_ns = 0
        self.max_ns = 0

    def record(self, ns: int) -> None:
        """Add a value."""
        self.buckets[bisect_left(PAUSE_BOUNDS_NS, ns)] += 1
        self.sum_ns += ns
        self.max_ns = max(self.max_ns, ns)

    def as_dict(self) -> dict[str, Any]:
        """Return it by name: values per bucket, by the bucket's upper bound in nanoseconds."""
        names = [*map(str, PAUSE_BOUNDS_NS), "inf"]
        buckets = dict(zip(names, self.buckets, strict=True))
        return {"buckets": buckets, "sum_ns": self.sum_ns, "max_ns": self.max_ns}
