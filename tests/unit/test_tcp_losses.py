"""
A download over lossy links on both sides of the balancer, segment by segment: whatever is lost, sent again or out of
order, no segment of the true ends is taken for a guess.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from lb.backends.python import connection as tcp
from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import SYN_SENT
from lb.model.verdict import Direction
from lb.packet.tcp import ACK, SYN

MODULUS = 2**32
SEGMENT_BYTES = 1000
ROUNDS = 500


class Download:
    """
    A server that fills its client's window. What is lost: before the balancer and behind it, of data and of
    acknowledgements, drawn from the seed. Offsets count from the first byte.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.window = self.random.choice([3000, 10_000, 60_000])
        self.loss_before, self.loss_behind = (self.random.choice([0, 0.05, 0.2, 0.4]) for _ in range(2))
        self.loss_of_acks = self.random.choice([0, 0.1, 0.5])
        self.numbers: dict[Direction, int] = {
            "forward": self.random.getrandbits(32),
            "reply": self.random.getrandbits(32),
        }
        self.entry = Entry(b"\x01\x02\x03\x04", 40000, 0, 0, 0, SYN_SENT, 0)
        self.acknowledged = self.sent = self.received = 0
        self.early: set[int] = set()
        syn = self.segment("forward", SYN, -1, -1, 1)
        tcp.begin(self.entry, syn)
        assert self.passes("reply", self.segment("reply", SYN | ACK, -1, 0, 1))
        assert self.passes("forward", self.segment("forward", ACK, 0, 0))

    def segment(self, direction: Direction, flags: int, offset: int, ack: int, size: int = 0) -> tcp.Segment:
        seq = (self.numbers[direction] + 1 + offset) % MODULUS
        ack = (self.numbers[tcp.OTHER[direction]] + 1 + ack) % MODULUS
        return tcp.Segment(flags, seq, ack, (seq + size) % MODULUS, self.window)

    def passes(self, direction: Direction, seg: tcp.Segment) -> bool:
        """Let the balancer judge a segment; tell whether it believes it."""
        step = tcp.judge(self.entry, direction, seg)
        assert step is not None
        self.entry.state = step.state
        return step.believed

    def to_send(self) -> list[int]:
        """Return what the server sends now: what the window has room for, and the oldest again now and then."""
        sent = []
        while self.sent - self.acknowledged + SEGMENT_BYTES <= self.window and self.random.random() < 0.9:
            sent.append(self.sent)
            self.sent += SEGMENT_BYTES
        if self.acknowledged < self.sent and self.random.random() < 0.3:
            sent.append(self.acknowledged)
        if self.random.random() < 0.2:
            self.random.shuffle(sent)
        return sent

    def deliver(self, offsets: list[int]) -> Iterator[int]:
        """Send data by the balancer to the client; yield what it acknowledges."""
        for offset in offsets:
            if self.random.random() < self.loss_before:
                continue
            assert self.passes("reply", self.segment("reply", ACK, offset, 0, SEGMENT_BYTES)), offset
            if self.random.random() < self.loss_behind:
                continue
            self.early.add(offset)
            while self.received in self.early:
                self.early.discard(self.received)
                self.received += SEGMENT_BYTES
            yield self.received

    def acknowledge(self, number: int) -> None:
        """Send an acknowledgement by the balancer to the server."""
        if self.random.random() >= self.loss_of_acks:
            assert self.passes("forward", self.segment("forward", ACK, 0, number)), number
            if self.random.random() >= self.loss_of_acks:
                self.acknowledged = max(self.acknowledged, number)


@pytest.mark.parametrize("seed", range(40))
def test_losses_anywhere_both_ends_are_believed(seed: int) -> None:
    """Rule 8.10, believed segments: also with many gaps at once, and at the end of the window."""
    download = Download(seed)
    for _ in range(ROUNDS):
        numbers = list(download.deliver(download.to_send()))
        # Sometimes the last alone: acknowledgements are put together.
        for number in numbers[-1:] if download.random.random() < 0.3 else numbers:
            download.acknowledge(number)
    assert download.received > 0
