"""CPU time of a balancer that has nothing to do."""

from __future__ import annotations

import time

from lb.bench.contestants.base import Working
from lb.bench.cpu import process_ns
from lb.bench.load import Field, Found
from lb.errors import LbError

# What the load before left in queues is no idleness.
SETTLE_S = 1.0


def measure(field: Field, working: Working) -> Found:
    """Return `idle_cpu`, the share of one core that its process used while no packet came."""
    if working.pid is None:
        raise LbError("no process to watch")
    time.sleep(SETTLE_S)
    before_ns, start_ns = process_ns(working.pid), time.monotonic_ns()
    time.sleep(field.settings.idle_s)
    return Found({"idle_cpu": (process_ns(working.pid) - before_ns) / (time.monotonic_ns() - start_ns)})
