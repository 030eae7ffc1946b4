"""
Clients of one network stay together: a policy by `choose`.

    policy = { name = "./subnet.py:BySubnet", prefix = 24 }

For servers that keep something about a site: all clients of a /24 (or whatever `prefix` says) go to the same server,
and when a server leaves, only its own networks move. Rendezvous hashing (Thaler, Ravishankar 1998): every server gets a
number from the network and its own name, the highest wins, so nothing has to be remembered or agreed upon. The root of
the number, by weight, makes shares follow weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from lb.policies import NewFlow, ServerView


@dataclass
class BySubnet:
    """Place flows by the client's network. `prefix`, `prefix6`: its bits, for IPv4 and IPv6."""

    prefix: int = 24
    prefix6: int = 56

    def choose(self, flow: NewFlow, servers: Sequence[ServerView]) -> ServerView:
        """Return the server that the client's network belongs to."""
        bits = self.prefix6 if ":" in flow.client else self.prefix
        network = ip_network(f"{flow.client}/{bits}", strict=False)
        return max(servers, key=lambda server: draw(f"{network} {server.name}") ** (1 / server.weight))


def draw(text: str) -> float:
    """Return a number in (0, 1) that depends on the text alone."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return (number + 1) / (2**64 + 1)
