"""`lb bench` from end to end, in namespaces: figures come out, nothing stays. No figure is judged here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from realhosts import DEADLINE_S, Capture, running_testbed, wait_until

from lb.lab import kernel_counters
from lb.lab.bench import load, load_faults, run
from lb.lab.bench.contestants import make
from lb.lab.bench.document import Document
from lb.lab.bench.measures import connections, packets
from lb.lab.bench.settings import quick
from lb.lab.testbed import isolation
from lb.lab.testbed.state_directory import ProcessId, StateDirectory
from lb.lab.testbed.topology import ROUTER, straight_path

FEW_PORTS = "32768 33279"


def start(prefix: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "lb", "bench", "--prefix", prefix, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def leftovers(prefix: str) -> list[str]:
    """Return what is left of a run: names of namespaces, and its directory."""
    names = isolation.NETNS_DIR.iterdir() if isolation.NETNS_DIR.exists() else ()
    left = [path.name for path in names if path.name.startswith(prefix)]
    directory = StateDirectory(prefix).directory
    return left + [str(directory)] * directory.exists()


@pytest.mark.slow
def test_bench_quick_bulk_figures_and_nothing_left(unique: str, tmp_path: Path) -> None:
    """JSON on stdout and in the file, the report, progress on stderr, and no namespace, process or file left."""
    pytest.importorskip("jinja2")
    prefix, path, page = f"{unique}b-", tmp_path / "out.json", tmp_path / "out.html"
    chosen = ("--quick", "--only", "bulk", "--contestants", "routing,rust", "-o", "json")
    child = start(prefix, *chosen, "--json", str(path), "--report", str(page))
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    found = Document.model_validate_json(output)
    assert json.loads(output) == json.loads(path.read_text())
    assert set(found.metrics[0].figures) == {"routing", "rust"}, errors
    assert all(entry.missing is None for entry in found.contestants)
    assert found.figure("bulk", "rust").ratios["routing"] > 0  # type: ignore[union-attr]
    assert "<svg" in page.read_text()
    assert "turn 1, rust" in errors
    assert leftovers(prefix) == []


@pytest.mark.slow
def test_bench_packets_arrive_through_routing_and_rust(unique: str) -> None:
    """Frames of the generator arrive at the sink, and cost CPU time."""
    with running_testbed(f"{unique}c-", topology=straight_path(), servers=False) as testbed:
        best = packets.prepare(testbed)
        # Without root there are no live frames: the reason is told, and the socket does it.
        assert best == packets.LIVE or os.geteuid() != 0
        for generator in {best, packets.SOCKET}:
            alone = packets.measure_alone(testbed, quick(), generator)
            assert alone.rate > 0
            for name in ("routing", "rust", "direct"):
                with make(name).work(testbed, testbed.topology.host("server1")) as working:
                    found = packets.measure(testbed, quick(), working, generator)
                assert found.figures["packets"] > 0
                assert found.figures["cpu_per_packet"] > 0


@pytest.mark.slow
def test_bench_two_turns_no_syn_meets_time_wait_of_another(unique: str) -> None:
    """Three contestants, two turns, a connection per request: no SYN is refused, lost or sent again, in any turn."""
    chosen = ("--quick", "--turns", "2", "--only", "connections", "--contestants", "routing,nft,rust", "-o", "json")
    child = start(f"{unique}g-", *chosen, "--seed", "5")
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    found = Document.model_validate_json(output)
    assert found.settings["seed"] == "5"
    assert len(found.orders) == 2
    assert found.orders[0] != found.orders[1]
    # The progress lines come in the order that the document tells.
    told = [line.split(":")[0] for line in errors.splitlines() if line.startswith("turn ") and "New conn" in line]
    expected = [f"turn {turn}, {name}" for turn, names in enumerate(found.orders, 1) for name in names]
    assert told == expected
    for name in ("routing", "nft", "rust"):
        figure = found.figure("connections", name)
        assert figure is not None, errors
        assert len(figure.faults) == 2
        for faults in figure.faults:
            assert faults is not None
            assert (faults.syn_retransmits, faults.time_wait_refused, faults.failed) == (0, 0, 0), figure
    assert leftovers(f"{unique}g-") == []


@pytest.mark.slow
def test_bench_counters_hosts_used_twice_syns_refused(unique: str) -> None:
    """What the bench must not do, on hosts that are used again: the counters see the SYNs that TIME_WAIT refuses."""
    with running_testbed(f"{unique}h-", topology=run.loaded_topology()) as testbed:
        # Ports come again, however few connections a machine makes in a second.
        for host in run.LOADED_HOSTS:
            with isolation.inside(f"{testbed.prefix}{host}"):
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(FEW_PORTS)
        field = run.Run(quick(), lambda _line, _done: None)._prepare(testbed, "")
        refused = 0
        # The timestamps of one destination are ahead of the other's: going there and back meets both. How many
        # connections the server ends first, which is what TIME_WAIT is of, is a matter of chance.
        for name in ("routing", "rust") * 10:
            with make(name).work(testbed, field.server) as working:
                load.wait_answer(testbed, working, load.CLOSING_CLIENT)
                before = kernel_counters.read(testbed, run.LOADED_HOSTS)
                connections.measure(field, working)
                found = load_faults.faults(before, kernel_counters.read(testbed, run.LOADED_HOSTS))
                refused += found.time_wait_refused
            if refused:
                break
        assert refused > 0


def test_generated_frames_arrive_whole(unique: str) -> None:
    """Both generators send the template with ports of the range and a right UDP checksum."""
    from lb import _core
    from lb.packet.checksum import checksum

    with running_testbed(f"{unique}f-", topology=straight_path(), servers=False) as testbed:
        packets.prepare(testbed)
        template = packets.frame(testbed, testbed.topology.host("server1").address, 9, packets.UNUSED_MAC)
        capture = Capture(testbed, "router")
        with packets.Run(testbed, quick(), template, ROUTER, None, packets.SOCKET) as generator:
            generator._generate(5.0, None, 200)
        if os.geteuid() == 0:
            with testbed.inside("client1"):
                assert _core.flood(socket.if_nametoindex("eth0"), template, 50, 200, 5.0)[0] == 200
        expected = 400 if os.geteuid() == 0 else 200
        found: list[bytes] = []

        def all_there() -> bool:
            capture.drain()
            found[:] = [frame for _, frame in capture.frames if frame[:34] == template[:34]]
            return len(found) >= expected

        wait_until(all_there, "all frames arrive")
        capture.stop()
    for frame in found:
        assert frame[36:40] + frame[42:] == template[36:40] + template[42:]
        assert checksum(frame[26:34] + b"\0\x11\0\x1a" + frame[34:60]) == 0
    ports = [int.from_bytes(frame[34:36], "big") for frame in found]
    assert ports[:200] == list(range(1024, 1224))
    assert all(1024 <= port < 1074 for port in ports[200:])


@pytest.mark.slow
def test_bench_interrupted_removes_everything(unique: str) -> None:
    """Ctrl-C: one line, exit code 130, nothing left."""
    prefix = f"{unique}d-"
    child = start(prefix, "--only", "bulk", "--contestants", "routing")
    _wait_for_figure(child)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1].startswith("lb: interrupted")
    assert "Traceback" not in errors
    assert leftovers(prefix) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="without root a killed run's namespaces end by themselves")
def test_bench_killed_next_run_cleans(unique: str) -> None:
    """After SIGKILL no process runs on, and the next run removes the rest."""
    prefix = f"{unique}e-"
    child = start(prefix, "--only", "bulk", "--contestants", "routing")
    _wait_for_figure(child)
    state = StateDirectory(prefix).read()
    assert state is not None
    child.kill()
    child.communicate()
    processes: list[ProcessId] = list(state.processes.values())
    assert processes
    wait_until(lambda: not any(process.alive() for process in processes), "all children end with their parent")
    again = start(prefix, "--quick", "--only", "bulk", "--contestants", "routing")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert leftovers(prefix) == []


def _wait_for_figure(child: subprocess.Popen[str]) -> None:
    """Read progress until the first figure is there."""
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("turn 1, routing: "):
            return
    pytest.fail("it ended before a figure")
