"""TCP segments by their numbers, and comparing those modulo 2**32 (RFC 9293 3.4)."""

from __future__ import annotations

from typing import NamedTuple

from lb.packet.parse import Packet
from lb.packet.tcp import (
    ACK,
    ACKNOWLEDGEMENT,
    FIN,
    HEADER_BYTES,
    RST,
    SEQUENCE,
    SYN,
    WINDOW,
    window_scale,
)

MODULUS = 2**32


class Segment(NamedTuple):
    """
    The numbers of one TCP segment. `end`: the sequence number after it. `ack`: meaningful with the ACK flag. `window`:
    as in the header. `scale`: the shift that a SYN offers, None when it offers none.
    """

    flags: int
    seq: int
    ack: int
    end: int
    window: int = 0
    scale: int | None = None

    def has(self, flag: int) -> bool:
        """Tell whether a flag is set."""
        return bool(self.flags & flag)

    @property
    def opens(self) -> bool:
        """Whether it asks for a new connection: SYN without ACK."""
        return self.flags & (SYN | ACK) == SYN

    @property
    def after_syn(self) -> int:
        """The sequence number after its SYN, if it has one."""
        return (self.seq + 1) % MODULUS

    @property
    def has_data(self) -> bool:
        """Whether it carries data."""
        return (self.end - self.seq) % MODULUS != bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def can_pick_up(self) -> bool:
        """Whether a flow can be picked up from it, as part of an existing connection: ACK without SYN, RST, FIN."""
        return self.flags & (SYN | ACK | RST | FIN) == ACK

    @property
    def ends(self) -> bool:
        """Whether it ends a connection: RST or FIN."""
        return bool(self.flags & (RST | FIN))


def segment(packet: Packet) -> Segment:
    """Read the numbers of a TCP packet. SYN and FIN take one sequence number each."""
    flags = packet.tcp_flags
    seq = packet.long(packet.l4 + SEQUENCE)
    length = packet.end - packet.payload + bool(flags & SYN) + bool(flags & FIN)
    scale = window_scale(packet.frame[packet.l4 + HEADER_BYTES : packet.payload]) if flags & SYN else None
    ack, window = packet.long(packet.l4 + ACKNOWLEDGEMENT), packet.word(packet.l4 + WINDOW)
    return Segment(flags, seq, ack, (seq + length) % MODULUS, window, scale)


def is_later(number: int, known: int) -> bool:
    """Tell whether a sequence number is after another, by signed difference."""
    return 0 < (number - known) % MODULUS < MODULUS // 2


def later(known: int, number: int) -> int:
    """Return the later of two sequence numbers."""
    return number if is_later(number, known) else known


def is_between(number: int, first: int, last: int) -> bool:
    """Tell whether a number lies between two others, both included: `first` is not after `last`."""
    return (number - first) % MODULUS <= (last - first) % MODULUS


def is_within(number: int, base: int, window: int) -> bool:
    """Tell whether a number is at most a window, and one for SYN, FIN or a probe, away from another."""
    return (number - base + window + 1) % MODULUS <= 2 * (window + 1)
