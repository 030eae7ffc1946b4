"""
TCP states of a flow: just enough to know when it is established, when it is over, and whether a RST is to be believed.

Between lookup and rewriting (`docs/datapath.md` rule 8, "TCP, hit"). Strict for RST and SYN alone (RFC 5961): data is
never dropped for being out of window, since the balancer sees too little to judge it. Sequence numbers are compared
modulo 2**32 (RFC 9293 3.4).
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.base import Direction
from lb.backends.python import measure
from lb.backends.python.flow import Entry, FlowTable
from lb.backends.python.parse import Packet
from lb.backends.python.states import CLOSING, ESTABLISHED, SYN_RECEIVED, SYN_SENT
from lb.backends.python.wire.tcp import ACK, ACKNOWLEDGEMENT, FIN, RST, SEQUENCE, SYN

MODULUS = 2**32
OTHER: dict[Direction, Direction] = {"forward": "reply", "reply": "forward"}


class Segment(NamedTuple):
    """The numbers of one TCP segment. `end`: the sequence number after it. `ack`: meaningful with the ACK flag."""

    flags: int
    seq: int
    ack: int
    end: int

    def has(self, flag: int) -> bool:
        """Tell whether a flag is set."""
        return bool(self.flags & flag)

    @property
    def opens(self) -> bool:
        """Whether it asks for a new connection: SYN without ACK."""
        return self.flags & (SYN | ACK) == SYN

    @property
    def has_data(self) -> bool:
        """Whether it carries data."""
        return (self.end - self.seq) % MODULUS != bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def is_mid_stream(self) -> bool:
        """Whether it can only belong to a connection that exists: ACK without SYN, RST, FIN."""
        return self.flags & (SYN | ACK | RST | FIN) == ACK


def segment(packet: Packet) -> Segment:
    """Read the numbers of a TCP packet. SYN and FIN take one sequence number each."""
    flags = packet.tcp_flags
    seq = packet.long(packet.l4 + SEQUENCE)
    length = packet.end - packet.payload + bool(flags & SYN) + bool(flags & FIN)
    return Segment(flags, seq, packet.long(packet.l4 + ACKNOWLEDGEMENT), (seq + length) % MODULUS)


def is_later(number: int, known: int | None) -> bool:
    """Tell whether a sequence number is after a known one, or none is known yet."""
    return known is None or 0 < (number - known) % MODULUS < MODULUS // 2


def reset_is_valid(entry: Entry, direction: Direction, seg: Segment) -> bool:
    """Tell whether a RST comes from someone who knows the connection: it stands exactly at the next byte."""
    if seg.seq == entry.next_seq[direction] or seg.seq == entry.acked[OTHER[direction]]:
        return True
    refuses_syn = direction == "reply" and entry.state in (SYN_SENT, SYN_RECEIVED) and seg.has(ACK)
    return refuses_syn and seg.ack == entry.next_seq["forward"]


def follow(table: FlowTable, entry: Entry, direction: Direction, seg: Segment, now_ns: int) -> str | None:
    """
    Let a segment of a known flow change its state.

    Args:
        table: holds the entry.
        entry: the flow; not to be reopened by this segment, which the caller has tested.
        direction: of the segment.
        seg: its numbers.
        now_ns: monotonic nanoseconds.

    Returns:
        `rst_window` for a RST that is not believed, then nothing has changed; else None.
    """
    if seg.has(RST) and not reset_is_valid(entry, direction, seg):
        return "rst_window"
    was = measure.before(entry)
    active = table.counters.servers[entry.server].flows_active
    advance(table, entry, direction, seg, now_ns)
    if was.state != CLOSING:
        measure.follow(table.counters.measures[entry.server], entry, was, direction, seg, active, now_ns)
    return None


def advance(table: FlowTable, entry: Entry, direction: Direction, seg: Segment, now_ns: int) -> None:
    """Let a segment change the state of a flow; arguments as of `follow`, a RST is valid."""
    if seg.has(RST):
        close(table, entry, now_ns)
    elif seg.opens:
        if entry.state == SYN_SENT and direction == "forward":
            entry.next_seq["forward"] = seg.end
    elif seg.has(SYN):
        if direction == "reply" and entry.state in (SYN_SENT, SYN_RECEIVED):
            entry.next_seq["reply"] = seg.end
            entry.acked["reply"] = seg.ack
            table.set_state(entry, SYN_RECEIVED, now_ns)
    else:
        follow_data(table, entry, direction, seg, now_ns)


def follow_data(table: FlowTable, entry: Entry, direction: Direction, seg: Segment, now_ns: int) -> None:
    """Let a segment without SYN and RST advance the numbers, establish or close the flow."""
    if is_later(seg.end, entry.next_seq[direction]):
        entry.next_seq[direction] = seg.end
    if seg.has(ACK) and is_later(seg.ack, entry.acked[direction]):
        entry.acked[direction] = seg.ack
    if entry.state == SYN_RECEIVED and direction == "forward" and seg.has(ACK):
        table.set_state(entry, ESTABLISHED, now_ns)
    if seg.has(FIN):
        entry.fin[direction] = True
        if all(entry.fin.values()):
            close(table, entry, now_ns)


def close(table: FlowTable, entry: Entry, now_ns: int) -> None:
    """Make a flow closing, once."""
    if entry.state != CLOSING:
        table.counters.event("flow_closed")
        table.set_state(entry, CLOSING, now_ns)
