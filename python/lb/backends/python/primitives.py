"""
The single stages as callers outside the walk see them: arguments checked as the Rust bindings check them.

The walk itself calls `wire.checksum`, `hashing` and `parse` directly, with values that it has read from 8, 16 or 64
bits, and spends nothing on looking again.
"""

from __future__ import annotations

from operator import index

from lb.packet import checksum as sums
from lb.packet import hashing
from lb.packet.headers import Headers
from lb.packet.parse import parse as parse_frame


def require_number(value: int, bits: int) -> int:
    """
    Return a number that fits into a number of unsigned bits.

    Raises:
        TypeError: it is no integer.
        ValueError: it does not fit.
    """
    value = index(value)
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{value} does not fit into {bits} unsigned bits")
    return value


def require_bytes(value: bytes) -> bytes:
    """Return bytes; raise TypeError for anything else."""
    if not isinstance(value, bytes):
        raise TypeError(f"bytes are needed, not {type(value).__name__}")
    return value


def parse(frame: bytes) -> Headers:
    """
    Read the headers of one frame, without offload and without any snapshot.

    Args:
        frame: a whole Ethernet frame, any bytes.

    Returns:
        The headers, up to the first malformed one; `docs/rules.md` rule 14, the primitive parse.

    Raises:
        TypeError: the frame is not bytes.
    """
    return parse_frame(require_bytes(frame))


def checksum(data: bytes, initial: int = 0) -> int:
    """
    Compute the internet checksum (RFC 1071).

    Args:
        data: the bytes to sum; an odd length is padded with a zero byte.
        initial: a sum to start from, for instance of a pseudo-header: not complemented, 64 bits.

    Returns:
        The complemented sum, 0..0xFFFF. Over data that holds a right checksum it is 0.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the sum is out of range.
    """
    return sums.checksum(require_bytes(data), require_number(initial, 64))


def checksum_update(checksum: int, old: bytes, new: bytes) -> int:
    """
    Update a checksum after some words have changed (RFC 1624 equation 3): `HC' = ~(~HC + ~m + m')`.

    Args:
        checksum: the checksum before, 0..0xFFFF.
        old: the changed words as they were.
        new: the same words as they are.

    Returns:
        The checksum after. A checksum that was wrong stays wrong by as much.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the checksum is out of range, old and new differ in length, or the length is odd.
    """
    return sums.checksum_update(require_number(checksum, 16), require_bytes(old), require_bytes(new))


def source_hash(seed: int, client: bytes) -> int:
    """
    Hash a client address, as the selector `hash-source` does.

    Args:
        seed: 64 bits.
        client: 4 or 16 bytes, network order.

    Returns:
        64 bits.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the seed is out of range, or the address has neither 4 nor 16 bytes.
    """
    return hashing.source_hash(require_number(seed, 64), require_bytes(client))


def flow_hash(seed: int, client: bytes, vip: bytes, client_port: int, vip_port: int, protocol: int) -> int:
    """
    Hash a 5-tuple, as the selector `hash-flow` does.

    Args:
        seed: 64 bits.
        client: client address, 4 or 16 bytes, network order.
        vip: the VIP, likewise.
        client_port: 0..65535.
        vip_port: 0..65535.
        protocol: the L4 protocol number.

    Returns:
        64 bits.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a number is out of range, or an address has neither 4 nor 16 bytes.
    """
    return hashing.flow_hash(
        require_number(seed, 64),
        require_bytes(client),
        require_bytes(vip),
        require_number(client_port, 16),
        require_number(vip_port, 16),
        require_number(protocol, 8),
    )
