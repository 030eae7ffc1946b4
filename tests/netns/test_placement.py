"""Placement on real hosts: two VIPs on the same servers, servers that call their own service, servers that leave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from realhosts import (
    CONFIG,
    DEADLINE_S,
    ECHO_PORT,
    SERVER,
    UDP_PORT,
    RunningBalancer,
    receive_exactly,
    running_testbed,
    wait_until,
)

from lb.control.api.client import change
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP

SECOND_VIP = "198.18.1.101"
SERVERS_PORT = 7000
FIRST_CLIENT_PORT = 20_000
# Connections to each VIP, and how many of them are open at a time, all with the same client ports.
CONNECTIONS = {"rust": 4000, "python": 600}
BATCH = 200
CALLS = 30
DRAIN_TIMEOUT = "1s"


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}p{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        yield made


@contextmanager
def balancing(testbed: Testbed, backend: str, policy: str = "round-robin") -> Iterator[RunningBalancer]:
    """Run a balancer with services on two VIPs, and one over UDP, all on the same servers."""
    text = 'transit = "forward"\n' + CONFIG.format(interfaces="")
    for name, vip, port, protocol in (
        ("one", VIP, ECHO_PORT, "tcp"),
        ("two", SECOND_VIP, ECHO_PORT, "tcp"),
        ("udp", VIP, UDP_PORT, "udp"),
    ):
        text += (
            f'[[service]]\nname = "{name}"\naddress = "{vip}"\nport = {port}\nprotocol = "{protocol}"\n'
            f'policy = "{policy}"\n'
        )
        text += f'drain_timeout = "{DRAIN_TIMEOUT}"\n' if protocol == "udp" else ""
        for host in testbed.topology.of_role("server"):
            text += SERVER.format(name=host.name, address=host.address, port=SERVERS_PORT)
    config = testbed.directory / "placement.toml"
    config.write_text(text)
    config.chmod(0o600)
    balancer = RunningBalancer(testbed, backend, config)
    balancer.start()
    try:
        yield balancer
    finally:
        balancer.stop()


def connect_from(testbed: Testbed, host: str, port: int, address: object, to_port: int = ECHO_PORT) -> socket.socket:
    """Connect from a client port of our choice."""
    client = testbed.socket(host, socket.AF_INET)
    try:
        client.settimeout(DEADLINE_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Reset at the end: no port stays taken for the next batch.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        client.bind(("0.0.0.0", port))
        client.connect((str(address), to_port))
    except BaseException:
        client.close()
        raise
    return client


def echoes(client: socket.socket) -> bool:
    client.sendall(b"greeting")
    return receive_exactly(client, 8) == b"greeting"


def retransmitted_syns(testbed: Testbed, host: str) -> int:
    """Return how many SYNs the kernel of a host has sent again."""
    with testbed.inside(host):
        names, values = [
            line.split()
            for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()
            if line.startswith("TcpExt:")
        ]
    return int(values[names.index("TCPSynRetrans")])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["round-robin", "maglev", "least-connections"])
def test_two_vips_same_client_ports_lose_and_delay_none(testbed: Testbed, backend: str, policy: str) -> None:
    """Rule 8.16, placement: connections of one host to VIP A and to VIP B, on the same servers, from the same ports."""
    with balancing(testbed, backend, policy) as balancer:
        before = retransmitted_syns(testbed, "client1")
        for first in range(0, CONNECTIONS[backend], BATCH):
            ports = range(FIRST_CLIENT_PORT + first, FIRST_CLIENT_PORT + first + BATCH)
            with ExitStack() as stack:
                for vip in (VIP, SECOND_VIP):
                    opened = [stack.enter_context(connect_from(testbed, "client1", port, vip)) for port in ports]
                    assert all(echoes(client) for client in opened)
        assert retransmitted_syns(testbed, "client1") == before
        counters = balancer.counters()
        assert counters["verdicts"].get("drop.flow_conflict", 0) == 0
        for service in ("one", "two"):
            created = [counters["servers"][f"{service}/server{n}"]["flows_created"] for n in (1, 2, 3)]
            assert sum(created) == CONNECTIONS[backend]
            assert min(created) > CONNECTIONS[backend] / 5, created
        # The servers hear the last resets too: the next test has the same ports.
        wait_until(lambda: not any(each["flows_active"] for each in balancer.counters()["servers"].values()), "all end")


@pytest.mark.parametrize("policy", ["round-robin", "random", "source-hash", "maglev", "least-connections"])
def test_server_that_calls_its_own_service_is_served(testbed: Testbed, backend: str, policy: str) -> None:
    """Rule 8.16, placement: it gets another server, whatever the policy."""
    with balancing(testbed, backend, policy) as balancer:
        for number in range(CALLS):
            with connect_from(testbed, "server2", FIRST_CLIENT_PORT + number, VIP) as client:
                assert echoes(client)
        counters = balancer.counters()
        assert counters["verdicts"].get("drop.hairpin", 0) == 0
        assert counters["servers"]["one/server2"]["flows_created"] == 0


def test_connection_straight_to_a_server_works_beside_a_flow(testbed: Testbed, backend: str) -> None:
    """
    Rule 9.1, direct connections: both ways, with the client port of a flow; one to the flow's own server is refused.
    """
    with balancing(testbed, backend) as balancer, connect_from(testbed, "client1", FIRST_CLIENT_PORT, VIP) as flow:
        assert echoes(flow)
        [taken] = {row["server"] for row in balancer.flows()}
        free = next(host for host in testbed.topology.of_role("server") if host.name != taken)
        with connect_from(testbed, "client1", FIRST_CLIENT_PORT, free.address, SERVERS_PORT) as straight:
            assert echoes(straight)
            assert echoes(flow)
            assert echoes(straight)
            # The next service passes over both.
            with connect_from(testbed, "client1", FIRST_CLIENT_PORT, SECOND_VIP) as other:
                assert echoes(other)
                servers = {row["service"]: row["server"] for row in balancer.flows()}
                assert servers == {"one": taken, "two": servers["two"]}
                assert servers["two"] not in (taken, free.name)


class Sender:
    """A UDP sender that never pauses: the next datagram leaves as soon as the last one's echo is there."""

    def __init__(self, testbed: Testbed) -> None:
        self._client = testbed.socket("client1", socket.AF_INET, socket.SOCK_DGRAM)
        self._client.settimeout(DEADLINE_S)
        self._client.connect((str(VIP), UDP_PORT))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.echoed = 0
        self.failure: Exception | None = None

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                data = self.echoed.to_bytes(8, "big")
                self._client.send(data)
                assert self._client.recv(100) == data
                self.echoed += 1
        except Exception as error:
            self.failure = error


def test_udp_sender_leaves_a_removed_and_a_drained_server(testbed: Testbed, backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: at once, and at the deadline; no datagram is lost, and `lb drain --wait`
    ends.
    """
    with balancing(testbed, backend) as balancer, Sender(testbed) as sender:
        assert balancer.running is not None
        control = balancer.running.control

        def server() -> str | None:
            return next((row["server"] for row in balancer.flows() if row["service"] == "udp"), None)

        first = wait_until(server, "the flow is there")
        change(control, "/remove", {"service": "udp", "server": first})
        wait_until(lambda: server() not in (None, first), "the flow has left the removed server")
        second = server()
        echoed = sender.echoed
        command = [sys.executable, "-c", "from lb.cli import main; main()", "drain", f"udp/{second}", "--wait"]
        environment = {**os.environ, "LB_CONTROL": str(control)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
        assert server() not in (first, second)
        wait_until(lambda: sender.echoed > echoed, "datagrams still come back")
        assert sender.failure is None
        assert balancer.counters()["events"]["flow_moved"] == 2
