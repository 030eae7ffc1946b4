"""What the running balancer tells: the control socket and the status, without packets."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from lb.compiler.spec import HEALTHY, NO_OVERRIDE, HealthStatus, Override, ServerKey, Spec
from lb.config import parse
from lb.control.api.client import fetch
from lb.control.api.listener import bind_socket
from lb.control.api.paths import default_control_path
from lb.control.api.render import SERVER_COLUMNS, Output, print_flows, print_status
from lb.control.api.status import build_status
from lb.control.tasks import RECENT_S, TaskState
from lb.control.telemetry import rates
from lb.control.telemetry.process_facts import Facts
from lb.control.telemetry.rates import RateMeter, Rates, rates_between
from lb.errors import DaemonError, LbError
from lb.model.snapshot import Interface
from lb.net.host import GuardState
from snapshots import complete_snapshot

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
    "table": {"entries": 3, "capacity": 1000},
}  # fmt: skip
SPEED = {"flows_per_s": 1.0, "packets_per_s": 15.0, "bytes_per_s": 2150.0}
RATES = Rates({"video": SPEED}, {"video/server1": SPEED})
SNAPSHOT = complete_snapshot(4, 1, (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),), (), ())
FACTS = Facts("1.2", 77, "rust", "/etc/lb.toml", 3725.5, None)


def test_build_status_brings_what_is_wanted_known_and_counted_together() -> None:
    """The status has every documented key; a service without traffic shows zeros."""
    status = build_status(FACTS, Spec(CONFIG), SNAPSHOT, COUNTERS, RATES)
    assert {key: status[key] for key in ("version", "pid", "backend", "generation", "config", "uptime_s")} == {
        "version": "1.2", "pid": 77, "backend": "rust", "generation": 4, "config": "/etc/lb.toml", "uptime_s": 3725.5
    }  # fmt: skip
    assert status["interfaces"] == [
        {"name": "eth0", "mac": "aa:aa:aa:00:00:01", "mtu": 1500, "addresses": [], "announce": False}
    ]
    video, empty = status["services"]
    assert (video["policy"], video["leaving"]) == ("round-robin", False)
    assert video["servers"] == [
        {
            "name": "server1", "address": "2001:db8::31", "port": 8031, "weight": 3, "state": "active", "health": "up",
            "ramp": 1.0, "leaving": False, "notes": [], **TRAFFIC, **SPEED,
        }
    ]  # fmt: skip
    assert (empty["servers"], empty["flows_created"], empty["packets_per_s"]) == ([], 0, 0.0)
    assert status["table"] == {"entries": 3, "capacity": 1000}
    assert set(status["counters"]) == {"rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "verdicts", "events", "io"}


@pytest.mark.parametrize(
    ("override", "health", "notes"),
    [
        (Override("draining", None, "drained by operator"), HEALTHY, ["drained by operator"]),
        (Override(None, 7), HEALTHY, ["weight 3 in the file"]),
        (NO_OVERRIDE, HealthStatus("down", 1.0, "3 checks failed"), ["down: 3 checks failed"]),
        (NO_OVERRIDE, HealthStatus("up", 0.25), ["slow start: 25% of its weight"]),
    ],
)
def test_build_status_notes_say_why(override: Override, health: HealthStatus, notes: list[str]) -> None:
    """Each difference from the file has a note with its reason."""
    key = ServerKey("video", "server1")
    spec = Spec(CONFIG, overrides={key: override}, health={key: health})
    status = build_status(FACTS, spec, SNAPSHOT, COUNTERS, RATES)
    assert status["services"][0]["servers"][0]["notes"] == notes


def test_rates_between_two_looks() -> None:
    """Rates are per second; what is new, or has counted less, has none that is negative."""
    before = {"services": {"video": {**TRAFFIC, "packets_reply": 10, "bytes_reply": 0}}, "servers": {}}
    found = rates_between(before, COUNTERS, 2.0)
    assert found.services["video"] == {"flows_per_s": 0.0, "packets_per_s": 5.0, "bytes_per_s": 2000.0}
    assert found.servers["video/server1"]["flows_per_s"] == 2.5
    assert rates_between(COUNTERS, before, 1.0).services["video"]["packets_per_s"] == 0.0


def shown(facts: Facts, output: Output) -> str:
    """Return what `lb status` prints."""
    text = io.StringIO()
    print_status(build_status(facts, Spec(CONFIG), SNAPSHOT, COUNTERS, RATES), output, text)
    return text.getvalue()


def test_print_status_table_for_people() -> None:
    """The table has head, services, servers and totals, and says what is wrong: an interface, the last reload."""
    facts = Facts("1.2", 77, "rust", "/etc/lb.toml", 3725.5, "lb.toml:3:1: x: unknown key", "eth0 is down")
    head, _, rest = shown(facts, "table").partition("\n\n")
    assert head.splitlines() == [
        "lb 1.2  pid 77  backend rust  up 1:02:05",
        "config /etc/lb.toml  generation 4",
        "flow table 3 of 1000 (0.3%)",
        "interface eth0  aa:aa:aa:00:00:01  mtu 1500  no address",
        "trouble: eth0 is down",
        "last reload failed, the configuration before it is in use: lb.toml:3:1: x: unknown key",
        "service video  [2001:db8::100]:9876/tcp  policy round-robin  active 2",
        "service empty  198.18.1.100:53/udp  policy round-robin  active 0",
    ]
    rows = [line.split() for line in rest.splitlines()]
    assert rows[0] == list(SERVER_COLUMNS)
    assert rows[2][:6] == ["video", "server1", "[2001:db8::31]:8031", "3", "active", "up"]
    assert rows[2][6:] == ["2", "5", "30", "4300", "1", "15", "2150"]
    assert rest.splitlines()[-3:] == [
        "received 31 packets, 5000 bytes; sent 30 packets, 4900 bytes",
        "verdicts: forward 30, drop.no_service 1",
        "on the wire: tx_dropped 7",
    ]


def test_print_status_host_guard_in_trouble_shows() -> None:
    """Rule 20.2, the host's kernel: trouble of the host guard shows with its reason, in the table and in JSON."""
    facts = replace(FACTS, host_guard=GuardState(None, "nft: busy", 3))
    line = "trouble: the host guard does not block the services' packets for the host's kernel: nft: busy"
    assert line in shown(facts, "table").splitlines()
    assert json.loads(shown(facts, "json"))["host_guard"] == {"means": None, "trouble": "nft: busy", "repairs": 3}
    assert "kernel" not in shown(FACTS, "table")


