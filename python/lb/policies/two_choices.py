"""
The policy `two-choices`: of two slots drawn at random, the server with fewer active flows per weight.

Nearly as even as least-connections (Mitzenmacher 2001, "The power of two choices in randomized load balancing") at a
cost that does not grow with the number of servers, and without the herd: a server that comes back empty is not given
every new flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, ServerView
from lb.policies.slots import weighted_slots

# Scores are fractions 1 / weight in units of 2**-32.
UNIT = 2**32


@dataclass(frozen=True, slots=True)
class TwoChoices(BuiltIn):
    """Place each flow on the less loaded of two random servers."""

    name: ClassVar[str] = "two-choices"

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan that draws by weight and compares active flows per weight."""
        slots = weighted_slots(servers)
        weights = {server.id: server.weight for server in servers}
        if len({weights[slot] for slot in slots}) <= 1:
            return Plan("two-choices", slots)
        return Plan("two-choices", slots, tuple(UNIT // weights[slot] for slot in slots))
