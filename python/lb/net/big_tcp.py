"""
Interfaces that hand over frames larger than 64 KiB (BIG TCP), which packet sockets with offload headers cannot take.

The limits are an interface's own, for what it receives merged (GRO), and its veth peer's, for what that sends unsplit
(GSO); a peer in another network namespace is asked for by the number that the kernel gives that namespace.
rtnetlink(7); `ip -d link` shows the limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import NamedTuple

from lb.errors import InterfaceError
from lb.net.sockets import find_index

LIMIT_BYTES = 65536
# linux/rtnetlink.h, linux/if_link.h
NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_GETLINK, NLM_F_REQUEST, NLMSG_ERROR = 16, 18, 1, 2
IFLA_IFNAME, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 3, 5, 37, 46
# GSO, GRO, and both for IPv4 alone (Linux 6.3).
IFLA_SIZES = {41: "gso_max_size", 58: "gro_max_size", 63: "gso_ipv4_max_size", 64: "gro_ipv4_max_size"}
NLMSG_HEADER, IFINFOMSG = "=IHHII", "=BxHiII"
ANSWER_BYTES = 65536

Attributes = dict[int, bytes]


class BigTcp(NamedTuple):
    """
    Limits above 64 KiB.

    Args:
        device: the name of the interface that has them. is_peer: whether that is the other end of a veth.
        sizes: in bytes, by name as `ip link` has it.
    """

    device: str
    is_peer: bool
    sizes: dict[str, int]

    @property
    def message(self) -> str:
        """What is wrong, in a sentence without its subject."""
        whose = f"its peer {self.device}" if self.is_peer else "it"
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{whose} makes frames larger than 64 KiB (BIG TCP: {sizes}), which are dropped"

    @property
    def fix(self) -> str:
        """The command that ends it."""
        where = " (where that is)" if self.is_peer else ""
        changes = " ".join(f"{name} {LIMIT_BYTES}" for name in self.sizes)
        return f"ip link set dev {self.device} {changes}{where}"


def find_big_tcp(name: str) -> BigTcp | None:
    """
    Return what is wrong with the limits of an interface or of its peer; None when nothing is, or cannot be found out.

    A peer in another network namespace can only be looked at with CAP_NET_ADMIN there.
    """
    with contextlib.suppress(OSError, InterfaceError):
        own = _read_link(find_index(name))
        if sizes := _too_large(own):
            return BigTcp(name, is_peer=False, sizes=sizes)
        if IFLA_LINK in own and IFLA_LINK_NETNSID in own:
            peer = _read_link(_number(own[IFLA_LINK]), namespace=_number(own[IFLA_LINK_NETNSID]))
        elif IFLA_LINK in own and _number(own[IFLA_LINK]):
            peer = _read_link(_number(own[IFLA_LINK]))
        else:
            return None
        if sizes := _too_large(peer):
            return BigTcp(os.fsdecode(peer[IFLA_IFNAME].rstrip(b"\0")), is_peer=True, sizes=sizes)
    return None


def _too_large(link: Attributes) -> dict[str, int]:
    sizes = {name: _number(link[kind]) for kind, name in IFLA_SIZES.items() if kind in link}
    return {name: size for name, size in sizes.items() if size > LIMIT_BYTES}


def _read_link(index: int, namespace: int | None = None) -> Attributes:
    """Return the attributes of a link; `namespace`: its number here. Raise OSError when there is none, or no right."""
    body = struct.pack(IFINFOMSG, 0, 0, index, 0, 0)
    if namespace is not None:
        body += struct.pack("=HHi", 8, IFLA_TARGET_NETNSID, namespace)
    header = struct.pack(NLMSG_HEADER, struct.calcsize(NLMSG_HEADER) + len(body), RTM_GETLINK, NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as netlink:
        netlink.send(header + body)
        answer = netlink.recv(ANSWER_BYTES)
    length, kind, *_ = struct.unpack_from(NLMSG_HEADER, answer)
    start = struct.calcsize(NLMSG_HEADER)
    if kind != RTM_NEWLINK:
        code = -struct.unpack_from("=i", answer, start)[0] if kind == NLMSG_ERROR else 0
        raise OSError(code, os.strerror(code))
    return _attributes(answer[start + struct.calcsize(IFINFOMSG) : length])


def _attributes(data: bytes) -> Attributes:
    found: Attributes = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind] = data[4:length]
        # Each begins at a multiple of four bytes.
        data = data[length + 3 & ~3 :]
    return found


def _number(value: bytes) -> int:
    return int(struct.unpack_from("=i", value)[0])
