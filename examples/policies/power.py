"""
As few servers as the load needs, so that the others can sleep: a policy by `plan`, from measurements.

    policy = { name = "./power.py:PowerAware", flows_per_server = 200 }

Servers are filled in the order of the configuration: put the most efficient first. `plan` sees how many flows are
active (`flows_active`). It opens the next server when those in use have more than `flows_per_server` each, times their
weight, and closes the last when the others would be half empty with its flows: a load at the brink does not make it
flap. Among the servers in use the one with the fewest flows is next. A closed server keeps its flows until they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lb.policies import Measurements, Plan, ServerView, eligible


@dataclass
class PowerAware:
    """Use as few servers as possible. `flows_per_server`: what one of weight 1 carries."""

    flows_per_server: int = 100
    open: dict[str, int] = field(default_factory=dict, init=False)

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan over the servers in use: the fewest that carry the active flows."""
        candidates = eligible(servers)
        flows = sum(measures.get("flows_active", 0) for measures in measurements.values())
        count = min(max(self.open.get(service, 1), 1), max(len(candidates), 1))
        while count < len(candidates) and flows > self.room(candidates[:count]):
            count += 1
        while count > 1 and flows < self.room(candidates[: count - 1]) / 2:
            count -= 1
        self.open[service] = count
        return Plan("least", tuple(server.id for server in candidates[:count]))

    def room(self, servers: Sequence[ServerView]) -> int:
        """Return how many flows servers carry."""
        return self.flows_per_server * sum(server.weight for server in servers)
