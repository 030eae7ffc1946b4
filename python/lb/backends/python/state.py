"""
What a data path remembers from one packet to the next, and the verdicts its stages give.

Handed to every stage of the walk. `now_ns` and `out` belong to the call that is under way: the instant it was given,
and the frames it sends.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python.counters import Counters
from lb.backends.python.direct import DirectConnections
from lb.backends.python.entry import Entry
from lb.backends.python.flow_table import FlowTable
from lb.backends.python.fragment import FragmentTable
from lb.backends.python.limit import RateLimiter
from lb.backends.python.next_hop import HopTable, Output, Waited, Waiting
from lb.backends.python.plan import Placement
from lb.backends.python.view import View
from lb.model.snapshot import NextHops, Snapshot
from lb.model.verdict import Verdict as VerdictName


class Verdict(NamedTuple):
    """What became of a packet. `reason`: why, for drop, reply and hold."""

    name: VerdictName
    reason: str | None = None


FORWARD = Verdict("forward")
PASS = Verdict("pass")


def drop(reason: str) -> Verdict:
    """Return the verdict that discards a packet."""
    return Verdict("drop", reason)


def reply(reason: str) -> Verdict:
    """Return the verdict that answers a packet ourselves."""
    return Verdict("reply", reason)


def hold(reason: str) -> Verdict:
    """Return the verdict that keeps a packet for later."""
    return Verdict("hold", reason)


class Prepared(NamedTuple):
    """What packets are handled by, compiled: to be swapped to at once."""

    view: View
    hops: HopTable
    next_hops: NextHops


class State:
    """
    The state of one data path.

    Args:
        capacity: flows the table can hold.
        seed: starts the random draws.
        first_turn: where the turns of `counter` and `least` start.
    """

    def __init__(self, capacity: int, seed: int, first_turn: int = 0) -> None:
        self.counters = Counters()
        self.table = FlowTable(capacity, self.counters)
        self.placement = Placement(seed, self.counters, first_turn)
        self.direct = DirectConnections(capacity)
        self.fragments = FragmentTable()
        self.waiting = Waiting()
        self.limiter = RateLimiter()
        self.next_hops = NextHops()
        self.view = View(Snapshot(generation=0, seed=0, interfaces=(), services=(), servers=()))
        self.hops = HopTable(self.view, self.next_hops)
        self.now_ns = 0
        # More flows are due than the last call removed.
        self.is_behind = False
        self.out: list[Output] = []
        # What rule 15 made between two ticks.
        self.pending: list[Output] = []
        # Errors about packets that waited in vain, likewise.
        self.answers: list[Output] = []

    @staticmethod
    def prepare(snapshot: Snapshot, next_hops: NextHops) -> Prepared:
        """Compile a snapshot and next hops, which takes its time and changes nothing."""
        view = View(snapshot)
        return Prepared(view, HopTable(view, next_hops), next_hops)

    def swap(self, prepared: Prepared) -> None:
        """Swap to what was compiled."""
        self.view, self.hops, self.next_hops = prepared
        if self.view.snapshot.transit == "drop":
            self.direct.records.clear()

    def begin(self, now_ns: int) -> None:
        """Begin a call at an instant, with nothing sent yet."""
        self.now_ns = now_ns
        self.out = []

    def expire(self, limit: int) -> None:
        """
        Forget what is too old (rule 2): flows and datagrams in fragments, `limit` at most of either, and packets that
        wait for a neighbour.
        """
        self.is_behind = self.table.expire(self.view.snapshot.timeouts, self.now_ns, limit)
        self.counters.verdict("drop", "fragment_timeout", self.fragments.expire(self.now_ns, limit))
        self.is_behind = self.is_behind or self.fragments.oldest_over(self.now_ns) is not None
        for waited in self.waiting.expire(self.now_ns):
            self.counters.verdict(*self.give_up(waited))

    def give_up(self, waited: Waited) -> Verdict:
        """Tell the sender of a packet that waited in vain, at the next tick, if the rate allows it."""
        if waited.notice is None or waited.notice.interface >= len(self.view.interfaces):
            return drop("neighbour_timeout")
        if not self.limiter.take("unreachable", self.view.snapshot.icmp_rate, self.now_ns):
            return drop("rate_limited")
        self.answers.append(waited.notice)
        return reply("neighbour_timeout")

    def release_pending(self) -> None:
        """Send what was made since the last tick."""
        self.out.extend(self.pending + self.answers)
        self.pending, self.answers = [], []

    def release_waiting(self) -> None:
        """Send the packets whose neighbour has become known."""
        for frames in self.waiting.release(self.hops.neighbours):
            self.counters.verdict("forward")
            self.out.extend(frames)

    def living(self, entry: Entry | None) -> Entry | None:
        """Return a flow that has neither expired nor lost its server: a look that counts no hit and removes nothing."""
        if entry is None or self.table.why_dead(entry, self.view, self.now_ns) is not None:
            return None
        return entry

    def count_sent(self) -> None:
        """Count the frames that the call sends."""
        for each in self.out:
            self.counters.sent(len(each.frame))
