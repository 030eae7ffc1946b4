"""
Hosts that speak TCP by hand: raw frames in a host's namespace, whose kernel is kept from answering by an nft rule.

And a wire that loses what a rule names. Rules live in tables of the test namespaces only, and go with the block.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from forked import Forked
from realhosts import DEADLINE_S, LISTEN_PORT, PIPE_PORT, Capture, RunningBalancer, wait_until

import packets
from lb.lab.bench import programs
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, SWITCH, VIP, VIP6, Host
from packets import ACK, FIN, RST, SYN

Address = IPv4Address | IPv6Address
_names = itertools.count()
_LETTERS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (ACK, "A"))


@contextmanager
def nft_rules(testbed: Testbed, host: str, family: str, chain: str) -> Iterator[None]:
    """Load one chain into a table of its own in a host's namespace, for the block. Skip where nft is not installed."""
    program = programs.find("nft")
    if program is None:
        pytest.skip("nft is not installed")
    table = f"{family} lbtest{next(_names)}"
    programs.run(testbed, host, [program, "-f", "-"], f"table {table} {{\nchain c {{\n{chain}\n}}\n}}\n")
    try:
        yield
    finally:
        programs.run(testbed, host, [program, "delete", "table", *table.split()])


@contextmanager
def lossy_wire(testbed: Testbed, host: str, match: str) -> Iterator[None]:
    """
    Lose the packets of a host that match, on its wire, for the block.

    At the far end of its cable: a packet dropped within the host is not lost, its TCP sees that it was never sent.
    """
    hook = f'type filter hook ingress device "{host}-eth0" priority 0; policy accept;'
    with nft_rules(testbed, SWITCH, "netdev", f"{hook}\n{match} counter drop"):
        yield


@contextmanager
def deaf_kernel(testbed: Testbed, host: str, port: int) -> Iterator[None]:
    """Keep a host's kernel from hearing TCP packets to a port, and so from answering them."""
    hook = "type filter hook input priority 0; policy accept;"
    with nft_rules(testbed, host, "inet", f"{hook}\ntcp dport {port} drop"):
        yield


@dataclass(frozen=True)
class Segment:
    """What arrived: addresses, ports and numbers; `flags` as letters in the order of SFRA."""

    source: tuple[str, int]
    target: tuple[str, int]
    seq: int
    ack: int
    flags: str
    data: bytes


def parse(frame: bytes) -> Segment | None:
    """Return a frame's TCP segment; None when it is something else. Its checksum must be right."""
    ethertype, packet = frame[12:14], frame[14:]
    if ethertype == b"\x08\x00" and packet[9] == packets.TCP:
        start, source, target = (packet[0] & 15) * 4, packet[12:16], packet[16:20]
        payload = packet[start : int.from_bytes(packet[2:4], "big")]
    elif ethertype == b"\x86\xdd" and packet[6] == packets.TCP:
        source, target = packet[8:24], packet[24:40]
        payload = packet[40 : 40 + int.from_bytes(packet[4:6], "big")]
    else:
        return None
    summed = packets.pseudo_header(source, target, packets.TCP, len(payload)) + payload
    assert packets.checksum(summed) == 0, "a wrong TCP checksum arrived"
    sport, dport, seq, ack, offset, flags = struct.unpack("!HHIIBB", payload[:14])
    letters = "".join(letter for bit, letter in _LETTERS if flags & bit)
    data = payload[(offset >> 4) * 4 :]
    ends = [(socket.inet_ntop(_family(raw), raw), port) for raw, port in ((source, sport), (target, dport))]
    return Segment(ends[0], ends[1], seq, ack, letters, data)


def _family(raw: bytes) -> int:
    return socket.AF_INET if len(raw) == 4 else socket.AF_INET6


