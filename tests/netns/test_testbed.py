"""The testbed itself: it comes up, goes down, and leaves nothing, for any user and any end."""

from __future__ import annotations

import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from realhosts import DEADLINE_S, running_testbed, wait_until

from lb.control.api.client import fetch
from lb.lab.testbed import build, ethtool, isolation, lifecycle
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import DEFAULT_CONFIG, stoppable
from lb.lab.testbed.state_directory import Inventory, ProcessId, sweep

NOBODY = 65534
PACKAGE = Path(build.__file__).parents[2]


@dataclass
class Caller:
    """A user of `lb` commands: root, or a user without any right."""

    name: str
    prefix: str
    python: str
    environment: dict[str, str]
    user: int
    state: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [self.python, "-P", "-m", "lb", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=self.user if os.geteuid() == 0 else None,
            group=self.user if os.geteuid() == 0 else None,
            extra_groups=[] if self.user and os.geteuid() == 0 else None,
            cwd="/",
        )
        self.started.append(child)
        return child

    def run(self, *arguments: str, timeout_s: float = 60) -> tuple[int, str, str]:
        child = self.start(*arguments)
        output, errors = child.communicate(timeout=timeout_s)
        return child.returncode, output, errors

    def testbed(self, command: str, *arguments: str) -> tuple[int, str, str]:
        return self.run("testbed", command, *arguments)

    def leftovers(self) -> list[str]:
        """List processes and names that carry the prefix, and files of the testbed."""
        found = [entry.name for entry in isolation.NETNS_DIR.glob(f"{self.prefix}*")] if _has_names() else []
        found += [str(entry) for entry in self.state.parent.glob(f"{self.state.name}*")]
        return found + [command for command in _command_lines() if str(self.state) in command]


def _has_names() -> bool:
    return isolation.NETNS_DIR.is_dir()


def _command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


@functools.cache
def _unprivileged_python() -> tuple[str, str] | None:
    """Find an interpreter that an unprivileged user can start, of this version, with what the package needs."""
    paths = [str(PACKAGE), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    system = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    for candidate in (sys.executable, system):
        if candidate is None:
            continue
        environment = {"PYTHONPATH": ":".join(dict.fromkeys(paths)), "PATH": os.environ["PATH"]}
        try:
            probe = subprocess.run(
                [candidate, "-P", "-c", "import lb.cli, pyroute2, pydantic"],
                env=environment,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                cwd="/",
                check=False,
            )
        except PermissionError:
            continue
        if probe.returncode == 0:
            return candidate, environment["PYTHONPATH"]
    return None


@pytest.fixture(params=["root", "user"])
def caller(request: pytest.FixtureRequest, unique: str) -> Iterator[Caller]:
    """Run a test as root and as an unprivileged user; whatever is left of it ends with the test."""
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    prefix = f"{unique}{request.param[0]}-"
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "LB_TESTBED_PREFIX": prefix}
    if request.param == "root":
        if not isolation.has_capabilities():
            pytest.skip("not root: the other half of these tests runs")
        caller = Caller("root", prefix, sys.executable, environment, 0, Path("/run/flowlb") / f"testbed-{prefix[:-1]}")
    else:
        caller = _unprivileged_caller(prefix, environment)
    try:
        yield caller
    finally:
        for child in caller.started:
            child.kill()
            child.communicate()
        caller.testbed("down")
    assert caller.leftovers() == []


def _unprivileged_caller(prefix: str, environment: dict[str, str]) -> Caller:
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    state = Path(f"/tmp/flowlb-{user}/testbed-{prefix[:-1]}")
    if os.geteuid() != 0:
        return Caller("user", prefix, sys.executable, environment, user, state)
    found = _unprivileged_python()
    if found is None:
        pytest.skip(f"no Python {sys.version_info.major}.{sys.version_info.minor} that an unprivileged user may start")
    python, search_path = found
    return Caller("user", prefix, python, {**environment, "PYTHONPATH": search_path, "HOME": "/"}, user, state)


