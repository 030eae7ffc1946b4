"""
The policy `least-connections`: each flow goes to the server with the smallest (active flows + 1) / weight.

Active flows are counted by the data path: half-open, established and UDP flows count, closing ones do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, ServerView, eligible


@dataclass(frozen=True, slots=True)
class LeastConnections(BuiltIn):
    """Place each flow on the server with the smallest (active flows + 1) / weight; equal ones take turns."""

    name: ClassVar[str] = "least-connections"

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan with one slot per server; the backend knows the weights."""
        return Plan("least", tuple(server.id for server in eligible(servers)))
