"""
The policy `round-robin`: servers in turn, each as often as its weight says, interleaved smoothly.

`weighted-round-robin` is another name for it: weights are always honoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, ServerView
from lb.policies.slots import weighted_slots


@dataclass(frozen=True, slots=True)
class RoundRobin(BuiltIn):
    """Place flows on the servers in turn, by weight."""

    name: ClassVar[str] = "round-robin"

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan whose slots are one whole round."""
        return Plan("counter", weighted_slots(servers))
