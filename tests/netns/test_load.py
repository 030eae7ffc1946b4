"""A load from the client hosts, and experiments: real Apache or the built-in server, a real balancer, real links."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from realhosts import RunningBalancer, running_balancer, running_testbed, wait_until

from lb.lab.testbed import build, isolation
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.state_directory import StateDirectory
from lb.lab.testbed.topology import VIP, VIP6

PORT = 9880
SERVERS = {"server1", "server2", "server3"}
TIMEOUT_S = 120

EXPERIMENT = """
title = "Short"
policies = ["round-robin", "static"]
turns = 2
[server.server1]
bandwidth = "20 Mbit/s"
[[load]]
name = "chunks"
lines = "0 198.18.1.100 9876 100 0 3"
arrival = "poisson:20"
[[load]]
name = "players"
lines = "0 198.18.1.100 9876 500 0 2"
adaptive = true
clients = 2
"""


def lb(*arguments: object, unique: str = "") -> tuple[int, str, str]:
    """Run a command of lb. Returns exit status, standard output and error."""
    command = [sys.executable, "-P", "-m", "lb", *map(str, arguments)]
    environment = {**os.environ, "LB_CONTROL": f"/nonexistent/{unique}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def play(testbed: Testbed, load: Path, *options: object) -> tuple[int, dict[str, object], str]:
    """Play a load from the client hosts. Returns exit status, the document, and what was said."""
    status, output, errors = lb("testbed", "load", load, "--prefix", testbed.prefix, "-o", "json", *options)
    assert output, errors
    return status, json.loads(output), errors


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])
def test_testbed_load_from_five_clients_reaches_all_servers(
    hosts: Testbed, balancer: RunningBalancer, tmp_path: Path, vip: object
) -> None:
    """Five hosts play the file at once, every chunk arrives, all servers send, and it is one document and one page."""
    load = tmp_path / "a.load"
    load.write_text(f"0 {vip} {PORT} 1000 0 3\n#! only client2\n0 {vip} {PORT} 100 0.01 4\n")
    page = tmp_path / "o.html"
    assert balancer.running is not None
    options = ("--new-connection", "--report", page, "--control", balancer.running.control)
    status, document, errors = play(hosts, load, *options)
    assert status == 0, errors
    fetches = document["fetches"]
    assert isinstance(fetches, list)
    assert [fetch["error"] for fetch in fetches] == [""] * 19
    assert Counter(fetch["client"] for fetch in fetches) == {f"client{n}": 7 if n == 2 else 3 for n in range(1, 6)}
    assert {fetch["server"] for fetch in fetches} == SERVERS
    assert document["wanted"] == dict.fromkeys(sorted(SERVERS), 1.0)
    assert "client2: Fetched 4 100bitrate chunk" in errors
    assert "<svg" in page.read_text()


def test_testbed_load_without_balancer_ends_with_1(unique: str, tmp_path: Path) -> None:
    """A VIP without a server: every fetch fails in its time, the program says so and ends with 1."""
    load = tmp_path / "a.load"
    load.write_text(f"0 {VIP} {PORT} 1000 0 2\n")
    with running_testbed(f"{unique}s-", servers=False) as testbed:
        status, document, errors = play(testbed, load, "--timeout", "0.3")
    assert status == 1, errors
    fetches = document["fetches"]
    assert isinstance(fetches, list)
    assert Counter(fetch["error"] for fetch in fetches) == {"no answer within 0.3 s": 10}


def test_testbed_load_without_testbed_is_one_line(unique: str, tmp_path: Path) -> None:
    """No testbed: one line that says how to get one."""
    load = tmp_path / "a.load"
    load.write_text(f"0 {VIP} {PORT} 1000 0 2\n")
    done = lb("testbed", "load", load, "--prefix", f"{unique}none-")
    assert done == (1, "", "lb: no testbed is up: start one with `lb testbed up`\n")


@pytest.mark.slow
def test_testbed_load_loses_a_server_and_returns_it(unique: str, tmp_path: Path) -> None:
    """While a server is lost its fetches fail and others' do not; when it has returned it serves again."""
    load = tmp_path / "a.load"
    # The first line is over before the server is back, the second starts well after that.
    load.write_text(f"#! 0 lose server2\n#! 4 return server2\n1 {VIP} {PORT} 100 0 3\n6 {VIP} {PORT} 100 0 3\n")
    with running_testbed(f"{unique}l-") as testbed, running_balancer(testbed, "rust"):
        status, document, errors = play(testbed, load, "--new-connection", "--timeout", "0.5")
    assert status == 0, errors
    assert "server2 is lost" in errors
    assert "server2 returns" in errors
    fetches = document["fetches"]
    assert isinstance(fetches, list)
    lost, back = ([fetch for fetch in fetches if fetch["line"] == line] for line in (0, 1))
    assert {fetch["server"] for fetch in lost if not fetch["error"]} == SERVERS - {"server2"}
    assert {fetch["error"] for fetch in lost} == {"", "no answer within 0.5 s"}
    assert {fetch["server"] for fetch in back if not fetch["error"]} == SERVERS


def test_testbed_load_of_unknown_server_is_refused(hosts: Testbed, tmp_path: Path) -> None:
    """A directive about a server that is not there is told before anything runs."""
    load = tmp_path / "a.load"
    load.write_text(f"#! 0 lose server9\n0 {VIP} {PORT} 100 0 3\n")
    status, output, errors = lb("testbed", "load", load, "--prefix", hosts.prefix)
    assert (status, output) == (1, "")
    assert "the testbed has no server 'server9'" in errors


