"""
Who resets a flow: a packet socket in the router that hears the RSTs of clients' and servers' flows, both ways.

What a client notices is the same whether its server has ended the connection or the balancer; here it differs. The
kernel picks the frames (a classic BPF program), so that floods are not heard.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

from lb.net.shard import ETH_P_IP, ETHERNET, Block, Instruction
from lb.net.sockets import ETH_P_ALL, set_program

# linux/filter.h. What is compared is in the accumulator; X is the length of the IP header.
LOAD_W, LOAD_H, LOAD_B, LOAD_B_AT_X, X_TO_HEADER = 0x20, 0x28, 0x30, 0x50, 0xB1
IF_EQUAL, IF_ANY, RETURN = 0x15, 0x45, 0x06
TCP, RST, FRAGMENT = 6, 0x04, 0x1FFF
HEARD_BYTES = 128


class Reset(NamedTuple):
    """A RST. `at_s`: when it was read, of the clock of the caller; `source`, `target`: address and port."""

    at_s: float
    source: tuple[str, int]
    target: tuple[str, int]


def program(sources: Iterable[IPv4Address], targets: Iterable[IPv4Address]) -> Block:
    """Return the program that accepts a RST from some addresses, or to others."""
    tests = [(ETHERNET + 12, address) for address in sources], [(ETHERNET + 16, address) for address in targets]
    count = sum(map(len, tests)) + len(tests)
    # The last two instructions: accept, and none.
    head = [
        (LOAD_H, 12, IF_EQUAL, ETH_P_IP, True),
        (LOAD_B, ETHERNET + 9, IF_EQUAL, TCP, True),
        (LOAD_H, ETHERNET + 6, IF_ANY, FRAGMENT, False),
    ]
    made: list[Instruction] = []
    total = 2 * len(head) + 3 + count + 2
    accept, refuse = total - 2, total - 1
    for load, place, test, operand, goes_on in head:
        made.append(Instruction(load, 0, 0, place))
        away = refuse - len(made) - 1
        made.append(Instruction(test, 0 if goes_on else away, away if goes_on else 0, operand))
    made.append(Instruction(X_TO_HEADER, 0, 0, ETHERNET))
    made.append(Instruction(LOAD_B_AT_X, 0, 0, ETHERNET + 13))
    made.append(Instruction(IF_ANY, 0, refuse - len(made) - 1, RST))
    for group in tests:
        made.append(Instruction(LOAD_W, 0, 0, group[0][0] if group else ETHERNET))
        for _, address in group:
            made.append(Instruction(IF_EQUAL, accept - len(made) - 1, 0, int(address)))
    # Falls through to here when nothing was equal.
    made[-1] = made[-1]._replace(jf=1)
    return (*made, Instruction(RETURN, 0, 0, HEARD_BYTES), Instruction(RETURN, 0, 0, 0))


class Resets:
    """
    The socket. Open it inside the router; close it at the end.

    Args:
        interface: its name.
        clients, servers: their addresses.
    """

    def __init__(self, interface: str, clients: Iterable[IPv4Address], servers: Iterable[IPv4Address]) -> None:
        servers = tuple(servers)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        set_program(self._socket, program(servers, (*servers, *clients)))
        self._socket.bind((interface, ETH_P_ALL))

    def read(self, now_s: float) -> Iterator[Reset]:
        """Yield what was heard since the last call."""
        while True:
            try:
                frame = self._socket.recv(HEARD_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # The link went down, or was down: said once.
                continue
            yield parsed(frame, now_s)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def parsed(frame: bytes, now_s: float) -> Reset:
    """Return the RST that a frame is."""
    start = ETHERNET + 4 * (frame[ETHERNET] & 0x0F)
    source, target = (socket.inet_ntoa(frame[at : at + 4]) for at in (ETHERNET + 12, ETHERNET + 16))
    ports = int.from_bytes(frame[start : start + 2], "big"), int.from_bytes(frame[start + 2 : start + 4], "big")
    return Reset(now_s, (source, ports[0]), (target, ports[1]))
