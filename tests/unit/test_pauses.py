"""Rule 22.1, bounded pauses: the loop says how long it looked away from its sockets, on both backends."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest
from helpers import FAR, FAR_MAC, ROUTER_MAC_1, VIP, from_client, make_snapshot, query
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from wire import Wire

from lb.backends.base import PAUSE_BOUNDS_NS
from snapshots import make_timeouts

DEADLINE_S = 10


@pytest.fixture
def wire(backend: str) -> Iterator[Wire]:
    """A running data path on pairs of UNIX sockets."""
    running = Wire(backend, make_snapshot())
    yield running
    running.close()


def test_loop_pauses_name_every_bucket(wire: Wire) -> None:
    """The shape is the same for both backends: every bucket is named."""
    wire.path.detach()
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


def datagrams(count: int) -> list[bytes]:
    """Make the first datagrams of `count` flows."""
    frame = bytearray(bytes(from_client(query())))
    at = len(frame) - len(bytes(query()))
    made = []
    for port in range(1, count + 1):
        frame[at : at + 2] = port.to_bytes(2, "big")
        made.append(bytes(frame))
    return made


def test_expiry_of_many_flows_at_once_catches_up_without_packets(backend: str) -> None:
    """Rule 22.1, bounded pauses: 20 000 flows that end together are gone; 64 per tick of 100 ms took half a minute."""
    wire = Wire(backend, make_snapshot(), capacity=20_000)
    try:
        frames = datagrams(20_000)
        for start in range(0, len(frames), 500):
            wire.path.process_many(frames[start : start + 500], 0, time.monotonic_ns())
        assert wire.path.counters()["table"]["entries"] == 20_000
        wire.path.publish(make_snapshot(timeouts=make_timeouts(udp_ns=1)))
        deadline = time.monotonic() + DEADLINE_S
        # Seldom, for each call lets the loop tick, and it must do without.
        while wire.path.counters()["table"]["entries"]:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.2)
        assert wire.path.counters()["events"]["flow_expired"] == 20_000
    finally:
        wire.close()


def test_full_way_out_keeps_its_frames_in_order_and_stalls_no_other(backend: str) -> None:
    """
    Rule 22.2, full interfaces: frames for a full socket wait, those of another interface go on; then they leave in
    order.
    """
    wire = Wire(backend, make_snapshot())
    try:
        wire.pairs[0][0].setblocking(False)
        filled = fill(wire.pairs[0][0])
        far = Ether(src=FAR_MAC, dst=ROUTER_MAC_1)
        for port in range(1, 51):
            wire.put(bytes(far / IP(src=FAR, dst=VIP) / query(port=port)), 1)
        # Time exceeded goes back to where it came from: another way out, after all those.
        wire.put(bytes(far / IP(src=FAR, dst=VIP, ttl=1) / query()), 1)
        assert Ether(wire.get(1))[ICMP].type == 11
        for _ in range(filled):
            wire.get()
        assert [Ether(wire.get())[UDP].sport for _ in range(50)] == list(range(1, 51))
        assert wire.path.counters()["io"]["tx_dropped"] == 0
    finally:
        wire.close()


def fill(sock: socket.socket) -> int:
    """Send until there is no room; return how many messages that took."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(100))
            count += 1
    return count
