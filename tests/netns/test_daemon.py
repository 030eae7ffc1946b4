"""`lb run` as a process: it starts, refuses, reloads, tells and stops. Tests with real hosts look at its packets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from lbrun import LbRun, program, until_the_end
from pair import DEADLINE_S, Pair, running_pair, wait_until, write_config

from lb.backends.python.loop import PacketLoop
from lb.config.model import SEED_NOTE
from lb.control.api.client import change, fetch
from lb.control.daemon import Daemon
from lb.control.kept import StateDirectory
from lb.control.preparation import Prepared
from lb.errors import LbError
from lb.lab.testbed import isolation

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pair(backend: str) -> Iterator[Pair]:
    with running_pair() as made:
        made.backend = backend
        yield made


class Run(LbRun):
    """An `lb run` in `near`."""

    def __init__(self, pair: Pair, folder: Path, *options: str, wrapper: Sequence[str] | None = None) -> None:
        super().__init__(pair.near, folder, ["--backend", pair.backend, *options], wrapper=wrapper)


@contextmanager
def running(pair: Pair, folder: Path) -> Iterator[Run]:
    with until_the_end(Run(pair, folder)) as run:
        yield run


def test_run_tells_status_and_stops_clean(pair: Pair, tmp_path: Path) -> None:
    """It says when it is ready, answers `lb status`, ends with 0 on SIGTERM and leaves no socket file: as a program."""
    write_config(tmp_path / "lb.toml")
    with until_the_end(Run(pair, tmp_path, wrapper=())) as run:
        assert "echo 198.18.1.100 port 9876/tcp" in run.text()
        status = fetch(run.control, "/status")
        assert (status["backend"], status["generation"], status["last_reload_error"]) == (pair.backend, 1, None)
        assert [service["name"] for service in status["services"]] == ["echo", "echo6"]
        assert status["interfaces"][0]["addresses"][0] == "198.18.1.1/24"
        shown = subprocess.run(
            program("status", "-o", "json", "--control", str(run.control)),
            capture_output=True, text=True, check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert json.loads(shown.stdout)["pid"] == status["pid"]
        assert run.end() == 0
    assert run.text().splitlines()[-1].endswith("stopping")
    assert not run.control.exists()


def test_run_draws_a_seed_keeps_it_and_takes_a_written_one(pair: Pair, tmp_path: Path) -> None:
    """
    Rule 21.1, secrets and seeds: each run draws its own, which log and status show; a reload keeps it, unless the file
    has one.
    """
    config = write_config(tmp_path / "lb.toml")
    text = config.read_text()
    assert "seed" not in text
    seeds = set()
    for _ in range(2):
        with running(pair, tmp_path) as run:
            seeds.add(seed := fetch(run.control, "/status")["seed"])
            assert f"seed {seed}, drawn at start" in run.text()
            for content, expected in ((text + "\n", seed), ("seed = 7\n" + text, 7), (text, 7)):
                config.write_text(content)
                answer = change(run.control, "/reload", {})
                assert fetch(run.control, "/status")["seed"] == expected
                assert [line for line in answer["diff"] if "seed" in line] == (
                    [f"~ seed: {seed} -> 7: {SEED_NOTE}"] if content.startswith("seed") else []
                )
    assert len(seeds) == 2


def test_run_tells_promised_and_resident_memory_of_its_table(pair: Pair, tmp_path: Path) -> None:
    """Rule 8.17, full table: the flow table's size is a promise, and all of it is there when the start says so."""
    write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        told = re.findall(
            r"flow table: 262144 flows of 128\.0 bytes, (\S+ MiB) promised, (\S+ MiB) resident", run.text()
        )
        assert told == ([("32.0 MiB", "32.0 MiB")] if pair.backend == "rust" else [])


