"""The parts of the testbed that touch neither network nor namespaces: topology, load lines, sums, state."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from lb.config import load
from lb.errors import TestbedError
from lb.lab.loadgen.records import Fetch, LineStarted
from lb.lab.testbed import content, state_directory
from lb.lab.testbed.live import DEFAULT_CONFIG
from lb.lab.testbed.state_directory import Inventory, ProcessId, StateDirectory
from lb.lab.testbed.tally import ServerTally, Tally, plain_table
from lb.lab.testbed.topology import Topology, one_segment, two_segments

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_one_segment_has_the_courses_hosts() -> None:
    """Names, addresses, MACs and web ports are those of the course."""
    found = {host.name: (str(host.address), host.interfaces[0].mac) for host in one_segment().hosts}
    expected = {"router": ("198.18.1.1", "aa:aa:aa:00:00:01")}
    expected |= {f"client{n}": (f"198.18.1.2{n}", f"aa:aa:aa:00:00:2{n}") for n in range(1, 6)}
    expected |= {f"server{n}": (f"198.18.1.3{n}", f"aa:aa:aa:00:00:3{n}") for n in range(1, 4)}
    assert found == expected
    assert [host.web_port for host in one_segment().of_role("server")] == [8031, 8032, 8033]


@pytest.mark.parametrize("topology", [one_segment(), two_segments()], ids=["one", "two"])
def test_hosts_send_everything_through_router(topology: Topology) -> None:
    """Only the router is on-link; no route is a default route; addresses bring no prefix of their own."""
    for host in topology.hosts:
        if host.role == "router":
            continue
        port = host.interfaces[0]
        on_link = [route.destination for route in topology.routes(host) if route.gateway is None]
        assert [str(network.network_address) for network in on_link] == [
            str(port.segment.address(1)),
            str(port.segment.address6(1)),
        ]
        assert all(network.prefixlen > 0 for network in on_link)
        assert [address.network.num_addresses for address in topology.interface_addresses(host, port)] == [1, 1]


def test_server_mtu_on_one_segment_is_a_route_of_the_router() -> None:
    """With one arm the router learns a server's smaller link from a route, and no other host does."""
    topology = one_segment(server_mtu=1400)
    routes = topology.routes(topology.host("router"))
    assert [route.mtu for route in routes] == [1400] * 6
    assert routes[0].destination == IPv4Network("198.18.1.31/32")
    assert topology.host("client1").interfaces[0].mtu == 1500


def test_server_mtu_on_two_segments_is_the_second_links() -> None:
    """With two arms the router's second interface has the smaller MTU."""
    router = two_segments(server_mtu=1400).host("router")
    assert [port.mtu for port in router.interfaces] == [1500, 1400]


@pytest.mark.parametrize("taken", ["web", "echo"])
def test_serve_port_in_use_is_one_line(tmp_path: Path, taken: str) -> None:
    """A server whose port is in use says which, and ends."""
    with socket.socket() as holder, socket.socket() as other:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        # Bound without listening: no other process gets this number.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", 0))
        held, free = holder.getsockname()[1], other.getsockname()[1]
        ports = {"web": free, "echo": free, taken: held}
        command = [sys.executable, "-P", "-m", "lb.lab.testbed.serve", "--name", "server1", "--content", str(tmp_path)]
        command += ["--web-port", str(ports["web"]), "--echo-port", str(ports["echo"])]
        if taken == "echo":
            # Only the echo server starts, on the port that is held.
            command = [word for word in command if word not in ("--web-port", str(free))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"server1: port {held} is in use: ")
    assert done.stderr.count("\n") == 1


def test_tally_adds_fetches_and_failures() -> None:
    """Fetches are counted and averaged per server; a failure counts apart, with its reason."""
    tally = Tally({"server1": ServerTally(), "server2": ServerTally()})
    for duration_s in (0.001, 0.003):
        tally.add(Fetch("client1", 0, 0, 0, 100, 0.0, 0.0, duration_s, 1, "server1"))
    tally.add(Fetch("client1", 0, 0, 0, 100, 0.0, 0.0, 1.0, 0, "-", "refused"))
    tally.add(LineStarted("client1", 0, 0))
    assert tally.rows() == [("server1", "2", "100.0%", "2.0", "0"), ("server2", "0", "0.0%", "0.0", "0")]
    assert "2 fetches, 1 failures (last: refused)" in plain_table(tally)


def test_tally_takes_flows_and_drops_of_the_balancer() -> None:
    """Flows of a server add up over services, drops over reasons."""
    tally = Tally({})
    servers = [{"name": "server1", "flows_created": 2}]
    verdicts = {"forward": 5, "drop.no_flow": 1, "drop.transit": 2, "reply.too_big": 1}
    tally.take_status(
        {"services": [{"servers": servers}, {"servers": servers}], "counters": {"rx_packets": 9, "verdicts": verdicts}}
    )
    assert tally.servers["server1"].flows == 4
    assert tally.balancer == {"received": 9, "forwarded": 5, "replied": 1, "dropped": 3}


@pytest.mark.parametrize(
    "path", [DEFAULT_CONFIG, EXAMPLES / "echo.toml", EXAMPLES / "video.toml"], ids=lambda p: p.stem
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    """Every configuration in the repository that the testbed uses passes `lb check`."""
    assert load(path).services[0].port == 9876


def test_stand_ins_have_the_courses_names_and_sizes(tmp_path: Path) -> None:
    """A chunk of N kbit/s is four seconds of it; all users may read it."""
    content.write_stand_ins(tmp_path / "www")
    sizes = {str(path.relative_to(tmp_path / "www")): path.stat().st_size for path in tmp_path.rglob("*Frag7")}
    assert sizes == {"vod/100Seg2-Frag7": 50_000, "vod/500Seg2-Frag7": 250_000, "vod/1000Seg2-Frag7": 500_000}
    assert (tmp_path / "www" / "1MB").stat().st_size == 1_000_000
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tmp_path.rglob("*"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    monkeypatch.setattr(state_directory, "base_directory", lambda: tmp_path / "base")
    return StateDirectory("t-")


def test_state_directory_second_owner_is_refused_until_release(directory: StateDirectory) -> None:
    """One owner at a time; a release leaves no file."""
    assert directory.acquire()
    other = StateDirectory("t-")
    assert other.owned_elsewhere()
    assert not other.acquire()
    directory.release()
    assert not directory.base.exists()
    assert other.acquire()
    other.release()


def test_state_directory_state_reads_back_as_written(directory: StateDirectory) -> None:
    """What one process writes down another reads; damage reads as nothing."""
    written = Inventory("t-", "root", ProcessId.of(os.getpid()), {"t-a": 7}, {"a/b": ProcessId(1, 2)}, {"web": "none"})
    assert directory.acquire()
    directory.write(written)
    assert StateDirectory("t-").read() == written
    (directory.directory / "state.json").write_text("{")
    assert directory.read() is None
    directory.release()


@pytest.mark.parametrize("prefix", ["", "../x", "A-", "a" * 17, "1a"])
def test_state_directory_unsafe_prefix_is_refused(prefix: str) -> None:
    """A prefix becomes part of paths and names: nothing but letters, digits and dashes."""
    with pytest.raises(TestbedError, match="prefix"):
        StateDirectory(prefix)


def test_process_of_own_pid_is_alive_and_of_other_start_is_not() -> None:
    """A process is its pid and its start time."""
    own = ProcessId.of(os.getpid())
    assert own.alive()
    assert not ProcessId(own.pid, own.start + 1).alive()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(2**22 + 1)
