"""
Packet sockets: opened and tuned here, used by whichever backend runs.

Start of the packet walk. A backend gets descriptors and needs no privilege itself: all that needs CAP_NET_RAW happens
in this module. The sockets see the frames of one interface, finished or not (`PACKET_VNET_HDR`: checksums and
segmentation that the sender left to the network card are told in a header, and may be left to the next one). Addresses
and routes are read elsewhere; this module asks the kernel only what ioctls tell.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from typing import NamedTuple

from lb.errors import ConfigError, InterfaceError, LbError, PrivilegeError
from lb.net.frames import PACKET_AUXDATA, SOL_PACKET
from lb.net.shard import NOTHING, Block

# Linux constants that the socket module does not have (linux/if_packet.h, linux/if_ether.h, linux/if.h,
# linux/sockios.h).
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_PROMISC = 1
PACKET_MR_ALLMULTI = 2
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
AF_XDP = 44
IFF_UP = 1
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
SIOCGIFHWADDR = 0x8927
SO_ATTACH_FILTER = 26
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
IFNAMSIZ = 16
MAX_NAME_BYTES = IFNAMSIZ - 1

# A burst waits here while the data path is busy. The kernel counts what a frame occupies (a 64 KiB frame: about 70 KiB)
# and doubles the number given, so this holds some 920 of the largest frames. Measured: 300
# connections that each send 300 kB at once both ways over one veth lost 949 frames here with 8 MiB, none with 32.
DEFAULT_RCVBUF_BYTES = 32 * 1024 * 1024
# The default, 208 KiB, lets only three of the largest frames be on their way at once.
DEFAULT_SNDBUF_BYTES = 4 * 1024 * 1024


class InterfaceFacts(NamedTuple):
    """An interface as the kernel describes it. `mac`: 6 bytes; `mtu`: bytes of IP packet; `up`: switched on."""

    number: int
    mac: bytes
    mtu: int
    up: bool


def open_packet_socket(
    interface_name: str,
    *,
    promiscuous: bool = False,
    direct: bool = False,
    muted: bool = False,
    rcvbuf_bytes: int = DEFAULT_RCVBUF_BYTES,
    made: socket.socket | None = None,
) -> socket.socket:
    """
    Open a packet socket on an interface: non-blocking, with offload headers and VLAN tags, without our own frames.

    Args:
        interface_name: as in `ip link`.
        promiscuous: take frames for other MAC addresses too, for as long as the socket is open.
        direct: hand frames to the driver past the interface's queue discipline. tcpdump on this host does not see them
            then; a full driver queue drops at once.
        muted: hear nothing until `set_program`.
        rcvbuf_bytes: room for frames that wait to be read, as `SO_RCVBUF` counts.
        made: from `new_socket`, by a process that had the right to; None: make it here.

    Returns:
        The socket; the caller closes it.

    Raises:
        InterfaceError: there is no such interface, or it is down.
        PrivilegeError: CAP_NET_RAW is missing, or the kernel lacks an option.
    """
    facts = read_interface(interface_name)
    if not facts.up:
        raise InterfaceError(f"{interface_name} is down: `ip link set {interface_name} up`")
    sock = new_socket(interface_name) if made is None else made
    try:
        set_options(sock, rcvbuf_bytes)
        if direct:
            set_option(sock, SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS (Linux 3.14)")
        if muted:
            set_program(sock, NOTHING)
        if promiscuous:
            add_membership(sock, facts.number, PACKET_MR_PROMISC)
        # Last: until now the socket has no protocol and hears nothing, so that no frame arrives without its header.
        sock.bind((interface_name, ETH_P_ALL))
    except OSError as error:
        sock.close()
        raise InterfaceError(f"{interface_name}: cannot listen for packets: {error.strerror}") from error
    except LbError:
        sock.close()
        raise
    return sock


def open_direct_socket(interface_name: str) -> socket.socket:
    """
    Open the socket by which a backend hands finished frames of an interface straight to its driver.

    Args:
        interface_name: for the message.

    Returns:
        A fresh AF_XDP socket, bound to nothing yet; the caller closes it.

    Raises:
        PrivilegeError: CAP_NET_RAW is missing, or the kernel has no AF_XDP.
    """
    try:
        return socket.socket(AF_XDP, socket.SOCK_RAW, 0)
    except OSError as error:
        raise PrivilegeError(
            f'{interface_name}: transmit = "direct" needs CAP_NET_RAW and CONFIG_XDP_SOCKETS ({error.strerror}): '
            'use transmit = "queue"'
        ) from error


def hear_multicast(sock: socket.socket, interface_name: str) -> None:
    """
    Take every multicast frame of the interface, for as long as the socket is open.

    A network card hands over only groups that the host has joined, and a solicitation for a VIP goes to a group that no
    host has joined (RFC 4291 2.7.1). A veth hands over everything. A second call changes nothing.

    Args:
        sock: from `open_packet_socket`.
        interface_name: the same as there.

    Raises:
        InterfaceError: there is no such interface any more.
    """
    number = find_index(interface_name)
    try:
        add_membership(sock, number, PACKET_MR_ALLMULTI)
    except OSError as error:
        raise InterfaceError(f"{interface_name}: cannot listen for multicast: {error.strerror}") from error


def set_program(sock: socket.socket, program: Block) -> None:
    """Set a socket's filter: from now on it receives only the frames that a program of `lb.net.shard` accepts."""
    text = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    memory = ctypes.create_string_buffer(text, len(text))
    # struct sock_fprog: how many instructions, and where they are. The kernel copies them.
    fields = struct.pack("@HP", len(program), ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fields)


