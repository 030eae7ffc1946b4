"""
The single stages that both backends offer one by one: parse, checksum, checksum_update, flow_hash.

    python -m pytest -p no:xdist benches/test_stages.py

Each is called from Python, once per frame or word, over 1 000 flows in pseudo-random order. For `rust` that is mostly
the border: what a stage costs without it is measured by criterion in `rust/benches`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import packets as p
import workload as w
from lb.backends import load

SECTION = "single stages, called from Python"


def measure(benchmark: Any, stage: str, function: Callable[..., Any], rows: list[tuple[Any, ...]]) -> None:
    """Call a function with each row of arguments."""
    w.measure(benchmark, SECTION, stage, w.call_each(function), w.batches(rows), unit="call")


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_parse(benchmark: Any, module: ModuleType, version: int) -> None:
    """The headers of the shortest UDP frames."""
    numbers = w.shuffled(range(w.BATCH))
    frames = [w.udp_frame(number, version) for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        headers = module.parse(frame)
        expected = (None, *w.client_of(number, version), 53)
        assert (headers.reason, headers.source, headers.source_port, headers.destination_port) == expected
    measure(benchmark, f"parse, IPv{version}", module.parse, [(frame,) for frame in frames])


@pytest.mark.parametrize("size", [20, 1460])
def test_checksum(benchmark: Any, module: ModuleType, size: int) -> None:
    """The whole checksum of an IPv4 header and of a full segment."""
    data = [number.to_bytes(4, "big") * (size // 4) for number in w.shuffled(range(w.BATCH))]
    assert [module.checksum(one) for one in data] == [p.checksum(one) for one in data]
    measure(benchmark, f"checksum of {size} bytes", module.checksum, [(one,) for one in data])


def test_checksum_update(benchmark: Any, module: ModuleType) -> None:
    """The checksum after address and port have changed: 6 bytes, as in every translation (RFC 1624)."""
    numbers = w.shuffled(range(w.BATCH))
    old = [b"".join((w.client_of(n)[0], w.client_of(n)[1].to_bytes(2, "big"))) for n in numbers]
    new = old[1:] + old[:1]
    rest = bytes(range(34))
    sums = [p.checksum(rest + before) for before in old]
    rows = list(zip(sums, old, new, strict=True))
    assert [module.checksum_update(*row) for row in rows] == [p.checksum(rest + after) for after in new]
    measure(benchmark, "checksum update, 6 bytes", module.checksum_update, rows)


def test_flow_hash(benchmark: Any, module: ModuleType) -> None:
    """The placement hash of a 5-tuple (SipHash-2-4)."""
    clients = [w.client_of(number) for number in w.shuffled(range(w.BATCH))]
    tuples = [(w.SEED, address, w.VIP[4].packed, port, 53, p.UDP) for address, port in clients]
    other = load("python" if module.NAME == "rust" else "rust")
    assert [module.flow_hash(*one) for one in tuples] == [other.flow_hash(*one) for one in tuples]
    measure(benchmark, "flow hash", module.flow_hash, tuples)
