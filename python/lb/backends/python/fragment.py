"""
Fragments: what is known of the datagrams they belong to, and the cutting of packets that are too long.

`docs/rules.md` rule 6, fragments, and rule 12.2, frames over the MTU. Ports stand in the first fragment alone, so the
others follow it: by an action once it has passed, by waiting before. Nothing is reassembled. Pieces are kept to refuse
overlaps (RFC 1858, RFC 5722) and to tell exact copies apart, and everything is bounded: entries, pieces, held bytes,
time; no source address has more than an eighth of entries or bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from lb.backends.python.entry import ReplyKey
from lb.model.verdict import Direction
from lb.packet import ipv4
from lb.packet.checksum import checksum
from lb.packet.parse import Packet

ENTRY_LIMIT = 1024
REFUSED_LIMIT = 1024
PIECE_LIMIT = 256
HELD_BYTES_LIMIT = 4 * 1024 * 1024
# One source address has at most this part of entries and of bytes.
SHARES = 8
TIMEOUT_NS = 30 * 10**9
MAX_DATAGRAM_BYTES = 65535

# (source, destination, identification, protocol)
DatagramKey: TypeAlias = tuple[bytes, bytes, int, int]
Misfit: TypeAlias = Literal["fragment_duplicate", "fragment_overlap", "fragment_limit"]


class Piece(NamedTuple):
    """The bytes of its datagram that a fragment carries, from `start` to before `end`. `last`: its MF is 0."""

    start: int
    end: int
    last: bool


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
    One datagram whose fragments pass or wait. `pieces`: those seen, disjoint, sorted. `end`: its length, once known.
    `action` is None while the first fragment has not come; others are held until then.
    """

    created_ns: int
    pieces: list[Piece] = field(default_factory=list)
    seen_bytes: int = 0
    end: int | None = None
    action: Action | None = None
    held: list[Packet] = field(default_factory=list)

    def misfit(self, piece: Piece) -> Misfit | None:
        """Tell why a piece cannot be added: a copy, a contradiction to what was seen, or one too many."""
        at = bisect_left(self.pieces, piece.start, key=lambda known: known.start)
        beside = self.pieces[max(at - 1, 0) : at + 1]
        if piece in beside:
            return "fragment_duplicate"
        if any(piece.start < known.end and known.start < piece.end for known in beside):
            return "fragment_overlap"
        if self.end is not None and (piece.end > self.end or (piece.last and piece.end != self.end)):
            return "fragment_overlap"
        if piece.last and self.pieces and self.pieces[-1].end > piece.end:
            return "fragment_overlap"
        return "fragment_limit" if len(self.pieces) >= PIECE_LIMIT else None

    def add(self, piece: Piece) -> None:
        """Add a piece that fits."""
        insort(self.pieces, piece)
        self.seen_bytes += piece.end - piece.start
        if piece.last:
            self.end = piece.end

    @property
    def is_complete(self) -> bool:
        """Whether every byte was seen."""
        return self.end == self.seen_bytes


@dataclass(slots=True)
class Share:
    """What one source address has: its datagrams and those of them that wait, each in order of creation."""

    datagrams: dict[DatagramKey, None] = field(default_factory=dict)
    waiting: dict[DatagramKey, None] = field(default_factory=dict)
    held_bytes: int = 0


