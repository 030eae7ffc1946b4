"""
Connections that clients make straight to a server's address and port, past the services (`docs/datapath.md` rule 9.1).

A server's packet that belongs to no flow is dropped, so that no client sees a server's address that it did not ask for.
One that answers a client which did ask for it may pass: this is what remembers that. It is a record of who spoke to
whom, not a flow: nothing is translated, and no number is checked. Bounded: the record that was used least recently
makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from lb.backends.python.entry import ReplyKey
from lb.model.snapshot import Timeouts
from lb.model.verdict import Direction
from lb.packet.segment import Segment
from lb.packet.tcp import ACK, FIN, RST, SYN

# Whatever the flow table holds.
MOST_RECORDS = 65536


@dataclass(slots=True)
class Record:
    """
    One connection. `answered`: the server has sent something; `over`: the directions that have said FIN, both after a
    reset.
    """

    is_tcp: bool
    last_seen_ns: int
    answered: bool = False
    over: set[Direction] = field(default_factory=set)

    @property
    def is_closing(self) -> bool:
        """Whether both sides are done."""
        return len(self.over) == 2

    def counts(self, guarded: bool) -> bool:
        """Tell whether it says what the server's packets are of; `guarded`: of TCP only once that has answered."""
        return not guarded or not self.is_tcp or self.answered

    def timeout_ns(self, timeouts: Timeouts) -> int:
        """Return how long it may be idle."""
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
    The records, the one that was used least recently first. Keys are those of a server's packets.

    Args:
        capacity: flows that the flow table holds: as many records, 65536 at most.
    """

    def __init__(self, capacity: int) -> None:
        self.most = min(capacity, MOST_RECORDS)
        self.records: OrderedDict[ReplyKey, Record] = OrderedDict()

    def find(self, key: ReplyKey, timeouts: Timeouts, now_ns: int) -> Record | None:
        """Return a record that lives."""
        record = self.records.get(key)
        if record is None or now_ns - record.last_seen_ns >= record.timeout_ns(timeouts):
            return None
        return record

    def occupies(self, key: ReplyKey, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether a record stands in the way of a flow with this key: it lives, counts and is not closing."""
        record = self.find(key, timeouts, now_ns)
        return record is not None and record.counts(guarded) and not record.is_closing

    def knows(self, key: ReplyKey, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether there is a record that lives and counts."""
        record = self.find(key, timeouts, now_ns)
        return record is not None and record.counts(guarded)

    def ask(self, key: ReplyKey, seg: Segment | None, guarded: bool, timeouts: Timeouts, now_ns: int) -> bool:
        """
        Note a client's packet to a server. A reset makes no record, and where the key is `guarded` neither does any
        other segment but a SYN: it may be of a flow that a hash would place.

        Returns:
            Whether another record had to go for it.
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
        Note a server's packet. Where the key is `guarded`, only an answer to a SYN makes a record count: anybody may
        have sent that SYN, and anything else may be of a flow that a hash would place.

        Returns:
            Whether it answers a client that asked for it.
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
