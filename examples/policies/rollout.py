"""
Blue and green: a share of the flows goes to the new version, more of them as time goes by: a policy by `plan`.

    policy = { name = "./rollout.py:Rollout", green = "green-", start = "2026-12-01T06:00:00Z", hours = 12.0 }

Servers whose names begin with `green` run the new version. Before `start` they get nothing, `hours` later everything;
in between their share grows evenly. `plan` is called every second (`interval`), so the share follows the clock without
anyone doing anything; flows that are there stay where they are. When one colour has no server left, the other takes
all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lb.policies import Measurements, Plan, ServerView, weighted_slots

STEPS = 100


def now() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


@dataclass
class Rollout:
    """Move flows from blue to green servers. `start`: when it begins; `hours`: how long it takes."""

    green: str
    start: datetime
    hours: float = 24.0
    clock: Callable[[], datetime] = field(default=now, init=False)

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan with as many green slots as it is time for."""
        blue = weighted_slots([server for server in servers if not server.name.startswith(self.green)])
        green = weighted_slots([server for server in servers if server.name.startswith(self.green)])
        if not blue or not green:
            return Plan("random", blue + green)
        part = self.part()
        # Whole turns of each colour, as often as its part of 100 says, whatever their lengths.
        return Plan("random", blue * (len(green) * (STEPS - part)) + green * (len(blue) * part))

    def part(self) -> int:
        """Return the part of flows that green gets now, in hundredths."""
        passed_h = (self.clock() - self.start).total_seconds() / 3600
        return max(0, min(STEPS, round(passed_h / self.hours * STEPS)))
