"""What the running balancer tells: the control socket and the status, without packets."""

# ruff: noqa: E501 - tables as they are printed
from __future__ import annotations

import asyncio
import socket
import stat
import threading
from pathlib import Path

import pytest

from lb.config import parse
from lb.control.admin import Admin, bind_socket
from lb.control.client import fetch
from lb.control.paths import default_control_path
from lb.control.render import render_status
from lb.control.status import Facts, build_status
from lb.errors import DaemonError, LbError
from lb.snapshot import Interface, Snapshot

CONFIG = parse("""
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "2001:db8::100"
port = 9876
  [[service.server]]
  name = "server1"
  address = "2001:db8::31"
  port = 8031
  weight = 3
[[service]]
name = "empty"
address = "198.18.1.100"
port = 53
protocol = "udp"
""")
TRAFFIC = {
    "flows_active": 2, "flows_created": 5, "packets_forward": 10, "packets_reply": 20, "bytes_forward": 300,
    "bytes_reply": 4000,
}  # fmt: skip
COUNTERS = {
    "rx_packets": 31, "rx_bytes": 5000, "tx_packets": 30, "tx_bytes": 4900,
    "verdicts": {"forward": 30, "drop.no_service": 1}, "events": {"flow_hit": 25},
    "services": {"video": TRAFFIC}, "servers": {"video/server1": TRAFFIC}, "io": {"tx_dropped": 7, "rx_errors": 0},
}  # fmt: skip
SNAPSHOT = Snapshot(4, 1, (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),), (), ())
FACTS = Facts("1.2", 77, "rust", "/etc/lb.toml", 3725.5, None)


