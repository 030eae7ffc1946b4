"""How clients and servers notice that the balancer stops: `lb stop`, `on_stop`, and `on_no_flow` of the next one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from churn import balancing, configuration, control_of, echo, open_flows
from lbrun import LbRun, program, until_the_end
from realhosts import DEADLINE_S, ECHO_PORT, RunningBalancer, connect, connected_ports, running_testbed, wait_until

from lb.control.api.client import fetch
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER

FLOWS = 60
ON_STOP_RESET = 'on_stop = "reset"\n'


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}s{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        yield made


@pytest.fixture
def state() -> Iterator[Path]:
    """Give the path of a state directory that is not there."""
    folder = Path(tempfile.mkdtemp(prefix="flowlb-test-", dir="/dev/shm"))
    yield folder / "state"
    shutil.rmtree(folder)


def stop_command(balancer: RunningBalancer, *options: str) -> subprocess.Popen[str]:
    """Start `lb stop`, as a program."""
    command = program("stop", "--control", str(control_of(balancer)), *options)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def said(command: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end of a command; return its exit status and its last line."""
    _, text = command.communicate(timeout=DEADLINE_S)
    return command.returncode, text.strip().splitlines()[-1]


def is_reset(flow: socket.socket) -> bool:
    """Tell whether a connection gets a RST in time."""
    try:
        flow.recv(1)
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("how", ["signal", "command"])
def test_on_stop_reset_tells_both_ends_of_every_flow(testbed: Testbed, backend: str, how: str) -> None:
    """
    Rule 18.3, stopping, and rule 15, resetting flows: of all servers; both ends believe the numbers, nobody hangs.
    """
    with (
        balancing(testbed, backend, ON_STOP_RESET + configuration(testbed)) as balancer,
        ExitStack() as stack,
    ):
        servers = [server.name for server in testbed.topology.of_role("server")]
        # Connections of tests before, whose clients could not say that they were gone.
        forgotten = {name: connected_ports(testbed, name) for name in servers}
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        ports = {flow.getsockname()[1] for flow in flows}
        if how == "signal":
            assert balancer.stop() == 0
        else:
            assert said(stop_command(balancer)) == (0, "the balancer has stopped")
        assert all(is_reset(flow) for flow in flows)
        for server in servers:
            # They had accepted these; their sockets are closed, for they have been told, too.
            mine = ports - forgotten[server]
            wait_until(lambda name=server, mine=mine: not mine & connected_ports(testbed, name), "the server's ends")


def test_on_stop_keep_tells_nobody(testbed: Testbed, backend: str) -> None:
    """Rule 18.3, stopping: connections stand when the process has ended."""
    with balancing(testbed, backend, configuration(testbed)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"first") for flow in flows)
        assert balancer.stop() == 0
        for flow in flows:
            flow.setblocking(False)
            with pytest.raises(BlockingIOError):
                flow.recv(1)


def test_on_stop_reset_leaves_no_flow_to_the_next_process(testbed: Testbed, state: Path) -> None:
    """Rule 18.3, stopping: a kept table has none of the flows that were reset."""
    text = ON_STOP_RESET + configuration(testbed)
    with balancing(testbed, "rust", text, str(state)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        balancer.restart()
        assert all(is_reset(flow) for flow in flows)
        assert balancer.running is not None
        assert "keeps flows over a restart: 0 taken over, 0 dropped" in balancer.running.text()
        assert all(echo(flow, b"new") for flow in open_flows(testbed, 3, stack))


def test_stop_drain_ends_with_the_last_flow(testbed: Testbed, backend: str) -> None:
    """Rule 18.3, stopping: old flows go on, new ones are refused, and another balancer can start once it has ended."""
    with balancing(testbed, backend, configuration(testbed)) as balancer:
        with ExitStack() as stack:
            flows = open_flows(testbed, 9, stack)
            assert all(echo(flow, b"first") for flow in flows)
            command = stop_command(balancer, "--drain")
            wait_until(lambda: fetch(control_of(balancer), "/stop")["draining"], "it drains")
            with pytest.raises(ConnectionRefusedError):
                connect(testbed, "client1", ECHO_PORT)
            assert all(echo(flow, b"still") for flow in flows)
            assert command.poll() is None
        assert said(command) == (0, "the balancer has stopped: 0 active flows left")
        assert balancer.running is not None
        assert balancer.running.process.poll() == 0
        balancer.start()
        with ExitStack() as stack:
            assert all(echo(flow, b"new") for flow in open_flows(testbed, 3, stack))


def test_stop_drain_deadline_resets_what_is_left(testbed: Testbed, backend: str) -> None:
    """Rule 18.3, stopping: the flows that have not ended get what `on_stop` says."""
    with (
        balancing(testbed, backend, ON_STOP_RESET + configuration(testbed)) as balancer,
        ExitStack() as stack,
    ):
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"first") for flow in flows)
        command = stop_command(balancer, "--drain", "--timeout", "500ms")
        assert said(command) == (0, "the balancer has stopped: 9 active flows left")
        assert all(is_reset(flow) for flow in flows)


def test_stop_ends_a_supervised_balancer_for_good(testbed: Testbed) -> None:
    """Rule 18.3, stopping: who supervises does not start another one, and ends with 0."""
    config = testbed.directory / "supervised.toml"
    config.write_text(configuration(testbed))
    config.chmod(0o600)
    options = ("--backend", "rust", "--supervise")
    run = LbRun(testbed.prefix + ROUTER, testbed.directory, options, wrapper=(), config=config)
    with until_the_end(run):
        command = subprocess.run(
            program("stop", "--control", str(run.control)),
            capture_output=True, text=True, timeout=DEADLINE_S, env=dict(os.environ), check=False,
        )  # fmt: skip
        assert (command.returncode, command.stderr) == (0, "the balancer has stopped\n")
        assert run.process.wait(DEADLINE_S) == 0
        assert run.text().count("ready: ") == 1


@pytest.mark.parametrize("on_no_flow", ["reset", "drop"])
def test_client_of_a_flow_that_is_gone_learns_at_once_or_never(testbed: Testbed, backend: str, on_no_flow: str) -> None:
    """
    Rule 8.14, client packets of no flow: after a restart that has lost all flows, the next segment of a client is
    answered by a RST that it believes, or by nothing at all: each is counted as dropped.
    """
    text = re.sub(r"(?m)^policy = ", f'on_no_flow = "{on_no_flow}"\npolicy = ', configuration(testbed))
    with balancing(testbed, backend, text) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, 20, stack)
        assert all(echo(flow, b"first") for flow in flows)
        balancer.restart()
        for flow in flows:
            flow.sendall(b"again")
        if on_no_flow == "reset":
            assert all(is_reset(flow) for flow in flows)
            assert balancer.verdict("reply.no_flow") >= len(flows)
            return
        wait_until(lambda: balancer.verdict("drop.no_flow") >= len(flows), "each segment is dropped")
        for flow in flows:
            flow.setblocking(False)
            with pytest.raises(BlockingIOError):
                flow.recv(1)
