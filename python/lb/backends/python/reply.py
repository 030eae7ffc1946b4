"""
Packets that the balancer answers with: ARP and neighbour answers, echo, ICMP errors and RST.

Used by every stage that answers instead of forwarding (`docs/rules.md` rule 4, ARP and neighbour discovery; rule 10,
ICMP about flows; rule 12, sending). Every byte is set here, so that no old buffer leaks. `send` decides whether an
answer may be sent, and applies the rate limit.
"""

from __future__ import annotations

from lb.backends.python.forwarding_state import ForwardingState
from lb.backends.python.next_hop import Output
from lb.packet import ethernet, icmp, ipv4, ipv6, tcp
from lb.packet.announcement import advertisement_packet
from lb.packet.arp import REPLY, Arp, arp_message
from lb.packet.parse import Packet
from lb.packet.segment import Segment

ERROR_TOS = 0xC0  # internetwork control, RFC 1812 4.3.2.5
UNSPECIFIED = bytes(16)


def frame_to_sender(
    forwarding: ForwardingState, packet: Packet, payload: bytes, ethertype: int, destination_mac: bytes | None = None
) -> Output:
    """
    Wrap a payload in a frame to the sender of a packet, through the packet's interface and with its VLAN tags.

    Args:
        forwarding: has our MAC.
        packet: the packet that is answered.
        payload: what follows the Ethernet header.
        ethertype: of the payload.
        destination_mac: 6 bytes; None: the sender of the frame.

    Returns:
        The frame.
    """
    mac = forwarding.interfaces[packet.interface].mac
    header = ethernet.ethernet_header(destination_mac or packet.source_mac, mac, ethertype, packet.tags)
    return Output(packet.interface, header + payload, None)


def arp_reply(forwarding: ForwardingState, packet: Packet, request: Arp) -> Output:
    """Answer an ARP request for a VIP."""
    mac = forwarding.interfaces[packet.interface].mac
    message = arp_message(Arp(REPLY, mac, request.target, request.sender_mac, request.sender))
    return frame_to_sender(forwarding, packet, message, ethernet.ETHERTYPE_ARP)


def advertisement(forwarding: ForwardingState, packet: Packet, vip: bytes) -> Output:
    """
    Answer a neighbour solicitation for a VIP; one without a source, a duplicate address check, is answered to all
    nodes.
    """
    mac = forwarding.interfaces[packet.interface].mac
    if packet.source == UNSPECIFIED:
        return frame_to_sender(
            forwarding,
            packet,
            advertisement_packet(vip, ipv6.ALL_NODES, mac, icmp.OVERRIDE),
            packet.ethertype,
            ethernet.ALL_NODES,
        )
    return frame_to_sender(
        forwarding, packet, advertisement_packet(vip, packet.source, mac, icmp.SOLICITED_OVERRIDE), packet.ethertype
    )


def ip_packet(source: bytes, destination: bytes, protocol: int, payload: bytes, tos: int = 0) -> bytes:
    """Build an IP packet of our own, of the family of its addresses. `tos` is for IPv4; IPv6 has class 0."""
    if len(source) == 4:
        return ipv4.ipv4_packet(source, destination, protocol, payload, tos)
    return ipv6.ipv6_packet(source, destination, protocol, payload)


def echo_reply(forwarding: ForwardingState, packet: Packet) -> Output:
    """Answer an echo request to a VIP with the bytes it brought."""
    vip, client = packet.destination, packet.source
    rest = packet.frame[packet.l4 + 4 : packet.end]
    message = icmp.icmp_message(vip, client, (icmp.ECHO_REPLY[len(vip)], 0), rest)
    return frame_to_sender(forwarding, packet, ip_packet(vip, client, packet.protocol, message), packet.ethertype)


def icmp_error(forwarding: ForwardingState, packet: Packet, source: bytes, kind: tuple[int, int], field: int) -> Output:
    """
    Build an ICMP error to the sender of a packet, which quotes the packet as received (RFC 792, RFC 1812 4.3.2, RFC
    4443 2.4).

    Args:
        forwarding: has our MAC.
        packet: the packet.
        source: our address, of the packet's family.
        kind: type and code.
        field: the 32 bits after the checksum, an MTU or 0.

    Returns:
        The frame.
    """
    family = len(source)
    headers = icmp.HEADER_BYTES + (ipv4.HEADER_BYTES if family == 4 else ipv6.HEADER_BYTES)
    quote = packet.frame[packet.l3 : packet.end][: icmp.MAX_PACKET_BYTES[family] - headers]
    message = icmp.icmp_message(source, packet.source, kind, field.to_bytes(4, "big") + quote)
    protocol = icmp.PROTOCOL[family]
    return frame_to_sender(
        forwarding, packet, ip_packet(source, packet.source, protocol, message, ERROR_TOS), packet.ethertype
    )


def tcp_reset(forwarding: ForwardingState, packet: Packet, seg: Segment) -> Output:
    """Refuse a TCP segment to a VIP with the numbers its sender expects (RFC 9293 3.10.7.1)."""
    vip, client = packet.destination, packet.source
    ports = (packet.destination_port, packet.source_port)
    seq, ack = (seg.ack, None) if seg.has(tcp.ACK) else (0, seg.end)
    payload = tcp.reset_segment(vip, client, ports, seq, ack)
    return frame_to_sender(forwarding, packet, ip_packet(vip, client, tcp.PROTOCOL, payload), packet.ethertype)