def require_room(program: Block) -> None:
    """Raise ConfigError when the kernel cannot hold a program twice, as it does while one takes another's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            set_program(sock, program)
            set_program(sock, program)
        except OSError as error:
            what = f"there are too many VIPs for several workers here ({error.strerror})"
            hint = "use workers = 1, or try `sysctl -w net.core.optmem_max=524288`"
            raise ConfigError([f"{what}: {hint}"]) from error


def take_drops(sock: socket.socket) -> int:
    """Return the frames dropped since the last call because the socket's queue was full."""
    # struct tpacket_stats: packets, drops. Reading sets both to 0.
    statistics = struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return int(statistics[1])


def add_membership(sock: socket.socket, number: int, kind: int) -> None:
    """Let more frames of interface `number` in; `kind` is one of PACKET_MR_*. The kernel undoes it with the socket."""
    membership = struct.pack("=iHH8s", number, kind, 0, b"")
    set_option(sock, SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership, "PACKET_ADD_MEMBERSHIP")


def new_socket(interface_name: str) -> socket.socket:
    """Make a packet socket that is bound to nothing yet, or raise PrivilegeError."""
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise PrivilegeError(
            f"reading packets from {interface_name} needs CAP_NET_RAW: "
            "run as root, or `lb run --testbed`, which needs none"
        ) from error
    except OSError as error:
        raise PrivilegeError(f"this kernel has no packet sockets (CONFIG_PACKET): {error.strerror}") from error


def set_options(sock: socket.socket, rcvbuf_bytes: int) -> None:
    """
    Set what every packet socket of ours has. Raise PrivilegeError for what the kernel lacks.

    PACKET_QDISC_BYPASS is left off unless asked for: with it our frames would pass by the traffic shaping of the
    interface (tbf and htb in the testbed, fq on real cards), and a full driver queue would drop at once.
    """
    set_option(sock, SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR (Linux 2.6.27)")
    set_option(sock, SOL_PACKET, PACKET_AUXDATA, 1, "PACKET_AUXDATA (Linux 2.6.21)")
    set_option(sock, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING (Linux 4.20)")
    set_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, rcvbuf_bytes)
    set_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, DEFAULT_SNDBUF_BYTES)


def set_option(sock: socket.socket, level: int, option: int, value: int | bytes, feature: str) -> None:
    """Set a socket option, or raise PrivilegeError that names the feature which the kernel lacks."""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
            raise
        raise PrivilegeError(f"this kernel is too old: it has no {feature}") from error


def set_buffer(sock: socket.socket, force_option: int, option: int, size_bytes: int) -> None:
    """Set a buffer's size; without CAP_NET_ADMIN as much of it as net.core.[rw]mem_max allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force_option, size_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, size_bytes)


def claim_interface(name: str) -> socket.socket:
    """
    Claim an interface for this process, so that two balancers never answer on one wire.

    Args:
        name: as in `ip link`.

    Returns:
        A socket that holds the claim until it is closed, also by the death of the process.

    Raises:
        InterfaceError: there is no such interface, or another balancer has it.
    """
    index = find_index(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # An abstract name lives in the network namespace, as the interface does, and leaves no file behind.
        sock.bind(f"\0flowlb/{index}")
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise LbError(f"{name} cannot be claimed: {error.strerror}") from error
        raise InterfaceError(f"another balancer runs on {name}: stop it first, or choose another interface") from error
    return sock


def is_claimed(index: int) -> bool:
    """Tell whether a balancer, this one included, has claimed the interface with this index."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(f"\0flowlb/{index}")
        except OSError:
            return True
    return False


def read_interface(name: str) -> InterfaceFacts:
    """
    Read what the kernel says about an interface.

    Raises:
        InterfaceError: there is no such interface, or it is no Ethernet interface.
    """
    index = find_index(name)
    request = struct.pack("16s24x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            flags = fcntl.ioctl(sock, SIOCGIFFLAGS, request)
            mtu = fcntl.ioctl(sock, SIOCGIFMTU, request)
            mac = fcntl.ioctl(sock, SIOCGIFHWADDR, request)
        except OSError as error:
            raise InterfaceError(f"{name}: {error.strerror}") from error
    return InterfaceFacts(
        number=index,
        mac=mac[IFNAMSIZ + 2 : IFNAMSIZ + 8],
        mtu=struct.unpack_from("=i", mtu, IFNAMSIZ)[0],
        up=bool(struct.unpack_from("=H", flags, IFNAMSIZ)[0] & IFF_UP),
    )


def find_index(name: str) -> int:
    """Return the index of an interface, or raise InterfaceError that names those that exist."""
    with contextlib.suppress(OSError, ValueError):
        if len(name.encode()) <= MAX_NAME_BYTES:
            return socket.if_nametoindex(name)
    names = ", ".join(other for _, other in socket.if_nameindex())
    raise InterfaceError(f"there is no interface {name!r} here; there are: {names}")
