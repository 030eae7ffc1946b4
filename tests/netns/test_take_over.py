"""
`lb run --take-over`: another process goes on with the flows, sockets and all that stands beside the configuration,
while packets come, and the first one ends (rule 23.2, taking over).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from churn import balancing, configuration, control_of, echo, open_flows, placements
from lbrun import LbRun, until_the_end
from realhosts import DEADLINE_S, ECHO_PORT, RunningBalancer, receive_exactly, running_testbed, wait_until

from lb.control.api.client import change, fetch
from lb.control.kept import SUCCESSORS, TABLES
from lb.control.predecessor import Predecessor
from lb.errors import LbError
from lb.lab.testbed import build, isolation
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP

pytestmark = pytest.mark.netns
FLOWS = 60
METRICS = "http://127.0.0.1:9464/metrics"


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}o{link_mode}-", offloads=link_mode == "on") as made:
        yield made


@pytest.fixture
def balancer(testbed: Testbed, state: Path) -> Iterator[RunningBalancer]:
    """Give a balancer with the default policy that keeps its flows; none are there at first."""
    with balancing(testbed, "rust", configuration(testbed), str(state)) as running:
        yield running


def test_flows_go_on_in_the_process_that_takes_over(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.2, taking over: none is broken, none moves, new ones are placed, time after time."""
    with ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        assert len(set(where.values())) == 3
        for turn in range(4):
            assert balancer.take_over() == 0
            assert balancer.running is not None
            assert f"{len(flows)} taken over, 0 dropped" in balancer.running.text()
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
            new = open_flows(testbed, 3, stack)
            assert all(echo(flow, b"new") for flow in new)
            found = placements(balancer)
            assert {flow: found[flow] for flow in where} == where
            flows, where = [*flows, *new], found


class Stranger:
    """A process that begins to take over, as `lb.control.predecessor` does, and says no more than it is told to."""

    def __init__(self, state: Path) -> None:
        found = Predecessor.find(state / SUCCESSORS)
        assert found is not None
        self.predecessor = found

    def __enter__(self) -> Predecessor:
        return self.predecessor

    def __exit__(self, *_: object) -> None:
        self.predecessor.close()


def speaks(testbed: Testbed, balancer: RunningBalancer, flows: list[socket.socket]) -> bool:
    """Tell whether flows and the control side of a balancer go on: a change is made, and new flows are placed."""
    control = control_of(balancer)
    change(control, "/drain", {"service": "echo", "server": "server2"})
    change(control, "/enable", {"service": "echo", "server": "server2"})
    with ExitStack() as stack:
        new = open_flows(testbed, 3, stack)
        return all(echo(flow, b"still") for flow in [*flows, *new])


def test_successor_that_goes_away_leaves_the_running_one_as_it_was(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    """Rule 23.2, taking over: before the running one has stopped, and after; then it reads on where it was."""
    with ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        for has_stopped in (False, True, False, True):
            with Stranger(state) as predecessor:
                if has_stopped:
                    assert predecessor.stop().rings.keys() == {"eth0"}
            assert speaks(testbed, balancer, flows)
        assert {flow: placements(balancer)[flow] for flow in where} == where
        assert balancer.take_over() == 0
        assert speaks(testbed, balancer, flows)


@pytest.mark.parametrize("forwards", [True, False], ids=["successor-forwards", "successor-fails"])
@pytest.mark.parametrize("has_left", [True, False], ids=["left", "prepares"])
def test_running_one_that_is_stopped_while_it_is_replaced_waits_for_the_outcome(
    testbed: Testbed, balancer: RunningBalancer, state: Path, forwards: bool, has_left: bool
) -> None:
    """
    Rule 23.2, taking over: what a successor that may forward goes on with is not undone; else it stops as usual. From
    when it says hello, or both might end.
    """
    assert balancer.running is not None
    running, control = balancer.running, control_of(balancer)
    with Stranger(state) as predecessor:
        if has_left:
            predecessor.stop()
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in running.text(), "it was told to stop")
        with pytest.raises(LbError, match="the running balancer is stopping"):
            Stranger(state)
        if forwards:
            if not has_left:
                predecessor.stop()
            predecessor.dismiss()
            predecessor.wait_for_end()
    assert running.process.wait(DEADLINE_S) == 0
    assert control.exists() == forwards
    balancer.running = None


