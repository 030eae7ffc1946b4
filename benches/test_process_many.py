"""
`process_many` on both backends: 1 000 UDP packets of 60 bytes, one of each of 1 000 flows; and the single stages.

    python -m pytest -p no:xdist benches/test_process_many.py

Offline: no socket, no loop. The flows are there before the clock starts; each packet is parsed, found, rewritten and
addressed.
"""

from __future__ import annotations

from ipaddress import ip_address
from types import ModuleType
from typing import Any

import pytest

import packets as p
from generate import CLIENT_MACS, CLIENTS, ROUTER, VIPS
from vectors.load import Scene

FLOWS = 1000
FRAME_BYTES = 60
ADDED = {4: 42, 6: 62}  # headers of a UDP frame


def frames(version: int) -> list[bytes]:
    """Make one packet per flow: IPv4 of 60 bytes, IPv6 as small as it gets."""
    client, vip = CLIENTS[version][0], VIPS[version]
    made = []
    for port in range(20_000, 20_000 + FLOWS):
        data = bytes(max(0, FRAME_BYTES - ADDED[version]))
        datagram = p.udp(client, vip, port, 53, data)
        packet = p.ip4(client, vip, p.UDP, datagram) if version == 4 else p.ip6(client, vip, p.UDP, datagram)
        made.append(p.ether(ROUTER, CLIENT_MACS[0], packet))
    return made


def opened(module: ModuleType) -> Any:
    """Make a data path with the base scene."""
    scene = Scene(capacity=4 * FLOWS)
    path = module.DataPath(4 * FLOWS, bytes(16), 1)
    path.publish(scene.snapshot())
    path.set_next_hops(scene.next_hops())
    return path


@pytest.mark.parametrize("version", [4, 6])
def test_process_many(benchmark: Any, module: ModuleType, version: int) -> None:
    """1 000 packets of 1 000 flows."""
    benchmark.group = f"process_many, {FLOWS} UDP packets over {FLOWS} flows, IPv{version}"
    path, batch = opened(module), frames(version)
    path.process_many(batch, 0, 1)
    results = benchmark(path.process_many, batch, 0, 2)
    assert {result.verdict for result in results} == {"forward"}
    assert path.counters()["events"]["flow_created"] == FLOWS


def test_parse(benchmark: Any, module: ModuleType) -> None:
    """One frame's headers."""
    benchmark.group = "parse"
    headers = benchmark(module.parse, frames(4)[0])
    assert headers.destination_port == 53


def test_checksum(benchmark: Any, module: ModuleType) -> None:
    """The checksum of 1 460 bytes."""
    benchmark.group = "checksum of 1460 bytes"
    data = bytes(range(256)) * 5 + bytes(180)
    assert benchmark(module.checksum, data) == p.checksum(data)


def test_flow_hash(benchmark: Any, module: ModuleType) -> None:
    """The placement hash of one flow."""
    benchmark.group = "flow_hash"
    client, vip = (ip_address(text).packed for text in ("198.51.100.7", "198.18.1.100"))
    assert 0 <= benchmark(module.flow_hash, 1, client, vip, 40000, 9876, 6) < 2**64
