"""
Floods at a VIP, from a host of the testbed: packets of one kind, their sources drawn at random, at a pace.

The kernel makes the frames (`lb._core.scatter`, Linux 5.18, CAP_BPF). Sources are addresses of 10.0.0.0/8, which the
testbed has no other use for. What comes back goes to the flooding host, whose kernel has no use for it. IPv4 only.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from lb.lab.testbed import build, ethtool
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, SWITCH
from lb.packet import tcp
from lb.packet.checksum import checksum
from lb.packet.protocols import PROTOCOLS

# Words that are drawn: (offset in the frame, bits). Of a source address the first octet stays; a port is never 0.
ADDRESS, PORT = ((26, 0x00FF), (28, 0xFFFF)), ((34, 0x7FFF),)
SEQUENCE, ACKNOWLEDGEMENT, IDENTIFICATION = ((38, 0xFFFF), (40, 0xFFFF)), ((42, 0xFFFF), (44, 0xFFFF)), ((18, 0xFFFF),)
# The port of the client in the packet that an ICMP error is about: behind 14 + 20 + 8 + 20 + 2 bytes.
INNER_PORT = ((64, 0x7FFF),)
FIRST_PORT = 0x8000
SOURCES = IPv4Network("10.0.0.0/8")
SOURCE, INNER_CLIENT = SOURCES.network_address, IPv4Address("10.1.2.3")
MORE_FRAGMENTS = 0x2000
FRAGMENT_OFFSET = 185
PADDING = 18
ECHO, UNREACHABLE, PORT_UNREACHABLE = 8, 3, 3
NICENESS = 10

Words = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A VIP with a TCP service and a UDP service."""

    vip: IPv4Address
    tcp_port: int
    udp_port: int


def _ip(protocol: int, payload: bytes, source: IPv4Address, vip: IPv4Address, fragment: int = 0) -> bytes:
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
        + source.packed
        + vip.packed
        + payload
    )


def _tcp(flags: int) -> Callable[[Target], bytes]:
    def packet(target: Target) -> bytes:
        segment = struct.pack("!HHIIBBHHH", FIRST_PORT, target.tcp_port, 0, 0, 0x50, flags, 65535, 0, 0)
        return _ip(PROTOCOLS["tcp"], segment, SOURCE, target.vip)

    return packet


def _udp(target: Target) -> bytes:
    datagram = struct.pack("!HHHH", FIRST_PORT, target.udp_port, 8 + PADDING, 0) + bytes(PADDING)
    return _ip(PROTOCOLS["udp"], datagram, SOURCE, target.vip)


def _later_fragment(target: Target) -> bytes:
    return _ip(PROTOCOLS["udp"], bytes(24), SOURCE, target.vip, MORE_FRAGMENTS | FRAGMENT_OFFSET)


def _first_fragment(target: Target) -> bytes:
    datagram = struct.pack("!HHHH", FIRST_PORT, target.udp_port, 2000, 0) + bytes(16)
    return _ip(PROTOCOLS["udp"], datagram, SOURCE, target.vip, MORE_FRAGMENTS)


def _echo(target: Target) -> bytes:
    return _ip(1, struct.pack("!BBHHH", ECHO, 0, 0, 1, 1) + bytes(PADDING), SOURCE, target.vip)


def _icmp_error(target: Target) -> bytes:
    ports = struct.pack("!HHI", target.tcp_port, FIRST_PORT, 1)
    inner = bytearray(_ip(PROTOCOLS["tcp"], ports, target.vip, INNER_CLIENT))
    # The inner header is not drawn from, so that its checksum is made once, here.
    inner[10:12] = checksum(bytes(inner[:20])).to_bytes(2, "big")
    return _ip(1, struct.pack("!BBHI", UNREACHABLE, PORT_UNREACHABLE, 0, 0) + bytes(inner), SOURCE, target.vip)


KINDS: dict[str, tuple[Callable[[Target], bytes], Words]] = {
    "syn": (_tcp(tcp.SYN), ADDRESS + PORT + SEQUENCE),
    "ack": (_tcp(tcp.ACK), ADDRESS + PORT + SEQUENCE + ACKNOWLEDGEMENT),
    "rst": (_tcp(tcp.RST), ADDRESS + PORT + SEQUENCE),
    "udp": (_udp, ADDRESS + PORT),
    "first-fragment": (_first_fragment, ADDRESS + PORT + IDENTIFICATION),
    "later-fragment": (_later_fragment, ADDRESS + IDENTIFICATION),
    "icmp-echo": (_echo, ADDRESS),
    "icmp-error": (_icmp_error, ADDRESS + INNER_PORT),
}


def prepare(testbed: Testbed, host: str) -> None:
    """
    Let a host flood, and servers answer.

    Frames that the kernel makes enter a link by NAPI, which GRO switches on at its other end. An answered flood is the
    harder one: servers get a route to the sources.
    """
    with testbed.inside(SWITCH):
        ethtool.set_offload(f"{host}-eth0", "gro", True)
    for server in testbed.topology.of_role("server"):
        build.add_route(testbed.prefix, server, SOURCES)


class Flood:
    """
    Packets of one kind from one host, on a thread of their own; `with` waits for their end.

    Args:
        testbed: where; `prepare` was called for the host.
        host: who floods.
        kind: of KINDS.
        target: what is flooded.
        rate_pps: packets per second; fewer come where the machine has no time for them.
        seconds: how long.
        packets: minimum number of packets, however long they take.
    """

    def __init__(
        self,
        testbed: Testbed,
        host: str,
        kind: str,
        target: Target,
        rate_pps: float,
        seconds: float,
        packets: int = 0,
    ) -> None:
        self._testbed, self._host, self._limits, self._least = testbed, host, (seconds, rate_pps), packets
        packet, self._words = KINDS[kind]
        router, sender = (testbed.topology.host(name).interfaces[0] for name in (ROUTER, host))
        link: bytes = bytes.fromhex((router.mac + sender.mac).replace(":", "")) + b"\x08\x00"
        self._frame = link + packet(target)
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None
        self.sent, self.seconds = 0, 0.0

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    @property
    def has_ended(self) -> bool:
        """Whether the last packet was sent."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        from lb import _core

        # It waits for the next packet's time without sleeping: others go first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            with self._testbed.inside(self._host):
                number = socket.if_nametoindex("eth0")
                while not self.seconds or self.sent < self._least:
                    sent, lasted_s = _core.scatter(number, self._frame, self._words, *self._limits)
                    self.sent, self.seconds = self.sent + sent, self.seconds + lasted_s
        except BaseException as error:
            # Told to the one who waits for the end.
            self._error = error
