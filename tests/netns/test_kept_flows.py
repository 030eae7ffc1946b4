"""
Flows that outlive `lb run`: restarted, or killed and started again, it forwards each flow to the server it was with.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from churn import balancing, configuration, control_of, echo, open_flows, placements
from lbrun import LbRun, program, until_the_end
from realhosts import DEADLINE_S, ECHO_PORT, RunningBalancer, connect, running_testbed, wait_until

from lb.control import flow_file
from lb.control.api.client import change, fetch
from lb.control.api.stored import row_bytes
from lb.control.snapshots import PLACES
from lb.control.table_memory import BPF, TABLES
from lb.errors import LbError
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER

pytestmark = pytest.mark.netns
FLOWS = 60


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}f{link_mode}-", offloads=link_mode == "on") as made:
        yield made


@pytest.fixture
def balancer(testbed: Testbed, state: Path) -> Iterator[RunningBalancer]:
    """Give a balancer with the default policy that keeps its flows; none are there at first."""
    with balancing(testbed, "rust", configuration(testbed), str(state)) as running:
        yield running


def kill(balancer: RunningBalancer) -> None:
    """End it as a crash does: nothing of it is asked."""
    assert balancer.running is not None
    balancer.running.end(signal.SIGKILL)
    balancer.running = None


def test_flows_survive_restarts_and_crashes_at_their_servers(testbed: Testbed, balancer: RunningBalancer) -> None:
    """
    Rule 23.1, flows over a restart: round-robin over three servers: none is broken, none moves, and new ones are
    placed all the while.
    """
    with ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        assert len(set(where.values())) == 3
        for turn in range(6):
            if turn % 2:
                kill(balancer)
            else:
                assert balancer.stop() == 0
            balancer.start()
            assert balancer.running is not None
            assert f"keeps flows over a restart: {len(flows)} taken over, 0 dropped" in balancer.running.text()
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
            new = open_flows(testbed, 3, stack)
            assert all(echo(flow, b"new") for flow in new)
            found = placements(balancer)
            assert {flow: found[flow] for flow in where} == where
            flows, where = [*flows, *new], found


def test_flows_of_a_killed_balancer_are_counted_for_their_servers(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.1, flows over a restart: active flows are counted anew; a drained server keeps those of before."""
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"x") for flow in flows)
        kill(balancer)
        balancer.start()
        servers = balancer.counters()["servers"]
        assert [servers[f"echo/server{number}"]["flows_active"] for number in (1, 2, 3)] == [3, 3, 3]
        change(control_of(balancer), "/drain", {"service": "echo", "server": "server2"})
        assert all(echo(flow, b"still") for flow in flows)


