"""
Frames on a packet socket: one message in, one message out, with the offload header that precedes each
(`PACKET_VNET_HDR`).

First and last step of the packet walk for the Python backend; `rust/core/src/io` does the same in batches. The header
is `struct virtio_net_hdr` (virtio 1.2, 5.1.6), 10 bytes in host order. The kernel takes the outermost VLAN tag out of a
frame and tells it in a control message (`PACKET_AUXDATA`): it is put back here, so that nothing behind this module
knows about it. Sockets are opened in `lb.net.sockets`.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from dataclasses import asdict, dataclass

from lb.packet.offload import Offload

# Linux constants that the socket module does not have (linux/if_packet.h, linux/virtio_net.h).
SOL_PACKET = 263
PACKET_AUXDATA = 8
TP_STATUS_VLAN_VALID = 0x10
TP_STATUS_VLAN_TPID_VALID = 0x40
NEEDS_CSUM = 1
GSO_ECN = 0x80

OFFLOAD_HEADER = struct.Struct("=BBHHHH")
# struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid.
AUXDATA = struct.Struct("=IIIHHHH")
VLAN_TAG = struct.Struct("!HH")
VLAN_8021Q = 0x8100
ADDRESSES_BYTES = 12

# The largest IP packet, Ethernet, two tags. Only BIG TCP, off by default, makes larger ones: they are counted and not
# forwarded.
MAX_FRAME_BYTES = 14 + 8 + 65535
SEND_ATTEMPTS = 3
SEND_WAIT_MS = 2


@dataclass(slots=True)
class IoCounters:
    """
    What went wrong between the wire and the data path; the `io` part of `DataPath.counters()`.

    Args:
        rx_truncated: frames larger than the buffer, not forwarded. rx_errors: failed receives (the interface went
        down, or a frame whose offload cannot be told). rx_dropped: frames that found no room before they were read, as
        far as the loop asked for them: only one with a ring does.
        tx_dropped: frames for which the way out had no room: the interface's queue, or the socket and what may wait for
        it. tx_errors: frames that the kernel refused.
    """

    rx_truncated: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0
    tx_errors: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)


def receive(sock: socket.socket, counters: IoCounters) -> tuple[bytes, Offload | None] | None:
    """
    Take one frame from a non-blocking packet socket.

    Args:
        sock: from `lb.net.sockets.open_packet_socket`.
        counters: gets what went wrong.

    Returns:
        The whole frame, VLAN tag included, and what its sender left to the network card; None when nothing is queued.
    """
    while True:
        try:
            message, control, flags, _ = sock.recvmsg(
                OFFLOAD_HEADER.size + MAX_FRAME_BYTES, socket.CMSG_SPACE(AUXDATA.size)
            )
        except BlockingIOError:
            return None
        except OSError:
            counters.rx_errors += 1
            return None
        if flags & socket.MSG_TRUNC or len(message) < OFFLOAD_HEADER.size:
            counters.rx_truncated += 1
            continue
        return unpack(message, stripped_tag(control))


def unpack(message: bytes, tag: bytes) -> tuple[bytes, Offload | None]:
    """
    Split one received message.

    Args:
        message: offload header and frame.
        tag: the VLAN tag that the kernel took out, 4 bytes, or empty.

    Returns:
        The frame with its tag, and its offload; None when nothing is left to do for it.
    """
    frame = message[OFFLOAD_HEADER.size :]
    if tag:
        frame = frame[:ADDRESSES_BYTES] + tag + frame[ADDRESSES_BYTES:]
    offload = Offload(*OFFLOAD_HEADER.unpack_from(message))
    if not offload.flags & NEEDS_CSUM and not offload.gso_type & ~GSO_ECN:
        return frame, None
    if tag:
        # Both count from the start of the frame, which the tag moved; 0 means "not given".
        offload = offload._replace(
            hdr_len=offload.hdr_len + len(tag) if offload.hdr_len else 0,
            csum_start=offload.csum_start + len(tag) if offload.flags & NEEDS_CSUM else 0,
        )
    return frame, offload


def stripped_tag(control: list[tuple[int, int, bytes]]) -> bytes:
    """Return the VLAN tag that the control messages of a receive tell of: 4 bytes in network order, or empty."""
    for level, kind, data in control:
        if level != SOL_PACKET or kind != PACKET_AUXDATA or len(data) < AUXDATA.size:
            continue
        status, _, _, _, _, tci, tpid = AUXDATA.unpack_from(data)
        if status & TP_STATUS_VLAN_VALID:
            return VLAN_TAG.pack(tpid if status & TP_STATUS_VLAN_TPID_VALID else VLAN_8021Q, tci)
    return b""


def try_send(sock: socket.socket, frame: bytes, offload: Offload | None, counters: IoCounters) -> bool:
    """
    Send one frame, or find that the socket is full, without waiting.

    Args:
        sock: from `lb.net.sockets.open_packet_socket`.
        frame: a whole Ethernet frame.
        offload: what the kernel still has to do for it.
        counters: gets a frame that the kernel refused, or for which the interface's queue had no room.

    Returns:
        Whether the frame is done with; False: the socket is full, the frame may be sent later.
    """
    try:
        sock.sendmsg([OFFLOAD_HEADER.pack(*(offload or Offload())), frame])
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            counters.tx_dropped += 1
        else:
            counters.tx_errors += 1
    return True


def send(sock: socket.socket, frame: bytes, offload: Offload | None, counters: IoCounters) -> bool:
    """
    Send one frame, waiting a few milliseconds for room if need be: not for a packet loop. What cannot be sent is
    counted, never raised.

    Args:
        sock: from `lb.net.sockets.open_packet_socket`.
        frame: a whole Ethernet frame.
        offload: what the kernel still has to do for it.
        counters: gets what went wrong.

    Returns:
        Whether the kernel took it.
    """
    header = OFFLOAD_HEADER.pack(*(offload or Offload()))
    for attempt in range(SEND_ATTEMPTS):
        if attempt:
            wait_writable(sock)
        try:
            sock.sendmsg([header, frame])
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                continue
            counters.tx_errors += 1
            return False
        return True
    counters.tx_dropped += 1
    return False


def wait_writable(sock: socket.socket) -> None:
    """Wait until the socket takes more, for `SEND_WAIT_MS` at most: the other interfaces must not wait long for one."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    poller.poll(SEND_WAIT_MS)
