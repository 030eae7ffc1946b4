"""
Two balancers side by side on real hosts: clients' packets come to one, and servers send what they answer through the
other (rule 8.23, replies through any balancer).
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from lbrun import LbRun
from realhosts import (
    CONFIG,
    ECHO_PORT,
    SERVER,
    UDP_PORT,
    connect,
    receive_exactly,
    running_testbed,
    wait_until,
)

from lb.control.api.client import fetch
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP6

# The host that the second balancer runs on.
SECOND = "client5"
CONNECTIONS = 24
CONNECT_S = 1.5
POLICIES = ("round-robin", "maglev", "least-connections", "two-choices")


def ip(testbed: Testbed, host: str, *words: object) -> None:
    command = ["ip", "-n", testbed.prefix + host, *map(str, words)]
    subprocess.run(command, check=True, timeout=20)


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    """Give hosts whose servers send everything through the second balancer's."""
    with running_testbed(f"{unique}r{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        second = made.topology.host(SECOND)
        for family, address, prefix in (
            ("-4", second.address, "198.18.1.0/24"),
            ("-6", second.address6, "2001:2:0:1::/64"),
        ):
            ip(made, SECOND, family, "route", "replace", prefix, "dev", "eth0")
            for host in made.topology.of_role("server"):
                ip(made, host.name, family, "route", "add", address, "dev", "eth0")
                ip(made, host.name, family, "route", "replace", prefix, "via", address)
        yield made


@contextmanager
def balancing(testbed: Testbed, backend: str, policy: str, replies: str, folder: Path) -> Iterator[tuple[LbRun, LbRun]]:
    """Run a balancer in the router, where the clients' packets go, and one on the second host."""
    text = f'seed = 1\n[cluster]\nreplies = "{replies}"\n' + CONFIG.format(interfaces="").replace(
        'backend = "auto"\n', ""
    )
    for suffix, vip in (("", VIP), ("6", VIP6)):
        for name, port, protocol in (("tcp", ECHO_PORT, "tcp"), ("udp", UDP_PORT, "udp")):
            text += f'[[service]]\nname = "{name}{suffix}"\naddress = "{vip}"\nport = {port}\nprotocol = "{protocol}"\n'
            text += f'policy = "{policy}"\n'
            for host in testbed.topology.of_role("server"):
                address = host.address6 if suffix else host.address
                text += SERVER.format(name=host.name, address=address, port=7000)
    running = []
    try:
        for host in (ROUTER, SECOND):
            place = folder / host
            place.mkdir()
            (place / "lb.toml").write_text(text)
            (place / "lb.toml").chmod(0o600)
            running.append(LbRun(testbed.prefix + host, place, ["--backend", backend]))
            running[-1].wait_ready()
        yield running[0], running[1]
    finally:
        for balancer in running:
            balancer.end()


def states(balancer: LbRun, ports: Collection[int]) -> dict[str, int]:
    """Return how many flows of these client ports are in each state: others may still end, of a test before."""
    rows: list[dict[str, Any]] = fetch(balancer.control, "/flows")["flows"]
    found: dict[str, int] = {}
    for row in (row for row in rows if row["client_port"] in ports):
        found[row["state"]] = found.get(row["state"], 0) + 1
    return found


def events(balancer: LbRun) -> dict[str, int]:
    counted: dict[str, int] = fetch(balancer.control, "/status")["counters"]["events"]
    return counted


def ask(testbed: Testbed, host: str, vip: object) -> bytes:
    """Send a datagram and return the answer."""
    family = socket.AF_INET6 if ":" in str(vip) else socket.AF_INET
    with testbed.socket(host, family, socket.SOCK_DGRAM) as client:
        client.settimeout(CONNECT_S)
        client.connect((str(vip), UDP_PORT))
        client.send(b"question")
        return client.recv(100)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["v4", "v6"])
def test_flows_whose_replies_take_another_way_open_speak_and_end(
    testbed: Testbed, backend: str, policy: str, vip: object, tmp_path: Path
) -> None:
    with balancing(testbed, backend, policy, "any", tmp_path) as (first, second):
        with ExitStack() as stack:
            hosts = [f"client{1 + number % 4}" for number in range(CONNECTIONS)]
            clients = [stack.enter_context(connect(testbed, host, ECHO_PORT, vip)) for host in hosts]
            for client in clients:
                client.sendall(b"greeting" * 1000)
            for client in clients:
                assert receive_exactly(client, 8000) == b"greeting" * 1000
            ports = {client.getsockname()[1] for client in clients}
            assert states(first, ports) == {"one-way": CONNECTIONS}
            assert states(second, ports) == {}
            assert events(second)["reply_stateless"] > 2 * CONNECTIONS
            # Half closed: what the server still sends arrives, and then its end.
            clients[0].sendall(b"last")
            clients[0].shutdown(socket.SHUT_WR)
            assert receive_exactly(clients[0], 5) == b"last"
        wait_until(lambda: states(first, ports) == {"closing": CONNECTIONS}, "all flows closing")
        assert ask(testbed, "client2", vip) == b"question"


def test_flows_whose_replies_take_another_way_do_not_open_unless_any_balancer_translates_them(
    testbed: Testbed, backend: str, tmp_path: Path
) -> None:
    """What the test above shows is no matter of course."""
    with balancing(testbed, backend, "round-robin", "same", tmp_path) as (_, second):
        with pytest.raises(TimeoutError):
            connect(testbed, "client1", ECHO_PORT, timeout_s=CONNECT_S)
        with pytest.raises(TimeoutError):
            ask(testbed, "client1", VIP)
        assert events(second)["reply_stateless"] == 0
