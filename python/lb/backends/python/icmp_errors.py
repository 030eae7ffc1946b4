"""
ICMP and ICMPv6: errors about flows are translated with the packet they quote, echo to a VIP is answered if configured,
the rest is sorted out.

`docs/datapath.md` rule 10. An error is how path-MTU discovery and refused ports reach the one who must know (RFC
5508): to the receiver it must look as if it were about the packet that it sent itself. Errors never touch the flow
they are about.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python import reply as make
from lb.backends.python.entry import Entry
from lb.backends.python.plan import Newcomer
from lb.backends.python.send import deliver, is_icmp_error, send_answer
from lb.backends.python.state import State, Verdict, drop
from lb.backends.python.transit import transit
from lb.backends.python.view import PROTOCOLS
from lb.model.snapshot import HASH_SELECTORS
from lb.model.verdict import Direction
from lb.packet import icmp, tcp
from lb.packet.inner import Quoted, read_quoted
from lb.packet.parse import Packet
from lb.packet.rewrite import Change, lower_ttl, outgoing, update_l4, write, write_address

TCP_CHECKSUM_END = tcp.CHECKSUM + 2


class Flow(NamedTuple):
    """The flow that an error is about: ids, and where the client's packets came from, None when that is not known."""

    service: int
    server: int
    last_hop: tuple[int, bytes] | None


def icmp_to_vip(state: State, packet: Packet) -> Verdict:
    """Handle a message to a VIP: an echo request, an error about a reply of ours, or nothing we want."""
    if not checksum_is_right(packet):
        return drop("icmp_checksum")
    family, kind = len(packet.source), packet.frame[packet.l4]
    if kind == icmp.ECHO_REQUEST[family]:
        if not state.view.snapshot.answer_echo:
            return drop("vip_echo")
        return send_answer(state, "echo", "echo", make.echo_reply(state.view, packet))
    if kind == icmp.REDIRECT[family]:
        return drop("icmp_redirect")
    if kind not in icmp.ERRORS[family]:
        return drop("icmp_type")
    quoted = read_quoted(packet)
    if quoted.reason:
        return drop(quoted.reason)
    return error_to_vip(state, packet, quoted)


def icmp_elsewhere(state: State, packet: Packet) -> Verdict:
    """Handle a message to an address that is no VIP: an error about a packet to a server, or transit."""
    family, kind = len(packet.source), packet.frame[packet.l4]
    if kind == icmp.REDIRECT[family]:
        return drop("icmp_redirect")
    if kind == icmp.ECHO_REQUEST[family] and packet.destination in state.view.servers_by_address:
        return drop("server_echo")
    if not is_icmp_error(packet):
        return transit(state, packet)
    quoted = read_quoted(packet)
    if quoted.reason:
        about_server = quoted.destination in state.view.servers_by_address
        return drop(quoted.reason) if about_server else transit(state, packet)
    endpoint = state.view.endpoints.get((quoted.destination, quoted.destination_port, quoted.protocol))
    if endpoint is None:
        return transit(state, packet)
    if not checksum_is_right(packet):
        return drop("icmp_checksum")
    return error_to_client(state, packet, quoted, endpoint)


def checksum_is_right(packet: Packet) -> bool:
    """Tell whether the message's own checksum is right."""
    return icmp.icmp_checksum(packet.source, packet.destination, packet.frame[packet.l4 : packet.end]) == 0


def error_to_vip(state: State, packet: Packet, quoted: Quoted) -> Verdict:
    """Hand an error about a packet from the VIP to the server that really sent it."""
    if quoted.source != packet.destination:
        return drop("icmp_inner")
    service = state.view.services_by_socket.get((quoted.source, quoted.source_port, quoted.protocol))
    if service is None:
        return drop("icmp_no_flow")
    flow = stored(state, state.table.by_forward.get((quoted.destination, quoted.destination_port, service)))
    flow = flow or hashed_to_vip(state, service, quoted.destination, quoted.destination_port)
    if flow is None:
        return drop("icmp_no_flow")
    mark(packet, "forward", flow)
    if packet.ttl <= 1:
        return drop("ttl_exceeded")
    server = state.view.servers[flow.server]
    data = outgoing(packet)
    write_address(data, packet.l3, "forward", server.address.packed)
    # The quote goes the other way: what the client saw come from the VIP, the server sent.
    rewrite_quoted(data, packet, quoted, "reply", server.address.packed, server.port)
    return send_error(state, packet, data, "forward", flow)


