"""
The flow table: who talks to which server, found from either end, bounded in size and in age.

Stage "flow lookup" of the walk. An entry is known by two keys: what a client's packet shows, and what a server's
packet shows. One list per class of states keeps entries roughly in order of last use, so that the oldest is at its
head (`docs/datapath.md` rules 2 and 8). Time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from lb.backends.base import Direction
from lb.backends.python import measure
from lb.backends.python.counters import Counters
from lb.backends.python.ends import ENDED_BY_EVENT, Ends
from lb.backends.python.states import CLOSING, ESTABLISHED, SYN_RECEIVED, SYN_SENT, UDP
from lb.backends.python.view import View
from lb.snapshot import Timeouts

# (client address, client port, service id); (endpoint id, client address, client port).
ForwardKey: TypeAlias = tuple[bytes, int, int]
ReplyKey: TypeAlias = tuple[int, bytes, int]

HALF_OPEN = "half-open"
# Also the order in which classes expire.
CLASSES = (HALF_OPEN, ESTABLISHED, CLOSING, UDP)
CLASS_OF_STATE = {
    SYN_SENT: HALF_OPEN,
    SYN_RECEIVED: HALF_OPEN,
    ESTABLISHED: ESTABLISHED,
    CLOSING: CLOSING,
    UDP: UDP,
}

EXPIRY_LIMIT = 64
RELINK_NS = 10**9


class Entry:
    """
    One flow.

    `next_seq` and `acked` are what each side sends next and has acknowledged, None while unknown; `fin` whether it has
    said that it is done. `last_hop` is (interface id, MAC) of the client's side. `tagged`: its first frame had a VLAN
    tag. `phase`, `stamp`: what it waits for and since when (`measure.py`).
    """

    __slots__ = (
        "acked",
        "bytes",
        "client",
        "client_port",
        "endpoint",
        "fin",
        "last_hop",
        "last_seen_ns",
        "linked_ns",
        "next_seq",
        "phase",
        "server",
        "service",
        "stamp",
        "state",
        "tagged",
    )

    def __init__(
        self, client: bytes, client_port: int, service: int, server: int, endpoint: int, state: str, now_ns: int
    ) -> None:
        self.client = client
        self.client_port = client_port
        self.service = service
        self.server = server
        self.endpoint = endpoint
        self.state = state
        self.last_seen_ns = now_ns
        self.linked_ns = now_ns
        self.last_hop: tuple[int, bytes] | None = None
        self.tagged = False
        self.phase = measure.FRESH
        self.stamp = 0
        self.next_seq: dict[Direction, int | None] = {"forward": None, "reply": None}
        self.acked: dict[Direction, int | None] = {"forward": None, "reply": None}
        self.fin: dict[Direction, bool] = {"forward": False, "reply": False}
        self.bytes: dict[Direction, int] = {"forward": 0, "reply": 0}

    @property
    def forward_key(self) -> ForwardKey:
        """What finds it from the client's side."""
        return self.client, self.client_port, self.service

    @property
    def reply_key(self) -> ReplyKey:
        """What finds it from the server's side."""
        return self.endpoint, self.client, self.client_port

    @property
    def flow_class(self) -> str:
        """The class of its state, which decides its timeout and its list."""
        return CLASS_OF_STATE[self.state]

    @property
    def is_active(self) -> bool:
        """Whether it counts for its server."""
        return self.state != CLOSING


def timeout_ns(timeouts: Timeouts, flow_class: str) -> int:
    """Return the idle timeout of a class."""
    return {
        HALF_OPEN: timeouts.half_open_ns,
        ESTABLISHED: timeouts.established_ns,
        CLOSING: timeouts.closing_ns,
        UDP: timeouts.udp_ns,
    }[flow_class]


def how_ended(entry: Entry, event: str) -> str:
    """Return how a flow ended: what its packets said, else what the event of its removal tells."""
    if entry.state == CLOSING:
        return "closed" if all(entry.fin.values()) else "reset"
    return ENDED_BY_EVENT.get(event, "evicted")


