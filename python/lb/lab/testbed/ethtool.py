"""
Switch the offloads of a network interface, through the ETHTOOL ioctl; no `ethtool` program is needed.

A veth with offloads hands over unfinished frames (CHECKSUM_PARTIAL, GSO); without them it carries only what a real
wire could. The testbed runs in both modes. The calls act on the network namespace of the calling thread. Constants are
from linux/ethtool.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
IFNAMSIZ = 16

# (get command, set command) of each offload. The order matters: segmentation depends on checksum and scatter-gather.
OFFLOADS: dict[str, tuple[int, int]] = {
    "rx": (0x14, 0x15),
    "tx": (0x16, 0x17),
    "sg": (0x18, 0x19),
    "tso": (0x1E, 0x1F),
    "gso": (0x23, 0x24),
    "gro": (0x2B, 0x2C),
}


def set_offloads(interface: str, enabled: bool) -> None:
    """
    Switch every offload of an interface on or off.

    Raises:
        OSError: there is no such interface, or the caller lacks CAP_NET_ADMIN over its namespace.
    """
    names = list(OFFLOADS) if enabled else list(reversed(OFFLOADS))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            _call(control, interface, OFFLOADS[name][1], int(enabled))


def set_offload(interface: str, name: str, enabled: bool) -> None:
    """
    Switch one offload of an interface, by its name in OFFLOADS.

    Raises:
        OSError: there is no such interface, or the caller lacks CAP_NET_ADMIN over its namespace.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _call(control, interface, OFFLOADS[name][1], int(enabled))


def get_offloads(interface: str) -> dict[str, bool]:
    """
    Read which offloads of an interface are on.

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return {name: bool(_call(control, interface, get, 0)) for name, (get, _) in OFFLOADS.items()}


def _call(control: socket.socket, interface: str, command: int, value: int) -> int:
    # struct ifreq holds the name and a pointer to struct ethtool_value {u32 cmd; u32 data;}, which needs a stable
    # address.
    buffer = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack(f"{IFNAMSIZ}sP16x", interface.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)
    return int(struct.unpack("=II", buffer.raw)[1])