def test_flows_of_a_service_that_the_new_configuration_lacks_go_on(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.3, what stands beside the configuration: another service is in its place, at another port."""
    with ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"x") for flow in flows)
        balancer.stop()
        balancer.config.write_text(configuration(testbed).replace(f"port = {ECHO_PORT}", f"port = {ECHO_PORT + 1}"))
        balancer.start()
        assert balancer.running is not None
        assert "9 taken over, 0 dropped" in balancer.running.text()
        assert all(echo(flow, b"still") for flow in flows)
        with pytest.raises(OSError, match=r"timed out|refused"):
            connect(testbed, "client1", ECHO_PORT, timeout_s=1)


def make_of_another_version(state: Path) -> None:
    """Change the version of the table that was left."""
    for name in ("table.0", "table.1"):
        data = bytearray((state / name).read_bytes())
        if data:
            data[8] += 1
            (state / name).write_bytes(data)


def test_table_of_another_version_is_told_and_flows_begin_anew(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    balancer.stop()
    make_of_another_version(state)
    balancer.start()
    assert balancer.running is not None
    text = balancer.running.text()
    assert "the flows that were left are lost: its layout is that of another version" in text
    with ExitStack() as stack:
        assert all(echo(flow, b"x") for flow in open_flows(testbed, 3, stack))
        assert fetch(balancer.running.control, "/status")["services"]


def test_seed_that_was_drawn_stays(balancer: RunningBalancer) -> None:
    """Rule 21.1, secrets and seeds: and the log says so."""
    assert balancer.running is not None
    drawn = re.search(r"seed (\d+), drawn at start", balancer.running.text())
    assert drawn is not None
    kill(balancer)
    balancer.start()
    assert balancer.running is not None
    assert f"seed {drawn[1]}, of the process before" in balancer.running.text()


def test_second_balancer_with_the_same_state_directory_is_refused(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    """It is refused with one line; the first goes on."""
    second = RunningBalancer(testbed, "rust", balancer.config, state=str(state))
    with pytest.raises(LbError, match="another balancer uses the state directory"):
        second.start()
    with ExitStack() as stack:
        assert all(echo(flow, b"x") for flow in open_flows(testbed, 3, stack))


def test_backend_that_keeps_no_flows_is_refused_with_a_state_directory(
    testbed: Testbed, balancer: RunningBalancer, state: Path
) -> None:
    """The table that is there would be believed by a later process."""
    balancer.stop()
    other = RunningBalancer(testbed, "python", balancer.config, state=str(state))
    with pytest.raises(LbError, match="backend python keeps no flows over a restart: leave out --state, or use"):
        other.start()


def test_without_a_state_directory_flows_end_with_the_process(testbed: Testbed, balancer: RunningBalancer) -> None:
    """The log has no word about it: nobody asked."""
    balancer.stop()
    without = RunningBalancer(testbed, "rust", balancer.config)
    without.start()
    assert without.running is not None
    assert "over a restart" not in without.running.text()
    without.stop()


def test_supervised_balancer_that_is_killed_goes_on_with_its_flows(testbed: Testbed, state: Path) -> None:
    """Rule 23.1, flows over a restart, without an operator: as a program, killed three times, told to stop once."""
    config = testbed.directory / "kept.toml"
    config.write_text(configuration(testbed))
    config.chmod(0o600)
    options = ("--backend", "rust", "--supervise")
    run = LbRun(testbed.prefix + ROUTER, testbed.directory, options, wrapper=(), config=config, state=str(state))
    with until_the_end(run), ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        for turn in range(3):
            pid = fetch(run.control, "/status")["pid"]
            assert pid != run.process.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda count=turn + 2: run.text().count("ready: ") == count, "another one forwards")
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
        assert run.text().count("the balancer was ended by SIGKILL") == 3
        assert f"{FLOWS} taken over, 0 dropped" in run.text()
        assert run.end() == 0


@pytest.fixture
def map_state(state: Path) -> Iterator[Path]:
    """Give a state directory in which a BPF file system is mounted."""
    folder = state / BPF
    state.mkdir(mode=0o700)
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "bpf", "bpf", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a BPF file system cannot be mounted here: {mounted.stderr.strip()}")
    yield state
    subprocess.run(["umount", "-l", folder], check=True)


def test_flows_in_a_map_of_the_kernel_outlive_the_process(testbed: Testbed, map_state: Path) -> None:
    """
    Rule 23.1, flows over a restart; rule 23.2, taking over: with the flow table in a map, of which none stays behind.
    """
    with balancing(testbed, "rust", configuration(testbed), str(map_state)) as balancer, ExitStack() as stack:
        memory = fetch(control_of(balancer), "/status")["table_memory"]
        if memory["memory"] == "file" and "the kernel makes no BPF map" in memory["why"]:
            pytest.skip(memory["why"])
        assert memory["memory"] == "map"
        assert balancer.running is not None
        assert f"the flow table is a map of the kernel, {memory['path']}: {memory['why']}" in balancer.running.text()
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)

        def crash() -> None:
            kill(balancer)
            balancer.start()

        for turn, go_on in enumerate((balancer.restart, balancer.take_over, crash, balancer.take_over)):
            go_on()
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
            assert placements(balancer) == where
            (pins,) = (map_state / BPF).glob("flowlb-*")
            wait_until(lambda folder=pins: len(list(folder.iterdir())) == 1, "the table that was left is gone")
            assert [(map_state / name).stat().st_size for name in TABLES] == [0, 0]


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """Return the path of a snapshot directory that is not there."""
    return tmp_path / "snapshots"


def with_snapshots(testbed: Testbed, folder: Path) -> str:
    return f'{configuration(testbed)}\n[flows]\nsnapshot = "{folder}"\nsnapshot_interval = "1s"\n'


def flows_in(folder: Path) -> int:
    """Return how many flows the latest whole snapshot has, while it may be written."""
    found = {}
    for place in PLACES:
        with suppress(LbError, OSError), (folder / place).open("rb") as file:
            contents = flow_file.read(file)
            size = sum(len(block) for block in contents.blocks())
            found[contents.names.sequence] = size // row_bytes(contents.layout)
    return found[max(found)] if found else 0


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_flows_survive_on_a_disk(testbed: Testbed, snapshots: Path, end: str) -> None:
    """
    Rule 23.4, flows over a reboot: nothing is left in memory. None is broken, none moves, though they have sent more
    since a snapshot was written.
    """
    with balancing(testbed, "rust", with_snapshots(testbed, snapshots)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        if end == "stopped":
            assert balancer.stop() == 0
        else:
            wait_until(lambda: flows_in(snapshots) == FLOWS, "a snapshot has all flows")
            assert all(echo(flow, b"more" * 100) for flow in flows)
            kill(balancer)
        balancer.start()
        assert balancer.running is not None
        assert re.search(rf"{snapshots}/flows\.[01]: {FLOWS} flows loaded, 0 dropped", balancer.running.text())
        assert placements(balancer) == where
        for turn in range(3):
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
        assert placements(balancer) == where
        assert all(echo(flow, b"new") for flow in open_flows(testbed, 3, stack))


def test_flows_in_memory_are_newer_than_a_snapshot(testbed: Testbed, snapshots: Path, state: Path) -> None:
    """Rule 23.4, flows over a reboot: with both, a restart takes those of the state directory."""
    text = with_snapshots(testbed, snapshots)
    with balancing(testbed, "rust", text, str(state)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"first") for flow in flows)
        balancer.restart()
        assert balancer.running is not None
        assert "9 taken over, 0 dropped" in balancer.running.text()
        assert "loaded" not in balancer.running.text()
        assert all(echo(flow, b"still") for flow in flows)
        balancer.stop()
        shutil.rmtree(state)
        balancer.start()
        assert "9 flows loaded, 0 dropped" in balancer.running.text()
        assert all(echo(flow, b"still") for flow in flows)


def test_flows_of_a_table_that_is_damaged_are_those_of_the_snapshot(
    testbed: Testbed, snapshots: Path, state: Path
) -> None:
    """Rule 23.4, flows over a reboot: what is left in memory is newer, but of no use."""
    text = with_snapshots(testbed, snapshots)
    with balancing(testbed, "rust", text, str(state)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, 9, stack)
        assert all(echo(flow, b"first") for flow in flows)
        balancer.stop()
        make_of_another_version(state)
        balancer.start()
        assert balancer.running is not None
        assert "its layout is that of another version" in balancer.running.text()
        assert "9 flows loaded, 0 dropped" in balancer.running.text()
        assert all(echo(flow, b"still") for flow in flows)


def test_damaged_snapshots_are_told_and_flows_begin_anew(testbed: Testbed, snapshots: Path) -> None:
    """Rule 23.4, flows over a reboot: it starts all the same."""
    with balancing(testbed, "rust", with_snapshots(testbed, snapshots)) as balancer:
        wait_until(lambda: all((snapshots / place).stat().st_size for place in PLACES), "both places are written")
        balancer.stop()
        for place in PLACES:
            (snapshots / place).write_bytes(b"nonsense")
        balancer.start()
        assert balancer.running is not None
        assert balancer.running.text().count("it is no file of flows: nothing of it is used") == 2
        with ExitStack() as stack:
            assert all(echo(flow, b"x") for flow in open_flows(testbed, 3, stack))


def test_flows_are_dumped_and_loaded_while_packets_pass(testbed: Testbed, tmp_path: Path) -> None:
    """Rule 23.4, flows over a reboot: by hand: a balancer that keeps nothing has its flows back."""
    file = tmp_path / "flows"

    def lb(balancer: RunningBalancer, command: str) -> str:
        arguments = program("flows", command, "--control", str(control_of(balancer)), str(file))
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    with balancing(testbed, "rust", configuration(testbed)) as balancer, ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        assert lb(balancer, "dump") == f"{FLOWS} flows written to {file}\n"
        assert all(echo(flow, b"more") for flow in flows)
        balancer.restart()
        assert placements(balancer) == {}
        assert lb(balancer, "load") == f"{FLOWS} flows loaded, 0 dropped\n"
        assert all(echo(flow, b"again") for flow in flows)
        assert placements(balancer) == where
