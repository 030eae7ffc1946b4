"""
Latency at low load: a connection and a small request at a rate that loads no host.

What is on the way adds its own time; the document subtracts routing's of the same turn. Our own client measures it,
for wrk cannot pace. It runs in a host that carries no other load: where ten thousands of connections were just closed,
a connect looks for a free port among them, and took 12 to 15 ms at p99 with each contestant (elsewhere 0.15 ms).
"""

from __future__ import annotations

from lb.lab import spread
from lb.lab.bench import load
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.web_server import SMALL_PATH

SHARES = (("p50", 0.5), ("p99", 0.99))


def measure(field: load.Field, working: Working) -> load.Measured:
    """Return `connect_p50`, `connect_p99`, `request_p50`, `request_p99`, in seconds."""
    settings = field.settings
    rate = str(settings.latency_hz)
    found = load.ask(field.testbed, working, SMALL_PATH, settings.load_s, "--rate", rate, host=load.PACED_CLIENT)
    figures = {
        f"{what}_{name}": spread.percentile(found[what], share)
        for what in ("connect", "request")
        for name, share in SHARES
    }
    return load.Measured(figures, found["failed"], found["slow"])
