"""
The packets we make ourselves: ARP and neighbour answers, echo, ICMP errors, RST, and the announcements at start.

Reached from any stage that answers instead of forwarding (`docs/datapath.md` rules 4, 10, 12). Every byte is set here;
nothing of an old buffer leaves the machine. Whether an answer may be sent, and the rate limit, are decided in
`pipeline`.
"""

from __future__ import annotations

from lb.backends.python.next_hop import Output
from lb.backends.python.view import View
from lb.model.snapshot import Snapshot
from lb.packet import ethernet, icmp, ipv4, ipv6, tcp
from lb.packet.arp import REPLY, REQUEST, Arp, arp_message
from lb.packet.parse import Packet
from lb.packet.segment import Segment

ERROR_TOS = 0xC0  # internetwork control, RFC 1812 4.3.2.5
UNSPECIFIED = bytes(16)


def back(view: View, packet: Packet, payload: bytes, ethertype: int, destination_mac: bytes | None = None) -> Output:
    """
    Wrap a payload in a frame to whoever sent a packet, through the interface and with the VLAN tags it came in by.

    Args:
        view: gives our MAC.
        packet: the packet that is answered.
        payload: what follows the Ethernet header.
        ethertype: of the payload.
        destination_mac: 6 bytes; None: the sender of the frame.

    Returns:
        The frame.
    """
    mac = view.interfaces[packet.interface].mac
    header = ethernet.ethernet_header(destination_mac or packet.source_mac, mac, ethertype, packet.tags)
    return Output(packet.interface, header + payload, None)


def arp_reply(view: View, packet: Packet, request: Arp) -> Output:
    """Answer an ARP request for a VIP."""
    mac = view.interfaces[packet.interface].mac
    message = arp_message(Arp(REPLY, mac, request.target, request.sender_mac, request.sender))
    return back(view, packet, message, ethernet.ETHERTYPE_ARP)


def advertisement(view: View, packet: Packet, vip: bytes) -> Output:
    """
    Answer a neighbour solicitation for a VIP; one without a source, a duplicate address check, is answered to all
    nodes.
    """
    mac = view.interfaces[packet.interface].mac
    if packet.source == UNSPECIFIED:
        return back(
            view,
            packet,
            advertisement_packet(vip, ipv6.ALL_NODES, mac, icmp.OVERRIDE),
            packet.ethertype,
            ethernet.ALL_NODES,
        )
    return back(view, packet, advertisement_packet(vip, packet.source, mac, icmp.SOLICITED_OVERRIDE), packet.ethertype)


def advertisement_packet(vip: bytes, destination: bytes, mac: bytes, flags: int) -> bytes:
    """Build the IPv6 packet of a neighbour advertisement."""
    message = icmp.neighbour_advertisement(vip, destination, mac, flags)
    return ipv6.ipv6_packet(vip, destination, icmp.PROTOCOL_V6, message, icmp.ND_HOP_LIMIT)


def ip_packet(source: bytes, destination: bytes, protocol: int, payload: bytes, tos: int = 0) -> bytes:
    """Build an IP packet of our own, of the family of its addresses. `tos` is for IPv4; IPv6 has class 0."""
    if len(source) == 4:
        return ipv4.ipv4_packet(source, destination, protocol, payload, tos)
    return ipv6.ipv6_packet(source, destination, protocol, payload)


def echo_reply(view: View, packet: Packet) -> Output:
    """Answer an echo request to a VIP with the bytes it brought."""
    vip, client = packet.destination, packet.source
    rest = packet.frame[packet.l4 + 4 : packet.end]
    message = icmp.icmp_message(vip, client, (icmp.ECHO_REPLY[len(vip)], 0), rest)
    return back(view, packet, ip_packet(vip, client, packet.protocol, message), packet.ethertype)


def icmp_error(view: View, packet: Packet, source: bytes, kind: tuple[int, int], field: int) -> Output:
    """
    Tell the sender of a packet what became of it, quoting the packet as it came in (RFC 792, RFC 1812 4.3.2, RFC 4443
    2.4).

    Args:
        view: gives our MAC.
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
    return back(view, packet, ip_packet(source, packet.source, protocol, message, ERROR_TOS), packet.ethertype)


def tcp_reset(view: View, packet: Packet, seg: Segment) -> Output:
    """Refuse a TCP segment to a VIP with the numbers its sender expects (RFC 9293 3.10.7.1)."""
    vip, client = packet.destination, packet.source
    ports = (packet.destination_port, packet.source_port)
    seq, ack = (seg.ack, None) if seg.has(tcp.ACK) else (0, seg.end)
    payload = tcp.reset_segment(vip, client, ports, seq, ack)
    return back(view, packet, ip_packet(vip, client, tcp.PROTOCOL, payload), packet.ethertype)


def frames_for_announcement(snapshot: Snapshot) -> list[tuple[int, bytes]]:
    """
    Build what tells every neighbour at start that the VIPs are at our MACs.

    Args:
        snapshot: gives the VIPs, and the interfaces; only those with `announce` are used.

    Returns:
        (interface id, frame): gratuitous ARP requests (RFC 5227 2.3) and unsolicited neighbour advertisements (RFC
        4861 7.2.6), by interface, then in order of the services.
    """
    vips = dict.fromkeys(service.address.packed for service in snapshot.services if service is not None)
    return [
        (number, announcement(vip, interface.mac))
        for number, interface in enumerate(snapshot.interfaces)
        if interface.announce
        for vip in vips
    ]


def announcement(vip: bytes, mac: bytes) -> bytes:
    """Build the frame that announces one VIP at one MAC."""
    if len(vip) == 4:
        message = arp_message(Arp(REQUEST, mac, vip, bytes(6), vip))
        return ethernet.ethernet_header(ethernet.BROADCAST, mac, ethernet.ETHERTYPE_ARP) + message
    message = advertisement_packet(vip, ipv6.ALL_NODES, mac, icmp.OVERRIDE)
    return ethernet.ethernet_header(ethernet.ALL_NODES, mac, ethernet.ETHERTYPE_IPV6) + message
