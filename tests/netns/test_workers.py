"""Two workers between real hosts: all traffic that one worker carries, and the operator sees one balancer."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from realhosts import (
    DEADLINE_S,
    ECHO_PORT,
    PIPE_PORT,
    UDP_PORT,
    WEB_PORT,
    RunningBalancer,
    configuration,
    connect,
    echo_once,
    listen,
    receive_exactly,
    running_testbed,
    wait_until,
)

from lb.control.api.client import change, fetch
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP6, two_segments
from lb.net.shard import worker_of

SERVER_MTU = 1400
CLIENTS = tuple(f"client{number}" for number in range(1, 6))
ROUNDS = 8
BOTH_FAMILIES = pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    """Give a testbed whose router has two interfaces, the servers' with a smaller MTU."""
    topology = two_segments(server_mtu=SERVER_MTU, server_advmss=1460)
    with running_testbed(f"{unique}w{link_mode}-", topology=topology, offloads=link_mode == "on") as made:
        yield made


@pytest.fixture(scope="module")
def balancer(testbed: Testbed, backend: str) -> Iterator[RunningBalancer]:
    config = testbed.directory / "workers.toml"
    write_config(testbed, config)
    running = RunningBalancer(testbed, backend, config)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def write_config(testbed: Testbed, path: Path, vip: str = str(VIP)) -> None:
    path.write_text("workers = 2\n" + configuration(testbed.topology).replace(f'"{VIP}"', f'"{vip}"'))
    path.chmod(0o600)


def control_of(balancer: RunningBalancer) -> Path:
    assert balancer.running is not None
    return balancer.running.control


