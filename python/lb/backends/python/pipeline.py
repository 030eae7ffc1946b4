"""
The walk of a packet, from the received frame to its verdict: the stages in order, each a few lines of early exits.

    rx -> link (Ethernet, VLAN, ARP) -> network (IPv4, IPv6) -> fragment -> transport -> lookup | icmp | transit
       -> send -> tx

`docs/rules.md` has every rule; comments refer to its numbers. No stage reads a clock, a socket or the environment:
`process` gets all of that as arguments. A stage returns a verdict, or None to pass the packet to the next stage.
"""

from __future__ import annotations

from lb.backends.python import reply as make
from lb.backends.python.flow_table import EXPIRY_PER_FRAME, EXPIRY_PER_TICK
from lb.backends.python.forwarding_state import is_link_local, is_martian_destination, is_martian_source, is_multicast
from lb.backends.python.fragment import Action, DatagramKey, check_length, datagram_key, fragment_piece
from lb.backends.python.icmp_errors import icmp_elsewhere, icmp_to_vip
from lb.backends.python.lookup import forward_packet, reply_packet
from lb.backends.python.send import deliver
from lb.backends.python.tables import Tables
from lb.backends.python.transit import transit
from lb.backends.python.verdicts import PASS, Verdict, drop, hold, reply
from lb.packet import ethernet, icmp, ipv6, tcp, udp
from lb.packet.arp import REQUEST, read_arp
from lb.packet.parse import (
    Packet,
    check_offload,
    check_tiny,
    read_ethernet,
    read_ip,
    read_l4,
    read_tags,
    walk_ip,
)
from lb.packet.rewrite import lower_ttl, outgoing, write_address


def process(tables: Tables, packet: Packet, now_ns: int) -> Verdict:
    """
    Process one frame.

    Args:
        tables: of the data path; its `out` holds the frames to send afterwards.
        packet: the frame, not parsed yet; afterwards it names direction, service and server.
        now_ns: monotonic nanoseconds, never less than in the call before.

    Returns:
        The verdict; it is counted already.
    """
    tables.begin(now_ns)
    tables.counters.received(len(packet.frame))
    tables.expire(EXPIRY_PER_FRAME)
    verdict = link(tables, packet)
    tables.counters.verdict(*verdict)
    tables.count_sent()
    return verdict


def tick(tables: Tables, now_ns: int) -> None:
    """Expire and release what is due; `tables.out` holds the frames to send afterwards."""
    tables.begin(now_ns)
    tables.expire(EXPIRY_PER_TICK)
    tables.release_pending()
    tables.release_waiting()
    resume(tables)
    tables.count_sent()


def resume(tables: Tables) -> None:
    """Continue the held packets that have an answer or are past their deadline. They were counted on arrival."""
    held = tables.picker.held
    while (packet := held.next(tables.now_ns)) is not None:
        tables.counters.verdict(*link(tables, packet))
        held.answered = None


def link(tables: Tables, packet: Packet) -> Verdict:
    """Rule 3, Ethernet and VLAN: accept frames for our MAC, and pass ARP and IP on to their stages."""
    if packet.interface >= len(tables.forwarding.interfaces):
        return drop("not_for_us")
    reason = read_ethernet(packet) or judge_macs(tables, packet) or read_tags(packet)
    if reason:
        return drop(reason)
    if packet.ethertype == ethernet.ETHERTYPE_ARP:
        return arp(tables, packet)
    if packet.ethertype in (ethernet.ETHERTYPE_IPV4, ethernet.ETHERTYPE_IPV6):
        return network(tables, packet)
    return PASS


def judge_macs(tables: Tables, packet: Packet) -> str | None:
    """Check both MACs; return the drop reason (rule 3.2, source MAC, and rule 3.3, destination MAC)."""
    mac = tables.forwarding.interfaces[packet.interface].mac
    if packet.source_mac == mac:
        return "own_frame"
    if ethernet.is_group(packet.source_mac):
        return "bad_source_mac"
    if packet.destination_mac != mac and not ethernet.is_group(packet.destination_mac):
        return "not_for_us"
    return None


def arp(tables: Tables, packet: Packet) -> Verdict:
    """Rule 4, ARP and neighbour discovery: answer ARP requests for VIPs; all other ARP passes to the host."""
    at = ethernet.HEADER_BYTES + len(packet.tags)
    message = read_arp(packet.frame[at:])
    if message is None:
        return drop("bad_arp")
    if message.operation != REQUEST or not tables.forwarding.announces(packet.interface, message.target):
        return PASS
    tables.out.append(make.arp_reply(tables.forwarding, packet, message))
    return reply("arp")


