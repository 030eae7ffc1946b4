"""
From the bytes of a frame to its headers, one layer at a time; every layer returns a drop reason, or None to continue.

Second stage of the walk (`rx -> parse -> classify`). `parse` runs all layers and is exposed as a primitive; the
pipeline calls the same layers one by one, because rules that need the snapshot stand between them (`docs/rules.md`
rule 3, Ethernet and VLAN; rule 5, IP headers; rule 6, fragments; rule 7, L4 headers). RFC 1812 5.2.2 for IPv4, RFC
8200 4 for IPv6. L4 checksums are left alone: a wrong one travels on, wrong.
"""

from __future__ import annotations

from lb.model.verdict import Direction
from lb.packet import ethernet, icmp, ipv4, ipv6, tcp, udp
from lb.packet.checksum import checksum
from lb.packet.headers import Headers
from lb.packet.offload import Offload

NEEDS_CSUM = 1
GSO_TYPES = 0x7F  # bit 7 only says that ECN is in use
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
NO_OFFLOAD = Offload()


class Packet:
    """
    One frame on its way: what was read from it, then what was found out about it.

    Offsets count from the start of the frame. `end` is where the IP packet ends; what follows is padding. Fields are
    0, empty or None until their layer was read.

    Args:
        frame: the whole Ethernet frame; never changed.
        interface: id of the interface it came in by.
        offload: what its sender left to the network card.
    """

    __slots__ = (
        "destination",
        "destination_port",
        "direction",
        "end",
        "ethertype",
        "fragment_data",
        "fragment_header",
        "fragment_id",
        "fragment_offset",
        "fragment_protocol",
        "frame",
        "interface",
        "l3",
        "l4",
        "more_fragments",
        "offload",
        "payload",
        "protocol",
        "server",
        "service",
        "source",
        "source_port",
        "tcp_flags",
        "ttl",
        "vlans",
    )

    def __init__(self, frame: bytes, interface: int = 0, offload: Offload | None = None) -> None:
        self.frame = frame
        self.interface = interface
        self.offload = offload or NO_OFFLOAD
        self.ethertype = 0
        self.vlans: tuple[int, ...] = ()
        self.l3 = 0
        self.l4 = 0
        self.payload = 0
        self.end = 0
        self.source = b""
        self.destination = b""
        self.ttl = 0
        self.protocol = 0
        # Of a fragment: its identification, the protocol all its fragments name, and where its data begins.
        self.fragment_header = False
        self.fragment_offset = 0
        self.more_fragments = False
        self.fragment_id = 0
        self.fragment_protocol = 0
        self.fragment_data = 0
        self.source_port = 0
        self.destination_port = 0
        self.tcp_flags = 0
        # Set by the pipeline, told in the result. Ids.
        self.direction: Direction | None = None
        self.service: int | None = None
        self.server: int | None = None

    @property
    def destination_mac(self) -> bytes:
        """The first six bytes."""
        return self.frame[0:6]

    @property
    def source_mac(self) -> bytes:
        """The next six bytes."""
        return self.frame[6:12]

    @property
    def tags(self) -> bytes:
        """The VLAN tags as they stand in the frame."""
        return self.frame[12 : 12 + ethernet.TAG_BYTES * len(self.vlans)]

    @property
    def is_v4(self) -> bool:
        """Whether it is IPv4; else IPv6."""
        return self.ethertype == ethernet.ETHERTYPE_IPV4

    @property
    def is_fragment(self) -> bool:
        """Whether it is a part of a datagram; a fragment header alone does not make it one (RFC 6946)."""
        return self.more_fragments or self.fragment_offset > 0

    @property
    def is_tcp(self) -> bool:
        """Whether its protocol is TCP."""
        return self.protocol == tcp.PROTOCOL

    @property
    def is_udp(self) -> bool:
        """Whether its protocol is UDP."""
        return self.protocol == udp.PROTOCOL

    @property
    def is_icmp(self) -> bool:
        """Whether its protocol is the ICMP of its family."""
        return self.protocol == icmp.PROTOCOL[len(self.source)]

    @property
    def total_len(self) -> int:
        """Bytes of the IP packet."""
        return self.end - self.l3

    @property
    def is_partial(self) -> bool:
        """Whether the checksum field holds the pseudo-header sum alone (CHECKSUM_PARTIAL)."""
        return bool(self.offload.flags & NEEDS_CSUM)

    @property
    def gso_type(self) -> int:
        """How the network card is to cut it; 0: not at all."""
        return self.offload.gso_type & GSO_TYPES

    def word(self, at: int) -> int:
        """Return the 16 bits at an offset of the frame."""
        return int.from_bytes(self.frame[at : at + 2], "big")

    def long(self, at: int) -> int:
        """Return the 32 bits at an offset of the frame."""
        return int.from_bytes(self.frame[at : at + 4], "big")


