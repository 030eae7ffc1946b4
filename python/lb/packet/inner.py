"""
The inner packet, which an ICMP error quotes: its IP header and at least 8 bytes of its payload (RFC 792, RFC 4443 3).

Part of rule 10, ICMP about flows, of `docs/rules.md`. Offsets count from the start of the frame that carries the
error.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.packet import icmp, ipv4, ipv6, tcp, udp
from lb.packet.checksum import checksum
from lb.packet.parse import ExtensionWalk, Packet

L4_BYTES = 8


class InnerPacket(NamedTuple):
    """
    The fields of an inner packet.

    Args:
        reason: why it cannot be used, a drop reason; None: it is TCP or UDP and all fields are set.
        l3, l4: offsets in the frame.
        source, destination: 4 or 16 bytes; empty when the header is not there.
        protocol, source_port, destination_port: of TCP or UDP.
    """

    reason: str | None
    l3: int = 0
    l4: int = 0
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0


def read_inner(packet: Packet) -> InnerPacket:
    """Read the inner packet of an ICMP error; the caller has checked that the ICMP header is complete."""
    at = packet.l4 + icmp.HEADER_BYTES
    version, layer = (4, ipv4) if packet.is_v4 else (6, ipv6)
    if packet.end - at < layer.HEADER_BYTES:
        return InnerPacket("icmp_inner")
    family = len(packet.source)
    found = InnerPacket(
        None,
        l3=at,
        source=packet.frame[at + layer.SOURCE : at + layer.SOURCE + family],
        destination=packet.frame[at + layer.DESTINATION : at + layer.DESTINATION + family],
    )
    carried = walk_inner_v4(packet, at) if packet.is_v4 else walk_inner_v6(packet, at)
    if carried is None or packet.frame[at] >> 4 != version:
        return found._replace(reason="icmp_inner")
    return read_inner_l4(packet, found._replace(protocol=carried[0], l4=carried[1]))


def walk_inner_v4(packet: Packet, at: int) -> tuple[int, int] | None:
    """
    Check an inner IPv4 header; return the protocol and the offset of its payload, None when it is malformed or of a
    later fragment.
    """
    header_len = (packet.frame[at] & 0xF) * 4
    if header_len < ipv4.HEADER_BYTES or at + header_len > packet.end:
        return None
    if checksum(packet.frame[at : at + header_len]) != 0:
        return None
    if packet.word(at + ipv4.FLAGS_OFFSET) & ipv4.OFFSET_MASK:
        return None
    return packet.frame[at + ipv4.PROTOCOL], at + header_len


def walk_inner_v6(packet: Packet, at: int) -> tuple[int, int] | None:
    """Check an inner IPv6 header with its extension headers, likewise."""
    walk = ExtensionWalk(packet.frame, at + ipv6.HEADER_BYTES, packet.end)
    if walk.run(packet.frame[at + ipv6.NEXT_HEADER]):
        return None
    if walk.fragment is not None and packet.word(walk.fragment + 2) & 0xFFF8:
        return None
    return walk.protocol, walk.at


def read_inner_l4(packet: Packet, found: InnerPacket) -> InnerPacket:
    """Read the ports of the inner TCP or UDP header, or say why there are none."""
    available = packet.end - found.l4
    family = len(found.source)
    if found.protocol == icmp.PROTOCOL[family]:
        kind = packet.frame[found.l4] if available > 0 else None
        is_error = kind in icmp.ERRORS[family] or kind == icmp.REDIRECT[family]
        return found._replace(reason="icmp_about_icmp" if is_error else "icmp_no_flow")
    if found.protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return found._replace(reason="icmp_no_flow")
    if available < L4_BYTES:
        return found._replace(reason="icmp_inner")
    return found._replace(source_port=packet.word(found.l4), destination_port=packet.word(found.l4 + 2))