def error_to_client(state: State, packet: Packet, quoted: Quoted, endpoint: int) -> Verdict:
    """Hand an error about a packet to a server to the client that really sent it."""
    if packet.destination != quoted.source:
        return drop("icmp_inner")
    key = (endpoint, quoted.source, quoted.source_port)
    guarded = endpoint in state.view.guarded_endpoints
    if state.direct.knows(key, guarded, state.view.snapshot.timeouts, state.now_ns):
        return transit(state, packet)
    flow = stored(state, state.table.by_reply.get(key))
    flow = flow or hashed_of_endpoint(state, endpoint, quoted.source, quoted.source_port)
    if flow is None:
        return drop("icmp_no_flow")
    mark(packet, "reply", flow)
    if packet.ttl <= 1:
        return drop("ttl_exceeded")
    service = state.view.services[flow.service]
    data = outgoing(packet)
    # Also where a router behind us made it: nothing of our inside is told (RFC 5508 REQ-5c).
    write_address(data, packet.l3, "reply", service.address.packed)
    rewrite_quoted(data, packet, quoted, "forward", service.address.packed, service.port)
    return send_error(state, packet, data, "reply", flow)


def stored(state: State, entry: Entry | None) -> Flow | None:
    """Return the flow of an entry that lives."""
    entry = state.living(entry)
    return None if entry is None else Flow(entry.service, entry.server, entry.last_hop)


def hashed_to_vip(state: State, service: int, client: bytes, client_port: int) -> Flow | None:
    """
    Return the flow that a client has with a hash service, when there is no entry of it: what follows a restart must not
    lose path-MTU discovery.
    """
    server = hash_choice(state, service, client, client_port)
    if server is None or state.view.servers[server].address.packed == client:
        return None
    # Another service's flow may have these ports at the server: then this one would not have been placed there.
    other = state.table.by_reply.get((state.view.servers[server].endpoint, client, client_port))
    return Flow(service, server, None) if state.living(other) is None else None


def hashed_of_endpoint(state: State, endpoint: int, client: bytes, client_port: int) -> Flow | None:
    """
    Return the same from a server's side: that with the first hash service that would have placed the client there, and
    has no entry that says otherwise.
    """
    for service in state.view.services_by_endpoint[endpoint]:
        server = hash_choice(state, service, client, client_port)
        if server is None or state.view.servers[server].endpoint != endpoint:
            continue
        elsewhere = state.living(state.table.by_forward.get((client, client_port, service)))
        if elsewhere is None and state.view.servers[server].address.packed != client:
            return Flow(service, server, None)
    return None


def hash_choice(state: State, number: int, client: bytes, client_port: int) -> int | None:
    """Return the server that a hash gives a client's flow; None where the service's plan has no hash selector."""
    service = state.view.services[number]
    if service.plan.selector not in HASH_SELECTORS:
        return None
    vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
    newcomer = Newcomer(number, client, client_port, vip, service.port, protocol)
    return state.placement.hashed(state.view, service.plan, newcomer)


def mark(packet: Packet, direction: Direction, flow: Flow) -> None:
    """Note in a packet which flow it is about."""
    packet.direction, packet.service, packet.server = direction, flow.service, flow.server


def rewrite_quoted(
    data: bytearray, packet: Packet, quoted: Quoted, direction: Direction, address: bytes, port: int
) -> None:
    """
    Translate the quoted packet, and its checksums as far as they are there.

    Args:
        data: the frame.
        packet: the error.
        quoted: the packet in it.
        direction: of the quoted packet, opposite to the error's.
        address: what its destination (forward) or source (reply) becomes.
        port: likewise.
    """
    addresses = write_address(data, quoted.l3, direction, address)
    ports: Change = write(data, quoted.l4 + (2 if direction == "forward" else 0), port.to_bytes(2, "big"))
    if quoted.protocol != tcp.PROTOCOL or packet.end - quoted.l4 >= TCP_CHECKSUM_END:
        update_l4(data, quoted.l4, quoted.protocol, addresses, ports)


def send_error(state: State, packet: Packet, data: bytearray, direction: Direction, flow: Flow) -> Verdict:
    """Finish and send a translated error: its TTL, and its checksum anew, for it covers all that was changed."""
    state.counters.servers[flow.server].count(direction, packet.total_len)
    lower_ttl(data, packet)
    source, destination = packet.source, packet.destination
    if direction == "forward":
        destination = state.view.servers[flow.server].address.packed
    else:
        source = state.view.services[flow.service].address.packed
    data[packet.l4 + icmp.CHECKSUM : packet.l4 + icmp.CHECKSUM + 2] = b"\0\0"
    total = icmp.icmp_checksum(source, destination, bytes(data[packet.l4 :]))
    data[packet.l4 + icmp.CHECKSUM : packet.l4 + icmp.CHECKSUM + 2] = total.to_bytes(2, "big")
    if direction == "forward":
        return deliver(state, packet, data, state.hops.to_server(flow.server))
    return deliver(state, packet, data, state.hops.to_last_hop(flow.last_hop, packet.destination))