def parse(frame: bytes) -> Headers:
    """
    Read the headers of one frame, without offload and without any snapshot.

    Args:
        frame: a whole Ethernet frame, any bytes.

    Returns:
        The headers, up to the first malformed one; `docs/rules.md` rule 14, the primitive parse.
    """
    packet = Packet(bytes(frame))
    reason = read_headers(packet)
    return Headers(
        reason=reason,
        ethertype=packet.ethertype,
        vlans=packet.vlans,
        l3_offset=packet.l3,
        l4_offset=packet.l4,
        payload_offset=packet.payload,
        source=packet.source,
        destination=packet.destination,
        protocol=packet.protocol,
        ttl=packet.ttl,
        source_port=packet.source_port,
        destination_port=packet.destination_port,
        tcp_flags=packet.tcp_flags,
        fragment_offset=packet.fragment_offset,
        more_fragments=packet.more_fragments,
        total_len=packet.total_len,
    )


def read_headers(packet: Packet) -> str | None:
    """Read every layer of a packet; return the drop reason of the first malformed one."""
    reason = read_ethernet(packet) or read_tags(packet)
    if reason or packet.ethertype not in (ethernet.ETHERTYPE_IPV4, ethernet.ETHERTYPE_IPV6):
        return reason
    reason = read_ip(packet) or walk_ip(packet)
    if not reason and packet.is_fragment:
        reason = check_tiny(packet)
    if reason or packet.fragment_offset:
        return reason
    return read_l4(packet)


def read_ethernet(packet: Packet) -> str | None:
    """Check that the Ethernet header is complete: `frame_truncated`."""
    return "frame_truncated" if len(packet.frame) < ethernet.HEADER_BYTES else None


def read_tags(packet: Packet) -> str | None:
    """Read the VLAN tags and the EtherType behind them: `frame_truncated`, `vlan_depth`."""
    at = 12
    while (ethertype := packet.word(at)) in ethernet.ETHERTYPES_VLAN:
        if len(packet.vlans) == ethernet.MAX_TAGS:
            return "vlan_depth"
        if len(packet.frame) < at + ethernet.TAG_BYTES + 2:
            return "frame_truncated"
        packet.vlans += (packet.word(at + 2),)
        at += ethernet.TAG_BYTES
    packet.ethertype = ethertype
    return None


def network_offset(packet: Packet) -> int:
    """Return where the bytes after Ethernet and its tags begin."""
    return ethernet.HEADER_BYTES + ethernet.TAG_BYTES * len(packet.vlans)


def read_ip(packet: Packet) -> str | None:
    """Read the fixed IP header: the validity conditions of rule 5, IP headers."""
    return read_ipv4(packet) if packet.is_v4 else read_ipv6(packet)


def read_ipv4(packet: Packet) -> str | None:
    """Read an IPv4 header without its options (RFC 1812 5.2.2)."""
    frame, at = packet.frame, network_offset(packet)
    available = len(frame) - at
    if available < ipv4.HEADER_BYTES:
        return "ip_truncated"
    if frame[at] >> 4 != 4:
        return "ip_version"
    header_len = (frame[at] & 0xF) * 4
    if header_len < ipv4.HEADER_BYTES:
        return "ip_header_length"
    if header_len > available:
        return "ip_truncated"
    if checksum(frame[at : at + header_len]) != 0:
        return "ip_checksum"
    total_len = packet.word(at + ipv4.TOTAL_LENGTH)
    if total_len < header_len:
        return "ip_total_length"
    if total_len > available:
        return "ip_truncated"
    packet.l3, packet.end = at, at + total_len
    packet.source = frame[at + ipv4.SOURCE : at + ipv4.SOURCE + 4]
    packet.destination = frame[at + ipv4.DESTINATION : at + ipv4.DESTINATION + 4]
    packet.ttl = frame[at + ipv4.TTL]
    return None


