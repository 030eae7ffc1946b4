"""
The life of a packet, from the frame that came in to its verdict: the stages in order, each a few lines of early exits.

    rx -> link (Ethernet, VLAN, ARP) -> network (IPv4, IPv6) -> fragment -> transport -> nat | icmp | transit
       -> send -> tx

`docs/datapath.md` says every rule; the numbers in the comments are its. No stage reads a clock, a socket or the
environment: `process` is given all of that. A stage returns a verdict and the packet is done, or None and the next
stage has it.
"""

from __future__ import annotations

from lb.backends.python import reply as make
from lb.backends.python.flow_table import EXPIRY_PER_FRAME, EXPIRY_PER_TICK
from lb.backends.python.fragment import Action, DatagramKey, check_length, datagram_key, fragment_piece
from lb.backends.python.icmp_errors import icmp_elsewhere, icmp_to_vip
from lb.backends.python.nat import forward_packet, reply_packet
from lb.backends.python.send import deliver
from lb.backends.python.state import PASS, State, Verdict, drop, hold, reply
from lb.backends.python.transit import transit
from lb.backends.python.view import is_link_local, is_martian_destination, is_martian_source, is_multicast
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


def process(state: State, packet: Packet, now_ns: int) -> Verdict:
    """
    Process one frame.

    Args:
        state: of the data path; its `out` holds the frames to send afterwards.
        packet: the frame, nothing read from it yet; afterwards it names direction, service and server.
        now_ns: monotonic nanoseconds, never less than before.

    Returns:
        The verdict, counted.
    """
    state.begin(now_ns)
    state.counters.received(len(packet.frame))
    state.expire(EXPIRY_PER_FRAME)
    verdict = link(state, packet)
    state.counters.verdict(*verdict)
    state.count_sent()
    return verdict


def tick(state: State, now_ns: int) -> None:
    """Expire and release what is due without a frame; `state.out` holds the frames to send afterwards."""
    state.begin(now_ns)
    state.expire(EXPIRY_PER_TICK)
    state.release_pending()
    state.release_waiting()
    resume(state)
    state.count_sent()


def resume(state: State) -> None:
    """Let the packets go on that waited for an answer which is there, or too late. They were counted when they came."""
    asking = state.placement.asking
    while (packet := asking.next(state.now_ns)) is not None:
        state.counters.verdict(*link(state, packet))
        asking.answered = None


def link(state: State, packet: Packet) -> Verdict:
    """Rule 3: is the frame for us, and what is in it?"""
    if packet.interface >= len(state.view.interfaces):
        return drop("not_for_us")
    reason = read_ethernet(packet) or judge_macs(state, packet) or read_tags(packet)
    if reason:
        return drop(reason)
    if packet.ethertype == ethernet.ETHERTYPE_ARP:
        return arp(state, packet)
    if packet.ethertype in (ethernet.ETHERTYPE_IPV4, ethernet.ETHERTYPE_IPV6):
        return network(state, packet)
    return PASS


def judge_macs(state: State, packet: Packet) -> str | None:
    """Rules 3.2 and 3.3."""
    mac = state.view.interfaces[packet.interface].mac
    if packet.source_mac == mac:
        return "own_frame"
    if ethernet.is_group(packet.source_mac):
        return "bad_source_mac"
    if packet.destination_mac != mac and not ethernet.is_group(packet.destination_mac):
        return "not_for_us"
    return None


def arp(state: State, packet: Packet) -> Verdict:
    """Rule 4: who has a VIP? All other ARP is the host's affair."""
    at = ethernet.HEADER_BYTES + len(packet.tags)
    message = read_arp(packet.frame[at:])
    if message is None:
        return drop("bad_arp")
    if message.operation != REQUEST or not state.view.announces(packet.interface, message.target):
        return PASS
    state.out.append(make.arp_reply(state.view, packet, message))
    return reply("arp")


def network(state: State, packet: Packet) -> Verdict:
    """Rule 5: is it an IP packet as it should be, from and to where it may be?"""
    reason = read_ip(packet)
    if reason:
        return drop(reason)
    verdict = neighbour_solicitation(state, packet) or judge_addresses(state, packet)
    if verdict is not None:
        return verdict
    reason = walk_ip(packet)
    if reason:
        return drop(reason)
    return fragment(state, packet) if packet.is_fragment else transport(state, packet)


