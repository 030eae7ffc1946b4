"""
Packets of flows: lookup, TCP state, placement of new flows, translation (`docs/datapath.md` rule 8).

The middle of the walk: `flow lookup -> (miss: plan -> server) -> rewrite`. Both directions go through the same
functions; what differs is which key finds the flow, and who may create one.
"""

from __future__ import annotations

from lb.backends.python import measure
from lb.backends.python.connection import Step, begin, believed, follow, is_exact, pick_up
from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import CLOSING, PICKUP, SYN_SENT, UDP, UDP_UNREPLIED
from lb.backends.python.plan import Choice, Fit, Newcomer
from lb.backends.python.send import answer_no_server, answer_reset, answer_ttl_exceeded, deliver, refuse_newcomer
from lb.backends.python.state import State, Verdict, drop, hold
from lb.backends.python.transit import route
from lb.backends.python.view import PROTOCOLS
from lb.model.snapshot import HASH_SELECTORS, Service
from lb.model.verdict import Direction
from lb.packet.parse import Packet
from lb.packet.rewrite import lower_ttl, outgoing, translate
from lb.packet.segment import Segment, segment
from lb.packet.tcp import ACK


def forward_packet(state: State, packet: Packet, service: int) -> Verdict:
    """Handle a packet from a client to a VIP's service."""
    packet.direction, packet.service = "forward", service
    if packet.ttl <= 1:
        return answer_ttl_exceeded(state, packet)
    seg = segment(packet) if packet.is_tcp else None
    entry = look_up(state, state.table.by_forward.get((packet.source, packet.source_port, service)))
    if entry is not None and (event := why_anew(state, entry, seg)) is not None:
        state.table.remove(entry, event)
        entry = None
    if entry is not None:
        return known_packet(state, packet, entry, "forward", seg)
    return forward_miss(state, packet, service, seg)


def why_anew(state: State, entry: Entry, seg: Segment | None) -> str | None:
    """Return the event with which a client's packet makes its flow anew; None: the flow goes on."""
    if seg is None:
        # A UDP flow leaves a server that was removed, or drained for its time (behaviour 8).
        return "flow_moved" if state.view.servers[entry.server].moves_udp else None
    # Port reuse: the client starts anew before the old flow has timed out.
    return "flow_reused" if seg.opens and entry.state == CLOSING else None


def reply_packet(state: State, packet: Packet, endpoint: int) -> Verdict:
    """Handle a packet from a server's endpoint."""
    if packet.ttl <= 1:
        return answer_ttl_exceeded(state, packet)
    seg = segment(packet) if packet.is_tcp else None
    entry = look_up(state, state.table.by_reply.get((endpoint, packet.destination, packet.destination_port)))
    if entry is not None:
        return known_packet(state, packet, entry, "reply", seg)
    return reply_miss(state, packet, endpoint, seg)


def look_up(state: State, entry: Entry | None) -> Entry | None:
    """Count a hit or a miss; what has expired or lost its server is removed and is a miss."""
    if entry is not None:
        event = state.table.why_dead(entry, state.view, state.now_ns)
        if event is not None:
            state.table.remove(entry, event)
            entry = None
    state.counters.event("flow_miss" if entry is None else "flow_hit")
    return entry


def known_packet(state: State, packet: Packet, entry: Entry, direction: Direction, seg: Segment | None) -> Verdict:
    """Handle a packet of a flow that is in the table."""
    packet.direction, packet.service, packet.server = direction, entry.service, entry.server
    # Asked before the segment is followed, which moves the numbers.
    may_move = direction == "forward" and tells_way(state, packet, entry, seg)
    if seg is None:
        step: Step | None = follow_udp(state, entry, direction)
    else:
        step = follow(state.table, entry, direction, seg, state.now_ns)
    if step is None:
        return drop("rst_window")
    if step.refreshes:
        state.table.touch(entry, state.now_ns)
    if step.believed and may_move:
        entry.last_hop = (packet.interface, packet.source_mac)
    return send_translated(state, packet, direction, entry)


def follow_udp(state: State, entry: Entry, direction: Direction) -> Step:
    """Let a datagram of a known flow refresh it; the server's first confirms it."""
    if direction == "reply" and state.view.servers[entry.server].moves_udp:
        # What only its server keeps up ends when the server leaves: its answers pass, and do not refresh it.
        return Step(entry.state)
    if entry.state == UDP_UNREPLIED and direction == "reply":
        state.table.set_state(entry, UDP, state.now_ns)
    return believed(entry.state)


