"""
ICMP and ICMPv6: errors about flows are translated together with their inner packet, echo requests to a VIP are
answered if configured, anything else is dropped or routed.

`docs/rules.md` rule 10, ICMP about flows. Path-MTU discovery and refused ports depend on these errors (RFC 5508): the
receiver must find the packet that it sent itself in them. An error never changes the flow it is about.
"""

from __future__ import annotations

from lb.backends.python import reply as make
from lb.backends.python.elsewhere import MatchedFlow, hashed_to_vip, of_endpoint, stored
from lb.backends.python.send import deliver, is_icmp_error, send_answer
from lb.backends.python.tables import Tables
from lb.backends.python.transit import transit
from lb.backends.python.verdicts import Verdict, drop
from lb.model.verdict import Direction
from lb.packet import icmp, tcp
from lb.packet.inner import InnerPacket, read_inner
from lb.packet.parse import Packet
from lb.packet.rewrite import Change, lower_ttl, outgoing, update_l4, write, write_address

TCP_CHECKSUM_END = tcp.CHECKSUM + 2
OPPOSITE: dict[Direction, Direction] = {"forward": "reply", "reply": "forward"}


def icmp_to_vip(tables: Tables, packet: Packet) -> Verdict:
    """Handle a message to a VIP: an echo request, an error about a reply of a service, or neither."""
    if not checksum_is_right(packet):
        return drop("icmp_checksum")
    family, kind = len(packet.source), packet.frame[packet.l4]
    if kind == icmp.ECHO_REQUEST[family]:
        if not tables.forwarding.snapshot.answer_echo:
            return drop("vip_echo")
        return send_answer(tables, "echo", "echo", make.echo_reply(tables.forwarding, packet))
    if kind == icmp.REDIRECT[family]:
        return drop("icmp_redirect")
    if kind not in icmp.ERRORS[family]:
        return drop("icmp_type")
    inner = read_inner(packet)
    if inner.reason:
        return drop(inner.reason)
    return error_to_vip(tables, packet, inner)


def icmp_elsewhere(tables: Tables, packet: Packet) -> Verdict:
    """Handle a message to an address that is no VIP: an error about a packet to a server, or transit."""
    family, kind = len(packet.source), packet.frame[packet.l4]
    if kind == icmp.REDIRECT[family]:
        return drop("icmp_redirect")
    if kind == icmp.ECHO_REQUEST[family] and packet.destination in tables.forwarding.servers_by_address:
        return drop("server_echo")
    if not is_icmp_error(packet):
        return transit(tables, packet)
    inner = read_inner(packet)
    if inner.reason:
        about_server = inner.destination in tables.forwarding.servers_by_address
        return drop(inner.reason) if about_server else transit(tables, packet)
    endpoint = tables.forwarding.endpoints.get((inner.destination, inner.destination_port, inner.protocol))
    if endpoint is None:
        return transit(tables, packet)
    if not checksum_is_right(packet):
        return drop("icmp_checksum")
    return error_to_client(tables, packet, inner, endpoint)


def checksum_is_right(packet: Packet) -> bool:
    """Tell whether the message's own checksum is right."""
    return icmp.icmp_checksum(packet.source, packet.destination, packet.frame[packet.l4 : packet.end]) == 0


def error_to_vip(tables: Tables, packet: Packet, inner: InnerPacket) -> Verdict:
    """Pass an error about a packet from the VIP to the server that sent that packet."""
    if inner.source != packet.destination:
        return drop("icmp_inner")
    service = tables.forwarding.services_by_socket.get((inner.source, inner.source_port, inner.protocol))
    if service is None:
        return drop("icmp_no_flow")
    flow = stored(tables, tables.flows.by_forward.get((inner.destination, inner.destination_port, service)))
    flow = flow or hashed_to_vip(tables, service, inner.destination, inner.destination_port)
    if flow is None:
        return drop("icmp_no_flow")
    # The inner packet has the opposite direction: the client saw it come from the VIP, the server sent it.
    return translate_error(tables, packet, inner, "forward", flow)


