"""
What is measured: one module each, found by name here.

`LOADED` need clients and a web server in the one-armed testbed, `ONCE` of them need one turn only. They are in the
order in which a turn takes them: what leaves least behind comes first, thousands of closed connections last.
"""

from __future__ import annotations

from collections.abc import Callable

from lb.lab.bench.contestants.base import Working
from lb.lab.bench.load import Field, Measured
from lb.lab.bench.measures import bulk, connections, idle, keepalive, latency

LOADED: dict[str, Callable[[Field, Working], Measured]] = {
    "idle": idle.measure,
    "latency": latency.measure,
    "keepalive": keepalive.measure,
    "bulk": bulk.measure,
    "connections": connections.measure,
}
ONCE: frozenset[str] = frozenset({"idle", "memory"})
# Only what keeps its flows in a process of ours can be asked for these.
OWN_ONLY: frozenset[str] = frozenset({"idle", "memory"})
BACKENDS: tuple[str, ...] = ("python", "rust")
