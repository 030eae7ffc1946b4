"""Path-MTU discovery across a smaller link behind a router with two interfaces, and that several interfaces work."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from realhosts import (
    DEADLINE_S,
    PIPE_PORT,
    UDP_PORT,
    WEB_PORT,
    RunningBalancer,
    connect,
    echo_once,
    listen,
    receive_exactly,
    running_balancer,
    running_testbed,
)

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP6, two_segments

SERVER_MTU = 1400
# linux/in.h and linux/in6.h
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
BOTH_FAMILIES = pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def small_hosts(link_mode: str, unique: str) -> Iterator[Testbed]:
    """Give servers behind a link of 1400 bytes that announce a segment size of 1460, so that clients send 1500."""
    topology = two_segments(server_mtu=SERVER_MTU, server_advmss=1460)
    with running_testbed(f"{unique}m{link_mode}-", topology=topology, offloads=link_mode == "on") as testbed:
        yield testbed


@pytest.fixture(scope="module")
def small_balancer(small_hosts: Testbed, backend: str) -> Iterator[RunningBalancer]:
    with running_balancer(small_hosts, backend) as running:
        yield running


def _path_mtu(connection: socket.socket, vip: object) -> int:
    level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if vip is VIP6 else (socket.IPPROTO_IP, IP_MTU)
    return connection.getsockopt(level, option)


def _forget_path(testbed: Testbed, host: str) -> None:
    """Empty a host's cache of path MTUs: the last balancer's answer must not help this one."""
    with testbed.inside(host):
        for family in ("ipv4", "ipv6"):
            Path(f"/proc/sys/net/{family}/route/flush").write_text("1")


@BOTH_FAMILIES
def test_tcp_through_smaller_link_arrives_and_learns_mtu(
    small_hosts: Testbed, small_balancer: RunningBalancer, vip: object
) -> None:
    """
    Full-size segments that do not fit are answered with the MTU, and all data arrives (rule 12.2, frames over the
    MTU).
    """
    _forget_path(small_hosts, "client1")
    payload = bytes(range(256)) * 4000
    before = small_balancer.verdict("reply.too_big")
    with ExitStack() as stack:
        listener = stack.enter_context(listen(small_hosts, "server1", vip))
        client = stack.enter_context(connect(small_hosts, "client1", PIPE_PORT, vip))
        server = stack.enter_context(listener.accept()[0])
        client.setblocking(False)
        server.settimeout(DEADLINE_S)
        assert _send_while_receiving(client, server, payload) == payload
        assert _path_mtu(client, vip) == SERVER_MTU
    assert small_balancer.verdict("reply.too_big") > before


def _send_while_receiving(client: socket.socket, server: socket.socket, payload: bytes) -> bytes:
    received, sent = bytearray(), 0
    while len(received) < len(payload):
        readable, writable, _ = select.select([server], [client] if sent < len(payload) else [], [], DEADLINE_S)
        assert readable or writable, f"stuck after {len(received)} bytes"
        if writable:
            sent += client.send(payload[sent : sent + 65536])
        if readable:
            received += server.recv(1 << 20)
    return bytes(received)


@BOTH_FAMILIES
def test_udp_with_dont_fragment_sees_mtu(small_hosts: Testbed, small_balancer: RunningBalancer, vip: object) -> None:
    """A datagram that does not fit comes back as "message too long", with the MTU (rule 12.2, frames over the MTU)."""
    _forget_path(small_hosts, "client2")
    is_six = vip is VIP6
    with small_hosts.socket("client2", socket.AF_INET6 if is_six else socket.AF_INET, socket.SOCK_DGRAM) as client:
        level, option = (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if is_six else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        client.setsockopt(level, option, IP_PMTUDISC_DO)
        client.connect((str(vip), UDP_PORT))
        client.send(bytes(1440))
        poller = select.poll()
        poller.register(client, select.POLLERR)
        assert poller.poll(DEADLINE_S * 1000), "no ICMP error came back"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        assert _path_mtu(client, vip) == SERVER_MTU
        with pytest.raises(OSError, match="too long"):
            client.send(bytes(1440))
        client.settimeout(DEADLINE_S)
        client.send(bytes(1300))
        assert len(client.recv(2000)) == 1300


@BOTH_FAMILIES
def test_echo_between_two_interfaces_returns_greeting(
    small_hosts: Testbed, small_balancer: RunningBalancer, vip: object
) -> None:
    """In by one interface, out by another, and back."""
    assert echo_once(small_hosts, "client3", vip=vip) == b"greeting"


def test_reply_larger_than_front_link_needs_no_help(small_hosts: Testbed, small_balancer: RunningBalancer) -> None:
    """The return path, from the smaller link to the larger one, carries a megabyte."""
    with connect(small_hosts, "client4", WEB_PORT) as client:
        client.sendall(b"GET /1MB HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        header, _, body = receive_exactly(client, 2_000_000).partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200")
    assert len(body) == 1_000_000
