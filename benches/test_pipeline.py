"""
The whole pipeline per packet on both backends: 1 000 packets of 1 000 known flows, `process_many` and `process`.

    python -m pytest -p no:xdist benches/test_pipeline.py

Offline: no socket, no loop. The flows are there before the clock starts; each packet is parsed, found, rewritten and
addressed, and its result is made and freed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

import workload as w

SECTION = "whole pipeline, 1 000 flows"
FLOWS = 1000
NOW_NS = 2
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


def known_udp(module: ModuleType, version: int) -> tuple[Any, list[bytes]]:
    """Return a data path that knows the flows, and one packet of each, from its client."""
    path = w.data_path(module, FLOWS, w.snapshot(version=version))
    frames = [w.udp_frame(number, version) for number in w.shuffled(range(FLOWS))]
    path.process_many(frames, 0, 1)
    return path, frames


def measure_known(benchmark: Any, stage: str, path: Any, frames: list[bytes], one_by_one: bool = False) -> None:
    """Measure packets of known flows; assert that they were known, and that what leaves is right."""
    w.check_forwarded(path.process_many(frames, 0, NOW_NS))
    missed = path.counters()["events"]["flow_miss"]
    if one_by_one:
        rows = [(frame, 0, NOW_NS) for frame in frames]
        w.measure(benchmark, SECTION, stage, w.call_each(path.process), w.batches(rows))
    else:
        w.measure(benchmark, SECTION, stage, lambda batch: path.process_many(batch, 0, NOW_NS), w.batches(frames))
    assert path.counters()["events"]["flow_miss"] == missed


@BOTH
def test_process_many_udp(benchmark: Any, module: ModuleType, version: int) -> None:
    """UDP from the clients, one call for all packets."""
    path, frames = known_udp(module, version)
    measure_known(benchmark, f"process_many, UDP, IPv{version}", path, frames)


@BOTH
def test_process_many_tcp(benchmark: Any, module: ModuleType, version: int) -> None:
    """Established TCP, every other packet from the server, one call for all packets."""
    path = w.data_path(module, FLOWS, w.snapshot(version=version))
    frames = w.shuffled(w.established_frames(path, FLOWS, version))
    measure_known(benchmark, f"process_many, TCP both ways, IPv{version}", path, frames)


@BOTH
def test_process_udp(benchmark: Any, module: ModuleType, version: int) -> None:
    """UDP from the clients, one call per packet."""
    path, frames = known_udp(module, version)
    measure_known(benchmark, f"process, UDP, IPv{version}", path, frames, one_by_one=True)
