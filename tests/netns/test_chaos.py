"""`lb chaos` on real hosts: nothing breaks, and what would break is noticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from lbrun import program
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb.lab.chaos.run import Run, Watcher
from lb.lab.chaos.schedule import Act
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ECHO_PORT

pytestmark = pytest.mark.netns


def run(folder: Path, prefix: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `lb chaos` as a user does."""
    arguments = ("--prefix", prefix, "--report", str(folder / "page.html"), "--json", str(folder / "chaos.json"))
    return subprocess.run(
        program("chaos", *arguments, *options), cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )


def test_chaos_breaks_nothing_and_writes_page_and_figures(tmp_path: Path, link_mode: str, unique: str) -> None:
    done = run(
        tmp_path,
        f"{unique}c{link_mode}-",
        "--duration",
        "40",
        "--seed",
        "8",
        f"--{'' if link_mode == 'on' else 'no-'}offloads",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "chaos.json").read_text())
    assert content["good"]
    acts = content["chaos"]["acts"]
    assert {"take-over", "kill", "server down"} <= {act["kind"] for act in acts}
    # The balancer's log tells when checks took a server out: while it could not be reached, and at no other time.
    spans = {(act["server"], act["began_s"], act["ended_s"]) for act in acts if act["kind"] == "server down"}
    found = [(server, down["at_s"]) for server, downs in content["chaos"]["downs"].items() for down in downs]
    assert found
    for server, at_s in found:
        assert any(server == lost and began_s < at_s < ended_s for lost, began_s, ended_s in spans)
    # And it was the balancer who reset their flows then.
    resets = {each["reset_by"] for each in content["chaos"]["excused"] if "reset" in each["error"]}
    assert resets == {"balancer"}
    assert content["chaos"]["counts"]["long exchange"] > 1000
    assert content["control"]["acts"] == []
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_client_that_does_not_come_to_its_end_makes_the_run_not_good(unique: str) -> None:
    """Nobody knows what became of its flows."""
    with Testbed(prefix=f"{unique}d-", use_apache=False) as testbed:
        killed: list[int] = []

        def kill(now_s: float, _: str) -> None:
            if now_s > 1 and not killed:
                command = ["ip", "netns", "pids", f"{testbed.prefix}client2"]
                killed.extend(int(pid) for pid in subprocess.check_output(command, text=True, timeout=20).split())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        outcome = Run(testbed, "python", False, 1, Watcher(kill)).run((), 3)
    assert killed
    assert outcome.faults == ("client2 did not say how much it said: no message",)
    assert not outcome.is_good


def test_connection_that_a_server_gives_up_before_it_is_established_is_counted(unique: str) -> None:
    """Its kernel does so when its SYN+ACK cannot be sent for some seconds, as when its link is out."""
    with Testbed(prefix=f"{unique}g-", use_apache=False) as testbed:
        server = testbed.topology.host("server1").interfaces[0]
        # No host has the sender's address: the ACK never comes.
        syn = Ether(dst=server.mac) / IP(src="198.18.1.200", dst=str(server.address)) / TCP(dport=ECHO_PORT)
        sent: list[bytes] = []

        def send(_: float, begun: str) -> None:
            if begun:
                sent.append(bytes(syn))
                with testbed.inside("client1"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                    raw.bind(("eth0", 0))
                    raw.send(sent[0])

        outcome = Run(testbed, "python", False, 1, Watcher(send)).run((Act(2, 6, "server down", "server1"),), 9)
    assert sent
    assert {given_up.server for given_up in outcome.given_up} == {"server1"}
    assert all(2 < given_up.until_s < 9 for given_up in outcome.given_up)
    assert outcome.is_good
