"""TCP headers (RFC 9293 3.1). Offsets are from the first byte of the header."""

from __future__ import annotations

import struct

from lb.packet.checksum import checksum, pseudo_header_sum

PROTOCOL = 6
HEADER_BYTES = 20
SEQUENCE = 4
ACKNOWLEDGEMENT = 8
DATA_OFFSET = 12
FLAGS = 13
WINDOW = 14
CHECKSUM = 16

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10
FLAGS_MASK = 0x3F  # the six of RFC 793; ECE and CWR say nothing about a connection's state

OPTION_END, OPTION_NOP, OPTION_WINDOW_SCALE = 0, 1, 3
MOST_SCALE = 14  # RFC 7323 2.3: a larger shift counts as this

LAYOUT = struct.Struct("!HHIIBBHHH")


def flags_are_nonsense(flags: int) -> bool:
    """Tell whether no TCP sends this combination: SYN+FIN, SYN+RST, none at all, FIN without ACK."""
    flags &= FLAGS_MASK
    if not flags:
        return True
    if flags & SYN and flags & (FIN | RST):
        return True
    return bool(flags & FIN and not flags & ACK)


def window_scale(options: bytes) -> int | None:
    """
    Return the shift that a window scale option offers, as it stands there (RFC 7323 2.2).

    Returns:
        None when there is none, or an option before it is malformed.
    """
    at = 0
    while at < len(options) and options[at] != OPTION_END:
        length = 1 if options[at] == OPTION_NOP else options[at + 1] if at + 1 < len(options) else 0
        if options[at] != OPTION_NOP and length < 2:
            return None
        if options[at] == OPTION_WINDOW_SCALE and length == 3 and at + 2 < len(options):
            return options[at + 2]
        at += length
    return None


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