def network(tables: Tables, packet: Packet) -> Verdict:
    """Rule 5, IP headers: check the IP header and its addresses."""
    reason = read_ip(packet)
    if reason:
        return drop(reason)
    verdict = neighbour_solicitation(tables, packet) or judge_addresses(tables, packet)
    if verdict is not None:
        return verdict
    reason = walk_ip(packet)
    if reason:
        return drop(reason)
    return fragment(tables, packet) if packet.is_fragment else transport(tables, packet)


def neighbour_solicitation(tables: Tables, packet: Packet) -> Verdict | None:
    """
    Rule 4, ARP and neighbour discovery: answer neighbour solicitations for IPv6 VIPs, from this link and without
    extension headers (RFC 4861).
    """
    if packet.is_v4 or packet.ttl != icmp.ND_HOP_LIMIT:
        return None
    if packet.frame[packet.l3 + ipv6.NEXT_HEADER] != icmp.PROTOCOL_V6:
        return None
    message = packet.frame[packet.l3 + ipv6.HEADER_BYTES : packet.end]
    if len(message) < icmp.SOLICITATION_BYTES or message[:2] != bytes([icmp.NEIGHBOUR_SOLICITATION, 0]):
        return None
    target = message[8:24]
    if not tables.forwarding.announces(packet.interface, target):
        return None
    if icmp.icmp_checksum(packet.source, packet.destination, message) != 0:
        return None
    tables.out.append(make.advertisement(tables.forwarding, packet, target))
    return reply("nd")


def judge_addresses(tables: Tables, packet: Packet) -> Verdict | None:
    """
    Check source and destination address; return a verdict when the packet ends here (rule 5.2, multicast and broadcast,
    to rule 5.7, spoofed servers).
    """
    forwarding, source, destination = tables.forwarding, packet.source, packet.destination
    if (
        is_multicast(destination)
        or is_link_local(destination)
        or destination in forwarding.broadcasts[packet.interface]
    ):
        return PASS
    if ethernet.is_group(packet.destination_mac):
        return drop("l2_broadcast")
    ours = source in forwarding.vips or source in forwarding.own_addresses or source in forwarding.all_broadcasts
    if ours or is_martian_source(source):
        return drop("martian_source")
    if is_martian_destination(destination):
        return drop("martian_destination")
    if destination in forwarding.own_addresses and destination not in forwarding.vips:
        return PASS
    server = forwarding.servers_by_address.get(source)
    if server is not None:
        hop = tables.hops.to_server(server)
        if hop is not None and hop.interface != packet.interface:
            return drop("spoofed_server")
    return None


def transport(tables: Tables, packet: Packet) -> Verdict:
    """
    Rule 7, L4 headers: read the L4 header of a whole packet or first fragment, and pass it to a service, a flow or
    transit.
    """
    if packet.is_icmp:
        reason = "l4_truncated" if packet.end - packet.l4 < icmp.HEADER_BYTES else None
    else:
        reason = read_l4(packet)
    reason = reason or check_offload(packet)
    if reason:
        return drop(reason)
    if packet.destination in tables.forwarding.vips:
        return to_vip(tables, packet)
    if packet.is_icmp:
        return icmp_elsewhere(tables, packet)
    endpoint = tables.forwarding.endpoints.get((packet.source, packet.source_port, packet.protocol))
    return transit(tables, packet) if endpoint is None else reply_packet(tables, packet, endpoint)


def to_vip(tables: Tables, packet: Packet) -> Verdict:
    """Rule 7.A, to a VIP: handle a packet to a VIP; none is ever routed on."""
    if packet.is_icmp:
        return icmp_to_vip(tables, packet)
    if packet.protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return drop("l4_protocol")
    service = tables.forwarding.services_by_socket.get((packet.destination, packet.destination_port, packet.protocol))
    return drop("no_service") if service is None else forward_packet(tables, packet, service)


def fragment(tables: Tables, packet: Packet) -> Verdict:
    """
    Rule 6.1, offload, to rule 6.5, tiny fragments: follow fragments of TCP and UDP to a VIP or from a server; route or
    drop the others.
    """
    if packet.is_partial or packet.gso_type:
        return drop("bad_offload")
    to_a_vip = packet.destination in tables.forwarding.vips
    if not to_a_vip and packet.source not in tables.forwarding.servers_by_address:
        return transit(tables, packet)
    if packet.fragment_protocol == icmp.PROTOCOL[len(packet.source)]:
        return drop("icmp_fragment")
    if packet.fragment_protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return drop("l4_protocol") if to_a_vip else transit(tables, packet)
    reason = check_length(packet) or check_tiny(packet)
    return drop(reason) if reason else follow_fragment(tables, packet)


