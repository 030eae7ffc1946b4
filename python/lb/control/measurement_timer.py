"""
The timer of policies that plan from measurements: each plans anew at its own interval.

Part of the control walk: `measurements -> policy -> plan -> snapshot`. The counts of the data path only grow; here they
become what happened recently, which is what policies plan from. Time is an argument; `lb.control.housekeeping` has the
clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lb.config import Config
from lb.policies.base import Measurements

# Time constant of the decay: what happened this long ago counts 1/e.
MEMORY_S = 10.0
# How often to look for a policy with an interval that a reload has brought.
IDLE_NS = 10**9
FAILURES = ("refused", "unanswered", "failed")

# By server name, then by measure, as the data path counts.
Counts: TypeAlias = Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class Recent:
    """The recent counts of the servers of one service."""

    at_ns: int | None = None
    before: dict[str, Mapping[str, int]] = field(default_factory=dict)
    sums: dict[str, dict[str, float]] = field(default_factory=dict)

    def update(self, now_ns: int, counts: Counts) -> dict[str, dict[str, float]]:
        """
        Return the counts, and beside them the recent ones: sums in which older events count for less.

        Args:
            now_ns: monotonic nanoseconds, when the counts were taken.
            counts: of each server (`docs/rules.md` rule 16, measurements).
        """
        kept = 1.0 if self.at_ns is None else math.exp((self.at_ns - now_ns) / 1e9 / MEMORY_S)
        sums = {}
        for name, now in counts.items():
            new = changes(now, self.before.get(name, now))
            old = self.sums.get(name, {})
            sums[name] = {key: old.get(key, 0.0) * kept + value for key, value in new.items()}
        self.at_ns, self.before, self.sums = now_ns, dict(counts), sums
        return {name: {**now, **sums[name]} for name, now in counts.items()}


def changes(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, float]:
    """Return the growth of a server's counts; zeros when the name belongs to another server by now."""
    if now["flows_created"] < before["flows_created"]:
        before = now
    change = {key: now[key] - before[key] for key in now}
    return {
        "recent_flows": change["flows_created"],
        "recent_failures": sum(change[key] for key in FAILURES),
        "recent_requests": change["requests"],
        "recent_active": change["requests_active"],
        "recent_answers": change["first_bytes"],
        "recent_answer_s": change["answer_ns"] / 1e9,
        "recent_bytes": change["bytes_reply"],
    }


class MeasurementTimer:
    """
    Tells when policies are to plan anew, each at its interval, and from which measurements.

    Args:
        config: returns the current configuration.
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._known: tuple[object, dict[str, int]] | None = None
        self._recent: dict[str, Recent] = {}
        self._due_ns: dict[str, int] = {}

    def wait_s(self, now_ns: int) -> float:
        """Return the seconds until the next policy is due."""
        due = [self._due_ns.get(name, now_ns + interval) for name, interval in self._intervals().items()]
        return max(0, min(due, default=now_ns + IDLE_NS) - now_ns) / 1e9

    def due(self, now_ns: int) -> list[str]:
        """Return the services whose policies are due now; a new one is due after its interval."""
        intervals = self._intervals()
        self._recent = {name: self._recent.get(name, Recent()) for name in intervals}
        self._due_ns = {name: self._due_ns.get(name, now_ns + interval) for name, interval in intervals.items()}
        due = [name for name, at_ns in self._due_ns.items() if at_ns <= now_ns]
        self._due_ns.update({name: now_ns + intervals[name] for name in due})
        return due

    def measured(self, services: list[str], now_ns: int, counts: Mapping[str, Counts]) -> dict[str, Measurements]:
        """
        Return the measurements that the policies of services plan from.

        Args:
            services: names that `due` returned.
            now_ns: the time of the measurements.
            counts: measurements of the data path, by service.
        """
        present = self._intervals()
        return {
            name: self._recent.setdefault(name, Recent()).update(now_ns, counts.get(name, {}))
            for name in services
            if name in present
        }

    def _intervals(self) -> dict[str, int]:
        config = self._config()
        if self._known is None or self._known[0] is not config:
            intervals = ((service.name, service.policy.make().interval_ns) for service in config.services)
            self._known = config, {name: interval for name, interval in intervals if interval is not None}
        return self._known[1]