def error_to_client(tables: Tables, packet: Packet, inner: InnerPacket, endpoint: int) -> Verdict:
    """Pass an error about a packet to a server to the client that sent that packet."""
    if packet.destination != inner.source:
        return drop("icmp_inner")
    key = (endpoint, inner.source, inner.source_port)
    guarded = endpoint in tables.forwarding.guarded_endpoints
    if tables.direct.knows(key, guarded, tables.forwarding.snapshot.timeouts, tables.now_ns):
        return transit(tables, packet)
    flow = stored(tables, tables.flows.by_reply.get(key))
    flow = flow or of_endpoint(tables, endpoint, inner.source, inner.source_port)
    if flow is None:
        return drop("icmp_no_flow")
    # Also when a router behind the balancer made it: inside addresses are not revealed (RFC 5508 REQ-5c).
    return translate_error(tables, packet, inner, "reply", flow)


def mark(packet: Packet, direction: Direction, flow: MatchedFlow) -> None:
    """Set direction, service and server of a packet to those of a flow."""
    packet.direction, packet.service, packet.server = direction, flow.service, flow.server


def rewrite_inner(
    data: bytearray, packet: Packet, inner: InnerPacket, direction: Direction, address: bytes, port: int
) -> None:
    """
    Translate the inner packet, and its checksums as far as the error quotes them.

    Args:
        data: the frame.
        packet: the error.
        inner: what was read of the inner packet.
        direction: of the inner packet, opposite to the error's.
        address: what its destination (forward) or source (reply) becomes.
        port: likewise.
    """
    addresses = write_address(data, inner.l3, direction, address)
    ports: Change = write(data, inner.l4 + (2 if direction == "forward" else 0), port.to_bytes(2, "big"))
    if inner.protocol != tcp.PROTOCOL or packet.end - inner.l4 >= TCP_CHECKSUM_END:
        update_l4(data, inner.l4, inner.protocol, addresses, ports)


def translate_error(
    tables: Tables, packet: Packet, inner: InnerPacket, direction: Direction, flow: MatchedFlow
) -> Verdict:
    """Translate an error of a flow and its inner packet, which has the opposite direction, and send it."""
    mark(packet, direction, flow)
    if packet.ttl <= 1:
        return drop("ttl_exceeded")
    server, service = tables.forwarding.servers[flow.server], tables.forwarding.services[flow.service]
    end = server if direction == "forward" else service
    data = outgoing(packet)
    write_address(data, packet.l3, direction, end.address.packed)
    rewrite_inner(data, packet, inner, OPPOSITE[direction], end.address.packed, end.port)
    return send_translated_error(tables, packet, data, direction, flow)


def send_translated_error(
    tables: Tables, packet: Packet, data: bytearray, direction: Direction, flow: MatchedFlow
) -> Verdict:
    """Lower the TTL of a translated error, compute its checksum, which covers every change, and send it."""
    tables.counters.servers[flow.server].count(direction, packet.total_len)
    lower_ttl(data, packet)
    source, destination = packet.source, packet.destination
    if direction == "forward":
        destination = tables.forwarding.servers[flow.server].address.packed
    else:
        source = tables.forwarding.services[flow.service].address.packed
    data[packet.l4 + icmp.CHECKSUM : packet.l4 + icmp.CHECKSUM + 2] = b"\0\0"
    total = icmp.icmp_checksum(source, destination, bytes(data[packet.l4 :]))
    data[packet.l4 + icmp.CHECKSUM : packet.l4 + icmp.CHECKSUM + 2] = total.to_bytes(2, "big")
    if direction == "forward":
        return deliver(tables, packet, data, tables.hops.to_server(flow.server))
    return deliver(tables, packet, data, tables.hops.reply_next_hop(flow.ingress, packet.destination))
