"""
New flows and known flows, by the size of the flow table.

    python -m pytest -p no:xdist benches/test_flows.py

Both are seen through the whole pipeline (`process_many`), since a flow table has no door of its own; the difference
between two sizes is the table's. Every round takes other flows, in pseudo-random order: with many flows their entries
come from memory, not from the cache, and so do their frames. 1 M and 10 M flows run on `rust` only: in Python a flow
takes 1.7 kB and 30 us to create, so that a million of them would cost 1.7 GB and most of the time of all benches.
The names of these benches say so.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import workload as w

SECTION = "flow table, through the pipeline"
NEW_FLOWS_CAPACITY = 16_384
SAMPLE = 400_000  # flows that are looked up before the first comes again: far more than a cache holds
BYTES_PER_FLOW = 120
NAMES = {1_000: "1 k", 100_000: "100 k", 1_000_000: "1 M", 10_000_000: "10 M"}


def test_flow_insert(benchmark: Any, module: ModuleType) -> None:
    """The first packet of a UDP flow: missed, placed in turn, inserted. The round's flows expire before the next."""
    path = w.data_path(module, NEW_FLOWS_CAPACITY, w.snapshot())
    clock = itertools.count(1, w.UDP_TIMEOUT_NS)
    now_ns = next(clock)

    def expire() -> None:
        nonlocal now_ns
        now_ns = next(clock)
        w.expire_all(path, now_ns, w.BATCH)

    frames = w.udp_frames(w.shuffled(range(10 * w.BATCH)))
    w.check_forwarded(path.process_many(frames, 0, now_ns))
    for _ in range(10):
        expire()
    w.measure(
        benchmark, SECTION, "new flow", lambda batch: path.process_many(batch, 0, now_ns), w.batches(frames), expire
    )
    events = path.counters()["events"]
    assert (events["flow_hit"], events["flow_created"]) == (0, events["flow_miss"])
    assert len(path.flows(now_ns)) == w.BATCH


def measure_hits(benchmark: Any, module: ModuleType, flows: int, note: str = "") -> None:
    """Fill a table to the last entry, then look flows up."""
    path = w.data_path(module, flows, w.snapshot())
    w.open_udp_flows(path, flows)
    frames = w.udp_frames(w.shuffled(range(flows), min(flows, SAMPLE)))
    w.check_forwarded(path.process_many(frames[: w.BATCH], 0, 2))
    stage = f"known flow of {NAMES[flows]}{note}"
    w.measure(benchmark, SECTION, stage, lambda batch: path.process_many(batch, 0, 2), w.batches(frames))
    events = path.counters()["events"]
    assert (events["flow_created"], events["flow_miss"]) == (flows, flows)


@pytest.mark.parametrize("flows", [1_000, 100_000], ids=["1k", "100k"])
def test_flow_hit(benchmark: Any, module: ModuleType, flows: int) -> None:
    """A packet of a known UDP flow."""
    measure_hits(benchmark, module, flows)


@pytest.mark.parametrize("module", ["rust"], indirect=True)
@pytest.mark.parametrize("flows", [1_000_000, 10_000_000], ids=["1M", "10M"])
def test_flow_hit_rust_only(benchmark: Any, module: ModuleType, flows: int) -> None:
    """A packet of a known UDP flow, of more flows than Python can hold in sensible time and memory."""
    needed = 2 * flows * BYTES_PER_FLOW
    if available_bytes() < needed:
        pytest.skip(f"{flows} flows need {needed >> 20} MiB of free memory, {available_bytes() >> 20} MiB are free")
    measure_hits(benchmark, module, flows, " (rust only)")


def available_bytes() -> int:
    """Return the memory that the kernel can still give."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