def test_print_status_background_task_that_failed_lately_shows() -> None:
    """A line while a failure is recent, none for tasks that are well or have been for long; JSON has all of them."""
    failed = TaskState(3, 2, "KeyError: 'x'", time.time() - 5)
    old = TaskState(1, 1, "ValueError: y", time.time() - 2 * RECENT_S)
    tasks = {"sweep": failed, "replan": old, "changes": TaskState()}
    facts = replace(FACTS, tasks=tasks)
    lines = [line for line in shown(facts, "table").splitlines() if "background" in line]
    assert lines == ["background task sweep failed 3 times, see the log; the last: KeyError: 'x'"]
    told = json.loads(shown(facts, "json"))["tasks"]
    assert {name: task["recent"] for name, task in told.items()} == {"sweep": True, "replan": False, "changes": False}
    assert (told["sweep"]["failures"], told["sweep"]["restarts"]) == (3, 2)


class Looks:
    """A clock, and counters that grow by 100 flows a second."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    async def counters(self) -> dict[str, Any]:
        traffic = {**TRAFFIC, "flows_created": round(self.now_s * 100)}
        return {**COUNTERS, "services": {"video": traffic}, "servers": {}}


def test_rate_meter_readers_do_not_shorten_each_others_windows() -> None:
    """One that reads all the time leaves those of another what they are: rates over about a second."""
    looks = Looks()
    meter = RateMeter(looks.counters, looks.now, looks.sleep)
    spans: list[float] = []
    real = rates.rates_between

    def noted(before: Any, after: Any, seconds: float) -> Rates:
        spans.append(seconds)
        return real(before, after, seconds)

    async def scenario() -> None:
        for _ in range(200):
            looks.now_s += 0.05
            _, found = await meter.read()
            assert found.services["video"]["flows_per_s"] == pytest.approx(100, rel=0.05)
        slow = looks.now_s
        _, found = await meter.read()
        assert looks.now_s == slow
        looks.now_s += 5
        await meter.read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "rates_between", noted)
        asyncio.run(scenario())
    assert spans[0] == pytest.approx(0.2)
    assert all(0.5 <= span <= 1.5 for span in spans[30:201])
    assert spans[201] == pytest.approx(5, abs=0.5)


def test_print_status_csv_one_row_per_server() -> None:
    """CSV has a head and the same cells."""
    lines = shown(FACTS, "csv").splitlines()
    assert lines[0] == ",".join(SERVER_COLUMNS)
    assert lines[1] == "video,server1,[2001:db8::31]:8031,3,active,up,2,5,30,4300,1,15,2150,"


def test_print_status_scaled_for_people() -> None:
    """Large numbers of the table are scaled, small ones exact; CSV stays raw."""
    counters = COUNTERS | {"rx_packets": 12_900, "rx_bytes": 54 * 2**20}
    speed = {"flows_per_s": 1.0, "packets_per_s": 12_900.0, "bytes_per_s": 150e6}
    fast = Rates({"video": speed}, {"video/server1": speed})
    forms = {}
    for output in ("table", "csv"):
        text = io.StringIO()
        print_status(build_status(FACTS, Spec(CONFIG), SNAPSHOT, counters, fast), output, text, scaled=True)
        forms[output] = text.getvalue()
    (row,) = [line.split() for line in forms["table"].splitlines() if "server1" in line]
    assert row[6:] == ["2", "5", "30", "4300", "B", "1", "12.9", "k", "143.1", "MiB"]
    assert "received 12.9 k packets, 54.0 MiB; sent 30 packets, 4900 B" in forms["table"]
    assert (
        forms["csv"].splitlines()[1] == "video,server1,[2001:db8::31]:8031,3,active,up,2,5,30,4300,1,12900,150000000,"
    )


class Terminal(io.StringIO):
    """A terminal to print on; its width comes from the environment."""

    def isatty(self) -> bool:
        return True


def server_table(monkeypatch: pytest.MonkeyPatch, columns: int, notes: list[str]) -> tuple[list[str], list[str]]:
    """Return the head of the servers' table on a terminal of that width, and those below it."""
    for name, value in (("COLUMNS", str(columns)), ("LINES", "50"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    status = build_status(FACTS, Spec(CONFIG), SNAPSHOT, COUNTERS, RATES)
    video, _ = status["services"]
    row = video["servers"][0] | {"name": "server3", "address": "198.18.1.33", "notes": notes, "bytes_reply": 54 * 2**20}
    text = Terminal()
    print_status({**status, "services": [{**video, "servers": [row] * 2}]}, "table", text, scaled=True)
    lines = Text.from_ansi(text.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= columns
    head = lines.index("") + 1
    return lines[head].split(), lines[head + 2 : lines.index("", head)]


def test_print_status_narrow_terminal_shows_no_secondary_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns each server has one line, without what is empty and without what has no room."""
    head, rows = server_table(monkeypatch, 80, [])
    main = ["service", "server", "address", "weight", "state", "health", "active"]
    assert head == [*main, "flows/s"]
    row = ["video", "server3", "198.18.1.33:8031", "3", "active", "up", "2"]
    assert [line.split() for line in rows] == [[*row, "1"]] * 2
    head, rows = server_table(monkeypatch, 80, ["drained by operator"])
    assert head == [*main, "notes"]
    assert [line.split() for line in rows] == [[*row, "drained", "by"], ["operator"]] * 2


def test_print_status_wide_terminal_shows_every_column_with_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 200 columns only what is empty everywhere is left out."""
    assert server_table(monkeypatch, 200, [])[0] == [column for column in SERVER_COLUMNS if column != "notes"]
    assert server_table(monkeypatch, 200, ["weight 1 in the file"])[0] == list(SERVER_COLUMNS)


def test_print_flows_narrow_terminal_folds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns a flow has one line; the total is scaled."""
    for name, value in (("COLUMNS", "80"), ("LINES", "50"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    flow = {
        "client": "198.18.1.21", "client_port": 40000, "service": "video", "server": "server1", "protocol": "tcp",
        "state": "established", "idle_s": 1.26, "bytes_forward": 60, "bytes_reply": 54 * 2**20,
    }  # fmt: skip
    text = Terminal()
    print_flows({"total": 12_900, "offset": 4, "flows": [flow]}, "table", text, scaled=True)
    lines = Text.from_ansi(text.getvalue()).plain.splitlines()
    assert lines[2].split() == ["198.18.1.21", "40000", "video", "server1", "tcp", "established", "1.3"]
    assert lines[-1] == "flows 5 to 5 of 12.9 k"


def test_print_flows_table_csv_json() -> None:
    """A page of flows, in three forms."""
    flow = {
        "client": "198.18.1.21", "client_port": 40000, "service": "video", "server": "server1", "protocol": "tcp",
        "state": "established", "idle_s": 1.26, "bytes_forward": 60, "bytes_reply": 0,
    }  # fmt: skip
    forms: dict[Output, str] = {}
    for output in ("table", "csv", "json"):
        text = io.StringIO()
        print_flows({"total": 9, "offset": 4, "flows": [flow]}, output, text)
        forms[output] = text.getvalue()
    assert forms["table"].splitlines()[-1] == "flows 5 to 5 of 9"
    assert forms["csv"].splitlines()[1] == "198.18.1.21,40000,video,server1,tcp,established,1.3,60,0"
    assert json.loads(forms["json"])["flows"] == [flow]


def test_bind_socket_stale_file_replaced_live_one_refused(tmp_path: Path) -> None:
    """What a killed process left is replaced; a listening balancer is not."""
    path = tmp_path / "lb.sock"
    bind_socket(path).close()
    assert path.is_socket()
    with bind_socket(path), pytest.raises(LbError, match="listens there already; --control names another"):
        bind_socket(path)


def test_bind_socket_other_file_never_removed(tmp_path: Path) -> None:
    """A file that is no socket belongs to another program: it stays."""
    (tmp_path / "lb.sock").write_text("mine")
    with pytest.raises(LbError):
        bind_socket(tmp_path / "lb.sock")
    assert (tmp_path / "lb.sock").read_text() == "mine"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", b"SSH-2.0\r\n"])
def test_fetch_nonsense_daemon_error(tmp_path: Path, answer: bytes) -> None:
    """A peer that answers something else is no balancer."""
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


def test_bind_socket_over_another_file_refuses(tmp_path: Path) -> None:
    """What is there and is no socket stays, and is called what it is."""
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(LbError, match="already exists and is not a socket"):
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
