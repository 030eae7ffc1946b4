"""
Passive measurements of servers (`docs/rules.md` rule 16, measurements): how long they take to connect and to answer,
requests in progress, failures.

Runs after the TCP rules (`connection.py`). Sums, counts and gauges per server; time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import ACTIVE, ANSWERING, ASKED, CLOSING, FRESH, OVER, SYN_RECEIVED, SYN_SENT
from lb.model.verdict import Direction
from lb.packet.segment import MODULUS, Segment
from lb.packet.tcp import RST, SYN

PEAK_MEMORY_NS = 1 << 33
LONGEST_NS = (1 << 40) - 1
STAMP_SHIFT = 10
STAMP_MASK = (1 << 30) - 1

# The most that counts of a pause within an answer: in longer ones the server has nothing to send.
LONGEST_PAUSE_NS = 1 << 30


@dataclass(slots=True)
class Timing:
    """Count, sum and peak-decay average of a measured time; `peak_ns` rises at once and falls slowly."""

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
    requests: int = 0
    requests_active: int = 0
    answer_ns: int = 0
    waiting_flows: int = 0
    in_flight_bytes: int = 0
    progress_at_ns: int = 0

    def stalled_ns(self, now_ns: int) -> int:
        """Return the nanoseconds since the server last sent data, while a client waits for it; else 0."""
        return max(0, now_ns - self.progress_at_ns) if self.waiting_flows else 0

    def begin_waiting(self, active: int, now_ns: int) -> None:
        """Note a request. `active`: the server's active flows."""
        if not self.waiting_flows:
            self.progress_at_ns = now_ns
        self.waiting_flows += 1
        self.requests += 1
        self.requests_active += active

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
            "requests": self.requests,
            "requests_active": self.requests_active,
            "answer_ns": self.answer_ns,
            "waiting_flows": self.waiting_flows,
            "stalled_ns": self.stalled_ns(now_ns),
            "in_flight_bytes": self.in_flight_bytes,
        }


class Before(NamedTuple):
    """A flow as it was before a segment. `snd_nxt`: the end of what each side is known to have sent."""

    state: str
    in_flight: int
    snd_nxt: dict[Direction, int | None]


def before(entry: Entry) -> Before:
    """Note how a flow is."""
    snd_nxt: dict[Direction, int | None] = {
        "forward": entry.known_snd_nxt("forward"),
        "reply": entry.known_snd_nxt("reply"),
    }
    return Before(entry.state, in_flight(entry), snd_nxt)


def in_flight(entry: Entry) -> int:
    """Return the bytes that the server has sent and the client not acknowledged, as far as is known."""
    sent, acked = entry.snd_nxt["reply"], entry.rcv_nxt["forward"]
    if sent is None or acked is None:
        return 0
    left = (sent - acked) % MODULUS
    return left if left < MODULUS // 2 else 0


def follow(
    measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, active: int, now_ns: int
) -> None:
    """
    Note what a segment tells that was let through.

    Args:
        measures: of the flow's server.
        entry: the flow, after the segment.
        was: the flow before it; not closing.
        direction: of the segment.
        seg: its numbers.
        active: the server's active flows.
        now_ns: monotonic nanoseconds.
    """
    measures.in_flight_bytes += in_flight(entry) - was.in_flight
    if seg.flags & (SYN | RST):
        follow_control(measures, entry, was, direction, seg, now_ns)
    elif seg.has_data:
        follow_data(measures, entry, was, direction, seg, active, now_ns)
    if entry.state == CLOSING:
        leave(measures, entry)


def follow_any(measures: Measures, entry: Entry, was: Before) -> None:
    """Note the same where answers may take another way: nothing is waited for. The flow may have been closing."""
    if was.state in ACTIVE:
        measures.in_flight_bytes += in_flight(entry) - was.in_flight
        measures.waiting_flows -= entry.phase == ASKED
    entry.phase, entry.stamp = FRESH, 0
    if entry.state == CLOSING:
        leave(measures, entry)


def follow_control(
    measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, now_ns: int
) -> None:
    """Note a SYN or a RST."""
    if was.state == SYN_SENT and direction == "reply" and entry.state == SYN_RECEIVED:
        measures.connect.add(waited_ns(entry, now_ns), now_ns)
    elif was.state == SYN_SENT and direction == "forward" and seg.opens:
        measures.syn_retransmitted += 1
        begin(entry, now_ns)
    elif was.state in (SYN_SENT, SYN_RECEIVED) and direction == "reply" and entry.state == CLOSING:
        measures.refused += 1


def follow_data(
    measures: Measures, entry: Entry, was: Before, direction: Direction, seg: Segment, active: int, now_ns: int
) -> None:
    """Note data in any other segment: a request, or a part of an answer."""
    snd_nxt = was.snd_nxt[direction]
    again = snd_nxt is not None and not 0 < (seg.end - snd_nxt) % MODULUS < MODULUS // 2
    if direction == "reply":
        if again:
            measures.retransmitted += 1
        else:
            answer(measures, entry, now_ns)
    elif entry.phase in (FRESH, ANSWERING) and not again:
        measures.begin_waiting(active, now_ns)
        entry.phase, entry.stamp = ASKED, stamp(now_ns)


def answer(measures: Measures, entry: Entry, now_ns: int) -> None:
    """Note new data from the server: the first of an answer, or more of one."""
    waited = waited_ns(entry, now_ns)
    if entry.phase == ASKED:
        measures.first_byte.add(waited, now_ns)
        measures.answer_ns += waited
        measures.waiting_flows -= 1
    elif entry.phase == ANSWERING:
        measures.answer_ns += min(waited, LONGEST_PAUSE_NS)
    measures.progress_at_ns = now_ns
    entry.phase, entry.stamp = ANSWERING, stamp(now_ns)


def stamp(now_ns: int) -> int:
    """Return the stamp of an instant: 30 bits of 1024 ns."""
    return now_ns >> STAMP_SHIFT & STAMP_MASK


def waited_ns(entry: Entry, now_ns: int) -> int:
    """Return the nanoseconds since the stamp of a flow."""
    return ((stamp(now_ns) - entry.stamp) & STAMP_MASK) << STAMP_SHIFT


def begin(entry: Entry, now_ns: int) -> None:
    """Note that a client has sent a SYN: it waits for the server's."""
    entry.phase, entry.stamp = FRESH, stamp(now_ns)


def restart(measures: Measures, entry: Entry, was: Before) -> Before:
    """
    Note that another connection takes the place of a flow's before.

    Returns:
        The flow before it: what the other has sent is nothing to this one.
    """
    if entry.phase == ASKED:
        measures.failed += 1
        measures.waiting_flows -= 1
    entry.phase, entry.stamp = FRESH, 0
    return was._replace(snd_nxt={"forward": None, "reply": None})


def leave(measures: Measures, entry: Entry) -> None:
    """Note that an active flow becomes closing, or is removed."""
    if entry.phase == ASKED:
        measures.failed += 1
        measures.waiting_flows -= 1
    entry.phase = OVER
    measures.in_flight_bytes -= in_flight(entry)
