"""Keep-alive requests per second: a small page over and over on the same connections; packets of all sizes."""

from __future__ import annotations

from lb.lab.bench import load
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.web_server import SMALL_PATH


def measure(field: load.Field, working: Working) -> load.Measured:
    """Return `keepalive`, whole responses per second."""
    found = load.apply(field, working, SMALL_PATH)
    return load.Measured({"keepalive": found.responses / found.seconds}, found.failed, found.slow)
