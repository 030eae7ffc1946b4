"""
The flow table: which client talks to which server, found from either side, bounded in size and in age.

Stage "flow lookup" of the walk. An entry is known by two keys: what a client's packet shows, and what a server's
packet shows. One list per state keeps entries roughly in order of last use, so that the oldest is at its
head (`docs/rules.md` rule 2, expiry, and rule 8, flows). Time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict

from lb.backends.python import measure
from lb.backends.python.counters import Counters
from lb.backends.python.entry import Entry, ForwardKey, ReplyKey
from lb.backends.python.exports import FlowExports
from lb.backends.python.flow_states import (
    CLOSING,
    ESTABLISHED,
    ONE_WAY,
    PICKUP,
    STATES,
    SYN_RECEIVED,
    SYN_SENT,
    UDP,
    UDP_UNREPLIED,
)
from lb.backends.python.forwarding_state import ForwardingState
from lb.model.snapshot import Timeouts

# Flows removed before a frame, and per tick (rule 2, expiry).
EXPIRY_PER_FRAME = 4
EXPIRY_PER_TICK = 64
RELINK_NS = 10**9
# Rule 8.17, full table. A kind of flows that servers have answered, but no client has proved to be there, may have this
# part of the table, and this many in any; flows that wait for an answer have a part of it before those that are over.
SHARE, LEAST_SHARE, RESERVE = 4, 64, 64
# UDP flows that are looked at for one to evict.
SECOND_CHANCES = 4
UNCONFIRMED = (PICKUP, UDP_UNREPLIED)
# How a flow ended, by the event of its removal, unless its packets told.
ENDED_BY_EVENT = {
    "flow_expired": "expired",
    "flow_orphaned": "orphaned",
    "flow_reset": "reset",
    "flow_moved": "moved",
}


def timeout_ns(timeouts: Timeouts, state: str) -> int:
    """Return the idle timeout of a state."""
    if state in (SYN_SENT, SYN_RECEIVED, PICKUP):
        return timeouts.half_open_ns
    if state in (UDP, UDP_UNREPLIED):
        return timeouts.udp_ns
    return timeouts.established_ns if state in (ESTABLISHED, ONE_WAY) else timeouts.closing_ns


def how_ended(entry: Entry, event: str) -> str:
    """Return how a flow ended: what its packets said, else what the event of its removal tells."""
    if entry.state == CLOSING:
        return "closed" if entry.closed_by_one or all(entry.fin.values()) else "reset"
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
        self.exports = FlowExports()
        self.by_forward: dict[ForwardKey, Entry] = {}
        self.by_reply: dict[ReplyKey, Entry] = {}
        # Insertion order is list order: the head is the first key.
        self.lists: dict[str, OrderedDict[Entry, None]] = {name: OrderedDict() for name in STATES}

    def __len__(self) -> int:
        return len(self.by_forward)

    def has(self, entry: Entry) -> bool:
        """Tell whether an entry is still in the table."""
        return self.by_forward.get(entry.forward_key) is entry

    def insert(self, entry: Entry) -> None:
        """Add an entry. There must be room, and no entry with either of its keys."""
        self.by_forward[entry.forward_key] = entry
        self.by_reply[entry.reply_key] = entry
        self.lists[entry.state][entry] = None
        self.exports.begin(entry, entry.last_seen_ns)
        self.counters.event("flow_created")
        self.counters.services[entry.service].flows_created += 1
        server = self.counters.servers[entry.server]
        server.flows_created += 1
        server.flows_active += entry.is_active
        self.counters.stored[entry.server] += 1
        self.counters.stored_of_service[entry.service] += 1

    def remove(self, entry: Entry, event: str) -> None:
        """Take an entry out and count why."""
        if entry.is_active:
            measures = self.counters.measures[entry.server]
            measure.leave(measures, entry)
            measures.unanswered += entry.state == SYN_SENT and event == "flow_expired"
        del self.by_forward[entry.forward_key]
        del self.by_reply[entry.reply_key]
        del self.lists[entry.state][entry]
        self.counters.servers[entry.server].flows_active -= entry.is_active
        self.counters.stored[entry.server] -= 1
        self.counters.stored_of_service[entry.service] -= 1
        self.counters.event(event)
        self.exports.end(entry, how_ended(entry, event))

    def set_state(self, entry: Entry, state: str, now_ns: int) -> None:
        """Change the state of an entry. A new one puts it at the tail of that state's list."""
        before, was_active = entry.state, entry.is_active
        if state == before:
            return
        entry.state = state
        self.counters.servers[entry.server].flows_active += entry.is_active - was_active
        del self.lists[before][entry]
        self.lists[state][entry] = None
        entry.linked_ns = now_ns

    def touch(self, entry: Entry, now_ns: int) -> None:
        """
        Record that a packet of the flow passed. The entry moves in its list once a second at most: order enough, and
        most packets are spared the move.
        """
        entry.last_seen_ns = now_ns
        if now_ns - entry.linked_ns >= RELINK_NS:
            self.lists[entry.state].move_to_end(entry)
            entry.linked_ns = now_ns

    def is_expired(self, entry: Entry, timeouts: Timeouts, now_ns: int) -> bool:
        """Tell whether an entry has been idle for its timeout."""
        return now_ns - entry.last_seen_ns >= timeout_ns(timeouts, entry.state)

    def why_dead(self, entry: Entry, forwarding: ForwardingState, now_ns: int) -> str | None:
        """Return the event to remove an entry with, `flow_expired` or `flow_orphaned`; None: it is alive."""
        if self.is_expired(entry, forwarding.snapshot.timeouts, now_ns):
            return "flow_expired"
        if entry.server not in forwarding.servers or entry.service not in forwarding.services:
            return "flow_orphaned"
        return None

    def expire(self, timeouts: Timeouts, now_ns: int, limit: int) -> bool:
        """
        Remove expired entries from the heads of the lists, `limit` at most.

        Returns:
            Whether more of them are expired.
        """
        left = limit
        for members in self.lists.values():
            while members:
                head = next(iter(members))
                if not self.is_expired(head, timeouts, now_ns):
                    break
                if not left:
                    return True
                self.remove(head, "flow_expired")
                left -= 1
        return False

    @property
    def is_full(self) -> bool:
        """Whether a new entry needs another's place."""
        return len(self) >= self.capacity

    def make_room(self, timeouts: Timeouts, now_ns: int) -> bool:
        """
        Evict one entry if the table is full (rule 8.17, full table).

        Returns:
            Whether there is room. Flows that a server has answered and that are not idle stay.
        """
        if not self.is_full:
            return True
        victim = self.victim(timeouts, now_ns)
        if victim is not None:
            self.remove(*victim)
        return victim is not None

    def victim(self, timeouts: Timeouts, now_ns: int) -> tuple[Entry, str] | None:
        """
        Return the flow to evict and the event: unconfirmed flows, handshakes, closing flows, those of which one side
        alone was seen, then the idlest. Kinds
        whose clients are not proved have a share: a flood of one fills no more.
        """
        floor = timeouts.idle_floor_ns
        reserve, share = self.capacity // RESERVE, max(self.capacity // SHARE, LEAST_SHARE)
        flooded = len(self.lists[SYN_RECEIVED]) > share
        handshake_floor = -1 if flooded else min(floor, timeouts.half_open_ns // 10)
        order: tuple[tuple[tuple[str, ...], int, int, str], ...] = (
            (UNCONFIRMED, reserve, -1, "flow_evicted_unconfirmed"),
            ((SYN_SENT,), reserve, -1, "flow_evicted_half_open"),
            ((SYN_RECEIVED,), 0, handshake_floor, "flow_evicted_half_open"),
            ((CLOSING,), 0, -1, "flow_evicted_closing"),
            ((ONE_WAY,), 0, -1, "flow_evicted_one_way"),
            (UNCONFIRMED, 0, -1, "flow_evicted_unconfirmed"),
            ((SYN_SENT,), 0, -1, "flow_evicted_half_open"),
            ((ESTABLISHED, UDP), 0, floor, "flow_evicted_idle"),
        )
        for names, kept, least_idle_ns, event in order:
            idlest = self.idlest(names)
            is_beyond = sum(len(self.lists[name]) for name in names) > kept
            if idlest is not None and is_beyond and now_ns - idlest.last_seen_ns > least_idle_ns:
                return idlest, event
        return self.answered_once() if len(self.lists[UDP]) > share else None

    def idlest(self, names: tuple[str, ...]) -> Entry | None:
        """Return the head of these lists that was seen first, the first of equals."""
        heads = [next(iter(self.lists[name])) for name in names if self.lists[name]]
        return min(heads, key=lambda entry: entry.last_seen_ns, default=None)

    def answered_once(self) -> tuple[Entry, str] | None:
        """
        Return a UDP flow not heard of since its server's answer, or since it was passed over here: an answer proves
        that there is a server, not that there is a client. Of the first few; those before it go to the tail.
        """
        for _ in range(SECOND_CHANCES):
            head = next(iter(self.lists[UDP]))
            if head.last_seen_ns == head.linked_ns:
                return head, "flow_evicted_idle"
            head.linked_ns = head.last_seen_ns
            self.lists[UDP].move_to_end(head)
        return None
