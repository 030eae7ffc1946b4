"""
Packets of no known flow: may this one create a flow, which server takes it, and is there room for its entry?

Stage "miss: plan -> server" of the walk (`docs/rules.md` rule 8, flows). The server is picked by `picker`; without an
entry a packet is placed only where a hash selector gives all packets of its flow the same server (*stateless*).
"""

from __future__ import annotations

from lb.backends.python import measure
from lb.backends.python.connection import begin, pick_up
from lb.backends.python.elsewhere import of_endpoint
from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import CLOSING, ONE_WAY, PICKUP, SYN_SENT, UDP_UNREPLIED
from lb.backends.python.hit import send_translated
from lb.backends.python.picker import Choice, Fit, NewFlow
from lb.backends.python.send import answer_no_server, answer_reset, refuse_new_flow
from lb.backends.python.tables import Tables
from lb.backends.python.transit import route
from lb.backends.python.verdicts import Verdict, drop, hold
from lb.model.snapshot import HASH_SELECTORS, NewFlowLimit, Service
from lb.model.verdict import Direction
from lb.packet.parse import Packet
from lb.packet.protocols import PROTOCOLS
from lb.packet.segment import Segment
from lb.packet.tcp import ACK


def forward_miss(tables: Tables, packet: Packet, number: int, seg: Segment | None) -> Verdict:
    """Place the flow of a client's packet, if this packet may create one and its source has not begun too many."""
    service = tables.forwarding.services[number]
    if service.new_flow_limit is not None and not may_begin(tables, packet, number, service.new_flow_limit, seg):
        return drop("new_flow_limit")
    return place_forward(tables, packet, number, seg)


def may_begin(tables: Tables, packet: Packet, number: int, limit: NewFlowLimit, seg: Segment | None) -> bool:
    """Tell whether the source of a client's packet has not begun too many flows (rule 8.22, limits of new flows)."""
    # What waited for a policy's answer had its token when it came.
    if not may_create(tables.forwarding.services[number], seg) or tables.picker.held.answered is not None:
        return True
    return tables.new_flows.take(number, packet.source, limit, tables.now_ns)


def place_forward(tables: Tables, packet: Packet, number: int, seg: Segment | None) -> Verdict:
    """Place the flow of a client's packet, if this packet may create one; else refuse it."""
    service = tables.forwarding.services[number]
    stores = may_create(service, seg)
    if not stores and not (service.plan.selector in HASH_SELECTORS and may_pass(tables, seg)):
        return refuse_no_flow(tables, packet, service, seg)
    source, destination = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
    new_flow = NewFlow(number, *source, *destination, packet.protocol, seg is not None and seg.opens)
    held = tables.picker.held
    held.begin(not packet.is_fragment)
    choice = choose(tables, service, new_flow, "forward", stores)
    if held.wait is not None:
        held.hold((number, packet.source, packet.source_port), packet)
        return hold("ask")
    if choice.refused is not None:
        packet.server, reason = choice.refused
        verdict = drop(reason)
    elif choice.server is not None:
        verdict = place(tables, packet, "forward", new_flow, choice, seg, stores)
    elif not stores:
        return refuse_no_flow(tables, packet, service, seg)
    else:
        return drop("no_server") if service.on_no_server == "drop" else answer_no_server(tables, packet, seg)
    return refuse_new_flow(tables, packet, service, seg, verdict) if stores else verdict


def choose(tables: Tables, service: Service, new_flow: NewFlow, direction: Direction, stores: bool) -> Choice:
    """Pick a server that takes the flow; arguments as of `place`."""
    return tables.picker.select(
        tables.forwarding, service.plan, new_flow, lambda server: fit(tables, new_flow, server, direction, stores)
    )


def fit(tables: Tables, new_flow: NewFlow, number: int, direction: Direction, stores: bool) -> Fit:
    """
    Tell whether a server can take a flow: it is not the client itself, and no flow or direct connection of the client
    uses this endpoint and port. An entry that is over is replaced, unless the flow is placed stateless.
    """
    server = tables.forwarding.servers[number]
    if new_flow.client == server.address.packed:
        return Fit("hairpin")
    key = (server.endpoint, new_flow.client, new_flow.client_port)
    # The SYN of a direct connection may be forged: it must not displace an existing connection.
    guarded = not new_flow.opens and server.endpoint in tables.forwarding.guarded_endpoints
    if tables.direct.occupies(key, guarded, tables.forwarding.snapshot.timeouts, tables.now_ns):
        return Fit("flow_conflict")
    entry = tables.flows.by_reply.get(key)
    # A server's packet of this very flow: no conflict.
    if entry is None or (direction == "reply" and entry.service == new_flow.service):
        return Fit()
    if stores and (entry.is_over(tables.forwarding.snapshot.any_replies) or tables.living(entry) is None):
        return Fit(dead=entry)
    return Fit("flow_conflict")


def may_create(service: Service, seg: Segment | None) -> bool:
    """Tell whether a client's packet may create a flow: UDP, a SYN, or a pickup where a hash selector places it."""
    if seg is None or seg.opens:
        return True
    return seg.can_pick_up and service.plan.selector in HASH_SELECTORS


def may_pass(tables: Tables, seg: Segment | None) -> bool:
    """
    Tell whether a segment that creates no flow may be placed stateless: a FIN or RST of a connection that began before
    the balancer, and every segment while the table is full, so that connections can still open and close.
    """
    return tables.flows.is_full or (seg is not None and seg.ends)


