"""
Who resets a flow: a packet socket in the router that hears the RSTs of clients' and servers' flows, both ways.

What a client notices is the same whether its server has ended the connection or the balancer; here it differs. The
kernel picks the frames (a classic BPF program), so that floods are not heard.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Literal, NamedTuple, TypeAlias

from lb.net.shard import ETH_P_IP, ETHERNET, Block, Instruction
from lb.net.sockets import ETH_P_ALL, SO_RCVBUFFORCE, set_buffer, set_program, take_drops

# linux/filter.h. What is compared is in the accumulator; X is the length of the IP header.
LOAD_W, LOAD_H, LOAD_B, LOAD_B_AT_X, X_TO_HEADER = 0x20, 0x28, 0x30, 0x50, 0xB1
IF_EQUAL, IF_ANY, RETURN = 0x15, 0x45, 0x06
TCP, RST, ACK, FRAGMENT = 6, 0x04, 0x10, 0x1FFF
SOURCE, TARGET, FLAGS = ETHERNET + 12, ETHERNET + 16, 13
HEARD_BYTES = 128
# A server that is taken out has its flows reset all at once, both ways.
ROOM_BYTES = 8 << 20
# asm-generic/socket.h; the message that it asks for has the same number, and a struct timespec.
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("@ll")

Jump: TypeAlias = Literal["next", "refuse", "accept"]
# Operation, operand, and where it goes on if what it asks is so and if it is not.
Step: TypeAlias = tuple[int, int, Jump, Jump]


class Reset(NamedTuple):
    """
    A RST.

    Args:
        at_s: when it came, of the clock of the caller.
        source, target: address and port.
        gives_up: whether it has ACK, as that of a host which ends a connection that it has. One that has none answers
            a segment with ACK by a RST without (RFC 9293 3.10.7.1).
    """

    at_s: float
    source: tuple[str, int]
    target: tuple[str, int]
    gives_up: bool


def program(clients: Iterable[IPv4Address], servers: Iterable[IPv4Address], vip: IPv4Address) -> Block:
    """Return the program that accepts the RSTs from servers, to servers and clients, and from clients to the VIP."""
    clients, servers = tuple(clients), tuple(servers)
    steps: list[Step] = [
        (LOAD_H, 12, "next", "next"),
        (IF_EQUAL, ETH_P_IP, "next", "refuse"),
        (LOAD_B, ETHERNET + 9, "next", "next"),
        (IF_EQUAL, TCP, "next", "refuse"),
        (LOAD_H, ETHERNET + 6, "next", "next"),
        (IF_ANY, FRAGMENT, "refuse", "next"),
        (X_TO_HEADER, ETHERNET, "next", "next"),
        (LOAD_B_AT_X, ETHERNET + FLAGS, "next", "next"),
        (IF_ANY, RST, "next", "refuse"),
        *_accepting(SOURCE, servers),
        *_accepting(TARGET, (*servers, *clients)),
        (IF_EQUAL, int(vip), "next", "refuse"),
        *_accepting(SOURCE, clients),
    ]
    return _assembled(steps)


def _accepting(place: int, addresses: Iterable[IPv4Address]) -> Iterator[Step]:
    """Yield what accepts a frame that has one of some addresses at a place."""
    yield LOAD_W, place, "next", "next"
    for address in addresses:
        yield IF_EQUAL, int(address), "accept", "next"


def _assembled(steps: list[Step]) -> Block:
    """Return steps as a program, which refuses what comes to its end."""
    made = []
    for left, (code, operand, if_so, if_not) in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        ways = {"next": 0, "refuse": left, "accept": left + 1}
        made.append(Instruction(code, ways[if_so], ways[if_not], operand))
    return (*made, Instruction(RETURN, 0, 0, 0), Instruction(RETURN, 0, 0, HEARD_BYTES))


class Resets:
    """
    The socket. Open it inside the router; close it at the end.

    Args:
        interface: its name.
        clients, servers, vip: their addresses.
    """

    def __init__(
        self, interface: str, clients: Iterable[IPv4Address], servers: Iterable[IPv4Address], vip: IPv4Address
    ) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        set_buffer(self._socket, SO_RCVBUFFORCE, socket.SO_RCVBUF, ROOM_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        set_program(self._socket, program(clients, servers, vip))
        self._socket.bind((interface, ETH_P_ALL))

    def read(self, now_s: float) -> Iterator[Reset]:
        """Yield what was heard since the last call. `now_s`: of the clock that its times shall be of."""
        known = now_s - time.clock_gettime(time.CLOCK_REALTIME)
        while True:
            try:
                frame, told, _, _ = self._socket.recvmsg(HEARD_BYTES, socket.CMSG_SPACE(TIMESPEC.size))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # The link went down, or was down: said once.
                continue
            yield parsed(frame, known + stamp(told))

    def take_lost(self) -> int:
        """Return how many were not heard since the last call, for want of room."""
        return take_drops(self._socket)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def stamp(told: Iterable[tuple[int, int, bytes]]) -> float:
    """Return when a frame came by what the kernel tells beside it: seconds of the real-time clock."""
    (seconds, nanoseconds) = next(TIMESPEC.unpack(data) for _, kind, data in told if kind == SO_TIMESTAMPNS)
    return float(seconds + nanoseconds / 1e9)


def parsed(frame: bytes, at_s: float) -> Reset:
    """Return the RST that a frame is, which came then."""
    start = ETHERNET + 4 * (frame[ETHERNET] & 0x0F)
    source, target = (socket.inet_ntoa(frame[at : at + 4]) for at in (SOURCE, TARGET))
    ports = int.from_bytes(frame[start : start + 2], "big"), int.from_bytes(frame[start + 2 : start + 4], "big")
    return Reset(at_s, (source, ports[0]), (target, ports[1]), bool(frame[start + FLAGS] & ACK))
