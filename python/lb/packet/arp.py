"""
ARP for IPv4 over Ethernet (RFC 826). The balancer answers for its VIPs and announces them; it keeps no ARP table of
its own.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

BYTES = 28
REQUEST = 1
REPLY = 2
LAYOUT = struct.Struct("!HHBBH6s4s6s4s")
ETHERNET_IPV4 = (1, 0x0800, 6, 4)


class Arp(NamedTuple):
    """One ARP message. MACs: 6 bytes, addresses: 4 bytes."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def read_arp(data: bytes) -> Arp | None:
    """Read an ARP message; None when it is cut short or not about IPv4 over Ethernet."""
    if len(data) < BYTES:
        return None
    fields = LAYOUT.unpack_from(data)
    if fields[:4] != ETHERNET_IPV4:
        return None
    return Arp(*fields[4:])


def arp_message(message: Arp) -> bytes:
    """Build an ARP message of 28 bytes."""
    return LAYOUT.pack(*ETHERNET_IPV4, *message)
