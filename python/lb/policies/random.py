"""
The policy `random`: each flow goes to a random server, as likely as its weight says.

`weighted-random` is another name for it. The draws are the data path's own, seeded: a replay places as the run did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, ServerView
from lb.policies.slots import weighted_slots


@dataclass(frozen=True, slots=True)
class Random(BuiltIn):
    """Place each flow on a random server, by weight."""

    name: ClassVar[str] = "random"

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan with as many slots for a server as its weight says."""
        return Plan("random", weighted_slots(servers))
