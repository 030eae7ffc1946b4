"""
Packets between a client and a service: find the flow; a packet of a known flow goes to `hit`, any other to `schedule`.

Stage "flow lookup" of the walk (`docs/rules.md` rule 8, flows). Both directions go through the same functions; what
differs is the key that finds the flow, and who may create one.
"""

from __future__ import annotations

from lb.backends.python.entry import Entry
from lb.backends.python.hit import known_packet
from lb.backends.python.schedule import forward_miss, place_forward, reply_miss
from lb.backends.python.send import answer_ttl_exceeded
from lb.backends.python.tables import Tables
from lb.backends.python.verdicts import Verdict
from lb.packet.parse import Packet
from lb.packet.segment import Segment, segment


def forward_packet(tables: Tables, packet: Packet, service: int) -> Verdict:
    """Handle a packet from a client to a VIP's service."""
    packet.direction, packet.service = "forward", service
    if packet.ttl <= 1:
        return answer_ttl_exceeded(tables, packet)
    seg = segment(packet) if packet.is_tcp else None
    entry = look_up(tables, tables.flows.by_forward.get((packet.source, packet.source_port, service)))
    if entry is not None and (event := why_anew(tables, entry, seg)) is not None:
        tables.flows.remove(entry, event)
        if event == "flow_moved":
            return place_forward(tables, packet, service, seg)
        entry = None
    if entry is not None:
        return known_packet(tables, packet, entry, "forward", seg)
    return forward_miss(tables, packet, service, seg)


def reply_packet(tables: Tables, packet: Packet, endpoint: int) -> Verdict:
    """Handle a packet from a server's endpoint."""
    if packet.ttl <= 1:
        return answer_ttl_exceeded(tables, packet)
    seg = segment(packet) if packet.is_tcp else None
    entry = look_up(tables, tables.flows.by_reply.get((endpoint, packet.destination, packet.destination_port)))
    if entry is not None:
        return known_packet(tables, packet, entry, "reply", seg)
    return reply_miss(tables, packet, endpoint, seg)


def look_up(tables: Tables, entry: Entry | None) -> Entry | None:
    """Return the entry and count a hit; one that has expired or lost its server is removed and counts as a miss."""
    if entry is not None:
        event = tables.flows.why_dead(entry, tables.forwarding, tables.now_ns)
        if event is not None:
            tables.flows.remove(entry, event)
            entry = None
    tables.counters.event("flow_miss" if entry is None else "flow_hit")
    return entry


def why_anew(tables: Tables, entry: Entry, seg: Segment | None) -> str | None:
    """Return the event when a client's packet replaces its flow by a new one; None: the flow continues."""
    if seg is None:
        # A UDP flow moves away from a server that was removed, or drained until its timeout (rule 18.2, servers that
        # leave or fail).
        return "flow_moved" if tables.forwarding.servers[entry.server].moves_udp else None
    # Port reuse: the client opens a new connection before the old flow has timed out.
    return "flow_reused" if seg.opens and entry.is_over(tables.forwarding.snapshot.any_replies) else None