def test_run_log_format_json_every_line_is_an_object(pair: Pair, tmp_path: Path) -> None:
    """For programs that read logs: from the first line to the last."""
    write_config(tmp_path / "lb.toml")
    run = Run(pair, tmp_path, "--log-format", "json")
    run.wait_ready()
    assert run.end() == 0
    lines = [json.loads(line) for line in run.text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any(line["message"].startswith("ready: ") for line in lines)


def test_run_interrupt_exit_0(pair: Pair, tmp_path: Path) -> None:
    """Ctrl-C is the normal way to stop it."""
    write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        assert run.end(signal.SIGINT) == 0
    assert "Traceback" not in run.text()


def test_run_with_mac_of_its_own_listens_for_it_while_it_runs(pair: Pair, tmp_path: Path) -> None:
    """
    A MAC that is not the card's makes the interface promiscuous; rule 20.1, restoring the host: until the balancer
    stops.
    """
    config = write_config(tmp_path / "lb.toml")
    config.write_text(config.read_text().replace('name = "eth0"', 'name = "eth0"\nmac = "aa:aa:aa:00:00:99"', 1))

    def promiscuity() -> int:
        command = ["ip", "-n", pair.near, "-d", "-j", "link", "show", "eth0"]
        return int(json.loads(subprocess.check_output(command))[0]["promiscuity"])

    with running(pair, tmp_path) as run:
        assert promiscuity() == 1
        assert run.end() == 0
    assert promiscuity() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_run_on_forwarding_host_takes_its_rules_away(pair: Pair, tmp_path: Path, number: signal.Signals) -> None:
    """
    Rule 20.1, restoring the host: the packet filter rules that keep a forwarding host out of the way go when the
    balancer stops.
    """
    if shutil.which("nft") is None:
        pytest.skip("the command nft (nftables) is not installed")
    write_config(tmp_path / "lb.toml")
    list_tables = ["ip", "netns", "exec", pair.near, "nft", "list", "tables"]
    pair.forward(pair.near, on=True)
    try:
        with running(pair, tmp_path) as run:
            assert "flowlb" in subprocess.check_output(list_tables, text=True)
            assert run.end(number) == 0
        assert subprocess.check_output(list_tables, text=True) == ""
    finally:
        pair.forward(pair.near, on=False)


def test_run_second_on_interface_refused(pair: Pair, tmp_path: Path) -> None:
    """Two balancers never answer on one wire: the second ends with 4 and one line."""
    write_config(tmp_path / "lb.toml")
    other = tmp_path / "other"
    other.mkdir()
    write_config(other / "lb.toml")
    with running(pair, tmp_path):
        second = Run(pair, other)
        assert second.process.wait(DEADLINE_S) == 4
        assert second.text() == "lb: another balancer runs on eth0: stop it first, or choose another interface\n"


def test_run_killed_leaves_nothing_in_the_way(pair: Pair, tmp_path: Path) -> None:
    """After SIGKILL the interface is free and the stale socket file is replaced."""
    write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        os.kill(fetch(run.control, "/status")["pid"], signal.SIGKILL)
        run.process.wait(DEADLINE_S)
        # Removed by the broker as root; left behind by others.
        wait_until(lambda: os.geteuid() != 0 or not run.control.exists(), "the socket is gone")
    with running(pair, tmp_path) as again:
        assert fetch(again.control, "/status")["generation"] == 1


def test_reload_bad_then_good_file(pair: Pair, tmp_path: Path) -> None:
    """
    Rule 18.1, reloads and changes: a bad file changes nothing and shows in the status with its line; a good one is
    swapped in.
    """
    path = write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        path.write_text(path.read_text().replace("port = 9876", "port = 0", 1))
        run.process.send_signal(signal.SIGHUP)
        error = wait_until(lambda: fetch(run.control, "/status")["last_reload_error"], "the error shows")
        assert error == f"{path}:6:8: service[0].port: 0 is not in 1..65535"
        assert fetch(run.control, "/status")["generation"] == 1
        path.write_text(path.read_text().replace("port = 0", "port = 80", 1))
        run.process.send_signal(signal.SIGHUP)
        wait_until(lambda: fetch(run.control, "/status")["generation"] == 2, "the new generation")
        status = fetch(run.control, "/status")
        assert (status["services"][0]["port"], status["last_reload_error"]) == (80, None)


def test_reload_other_interface_refused(pair: Pair, tmp_path: Path) -> None:
    """Interfaces are taken at start: another one in the file is a reload error, and the old state stays."""
    path = write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        path.write_text(path.read_text().replace("eth0", "eth7"))
        run.process.send_signal(signal.SIGHUP)
        error = wait_until(lambda: fetch(run.control, "/status")["last_reload_error"], "the error shows")
        assert error == "interfaces cannot change while running (eth0 to eth7): restart"


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("eth0", "eth9", 4, "lb: there is no interface 'eth9' here; there are: "),
        ("198.18.1.100", "198.18.1.1", 3, "VIP of service echo: 198.18.1.1 is an address of eth0"),
    ],
)
def test_run_cannot_start_one_line(pair: Pair, tmp_path: Path, old: str, new: str, code: int, message: str) -> None:
    """What keeps it from starting is one line and an exit code; nothing stays behind."""
    path = write_config(tmp_path / "lb.toml")
    path.write_text(path.read_text().replace(old, new))
    run = Run(pair, tmp_path)
    assert run.process.wait(DEADLINE_S) == code
    assert run.text().startswith(message)
    assert run.text().count("\n") == 1
    assert not run.control.exists()


