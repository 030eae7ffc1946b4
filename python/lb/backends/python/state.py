"""
What a data path remembers from one packet to the next, and the verdicts its stages give.

Handed to every stage of the walk. `now_ns` and `out` belong to the call that is under way: the instant it was given,
and the frames it sends.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.base import Verdict as VerdictName
from lb.backends.python.counters import Counters
from lb.backends.python.direct import DirectConnections
from lb.backends.python.flow import Entry, FlowTable
from lb.backends.python.fragment import FragmentTable
from lb.backends.python.limit import RateLimiter
from lb.backends.python.next_hop import HopTable, Output, Waiting
from lb.backends.python.plan import Placement
from lb.backends.python.view import View
from lb.snapshot import NextHops, Snapshot


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
        self.out: list[Output] = []
        # What rule 15 made between two ticks.
        self.pending: list[Output] = []

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a new snapshot."""
        self.view = View(snapshot)
        self.hops = HopTable(self.view, self.next_hops)
        if snapshot.transit == "drop":
            self.direct.records.clear()

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap routes and neighbours."""
        self.next_hops = next_hops
        self.hops = HopTable(self.view, next_hops)

    def begin(self, now_ns: int) -> None:
        """Begin a call at an instant, with nothing sent yet."""
        self.now_ns = now_ns
        self.out = []

    def expire(self) -> None:
        """Forget what is too old: flows, then fragments, then packets that waited for a neighbour (rule 2)."""
        self.table.expire(self.view.snapshot.timeouts, self.now_ns)
        self.counters.verdict("drop", "fragment_timeout", self.fragments.expire(self.now_ns))
        self.counters.verdict("drop", "neighbour_timeout", self.waiting.expire(self.now_ns))

    def release_pending(self) -> None:
        """Send what was made since the last tick."""
        self.out.extend(self.pending)
        self.pending = []

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
