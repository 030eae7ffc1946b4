"""The operator's commands on real hosts: what they do, and what clients and servers notice of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from churn import balancing, churn, configuration, control_of, echo, open_flows, placements
from lbrun import program
from realhosts import (
    DEADLINE_S,
    ECHO_PORT,
    RunningBalancer,
    connect,
    connected_ports,
    echo_once,
    running_testbed,
    wait_until,
)

from lb.control.api.client import change, fetch
from lb.control.http_connections import MAX_CONNECTIONS
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER

FLOWS = 200
ROUNDS = 30


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}c{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        yield made


@pytest.fixture
def balancer(testbed: Testbed, backend: str) -> Iterator[RunningBalancer]:
    with balancing(testbed, backend, configuration(testbed)) as running:
        yield running


def server_of(balancer: RunningBalancer, name: str) -> dict[str, int]:
    answer: dict[str, int] = fetch(control_of(balancer), "/server", service="echo", server=name)
    return answer


@pytest.mark.slow
def test_churn_breaks_and_moves_no_flow(testbed: Testbed, balancer: RunningBalancer) -> None:
    """
    Rule 18.2, servers that leave or fail, and rule 18.1, reloads and changes: flows stay whole and where they are
    while servers come and go and the file is read again. `make soak-control` does the same with 2 000 flows and 1 000
    reloads.
    """
    report = churn(testbed, balancer, FLOWS, ROUNDS)
    assert (report.reloads, report.commands) == (ROUNDS, ROUNDS)
    assert (report.broken, report.moved) == (0, 0)


def test_drained_server_gets_no_new_flow_and_keeps_its_old_ones(testbed: Testbed, balancer: RunningBalancer) -> None:
    """
    Rule 18.2, servers that leave or fail: from the moment the command has returned, no new flow; none of the old ones
    breaks.
    """
    with ExitStack() as stack:
        old = open_flows(testbed, 30, stack)
        assert all(echo(flow, b"before") for flow in old)
        change(control_of(balancer), "/drain", {"service": "echo", "server": "server2"})
        created = server_of(balancer, "server2")["flows_created"]
        new = open_flows(testbed, 30, stack)
        assert all(echo(flow, b"after") for flow in (*old, *new))
        assert server_of(balancer, "server2")["flows_created"] == created
        assert sorted(placements(balancer).values()).count("server2") == 10


def test_drain_wait_returns_when_the_clients_have_gone(testbed: Testbed, balancer: RunningBalancer) -> None:
    """`lb drain --wait` ends with 0 once the last client has closed, and not before."""
    command = program("drain", "echo/server1", "--wait")
    with ExitStack() as stack:
        with ExitStack() as flows:
            assert all(echo(flow, b"x") for flow in open_flows(testbed, 6, flows))
            environment = {**os.environ, "LB_CONTROL": str(control_of(balancer))}
            waiting = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
            stack.callback(waiting.kill)
            wait_until(lambda: server_of(balancer, "server1")["state"] == "draining", "it drains")
            assert waiting.poll() is None
        assert waiting.wait(DEADLINE_S) == 0


def test_remove_with_reset_tells_both_ends(testbed: Testbed, balancer: RunningBalancer) -> None:
    """
    Rule 18.2, servers that leave or fail: a server that is cut off: its clients get a RST they believe, others notice
    nothing.
    """
    # Connections of tests before, whose clients could not say that they were gone.
    forgotten = connected_ports(testbed, "server3")
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"x") for flow in flows)
        where = placements(balancer)
        change(control_of(balancer), "/remove", {"service": "echo", "server": "server3", "reset": True})
        cut = [flow for flow in flows if where[flow.getsockname()] == "server3"]
        assert len(cut) == 3
        ports = {flow.getsockname()[1] for flow in cut} - forgotten
        for flow in flows:
            if flow in cut:
                with pytest.raises(ConnectionResetError):
                    flow.recv(1)
            else:
                assert echo(flow, b"still here")
        # The server's sockets are closed too: it had been told.
        wait_until(lambda: not ports & connected_ports(testbed, "server3"), "the server's ends are closed")


@pytest.mark.parametrize("how", ["/disable", "/drain", "/remove"])
def test_no_server_left_client_is_refused(testbed: Testbed, balancer: RunningBalancer, how: str) -> None:
    """
    Rule 8.18, refusals: all servers out: a new client has its answer, a RST, instead of silence; then they come back.
    """
    for host in testbed.topology.of_role("server"):
        change(control_of(balancer), how, {"service": "echo", "server": host.name})
    with pytest.raises(ConnectionRefusedError):
        connect(testbed, "client1", ECHO_PORT)
    change(control_of(balancer), "/reload", {})
    if how != "/remove":
        for host in testbed.topology.of_role("server"):
            change(control_of(balancer), "/enable", {"service": "echo", "server": host.name})
    assert echo_once(testbed, "client1") == b"greeting"


def test_hostile_clients_of_the_admin_socket_are_not_noticed_by_packets(
    testbed: Testbed, balancer: RunningBalancer
) -> None:
    """
    Rule 21.3, control socket: while clients hold all places, dribble and shout, flows open and run, and commands go on
    after.
    """
    control, ending = control_of(balancer), threading.Event()

    def shout() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as loud:
                loud.settimeout(DEADLINE_S)
                loud.connect(str(control))
                loud.sendall(b"GET /" + b"x" * 1_000_000)

    with ExitStack() as stack:
        stack.callback(ending.set)
        for _ in range(MAX_CONNECTIONS - 2):
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(str(control))
            slow.sendall(b"GET /status HT")
        shouter = threading.Thread(target=shout)
        shouter.start()
        try:
            flows = open_flows(testbed, 20, stack)
            assert all(echo(flow, b"undisturbed %d" % turn) for turn in range(20) for flow in flows)
        finally:
            ending.set()
            shouter.join()
    wait_until(lambda: fetch(control, "/status")["generation"] == 1, "the next command is served")


def test_running_balancer_has_given_up_what_it_does_not_need(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 21.2, privileges: every thread has CAP_NET_ADMIN at most; and neighbours are still asked for."""
    tasks = list(Path(f"/proc/{fetch(control_of(balancer), '/status')['pid']}/task").iterdir())
    assert len(tasks) > 1
    for task in tasks:
        rows = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        assert {rows[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{1 << 12:016x}"}, rows["Name"]
        assert rows["NoNewPrivs"].strip() == "1"
    subprocess.run(
        ["ip", "-n", testbed.prefix + ROUTER, "neigh", "flush", "dev", "eth0"], check=True, timeout=DEADLINE_S
    )
    assert echo_once(testbed, "client2") == b"greeting"


def test_sighup_reloads_and_says_what_changed(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 18.1, reloads and changes: the signal does what the command does; the diff is in the log."""
    balancer.config.write_text(configuration(testbed, weights={"server1": 3, "server2": 1}))
    # The log is that of every balancer this router has had: only what is new counts.
    log = testbed.directory / f"{ROUTER}-lb.log"
    before = len(log.read_text())
    os.kill(fetch(control_of(balancer), "/status")["pid"], signal.SIGHUP)
    wait_until(lambda: "its flows go on\n" in log.read_text()[before:], "the diff is in the log")
    text = log.read_text()[before:]
    told = text[text.rindex("reloaded ") :].splitlines()[1:3]
    assert [line.partition("INFO   ")[2] for line in told] == [
        "~ echo/server1: weight 1 -> 3", "- echo/server3  198.18.1.33:7000: its flows go on"
    ]  # fmt: skip


def test_reload_broken_file_keeps_the_old_one_and_shows(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 18.1, reloads and changes: a broken file changes nothing, says file:line:column, and shows in the status."""
    balancer.config.write_text(configuration(testbed).replace("weight = 1", "weight = -1", 1))
    control = control_of(balancer)
    command = [sys.executable, "-c", "from lb.cli import main; main()", "reload"]
    done = subprocess.run(
        command, env={**os.environ, "LB_CONTROL": str(control)}, capture_output=True, text=True, check=False,
        timeout=DEADLINE_S,
    )  # fmt: skip
    where = f"{balancer.config}:14:12: service[0].server[0].weight: -1 is not in 0..65535"
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, where)
    status = fetch(control, "/status")
    assert (status["last_reload_error"], status["generation"], status["reload_failures"]) == (where, 1, 1)
    assert echo_once(testbed, "client1") == b"greeting"
