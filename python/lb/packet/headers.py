"""What `parse` reads from a frame: the one shape that all backends return."""

from __future__ import annotations

from typing import NamedTuple


class Headers(NamedTuple):
    """
    What `parse` reads from one frame, without any snapshot (`docs/rules.md` rule 14, the primitive parse).

    Args:
        reason: the drop reason when the frame is malformed, else None; with a reason, the fields read before it are
        set and the rest are 0 or empty.
        ethertype: after the VLAN tags, 0 when not reached. vlans: TCI of each tag, outermost first.
        l3_offset, l4_offset, payload_offset: byte offsets in the frame, 0 when there is no such header.
        source, destination: 4 or 16 bytes, network order; empty when not IP.
        protocol: the L4 protocol number, 0 when not IP. ttl: TTL or hop limit.
        source_port, destination_port: TCP and UDP, 0 in later fragments. tcp_flags: low 8 bits.
        fragment_offset: bytes. more_fragments: MF.
        total_len: bytes of the IP packet from its header to its end.
    """

    reason: str | None
    ethertype: int
    vlans: tuple[int, ...]
    l3_offset: int
    l4_offset: int
    payload_offset: int
    source: bytes
    destination: bytes
    protocol: int
    ttl: int
    source_port: int
    destination_port: int
    tcp_flags: int
    fragment_offset: int
    more_fragments: bool
    total_len: int
