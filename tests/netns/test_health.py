"""
Health on real hosts: links are cut, servers stop, and what clients get (rule 18.2, servers that leave or fail;
rule 8.18, refusals; rule 19, health).
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from realhosts import (
    DEADLINE_S,
    ECHO_PORT,
    RunningBalancer,
    connect,
    echo_once,
    receive_exactly,
    running_testbed,
    wait_until,
)

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, SWITCH, VIP

HEALTH = 'health = {{ check = "{check}", interval = "250ms", timeout = "250ms", fall = 3, rise = 2{more} }}'
CONFIG = """
[[interface]]
name = "eth0"
[[service]]
name = "echo"
address = "{vip}"
port = {port}
{options}
"""
SERVER = """
  [[service.server]]
  name = "{name}"
  address = "{address}"
  port = {port}
"""


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}h{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        yield made


@contextmanager
def balancing(
    testbed: Testbed, backend: str, check: str = "tcp", more: str = "", **options: str
) -> Iterator[RunningBalancer]:
    """Run a balancer for the echo service with health checks."""
    lines = [HEALTH.format(check=check, more=more), *(f'{key} = "{value}"' for key, value in options.items())]
    text = CONFIG.format(vip=VIP, port=ECHO_PORT, options="\n".join(lines))
    for host in testbed.topology.of_role("server"):
        text += SERVER.format(name=host.name, address=host.address, port=7000)
    config = testbed.directory / "health.toml"
    config.write_text(text)
    config.chmod(0o600)
    log_of(testbed).unlink(missing_ok=True)
    running = RunningBalancer(testbed, backend, config)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def cut(testbed: Testbed, *servers: str) -> Iterator[None]:
    """Unplug servers from the switch for the block."""

    def plug(server: str, state: str) -> None:
        command = ["ip", "-n", testbed.prefix + SWITCH, "link", "set", f"{server}-eth0", state]
        subprocess.run(command, check=True, timeout=DEADLINE_S)

    with ExitStack() as stack:
        for server in servers:
            stack.callback(plug, server, "up")
            plug(server, "down")
        yield


def log_of(testbed: Testbed) -> Path:
    return testbed.directory / f"{ROUTER}-lb.log"


def wait_for(testbed: Testbed, text: str) -> None:
    wait_until(lambda: text in log_of(testbed).read_text(), f"the log says: {text}")


def open_flows(testbed: Testbed, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open echo connections, to be closed with the stack, and prove that each works."""
    clients = [stack.enter_context(connect(testbed, "client1", ECHO_PORT)) for _ in range(count)]
    for client in clients:
        assert echo(client)
    return clients


def echo(client: socket.socket) -> bool:
    """Tell whether an open connection still echoes."""
    client.sendall(b"hello")
    return receive_exactly(client, 5) == b"hello"


def created(running: RunningBalancer) -> dict[str, int]:
    """Return how many flows each server has got so far."""
    return {name: server["flows_created"] for name, server in running.counters()["servers"].items()}


def wait_for_verdict(testbed: Testbed, running: RunningBalancer, text: str, health: str, name: str = "server1") -> None:
    """Wait until the log tells a verdict about a server, and until it is published, which follows."""
    wait_for(testbed, text)
    wait_until(lambda: running.counters()["servers"][f"echo/{name}"]["health"] == health, f"{name} is {health}")


def test_server_link_cut_new_flows_avoid_it_until_it_is_back(testbed: Testbed, backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: after the verdict every new flow has an answer; when the link is back, so is
    the server.
    """
    with balancing(testbed, backend, on_server_down="keep") as running:
        assert echo_once(testbed, "client1") == b"greeting"
        with cut(testbed, "server1"):
            down = "echo/server1 is down: no answer from 198.18.1.31 port 7000 within 0.25 s"
            wait_for_verdict(testbed, running, down, "down")
            before = created(running)
            for _ in range(9):
                assert echo_once(testbed, "client1") == b"greeting"
            assert created(running)["echo/server1"] == before["echo/server1"]
        wait_for_verdict(testbed, running, "echo/server1 is up: checks pass", "up")
        for _ in range(6):
            assert echo_once(testbed, "client1") == b"greeting"
        assert created(running)["echo/server1"] == before["echo/server1"] + 2


def test_server_link_cut_its_flows_are_reset_others_live(testbed: Testbed, backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: after the verdict clients of a lost server get a RST at once; others notice
    nothing.
    """
    with balancing(testbed, backend) as running, ExitStack() as stack:
        clients = open_flows(testbed, 6, stack)
        flows = {flow["client_port"]: flow["server"] for flow in running.flows()}
        there = [client for client in clients if flows[client.getsockname()[1]] == "server1"]
        elsewhere = [client for client in clients if client not in there]
        assert (len(there), len(elsewhere)) == (2, 4)
        with cut(testbed, "server1"):
            for client in there:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            for client in elsewhere:
                assert echo(client)


def test_server_down_flows_kept_where_the_service_says_so(testbed: Testbed, backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: with `on_server_down = "keep"` a flow waits, and goes on when its server is
    back.
    """
    with balancing(testbed, backend, on_server_down="keep"), ExitStack() as stack:
        clients = open_flows(testbed, 3, stack)
        with cut(testbed, "server1"):
            wait_for(testbed, "echo/server1 is down")
        wait_for(testbed, "echo/server1 is up")
        for client in clients:
            assert echo(client)


def test_all_servers_down_client_is_refused_at_once(testbed: Testbed, backend: str) -> None:
    """Rule 8.18, refusals: with no server left, a connect is answered by the balancer's reset instead of by silence."""
    servers = [host.name for host in testbed.topology.of_role("server")]
    with balancing(testbed, backend) as running, cut(testbed, *servers):
        for name in servers:
            wait_for_verdict(testbed, running, f"echo/{name} is down", "down", name)
        with pytest.raises(ConnectionRefusedError):
            connect(testbed, "client1", ECHO_PORT)
        assert running.verdict("reply.no_server") == 1


def test_http_check_of_another_port_decides(testbed: Testbed, backend: str) -> None:
    """A check by HTTP asks the port it is told to ask; a status that is expected passes, whatever it is."""
    with balancing(testbed, backend, "http", ', port = 8031, path = "/nothing-there", expect = 404') as running:
        # server1's web server listens on 8031; those of the others do not: they are taken out, one per interval.
        for number in (2, 3):
            refused = f"echo/server{number} is down: 198.18.1.3{number} port 8031: connection refused"
            wait_for_verdict(testbed, running, refused, "down", f"server{number}")
        assert "server1 is down" not in log_of(testbed).read_text()
        assert [echo_once(testbed, "client1") for _ in range(3)] == [b"greeting"] * 3