def tells_way(state: State, packet: Packet, entry: Entry, seg: Segment | None) -> bool:
    """
    Tell whether a client's packet may tell where the client is, if it is believed (behaviour 28): from the interface
    that those before came to, if any did; from another one only if its numbers are exact, or if the client is routed to
    there. Nothing vouches for a datagram.
    """
    if seg is not None and is_exact(entry, seg):
        return True
    known = None if entry.last_hop is None else entry.last_hop[0]
    if known is None or known == packet.interface or known >= len(state.view.interfaces):
        return True
    hop = state.hops.to_address(packet.source)
    return hop is not None and hop.interface == packet.interface


def forward_miss(state: State, packet: Packet, number: int, seg: Segment | None) -> Verdict:
    """Place a new flow, if its first packet may create one."""
    service = state.view.services[number]
    stores = may_create(service, seg)
    if not stores and not (service.plan.selector in HASH_SELECTORS and may_pass(state, seg)):
        return refuse_no_flow(state, packet, service, seg)
    source, destination = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
    newcomer = Newcomer(number, *source, *destination, packet.protocol, seg is not None and seg.opens)
    asking = state.placement.asking
    asking.begin(not packet.is_fragment)
    choice = choose(state, service, newcomer, "forward", stores)
    if asking.wait is not None:
        asking.hold((number, packet.source, packet.source_port), packet)
        return hold("ask")
    if choice.refused is not None:
        packet.server, reason = choice.refused
        verdict = drop(reason)
    elif choice.server is not None:
        verdict = place(state, packet, "forward", newcomer, choice, seg, stores)
    elif not stores:
        return refuse_no_flow(state, packet, service, seg)
    else:
        return drop("no_server") if service.on_no_server == "drop" else answer_no_server(state, packet, seg)
    return refuse_newcomer(state, packet, service, seg, verdict) if stores else verdict


def choose(state: State, service: Service, newcomer: Newcomer, direction: Direction, stores: bool) -> Choice:
    """Pick a server that takes the flow; arguments as of `place`."""
    return state.placement.select(
        state.view, service.plan, newcomer, lambda server: fit(state, newcomer, server, direction, stores)
    )


def fit(state: State, newcomer: Newcomer, number: int, direction: Direction, stores: bool) -> Fit:
    """
    Tell whether a server takes a flow: it is not the client itself, and no flow or direct connection of the client has
    its endpoint and this port. An entry that is over makes room, where entries may be removed: not in passing.
    """
    server = state.view.servers[number]
    if newcomer.client == server.address.packed:
        return Fit("hairpin")
    key = (server.endpoint, newcomer.client, newcomer.client_port)
    # A SYN straight to the server may be anybody's: it turns no connection away that is there.
    guarded = not newcomer.opens and server.endpoint in state.view.guarded_endpoints
    if state.direct.occupies(key, guarded, state.view.snapshot.timeouts, state.now_ns):
        return Fit("flow_conflict")
    entry = state.table.by_reply.get(key)
    # The very flow that a server's packet is matched to has its server.
    if entry is None or (direction == "reply" and entry.service == newcomer.service):
        return Fit()
    if stores and (entry.state == CLOSING or state.living(entry) is None):
        return Fit(dead=entry)
    return Fit("flow_conflict")


def may_create(service: Service, seg: Segment | None) -> bool:
    """Tell whether a client's packet may create a flow: UDP, a SYN, or mid-stream where a hash places it again."""
    if seg is None or seg.opens:
        return True
    return seg.is_mid_stream and service.plan.selector in HASH_SELECTORS


def may_pass(state: State, seg: Segment | None) -> bool:
    """
    Tell whether a segment that creates no flow may be placed by a hash: the end of a connection that began before us,
    and all of one that a full table could not store: it must be able to open and to close.
    """
    return state.table.is_full or (seg is not None and seg.ends)


def refuse_no_flow(state: State, packet: Packet, service: Service, seg: Segment | None) -> Verdict:
    """Drop a segment of no flow, or answer it by a RST, so that a client whose flow is gone learns at once."""
    if service.on_no_flow == "drop" or seg is None or not seg.has(ACK):
        return drop("no_flow")
    return answer_reset(state, packet, seg, "no_flow", "no_flow")