def test_run_lost_interface_ends_with_error(tmp_path: Path) -> None:
    """When the interface is replaced under it, it ends with 1 and says so, instead of standing there deaf."""
    write_config(tmp_path / "lb.toml")
    with running_pair() as own:
        run = Run(own, tmp_path)
        run.wait_ready()
        own.ip(own.near, "link del eth0")
        own.ip(own.near, "link add eth0 type veth peer name eth1")
        own.ip(own.near, "link set eth0 up")
        assert run.process.wait(DEADLINE_S) == 1
        assert (
            run.text().splitlines()[-1]
            == "lb: an interface was removed and created again, so its sockets are dead: restart the balancer"
        )


def test_run_interface_down_shows_in_status_until_it_is_up(pair: Pair, tmp_path: Path) -> None:
    """An interface that goes down while it runs is told by `lb status`, and no longer when it is back."""
    write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        assert fetch(run.control, "/status")["trouble"] is None
        pair.ip(pair.near, "link set eth0 down")
        try:
            trouble = wait_until(lambda: fetch(run.control, "/status")["trouble"], "the trouble shows")
            assert trouble == "eth0 is down: `ip link set eth0 up`"
        finally:
            pair.ip(pair.near, "link set eth0 up")
            # Lost with the link; the other tests of this pair use it.
            pair.ip(pair.near, "addr replace 2001:db8:1::1/64 dev eth0 nodad")
        wait_until(lambda: fetch(run.control, "/status")["trouble"] is None, "the trouble is over")


