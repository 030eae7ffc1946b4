"""
Fragments: what is known of the datagrams they belong to, and the cutting of packets that are too long.

`docs/datapath.md` rules 6 and 12.2. Ports stand in the first fragment alone, so the others follow it: by an action
once it has passed, by waiting before. Nothing is reassembled. Ranges are kept to refuse overlaps (RFC 1858, RFC 5722),
and everything is bounded: entries, ranges, held bytes, time.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import TypeAlias

from lb.backends.base import Direction
from lb.backends.python.flow import ReplyKey
from lb.backends.python.parse import Packet
from lb.backends.python.wire import ipv4
from lb.backends.python.wire.checksum import checksum

ENTRY_LIMIT = 1024
RANGE_LIMIT = 64
HELD_BYTES_LIMIT = 4 * 1024 * 1024
TIMEOUT_NS = 30 * 10**9
MAX_DATAGRAM_BYTES = 65535

# (source, destination, identification, protocol)
DatagramKey: TypeAlias = tuple[bytes, bytes, int, int]
Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Action:
    """
    What the first fragment of a datagram decided for the others. Without a direction: transit.

    Args:
        direction: of the flow.
        service: id.
        server: id.
        address: what the destination (forward) or source (reply) becomes.
        flow: finds the flow's entry, as long as it has one.
    """

    direction: Direction | None = None
    service: int = 0
    server: int = 0
    address: bytes = b""
    flow: ReplyKey = (0, b"", 0)


@dataclass(slots=True)
class Datagram:
    """
    One datagram whose fragments pass. `ranges`: bytes seen, disjoint, sorted, neighbours merged. `end`: its length,
    once known.
    """

    created_ns: int
    ranges: list[Range] = field(default_factory=list)
    end: int | None = None
    action: Action | None = None
    refused: bool = False
    held: list[Packet] = field(default_factory=list)

    def conflicts(self, start: int, end: int, is_last: bool) -> bool:
        """Tell whether a fragment overlaps what was seen, or disagrees with it about where the datagram ends."""
        if any(start < known_end and known_start < end for known_start, known_end in self.ranges):
            return True
        if self.end is not None and (end > self.end or (is_last and end != self.end)):
            return True
        return bool(is_last and self.ranges and self.ranges[-1][1] > end)

    def merged(self, start: int, end: int) -> list[Range]:
        """Return the ranges with one more, which overlaps none of them."""
        ranges = list(self.ranges)
        insort(ranges, (start, end))
        merged = ranges[:1]
        for each in ranges[1:]:
            if each[0] == merged[-1][1]:
                merged[-1] = (merged[-1][0], each[1])
            else:
                merged.append(each)
        return merged

    @property
    def is_complete(self) -> bool:
        """Whether every byte was seen."""
        return self.end is not None and self.ranges == [(0, self.end)]


class FragmentTable:
    """The datagrams in transit, in order of creation."""

    def __init__(self) -> None:
        self.datagrams: dict[DatagramKey, Datagram] = {}
        self.held_bytes = 0

    def enter(self, packet: Packet, now_ns: int) -> Datagram | None:
        """Return the datagram of a fragment, a new one if need be; None when there are too many."""
        known = self.datagrams.get(datagram_key(packet))
        if known is not None:
            return known
        if len(self.datagrams) >= ENTRY_LIMIT:
            return None
        datagram = self.datagrams[datagram_key(packet)] = Datagram(now_ns)
        return datagram

    def has_room_for(self, packet: Packet) -> bool:
        """Tell whether one more frame may be held."""
        return self.held_bytes + len(packet.frame) <= HELD_BYTES_LIMIT

    def hold(self, datagram: Datagram, packet: Packet) -> None:
        """Keep a fragment until the first one comes."""
        datagram.held.append(packet)
        self.held_bytes += len(packet.frame)

    def take_held(self, datagram: Datagram) -> list[Packet]:
        """Take out the held fragments of a datagram, in order of arrival."""
        held, datagram.held = datagram.held, []
        self.held_bytes -= sum(len(packet.frame) for packet in held)
        return held

    def remove(self, packet: Packet) -> None:
        """Forget the datagram of a fragment."""
        del self.datagrams[datagram_key(packet)]

    def expire(self, now_ns: int) -> int:
        """Forget datagrams that are too old; return how many fragments were held for them."""
        given_up = 0
        for key, datagram in list(self.datagrams.items()):
            if now_ns - datagram.created_ns < TIMEOUT_NS:
                break
            given_up += len(self.take_held(datagram))
            del self.datagrams[key]
        return given_up


def datagram_key(packet: Packet) -> DatagramKey:
    """Return what all fragments of a datagram share."""
    return packet.source, packet.destination, packet.fragment_id, packet.fragment_protocol


def fragment_range(packet: Packet) -> Range:
    """Return the bytes of its datagram that a fragment carries."""
    return packet.fragment_offset, packet.fragment_offset + packet.end - packet.fragment_data


def check_length(packet: Packet) -> str | None:
    """Drop fragments that no datagram can be put together from: `fragment_length`."""
    start, end = fragment_range(packet)
    if end > MAX_DATAGRAM_BYTES or end == start or (packet.more_fragments and (end - start) % 8):
        return "fragment_length"
    return None


def cut(packet: bytes, mtu: int) -> list[bytes]:
    """
    Cut an IPv4 packet into fragments (RFC 791 3.2).

    Args:
        packet: a whole packet or a fragment, its header first.
        mtu: bytes that each piece may have.

    Returns:
        The pieces in order; empty when the MTU has no room for 8 bytes of data.
    """
    header_len = (packet[0] & 0xF) * 4
    first_header, data = packet[:header_len], packet[header_len:]
    if mtu < header_len + 8:
        return []
    later_header = copied_header(first_header)
    pieces = []
    at, header = 0, first_header
    while len(header) + len(data) - at > mtu:
        size = (mtu - len(header)) // 8 * 8
        pieces.append(piece(header, data[at : at + size], at, more=True))
        at, header = at + size, later_header
    pieces.append(piece(header, data[at:], at, more=False))
    return pieces


def copied_header(header: bytes) -> bytes:
    """Return the header of later fragments: only options that ask to be copied, padded to 32-bit words."""
    kept = b"".join(option for kind, option in ipv4.options(header) or () if kind & ipv4.OPTION_COPIED)
    kept += bytes(-len(kept) % 4)
    length = ipv4.HEADER_BYTES + len(kept)
    return bytes([0x40 | length // 4]) + header[1 : ipv4.HEADER_BYTES] + kept


def piece(header: bytes, data: bytes, at: int, *, more: bool) -> bytes:
    """
    Build one piece of a packet. What is cut may be a fragment itself: its offset is added, its MF goes on to the last
    piece.
    """
    built = bytearray(header)
    flags_offset = int.from_bytes(header[ipv4.FLAGS_OFFSET : ipv4.FLAGS_OFFSET + 2], "big")
    offset = (flags_offset + at // 8) & ipv4.OFFSET_MASK
    flags = flags_offset & (ipv4.RESERVED | ipv4.MF) | (ipv4.MF if more else 0)
    built[ipv4.TOTAL_LENGTH : ipv4.TOTAL_LENGTH + 2] = (len(header) + len(data)).to_bytes(2, "big")
    built[ipv4.FLAGS_OFFSET : ipv4.FLAGS_OFFSET + 2] = (flags | offset).to_bytes(2, "big")
    built[ipv4.CHECKSUM : ipv4.CHECKSUM + 2] = b"\0\0"
    built[ipv4.CHECKSUM : ipv4.CHECKSUM + 2] = checksum(bytes(built)).to_bytes(2, "big")
    return bytes(built) + data