class FlowTable:
    """
    At most `capacity` entries.

    Args:
        capacity: entries.
        counters: gets the events and the number of active flows per server.
    """

    def __init__(self, capacity: int, counters: Counters) -> None:
        self.capacity = capacity
        self.counters = counters
        self.ends = Ends()
        self.by_forward: dict[ForwardKey, Entry] = {}
        self.by_reply: dict[ReplyKey, Entry] = {}
        # Insertion order is list order: the head is the first key.
        self.lists: dict[str, OrderedDict[Entry, None]] = {name: OrderedDict() for name in CLASSES}

    def __len__(self) -> int:
        return len(self.by_forward)

    def insert(self, entry: Entry) -> None:
        """Add an entry. There must be room, and no entry with either of its keys."""
        self.by_forward[entry.forward_key] = entry
        self.by_reply[entry.reply_key] = entry
        self.lists[entry.flow_class][entry] = None
        self.ends.begin(entry, entry.last_seen_ns)
        self.counters.event("flow_created")
        self.counters.services[entry.service].flows_created += 1
        server = self.counters.servers[entry.server]
        server.flows_created += 1
        server.flows_active += entry.is_active
        self.counters.stored[entry.server] += 1

    def remove(self, entry: Entry, event: str) -> None:
        """Take an entry out and count why."""
        if entry.is_active:
            measures = self.counters.measures[entry.server]
            measure.leave(measures, entry)
            measures.unanswered += entry.state == SYN_SENT and event == "flow_expired"
        del self.by_forward[entry.forward_key]
        del self.by_reply[entry.reply_key]
        del self.lists[entry.flow_class][entry]
        self.counters.servers[entry.server].flows_active -= entry.is_active
        self.counters.stored[entry.server] -= 1
        self.counters.event(event)
        self.ends.end(entry, how_ended(entry, event))

    def set_state(self, entry: Entry, state: str, now_ns: int) -> None:
        """Change the state of an entry. A new class puts it at the tail of that class's list."""
        before, was_active = entry.flow_class, entry.is_active
        entry.state = state
        self.counters.servers[entry.server].flows_active += entry.is_active - was_active
        if entry.flow_class != before:
            del self.lists[before][entry]
            self.lists[entry.flow_class][entry] = None
            entry.linked_ns = now_ns

    def touch(self, entry: Entry, now_ns: int) -> None:
        """
        Note that a packet of the flow passed. Moving it in its list once a second is order enough, and spares most
        packets the move.
        """
        entry.last_seen_ns = now_ns
        if now_ns - entry.linked_ns >= RELINK_NS:
            self.lists[entry.flow_class].move_to_end(entry)
            entry.linked_ns = now_ns

    def is_expired(self, entry: Entry, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether an entry has been idle for its timeout."""
        return now_ns - entry.last_seen_ns >= timeout_ns(timeouts, entry.flow_class)

    def why_dead(self, entry: Entry, view: View, now_ns: int) -> str | None:
        """Return the event with which an entry is to be removed, `flow_expired` or `flow_orphaned`; None: it lives."""
        if self.is_expired(entry, view.snapshot.timeouts, now_ns):
            return "flow_expired"
        if entry.server not in view.servers or entry.service not in view.services:
            return "flow_orphaned"
        return None

    def expire(self, timeouts: Timeouts, now_ns: int) -> None:
        """Remove expired entries from the heads of the lists, `EXPIRY_LIMIT` at most."""
        left = EXPIRY_LIMIT
        for members in self.lists.values():
            while left and members:
                head = next(iter(members))
                if not self.is_expired(head, timeouts, now_ns):
                    break
                self.remove(head, "flow_expired")
                left -= 1

    @property
    def is_full(self) -> bool:
        """Whether a new entry needs another's place."""
        return len(self) >= self.capacity

    def make_room(self, timeouts: Timeouts, now_ns: int) -> bool:
        """
        Evict one entry if the table is full: half-open first, then closing, then the longest idle beyond the floor.

        Returns:
            Whether there is room. Recently active flows are never evicted for a newcomer.
        """
        if not self.is_full:
            return True
        for name, event in ((HALF_OPEN, "flow_evicted_half_open"), (CLOSING, "flow_evicted_closing")):
            if self.lists[name]:
                self.remove(next(iter(self.lists[name])), event)
                return True
        heads = [next(iter(self.lists[name])) for name in (ESTABLISHED, UDP) if self.lists[name]]
        idlest = min(heads, key=lambda entry: entry.last_seen_ns)  # the first of equals: established
        if now_ns - idlest.last_seen_ns <= timeouts.idle_floor_ns:
            return False
        self.remove(idlest, "flow_evicted_idle")
        return True
