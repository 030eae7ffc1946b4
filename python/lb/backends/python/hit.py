"""
Packets of flows that are in the table: TCP state, the client's ingress neighbour, translation, sending.

Stage "rewrite" of the walk (`docs/rules.md` rule 8, flows). The first packet of a new flow leaves through
`send_translated` too.
"""

from __future__ import annotations

from lb.backends.python import measure
from lb.backends.python.any_replies import judge_any
from lb.backends.python.connection import Step, believed, is_exact, judge
from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import ACTIVE, CLOSING, UDP, UDP_UNREPLIED
from lb.backends.python.send import deliver
from lb.backends.python.tables import Tables
from lb.backends.python.verdicts import Verdict, drop
from lb.model.verdict import Direction
from lb.packet.parse import Packet
from lb.packet.rewrite import lower_ttl, outgoing, translate
from lb.packet.segment import Segment


def known_packet(tables: Tables, packet: Packet, entry: Entry, direction: Direction, seg: Segment | None) -> Verdict:
    """Handle a packet of a flow that is in the table."""
    packet.direction, packet.service, packet.server = direction, entry.service, entry.server
    # Before the segment is followed, which changes the numbers.
    may_move = (
        direction == "forward"
        and not tables.forwarding.snapshot.any_replies
        and may_move_ingress(tables, packet, entry, seg)
    )
    if seg is None:
        step: Step | None = follow_udp(tables, entry, direction)
    else:
        step = follow_tcp(tables, entry, direction, seg)
    if step is None:
        return drop("rst_window")
    if step.refreshes:
        tables.flows.touch(entry, tables.now_ns)
    if step.believed and may_move:
        entry.ingress = (packet.interface, packet.source_mac)
    return send_translated(tables, packet, direction, entry)


def follow_tcp(tables: Tables, entry: Entry, direction: Direction, seg: Segment) -> Step | None:
    """Let a segment change what it may, and measure it; None for a RST outside the window."""
    was, any_replies = measure.before(entry), tables.forwarding.snapshot.any_replies
    step = judge_any(entry, direction, seg) if any_replies else judge(entry, direction, seg)
    if step is None or not step.believed or was.state == step.state == CLOSING:
        return step
    tables.flows.set_state(entry, step.state, tables.now_ns)
    if step.state == CLOSING:
        tables.counters.event("flow_closed")
    if was.state in ACTIVE or step.state in ACTIVE:
        measures = tables.counters.measures[entry.server]
        # The flow itself counts: it did before, or does now.
        active = tables.counters.servers[entry.server].flows_active + (step.state == CLOSING)
        if step.restarted:
            was = measure.restart(measures, entry, was)
        if any_replies:
            measure.follow_any(measures, entry, was)
        else:
            measure.follow(measures, entry, was, direction, seg, active, tables.now_ns)
    return step


def follow_udp(tables: Tables, entry: Entry, direction: Direction) -> Step:
    """Return what a datagram does to its flow: it refreshes it, and the server's first one confirms it."""
    if direction == "reply" and tables.forwarding.servers[entry.server].moves_udp:
        # The server was removed or drained: its answers pass, but must not keep the flow alive.
        return Step(entry.state)
    if entry.state == UDP_UNREPLIED and direction == "reply":
        tables.flows.set_state(entry, UDP, tables.now_ns)
    return believed(entry.state)


def may_move_ingress(tables: Tables, packet: Packet, entry: Entry, seg: Segment | None) -> bool:
    """
    Tell whether a client's packet, once believed, may set the flow's ingress neighbour (rule 11, next hop): on the
    interface of earlier packets always; on another one only if its numbers are exact or the route to the client leaves
    there. A datagram has no numbers.
    """
    if seg is not None and is_exact(entry, seg):
        return True
    known = None if entry.ingress is None else entry.ingress[0]
    if known is None or known == packet.interface or known >= len(tables.forwarding.interfaces):
        return True
    hop = tables.hops.to_address(packet.source)
    return hop is not None and hop.interface == packet.interface


def send_translated(tables: Tables, packet: Packet, direction: Direction, entry: Entry) -> Verdict:
    """Count, translate and send a packet of a flow; the entry need not be in the table."""
    length = packet.total_len
    tables.counters.services[entry.service].count(direction, length)
    tables.counters.servers[entry.server].count(direction, length)
    entry.bytes[direction] += length
    data = outgoing(packet)
    lower_ttl(data, packet)
    if direction == "forward":
        server = tables.forwarding.servers[entry.server]
        translate(data, packet, "forward", server.address.packed, server.port)
        return deliver(tables, packet, data, tables.hops.to_server(entry.server), tells=True)
    service = tables.forwarding.services[entry.service]
    translate(data, packet, "reply", service.address.packed, service.port)
    return deliver(tables, packet, data, tables.hops.reply_next_hop(entry.ingress, packet.destination))