def test_second_successor_is_refused_and_the_first_goes_on(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    """Rule 23.2, taking over: one wins, the other ends with exit code 1 and one line."""
    options = ["--backend", "rust", "--take-over"]
    with ExitStack() as stack:
        flows = open_flows(testbed, 3, stack)
        with Stranger(state):
            second = LbRun(
                testbed.prefix + ROUTER,
                testbed.directory,
                options,
                config=balancer.config,
                log=testbed.directory / "second.log",
                state=str(state),
            )
            assert second.process.wait(DEADLINE_S) == 1
            (line,) = second.text().splitlines()
            assert line == "lb: take-over: another process is taking over already"
        assert speaks(testbed, balancer, flows)
        assert balancer.take_over() == 0
        assert speaks(testbed, balancer, flows)


def test_successor_with_a_configuration_that_has_mistakes_changes_nothing(
    testbed: Testbed, balancer: RunningBalancer
) -> None:
    """Rule 23.2, taking over: whatever it fails at, the running one keeps flows, guard and control socket."""
    good = balancer.config.read_text()
    rules = ruleset(testbed)
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        for bad in ("[[", good.replace('"eth0"', '"none0"'), good + '\n[metrics]\naddress = "192.0.2.1"\n'):
            balancer.config.write_text(bad)
            with pytest.raises(LbError):
                balancer.take_over()
            balancer.config.write_text(good)
            assert speaks(testbed, balancer, flows)
        assert ruleset(testbed) == rules
        # Found only when all else is prepared: this host would forward what the balancer is told to forward, too.
        build.set_kernel_forwarding(testbed.prefix, True)
        try:
            balancer.config.write_text(f'transit = "forward"\n{good}')
            with pytest.raises(LbError, match="would send every packet twice"):
                balancer.take_over()
        finally:
            build.set_kernel_forwarding(testbed.prefix, False)
        balancer.config.write_text(good)
        assert speaks(testbed, balancer, flows)
        assert balancer.take_over() == 0
        assert ruleset(testbed) == rules
        assert speaks(testbed, balancer, flows)


def ruleset(testbed: Testbed) -> str:
    """Return the rules of nftables in the router; nothing where the command is missing."""
    if shutil.which("nft") is None:
        return ""
    with testbed.inside(ROUTER):
        return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def test_table_of_another_layout_is_refused_and_the_running_one_goes_on(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    """Rule 23.2, taking over: never misread, and no flow is lost."""
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        for name in TABLES:
            with (state / name).open("r+b") as file:
                if data := file.read(9):
                    file.seek(8)
                    file.write(bytes([data[8] + 1]))
        with pytest.raises(LbError, match="its layout is that of another version"):
            balancer.take_over()
        assert speaks(testbed, balancer, flows)


def test_what_the_operator_and_the_checks_decided_comes_along(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.3, what stands beside the configuration: taken over, restarted, or killed."""
    address = next(host.address for host in testbed.topology.of_role("server"))
    added = {"service": "echo", "server": {"name": "more", "address": str(address), "port": 7001}}
    control = control_of(balancer)
    change(control, "/drain", {"service": "echo", "server": "server2"})
    change(control, "/weight", {"service": "echo", "server": "server3", "weight": 7})
    change(control, "/add", added)
    change(control, "/remove", {"service": "echo", "server": "server1"})
    stands = standing(balancer)
    assert stands == {("more", "active", 1), ("server2", "draining", 1), ("server3", "active", 7)}
    assert balancer.take_over() == 0
    assert standing(balancer) == stands
    balancer.restart()
    assert standing(balancer) == stands
    assert balancer.running is not None
    balancer.running.end(signal.SIGKILL)
    balancer.start()
    assert standing(balancer) == stands
    # The file has changed: it wins where it has, and what it does not know is gone.
    text = balancer.config.read_text()
    balancer.config.write_text(text.replace("weight = 1", "weight = 2"))
    assert balancer.take_over() == 0
    assert standing(balancer) == {("server1", "active", 2), ("server2", "draining", 2), ("server3", "active", 2)}


def checked(testbed: Testbed, interval: str) -> str:
    """Return a configuration whose servers are checked."""
    first, rest = configuration(testbed).split("[[service.server]]", 1)
    health = f'[service.health]\ncheck = "tcp"\ninterval = "{interval}"\ntimeout = "{interval}"\n'
    return f"{first}{health}[[service.server]]{rest}"


def down(balancer: RunningBalancer) -> list[str]:
    """Return the servers that are down."""
    (service,) = fetch(control_of(balancer), "/status")["services"]
    return [row["name"] for row in service["servers"] if row["health"] == "down"]


def test_server_that_was_found_down_is_down_from_the_start(testbed: Testbed, state: Path) -> None:
    """Rule 23.3, what stands beside the configuration: no client is sent there until checks pass again."""
    with balancing(testbed, "rust", checked(testbed, "250ms"), str(state)) as balancer, ExitStack() as stack:
        build.set_link(testbed.prefix, "server2", up=False)
        stack.callback(build.set_link, testbed.prefix, "server2", up=True)
        wait_until(lambda: down(balancer) == ["server2"], "it is found down")
        for renew in (balancer.take_over, balancer.restart, lambda: crash(balancer)):
            renew()
            assert down(balancer) == ["server2"]
            new = open_flows(testbed, 6, stack)
            assert all(echo(flow, b"new") for flow in new)
            assert balancer.running is not None
            # It knows from the one before it, and has not found that out by itself.
            assert "server2 is down" not in balancer.running.text()
        build.set_link(testbed.prefix, "server2", up=True)
        wait_until(lambda: not down(balancer), "it is up again")


def test_flows_that_a_server_had_when_it_was_found_down_are_reset_by_the_next_process(
    testbed: Testbed, state: Path
) -> None:
    """
    Rule 23.3, what stands beside the configuration: the process before may have ended meanwhile. Here it was told to
    keep them, and the next one is not.
    """
    keeps = checked(testbed, "250ms").replace("[service.health]", 'on_server_down = "keep"\n[service.health]')
    with balancing(testbed, "rust", keeps, str(state)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"before") for flow in flows)
        where = placements(balancer)
        build.set_link(testbed.prefix, "server2", up=False)
        stack.callback(build.set_link, testbed.prefix, "server2", up=True)
        wait_until(lambda: down(balancer) == ["server2"], "it is found down")
        balancer.config.write_text(checked(testbed, "250ms"))
        crash(balancer)
        for flow in flows:
            if where[flow.getsockname()] == "server2":
                with pytest.raises(ConnectionResetError):
                    flow.recv(1)
            else:
                assert echo(flow, b"after")


def crash(balancer: RunningBalancer) -> None:
    """End it as a crash does, and start another."""
    assert balancer.running is not None
    balancer.running.end(signal.SIGKILL)
    balancer.start()


def test_flows_go_on_when_the_balancers_link_was_out(testbed: Testbed) -> None:
    """
    Rule 11.3, unresolved neighbours: the kernel forgets its neighbours with the carrier, and checks ask for them in
    vain meanwhile; until it would ask again by itself is longer here than anybody waits.
    """
    with balancing(testbed, "rust", checked(testbed, "2s")) as balancer, ExitStack() as stack:
        before = set_retransmission_time(testbed, f"{10_000 * DEADLINE_S:.0f}")
        stack.callback(set_retransmission_time, testbed, before)
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"before") for flow in flows)
        where = placements(balancer)
        build.set_link(testbed.prefix, ROUTER, up=False)
        stack.callback(build.set_link, testbed.prefix, ROUTER, up=True)
        for flow in flows:
            flow.sendall(b"meanwhile")
        wait_until(lambda: asked_in_vain(testbed) >= set(where.values()), "the servers are asked for in vain")
        build.set_link(testbed.prefix, ROUTER, up=True)
        assert [receive_exactly(flow, 9) for flow in flows] == [b"meanwhile"] * len(flows)
        assert placements(balancer) == where


def set_retransmission_time(testbed: Testbed, wanted_ms: str) -> str:
    """Set after how long the router's kernel asks for a neighbour again; return what it was."""
    path = Path("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms")
    with isolation.inside(f"{testbed.prefix}{ROUTER}"):
        before = path.read_text()
        path.write_text(wanted_ms)
    return before


def asked_in_vain(testbed: Testbed) -> set[str]:
    """Return the servers that the router's kernel waits for."""
    command = ["ip", "-n", f"{testbed.prefix}{ROUTER}", "-4", "neigh", "show", "nud", "incomplete"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout.split()
    return {host.name for host in testbed.topology.of_role("server") if str(host.address) in shown}


def standing(balancer: RunningBalancer) -> set[tuple[str, str, int]]:
    """Return the servers that are there, with state and weight."""
    (service,) = fetch(control_of(balancer), "/status")["services"]
    return {(row["name"], row["state"], row["weight"]) for row in service["servers"] if not row["leaving"]}


def test_flows_of_a_server_that_the_new_configuration_lacks_go_on(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.3, what stands beside the configuration: as after a reload."""
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"x") for flow in flows)
        where = placements(balancer)
        balancer.config.write_text(configuration(testbed, weights={"server1": 1, "server3": 1}))
        assert balancer.take_over() == 0
        assert all(echo(flow, b"still") for flow in flows)
        assert placements(balancer) == where
        new = open_flows(testbed, 6, stack)
        assert all(echo(flow, b"new") for flow in new)
        assert "server2" not in {placements(balancer)[flow.getsockname()] for flow in new}


def test_counters_measurements_and_rounds_go_on(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.2, taking over: nothing counts anew, and the round goes on with the next server."""
    with ExitStack() as stack:
        first = open_flows(testbed, 4, stack)
        assert all(echo(flow, b"x") for flow in first)
        before = balancer.counters()
        assert balancer.take_over() == 0
        after = balancer.counters()
        assert after["events"]["flow_created"] == 4
        for name in ("rx_packets", "tx_bytes"):
            assert after[name] >= before[name] > 0
        for name, server in before["servers"].items():
            assert after["servers"][name]["flows_created"] == server["flows_created"] > 0
            assert after["servers"][name]["flows_active"] == server["flows_active"]
            assert after["servers"][name]["bytes_forward"] >= server["bytes_forward"] > 0
        second = open_flows(testbed, 5, stack)
        assert all(echo(flow, b"x") for flow in second)
        counts = Counter(placements(balancer).values())
        assert counts == {"server1": 3, "server2": 3, "server3": 3}


def test_datagrams_pass_each_once_whatever_process_forwards(testbed: Testbed, state: Path) -> None:
    """
    Rule 23.2, taking over: packets wait in the sockets while nobody reads them: none is lost, none is translated twice.
    """
    text = configuration(testbed).replace("policy = ", 'protocol = "udp"\npolicy = ')
    with balancing(testbed, "rust", text, str(state)) as balancer, ExitStack() as stack:
        sender = stack.enter_context(Datagrams(testbed))
        for _ in range(5):
            assert balancer.take_over() == 0
            assert sender.has_moved()
        sent, received = sender.end()
        assert received == Counter(range(sent))


class Datagrams:
    """A client that sends numbered datagrams all the while, some ahead of the answers, and counts what comes back."""

    AHEAD = 16

    def __init__(self, testbed: Testbed) -> None:
        self._socket = testbed.socket("client1", socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((str(VIP), ECHO_PORT))
        self._socket.settimeout(DEADLINE_S)
        self._stop = threading.Event()
        self._sent = 0
        self._received: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._speak)

    def __enter__(self) -> Datagrams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._socket.close()

    def _speak(self) -> None:
        while not self._stop.is_set():
            while self._sent - self._received.total() < self.AHEAD:
                self._socket.send(b"%d" % self._sent)
                self._sent += 1
            self._received[int(self._socket.recv(64))] += 1
        while self._received.total() < self._sent:
            self._received[int(self._socket.recv(64))] += 1

    def has_moved(self) -> bool:
        """Wait until more has come back, than has now."""
        now = self._received.total() + self.AHEAD
        return bool(wait_until(lambda: self._received.total() > now, "more datagrams come back"))

    def end(self) -> tuple[int, Counter[int]]:
        """Let it end, once all has come back or nothing comes any more; return how many were sent, and what came."""
        self._stop.set()
        self._thread.join()
        self._socket.settimeout(0.2)
        # What comes twice comes late.
        with contextlib.suppress(TimeoutError):
            while True:
                self._received[int(self._socket.recv(64))] += 1
        return self._sent, self._received


def test_take_over_without_a_running_one_is_a_start(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.2, taking over: a script need not know; what was left is there."""
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"x") for flow in flows)
        assert balancer.running is not None
        balancer.running.end(signal.SIGKILL)
        balancer.take_over()
        assert "9 taken over, 0 dropped" in balancer.running.text()
        assert all(echo(flow, b"still") for flow in flows)


def test_sockets_of_control_and_metrics_go_on(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.2, taking over: no question is refused meanwhile, and the last one removes the control socket."""
    control = control_of(balancer)
    balancer.config.write_text(balancer.config.read_text() + "\n[metrics]\nport = 9464\n")
    change(control, "/reload", {})
    pids = {fetch(control, "/status")["pid"]}
    stop = threading.Event()
    failures: list[object] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                pids.add(fetch(control, "/status")["pid"])
            except LbError as error:
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for turn in range(3):
            assert balancer.take_over() == 0
            wait_until(lambda count=turn + 2: len(pids) >= count, "the successor answers")
            with testbed.inside(ROUTER), urllib.request.urlopen(METRICS, timeout=DEADLINE_S) as page:
                assert b"lb_server_flows_active" in page.read()
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert balancer.stop() == 0
    assert not control.exists()


def test_supervised_balancer_that_is_renewed_goes_on_by_the_same_process_id(testbed: Testbed, state: Path) -> None:
    """Rule 23.2, taking over: the process that supervises becomes the program anew; nobody above it notices."""
    config = testbed.directory / "renewed.toml"
    config.write_text(configuration(testbed))
    config.chmod(0o600)
    options = ("--backend", "rust", "--supervise")
    run = LbRun(testbed.prefix + ROUTER, testbed.directory, options, wrapper=(), config=config, state=str(state))
    with until_the_end(run), ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        for turn in range(2):
            before = fetch(run.control, "/status")["pid"]
            run.process.send_signal(signal.SIGUSR2)
            wait_until(lambda pid=before: fetch(run.control, "/status")["pid"] != pid, "another one answers")
            wait_until(lambda pid=before: not Path(f"/proc/{pid}").exists(), "the one before has ended")
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
        assert run.text().count(f"{FLOWS} taken over, 0 dropped") == 2
        assert "started again" not in run.text()
        os.kill(fetch(run.control, "/status")["pid"], signal.SIGKILL)
        wait_until(lambda: run.text().count("ready: ") == 4, "another one forwards")
        assert all(echo(flow, b"last") for flow in flows)
        assert run.end() == 0


def test_balancer_that_is_replaced_resets_no_flow_and_hands_its_snapshots_on(
    testbed: Testbed, state: Path, tmp_path: Path
) -> None:
    """
    Rule 18.3, stopping: `on_stop = "reset"` is for the last one. Rule 23.4, flows over a reboot: the snapshot directory
    is the successor's without a gap, which writes there in its turn.
    """
    snapshots = tmp_path / "snapshots"
    flows_table = f'\n[flows]\nsnapshot = "{snapshots}"\n'
    text = f'on_stop = "reset"\n{configuration(testbed)}{flows_table}'
    with balancing(testbed, "rust", text, str(state)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        for turn in range(3):
            assert balancer.take_over() == 0
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
        assert {place.stat().st_size for place in snapshots.glob("flows.*")} == {0}
        assert balancer.stop() == 0
        for flow in flows:
            with pytest.raises(ConnectionResetError):
                flow.recv(1)
        assert any(place.stat().st_size for place in snapshots.glob("flows.*"))