def test_bandwidth_limit_is_a_token_bucket(unique: str) -> None:
    """A host held to a bandwidth has one tbf of that rate; a second limit replaces the first."""
    from pyroute2 import IPRoute

    with running_testbed(f"{unique}b-", servers=False) as testbed:
        for rate in (10e6, 4e6):
            build.limit_bandwidth(testbed.prefix, "server1", "eth0", rate)
        with testbed.inside("server1"):
            netlink = IPRoute()
        with netlink:
            index = netlink.link_lookup(ifname="eth0")[0]
            kinds = [(found.get_attr("TCA_KIND"), found) for found in netlink.get_qdiscs(index)]
    assert [kind for kind, _ in kinds] == ["tbf"]
    parameters = kinds[0][1].get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert parameters["rate"] == 500_000


@pytest.mark.slow
def test_experiment_compares_policies_and_leaves_nothing(unique: str, tmp_path: Path) -> None:
    """Each policy gets each load in each turn; JSON and a page come of it; the testbed is gone."""
    path = tmp_path / "short.toml"
    path.write_text(EXPERIMENT)
    files = ("--report", tmp_path / "o.html", "--json", tmp_path / "o.json")
    status, output, errors = lb("experiment", "run", path, *files, "--prefix", f"{unique}e-")
    assert status == 0, errors
    assert "chunks: static: mean " in output
    entries = json.loads((tmp_path / "o.json").read_text())["experiments"][0]["entries"]
    assert [(entry["load"], entry["policy"], len(entry["turns"])) for entry in entries] == [
        ("chunks", "round-robin", 2),
        ("chunks", "static", 2),
        ("players", "round-robin", 2),
        ("players", "static", 2),
    ]
    assert [entry["figures"]["total"]["failures"] for entry in entries] == [0] * 4
    assert {server["name"] for server in entries[0]["figures"]["servers"] if server["fetches"]} == SERVERS
    assert [server["name"] for server in entries[1]["figures"]["servers"] if server["fetches"]] == ["server1"]
    assert entries[2]["figures"]["players"]["players"] == 4
    assert (tmp_path / "o.html").read_text().count("aria-label") == 9
    assert _left(f"{unique}e-") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_experiment_stopped_leaves_nothing(unique: str, tmp_path: Path, number: signal.Signals) -> None:
    """A signal in the middle ends it with 130, and the testbed goes with it."""
    path = tmp_path / "short.toml"
    path.write_text(EXPERIMENT.replace("100 0 3", "100 0 100000"))
    command = [sys.executable, "-P", "-m", "lb", "experiment", "run", str(path), "--prefix", f"{unique}x-"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            # The clients run: their hosts have a process of ours.
            wait_until(lambda: _clients_run(f"{unique}x-") or child.poll() is not None, "the clients run", TIMEOUT_S)
            child.send_signal(number)
            output, errors = child.communicate(timeout=TIMEOUT_S)
        finally:
            child.kill()
    assert (child.returncode, output) == (130, ""), errors
    assert errors.endswith("Interrupted: the testbed is removed; no report is written.\n")
    assert _left(f"{unique}x-") == []
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.slow
def test_experiment_stopped_keeps_complete_runs(unique: str, tmp_path: Path) -> None:
    """Ctrl-C in the third run: the two before it are in table, JSON and page; exit code 130, and nothing stays."""
    path = tmp_path / "short.toml"
    endless = 'name = "endless"\nlines = "0 198.18.1.100 9876 100 1 100000"\n'
    path.write_text(EXPERIMENT.replace("turns = 2", "turns = 1") + f"[[load]]\n{endless}")
    command = [sys.executable, "-P", "-m", "lb", "experiment", "run", str(path), "--prefix", f"{unique}k-"]
    errors = tmp_path / "errors.txt"
    with (
        errors.open("w") as file,
        subprocess.Popen(command, cwd=tmp_path, stderr=file, stdout=subprocess.PIPE, text=True) as child,
    ):
        try:
            wait_until(lambda: "players" in errors.read_text() or child.poll() is not None, "two runs", TIMEOUT_S)
            child.send_signal(signal.SIGINT)
            output, _ = child.communicate(timeout=TIMEOUT_S)
        finally:
            child.kill()
    assert child.returncode == 130, errors.read_text()
    assert "Interrupted: the complete runs are reported; the testbed is removed.\n" in errors.read_text()
    (found,) = json.loads((tmp_path / "experiments.json").read_text())["experiments"]
    assert [(entry["load"], entry["policy"]) for entry in found["entries"]] == [
        ("chunks", "round-robin"),
        ("players", "round-robin"),
    ]
    assert found["settings"]["interrupted"] == "after 2 of 6 runs"
    assert "Stopped after 2 of 6 runs" in (tmp_path / "experiments.html").read_text()
    assert "chunks" in output
    assert _left(f"{unique}k-") == []


def _clients_run(prefix: str) -> bool:
    state = StateDirectory(prefix).read()
    return state is not None and "client1/load" in state.processes


def _left(prefix: str) -> list[str]:
    if not isolation.NETNS_DIR.is_dir():
        return []
    return [entry.name for entry in isolation.NETNS_DIR.glob(f"{prefix}*")]