def reply_miss(state: State, packet: Packet, endpoint: int, seg: Segment | None) -> Verdict:
    """Take up a flow from its server's side, if a hash would have placed it on that very server."""
    key = (endpoint, packet.destination, packet.destination_port)
    guarded = endpoint in state.view.guarded_endpoints
    if state.direct.answer(key, seg, guarded, state.view.snapshot.timeouts, state.now_ns):
        return route(state, packet)
    stores = seg is None or seg.is_mid_stream
    if not stores and not may_pass(state, seg):
        return drop("no_flow")
    client, client_port = packet.destination, packet.destination_port
    for number in state.view.services_by_endpoint[endpoint]:
        service = state.view.services[number]
        if service.plan.selector not in HASH_SELECTORS:
            continue
        vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
        newcomer = Newcomer(number, client, client_port, vip, service.port, protocol)
        choice = choose(state, service, newcomer, "reply", stores)
        if choice.server is not None and state.view.servers[choice.server].endpoint == endpoint:
            packet.direction, packet.service = "reply", number
            return place(state, packet, "reply", newcomer, choice, seg, stores)
    return drop("no_flow")


def place(
    state: State,
    packet: Packet,
    direction: Direction,
    newcomer: Newcomer,
    choice: Choice,
    seg: Segment | None,
    stores: bool,
) -> Verdict:
    """
    Make the entry of a new flow and send its first packet; where there is no room, a hash selector needs no entry.

    Args:
        state: of the data path.
        packet: the first one seen of the flow.
        direction: of the packet.
        newcomer: the flow.
        choice: the server that it was given.
        seg: None for UDP.
        stores: whether an entry may be made; else the packet is placed in passing.
    """
    assert choice.server is not None
    packet.server = choice.server
    entry = new_entry(state, packet, direction, newcomer, choice.server, seg)
    if choice.dead is not None:
        remove_dead(state, choice.dead)
    if direction == "reply" and not clear_forward_key(state, entry, stores):
        return drop("flow_conflict")
    if stores and state.table.make_room(state.view.snapshot.timeouts, state.now_ns):
        # What is left there is closing, or was never answered: the flow takes its place.
        state.direct.remove(entry.reply_key)
        state.table.insert(entry)
        return send_translated(state, packet, direction, entry)
    if state.view.services[newcomer.service].plan.selector not in HASH_SELECTORS:
        return drop("table_full")
    state.counters.event("flow_stateless")
    return send_translated(state, packet, direction, entry)


def new_entry(
    state: State, packet: Packet, direction: Direction, newcomer: Newcomer, server: int, seg: Segment | None
) -> Entry:
    """Make the entry of a flow from the first packet seen of it; arguments as of `place`."""
    name = UDP_UNREPLIED if seg is None else SYN_SENT if seg.opens else PICKUP
    endpoint = state.view.servers[server].endpoint
    entry = Entry(newcomer.client, newcomer.client_port, newcomer.service, server, endpoint, name, state.now_ns)
    if seg is not None and seg.opens:
        begin(entry, seg)
        measure.begin(entry, state.now_ns)
    elif seg is not None:
        pick_up(entry, direction, seg)
    if direction == "forward":
        entry.last_hop = (packet.interface, packet.source_mac)
    entry.tagged = bool(packet.tags)
    return entry


def remove_dead(state: State, entry: Entry) -> None:
    """Remove an entry that is expired, orphaned or closing."""
    state.table.remove(entry, state.table.why_dead(entry, state.view, state.now_ns) or "flow_reused")


def clear_forward_key(state: State, entry: Entry, stores: bool) -> bool:
    """
    Make way for the forward key of a flow that a server's packet is taken for.

    Returns:
        Whether no other entry has it now. Without `stores` none is removed.
    """
    other = state.table.by_forward.get(entry.forward_key)
    if other is None:
        return True
    if not stores or (other.state != CLOSING and state.living(other) is not None):
        return False
    remove_dead(state, other)
    return True


def send_translated(state: State, packet: Packet, direction: Direction, entry: Entry) -> Verdict:
    """Count, translate and send a packet of a flow; the entry need not be in the table."""
    length = packet.total_len
    state.counters.services[entry.service].count(direction, length)
    state.counters.servers[entry.server].count(direction, length)
    entry.bytes[direction] += length
    data = outgoing(packet)
    lower_ttl(data, packet)
    if direction == "forward":
        server = state.view.servers[entry.server]
        translate(data, packet, "forward", server.address.packed, server.port)
        return deliver(state, packet, data, state.hops.to_server(entry.server), tells=True)
    service = state.view.services[entry.service]
    translate(data, packet, "reply", service.address.packed, service.port)
    return deliver(state, packet, data, state.hops.to_last_hop(entry.last_hop, packet.destination))
