"""
The tables of a data path: everything it remembers from one packet to the next.

Every stage of the walk gets them. `now_ns` and `out` belong to the current call: the time it was given, and the frames
it sends.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python.counters import Counters
from lb.backends.python.direct import DirectConnections
from lb.backends.python.entry import Entry
from lb.backends.python.flow_table import FlowTable
from lb.backends.python.forwarding_state import ForwardingState
from lb.backends.python.fragment import FragmentTable
from lb.backends.python.limit import NewFlowLimiter, RateLimiter
from lb.backends.python.next_hop import HopTable, Output, Waited, Waiting
from lb.backends.python.picker import Picker
from lb.backends.python.verdicts import Verdict, drop, reply
from lb.model.snapshot import EMPTY, NextHops, Snapshot


class Prepared(NamedTuple):
    """A compiled snapshot with its next hops, ready to be swapped in."""

    forwarding: ForwardingState
    hops: HopTable
    next_hops: NextHops


class Tables:
    """
    The tables of one data path.

    Args:
        capacity: flows the table can hold.
        hash_key: 16 secret bytes, of the limits of new flows.
        seed: starts the random draws.
        first_round: the number at which the rounds of `counter` and `least` start.
    """

    def __init__(self, capacity: int, hash_key: bytes, seed: int, first_round: int = 0) -> None:
        self.counters = Counters()
        self.flows = FlowTable(capacity, self.counters)
        self.picker = Picker(seed, self.counters, first_round)
        self.direct = DirectConnections(capacity)
        self.fragments = FragmentTable()
        self.waiting = Waiting()
        self.limiter = RateLimiter()
        self.new_flows = NewFlowLimiter(hash_key)
        self.next_hops = NextHops()
        self.forwarding = ForwardingState(EMPTY)
        self.hops = HopTable(self.forwarding, self.next_hops)
        self.now_ns = 0
        # More flows have expired than the last call removed.
        self.is_behind = False
        self.out: list[Output] = []
        # Resets made between two ticks (rule 15, resetting flows).
        self.pending: list[Output] = []
        # ICMP errors made between two ticks, about packets whose neighbour did not answer.
        self.answers: list[Output] = []

    @staticmethod
    def prepare(snapshot: Snapshot, next_hops: NextHops) -> Prepared:
        """Compile a snapshot and next hops. Slow, and changes nothing."""
        forwarding = ForwardingState(snapshot)
        return Prepared(forwarding, HopTable(forwarding, next_hops), next_hops)

    def swap(self, prepared: Prepared) -> None:
        """Swap in a compiled snapshot and its next hops."""
        self.forwarding, self.hops, self.next_hops = prepared
        if self.forwarding.snapshot.transit == "drop" or self.forwarding.snapshot.any_replies:
            self.direct.records.clear()

    def begin(self, now_ns: int) -> None:
        """Begin a call at a time, with no frames to send yet."""
        self.now_ns = now_ns
        self.out = []

    def expire(self, limit: int) -> None:
        """
        Remove what has expired (rule 2, expiry): at most `limit` flows and as many fragmented datagrams, and all
        packets that waited too long for a neighbour.
        """
        self.is_behind = self.flows.expire(self.forwarding.snapshot.timeouts, self.now_ns, limit)
        self.counters.verdict("drop", "fragment_timeout", self.fragments.expire(self.now_ns, limit))
        self.is_behind = self.is_behind or self.fragments.oldest_over(self.now_ns) is not None
        for waited in self.waiting.expire(self.now_ns):
            self.counters.verdict(*self.give_up(waited))

    def give_up(self, waited: Waited) -> Verdict:
        """Drop a packet whose neighbour did not answer; its sender gets an ICMP error at the next tick, if allowed."""
        if waited.notice is None or waited.notice.interface >= len(self.forwarding.interfaces):
            return drop("neighbour_timeout")
        if not self.limiter.take("unreachable", self.forwarding.snapshot.icmp_rate, self.now_ns):
            return drop("rate_limited")
        self.answers.append(waited.notice)
        return reply("neighbour_timeout")

    def release_pending(self) -> None:
        """Send the frames made since the last tick."""
        self.out.extend(self.pending + self.answers)
        self.pending, self.answers = [], []

    def release_waiting(self) -> None:
        """Send the packets whose neighbour has become known."""
        for frames in self.waiting.release(self.hops.neighbours):
            self.counters.verdict("forward")
            self.out.extend(frames)

    def living(self, entry: Entry | None) -> Entry | None:
        """Return the entry unless it has expired or its server is gone; counts no hit and removes nothing."""
        if entry is None or self.flows.why_dead(entry, self.forwarding, self.now_ns) is not None:
            return None
        return entry

    def count_sent(self) -> None:
        """Count the frames that this call sends."""
        for each in self.out:
            self.counters.sent(len(each.frame))
