"""
IPv4 headers (RFC 791). Offsets are from the first byte of the header. What a router must check (RFC 1812 5.2.2) is in
`parse`.
"""

from __future__ import annotations

import struct

from lb.packet.checksum import checksum

HEADER_BYTES = 20
TOTAL_LENGTH = 2
IDENTIFICATION = 4
FLAGS_OFFSET = 6
TTL = 8
PROTOCOL = 9
CHECKSUM = 10
SOURCE = 12
DESTINATION = 16

DF = 0x4000
MF = 0x2000
RESERVED = 0x8000
OFFSET_MASK = 0x1FFF

OPTION_END = 0
OPTION_NOP = 1
OPTION_COPIED = 0x80
OPTIONS_SOURCE_ROUTE = frozenset({131, 137})  # LSRR, SSRR

OWN_TTL = 64
LAYOUT = struct.Struct("!BBHHHBBH4s4s")


def ipv4_packet(source: bytes, destination: bytes, protocol: int, payload: bytes, tos: int = 0) -> bytes:
    """
    Build a packet of our own: no options, identification 0, DF, TTL 64.

    Args:
        source: 4 bytes.
        destination: 4 bytes.
        protocol: of the payload.
        payload: what follows the header.
        tos: the DSCP and ECN byte.

    Returns:
        The packet, header checksum done.
    """
    total_len = HEADER_BYTES + len(payload)
    header = LAYOUT.pack(0x45, tos, total_len, 0, DF, OWN_TTL, protocol, 0, source, destination)
    return header[:CHECKSUM] + checksum(header).to_bytes(2, "big") + header[CHECKSUM + 2 :] + payload


def options(header: bytes) -> list[tuple[int, bytes]] | None:
    """
    List the options of a header.

    Args:
        header: the whole header with its options.

    Returns:
        (type, the whole option) each, end and padding left out; None when one is malformed. Those before the malformed
        one that ask for source routing are reported by `parse`, which walks the list itself.
    """
    found = []
    at = HEADER_BYTES
    while at < len(header) and header[at] != OPTION_END:
        size = option_bytes(header, at)
        if size == 0:
            return None
        found.append((header[at], header[at : at + size]))
        at += size
    return found


def option_bytes(header: bytes, at: int) -> int:
    """Return the length of the option at an offset of a header; 0 when it is malformed."""
    if header[at] == OPTION_NOP:
        return 1
    if at + 1 >= len(header) or header[at + 1] < 2 or at + header[at + 1] > len(header):
        return 0
    return header[at + 1]
