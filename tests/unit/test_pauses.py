"""Behaviour 39: the loop says how long it looked away from its sockets, on both backends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from helpers import make_snapshot
from wire import Wire

from lb.backends.base import PAUSE_BOUNDS_NS

DEADLINE_S = 10


@pytest.fixture
def wire(backend: str) -> Iterator[Wire]:
    """A running data path on pairs of UNIX sockets."""
    running = Wire(backend, make_snapshot())
    yield running
    running.close()


def test_loop_pauses_name_every_bucket(wire: Wire) -> None:
    """The shape is the same for both backends: every bucket is named."""
    wire.path.stop()
    names = [*map(str, PAUSE_BOUNDS_NS), "inf"]
    loop = wire.path.counters()["loop"]
    assert {name: list(part) for name, part in loop.items()} == {
        name: ["buckets", "sum_ns", "max_ns"] for name in ("pauses", "control")
    }
    assert [list(part["buckets"]) for part in loop.values()] == [names, names]


def test_loop_rounds_are_counted_and_lie_in_their_buckets(wire: Wire) -> None:
    """Each round is one value; the longest lies in the highest bucket that is used."""
    began, pauses = time.monotonic(), {}
    while not sum((pauses := wire.path.counters()["loop"]["pauses"])["buckets"].values()):
        assert time.monotonic() < began + DEADLINE_S
    used = [name for name, count in pauses["buckets"].items() if count]
    assert pauses["max_ns"] <= pauses["sum_ns"]
    assert used[-1] == "inf" or pauses["max_ns"] <= int(used[-1])