def test_build_status_brings_config_and_counters_together() -> None:
    """The status has every documented key; a service without traffic shows zeros."""
    status = build_status(FACTS, CONFIG, SNAPSHOT, COUNTERS)
    assert {key: status[key] for key in ("version", "pid", "backend", "generation", "config", "uptime_s")} == {
        "version": "1.2", "pid": 77, "backend": "rust", "generation": 4, "config": "/etc/lb.toml", "uptime_s": 3725.5
    }  # fmt: skip
    assert status["interfaces"] == [
        {"name": "eth0", "mac": "aa:aa:aa:00:00:01", "mtu": 1500, "addresses": [], "announce": False}
    ]
    video, empty = status["services"]
    assert video["servers"] == [
        {"name": "server1", "address": "2001:db8::31", "port": 8031, "weight": 3, "state": "active", **TRAFFIC}
    ]
    assert (empty["servers"], empty["flows_created"]) == ([], 0)
    assert set(status["counters"]) == {"rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "verdicts", "events", "io"}


def test_render_status_table_for_people() -> None:
    """The table has head, servers and totals, and says what is wrong: an interface, the last reload."""
    facts = Facts("1.2", 77, "rust", "/etc/lb.toml", 3725.5, "lb.toml:3:1: x: unknown key", "eth0 is down")
    text = render_status(build_status(facts, CONFIG, SNAPSHOT, COUNTERS), "table")
    assert text == (
        "lb 1.2  pid 77  backend rust  up 1:02:05\n"
        "config /etc/lb.toml  generation 4\n"
        "interface eth0  aa:aa:aa:00:00:01  mtu 1500  no address\n"
        "trouble: eth0 is down\n"
        "last reload failed, the configuration before it is in use: lb.toml:3:1: x: unknown key\n"
        "\n"
        "service  vip                       server   address              weight  state   active  flows  packets  bytes\n"
        "video    [2001:db8::100]:9876/tcp  server1  [2001:db8::31]:8031  3       active       2      5       30   4300\n"
        "empty    198.18.1.100:53/udp       -        -                    -       -            0      0        0      0\n"
        "\n"
        "received 31 packets, 5000 bytes; sent 30 packets, 4900 bytes\n"
        "verdicts: forward 30, drop.no_service 1\n"
        "on the wire: tx_dropped 7\n"
    )


def test_render_status_csv_one_row_per_server() -> None:
    """CSV has a head and the same cells."""
    lines = render_status(build_status(FACTS, CONFIG, SNAPSHOT, COUNTERS), "csv").splitlines()
    assert lines[0] == "service,vip,server,address,weight,state,active,flows,packets,bytes"
    assert lines[1] == "video,[2001:db8::100]:9876/tcp,server1,[2001:db8::31]:8031,3,active,2,5,30,4300"


def ask_admin(path: Path, *resources: str) -> list[object]:
    """Serve two resources, and return what a client on a thread gets for each request."""

    def fail() -> None:
        raise LbError("the loop has failed")

    async def scenario() -> list[object]:
        admin = Admin(path, {"/status": lambda: {"pid": 1}, "/flows": lambda: list(range(5000)), "/broken": fail})
        await admin.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        try:
            return [await asyncio.to_thread(outcome, resource) for resource in resources]
        finally:
            await admin.stop()

    def outcome(resource: str) -> object:
        try:
            return fetch(path, resource)
        except DaemonError as error:
            return str(error).removeprefix(f"{path}: ")

    return asyncio.run(scenario())


def test_admin_requests_answered_bounded_and_socket_removed(tmp_path: Path) -> None:
    """Behaviour 35: mode 0660, bounded lists, errors as HTTP; the file is gone after stop."""
    path = tmp_path / "deep" / "lb.sock"
    found = ask_admin(
        path, "/status", "/flows", "/flows?limit=3", "/flows?limit=-1", "/flows?limit=x", "/broken", "/no"
    )
    assert found[0] == {"pid": 1}
    assert [len(item) for item in found[1:4] if isinstance(item, list)] == [1000, 3, 0]
    assert found[4:] == [
        "the balancer answered 400 to /flows?limit=x",
        "the balancer answered 503 to /broken",
        "the balancer answered 404 to /no",
    ]
    assert not path.exists()


def test_bind_socket_stale_file_replaced_live_one_refused(tmp_path: Path) -> None:
    """What a killed process left is replaced; a listening balancer is not."""
    path = tmp_path / "lb.sock"
    bind_socket(path).close()
    assert path.is_socket()
    with bind_socket(path), pytest.raises(LbError, match="listens there already; --control names another"):
        bind_socket(path)


def test_bind_socket_other_file_never_removed(tmp_path: Path) -> None:
    """A file that is no socket is somebody's: it stays."""
    (tmp_path / "lb.sock").write_text("mine")
    with pytest.raises(LbError):
        bind_socket(tmp_path / "lb.sock")
    assert (tmp_path / "lb.sock").read_text() == "mine"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", b"SSH-2.0\r\n"])
def test_fetch_nonsense_daemon_error(tmp_path: Path, answer: bytes) -> None:
    """Whoever answers something else is no balancer."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x.sock"))
        server.listen()

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DaemonError, match="no usable answer"):
            fetch(tmp_path / "x.sock", "/status")
        thread.join()


def test_admin_flows_limit_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 35: however many flows are asked for, an answer has an upper bound."""
    monkeypatch.setattr("lb.control.admin.MAX_FLOWS", 1200)
    found = ask_admin(tmp_path / "lb.sock", "/flows?limit=1100", "/flows?limit=1000000")
    assert [len(item) for item in found if isinstance(item, list)] == [1100, 1200]


def test_bind_socket_over_another_file_refuses(tmp_path: Path) -> None:
    """What is there and is no socket stays, and is called what it is."""
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(LbError, match="is there already and is no socket"):
        bind_socket(path)
    assert path.read_text() == "precious"


def test_default_control_path_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LB_CONTROL`, else /run for root, else the user's runtime folder."""
    monkeypatch.setenv("LB_CONTROL", "/x/y.sock")
    assert default_control_path() == Path("/x/y.sock")
    monkeypatch.delenv("LB_CONTROL")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_control_path() == Path("/run/flowlb/lb.sock")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_control_path() == Path("/run/user/1000/flowlb.sock")
