"""
The placement hash: SipHash-2-4 (Aumasson, Bernstein 2012), keyed by the snapshot's seed so that several balancers
agree.

Used by the hash selectors of a plan. The Rust flow table hashes its keys with SipHash-1-3; a dict, which Python keys
per process, does that here.
"""

from __future__ import annotations

import struct

MASK = 0xFFFFFFFFFFFFFFFF
PLACEMENT_KEY = 0x666C6F776C622D31  # "flowlb-1"
V4_MAPPED = bytes.fromhex("00000000000000000000ffff")


def rotate(value: int, bits: int) -> int:
    """Rotate a 64-bit value to the left."""
    return (value << bits | value >> (64 - bits)) & MASK


def sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    """Mix the four words of SipHash's state once."""
    v0 = (v0 + v1) & MASK
    v1 = rotate(v1, 13) ^ v0
    v0 = rotate(v0, 32)
    v2 = (v2 + v3) & MASK
    v3 = rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & MASK
    v3 = rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & MASK
    v1 = rotate(v1, 17) ^ v2
    v2 = rotate(v2, 32)
    return v0, v1, v2, v3


def siphash24(k0: int, k1: int, data: bytes) -> int:
    """
    Hash bytes with SipHash-2-4.

    Args:
        k0: the first half of the key, 64 bits; as bytes it is little-endian.
        k1: the second half.
        data: any number of bytes.

    Returns:
        64 bits.
    """
    state = (
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    )
    # The last word carries the remaining bytes and, on top, the length modulo 256.
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = sip_round(*sip_round(v0, v1, v2, v3 ^ word))
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    state = (v0, v1, v2 ^ 0xFF, v3)
    for _ in range(4):
        state = sip_round(*state)
    v0, v1, v2, v3 = state
    return v0 ^ v1 ^ v2 ^ v3


def as_16_bytes(address: bytes) -> bytes:
    """
    Widen an address: IPv4 as ::ffff:a.b.c.d.

    Raises:
        ValueError: the address has neither 4 nor 16 bytes.
    """
    if len(address) == 4:
        return V4_MAPPED + address
    if len(address) != 16:
        raise ValueError(f"an address of {len(address)} bytes: 4 or 16 are allowed")
    return address


def source_hash(seed: int, client: bytes) -> int:
    """Hash a client address. Arguments as in `primitives.source_hash`, which tests them."""
    return siphash24(seed, PLACEMENT_KEY, as_16_bytes(client))


def flow_hash(seed: int, client: bytes, vip: bytes, client_port: int, vip_port: int, protocol: int) -> int:
    """Hash a 5-tuple. Arguments as in `primitives.flow_hash`, which tests them."""
    tail = struct.pack("!HHB", client_port, vip_port, protocol)
    return siphash24(seed, PLACEMENT_KEY, as_16_bytes(client) + as_16_bytes(vip) + tail)
