"""What a running balancer tells about itself, on real hosts: explain, doctor, metrics, the flow log."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from realhosts import (
    DEADLINE_S,
    ECHO_PORT,
    WEB_PORT,
    RunningBalancer,
    configuration,
    connect,
    echo_once,
    running_testbed,
    wait_until,
)

from lb.errors import LbError
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP

METRICS_PORT = 9464
TOP = """
flow_log = true
[metrics]
port = 9464
[flows]
closing = "1s"
"""


@pytest.fixture(scope="module")
def testbed(unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}o-", use_apache=False) as made:
        yield made


@contextmanager
def running(testbed: Testbed, backend: str, top: str = "") -> Iterator[RunningBalancer]:
    """Run a balancer with every kind of service; `top` goes above its configuration."""
    config = testbed.directory / "observe.toml"
    config.write_text(top + configuration(testbed.topology).replace('backend = "auto"', ""))
    config.chmod(0o600)
    balancer = RunningBalancer(testbed, backend, config)
    balancer.start()
    try:
        yield balancer
    finally:
        balancer.stop()


def lb(testbed: Testbed, *arguments: str) -> tuple[int, str, str]:
    """Run an `lb` command in the router; return its exit code and what it wrote."""
    command = ("--control", str(testbed.directory / "lb.sock"))
    child = testbed.spawn_python(
        ROUTER, "command", "lb", *arguments, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = child.communicate(timeout=DEADLINE_S)
    return child.returncode, out.decode(), err.decode()


def explained(testbed: Testbed, client: str, vip: str) -> dict[str, Any]:
    code, out, err = lb(testbed, "explain", client, vip, "-o", "json")
    assert (code, err) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_explain_names_the_server_that_the_next_flow_gets(testbed: Testbed, backend: str) -> None:
    """Asked before, it names the server; asked after, it knows the flow; and asking moved no counter."""
    vip = f"{VIP}:{WEB_PORT}"
    with running(testbed, backend) as balancer, ExitStack() as stack:
        for _ in range(4):
            before = balancer.counters()["events"]
            answer = explained(testbed, "198.18.1.21:1", vip)
            assert balancer.counters()["events"] == before
            client = stack.enter_context(connect(testbed, "client1", WEB_PORT))
            port = client.getsockname()[1]
            (flow,) = (row for row in balancer.flows() if row["client_port"] == port)
            assert flow["server"] == answer["choice"]["server"]
            known = explained(testbed, f"198.18.1.21:{port}", vip)
            assert (known["flow"]["server"], known["choice"]["server"]) == (flow["server"], flow["server"])
        assert answer["next_hop"]["mac"] == f"aa:aa:aa:00:00:3{flow['server'][-1]}"


def test_explain_unknown_service_exit_2_no_daemon_exit_5(testbed: Testbed, backend: str) -> None:
    """One line that names what is near; without a balancer, another exit code."""
    with running(testbed, backend):
        code, out, err = lb(testbed, "explain", "198.18.1.21:1", f"{VIP}:1")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "198.18.1.100:1 is not a service" in err
    code, out, err = lb(testbed, "explain", "198.18.1.21:1", f"{VIP}:1")
    assert (code, out, err.count("\n")) == (5, "", 1)


def scrape(testbed: Testbed) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with testbed.inside(ROUTER), urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as page:
        text = page.read().decode()
    families = text_string_to_metric_families(text)
    return {(row.name, tuple(sorted(row.labels.items()))): row.value for family in families for row in family.samples}


def drops(testbed: Testbed, reason: str) -> float:
    return scrape(testbed)["lb_drops_total", (("reason", reason),)]


def test_metrics_count_what_happens(testbed: Testbed, backend: str) -> None:
    """Flows, drops and reloads show in a scrape, also a reload that failed."""
    server = (("server", "server1"), ("service", "echo"))
    with running(testbed, backend, TOP) as balancer:
        for _ in range(3):
            assert echo_once(testbed, "client1") == b"greeting"
        with testbed.socket("client1", kind=socket.SOCK_DGRAM) as stray:
            stray.sendto(b"to no service", (str(VIP), 1))
        rows = wait_until(lambda: drops(testbed, "no_service") and scrape(testbed), "the drop is counted")
        assert rows["lb_server_flows_created_total", server] == 3
        assert rows["lb_server_up", server] == 1
        assert drops(testbed, "no_service") == 1
        assert rows["lb_config_last_reload_successful", ()] == 1
        good = balancer.config.read_text()
        balancer.config.write_text("nonsense")
        assert lb(testbed, "reload")[0] != 0
        rows = scrape(testbed)
        assert rows["lb_config_last_reload_successful", ()] == 0
        assert rows["lb_reloads_total", (("result", "failure"),)] == 1
        balancer.config.write_text(good.replace(TOP, ""))
        assert lb(testbed, "reload")[0] == 0
        wait_until(lambda: not is_served(testbed), "the page goes with the configuration")
        balancer.config.write_text(good)
        assert lb(testbed, "reload")[0] == 0
        wait_until(lambda: is_served(testbed), "and comes with it")
        assert scrape(testbed)["lb_reloads_total", (("result", "success"),)] == 2


def is_served(testbed: Testbed) -> bool:
    with testbed.socket(ROUTER) as probe:
        return probe.connect_ex(("127.0.0.1", METRICS_PORT)) == 0


def test_metrics_port_taken_ends_the_start_with_one_line(testbed: Testbed, backend: str) -> None:
    """What keeps it from starting is said with the way out, and nothing stays behind."""
    with testbed.socket(ROUTER) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", METRICS_PORT))
        taken.listen()
        message = r"metrics: cannot listen on 127.0.0.1 port 9464: address already in use; .* under \[metrics\]"
        with pytest.raises(LbError, match=message), running(testbed, backend, TOP):
            pass
    with running(testbed, backend, TOP):
        assert scrape(testbed)


def test_flow_log_one_line_per_flow(testbed: Testbed, backend: str) -> None:
    """Each connection that ends is one line with its client, server, time and bytes."""
    log = testbed.directory / f"{ROUTER}-lb.log"
    log.unlink(missing_ok=True)
    with running(testbed, backend, TOP):
        with connect(testbed, "client1", ECHO_PORT) as client:
            port = client.getsockname()[1]
            client.sendall(b"x" * 1000)
            assert client.recv(1)
        start = f"flow tcp 198.18.1.21:{port} -> echo/server1 "
        wait_until(lambda: start in log.read_text(), "the line of the flow")
        lines = [line for line in log.read_text().splitlines() if start in line]
        assert len(lines) == 1
        forward = int(lines[0].split(" s, ")[1].split()[0])
        # 1000 bytes of data and the headers of a handful of packets.
        assert 1000 < forward < 2000
        assert " closed after " in lines[0] or " reset after " in lines[0]


# Doctor.


def findings(testbed: Testbed, config: Path, *options: str) -> tuple[int, dict[tuple[str, str], list[dict[str, Any]]]]:
    """Run `lb doctor`; return its exit code and its findings by (check, level)."""
    code, out, err = lb(testbed, "doctor", "-c", str(config), "-o", "json", *options)
    assert err == ""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in json.loads(out)["findings"]:
        found.setdefault((finding["check"], finding["level"]), []).append(finding)
    return code, found


@pytest.fixture
def small(testbed: Testbed) -> Path:
    """Write a configuration of one service whose servers all listen."""
    text = configuration(testbed.topology)
    config = testbed.directory / "doctor.toml"
    config.write_text(text[: text.index("[[service]]", text.index("[[service]]") + 1)])
    config.chmod(0o600)
    return config


def ip(testbed: Testbed, host: str, command: str) -> None:
    subprocess.run(["ip", "-n", testbed.prefix + host, *command.split()], check=True, timeout=DEADLINE_S)


@contextmanager
def change(testbed: Testbed, host: str, do: str, undo: str) -> Iterator[None]:
    ip(testbed, host, do)
    try:
        yield
    finally:
        ip(testbed, host, undo)


def test_doctor_healthy_testbed_exit_0(testbed: Testbed, small: Path) -> None:
    """Nothing fails in the testbed as it is built, with a configuration alone."""
    code, found = findings(testbed, small)
    assert code == 0, found
    assert not [key for key in found if key[1] == "fail"]
    assert found["server answers", "pass"][0]["message"] == "echo/server1: 198.18.1.31 port 7000 accepts connections"


def test_doctor_vip_on_this_host_fails_and_its_command_fixes_it(testbed: Testbed, small: Path) -> None:
    """The host answers in the balancer's place; what `fix` says ends that."""
    ip(testbed, ROUTER, f"addr add {VIP}/32 dev lo")
    code, found = findings(testbed, small)
    (finding,) = found["VIP conflict", "fail"]
    assert (code, finding["fix"]) == (1, f"ip addr del {VIP} dev lo")
    subprocess.run(["ip", "-n", testbed.prefix + ROUTER, *finding["fix"].split()[1:]], check=True, timeout=DEADLINE_S)
    assert findings(testbed, small)[0] == 0


