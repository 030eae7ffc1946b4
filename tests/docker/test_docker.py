"""The Docker testbed: what setup.sh builds, that traffic flows only through the router, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from containers import Containers, docker, setup

NUMBERS = {"router": 1} | {f"client{n}": 20 + n for n in range(1, 6)} | {f"server{n}": 30 + n for n in range(1, 4)}
CLIENTS = [name for name in NUMBERS if name.startswith("client")]
SERVERS = [name for name in NUMBERS if name.startswith("server")]


@contextmanager
def _running_balancer(containers: Containers, config: str) -> Iterator[None]:
    """Run `lb run` in the router for the block."""
    balancer = containers.spawn("router", "lb", "run", "-c", config)
    try:
        assert balancer.stdout is not None
        said = []
        while not said or "ready" not in said[-1]:
            said.append(balancer.stdout.readline())
            assert said[-1], f"lb ended: {said}"
        yield
    finally:
        # The client of the engine does not pass signals on to what it runs.
        containers.exec("router", "pkill", "-x", "lb", check=False)
        balancer.communicate(timeout=30)


@contextmanager
def _running_echo(containers: Containers) -> Iterator[None]:
    echo = containers.spawn("server1", "echo_server.py")
    try:
        assert echo.stdout is not None
        assert "7000" in echo.stdout.readline()
        yield
    finally:
        containers.exec("server1", "pkill", "-f", "echo_server.py", check=False)
        echo.communicate(timeout=30)


@pytest.mark.parametrize("host", NUMBERS)
def test_host_has_its_address_mac_and_routes(containers: Containers, host: str) -> None:
    """Each host has the address and MAC of its number, no way out, no forwarding, and the router for everything."""
    network, number = containers.network, NUMBERS[host]
    link = containers.exec(host, "ip", "-o", "link", "show", "eth0")
    assert f"aa:aa:aa:00:00:{number:02d}" in link
    addresses = containers.exec(host, "ip", "-4", "-o", "address", "show", "eth0")
    assert f"inet {network}.{number}/24" in addresses
    routes = [route.split() for route in containers.exec(host, "ip", "-4", "route").splitlines()]
    if host == "router":
        assert [route[:3] for route in routes] == [[f"{network}.0/24", "dev", "eth0"]]
    else:
        assert [route[:3] for route in routes] == [
            [f"{network}.0/24", "via", f"{network}.1"],
            [f"{network}.1", "dev", "eth0"],
        ]
    assert containers.exec(host, "cat", "/proc/sys/net/ipv4/ip_forward") == "0"
    assert containers.exec(host, "hostname") == host


@pytest.mark.parametrize("host", NUMBERS)
def test_host_has_no_privileges_but_two(containers: Containers, host: str) -> None:
    """NET_ADMIN and NET_RAW are all a container gets; no port of this machine leads into it."""
    (found,) = json.loads(docker("container", "inspect", containers.prefix + host))
    assert found["HostConfig"]["Privileged"] is False
    assert sorted(name.removeprefix("CAP_") for name in found["HostConfig"]["CapAdd"]) == ["NET_ADMIN", "NET_RAW"]
    assert not found["HostConfig"]["PortBindings"]


def test_image_has_no_compiler(containers: Containers) -> None:
    """What built the package and the video stays in the first stages."""
    for program in ("cc", "gcc", "cargo", "rustc", "ffmpeg"):
        outcome = subprocess.run(
            ["docker", "exec", containers.prefix + "router", "which", program], capture_output=True, check=False
        )
        assert outcome.returncode == 1, program


def test_echo_answers_only_while_the_balancer_runs(containers: Containers) -> None:
    """The course's first exercise: the greeting comes back through the VIP, and stops with `lb`."""
    with _running_echo(containers):
        with _running_balancer(containers, "/etc/lb/echo.toml"):
            assert containers.exec("client1", "echo_client.py") == "Hello from client1"
        with pytest.raises(subprocess.CalledProcessError) as refused:
            containers.exec("client1", "echo_client.py", "--timeout", "1")
    assert refused.value.returncode == 1
    assert "no echo" in refused.value.stderr


def test_load_from_five_clients_uses_all_servers_through_the_router(containers: Containers) -> None:
    """A load in five clients at once: nothing fails, every server serves, every frame comes by the router."""
    load = f"0 {containers.network}.100 9876 100 0 6\n0 {containers.network}.100 9876 1000 0 3\n"
    with (
        _running_balancer(containers, "/etc/lb/video.toml"),
        _captured(containers, "server1") as senders,
        ThreadPoolExecutor(len(CLIENTS)) as pool,
    ):
        fetches = [
            fetch for played in pool.map(lambda name: _play(containers, name, load), CLIENTS) for fetch in played
        ]
    assert len(fetches) == 45
    assert [fetch["error"] for fetch in fetches if fetch["error"]] == []
    assert {fetch["server"] for fetch in fetches} == set(SERVERS)
    assert senders == {"aa:aa:aa:00:00:01"}


def _play(containers: Containers, client: str, load: str) -> list[dict[str, Any]]:
    """Play a load in a client; return its fetches."""
    containers.exec(client, "sh", "-c", f"printf '{load}' >/tmp/five.load")
    containers.exec(client, "lb", "loadgen", "-e", "/tmp/five.load", "--json", "/tmp/five.json")
    return list(json.loads(containers.exec(client, "cat", "/tmp/five.json"))["fetches"])