def read_ipv6(packet: Packet) -> str | None:
    """Read an IPv6 fixed header."""
    frame, at = packet.frame, network_offset(packet)
    available = len(frame) - at
    if available < ipv6.HEADER_BYTES:
        return "ip_truncated"
    if frame[at] >> 4 != 6:
        return "ip_version"
    total_len = ipv6.HEADER_BYTES + packet.word(at + ipv6.PAYLOAD_LENGTH)
    if total_len > available:
        return "ip_truncated"
    packet.l3, packet.end = at, at + total_len
    packet.source = frame[at + ipv6.SOURCE : at + ipv6.SOURCE + 16]
    packet.destination = frame[at + ipv6.DESTINATION : at + ipv6.DESTINATION + 16]
    packet.ttl = frame[at + ipv6.HOP_LIMIT]
    return None


def walk_ip(packet: Packet) -> str | None:
    """Walk from the fixed IP header to what it carries: rule 5.8, options and extension headers."""
    return walk_options(packet) if packet.is_v4 else walk_extensions(packet)


def walk_options(packet: Packet) -> str | None:
    """Judge the options of an IPv4 header one by one, then read where its data begins: `ip_options`, `source_route`."""
    frame, start = packet.frame, packet.l3
    header = frame[start : start + (frame[start] & 0xF) * 4]
    at = ipv4.HEADER_BYTES
    while at < len(header) and header[at] != ipv4.OPTION_END:
        size = ipv4.option_bytes(header, at)
        if size == 0:
            return "ip_options"
        if header[at] in ipv4.OPTIONS_SOURCE_ROUTE:
            return "source_route"
        at += size
    flags_offset = packet.word(start + ipv4.FLAGS_OFFSET)
    packet.l4 = packet.fragment_data = start + len(header)
    packet.protocol = packet.fragment_protocol = header[ipv4.PROTOCOL]
    packet.fragment_offset = (flags_offset & ipv4.OFFSET_MASK) * 8
    packet.more_fragments = bool(flags_offset & ipv4.MF)
    packet.fragment_id = packet.word(start + ipv4.IDENTIFICATION)
    return None


def walk_extensions(packet: Packet) -> str | None:
    """Walk the IPv6 extension headers: `ext_header`, `ext_header_limit`, `routing_header`, `ip_truncated`."""
    walk = ExtensionWalk(packet.frame, packet.l3 + ipv6.HEADER_BYTES, packet.end)
    reason = walk.run(packet.frame[packet.l3 + ipv6.NEXT_HEADER])
    if reason:
        return reason
    packet.l4 = walk.at
    packet.protocol = walk.protocol
    if walk.fragment is None:
        return None
    packet.fragment_header = True
    offset_flags = packet.word(walk.fragment + 2)
    packet.fragment_offset = offset_flags & 0xFFF8
    packet.more_fragments = bool(offset_flags & 1)
    packet.fragment_id = packet.long(walk.fragment + 4)
    packet.fragment_protocol = packet.frame[walk.fragment]
    packet.fragment_data = walk.fragment + ipv6.FRAGMENT_BYTES
    return None


class ExtensionWalk:
    """
    A walk along the extension headers of one IPv6 packet, received or the inner packet of an ICMP error.

    Args:
        data: the bytes that hold it.
        at: offset of the first byte after the fixed header; after `run`, of what follows the last extension header.
        end: offset where the packet ends.
    """

    __slots__ = ("at", "data", "end", "fragment", "protocol")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end
        self.protocol = 0
        self.fragment: int | None = None

    def run(self, protocol: int) -> str | None:
        """
        Walk.

        Args:
            protocol: the next header that the fixed header names.

        Returns:
            A drop reason, or None; then `protocol` is what the last header names, `fragment` the offset of the
            fragment header, if any.
        """
        count = 0
        while protocol in ipv6.EXTENSION_HEADERS:
            count += 1
            reason = self.judge(protocol, count)
            if reason:
                return reason
            size = self.size(protocol)
            if protocol == ipv6.FRAGMENT:
                self.fragment = self.at
            protocol = self.data[self.at]
            self.at += size
            # What follows the header of a later fragment is data, also when the header names a protocol.
            if self.fragment is not None and int.from_bytes(self.data[self.fragment + 2 : self.fragment + 4]) & 0xFFF8:
                break
        self.protocol = protocol
        return None

    def judge(self, protocol: int, count: int) -> str | None:
        """
        Return why the walk ends at the header here, the first condition of rule 5.8, options and extension headers,
        that it fails.
        """
        if count > ipv6.EXTENSION_LIMIT:
            return "ext_header_limit"
        if protocol == ipv6.HOP_BY_HOP and count > 1:
            return "ext_header"
        if protocol == ipv6.FRAGMENT and self.fragment is not None:
            return "ext_header"
        if self.at + self.size(protocol) > self.end:
            return "ip_truncated"
        if protocol == ipv6.ROUTING and self.data[self.at + 2] == 0:
            return "routing_header"
        return None

    def size(self, protocol: int) -> int:
        """Return the bytes of the header here."""
        if protocol == ipv6.FRAGMENT or self.at + 2 > self.end:
            return ipv6.FRAGMENT_BYTES
        return (self.data[self.at + 1] + 1) * 8