def test_up_status_exec_down_leaves_nothing(caller: Caller) -> None:
    """A testbed comes up, can be entered, and goes without a trace; both ends can be repeated."""
    status, _, errors = caller.testbed("up")
    assert status == 0, errors
    report = json.loads(caller.testbed("status", "-o", "json")[1])
    assert report["condition"] == "up"
    assert report["facts"]["web"].startswith(("Apache", "built-in"))
    programs = {host["name"]: host["programs"] for host in report["hosts"]}
    assert all(programs["server2"].values())
    assert caller.testbed("exec", "client1", "--", "sh", "-c", "hostname; exit 7")[:2] == (7, "client1\n")
    status, _, errors = caller.testbed("up")
    assert (status, len(errors.splitlines())) == (1, 1)
    assert "lb testbed down" in errors
    assert caller.testbed("down")[0] == 0
    assert caller.leftovers() == []
    assert caller.testbed("down")[0] == 0
    assert json.loads(caller.testbed("status", "-o", "json")[1])["condition"] == "down"
    assert caller.testbed("exec", "client1", "--", "true")[0] == 1


def test_up_after_killed_owner_cleans_and_works(caller: Caller) -> None:
    """What a killed owner left is gone when the next one is up, processes included."""
    assert caller.testbed("up")[0] == 0
    owner = json.loads(caller.testbed("status", "-o", "json")[1])["owner"]
    state = json.loads((caller.state / "state.json").read_text())
    children = [ProcessId(**process) for process in state["processes"].values()]
    os.kill(owner, signal.SIGKILL)
    wait_until(lambda: not any(child.alive() for child in children), "the servers end with their owner")
    assert json.loads(caller.testbed("status", "-o", "json")[1])["condition"] == "left over"
    status, _, errors = caller.testbed("up")
    assert status == 0, errors
    assert caller.testbed("exec", "server1", "--", "true")[0] == 0


# The second one ignores the request: only SIGKILL ends it.
STAYING = {signal.SIGTERM: "echo here; exec sleep 1000", signal.SIGKILL: "trap '' TERM; echo here; exec sleep 1000"}


@pytest.mark.parametrize("owner_lives", [True, False], ids=["owner-lives", "owner-killed"])
def test_down_with_programs_of_exec_ends_them(caller: Caller, owner_lives: bool) -> None:
    """What `exec` started ends with the testbed, asked first, killed when it stays; nothing is left in a namespace."""
    assert caller.testbed("up")[0] == 0
    namespaces = set(json.loads((caller.state / "state.json").read_text())["namespaces"].values())
    programs = {
        number: caller.start("testbed", "exec", "router", "--", "sh", "-c", text) for number, text in STAYING.items()
    }
    for program in programs.values():
        assert program.stdout is not None
        assert program.stdout.readline() == "here\n"
    if not owner_lives:
        owner = ProcessId.of(json.loads(caller.testbed("status", "-o", "json")[1])["owner"])
        owner.signal(signal.SIGKILL)
        assert owner.wait_gone(DEADLINE_S)
    assert _residents(namespaces)
    assert caller.testbed("down")[0] == 0
    assert _residents(namespaces) == []
    assert {program.wait(DEADLINE_S): -number for number, program in programs.items()} == {-15: -15, -9: -9}
    assert caller.leftovers() == []