def neighbour_solicitation(state: State, packet: Packet) -> Verdict | None:
    """Rule 4: who has an IPv6 VIP? ICMPv6 must stand directly after the header, and come from this very link."""
    if packet.is_v4 or packet.ttl != icmp.ND_HOP_LIMIT:
        return None
    if packet.frame[packet.l3 + ipv6.NEXT_HEADER] != icmp.PROTOCOL_V6:
        return None
    message = packet.frame[packet.l3 + ipv6.HEADER_BYTES : packet.end]
    if len(message) < icmp.SOLICITATION_BYTES or message[:2] != bytes([icmp.NEIGHBOUR_SOLICITATION, 0]):
        return None
    target = message[8:24]
    if not state.view.announces(packet.interface, target):
        return None
    if icmp.icmp_checksum(packet.source, packet.destination, message) != 0:
        return None
    state.out.append(make.advertisement(state.view, packet, target))
    return reply("nd")


def judge_addresses(state: State, packet: Packet) -> Verdict | None:
    """Rules 5.2 to 5.7."""
    view, source, destination = state.view, packet.source, packet.destination
    if is_multicast(destination) or is_link_local(destination) or destination in view.broadcasts[packet.interface]:
        return PASS
    if ethernet.is_group(packet.destination_mac):
        return drop("l2_broadcast")
    ours = source in view.vips or source in view.own_addresses or source in view.all_broadcasts
    if ours or is_martian_source(source):
        return drop("martian_source")
    if is_martian_destination(destination):
        return drop("martian_destination")
    if destination in view.own_addresses and destination not in view.vips:
        return PASS
    server = view.servers_by_address.get(source)
    if server is not None:
        hop = state.hops.to_server(server)
        if hop is not None and hop.interface != packet.interface:
            return drop("spoofed_server")
    return None


def transport(state: State, packet: Packet) -> Verdict:
    """Rule 7: whose packet is it? Whole packets and first fragments."""
    if packet.is_icmp:
        reason = "l4_truncated" if packet.end - packet.l4 < icmp.HEADER_BYTES else None
    else:
        reason = read_l4(packet)
    reason = reason or check_offload(packet)
    if reason:
        return drop(reason)
    if packet.destination in state.view.vips:
        return to_vip(state, packet)
    if packet.is_icmp:
        return icmp_elsewhere(state, packet)
    endpoint = state.view.endpoints.get((packet.source, packet.source_port, packet.protocol))
    return transit(state, packet) if endpoint is None else reply_packet(state, packet, endpoint)


def to_vip(state: State, packet: Packet) -> Verdict:
    """Rule 7 A: nothing that is sent to a VIP is ever routed on."""
    if packet.is_icmp:
        return icmp_to_vip(state, packet)
    if packet.protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return drop("l4_protocol")
    service = state.view.services_by_socket.get((packet.destination, packet.destination_port, packet.protocol))
    return drop("no_service") if service is None else forward_packet(state, packet, service)


def fragment(state: State, packet: Packet) -> Verdict:
    """Rules 6.1 to 6.5: which fragments are followed at all."""
    if packet.is_partial or packet.gso_type:
        return drop("bad_offload")
    to_a_vip = packet.destination in state.view.vips
    if not to_a_vip and packet.source not in state.view.servers_by_address:
        return transit(state, packet)
    if packet.fragment_protocol == icmp.PROTOCOL[len(packet.source)]:
        return drop("icmp_fragment")
    if packet.fragment_protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return drop("l4_protocol") if to_a_vip else transit(state, packet)
    reason = check_length(packet) or check_tiny(packet)
    return drop(reason) if reason else follow_fragment(state, packet)


