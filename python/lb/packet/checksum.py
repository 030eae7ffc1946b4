"""
The internet checksum (RFC 1071) and its incremental update (RFC 1624).

Used wherever a packet is checked, rewritten or built. The checksum is the complement of the ones' complement sum of
all 16-bit words. In ones' complement, adding `2**16` is adding 1, so a sum of words is congruent to the whole data
read as one big number modulo 65535: that is how `checksum` sums in one step, without a loop over the words.
"""

from __future__ import annotations

import struct


def fold(total: int) -> int:
    """
    Fold a sum of 16-bit words until no carry is left.

    Args:
        total: a non-negative sum.

    Returns:
        16 bits; 0 only for a sum of 0, since 0xFFFF is the other zero of ones' complement.
    """
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def word_sum(data: bytes) -> int:
    """
    Return the ones' complement sum of the 16-bit words of data, an odd length padded with a zero byte; 0 only when all
    words are 0.
    """
    if len(data) % 2:
        data = bytes(data) + b"\0"
    value = int.from_bytes(data, "big")
    # 2**16 is 1 modulo 65535, so value is congruent to the sum of its words; a multiple of 65535 is the sum 0xFFFF,
    # not 0.
    return value % 0xFFFF or (0xFFFF if value else 0)


def checksum(data: bytes, initial: int = 0) -> int:
    """Compute the internet checksum (RFC 1071). Arguments as in `primitives.checksum`, which tests them."""
    return fold(initial + word_sum(data)) ^ 0xFFFF


def checksum_update(checksum: int, old: bytes, new: bytes) -> int:
    """Update a checksum (RFC 1624 equation 3). Arguments as in `primitives.checksum_update`, which tests them."""
    return sum_update(checksum ^ 0xFFFF, old, new) ^ 0xFFFF


def sum_update(total: int, old: bytes, new: bytes) -> int:
    """
    Update an uncomplemented sum, such as the pseudo-header sum of CHECKSUM_PARTIAL: `fold(sum + ~m + m')`.

    Args:
        total: the sum before, 0..0xFFFF.
        old: the changed words as they were.
        new: the same words as they are.

    Returns:
        The sum after.

    Raises:
        ValueError: old and new differ in length, or the length is odd.
    """
    if len(old) != len(new) or len(old) % 2:
        raise ValueError(f"{len(old)} and {len(new)} bytes are not the same whole number of 16-bit words")
    count = len(old) // 2
    for before, after in zip(struct.unpack(f"!{count}H", old), struct.unpack(f"!{count}H", new), strict=True):
        total += (before ^ 0xFFFF) + after
    return fold(total)


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """
    Sum the pseudo-header that TCP, UDP and ICMPv6 checksums cover (RFC 9293 3.1, RFC 8200 8.1).

    Args:
        source: 4 or 16 bytes.
        destination: as many.
        protocol: the L4 protocol number.
        length: bytes from the L4 header to the end of the packet.

    Returns:
        The sum, not complemented, 0..0xFFFF.
    """
    return fold(word_sum(source) + word_sum(destination) + protocol + fold(length))
