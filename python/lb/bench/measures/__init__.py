"""
What is measured: one module each, found by name here.

`LOADED` need clients and a web server in the one-armed testbed, `ONCE` of them need one turn only.
"""

from __future__ import annotations

from collections.abc import Callable

from lb.bench.contestants.base import Working
from lb.bench.load import Field
from lb.bench.measures import bulk, connections, idle, keepalive, latency

Figures = dict[str, float]

LOADED: dict[str, Callable[[Field, Working], Figures]] = {
    "keepalive": keepalive.measure,
    "connections": connections.measure,
    "bulk": bulk.measure,
    "latency": latency.measure,
    "idle": idle.measure,
}
ONCE: frozenset[str] = frozenset({"idle", "memory"})
# Only what keeps its flows in a process of ours can be asked for these.
OWN_ONLY: frozenset[str] = frozenset({"idle", "memory"})
BACKENDS: tuple[str, ...] = ("python", "rust")
