"""
One testbed's life: build it, start its servers, run programs in its hosts, take it down.

The process that builds a testbed owns it. Everything it starts gets a signal when the owner dies, and is written down
first (`state_directory.py`), so that nothing outlives the owner for long and the next start can remove the rest.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lb.errors import PrivilegeError, TestbedError
from lb.lab.testbed import apache, build, content, isolation
from lb.lab.testbed.state_directory import Inventory, ProcessId, StateDirectory, sweep
from lb.lab.testbed.topology import DEFAULT_PREFIX, ECHO_PORT, Host, Topology, one_segment

READY_DEADLINE_S = 10.0
STOP_DEADLINE_S = 3.0
NOBODY_UID = 65534
_POLL_S = 0.02
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Testbed:
    """
    A testbed in network namespaces; a context manager that builds on entry and leaves nothing behind on exit.

    Args:
        topology: what to build; None: the one-segment testbed of the course.
        prefix: of the namespaces' names; testbeds with different prefixes live side by side.
        offloads: whether links keep their checksum and segmentation offloads.
        servers: whether to start echo and web servers.
        use_apache: whether servers run Apache when it is installed.
    """

    __test__ = False  # pytest would collect a class of this name

    def __init__(
        self,
        topology: Topology | None = None,
        prefix: str = DEFAULT_PREFIX,
        offloads: bool = True,
        servers: bool = True,
        use_apache: bool = True,
    ) -> None:
        self.topology = topology or one_segment()
        self.prefix = prefix
        self._offloads = offloads
        self._wants_servers = servers
        self._use_apache = use_apache
        self._state_directory = StateDirectory(prefix)
        self._state: Inventory | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def directory(self) -> Path:
        """Where it keeps its files; removed with it."""
        return self._state_directory.directory

    @property
    def facts(self) -> dict[str, str]:
        """What a user may want to know about it, by name."""
        return dict(self._state.facts) if self._state else {}

    def __enter__(self) -> Testbed:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """
        Build it. Without root this process, which must have one thread, moves into a new user namespace for good.

        Raises:
            TestbedError: one with this prefix is up, or a step failed; nothing half-built stays.
            PrivilegeError: neither root nor user namespaces are available.
        """
        with _signals_deferred():
            self._claim()
        try:
            mode = self._become_able()
            self._state = Inventory(self.prefix, mode, ProcessId.of(os.getpid()))
            self._make_namespaces()
            build.connect(self.topology, self.prefix, self._offloads)
            self._state.facts |= {
                "offloads": "on" if self._offloads else "off",
                "ipv6": "yes" if build.has_ipv6() else "no",
            }
            if self._wants_servers:
                self._start_servers()
            self._state_directory.write(self._state)
        except BaseException as error:
            self.stop()
            raise _explained(error) from error

    def stop(self) -> None:
        """
        End everything it started and remove everything it made. Does nothing when it is not up.

        Signals that stop a program wait until it is done: half of a testbed is worse than a second more.
        """
        with _signals_deferred():
            self._remove()

    def _remove(self) -> None:
        for child in reversed(self._children.values()):
            with suppress(ProcessLookupError):
                child.terminate()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        if self._state is not None:
            sweep(self._state)
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self._state = None
        self._state_directory.release()

    def spawn(
        self, host: str, label: str, command: Sequence[str], *, as_nobody: bool = False, **options: Any
    ) -> subprocess.Popen[bytes]:
        """
        Start a program in a host. It gets SIGTERM when this process dies. Call from the main thread.

        Args:
            host: name of the host.
            command: the program and its arguments.
            label: names it within the host, for the state file and its log `HOST-LABEL.log` (standard error).
            as_nobody: in a user namespace: not as its root.
            options: for `subprocess.Popen`.

        Raises:
            TestbedError: it could not be started.
        """
        owner = os.getpid()

        def prepare(mask: set[int]) -> None:
            isolation.enter_namespace(self.prefix + host)
            if as_nobody:
                isolation.drop_root_in_user_namespace(NOBODY_UID)
            else:
                isolation.dress_as(host)
            isolation.die_with_parent(signal.SIGTERM, owner)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        with (self.directory / f"{host}-{label}.log").open("ab") as log, _signals_waiting() as mask:
            settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **options}
            try:
                child = subprocess.Popen(command, preexec_fn=lambda: prepare(mask), start_new_session=True, **settings)
            except (OSError, subprocess.SubprocessError) as error:
                raise TestbedError(f"cannot start {command[0]} in {host}: {error}") from error
            self._children[f"{host}/{label}"] = child
            self._record(f"{host}/{label}", child.pid)
        return child

    def spawn_python(
        self, host: str, label: str, module: str, *arguments: str, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a module of this package in a host, with this interpreter; as `spawn`."""
        # -P: a directory `lb` where the user stands must not be taken for the package.
        return self.spawn(host, label, [sys.executable, "-P", "-m", module, *arguments], **options)

    def log_lines(self, host: str, label: str) -> list[str]:
        """Return the lines that a program wrote on standard error; none when there is no such log."""
        with suppress(OSError):
            return (self.directory / f"{host}-{label}.log").read_text(errors="replace").strip().splitlines()
        return []

    def last_log_line(self, host: str, label: str) -> str:
        """Return the last line a program wrote on standard error, or an empty string."""
        return next(reversed(self.log_lines(host, label)), "")

    def end(self, host: str, label: str) -> int:
        """End a program started with `spawn` and return its exit status, negative for a signal."""
        child = self._children.pop(f"{host}/{label}")
        child.terminate()
        try:
            status = child.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        if self._state is not None:
            self._state.processes.pop(f"{host}/{label}", None)
            self._state_directory.write(self._state)
        return status

    def inside(self, host: str) -> AbstractContextManager[None]:
        """Work inside a host within the block: sockets and /proc/sys/net are its own. One thread only."""
        return isolation.inside(self.prefix + host)

    def socket(
        self, host: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Open a socket of this process inside a host."""
        with self.inside(host):
            return socket.socket(family, kind, protocol)

    def wait_listening(self, host: Host, port: int, label: str) -> None:
        """
        Wait until a TCP port of a host accepts connections.

        Raises:
            TestbedError: the program behind `label` ended first, or the deadline passed.
        """
        deadline = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < deadline:
            with self.socket(host.name) as probe:
                if probe.connect_ex((str(host.address), port)) == 0:
                    return
            if self._children[f"{host.name}/{label}"].poll() is not None:
                raise TestbedError(
                    f"{label} on {host.name} ended: {self.last_log_line(host.name, label) or 'no message'}"
                )
            time.sleep(_POLL_S)
        raise TestbedError(f"{label} on {host.name} does not listen on port {port} after {READY_DEADLINE_S:.0f} s")

    def _claim(self) -> None:
        """Take the prefix for us, and remove what a killed owner left."""
        if not self._state_directory.acquire():
            raise TestbedError(f"a testbed with prefix {self.prefix!r} is up already: end it with `lb testbed down`")
        leftover = self._state_directory.read()
        # When its owner was killed the lock is free, but what it made may still be there.
        if leftover is not None:
            sweep(leftover)
        self._state_directory.clear()

    def _become_able(self) -> str:
        if isolation.in_own_user_namespace():
            return "user"
        if isolation.has_capabilities():
            return "root"
        # The parent, so that the directory itself can be removed at the end.
        isolation.enter_user_namespace(self._state_directory.base.parent)
        return "user"

    def _make_namespaces(self) -> None:
        state = self._state
        assert state is not None
        names = build.namespace_names(self.topology, self.prefix)
        made = isolation.prepare_names()
        taken = [name for name in names if (isolation.NETNS_DIR / name).exists()]
        if taken:
            raise TestbedError(
                f"namespace {taken[0]} exists and belongs to another program: remove it with `ip netns del {taken[0]}`"
            )
        state.facts["made_names_mount"] = "yes" if made else "no"
        state.namespaces = dict.fromkeys(names, 0)
        self._state_directory.write(state)
        for name in names:
            state.namespaces[name] = isolation.create_namespace(name)
        self._state_directory.write(state)

    def _start_servers(self) -> None:
        assert self._state is not None
        files = self.directory / "www"
        self._state.facts["video"] = content.write_website(files)
        servers = self.topology.of_role("server")
        reason = self._start_apache(servers, files)
        label = "echo" if reason is None else "echo-web"
        for host in servers:
            web = () if reason is None else ("--web-port", str(host.web_port), "--content", str(files))
            self.spawn_python(
                host.name, label, "lb.lab.testbed.serve", "--name", host.name, "--echo-port", str(ECHO_PORT), *web
            )
        for host in servers:
            self.wait_listening(host, ECHO_PORT, label)
            if reason is not None:
                self.wait_listening(host, host.web_port, label)
        self._state.facts["web"] = f"Apache ({apache.find()})" if reason is None else f"built-in ({reason})"

    def _start_apache(self, servers: Sequence[Host], files: Path) -> str | None:
        """Start Apache on every server. Returns why not, or None when it runs."""
        if not self._use_apache:
            return "asked for"
        if apache.find() is None:
            return "Apache is not installed"
        as_root = self._state is not None and self._state.mode == "root"
        try:
            for host in servers:
                directory = self.directory / host.name
                directory.mkdir()
                command = apache.command(directory, build.has_ipv6(), as_root)
                settings = apache.environment(host.name, host.web_port, directory, files)
                self.spawn(host.name, "web", command, as_nobody=not as_root, env={**os.environ, **settings})
            for host in servers:
                self.wait_listening(host, host.web_port, "web")
        except TestbedError as error:
            for host in servers:
                if f"{host.name}/web" in self._children:
                    self.end(host.name, "web")
            return f"Apache does not start here: {error}"
        return None

    def _record(self, label: str, pid: int) -> None:
        assert self._state is not None
        with suppress(ProcessLookupError):
            self._state.processes[label] = ProcessId.of(pid)
        self._state_directory.write(self._state)


@contextmanager
def _signals_waiting() -> Iterator[set[int]]:
    """
    Let the signals that stop a program wait until the end of the block; give the mask to go back to.

    Python runs its own code around a fork, and drops what a signal handler raises in the middle of it: a Ctrl-C
    would be lost. And a child that is started is also written down.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield {int(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """
    Let the signals that stop a program take effect at the end of the block, whichever thread the kernel hands them to.

    A mask holds for one thread only, and handlers run in the main thread with any mask.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _frame: came.append(number)) for each in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was not set from Python, so there is nothing of ours to go back to.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for arrived in came:
            signal.raise_signal(arrived)


def _explained(error: BaseException) -> BaseException:
    """Map what the kernel says to an error of ours, with the way out where there is one."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            f"the testbed could not be built ({error}): run as root, or where user namespaces are allowed"
        )
    return TestbedError(f"the testbed could not be built: {error}")