def test_daemon_failed_packet_loop_ends_the_run(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet loop that fails ends the balancer with its reason, and everything is undone."""

    def fail(_: PacketLoop) -> None:
        raise RuntimeError("a fault of ours")

    async def scenario() -> None:
        daemon = Daemon(write_config(tmp_path / "lb.toml"), "python", tmp_path / "lb.sock")
        await daemon.start()
        monkeypatch.setattr(PacketLoop, "tick", fail)
        async with asyncio.timeout(DEADLINE_S):
            await daemon.wait()
        with pytest.raises(LbError, match="a fault of ours"):
            await daemon.stop()

    with isolation.inside(pair.near):
        asyncio.run(scenario())
    assert not (tmp_path / "lb.sock").exists()


def test_daemon_failed_with_a_state_directory_leaves_the_kernel_silent(pair: Pair, tmp_path: Path, state: Path) -> None:
    """
    Rule 23.1, flows over a restart: a packet loop that fails is as good as a kill, for the next balancer goes on with
    its flows: until then the host guard stays, and goes when that one is stopped.
    """
    if pair.backend != "rust" or shutil.which("nft") is None:
        pytest.skip("the command nft (nftables) is not installed, or the backend keeps no flows")
    list_tables = ["ip", "netns", "exec", pair.near, "nft", "list", "tables"]

    async def scenario(*, fails: bool) -> None:
        with contextlib.closing(StateDirectory.open(state)) as kept, Path(os.devnull).open() as no_socket:
            daemon = Daemon(write_config(tmp_path / "lb.toml"), "rust", tmp_path / "lb.sock", Prepared(state=kept))
            await daemon.start()
            if fails:
                os.dup2(no_socket.fileno(), daemon._runtime._sockets[0].fileno())
                async with asyncio.timeout(DEADLINE_S):
                    await daemon.wait()
            with pytest.raises(LbError, match="the packet loop has failed") if fails else contextlib.nullcontext():
                await daemon.stop()

    with isolation.inside(pair.near):
        asyncio.run(scenario(fails=True))
        assert "flowlb" in subprocess.check_output(list_tables, text=True)
        asyncio.run(scenario(fails=False))
    assert subprocess.check_output(list_tables, text=True) == ""


def test_frames_beyond_the_queue_are_counted(pair: Pair, tmp_path: Path) -> None:
    """What comes while the loop cannot read, and finds no room, shows in `rx_dropped`: nothing is lost in silence."""
    write_config(tmp_path / "lb.toml")
    with running(pair, tmp_path) as run:
        status = fetch(run.control, "/status")
        assert status["counters"]["io"]["rx_dropped"] == 0
        pair.ip(pair.far, f"neigh replace 198.18.1.100 lladdr {status['interfaces'][0]['mac']} dev eth0")
        os.kill(status["pid"], signal.SIGSTOP)
        try:
            flood(pair.far, "198.18.1.100")
        finally:
            os.kill(status["pid"], signal.SIGCONT)
        io = wait_until(lambda: fetch(run.control, "/status")["counters"]["io"], "the answer")
        assert io["rx_dropped"] > 0
        assert fetch(run.control, "/status")["counters"]["io"]["rx_dropped"] >= io["rx_dropped"]


def flood(name: str, address: str) -> None:
    """Send 84 MB of datagrams from a host: more than the 64 MiB that a packet socket of ours holds."""
    with isolation.inside(name), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(60_000):
            sock.sendto(bytes(1400), (address, 9))


def mac_of(name: str, address: str) -> str | None:
    """Return the MAC that a host's kernel has for an address, asking for it when it has none."""
    rows = json.loads(subprocess.run(["ip", "-j", "-n", name, "neigh"], capture_output=True, check=True).stdout)
    found = next((row["lladdr"] for row in rows if row["dst"] == address and "lladdr" in row), None)
    if found is None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with isolation.inside(name), socket.socket(family, socket.SOCK_DGRAM) as ask:
            ask.setblocking(False)
            with contextlib.suppress(OSError):
                ask.sendto(b"", (address, 9))
    return found


def test_announce_vips_answered_only_where_configured(pair: Pair, tmp_path: Path) -> None:
    """
    Rule 4, ARP and neighbour discovery: with `announce` the balancer answers ARP and neighbour solicitations for its
    VIPs.
    """
    path = write_config(tmp_path / "lb.toml")
    path.write_text(path.read_text().replace('name = "eth0"', 'name = "eth0"\nannounce = true'))
    with running(pair, tmp_path) as run:
        near_mac = fetch(run.control, "/status")["interfaces"][0]["mac"]
        wait_until(lambda: mac_of(pair.far, "198.18.1.100") == near_mac, "the VIP is at the balancer")
        wait_until(lambda: mac_of(pair.far, "2001:db8:1::100") == near_mac, "the IPv6 VIP is at the balancer")
        # A veth has no filter; on a card, solicitations come in only with this.
        assert hears_all_multicast(pair.near)
    assert not hears_all_multicast(pair.near)


def hears_all_multicast(name: str) -> bool:
    """Tell whether a host's eth0 takes frames for multicast groups that no program there has joined."""
    shown = subprocess.run(["ip", "-d", "-n", name, "link", "show", "eth0"], capture_output=True, check=True).stdout
    return b"allmulti 1" in shown


def test_servers_resolved_before_the_first_client(pair: Pair, tmp_path: Path) -> None:
    """Rule 11, next hop: the servers' MACs are asked for at start, not for a first packet: there is none here."""
    pair.ip(pair.near, "neigh flush dev eth0")
    write_config(tmp_path / "lb.toml")
    servers = {"198.18.1.31", "2001:db8:1::31"}

    def known() -> set[str]:
        output = subprocess.run(["ip", "-j", "-n", pair.near, "neigh"], capture_output=True, check=True).stdout
        return {row["dst"] for row in json.loads(output) if "lladdr" in row}

    with running(pair, tmp_path):
        # The start waits half a second for them; where other tests have the cores, they come a little later.
        wait_until(lambda: servers <= known(), "the servers' MACs are known")


@pytest.mark.parametrize("vip", ["198.18.1.100", "2001:db8:1::100"])
def test_server_that_is_silent_client_is_told(pair: Pair, tmp_path: Path, vip: str) -> None:
    """
    Rule 11.4, unreachable servers: a client of a server that answers no ARP or neighbour discovery learns it within
    seconds.
    """
    path = write_config(tmp_path / "lb.toml")
    text = path.read_text().replace('"198.18.1.31"', '"198.18.1.77"').replace('"2001:db8:1::31"', '"2001:db8:1::77"')
    path.write_text(text.replace('name = "eth0"', 'name = "eth0"\nannounce = true'))
    with running(pair, tmp_path) as run, isolation.inside(pair.far):
        with pytest.raises(OSError) as raised:
            socket.create_connection((vip, 9876), DEADLINE_S)
        assert raised.value.errno == errno.EHOSTUNREACH
        verdicts = fetch(run.control, "/counters")["verdicts"]
        assert sum(count for name, count in verdicts.items() if name.startswith("reply.neighbour_")) >= 1


def test_server_that_is_silent_does_not_keep_it_from_starting(pair: Pair, tmp_path: Path) -> None:
    """Rule 11, next hop: waiting for MACs has an end: the services of the servers that are there must not suffer."""
    path = write_config(tmp_path / "lb.toml")
    path.write_text(path.read_text().replace("198.18.1.31", "198.18.1.77", 1))
    with running(pair, tmp_path) as run:
        assert fetch(run.control, "/status")["generation"] == 1
