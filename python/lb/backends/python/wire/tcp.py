"""TCP headers (RFC 9293 3.1). Offsets are from the first byte of the header. `lb.backends.python.tcp` keeps states."""

from __future__ import annotations

import struct

from lb.backends.python.wire.checksum import checksum, pseudo_header_sum

PROTOCOL = 6
HEADER_BYTES = 20
SEQUENCE = 4
ACKNOWLEDGEMENT = 8
DATA_OFFSET = 12
FLAGS = 13
CHECKSUM = 16

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10
FLAGS_MASK = 0x3F  # the six of RFC 793; ECE and CWR say nothing about a connection's state

LAYOUT = struct.Struct("!HHIIBBHHH")


def flags_are_nonsense(flags: int) -> bool:
    """Tell whether no TCP sends this combination: SYN+FIN, SYN+RST, none at all, FIN without ACK."""
    flags &= FLAGS_MASK
    if not flags:
        return True
    if flags & SYN and flags & (FIN | RST):
        return True
    return bool(flags & FIN and not flags & ACK)


def reset_segment(source: bytes, destination: bytes, ports: tuple[int, int], seq: int, ack: int | None) -> bytes:
    """
    Build a RST (RFC 9293 3.10.7.1).

    Args:
        source: 4 or 16 bytes.
        destination: as many.
        ports: source and destination port.
        seq: its sequence number.
        ack: its acknowledgement number, None: without ACK.

    Returns:
        20 bytes, checksum done, window 0.
    """
    flags = RST if ack is None else RST | ACK
    segment = LAYOUT.pack(*ports, seq, ack or 0, HEADER_BYTES // 4 << 4, flags, 0, 0, 0)
    total = checksum(segment, pseudo_header_sum(source, destination, PROTOCOL, len(segment)))
    return segment[:CHECKSUM] + total.to_bytes(2, "big") + segment[CHECKSUM + 2 :]
