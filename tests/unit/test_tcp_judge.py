"""
Both backends on one TCP flow, whose segments are drawn near its numbers and near the ends of its windows.

The driver of `test_differential.py` draws everything there is, and seldom two segments that belong together; here each
sequence is about what the rules for TCP judge. That the numbers behind it are the same show the resets that end it.
"""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from helpers import (
    CLIENT,
    CLIENT_MAC,
    CLIENT_PORT,
    FAR_MAC,
    ROUTER_MAC,
    SERVER_MACS,
    SERVER_PORT,
    SERVERS,
    VIP,
    WEB_PORT,
    Box,
    mac_bytes,
    make_snapshot,
)

import packets as p
from generate import EDGES

SEQUENCES = 400
OFFSETS = (0, 0, 1, 1, 1, 1, 2, 3, 4, 11, 12, 41)
FLAGS = (
    *(p.ACK,) * 8,
    *(p.ACK | p.PSH,) * 6,
    *(p.ACK | p.FIN,) * 5,
    *(p.SYN,) * 3,
    *(p.SYN | p.ACK,) * 4,
    p.RST,
    p.RST | p.ACK,
)
HANDSHAKE = ((True, p.SYN), (False, p.SYN | p.ACK), (True, p.ACK))


class Drawn:
    """Draws segments of one flow: of its own numbers, of another SYN of its client, and beside them."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.selector = rng.choice(("counter", "hash-flow"))
        self.client, self.server = rng.getrandbits(32), rng.getrandbits(32)
        self.other = rng.choice((self.client + rng.randrange(-20, 20), rng.getrandbits(32)))
        self.shift = rng.choice((0, 3, 14))
        self.window = rng.choice((0, 1, 500, 8192, 65535))
        self.opens = rng.random() < 0.7

    def step(self, number: int) -> bytes:
        """Draw a frame; most sequences begin with a handshake."""
        rng = self.rng
        if self.opens and number < len(HANDSHAKE) and rng.random() < 0.9:
            by_client, flags = HANDSHAKE[number]
            after = number > 0
            own, acknowledged = (self.client, self.server) if by_client else (self.server, self.client)
            seq, ack = own + (number > 1), (acknowledged + 1) * after
        else:
            by_client, flags = rng.random() < 0.5, rng.choice(FLAGS)
            client = self._near(rng.choice((self.client, self.client, self.client, self.other)))
            server = self._near(self.server)
            seq, ack = (client, server) if by_client else (server, client)
        return self._frame(by_client, flags, seq % 2**32, ack % 2**32)

    def _near(self, number: int) -> int:
        rng = self.rng
        draw = rng.random()
        if draw < 0.8:
            return number + rng.choice(OFFSETS)
        return number + (rng.randrange(-5, 80) if draw < 0.9 else rng.choice(EDGES) + rng.randrange(3))

    def _frame(self, by_client: bool, flags: int, seq: int, ack: int) -> bytes:
        rng = self.rng
        source, target = (CLIENT, VIP) if by_client else (SERVERS[0], CLIENT)
        ports = (CLIENT_PORT, WEB_PORT) if by_client else (SERVER_PORT["tcp"], CLIENT_PORT)
        data = b"x" * rng.choice((0, 0, 1, 3, 10, 40)) if rng.random() < 0.7 else b""
        options = rng.choice((b"", b"\x01\x03\x03" + bytes([self.shift]), b"\x01\x03\x03\x0e"))
        window = rng.choice((self.window, self.window, self.window, 0, 65535))
        ends = ip_address(source).packed, ip_address(target).packed
        l4 = p.tcp(*ends, *ports, seq, ack, flags, data, options if flags & p.SYN else b"", window)
        mac = rng.choice((CLIENT_MAC, FAR_MAC)) if by_client else SERVER_MACS[31]
        return p.ether(mac_bytes(ROUTER_MAC), mac_bytes(mac), p.ip4(*ends, p.TCP, l4))


def _seen(box: Box) -> tuple[Any, Any, Any]:
    return box.path.flows(box.now), box.path.measurements(box.now), box.path.counters()


def _drive(backend: str, seed: int) -> list[Any]:
    """Return what a backend makes of a sequence, step by step, and of the reset at its end."""
    drawn = Drawn(seed)
    box = Box(backend, make_snapshot(drawn.selector, slots=(0,)))
    seen: list[Any] = []
    for number in range(drawn.rng.randrange(3, 40)):
        box.after(drawn.rng.choice((0, 0, 0.001, 1, 5)))
        result = box.send(drawn.step(number))
        sent = [(frame[0], bytes(frame[1])) for frame in result.out]
        seen.append((result.verdict, result.reason, sent, _seen(box)))
    box.path.reset_flows(0, 100, box.now)
    resets = [(frame[0], bytes(frame[1])) for frame in box.tick()]
    return [*seen, (resets, _seen(box))]


@pytest.mark.parametrize("backend", ["rust"], indirect=True)
@pytest.mark.parametrize("part", range(4))
def test_tcp_judge_near_segments_backends_agree(backend: str, part: int) -> None:
    """
    Rule 8.8, states, and rule 8.2, reset acceptance: the same verdicts, states, measurements, and numbers in the
    resets; nothing is left in flight.
    """
    for seed in range(part * SEQUENCES // 4, (part + 1) * SEQUENCES // 4):
        native, python = _drive(backend, seed), _drive("python", seed)
        for number, (one, other) in enumerate(zip(native, python, strict=True)):
            assert one == other, f"seed {seed}, step {number}"
        assert native[-1][1][1]["web"]["server1"]["in_flight_bytes"] == 0
