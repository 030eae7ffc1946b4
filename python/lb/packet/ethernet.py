"""Ethernet II and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad). Outermost layer of every frame; the FCS is never seen."""

from __future__ import annotations

HEADER_BYTES = 14
TAG_BYTES = 4
MAX_TAGS = 2

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPES_VLAN = frozenset({0x8100, 0x88A8})

BROADCAST = b"\xff" * 6
ALL_NODES = bytes.fromhex("333300000001")


def is_group(mac: bytes) -> bool:
    """Tell whether a MAC address is broadcast or multicast: the lowest bit of its first byte."""
    return bool(mac[0] & 1)


def ethernet_header(destination: bytes, source: bytes, ethertype: int, tags: bytes = b"") -> bytes:
    """
    Build an Ethernet header.

    Args:
        destination: 6 bytes.
        source: 6 bytes.
        ethertype: of what follows.
        tags: VLAN tags as they stand in a frame: TPID and TCI each.

    Returns:
        14 bytes and the tags.
    """
    return destination + source + tags + ethertype.to_bytes(2, "big")