@BOTH_FAMILIES
def test_connections_of_five_clients_work_by_both_workers(
    testbed: Testbed, balancer: RunningBalancer, vip: object
) -> None:
    """
    Rule 8, flows, and rule 8.20, translation: both directions of a flow meet at one worker: else replies would find no
    flow.
    """
    before = balancer.counters()
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(testbed, host, WEB_PORT, vip)) for host in CLIENTS for _ in range(ROUNDS)]
        for client in opened:
            client.sendall(b"GET /1MB HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        for client in opened:
            assert len(receive_exactly(client, 2_000_000)) > 1_000_000
        own = {client.getsockname()[:2] for client in opened}
    rows = [row for row in balancer.flows() if (row["client"], row["client_port"]) in own]
    assert len(rows) == len(CLIENTS) * ROUNDS
    assert all(row["bytes_forward"] > 0 and row["bytes_reply"] > 1_000_000 for row in rows)
    assert {worker_of(ip_address(row["client"]), 2) for row in rows} == {0, 1}
    after = balancer.counters()
    assert after["events"]["flow_created"] - before["events"]["flow_created"] == len(rows)


@BOTH_FAMILIES
@pytest.mark.parametrize("host", ["client2", "client3"])
def test_stream_through_smaller_link_arrives_whole(
    testbed: Testbed, balancer: RunningBalancer, host: str, vip: object
) -> None:
    """Rule 12.2, frames over the MTU, for a client of either worker."""
    with testbed.inside(host):
        # The last balancer's answer must not help this one.
        for family in ("ipv4", "ipv6"):
            Path(f"/proc/sys/net/{family}/route/flush").write_text("1")
    payload = bytes(range(256)) * 2000
    before = balancer.verdict("reply.too_big")
    with ExitStack() as stack:
        listener = stack.enter_context(listen(testbed, "server1", vip))
        client = stack.enter_context(connect(testbed, host, PIPE_PORT, vip))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(DEADLINE_S)
        client.setblocking(False)
        received, sent = bytearray(), 0
        while len(received) < len(payload):
            want = [client] if sent < len(payload) else []
            readable, writable, _ = select.select([server], want, [], DEADLINE_S)
            assert readable or writable, f"stuck after {len(received)} bytes"
            if writable:
                sent += client.send(payload[sent : sent + 65536])
            if readable:
                received += server.recv(1 << 20)
    assert received == payload
    assert balancer.verdict("reply.too_big") > before


@BOTH_FAMILIES
@pytest.mark.parametrize("host", ["client2", "client3"])
def test_fragments_of_a_datagram_meet_both_ways(
    testbed: Testbed, balancer: RunningBalancer, host: str, vip: object
) -> None:
    """Rule 10, ICMP about flows: a datagram larger than every link, echoed."""
    with testbed.socket(host, socket.AF_INET6 if vip is VIP6 else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE_S)
        if vip is VIP:
            # linux/in.h: IP_MTU_DISCOVER, IP_PMTUDISC_DONT: routers on the way may cut too.
            client.setsockopt(socket.IPPROTO_IP, 10, 0)
        client.connect((str(vip), UDP_PORT))
        payload = os.urandom(4000)
        received = b""
        # The first large datagrams may be lost to the discovery of the path's MTU (IPv6).
        for _ in range(5):
            client.send(payload)
            client.settimeout(2)
            try:
                received = client.recv(8000)
                break
            except TimeoutError:
                continue
    assert received == payload


def test_operator_sees_one_balancer(testbed: Testbed, balancer: RunningBalancer) -> None:
    """
    Rule 18.2, servers that leave or fail, and rule 18.1, reloads and changes: flows of both workers in one order, by
    client too; a drain and a reload reach both.
    """
    control = control_of(balancer)
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(testbed, host, WEB_PORT)) for host in CLIENTS for _ in range(3)]
        own = {client.getsockname()[:2] for client in opened}
        rows = balancer.flows()
        keys = [(ip_address(row["client"]).packed.rjust(16, b"\0"), row["client_port"]) for row in rows]
        keys_of_four = [key for key, row in zip(keys, rows, strict=True) if "." in row["client"]]
        assert own <= {(row["client"], row["client_port"]) for row in rows}
        assert keys_of_four == sorted(keys_of_four)
        for client in (opened[0], opened[3]):
            address, port = client.getsockname()[:2]
            page = fetch(control, "/flows", client=address)["flows"]
            assert port in {row["client_port"] for row in page}
            assert {row["client"] for row in page} == {address}
        change(control, "/drain", {"service": "web", "server": "server2"})
        before = balancer.counters()["servers"]["web/server2"]["flows_created"]
        more = [stack.enter_context(connect(testbed, host, WEB_PORT)) for host in CLIENTS for _ in range(3)]
        assert balancer.counters()["servers"]["web/server2"]["flows_created"] == before
        ports = {client.getsockname()[:2] for client in more}
        taken = Counter(row["server"] for row in balancer.flows() if (row["client"], row["client_port"]) in ports)
        assert set(taken) == {"server1", "server3"}
        change(control, "/enable", {"service": "web", "server": "server2"})


def test_remove_with_reset_reaches_flows_of_both_workers(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 18.2, servers that leave or fail: clients of either worker get a RST that they believe."""
    control = control_of(balancer)
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(testbed, host, WEB_PORT)) for host in CLIENTS for _ in range(3)]
        where = {(row["client"], row["client_port"]): row["server"] for row in balancer.flows()}
        change(control, "/disable", {"service": "web", "server": "server3", "reset": True})
        cut = [client for client in opened if where[client.getsockname()[:2]] == "server3"]
        assert {worker_of(ip_address(client.getsockname()[0]), 2) for client in cut} == {0, 1}
        for client in cut:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        change(control, "/enable", {"service": "web", "server": "server3"})


def test_reload_with_another_vip_is_heard_by_the_right_worker(testbed: Testbed, balancer: RunningBalancer) -> None:
    """A VIP that came with a reload: its packets are dealt by their source from then on."""
    other = "198.18.1.111"
    try:
        write_config(testbed, balancer.config, other)
        generation = fetch(control_of(balancer), "/status")["generation"]
        os.kill(fetch(control_of(balancer), "/status")["pid"], signal.SIGHUP)
        wait_until(lambda: fetch(control_of(balancer), "/status")["generation"] > generation, "the reload")
        for host in CLIENTS:
            assert echo_once(testbed, host, ECHO_PORT, other) == b"greeting"
    finally:
        write_config(testbed, balancer.config)
        change(control_of(balancer), "/reload", {})
    for host in CLIENTS:
        assert echo_once(testbed, host) == b"greeting"
