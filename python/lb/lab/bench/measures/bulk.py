"""Bulk throughput: 1 MB responses on kept connections, with the offloads the links have."""

from __future__ import annotations

from lb.lab.bench import load
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.web_server import BULK_PATH


def measure(field: load.Field, working: Working) -> load.Measured:
    """Return `bulk`, bytes per second as the client received them."""
    found = load.apply(field, working, BULK_PATH)
    return load.Measured({"bulk": found.received / found.seconds}, found.failed, found.slow)