def check_tiny(packet: Packet) -> str | None:
    """Drop fragments that cut the L4 header in two (RFC 1858, RFC 3128): `fragment_tiny`, `tcp_data_offset`."""
    if packet.fragment_offset:
        return "fragment_tiny" if packet.is_tcp and packet.fragment_offset == 8 else None
    length = packet.end - packet.l4
    if packet.is_udp and length < udp.HEADER_BYTES:
        return "fragment_tiny"
    if not packet.is_tcp:
        return None
    if length < tcp.HEADER_BYTES:
        return "fragment_tiny"
    header_len = tcp_header_bytes(packet)
    if header_len < tcp.HEADER_BYTES:
        return "tcp_data_offset"
    return "fragment_tiny" if header_len > length else None


def tcp_header_bytes(packet: Packet) -> int:
    """Return what the data offset says."""
    return (packet.frame[packet.l4 + tcp.DATA_OFFSET] >> 4) * 4


def read_l4(packet: Packet) -> str | None:
    """Read the TCP or UDP header of a whole packet or a first fragment, of others nothing (rule 7, L4 headers)."""
    if packet.is_tcp:
        reason = check_tcp(packet)
    elif packet.is_udp:
        reason = check_udp(packet)
    else:
        return None
    if reason:
        return reason
    source_port, destination_port = packet.word(packet.l4), packet.word(packet.l4 + 2)
    if source_port == 0 or destination_port == 0:
        return "port_zero"
    packet.source_port, packet.destination_port = source_port, destination_port
    if packet.is_udp:
        packet.payload = packet.l4 + udp.HEADER_BYTES
        return None
    packet.tcp_flags = packet.frame[packet.l4 + tcp.FLAGS]
    packet.payload = packet.l4 + tcp_header_bytes(packet)
    return None


def check_tcp(packet: Packet) -> str | None:
    """Check a TCP header: `l4_truncated`, `tcp_data_offset`, `tcp_flags`."""
    length = packet.end - packet.l4
    if length < tcp.HEADER_BYTES:
        return "l4_truncated"
    if not tcp.HEADER_BYTES <= tcp_header_bytes(packet) <= length:
        return "tcp_data_offset"
    if tcp.flags_are_nonsense(packet.frame[packet.l4 + tcp.FLAGS]):
        return "tcp_flags"
    return None


def check_udp(packet: Packet) -> str | None:
    """Check a UDP header: `l4_truncated`, `udp_length`, `udp_checksum_zero`."""
    length = packet.end - packet.l4
    if length < udp.HEADER_BYTES:
        return "l4_truncated"
    udp_len = packet.word(packet.l4 + udp.LENGTH)
    if udp_len < udp.HEADER_BYTES or (udp_len > length and not packet.is_fragment):
        return "udp_length"
    # RFC 8200 8.1: IPv6 has no header checksum of its own, so UDP over it must have one.
    if not packet.is_v4 and not packet.is_partial and packet.word(packet.l4 + udp.CHECKSUM) == 0:
        return "udp_checksum_zero"
    return None


def check_offload(packet: Packet) -> str | None:
    """Check that what was left to the network card fits the packet: `bad_offload` (rule 7, L4 headers)."""
    offload = packet.offload
    if packet.is_partial:
        field = {tcp.PROTOCOL: tcp.CHECKSUM, udp.PROTOCOL: udp.CHECKSUM}.get(packet.protocol)
        if offload.csum_start != packet.l4 or offload.csum_offset != field:
            return "bad_offload"
    if packet.gso_type:
        tcp_gso = GSO_TCPV4 if packet.is_v4 else GSO_TCPV6
        fitting = {tcp.PROTOCOL: tcp_gso, udp.PROTOCOL: GSO_UDP_L4}.get(packet.protocol)
        if packet.gso_type != fitting or offload.gso_size == 0:
            return "bad_offload"
    return None