class RawEnd:
    """
    One end of a TCP connection, in a host.

    Args:
        testbed: where.
        host: its name; it sends through the router.
        address, port: its own.
        target: the address and port it sends to, and hears from.
    """

    def __init__(self, testbed: Testbed, host: str, address: Address, port: int, target: tuple[Address, int]) -> None:
        self._host, self._router = testbed.topology.host(host), testbed.topology.host(ROUTER)
        self.address, self._port, self._target = address, port, target
        self._capture = Capture(testbed, host)
        self._socket = testbed.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind(("eth0", 0))
        self._taken = 0

    def close(self) -> None:
        """Close its sockets."""
        self._capture.stop()
        self._socket.close()

    def send(self, flags: str, seq: int, ack: int = 0, data: bytes = b"") -> None:
        """Send one segment."""
        source, target = self.address.packed, self._target[0].packed
        bits = sum(bit for bit, letter in _LETTERS if letter in flags)
        segment = packets.tcp(
            source, target, self._port, self._target[1], seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, bits, data
        )
        make = packets.ip4 if len(source) == 4 else packets.ip6
        packet = make(source, target, packets.TCP, segment)
        self._socket.send(packets.ether(_mac(self._router), _mac(self._host), packet))

    def expect(self, flags: str, seq: int, ack: int | None = None, data: bytes = b"") -> None:
        """Wait for the next segment of this connection, which must be this one."""
        found = wait_until(self._next, f"{flags} {seq} arrives at {self._host.name}")
        expected = Segment(
            (str(self._target[0]), self._target[1]),
            (str(self.address), self._port),
            seq & 0xFFFFFFFF,
            found.ack if ack is None else ack & 0xFFFFFFFF,
            flags,
            data,
        )
        assert expected == found

    def _next(self) -> Segment | None:
        self._capture.drain()
        while self._taken < len(self._capture.frames):
            found = parse(self._capture.frames[self._taken][1])
            self._taken += 1
            if found is not None and found.target == (str(self.address), self._port):
                return found
        return None


def _mac(host: Host) -> bytes:
    return bytes.fromhex(host.interfaces[0].mac.replace(":", ""))


@dataclass
class Conversation:
    """A client and a server by hand, with the balancer between them."""

    testbed: Testbed
    balancer: RunningBalancer
    client: RawEnd
    server: RawEnd
    client_port: int

    def state(self) -> str | None:
        """Return the flow's state; None without a flow."""
        return self._state_in(self.balancer.flows())

    def shown_state(self) -> str | None:
        """Return the flow's state as `lb flows -o json` shows it; None without a flow."""
        return self._state_in(list_flows(self.balancer, self.client.address))

    def wait_state(self, state: str) -> None:
        """Wait until the flow has a state: a packet may have left before its state is shown."""
        wait_until(lambda: self.state() == state, f"the flow is {state}")

    def _state_in(self, flows: list[dict[str, Any]]) -> str | None:
        ours = (str(self.client.address), self.client_port)
        states = [str(row["state"]) for row in flows if (row["client"], row["client_port"]) == ours]
        assert len(states) <= 1
        return states[0] if states else None


def list_flows(balancer: RunningBalancer, client: Address) -> list[dict[str, Any]]:
    """Return the flows of a client's address, as `lb flows -o json` prints them."""
    assert balancer.running is not None
    command = ("flows", "-o", "json", "--client", str(client), "--control", str(balancer.running.control))
    log = balancer.testbed.directory / f"{ROUTER}-flows.log"
    child = Forked(balancer.testbed.prefix + ROUTER, command, log, os.environ)
    assert child.wait(DEADLINE_S) == 0, log.read_text()
    rows: list[dict[str, Any]] = json.loads(log.read_text())["flows"]
    return rows


@contextmanager
def conversation(testbed: Testbed, balancer: RunningBalancer, vip: Address = VIP) -> Iterator[Conversation]:
    """Give both ends of a connection to the service `pipe`, not opened yet; kernels stay silent."""
    client, server = testbed.topology.host("client1"), testbed.topology.host("server1")
    six = vip == VIP6
    addresses = (client.address6, server.address6) if six else (client.address, server.address)
    # Bound for the block, so that the kernel gives this port to no connection.
    with testbed.socket("client1", socket.AF_INET6 if six else socket.AF_INET) as reserved:
        reserved.bind(("::" if six else "0.0.0.0", 0))
        port = int(reserved.getsockname()[1])
        with deaf_kernel(testbed, "client1", port), deaf_kernel(testbed, "server1", LISTEN_PORT):
            ends = (
                RawEnd(testbed, "client1", addresses[0], port, (vip, PIPE_PORT)),
                RawEnd(testbed, "server1", addresses[1], LISTEN_PORT, (addresses[0], port)),
            )
            try:
                yield Conversation(testbed, balancer, *ends, port)
            finally:
                for end in ends:
                    end.close()