def _residents(namespaces: set[int]) -> list[int]:
    """List the processes in network namespaces, given by inode."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino in namespaces:
                found.append(int(entry.name))
    return found


def test_exec_unknown_host_or_program_is_one_line(caller: Caller) -> None:
    """A wrong name gets one line that says what there is."""
    assert caller.testbed("up")[0] == 0
    for arguments in (("client9", "--", "true"), ("client1", "--", "no-such-program")):
        status, output, errors = caller.testbed("exec", *arguments)
        assert (status, output, len(errors.splitlines())) == (1, "", 1), errors


def test_run_testbed_for_five_seconds_fetches_from_three_servers(caller: Caller) -> None:
    """`lb run --testbed` balances a real load over all servers, and leaves nothing."""
    status, output, errors = caller.run("run", "--testbed", "--duration", "5")
    assert status == 0, errors
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.startswith("server")}
    assert all(int(rows[name][1]) > 0 for name in ("server1", "server2", "server3")), output
    assert " 0 failures" in output
    assert caller.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_run_testbed_stopped_by_signal_ends_with_0(caller: Caller, number: signal.Signals) -> None:
    """A signal ends it in order: a last table, exit code 0, nothing left."""
    child = caller.start("run", "--testbed")
    _wait_for_fetches(child)
    child.send_signal(number)
    output, errors = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0, errors
    assert "fetches, " in output
    assert caller.leftovers() == []


def test_run_testbed_backend_and_control_socket_as_asked(caller: Caller) -> None:
    """The options of `lb run` hold with --testbed too, and it says which backend runs."""
    # Not below tmp_path: the unprivileged user may not enter that.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        control = Path(directory) / "lb.sock"
        child = caller.start("run", "--testbed", "--backend", "python", "--control", str(control))
        _wait_for_fetches(child)
        assert fetch(control, "/status")["backend"] == "python"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=DEADLINE_S)
        assert ", backend python, service video at " in errors
        assert not control.exists()


def test_run_testbed_killed_leaves_no_process_and_next_up_works(caller: Caller) -> None:
    """After SIGKILL nothing keeps running, and a second start cleans the rest."""
    child = caller.start("run", "--testbed")
    _wait_for_fetches(child)
    state = json.loads((caller.state / "state.json").read_text())
    processes = [ProcessId(**each) for each in state["processes"].values()]
    assert len(processes) > 8
    child.kill()
    wait_until(lambda: not any(process.alive() for process in processes), "all children end with their parent")
    status, _, errors = caller.testbed("up")
    assert status == 0, errors


def _wait_for_fetches(child: subprocess.Popen[str]) -> None:
    """Read the plain lines until one tells of a fetch."""
    assert child.stdout is not None
    for line in child.stdout:
        if "server1" in line and "server1 0" not in line:
            return
    pytest.fail(f"it ended before a fetch: {child.stderr.read() if child.stderr else ''}")


# Root has no use for a runtime directory.
@pytest.mark.parametrize("caller", ["user"], indirect=True)
def test_run_testbed_in_runtime_directory_leaves_it_empty(caller: Caller) -> None:
    """State in the user's runtime directory below /run stays reachable although /run is hidden, and goes at the end."""
    runtime = Path(tempfile.mkdtemp(dir="/run")) if os.geteuid() == 0 else Path(tempfile.mkdtemp())
    try:
        runtime.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(runtime, caller.user, caller.user)
        caller.environment["XDG_RUNTIME_DIR"] = str(runtime)
        assert caller.testbed("up")[0] == 0
        assert caller.testbed("exec", "client1", "--", "hostname")[:2] == (0, "client1\n")
        assert caller.testbed("down")[0] == 0
        status, _, errors = caller.run("run", "--testbed", "--duration", "1")
        assert status == 0, errors
        assert list(runtime.iterdir()) == []
    finally:
        shutil.rmtree(runtime)


def test_up_without_any_right_exits_4_with_one_line() -> None:
    """Neither root nor user namespaces: one line that says what is missing, exit code 4."""
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv to take every right away")
    # The mapping to root needs CAP_SETFCAP: a root without capabilities may not even make a user namespace of use.
    command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-P", "-m", "lb"]
    tried = subprocess.run(
        [*command, "testbed", "up", "--prefix", "tnone-"], capture_output=True, text=True, check=False
    )
    assert (tried.returncode, tried.stdout, len(tried.stderr.splitlines())) == (4, "", 1), tried.stderr
    assert "run as root" in tried.stderr


