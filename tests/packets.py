"""
Frames from scratch, fast: the builders of the differential driver and the benches, and checks of checksums.

scapy takes about a millisecond for a packet; a million packets need something quicker. Only `struct` is used here;
tests/unit/test_differential.py holds these builders against scapy. Addresses are packed bytes, ports and numbers are
host integers.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
MF, DF = 0x2000, 0x4000


def word_sum(data: bytes) -> int:
    """
    Return the ones' complement sum of 16-bit words, 0..0xFFFF.

    A sum folded by end-around carry is the remainder by 0xFFFF, but that a sum of something is never 0.
    """
    if len(data) % 2:
        data += b"\0"
    number = int.from_bytes(data, "big")
    return (number % 0xFFFF) or (0xFFFF if number else 0)


def checksum(data: bytes) -> int:
    """Return the Internet checksum of data."""
    return 0xFFFF - word_sum(data)


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """Return the pseudo header of TCP, UDP and ICMPv6."""
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!IHBB", length, 0, 0, protocol)


def l4_checksum(src: bytes, dst: bytes, protocol: int, data: bytes) -> int:
    """Return the checksum over pseudo header and data; 0 becomes 0xFFFF for UDP."""
    made = checksum(pseudo_header(src, dst, protocol, len(data)) + data)
    return 0xFFFF if protocol == UDP and made == 0 else made


def partial_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """Return what the checksum field of an unfinished packet holds."""
    return word_sum(pseudo_header(src, dst, protocol, length))


def tcp(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    data: bytes = b"",
    options: bytes = b"",
    window: int = 8192,
) -> bytes:
    """Make a TCP segment; options are a multiple of 4 bytes."""
    offset = (5 + len(options) // 4) << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, flags, window, 0, 0) + options
    made = l4_checksum(src, dst, TCP, head + data)
    return head[:16] + made.to_bytes(2, "big") + head[18:] + data


def udp(src: bytes, dst: bytes, sport: int, dport: int, data: bytes = b"", summed: bool = True) -> bytes:
    """Make a UDP datagram."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0)
    made = l4_checksum(src, dst, UDP, head + data) if summed else 0
    return head[:6] + made.to_bytes(2, "big") + data


def icmp(src: bytes, dst: bytes, kind: int, code: int, body: bytes) -> bytes:
    """Make an ICMP or ICMPv6 message, as the addresses say; `body` is everything after the checksum."""
    message = bytes([kind, code, 0, 0]) + body
    covered = message if len(src) == 4 else pseudo_header(src, dst, ICMP6, len(message)) + message
    return message[:2] + checksum(covered).to_bytes(2, "big") + body


def ip4(
    src: bytes,
    dst: bytes,
    protocol: int,
    data: bytes,
    ttl: int = 64,
    ident: int = 0,
    fragment: int = 0,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    """Make an IPv4 packet. `fragment`: flags and offset as in the header."""
    ihl = 5 + len(options) // 4
    head = (
        struct.pack("!BBHHHBBH", 0x40 | ihl, tos, ihl * 4 + len(data), ident, fragment, ttl, protocol, 0)
        + src
        + dst
        + options
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + data


def ip6(src: bytes, dst: bytes, protocol: int, data: bytes, ttl: int = 64, flow: int = 0) -> bytes:
    """Make an IPv6 packet. `flow`: traffic class and label."""
    return struct.pack("!IHBB", 0x60000000 | flow, len(data), protocol, ttl) + src + dst + data


def ether(dst: bytes, src: bytes, packet: bytes, tags: bytes = b"", ethertype: int | None = None) -> bytes:
    """Make a frame. `tags`: whole VLAN tags. The EtherType follows the packet's version unless given."""
    if ethertype is None:
        ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return dst + src + tags + ethertype.to_bytes(2, "big") + packet


class Seen(NamedTuple):
    """An IP packet in a frame: addresses, protocol, L4 bytes, fragment offset in bytes, MF, identification."""

    src: bytes
    dst: bytes
    protocol: int
    l4: bytes
    offset: int
    more: bool
    ident: int
    header_ok: bool
    l4_start: int


def look(frame: bytes) -> Seen | None:
    """Read a frame that should hold an IP packet; None when it does not."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    kind, at = frame[at : at + 2], at + 2
    if kind == b"\x08\x00" and len(frame) >= at + 20:
        return _look4(frame, at)
    if kind == b"\x86\xdd" and len(frame) >= at + 40:
        return _look6(frame, at)
    return None


def _look4(frame: bytes, at: int) -> Seen:
    header_len, total = (frame[at] & 15) * 4, int.from_bytes(frame[at + 2 : at + 4], "big")
    ident, fragment = struct.unpack_from("!HH", frame, at + 4)
    header_ok = word_sum(frame[at : at + header_len]) == 0xFFFF
    l4 = frame[at + header_len : at + total]
    src, dst = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    return Seen(
        src, dst, frame[at + 9], l4, (fragment & 0x1FFF) * 8, bool(fragment & MF), ident, header_ok, at + header_len
    )


def _look6(frame: bytes, at: int) -> Seen:
    end = at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
    protocol, start, offset, more, ident = frame[at + 6], at + 40, 0, False, 0
    while protocol in (HOP, ROUTING, FRAGMENT, DESTINATION) and start + 8 <= end and offset == 0:
        if protocol == FRAGMENT:
            word, ident = struct.unpack_from("!HI", frame, start + 2)
            offset, more = word & 0xFFF8, bool(word & 1)
            size = 8
        else:
            size = (frame[start + 1] + 1) * 8
        protocol, start = frame[start], start + size
    return Seen(
        frame[at + 8 : at + 24], frame[at + 24 : at + 40], protocol, frame[start:end], offset, more, ident, True, start
    )


def l4_right(seen: Seen) -> bool | None:
    """Tell whether the L4 checksum of a whole packet is right; None when there is none to check."""
    if seen.protocol == ICMP and len(seen.src) == 4:
        return len(seen.l4) >= 8 and word_sum(seen.l4) == 0xFFFF
    if seen.protocol == UDP:
        length = int.from_bytes(seen.l4[4:6], "big")
        if len(seen.l4) < 8 or length != len(seen.l4):
            return None
        if seen.l4[6:8] == b"\0\0":
            return None if len(seen.src) == 4 else False
    elif seen.protocol not in (TCP, ICMP6):
        return None
    return word_sum(pseudo_header(seen.src, seen.dst, seen.protocol, len(seen.l4)) + seen.l4) == 0xFFFF


def l4_right_by_scapy(seen: Seen) -> bool | None:
    """Tell the same with scapy's functions."""
    from ipaddress import ip_address

    from scapy.layers.inet import IP, in4_chksum
    from scapy.layers.inet6 import IPv6, in6_chksum
    from scapy.utils import checksum as scapy_checksum

    if l4_right(seen) is None:
        return None
    if seen.protocol == ICMP and len(seen.src) == 4:
        return scapy_checksum(seen.l4) == 0
    src, dst = str(ip_address(seen.src)), str(ip_address(seen.dst))
    # A sum that includes a right checksum complements to 0; scapy turns that into FFFF for UDP over IPv6.
    if len(seen.src) == 4:
        return in4_chksum(seen.protocol, IP(src=src, dst=dst), seen.l4) in (0, 0xFFFF)
    return in6_chksum(seen.protocol, IPv6(src=src, dst=dst), seen.l4) in (0, 0xFFFF)
