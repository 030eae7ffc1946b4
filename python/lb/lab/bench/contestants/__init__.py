"""Who takes part: one module each, found by name here."""

from __future__ import annotations

from lb.lab.bench.contestants.again import SUFFIX, Again
from lb.lab.bench.contestants.base import Contestant
from lb.lab.bench.contestants.flowlb import Balancer
from lb.lab.bench.contestants.haproxy import HAProxy
from lb.lab.bench.contestants.nft_dnat import Nft
from lb.lab.bench.contestants.routing import Routing


def make(name: str) -> Contestant:
    """Return the contestant of this name, or of one with `again.SUFFIX`. Raise KeyError when there is none."""
    if name.endswith(SUFFIX):
        return Again(make(name.removesuffix(SUFFIX)))
    everyone = (Routing(), Nft(), HAProxy(), Balancer("python"), Balancer("rust"), Balancer("rust", "direct"))
    return {each.name: each for each in everyone}[name]