def test_course_load_generator_runs_in_a_client(containers: Containers) -> None:
    """The course's own call works, with its own file."""
    with _running_balancer(containers, "/etc/lb/video.toml"):
        player = containers.spawn("client4", "python3", "loadgen/loadgen.py", "-e", "loadgen/simple.load")
        output, _ = player.communicate(timeout=60)
    assert "Fetched 1 1000bitrate chunk" in output
    assert "Events finished" in output


@contextmanager
def _captured(containers: Containers, host: str) -> Iterator[set[str]]:
    """Collect the Ethernet sources of the IP packets that reach a host during the block; filled at its end."""
    senders: set[str] = set()
    capture = containers.spawn(host, "tcpdump", "-l", "-e", "-n", "-i", "eth0", "-Q", "in", "ip")
    assert capture.stdout is not None
    while "listening on" not in (line := capture.stdout.readline()):
        assert line, "tcpdump ended"
    try:
        yield senders
    finally:
        containers.exec(host, "pkill", "-x", "tcpdump")
        output, _ = capture.communicate(timeout=30)
        senders.update(re.findall(r"^\S+ ([0-9a-f:]{17}) > ", output, re.MULTILINE))


def test_apache_starts_once_and_restarts(containers: Containers) -> None:
    """`httpd -k start` is idempotent; after `-k restart` the server answers, logs times, and guards its status."""
    process = "cat /var/log/apache2/apache.pid"
    before = containers.exec("server2", "sh", "-c", process)
    assert "already running" in containers.exec("server2", "httpd", "-k", "start")
    containers.exec("server2", "httpd", "-k", "restart")
    assert containers.exec("server2", "sh", "-c", process) == before
    fetch = ["curl", "--silent", "--show-error", "--retry", "20", "--retry-connrefused", "--dump-header", "-"]
    answer = containers.exec("server2", *fetch, "--output", "/dev/null", "http://127.0.0.1:8032/vod/100Seg2-Frag7")
    assert "X-Served-By: server2" in answer
    log = containers.exec("server2", "tail", "-n", "1", "/var/log/apache2/access.log")
    assert re.search(r'T\d\d:\d\d:\d\d\.\d{3} 127\.0\.0\.1 200 \d+ \d+ "GET /vod/100Seg2-Frag7 ', log)
    assert "BusyWorkers" in containers.exec("server2", "curl", "--silent", "http://127.0.0.1:8032/server-status?auto")
    with _running_balancer(containers, "/etc/lb/video.toml"):
        status = containers.exec("client1", *fetch, f"http://{containers.network}.100:9876/server-status")
    assert status.startswith("HTTP/1.1 403")


def test_repeated_setup_changes_nothing(containers: Containers, engine: list[str]) -> None:
    """A second run finds everything there and lets it run."""
    ids = docker("inspect", "--format", "{{.Id}}", *containers.names)
    answer = setup(*engine, *containers.options)
    assert answer.returncode == 0
    assert docker("inspect", "--format", "{{.Id}}", *containers.names) == ids


def test_taken_range_is_refused_and_nothing_stays(
    containers: Containers, second: Containers, engine: list[str]
) -> None:
    """Addresses of another network: one line names it; no container and no network is left."""
    answer = setup(*engine, "--prefix", second.prefix, "--subnet", f"{containers.network}.0/24")
    assert answer.returncode == 1
    assert f"taken by the Docker network {containers.prefix}flowlb" in answer.stderr.splitlines()[-1]
    assert (second.names, second.networks) == ([], [])


def test_foreign_container_of_a_name_is_refused_and_kept(second: Containers, engine: list[str]) -> None:
    """A container that we did not make is never removed; one line says what to do."""
    docker("create", "--name", second.prefix + "client3", "flowlb-testbed", "true")
    answer = setup(*engine, *second.options)
    assert answer.returncode == 1
    assert answer.stderr.splitlines() == [
        f"setup.sh: a container {second.prefix}client3 exists and is not ours: remove it "
        f"(docker rm -f {second.prefix}client3), or choose other names with --prefix"
    ]
    assert (second.names, second.networks) == ([f"{second.prefix}client3"], [])


def test_failure_halfway_leaves_nothing_half_built(second: Containers, engine: list[str]) -> None:
    """When a host's address is in use, the containers that were launched before it are removed again."""
    network, other = f"{second.prefix}flowlb", f"{second.prefix}other"
    labels = ("--label", "flowlb.testbed=network", "--label", f"flowlb.prefix={second.prefix}")
    docker("network", "create", "--internal", "--subnet", f"{second.network}.0/24", *labels, network)
    address = ("--network", network, "--ip", f"{second.network}.33")
    docker("run", "--detach", "--name", other, *address, "flowlb-testbed", "sleep", "infinity")
    answer = setup(*engine, *second.options)
    assert answer.returncode == 1
    assert "docker run" in answer.stderr.splitlines()[-1]
    assert second.names == [other]


def test_down_removes_containers_and_network(second: Containers, engine: list[str]) -> None:
    """After `up` and `down` nothing is left of the testbed, and `down` once more is no mistake."""
    assert setup(*engine, *second.options).returncode == 0
    assert second.names == sorted(second.prefix + name for name in NUMBERS)
    for _ in range(2):
        assert setup("down", *second.options).returncode == 0
    assert (second.names, second.networks) == ([], [])
