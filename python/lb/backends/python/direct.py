"""
Direct connections: from clients to a server's own address and port, past the services (`docs/rules.md` rule 9.1,
direct connections).

A server's packet of no flow is dropped, so that no client sees a server's address that it did not contact. The records
here let the answers of direct connections pass. A record is no flow: nothing is translated, and no sequence number is
checked. Bounded: when full, the least recently used record is replaced.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from lb.backends.python.entry import ReplyKey
from lb.model.snapshot import Timeouts
from lb.model.verdict import Direction
from lb.packet.segment import Segment
from lb.packet.tcp import ACK, FIN, RST, SYN

# The limit for any capacity of the flow table.
MOST_RECORDS = 65536


@dataclass(slots=True)
class Record:
    """One connection. `answered`: the server has sent a packet; `over`: directions with a FIN, both after a RST."""

    is_tcp: bool
    last_seen_ns: int
    answered: bool = False
    over: set[Direction] = field(default_factory=set)

    @property
    def is_closing(self) -> bool:
        """Whether both directions are over."""
        return len(self.over) == 2

    def counts(self, guarded: bool) -> bool:
        """Tell whether the server's packets belong to it; where `guarded`, TCP counts only once the server answered."""
        return not guarded or not self.is_tcp or self.answered

    def timeout_ns(self, timeouts: Timeouts) -> int:
        """Return its idle timeout in nanoseconds."""
        if not self.is_tcp:
            return timeouts.udp_ns
        if self.is_closing:
            return timeouts.closing_ns
        return timeouts.established_ns if self.answered else timeouts.half_open_ns

    def follow(self, direction: Direction, seg: Segment | None, now_ns: int) -> None:
        """Note a packet."""
        self.last_seen_ns = now_ns
        self.answered = self.answered or direction == "reply"
        if seg is None:
            return
        if seg.flags & RST:
            self.over = {"forward", "reply"}
        elif seg.flags & FIN:
            self.over.add(direction)


class DirectConnections:
    """
    The records by reply key, the least recently used first.

    Args:
        capacity: of the flow table; there are as many records, 65536 at most.
    """

    def __init__(self, capacity: int) -> None:
        self.most = min(capacity, MOST_RECORDS)
        self.records: OrderedDict[ReplyKey, Record] = OrderedDict()

    def find(self, key: ReplyKey, timeouts: Timeouts, now_ns: int) -> Record | None:
        """Return a record that has not expired."""
        record = self.records.get(key)
        if record is None or now_ns - record.last_seen_ns >= record.timeout_ns(timeouts):
            return None
        return record

    def occupies(self, key: ReplyKey, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether a record conflicts with a flow of this key: not expired, counting and not closing."""
        record = self.find(key, timeouts, now_ns)
        return record is not None and record.counts(guarded) and not record.is_closing

    def knows(self, key: ReplyKey, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether there is a record that has not expired and counts."""
        record = self.find(key, timeouts, now_ns)
        return record is not None and record.counts(guarded)

    def ask(self, key: ReplyKey, seg: Segment | None, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """
        Record a client's packet to a server. A RST creates no record. Where the key is `guarded`, only a SYN does: any
        other segment may belong to a flow that a hash selector would place.

        Returns:
            Whether another record was evicted.
        """
        record = self.find(key, timeouts, now_ns)
        if record is not None and not (record.is_closing and seg is not None and seg.opens):
            record.follow("forward", seg, now_ns)
            self.records.move_to_end(key)
            return False
        self.remove(key)
        if seg is not None and (seg.flags & RST or (guarded and not seg.opens)):
            return False
        is_full = len(self.records) >= self.most
        if is_full:
            self.records.popitem(last=False)
        record = self.records[key] = Record(seg is not None, now_ns)
        record.follow("forward", seg, now_ns)
        return is_full

    def answer(self, key: ReplyKey, seg: Segment | None, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """
        Record a server's packet. Where the key is `guarded`, only an answer to a SYN makes a record count: the SYN may
        be forged, and any other segment may belong to a flow that a hash selector would place.

        Returns:
            Whether it answers a client's direct packet.
        """
        record = self.find(key, timeouts, now_ns)
        if record is None:
            self.remove(key)
            return False
        if not record.counts(guarded) and not (seg is not None and answers_syn(seg)):
            return False
        record.follow("reply", seg, now_ns)
        self.records.move_to_end(key)
        return True

    def remove(self, key: ReplyKey) -> None:
        """Forget a record, if there is one."""
        self.records.pop(key, None)


def answers_syn(seg: Segment) -> bool:
    """Tell whether a segment answers a SYN: accepts or, with the number of such a RST (RFC 9293 3.5.2), refuses."""
    refuses = bool(seg.flags & RST) and seg.seq == 0
    return bool(seg.flags & ACK) and (bool(seg.flags & SYN) or refuses)
