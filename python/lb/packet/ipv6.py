"""IPv6 headers (RFC 8200). Offsets are from the first byte of the fixed header. `parse` walks extension headers."""

from __future__ import annotations

import struct

HEADER_BYTES = 40
PAYLOAD_LENGTH = 4
NEXT_HEADER = 6
HOP_LIMIT = 7
SOURCE = 8
DESTINATION = 24

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
DESTINATION_OPTIONS = 60
EXTENSION_HEADERS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS})
EXTENSION_LIMIT = 8
FRAGMENT_BYTES = 8

OWN_HOP_LIMIT = 64
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
LAYOUT = struct.Struct("!IHBB16s16s")


def ipv6_packet(
    source: bytes, destination: bytes, protocol: int, payload: bytes, hop_limit: int = OWN_HOP_LIMIT
) -> bytes:
    """
    Build a packet of our own: traffic class 0, flow label 0, no extension headers.

    Args:
        source: 16 bytes.
        destination: 16 bytes.
        protocol: of the payload.
        payload: what follows the header.
        hop_limit: 1..255.

    Returns:
        The packet.
    """
    return LAYOUT.pack(6 << 28, len(payload), protocol, hop_limit, source, destination) + payload
