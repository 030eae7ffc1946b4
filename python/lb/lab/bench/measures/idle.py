"""CPU time of a balancer that has nothing to do."""

from __future__ import annotations

import time

from lb.errors import LbError
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.cpu import process_ns
from lb.lab.bench.load import Field, Measured

# What the load before left in queues is no idleness.
SETTLE_S = 1.0


def measure(field: Field, working: Working) -> Measured:
    """Return `idle_cpu`, the share of one core that its process used while no packet came."""
    if working.pid is None:
        raise LbError("no process to watch")
    time.sleep(SETTLE_S)
    before_ns, start_ns = process_ns(working.pid), time.monotonic_ns()
    time.sleep(field.settings.idle_s)
    return Measured({"idle_cpu": (process_ns(working.pid) - before_ns) / (time.monotonic_ns() - start_ns)})
