"""
Rule 20.2, the host's kernel: the host's own kernel stays out of the services' packets, whatever its routes, and it
stays so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from arms import (
    CLIENTS,
    FAR_CLIENTS,
    OTHER_PORT,
    PORT,
    SERVER_PORT,
    SERVERS,
    VIPS,
    Arms,
    IcmpErrors,
    Run,
    answering,
    built_arms,
    connect_once,
    running,
)
from lbrun import program
from pair import wait_until

from lb.control.api.client import fetch

pytestmark = pytest.mark.netns

CONNECTS = 10
METRICS_PORT = 9100
needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="the command nft (nftables) is not installed")


@pytest.fixture(scope="module")
def networks() -> Iterator[Callable[[str], Arms]]:
    """Give the network of a link mode, made when it is asked for first."""
    with ExitStack() as stack:
        made: dict[str, Arms] = {}

        def get(mode: str) -> Arms:
            if mode not in made:
                made[mode] = stack.enter_context(built_arms(offloads=mode == "on"))
                stack.enter_context(answering(made[mode], "server", SERVER_PORT))
            return made[mode]

        yield get


@contextmanager
def restored(network: Arms) -> Iterator[Arms]:
    """Give a host that does not forward and has no rules of packet filters, and leave it like that."""
    yield network
    network.forward(on=False)
    if shutil.which("nft") is not None:
        network.run("host", "nft", "flush", "ruleset")


@pytest.fixture
def linked(networks: Callable[[str], Arms], link_mode: str) -> Iterator[Arms]:
    """The network, in both link modes."""
    with restored(networks(link_mode)) as network:
        yield network


@pytest.fixture
def arms(networks: Callable[[str], Arms]) -> Iterator[Arms]:
    """The network, for what has nothing to do with link modes."""
    with restored(networks("on")) as network:
        yield network


def connect_and_look(arms: Arms, version: int, source: str, target: str, port: int) -> None:
    """Connect several times; the kernel of the balancer's host must send neither errors nor copies."""
    seen = [IcmpErrors(arms, host) for host in ("client", "server")]
    assert [connect_once(arms, source, target, port) for _ in range(CONNECTS)] == [b"hi"] * CONNECTS
    errors, copies = (sum(counts) for counts in zip(*(each.take() for each in seen), strict=True))
    assert (errors, copies) == (0, 0), f"IPv{version}: {errors} ICMP errors, {copies} untranslated copies"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forwards", [False, pytest.param(True, marks=needs_nft)], ids=["host", "router"])
def test_guard_no_route_covers_vip_kernel_is_silent(
    linked: Arms, tmp_path: Path, backend: str, version: int, forwards: bool
) -> None:
    """
    Rule 20.2, the host's kernel: no default route, a client the host knows no way to: every connection works, none is
    answered.
    """
    linked.forward(on=forwards)
    with running(linked, tmp_path, backend) as run:
        for source in (CLIENTS[version], FAR_CLIENTS[version]):
            connect_and_look(linked, version, source, VIPS[version], PORT)
        assert ("forwards packets itself" in run.text()) is forwards


@pytest.mark.parametrize("version", [4, 6])
def test_guard_without_nft_kernel_is_silent(arms: Arms, tmp_path: Path, backend: str, version: int) -> None:
    """
    Rule 20.2, the host's kernel: a routing rule does it where nftables is missing; it is put back, and gone at the
    end.
    """
    with running(arms, tmp_path, backend, environment={"PATH": "/nonexistent"}) as run:
        connect_and_look(arms, version, FAR_CLIENTS[version], VIPS[version], PORT)
        arms.ip("host", "-6 rule del iif eth1 priority 1")
        wait_until(lambda: "restored" in run.text(), "the repair is told")
        connect_and_look(arms, version, FAR_CLIENTS[version], VIPS[version], PORT)
    assert "blackhole" not in arms.run("host", "ip", "-6", "rule")


