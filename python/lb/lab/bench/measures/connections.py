"""New connections per second: one small page each; every one is a new flow."""

from __future__ import annotations

from lb.lab.bench import load
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.web_server import SMALL_PATH


def measure(field: load.Field, working: Working) -> load.Measured:
    """Return `connections`, whole responses on a connection of their own per second."""
    found = load.apply(field, working, SMALL_PATH, close=True)
    return load.Measured({"connections": found.responses / found.seconds}, found.failed, found.slow)
