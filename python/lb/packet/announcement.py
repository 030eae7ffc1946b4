"""
Frames that announce the VIPs at our MACs: gratuitous ARP and unsolicited neighbour advertisements.

The daemon sends them at start and after a change; neighbours then need not ask (`docs/rules.md` rule 4, ARP and
neighbour discovery).
"""

from __future__ import annotations

from lb.model.snapshot import Snapshot
from lb.packet import ethernet, icmp, ipv6
from lb.packet.arp import REQUEST, Arp, arp_message


def frames_for_announcement(snapshot: Snapshot) -> list[tuple[int, bytes]]:
    """
    Build the frames that announce the VIPs at our MACs to all neighbours.

    Args:
        snapshot: has the VIPs and the interfaces; only those with `announce` are used.

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


def advertisement_packet(vip: bytes, destination: bytes, mac: bytes, flags: int) -> bytes:
    """Build the IPv6 packet of a neighbour advertisement."""
    message = icmp.neighbour_advertisement(vip, destination, mac, flags)
    return ipv6.ipv6_packet(vip, destination, icmp.PROTOCOL_V6, message, icmp.ND_HOP_LIMIT)