@needs_nft
@pytest.mark.parametrize("version", [4, 6])
def test_guard_workers_and_transit_kernel_is_silent(arms: Arms, tmp_path: Path, backend: str, version: int) -> None:
    """Rule 20.2, the host's kernel: packets of no service are the balancer's too when it sends them on."""
    more = 'transit = "forward"\nworkers = 2\n'
    with running(arms, tmp_path, backend, more), answering(arms, "server", OTHER_PORT):
        connect_and_look(arms, version, FAR_CLIENTS[version], VIPS[version], PORT)
        # Straight to the server, through the balancer.
        connect_and_look(arms, version, CLIENTS[version], SERVERS[version], OTHER_PORT)


@needs_nft
@pytest.mark.parametrize("forwards", [False, True], ids=["host", "router"])
def test_guard_ruleset_flushed_is_put_back(arms: Arms, tmp_path: Path, backend: str, forwards: bool) -> None:
    """Rule 20.2, the host's kernel: `nft flush ruleset` behind our back is noticed, put back, logged and counted."""
    arms.forward(on=forwards)
    with running(arms, tmp_path, backend, f"[metrics]\nport = {METRICS_PORT}\n") as run:
        made = arms.ruleset()
        assert made.count("table inet flowlb_if") == 1
        for repairs in (1, 2):
            arms.run("host", "nft", "flush", "ruleset")
            wait_until(lambda: arms.ruleset() == made, "the table is back")
            wait_until(lambda n=repairs: run.text().count("restored") == n, "the repair is told")
            assert read_metric(arms, "lb_host_guard_repairs_total") == repairs
            connect_and_look(arms, 6, FAR_CLIENTS[6], VIPS[6], PORT)
    assert arms.ruleset() == ""


@needs_nft
def test_guard_ruleset_flushed_again_and_again_is_put_back(arms: Arms, tmp_path: Path, backend: str) -> None:
    """
    Rule 20.2, the host's kernel: flushes at any distance, also while it is being put back; in the end the table is
    there.
    """
    with running(arms, tmp_path, backend) as run:
        made = arms.ruleset()
        for flushes in (2, 3, 20):
            for _ in range(flushes):
                arms.run("host", "nft", "flush", "ruleset")
            wait_until(lambda: arms.ruleset() == made, "the table is back")
        connect_and_look(arms, 6, FAR_CLIENTS[6], VIPS[6], PORT)
        guard = fetch(run.control, "/status")["host_guard"]
        assert (guard["means"], guard["trouble"]) == ("nftables", None)
    assert arms.ruleset() == ""