def test_run_testbed_without_any_fetch_exits_1(caller: Caller) -> None:
    """A load of which nothing came through is a failure, and counted."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory) / "closed.toml"
        config.write_text(DEFAULT_CONFIG.read_text().replace("port = 803", "weight = 0, port = 803"))
        config.chmod(0o644)
        status, output, errors = caller.run("run", "--testbed", "--duration", "2", "-c", str(config))
    assert status == 1, errors
    assert "\n0 fetches, " in output
    assert "\n0 fetches, 0 failures" not in output


def test_run_testbed_invalid_config_builds_nothing(caller: Caller) -> None:
    """A wrong configuration is told before anything is built."""
    # Not below tmp_path: the unprivileged user may not enter that.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory) / "wrong.toml"
        config.write_text("backend = 7\n")
        config.chmod(0o644)
        status, output, errors = caller.run("run", "--testbed", "-c", str(config))
    assert (status, output) == (3, ""), errors
    assert str(config) in errors


def test_links_in_each_mode_carry_or_lack_offloads(hosts: Testbed, link_mode: str) -> None:
    """The link mode holds at every host's end of its link."""
    for host in hosts.topology.hosts:
        with hosts.inside(host.name):
            offloads = ethtool.get_offloads("eth0")
        wanted = {"tx", "sg", "gso", "tso"} if link_mode == "on" else set()
        assert {name for name, on in offloads.items() if on} >= wanted
        if link_mode == "off":
            # The kernel counts TSO as on while any kind is, and one kind is not its ioctl's to switch.
            assert {name for name, on in offloads.items() if on} <= {"tso"}


def test_hosts_without_balancer_reach_only_the_router(unique: str) -> None:
    """Kernel forwarding is off: a host's packets to another end at the router, and no route leads out."""
    with running_testbed(f"{unique}n-", servers=False) as testbed:
        server = testbed.topology.host("server1")
        with testbed.socket("client1", kind=socket.SOCK_DGRAM) as client:
            client.connect((str(testbed.topology.host("router").address), 9))
            with pytest.raises(OSError, match="unreachable"):
                client.connect(("203.0.113.1", 9))
        with (
            testbed.socket("server1", kind=socket.SOCK_DGRAM) as receiver,
            testbed.socket("client1", kind=socket.SOCK_DGRAM) as client,
        ):
            receiver.bind((str(server.address), 7))
            receiver.settimeout(DEADLINE_S)
            client.sendto(b"lost", (str(server.address), 7))
            build.set_kernel_forwarding(testbed.prefix, True)
            client.sendto(b"found", (str(server.address), 7))
            assert receiver.recv(10) == b"found"
            assert not select.select([receiver], [], [], 0)[0]


def test_stop_signal_in_the_middle_removes_everything_first(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C that comes while a testbed is being removed waits until nothing is left of it."""

    def interrupted_sweep(state: Inventory) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sweep(state)

    monkeypatch.setattr(lifecycle, "sweep", interrupted_sweep)
    testbed = Testbed(prefix=f"{unique}i-", servers=False)
    with pytest.raises(KeyboardInterrupt), stoppable(), testbed:
        pass
    assert [entry.name for entry in isolation.NETNS_DIR.glob(f"{unique}i-*")] == []
    assert not testbed.directory.exists()


def test_sweep_reused_pid_is_not_killed() -> None:
    """A pid whose start time differs is another process."""
    with subprocess.Popen(["sleep", "60"]) as child:
        stranger = ProcessId(child.pid, ProcessId.of(child.pid).start + 1)
        stranger.signal(signal.SIGKILL)
        assert ProcessId.of(child.pid).alive()
        ProcessId.of(child.pid).signal(signal.SIGKILL)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL
