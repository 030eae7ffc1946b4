"""ICMP (RFC 792, 1191) and ICMPv6 (RFC 4443, neighbour discovery of RFC 4861): types, codes and builders."""

from __future__ import annotations

from lb.packet.checksum import checksum, pseudo_header_sum

PROTOCOL_V4 = 1
PROTOCOL_V6 = 58
HEADER_BYTES = 8
CHECKSUM = 2

# By address length in bytes: 4 is ICMP, 16 is ICMPv6.
PROTOCOL = {4: PROTOCOL_V4, 16: PROTOCOL_V6}
ERRORS = {4: frozenset({3, 11, 12}), 16: frozenset({1, 2, 3, 4})}
REDIRECT = {4: 5, 16: 137}
ECHO_REQUEST = {4: 8, 16: 128}
ECHO_REPLY = {4: 0, 16: 129}

# (type, code) of the errors we make.
TIME_EXCEEDED = {4: (11, 0), 16: (3, 0)}
TOO_BIG = {4: (3, 4), 16: (2, 0)}
PORT_UNREACHABLE = {4: (3, 3), 16: (1, 4)}
HOST_UNREACHABLE = {4: (3, 1), 16: (1, 3)}
NO_ROUTE = {4: (3, 1), 16: (1, 0)}
PROHIBITED = {4: (3, 13), 16: (1, 1)}

# Our errors are never longer than this, IP header included (RFC 792 with 1812 4.3.2.3; RFC 4443 2.4 c).
MAX_PACKET_BYTES = {4: 576, 16: 1280}

NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
SOLICITATION_BYTES = 24
ND_HOP_LIMIT = 255
SOLICITED_OVERRIDE = 0x60000000
OVERRIDE = 0x20000000


def icmp_checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """
    Compute the checksum of a message; the pseudo-header counts in ICMPv6 alone.

    Args:
        source: 4 or 16 bytes.
        destination: as many.
        message: from the type on, the checksum field as it stands.

    Returns:
        The checksum; 0 when the message holds a right one.
    """
    if len(source) == 4:
        return checksum(message)
    return checksum(message, pseudo_header_sum(source, destination, PROTOCOL_V6, len(message)))


def icmp_message(source: bytes, destination: bytes, kind: tuple[int, int], rest: bytes) -> bytes:
    """
    Build a message.

    Args:
        source: 4 or 16 bytes.
        destination: as many.
        kind: type and code.
        rest: what follows the checksum.

    Returns:
        The message, checksum done.
    """
    message = bytes(kind) + b"\0\0" + rest
    return message[:CHECKSUM] + icmp_checksum(source, destination, message).to_bytes(2, "big") + rest


def neighbour_advertisement(address: bytes, destination: bytes, mac: bytes, flags: int) -> bytes:
    """
    Build a neighbour advertisement for an address of ours (RFC 4861 4.4).

    Args:
        address: the IPv6 address that is at `mac`, also the source.
        destination: who is told, 16 bytes.
        mac: 6 bytes.
        flags: the router, solicited and override bits, in 32 bits.

    Returns:
        32 bytes, checksum done.
    """
    link_layer_option = b"\x02\x01" + mac
    rest = flags.to_bytes(4, "big") + address + link_layer_option
    return icmp_message(address, destination, (NEIGHBOUR_ADVERTISEMENT, 0), rest)