def follow_fragment(state: State, packet: Packet) -> Verdict:
    """Rules 6.6 to 6.12: enter a fragment into its datagram, and do with it as the first one decided."""
    key, piece = datagram_key(packet), fragment_piece(packet)
    state.counters.verdict("drop", "fragment_timeout", state.fragments.expire_one(key, state.now_ns))
    if key in state.fragments.refused:
        return drop("fragment_refused")
    datagram = state.fragments.datagrams.get(key)
    action = None if datagram is None else datagram.action
    if action_is_void(state, action):
        refuse(state, key, "fragment_refused")
        return drop("fragment_refused")
    misfit = None if datagram is None else datagram.misfit(piece)
    if misfit == "fragment_overlap":
        refuse(state, key, misfit)
    if misfit is not None:
        return drop(misfit)
    if piece.start == 0:
        verdict = first_fragment(state, packet, key)
    elif datagram is None or action is None:
        verdict = hold_fragment(state, packet, key)
    else:
        datagram.add(piece)
        verdict = later_fragment(state, packet, action)
    forget_complete(state, key)
    return verdict


def action_is_void(state: State, action: Action | None) -> bool:
    """Tell whether the service or server that a first fragment was sent to has been removed since."""
    if action is None or action.direction is None:
        return False
    return action.service not in state.view.services or action.server not in state.view.servers


def hold_fragment(state: State, packet: Packet, key: DatagramKey) -> Verdict:
    """Rule 6.11: let a later fragment wait for the first."""
    fits = state.fragments.make_room(key, len(packet.frame))
    if fits:
        state.fragments.hold(key, packet, state.now_ns)
    state.counters.verdict("drop", "fragment_evicted", state.fragments.take_given_up())
    return hold("fragment") if fits else drop("fragment_limit")


def forget_complete(state: State, key: DatagramKey) -> None:
    """Rule 6.12: a datagram that has passed as a whole is done."""
    datagram = state.fragments.datagrams.get(key)
    if datagram is not None and datagram.action is not None and datagram.is_complete:
        state.fragments.remove(key)


def refuse(state: State, key: DatagramKey, reason: str) -> None:
    """Let nothing more of a datagram pass; what was held of it ends with a reason."""
    state.counters.verdict("drop", reason, state.fragments.refuse(key, state.now_ns))


def first_fragment(state: State, packet: Packet, key: DatagramKey) -> Verdict:
    """Rule 6.9: treat a first fragment as a packet, and let the others follow it or not."""
    verdict = transport(state, packet)
    if verdict.name != "forward" and verdict != hold("neighbour"):
        refuse(state, key, "fragment_refused")
        return verdict
    action = action_of(state, packet)
    waited = state.fragments.decide(key, packet, action, state.now_ns)
    state.counters.verdict("drop", "fragment_evicted", state.fragments.take_given_up())
    for held in waited:
        state.counters.verdict(*later_fragment(state, held, action))
    return verdict


def action_of(state: State, packet: Packet) -> Action:
    """Return what was done with a first fragment that has been sent on."""
    if packet.direction is None or packet.service is None or packet.server is None:
        return Action()
    if packet.direction == "forward":
        address = state.view.servers[packet.server].address.packed
        client = (packet.source, packet.source_port)
    else:
        address = state.view.services[packet.service].address.packed
        client = (packet.destination, packet.destination_port)
    endpoint = state.view.servers[packet.server].endpoint
    return Action(packet.direction, packet.service, packet.server, address, (endpoint, *client))


def later_fragment(state: State, packet: Packet, action: Action) -> Verdict:
    """Rule 6.10: send a fragment the way of the first one. It has no ports and no L4 checksum."""
    if action.direction is not None:
        packet.direction, packet.service, packet.server = action.direction, action.service, action.server
    if packet.ttl <= 1:
        return drop("ttl_exceeded")
    data = outgoing(packet)
    lower_ttl(data, packet)
    if action.direction is None:
        return deliver(state, packet, data, state.hops.to_address(packet.destination))
    state.counters.services[action.service].count(action.direction, packet.total_len)
    state.counters.servers[action.server].count(action.direction, packet.total_len)
    write_address(data, packet.l3, action.direction, action.address)
    if action.direction == "forward":
        return deliver(state, packet, data, state.hops.to_server(action.server))
    entry = state.living(state.table.by_reply.get(action.flow))
    last_hop = None if entry is None else entry.last_hop
    return deliver(state, packet, data, state.hops.to_last_hop(last_hop, packet.destination))
