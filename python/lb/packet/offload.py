"""What a sender left to its network card: it travels with a frame as `struct virtio_net_hdr`."""

from __future__ import annotations

from typing import NamedTuple


class Offload(NamedTuple):
    """
    Work the sender left to the network card, as in `struct virtio_net_hdr` (virtio 1.2, 5.1.6).

    Args:
        flags: bit 0: the L4 checksum is only the pseudo-header sum so far (NEEDS_CSUM).
        gso_type: 0 none, 1 TCPv4, 3 UDP, 4 TCPv6, 5 UDP segmentation; bit 7 ECN.
        hdr_len: bytes of all headers. gso_size: bytes of payload per segment.
        csum_start: offset of the L4 header in the frame. csum_offset: of the checksum field from there.
    """

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