def test_doctor_vip_on_another_host_fails_unless_told_not_to_ask(testbed: Testbed, small: Path) -> None:
    """A duplicate address is found by an ARP probe, with the MAC of who has it."""
    with change(testbed, "server3", f"addr add {VIP}/32 dev eth0", f"addr del {VIP}/32 dev eth0"):
        code, found = findings(testbed, small)
        assert code == 1
        assert "aa:aa:aa:00:00:33" in found["VIP conflict", "fail"][0]["message"]
        assert findings(testbed, small, "--no-probe")[0] == 0


def test_doctor_server_gone_fails(testbed: Testbed, small: Path) -> None:
    """A server behind a cut link neither answers connects nor ARP."""
    ip(testbed, ROUTER, "neigh flush dev eth0")
    with change(testbed, "switch", "link set server1-eth0 down", "link set server1-eth0 up"):
        code, found = findings(testbed, small)
        assert code == 1
        assert found["server answers", "fail"]
        assert "does not answer ARP" in found["server route", "fail"][0]["message"]


def sent_to_server1(balancer: RunningBalancer) -> int:
    return int(balancer.counters()["servers"]["echo/server1"]["packets_forward"])


def test_doctor_server_that_answers_past_the_balancer_fails(testbed: Testbed, backend: str, small: Path) -> None:
    """The usual mistake: the server's way to its clients does not lead through here. The running balancer shows it."""
    balancer = RunningBalancer(testbed, backend, small)
    balancer.start()
    try:
        # server1 finds client1 on its own link, client1 finds server1: the balancer sees one direction only.
        with change(testbed, "server1", "route add 198.18.1.21 dev eth0", "route del 198.18.1.21 dev eth0"):
            with testbed.socket("client1", kind=socket.SOCK_STREAM) as client:
                client.setblocking(False)
                client.connect_ex((str(VIP), ECHO_PORT))
                wait_until(lambda: sent_to_server1(balancer) >= 3, "the client has tried often enough")
            code, found = findings(testbed, small)
            assert code == 1
            (finding,) = found["return path", "fail"]
            assert "none back" in finding["message"]
            assert finding["fix"] == "on server1: `ip route replace 198.18.1.0/24 via 198.18.1.1`"
        assert echo_once(testbed, "client1") == b"greeting"
        code, found = findings(testbed, small)
        assert ("return path", "fail") not in found
        assert found["one balancer", "pass"]
    finally:
        balancer.stop()


def test_doctor_forwarding_host_is_told(testbed: Testbed, small: Path) -> None:
    """A kernel that forwards is a warning with the command that ends it, or a failure when transit forwards too."""
    setting = Path("/proc/sys/net/ipv4/conf/eth0/forwarding")
    with testbed.inside(ROUTER):
        setting.write_text("1")
    try:
        code, found = findings(testbed, small)
        assert found["kernel stays out", "warn"][0]["fix"] == "sysctl -w net.ipv4.ip_forward=0"
        assert code == 0, found
        small.write_text('transit = "forward"\n' + small.read_text())
        assert findings(testbed, small)[0] == 1
    finally:
        with testbed.inside(ROUTER):
            setting.write_text("0")