class FragmentTable:
    """
    The datagrams in transit, in order of creation. `waiting`: those whose first fragment has not come. `refused`: since
    when nothing more of a datagram passes; these are beside the others and take no room of theirs. `given_up`: held
    fragments that had to make room, until they are counted.
    """

    def __init__(self) -> None:
        self.datagrams: dict[DatagramKey, Datagram] = {}
        self.waiting: dict[DatagramKey, None] = {}
        self.shares: dict[bytes, Share] = {}
        self.refused: dict[DatagramKey, int] = {}
        self.held_bytes = 0
        self.given_up = 0

    def enter(self, key: DatagramKey, now_ns: int) -> Datagram:
        """Return a datagram, a new one if need be. Where there is no room its source's oldest goes, or that of all."""
        known = self.datagrams.get(key)
        if known is not None:
            return known
        share = self.shares.get(key[0], Share())
        if len(share.datagrams) >= ENTRY_LIMIT // SHARES:
            self.evict(next(iter(share.datagrams)))
        elif len(self.datagrams) >= ENTRY_LIMIT:
            self.evict(next(iter(self.datagrams)))
        datagram = self.datagrams[key] = Datagram(now_ns)
        self.waiting[key] = None
        share = self.shares.setdefault(key[0], share)
        share.datagrams[key] = share.waiting[key] = None
        return datagram

    def make_room(self, key: DatagramKey, bytes_needed: int) -> bool:
        """
        Give up waiting datagrams of a source, or of all, the oldest first, until a frame may be held.

        Args:
            key: of the datagram that the frame belongs to.
            bytes_needed: its length.

        Returns:
            False when the one to go would be that datagram itself.
        """
        while True:
            share = self.shares.get(key[0], Share())
            if share.held_bytes + bytes_needed > HELD_BYTES_LIMIT // SHARES:
                victim = next(iter(share.waiting), key)
            elif self.held_bytes + bytes_needed > HELD_BYTES_LIMIT:
                victim = next(iter(self.waiting), key)
            else:
                return True
            if victim == key:
                return False
            self.evict(victim)

    def hold(self, key: DatagramKey, packet: Packet, now_ns: int) -> None:
        """Keep a fragment, for which there is room, until the first one comes."""
        datagram = self.enter(key, now_ns)
        datagram.add(fragment_piece(packet))
        datagram.held.append(packet)
        self.held_bytes += len(packet.frame)
        self.shares[key[0]].held_bytes += len(packet.frame)

    def decide(self, key: DatagramKey, packet: Packet, action: Action, now_ns: int) -> list[Packet]:
        """Let fragments follow the first one, which has passed; return those that waited, in order of arrival."""
        datagram = self.enter(key, now_ns)
        datagram.action = action
        datagram.add(fragment_piece(packet))
        return self.take_held(key)

    def refuse(self, key: DatagramKey, now_ns: int) -> int:
        """Let nothing more of a datagram pass; return how many fragments were held of it."""
        held = self.remove(key)
        if len(self.refused) >= REFUSED_LIMIT:
            del self.refused[next(iter(self.refused))]
        self.refused[key] = now_ns
        return held

    def take_held(self, key: DatagramKey) -> list[Packet]:
        """Take out the held fragments of a datagram, which does not wait any more, in order of arrival."""
        datagram, share = self.datagrams[key], self.shares[key[0]]
        held, datagram.held = datagram.held, []
        held_bytes = sum(len(packet.frame) for packet in held)
        self.held_bytes -= held_bytes
        share.held_bytes -= held_bytes
        self.waiting.pop(key, None)
        share.waiting.pop(key, None)
        return held

    def remove(self, key: DatagramKey) -> int:
        """Forget a datagram, if it is known; return how many fragments were held of it."""
        if key not in self.datagrams:
            return 0
        held, share = len(self.take_held(key)), self.shares[key[0]]
        del self.datagrams[key], share.datagrams[key]
        if not share.datagrams:
            del self.shares[key[0]]
        return held

    def evict(self, key: DatagramKey) -> None:
        """Forget a datagram that has to make room."""
        self.given_up += self.remove(key)

    def take_given_up(self) -> int:
        """Return how many held fragments had to make room since the last call."""
        given_up, self.given_up = self.given_up, 0
        return given_up

    def expire(self, now_ns: int, limit: int) -> int:
        """Forget datagrams that are too old, `limit` at most; return how many fragments were held for them."""
        given_up = 0
        while limit and (key := self.oldest_over(now_ns)) is not None:
            given_up += self.expire_one(key, now_ns)
            limit -= 1
        return given_up

    def expire_one(self, key: DatagramKey, now_ns: int) -> int:
        """Forget a datagram if it is too old; return how many fragments were held for it."""
        if not self.is_over(key, now_ns):
            return 0
        self.refused.pop(key, None)
        return self.remove(key)

    def oldest_over(self, now_ns: int) -> DatagramKey | None:
        """Return the oldest datagram that is too old, of those that are refused only when no other is."""
        for known in (self.datagrams, self.refused):
            key = next(iter(known), None)
            if key is not None and self.is_over(key, now_ns):
                return key
        return None

    def is_over(self, key: DatagramKey, now_ns: int) -> bool:
        """Tell whether a datagram is too old."""
        datagram = self.datagrams.get(key)
        since_ns = self.refused.get(key, now_ns) if datagram is None else datagram.created_ns
        return now_ns - since_ns >= TIMEOUT_NS


def datagram_key(packet: Packet) -> DatagramKey:
    """Return what all fragments of a datagram share."""
    return packet.source, packet.destination, packet.fragment_id, packet.fragment_protocol


def fragment_piece(packet: Packet) -> Piece:
    """Return the bytes of its datagram that a fragment carries."""
    end = packet.fragment_offset + packet.end - packet.fragment_data
    return Piece(packet.fragment_offset, end, not packet.more_fragments)


def check_length(packet: Packet) -> str | None:
    """Drop fragments that no datagram can be put together from: `fragment_length`."""
    start, end, last = fragment_piece(packet)
    if end > MAX_DATAGRAM_BYTES or end == start or (not last and (end - start) % 8):
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