def follow_fragment(tables: Tables, packet: Packet) -> Verdict:
    """
    Rule 6.6, datagram entries, to rule 6.12, complete datagrams: add a fragment to its datagram and apply what the
    first fragment decided.
    """
    key, piece = datagram_key(packet), fragment_piece(packet)
    tables.counters.verdict("drop", "fragment_timeout", tables.fragments.expire_one(key, tables.now_ns))
    if key in tables.fragments.refused:
        return drop("fragment_refused")
    datagram = tables.fragments.datagrams.get(key)
    action = None if datagram is None else datagram.action
    if action_is_void(tables, action):
        refuse(tables, key, "fragment_refused")
        return drop("fragment_refused")
    misfit = None if datagram is None else datagram.misfit(piece)
    if misfit == "fragment_overlap":
        refuse(tables, key, misfit)
    if misfit is not None:
        return drop(misfit)
    if piece.start == 0:
        verdict = first_fragment(tables, packet, key)
    elif datagram is None or action is None:
        verdict = hold_fragment(tables, packet, key)
    else:
        datagram.add(piece)
        verdict = later_fragment(tables, packet, action)
    forget_complete(tables, key)
    return verdict


def action_is_void(tables: Tables, action: Action | None) -> bool:
    """Tell whether the service or server that a first fragment was sent to has been removed since."""
    if action is None or action.direction is None:
        return False
    return action.service not in tables.forwarding.services or action.server not in tables.forwarding.servers


def hold_fragment(tables: Tables, packet: Packet, key: DatagramKey) -> Verdict:
    """Rule 6.11, held fragments: hold a later fragment until the first one comes."""
    fits = tables.fragments.make_room(key, len(packet.frame))
    if fits:
        tables.fragments.hold(key, packet, tables.now_ns)
    tables.counters.verdict("drop", "fragment_evicted", tables.fragments.take_given_up())
    return hold("fragment") if fits else drop("fragment_limit")


def forget_complete(tables: Tables, key: DatagramKey) -> None:
    """Rule 6.12, complete datagrams: forget a datagram of which every byte has passed."""
    datagram = tables.fragments.datagrams.get(key)
    if datagram is not None and datagram.action is not None and datagram.is_complete:
        tables.fragments.remove(key)


def refuse(tables: Tables, key: DatagramKey, reason: str) -> None:
    """Drop all further fragments of a datagram; count the held ones with a reason."""
    tables.counters.verdict("drop", reason, tables.fragments.refuse(key, tables.now_ns))


def first_fragment(tables: Tables, packet: Packet, key: DatagramKey) -> Verdict:
    """Rule 6.9, first fragments: handle a first fragment as a packet; its verdict decides about the other fragments."""
    verdict = transport(tables, packet)
    if verdict.name != "forward" and verdict != hold("neighbour"):
        refuse(tables, key, "fragment_refused")
        return verdict
    action = action_of(tables, packet)
    waited = tables.fragments.decide(key, packet, action, tables.now_ns)
    tables.counters.verdict("drop", "fragment_evicted", tables.fragments.take_given_up())
    for held in waited:
        tables.counters.verdict(*later_fragment(tables, held, action))
    return verdict


def action_of(tables: Tables, packet: Packet) -> Action:
    """Return the action that later fragments repeat after a first fragment that was sent on."""
    if packet.direction is None or packet.service is None or packet.server is None:
        return Action()
    if packet.direction == "forward":
        address = tables.forwarding.servers[packet.server].address.packed
        client = (packet.source, packet.source_port)
    else:
        address = tables.forwarding.services[packet.service].address.packed
        client = (packet.destination, packet.destination_port)
    endpoint = tables.forwarding.servers[packet.server].endpoint
    return Action(packet.direction, packet.service, packet.server, address, (endpoint, *client))


def later_fragment(tables: Tables, packet: Packet, action: Action) -> Verdict:
    """
    Rule 6.10, later fragments: translate and send a later fragment like the first one. It has no ports and no L4
    checksum.
    """
    if action.direction is not None:
        packet.direction, packet.service, packet.server = action.direction, action.service, action.server
    if packet.ttl <= 1:
        return drop("ttl_exceeded")
    data = outgoing(packet)
    lower_ttl(data, packet)
    if action.direction is None:
        return deliver(tables, packet, data, tables.hops.to_address(packet.destination))
    tables.counters.services[action.service].count(action.direction, packet.total_len)
    tables.counters.servers[action.server].count(action.direction, packet.total_len)
    write_address(data, packet.l3, action.direction, action.address)
    if action.direction == "forward":
        return deliver(tables, packet, data, tables.hops.to_server(action.server))
    entry = tables.living(tables.flows.by_reply.get(action.flow))
    ingress = None if entry is None else entry.ingress
    return deliver(tables, packet, data, tables.hops.reply_next_hop(ingress, packet.destination))
