"""
Checksums that a sending host left to its network card, in captures taken before the card: found, and computed.

Offline end of the packet walk, used by `lb.capture.replay`. Such a frame has an IPv4 header checksum of 0, or a TCP or
UDP checksum that covers the pseudo-header alone (what Linux calls CHECKSUM_PARTIAL). The balancer itself repairs no
checksum (rule 8.20, translation).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal, TypeAlias

from lb.packet.checksum import checksum, fold, word_sum
from lb.packet.headers import Headers

IPV4 = 0x0800
VLAN_TAGS = (0x8100, 0x88A8)
TCP, UDP = 6, 17
# Where the checksum stands in a header, in bytes.
IPV4_AT, AT = 10, {TCP: 16, UDP: 6}
SHORTEST_IPV4_HEADER_BYTES = 20

Unfinished: TypeAlias = Literal["ip", "l4"]
Parse: TypeAlias = Callable[[bytes], Headers]


def unfinished(frame: bytes, parse: Parse) -> Unfinished | None:
    """
    Return which checksum of a frame was left to the card: the one of the IPv4 header, or the one of TCP or UDP; None:
    neither, as far as one can see.

    Args:
        frame: a whole Ethernet frame.
        parse: of a backend.
    """
    span = _ipv4_header(frame)
    if span is not None and frame[span.start + IPV4_AT : span.start + IPV4_AT + 2] == bytes(2):
        return "ip" if checksum(frame[span.start : span.stop]) else None
    headers = parse(frame)
    segment = _segment(frame, headers)
    if segment is None:
        return None
    at, pseudo = AT[headers.protocol], fold(_pseudo_header_sum(headers, len(segment)))
    is_partial = int.from_bytes(segment[at : at + 2], "big") == pseudo
    # One right checksum in 65 536 looks like that.
    return "l4" if is_partial and checksum(segment, pseudo) else None


def finish(frame: bytes, parse: Parse) -> bytes:
    """
    Return a frame with the checksums of its IPv4 header and of TCP or UDP computed anew.

    What cannot be computed stays: the sums of fragments and of frames that the capture has cut. A UDP checksum of 0 in
    IPv4 means that there is none (RFC 768), and stays too. Arguments as of `unfinished`.
    """
    made = bytearray(frame)
    if (span := _ipv4_header(frame)) is not None:
        _write(made, span.start + IPV4_AT, 0)
        _write(made, span.start + IPV4_AT, checksum(bytes(made[span.start : span.stop])))
    headers = parse(bytes(made))
    segment = _segment(frame, headers)
    if segment is None or (headers.protocol == UDP and len(headers.source) == 4 and segment[6:8] == bytes(2)):
        return bytes(made)
    at = headers.l4_offset + AT[headers.protocol]
    _write(made, at, 0)
    whole = bytes(made[headers.l4_offset : headers.l4_offset + len(segment)])
    value = checksum(whole, _pseudo_header_sum(headers, len(segment)))
    _write(made, at, 0xFFFF if headers.protocol == UDP and not value else value)
    return bytes(made)


def _write(frame: bytearray, at: int, value: int) -> None:
    frame[at : at + 2] = value.to_bytes(2, "big")


def _ipv4_header(frame: bytes) -> range | None:
    """Return where a frame's IPv4 header is, or None when it has no whole one."""
    at = 12
    while (ethertype := int.from_bytes(frame[at : at + 2], "big")) in VLAN_TAGS:
        at += 4
    start = at + 2
    if ethertype != IPV4 or len(frame) < start + SHORTEST_IPV4_HEADER_BYTES or frame[start] >> 4 != 4:
        return None
    length = (frame[start] & 15) * 4
    if length < SHORTEST_IPV4_HEADER_BYTES or len(frame) < start + length:
        return None
    return range(start, start + length)


def _segment(frame: bytes, headers: Headers) -> bytes | None:
    """Return the TCP segment or UDP datagram of a frame; None when there is none, or not all of it."""
    if headers.protocol not in AT or not headers.l4_offset or headers.fragment_offset or headers.more_fragments:
        return None
    end = headers.l3_offset + headers.total_len
    segment = frame[headers.l4_offset : end]
    return segment if len(frame) >= end and len(segment) >= AT[headers.protocol] + 2 else None


def _pseudo_header_sum(headers: Headers, length: int) -> int:
    """Return the sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1), not complemented and not folded."""
    return word_sum(headers.source + headers.destination + struct.pack("!II", length, headers.protocol))