def refuse_no_flow(tables: Tables, packet: Packet, service: Service, seg: Segment | None) -> Verdict:
    """Drop a segment of no flow, or answer it by a RST, so that a client whose flow is gone gives up at once."""
    if service.on_no_flow == "drop" or seg is None or not seg.has(ACK):
        return drop("no_flow")
    return answer_reset(tables, packet, seg, "no_flow", "no_flow")


def reply_miss(tables: Tables, packet: Packet, endpoint: int, seg: Segment | None) -> Verdict:
    """Pick up a flow from a server's packet, if a hash selector would have placed it on that server."""
    key = (endpoint, packet.destination, packet.destination_port)
    guarded = endpoint in tables.forwarding.guarded_endpoints
    if tables.direct.answer(key, seg, guarded, tables.forwarding.snapshot.timeouts, tables.now_ns):
        return route(tables, packet)
    if tables.forwarding.snapshot.any_replies:
        return pass_reply(tables, packet, endpoint, seg)
    stores = seg is None or seg.can_pick_up
    if not stores and not may_pass(tables, seg):
        return drop("no_flow")
    client, client_port = packet.destination, packet.destination_port
    for number in tables.forwarding.services_by_endpoint[endpoint]:
        service = tables.forwarding.services[number]
        if service.plan.selector not in HASH_SELECTORS:
            continue
        vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
        new_flow = NewFlow(number, client, client_port, vip, service.port, protocol)
        choice = choose(tables, service, new_flow, "reply", stores)
        if choice.server is not None and tables.forwarding.servers[choice.server].endpoint == endpoint:
            packet.direction, packet.service = "reply", number
            return place(tables, packet, "reply", new_flow, choice, seg, stores)
    return drop("no_flow")


def pass_reply(tables: Tables, packet: Packet, endpoint: int, seg: Segment | None) -> Verdict:
    """
    Translate a server's packet of no flow here as its endpoint says: another balancer may have the flow. It leaves no
    entry: the client's packets may never come to us.
    """
    if seg is not None and seg.opens:
        return drop("no_flow")
    client, client_port = packet.destination, packet.destination_port
    flow = of_endpoint(tables, endpoint, client, client_port)
    if flow is None:
        return drop("no_flow")
    packet.direction, packet.service, packet.server = "reply", flow.service, flow.server
    tables.counters.event("reply_stateless")
    entry = Entry(client, client_port, flow.service, flow.server, endpoint, ONE_WAY, tables.now_ns)
    return send_translated(tables, packet, "reply", entry)


def place(
    tables: Tables,
    packet: Packet,
    direction: Direction,
    new_flow: NewFlow,
    choice: Choice,
    seg: Segment | None,
    stores: bool,
) -> Verdict:
    """
    Store the entry of a new flow and send its first packet; without room, a flow of a hash selector passes stateless.

    Args:
        tables: of the data path.
        packet: the first packet seen of the flow.
        direction: of the packet.
        new_flow: the flow.
        choice: the server that it was given.
        seg: None for UDP.
        stores: whether an entry may be stored; else the packet is placed stateless.
    """
    assert choice.server is not None
    packet.server = choice.server
    entry = new_entry(tables, packet, direction, new_flow, choice.server, seg)
    if choice.dead is not None:
        remove_dead(tables, choice.dead)
    if direction == "reply" and not clear_forward_key(tables, entry, stores):
        return drop("flow_conflict")
    if stores and tables.flows.make_room(tables.forwarding.snapshot.timeouts, tables.now_ns):
        # A direct connection left with this key is closing or unanswered: the flow replaces it.
        tables.direct.remove(entry.reply_key)
        tables.flows.insert(entry)
        return send_translated(tables, packet, direction, entry)
    if tables.forwarding.services[new_flow.service].plan.selector not in HASH_SELECTORS:
        return drop("table_full")
    tables.counters.event("flow_stateless")
    return send_translated(tables, packet, direction, entry)


def new_entry(
    tables: Tables, packet: Packet, direction: Direction, new_flow: NewFlow, server: int, seg: Segment | None
) -> Entry:
    """Return the entry of a flow, made from the first packet seen of it; arguments as of `place`."""
    name = UDP_UNREPLIED if seg is None else SYN_SENT if seg.opens else PICKUP
    endpoint = tables.forwarding.servers[server].endpoint
    entry = Entry(new_flow.client, new_flow.client_port, new_flow.service, server, endpoint, name, tables.now_ns)
    if seg is not None and seg.opens:
        begin(entry, seg)
        measure.begin(entry, tables.now_ns)
    elif seg is not None:
        pick_up(entry, direction, seg)
    if direction == "forward":
        entry.ingress = (packet.interface, packet.source_mac)
    entry.tagged = bool(packet.tags)
    return entry


def remove_dead(tables: Tables, entry: Entry) -> None:
    """Remove an entry that is expired, orphaned or closing."""
    tables.flows.remove(entry, tables.flows.why_dead(entry, tables.forwarding, tables.now_ns) or "flow_reused")


def clear_forward_key(tables: Tables, entry: Entry, stores: bool) -> bool:
    """
    Remove an expired or closing entry that has the forward key of a flow to be picked up.

    Returns:
        Whether the key is free now. Without `stores` nothing is removed.
    """
    other = tables.flows.by_forward.get(entry.forward_key)
    if other is None:
        return True
    if not stores or (other.state != CLOSING and tables.living(other) is not None):
        return False
    remove_dead(tables, other)
    return True