@needs_nft
def test_guard_nft_fails_is_told_and_made_good(arms: Arms, tmp_path: Path, backend: str) -> None:
    """
    Rule 20.2, the host's kernel: while nft fails on a forwarding host, log, metric, status and doctor say so; then all
    is well.
    """
    arms.forward(on=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    real, broken = shutil.which("nft"), tmp_path / "broken"
    (programs / "nft").write_text(f'#!/bin/sh\n[ -e {broken} ] && echo busy >&2 && exit 1\nexec {real} "$@"\n')
    (programs / "nft").chmod(0o755)
    # The unprivileged user looks for the file too.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    more = f"[metrics]\nport = {METRICS_PORT}\n"
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    with running(arms, tmp_path, backend, more, environment=path) as run:
        made = arms.ruleset()
        broken.touch()
        arms.run("host", "nft", "flush", "ruleset")
        state = wait_until(lambda: fetch(run.control, "/status")["host_guard"]["trouble"], "the trouble shows")
        assert "nft: busy" in state
        assert read_metric(arms, "lb_host_guard_active") == 0
        assert "cannot block the services' packets for the host's kernel" in run.text()
        told = [row for row in doctor(arms, run)[1] if row["check"] == "kernel stays out" and "busy" in row["message"]]
        assert [row["level"] for row in told] == ["fail"]
        broken.unlink()
        wait_until(lambda: arms.ruleset() == made, "the table is back")
        wait_until(lambda: fetch(run.control, "/status")["host_guard"]["trouble"] is None, "the trouble is over")
        assert read_metric(arms, "lb_host_guard_active") == 1
    assert arms.ruleset() == ""


@needs_nft
def test_guard_rule_removed_is_put_back(arms: Arms, tmp_path: Path, backend: str) -> None:
    """Rule 20.2, the host's kernel: the table being there is not enough: its rules must be."""
    with running(arms, tmp_path, backend) as run:
        made = arms.ruleset()
        table = re.search(r"table inet (flowlb_if\d+)", made)
        assert table is not None
        arms.run("host", "nft", "flush", "chain", "inet", table[1], "prerouting")
        wait_until(lambda: arms.ruleset() == made, "the rules are back")
        wait_until(lambda: "restored" in run.text(), "the repair is told")


@needs_nft
def test_guard_left_by_killed_process_is_replaced(arms: Arms, tmp_path: Path, backend: str) -> None:
    """
    Rule 20.1, restoring the host: what a killed balancer left goes at the next start, also when that has other
    interfaces.
    """
    for interfaces in (("eth0", "eth1"), ("eth0", "eth1"), ("eth1", "eth0")):
        with running(arms, tmp_path, backend, interfaces=interfaces) as run:
            assert arms.ruleset().count("table inet flowlb_if") == 1
            run.end(signal.SIGKILL)
    with running(arms, tmp_path, backend):
        assert arms.ruleset().count("table inet flowlb_if") == 1
    assert arms.ruleset() == ""


@needs_nft
def test_guard_vip_is_own_address_host_keeps_the_rest(arms: Arms, tmp_path: Path, backend: str) -> None:
    """A VIP that is an address of this host, too: the service works, and so does what else the host offers there."""
    arms.ip("host", f"addr add {VIPS[4]}/32 dev lo")
    try:
        with running(arms, tmp_path, backend), answering(arms, "host", PORT), answering(arms, "host", OTHER_PORT):
            with arms.socket("host", socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.connect((VIPS[4], OTHER_PORT))
            connect_and_look(arms, 4, CLIENTS[4], VIPS[4], PORT)
    finally:
        arms.ip("host", f"addr del {VIPS[4]}/32 dev lo")


def read_metric(arms: Arms, name: str) -> float:
    """Return a metric of the balancer, which serves them on its host's loopback."""
    with arms.socket("host", socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", METRICS_PORT))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


@pytest.mark.parametrize("whose", ["own", "peer"])
def test_big_tcp_is_found_and_its_command_fixes_it(arms: Arms, tmp_path: Path, backend: str, whose: str) -> None:
    """Frames over 64 KiB: `lb run` and `lb doctor` name the interface or its peer elsewhere, and the command."""
    host = "host" if whose == "own" else "client"
    arms.ip(host, "link set dev eth0 gso_max_size 200000")
    try:
        with running(arms, tmp_path, backend) as run:
            assert "eth0: it" in run.text() or "eth0: its peer eth0" in run.text()
            code, found = doctor(arms, run)
            (finding,) = (row for row in found if (row["check"], row["level"]) == ("frame size", "fail"))
            assert code == 1
            command = finding["fix"].removesuffix(" (where that is)").split()
            assert command[:6] == ["ip", "link", "set", "dev", "eth0", "gso_max_size"]
            assert ("(where that is)" in finding["fix"]) is (whose == "peer")
            assert "`" + finding["fix"] + "`" in run.text()
            arms.ip(host, " ".join(command[1:]))
            assert not [row for row in doctor(arms, run)[1] if (row["check"], row["level"]) == ("frame size", "fail")]
    finally:
        arms.ip(host, "link set dev eth0 gso_max_size 65536")


@needs_nft
def test_doctor_sees_the_guard(arms: Arms, tmp_path: Path, backend: str) -> None:
    """
    Rule 20.2, the host's kernel: `lb doctor` tells what keeps the kernel silent; without a balancer that one will.
    """
    with running(arms, tmp_path, backend) as run:
        told = [row["message"] for row in doctor(arms, run)[1] if row["check"] == "kernel stays out"]
        assert [text.rpartition("and ")[2] for text in told] == ["nftables keeps it silent"] * 2
    told = [row["message"] for row in doctor(arms, run)[1] if row["check"] == "kernel stays out"]
    assert [text.rpartition("and ")[2] for text in told] == ["`lb run` keeps it silent"] * 2


def doctor(arms: Arms, run: Run) -> tuple[int, list[dict[str, Any]]]:
    """Run `lb doctor` on the balancer's host; return its exit code and findings."""
    command = ["ip", "netns", "exec", arms.names["host"], *program("doctor", "-o", "json")]
    command += ["--no-probe", "-c", str(run.config), "--control", str(run.control)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout)["findings"]
