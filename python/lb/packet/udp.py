"""
UDP headers (RFC 768). Offsets are from the first byte of the header. A checksum of 0 means "none"; a computed 0 is
sent as 0xFFFF.
"""

from __future__ import annotations

PROTOCOL = 17
HEADER_BYTES = 8
LENGTH = 4
CHECKSUM = 6


def sent_checksum(computed: int) -> int:
    """Return a computed checksum as it is sent: 0 would mean that there is none."""
    return computed or 0xFFFF
