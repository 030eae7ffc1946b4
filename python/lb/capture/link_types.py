"""
Ethernet headers for captures that have none: Linux "cooked" captures (`tcpdump -i any`) and raw IP (tunnels).

Offline end of the packet walk, used by `lb.capture.pcap`. Formats and numbers:
https://www.tcpdump.org/linktypes.html. What is made up is chosen so that the balancer takes the packets for its own:
the destination is its MAC, unless the capture says that a packet was for another host, for all, or sent by this host;
the source is the sender's MAC where the capture has one, else one made of the sender's IP address.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

ETHERNET = 1
ETHERNET_HEADER_BYTES = 14
BROADCAST = b"\xff" * 6
# Locally administered, and no host's.
OTHER_HOST = b"\x02\xff\xff\xff\xff\xff"
NO_ADDRESS = bytes(6)
DEFAULT_MAC = b"\x02\x00\x00\x00\x00\x01"
IPV4, IPV6 = 0x0800, 0x86DD
# Packet types of cooked captures: to us, to all, to a group, to another host, by us.
TO_ALL, TO_GROUP, TO_OTHER, BY_US = 1, 2, 3, 4
SLL = struct.Struct("!HHH8sH")
SLL2 = struct.Struct("!HHIHBB8s")


class _Cooked(NamedTuple):
    """What a cooked header says. `source`: empty when there is no Ethernet address."""

    kind: int
    source: bytes
    ethertype: int


# (packet as captured, the balancer's MAC) -> the same with an Ethernet header
_Make: TypeAlias = Callable[[bytes, bytes], bytes]


def _cooked(header: _Cooked, packet: bytes, mac: bytes) -> bytes:
    source = header.source if header.source not in (b"", NO_ADDRESS) else _made_up(packet, header.ethertype)
    if header.kind == BY_US:
        # Where it went is not told; a group address is no host's, so nothing is learned from it.
        return BROADCAST + mac + struct.pack("!H", header.ethertype) + packet
    destination = {TO_ALL: BROADCAST, TO_GROUP: BROADCAST, TO_OTHER: OTHER_HOST}.get(header.kind, mac)
    return destination + source + struct.pack("!H", header.ethertype) + packet


def _of_sll(data: bytes, mac: bytes) -> bytes:
    kind, _, length, address, ethertype = SLL.unpack_from(data)
    return _cooked(_Cooked(kind, address[:6] if length == 6 else b"", ethertype), data[SLL.size :], mac)


def _of_sll2(data: bytes, mac: bytes) -> bytes:
    ethertype, _, _, _, kind, length, address = SLL2.unpack_from(data)
    return _cooked(_Cooked(kind, address[:6] if length == 6 else b"", ethertype), data[SLL2.size :], mac)


def _of_ip(data: bytes, mac: bytes) -> bytes:
    ethertype = IPV6 if data[:1] and data[0] >> 4 == 6 else IPV4
    return mac + _made_up(data, ethertype) + struct.pack("!H", ethertype) + data


def _made_up(packet: bytes, ethertype: int) -> bytes:
    """Return a MAC address made of the source address: the same host has the same one in all packets."""
    if ethertype == IPV4 and len(packet) >= 20:
        return b"\x02\x04" + packet[12:16]
    if ethertype == IPV6 and len(packet) >= 40:
        # The lowest bytes of an interface identifier differ most.
        return b"\x02\x06" + packet[20:24]
    return OTHER_HOST


# Link types with the length of their headers and what makes Ethernet of them.
_MAKERS: dict[int, tuple[int, _Make]] = {
    12: (0, _of_ip),
    14: (0, _of_ip),
    101: (0, _of_ip),
    228: (0, _of_ip),
    229: (0, _of_ip),
    113: (SLL.size, _of_sll),
    276: (SLL2.size, _of_sll2),
}
READ = "Ethernet (1), Linux cooked (113, 276) and raw IP (12, 14, 101, 228, 229)"


def is_read(link_type: int) -> bool:
    """Tell whether captures of a link type can be read."""
    return link_type == ETHERNET or link_type in _MAKERS


def added_bytes(link_type: int) -> int:
    """Return by how many bytes a frame grows when its header becomes one of Ethernet."""
    return 0 if link_type == ETHERNET else ETHERNET_HEADER_BYTES - _MAKERS[link_type][0]


def to_ethernet(link_type: int, data: bytes, mac: bytes) -> bytes:
    """
    Return a captured packet as an Ethernet frame.

    Args:
        link_type: one that is read.
        data: as captured; when it is cut inside its own header, the frame is empty.
        mac: 6 bytes, the balancer's.
    """
    if link_type == ETHERNET:
        return data
    header_bytes, make = _MAKERS[link_type]
    return make(data, mac) if len(data) >= header_bytes else b""
