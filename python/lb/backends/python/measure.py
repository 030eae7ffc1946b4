"""
What servers are like, seen from between them and their clients (`docs/datapath.md` rule 16): how long they take to
connect and to answer, what they have left to do, what they fail at.

Beside the TCP rules (`tcp.py`), after them. Sums, counts and gauges per server; time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lb.backends.base import Direction
from lb.backends.python.states import CLOSING, SYN_RECEIVED, SYN_SENT
from lb.backends.python.wire.tcp import RST, SYN

if TYPE_CHECKING:
    from lb.backends.python.flow import Entry
    from lb.backends.python.tcp import Segment

PEAK_MEMORY_NS = 1 << 33
LONGEST_NS = (1 << 40) - 1
MODULUS = 2**32
STAMP_SHIFT = 10
STAMP_MASK = (1 << 30) - 1

# What a flow waits for: nothing was asked yet, the server's first byte, the rest of what it sends, nothing any more.
FRESH, ASKED, ANSWERING, QUIET = "fresh", "asked", "answering", "quiet"


@dataclass(slots=True)
class Timing:
    """A time that was measured again and again; `peak_ns` rises at once and falls slowly."""

    count: int = 0
    sum_ns: int = 0
    peak_ns: int = 0
    peak_at_ns: int = 0

    def add(self, sample_ns: int, now_ns: int) -> None:
        """Add a sample."""
        sample_ns = min(sample_ns, LONGEST_NS)
        self.count += 1
        self.sum_ns += sample_ns
        if sample_ns >= self.peak_ns:
            self.peak_ns = sample_ns
        else:
            age = min(max(0, now_ns - self.peak_at_ns), PEAK_MEMORY_NS) >> 13
            self.peak_ns -= (self.peak_ns - sample_ns) * age >> 20
        self.peak_at_ns = now_ns


@dataclass(slots=True)
class Measures:
    """What is known of one server."""

    connect: Timing = field(default_factory=Timing)
    first_byte: Timing = field(default_factory=Timing)
    syn_retransmitted: int = 0
    retransmitted: int = 0
    refused: int = 0
    unanswered: int = 0
    failed: int = 0
    busy_flows: int = 0
    in_flight_bytes: int = 0
    idle_busy_ns: int = 0
    busy_since_ns: int = 0

    def busy_ns(self, now_ns: int) -> int:
        """Return the nanoseconds in which at least one flow waited, until now."""
        return self.idle_busy_ns + (max(0, now_ns - self.busy_since_ns) if self.busy_flows else 0)

    def begin(self, now_ns: int) -> None:
        """Note that one more flow waits."""
        if not self.busy_flows:
            self.busy_since_ns = now_ns
        self.busy_flows += 1

    def end(self, now_ns: int) -> None:
        """Note that one flow less waits."""
        self.busy_flows -= 1
        if not self.busy_flows:
            self.idle_busy_ns += max(0, now_ns - self.busy_since_ns)

    def report(self, now_ns: int) -> dict[str, int]:
        """Return it by name."""
        return {
            "connects": self.connect.count,
            "connect_ns": self.connect.sum_ns,
            "connect_peak_ns": self.connect.peak_ns,
            "first_bytes": self.first_byte.count,
            "first_byte_ns": self.first_byte.sum_ns,
            "first_byte_peak_ns": self.first_byte.peak_ns,
            "syn_retransmitted": self.syn_retransmitted,
            "retransmitted": self.retransmitted,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "failed": self.failed,
            "busy_flows": self.busy_flows,
            "busy_ns": self.busy_ns(now_ns),
            "in_flight_bytes": self.in_flight_bytes,
        }


class Before(NamedTuple):
    """A flow as it was before a segment."""

    state: str
    last_seen_ns: int
    in_flight: int
    next_reply: int | None


def before(entry: Entry) -> Before:
    """Note how a flow is."""
    return Before(entry.state, entry.last_seen_ns, in_flight(entry), entry.next_seq["reply"])


def in_flight(entry: Entry) -> int:
    """Return the bytes that the server has sent and the client not acknowledged, as far as is known."""
    sent, acked = entry.next_seq["reply"], entry.acked["forward"]
    if sent is None or acked is None:
        return 0
    left = (sent - acked) % MODULUS
    return left if left < MODULUS // 2 else 0


def follow(measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, now_ns: int) -> None:
    """
    Note what a segment tells that was let through.

    Args:
        measures: of the flow's server.
        entry: the flow, after the segment.
        was: the flow before it; not closing.
        direction: of the segment.
        seg: its numbers.
        now_ns: monotonic nanoseconds.
    """
    measures.in_flight_bytes += in_flight(entry) - was.in_flight
    if seg.flags & (SYN | RST):
        follow_control(measures, entry, was, direction, seg, now_ns)
    else:
        follow_data(measures, entry, was, direction, seg, now_ns)
    if entry.state == CLOSING:
        leave(measures, entry, now_ns)


def follow_control(
    measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, now_ns: int
) -> None:
    """Note a SYN or a RST."""
    if was.state == SYN_SENT and direction == "reply" and entry.state == SYN_RECEIVED:
        measures.connect.add(max(0, now_ns - was.last_seen_ns), now_ns)
    elif was.state == SYN_SENT and direction == "forward" and seg.opens:
        measures.syn_retransmitted += 1
    elif was.state in (SYN_SENT, SYN_RECEIVED) and direction == "reply" and entry.state == CLOSING:
        measures.refused += 1


def follow_data(measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, now_ns: int) -> None:
    """Note any other segment: a request, an answer, an acknowledgement."""
    if direction == "reply":
        if seg.has_data:
            answer(measures, entry, was, now_ns)
        return
    if entry.phase == ANSWERING and in_flight(entry) == 0:
        measures.end(now_ns)
        entry.phase = QUIET
    if seg.has_data and entry.phase in (FRESH, QUIET):
        measures.begin(now_ns)
        entry.phase, entry.stamp = ASKED, stamp(now_ns)


def answer(measures: Measures, entry: Entry, was: Before, now_ns: int) -> None:
    """Note data from the server: sent again, the first of an answer, or more of one."""
    if was.next_reply is not None and entry.next_seq["reply"] == was.next_reply:
        measures.retransmitted += 1
        return
    if entry.phase == ASKED:
        waited = (stamp(now_ns) - entry.stamp) & STAMP_MASK
        measures.first_byte.add(waited << STAMP_SHIFT, now_ns)
    elif entry.phase != ANSWERING:
        measures.begin(now_ns)
    entry.phase = ANSWERING


def stamp(now_ns: int) -> int:
    """Return the stamp of an instant: 30 bits of 1024 ns."""
    return now_ns >> STAMP_SHIFT & STAMP_MASK


def leave(measures: Measures, entry: Entry, now_ns: int) -> None:
    """Note that an active flow becomes closing, or is removed."""
    measures.failed += entry.phase == ASKED
    if entry.phase in (ASKED, ANSWERING):
        measures.end(now_ns)
    entry.phase = QUIET
    measures.in_flight_bytes -= in_flight(entry)
