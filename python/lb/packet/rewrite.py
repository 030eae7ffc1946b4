"""
Rewriting a packet: addresses, ports, TTL, and every checksum that covers them.

Stage "rewrite" of the walk (`docs/rules.md` rule 8.20, translation). Checksums are updated, never computed anew (RFC
1624), so that a wrong one stays wrong and the end host finds out. All functions change a bytearray that `outgoing`
made.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.model.verdict import Direction
from lb.packet import ipv4, ipv6, tcp, udp
from lb.packet.checksum import checksum, checksum_update, sum_update
from lb.packet.parse import Packet

CHECKSUM_FIELD = {tcp.PROTOCOL: tcp.CHECKSUM, udp.PROTOCOL: udp.CHECKSUM}


class Change(NamedTuple):
    """Some bytes of a packet as they were and as they are. Whole 16-bit words."""

    old: bytes
    new: bytes


def outgoing(packet: Packet) -> bytearray:
    """Copy a packet's frame up to the end of its IP packet: padding is never sent on."""
    return bytearray(packet.frame[: packet.end])


def write(data: bytearray, at: int, new: bytes) -> Change:
    """Overwrite bytes and return the change."""
    old = bytes(data[at : at + len(new)])
    data[at : at + len(new)] = new
    return Change(old, new)


def update(data: bytearray, at: int, change: Change) -> None:
    """Update the checksum at an offset for a change."""
    before = int.from_bytes(data[at : at + 2], "big")
    data[at : at + 2] = checksum_update(before, *change).to_bytes(2, "big")


def lower_ttl(data: bytearray, packet: Packet) -> None:
    """Take one off TTL or hop limit. The caller made sure that at least 1 is left."""
    if not packet.is_v4:
        data[packet.l3 + ipv6.HOP_LIMIT] -= 1
        return
    at = packet.l3 + ipv4.TTL  # even offset: TTL and protocol are one word of the header
    change = write(data, at, bytes([data[at] - 1, data[at + 1]]))
    update(data, packet.l3 + ipv4.CHECKSUM, change)


def write_address(data: bytearray, l3: int, direction: Direction, address: bytes) -> Change:
    """
    Overwrite the address that a direction translates, and update an IPv4 header's checksum.

    Args:
        data: the frame.
        l3: offset of the IP header.
        direction: forward: the destination; reply: the source.
        address: 4 or 16 bytes.

    Returns:
        The change, for the checksums of the layers above.
    """
    layer = ipv4 if len(address) == 4 else ipv6
    change = write(data, l3 + (layer.DESTINATION if direction == "forward" else layer.SOURCE), address)
    if layer is ipv4:
        update(data, l3 + ipv4.CHECKSUM, change)
    return change


def translate(data: bytearray, packet: Packet, direction: Direction, address: bytes, port: int) -> None:
    """
    Translate a whole packet or a first fragment: DNAT when forward, SNAT when reply.

    Args:
        data: the frame.
        packet: what was read from it.
        direction: of the packet.
        address: what its destination (forward) or source (reply) becomes.
        port: likewise.
    """
    addresses = write_address(data, packet.l3, direction, address)
    ports = write(data, packet.l4 + (2 if direction == "forward" else 0), port.to_bytes(2, "big"))
    if packet.is_partial:
        # The field holds the pseudo-header's sum so far, and ports are no part of that.
        at = packet.l4 + CHECKSUM_FIELD[packet.protocol]
        before = int.from_bytes(data[at : at + 2], "big")
        data[at : at + 2] = sum_update(before, *addresses).to_bytes(2, "big")
        return
    update_l4(data, packet.l4, packet.protocol, addresses, ports)


def update_l4(data: bytearray, l4: int, protocol: int, addresses: Change, ports: Change) -> None:
    """Update the TCP or UDP checksum for changed addresses and ports. A UDP checksum of 0 means "none" and stays."""
    at = l4 + CHECKSUM_FIELD[protocol]
    before = int.from_bytes(data[at : at + 2], "big")
    if protocol == udp.PROTOCOL and before == 0:
        return
    after = checksum_update(before, addresses.old + ports.old, addresses.new + ports.new)
    if protocol == udp.PROTOCOL:
        after = udp.sent_checksum(after)
    data[at : at + 2] = after.to_bytes(2, "big")


def complete_partial(data: bytearray, packet: Packet) -> None:
    """
    Finish a checksum that was left to the network card: the field's pseudo-header sum is summed along with everything
    else.
    """
    after = checksum(bytes(data[packet.l4 :]))
    if packet.is_udp:
        after = udp.sent_checksum(after)
    at = packet.l4 + packet.offload.csum_offset
    data[at : at + 2] = after.to_bytes(2, "big")
