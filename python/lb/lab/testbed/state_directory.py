"""
What a running testbed has made, written down so that another process can find it, end it, or clean up after it was
killed.

A testbed has one owner: the process that built it and holds a file lock for as long as it lives. The kernel drops the
lock when the owner dies, however it dies, so "is it running" needs no guess. The state file lists namespaces and
processes before they can be lost; a process is identified by its pid and its start time, so that a reused pid is never
killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lb.errors import TestbedError
from lb.lab.testbed import isolation

KILL_DEADLINE_S = 5.0
TERM_GRACE_S = 1.0
_PREFIX_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,15}")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """
    A process. `start`: clock ticks after boot (field 22 of /proc/PID/stat); with the pid it names one process for
    ever.
    """

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Identify a live process. Raise ProcessLookupError when there is none."""
        return cls(pid, int(_stat_fields(pid)[19]))

    def alive(self) -> bool:
        """Tell whether this very process still runs; one that only waits to be collected does not."""
        with suppress(ProcessLookupError):
            fields = _stat_fields(self.pid)
            return int(fields[19]) == self.start and fields[0] not in ("Z", "X")
        return False

    def signal(self, number: int) -> None:
        """Send a signal to this very process. Does nothing when it is gone."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # The descriptor pins the pid: what is compared is what is signalled.
                if self.alive():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until this process has ended. Returns whether it has."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                return not self.alive() or bool(select.select([descriptor], [], [], timeout_s)[0])
            finally:
                os.close(descriptor)
        return True


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (state) on; the second, the name, may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
    return text.rpartition(")")[2].split()


@dataclass(slots=True)
class Inventory:
    """
    The namespaces and processes of one testbed, as written to its state file.

    Args:
        mode: `root`, or `user` when it lives in its owner's user namespace.
        namespaces: name to inode number; 0 until it is made.
        processes: what runs in it, by name (`server1/web`).
        facts: what `lb testbed status` tells beside that.
    """

    prefix: str
    mode: str
    owner: ProcessId
    namespaces: dict[str, int] = field(default_factory=dict)
    processes: dict[str, ProcessId] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


class StateDirectory:
    """The directory and lock of one testbed, by the prefix of its namespaces' names."""

    def __init__(self, prefix: str) -> None:
        if not _PREFIX_PATTERN.fullmatch(prefix):
            raise TestbedError(f"prefix {prefix!r}: up to 16 of a-z, 0-9 and '-', a letter first")
        self.prefix = prefix
        self.base = base_directory()
        self.directory = self.base / f"testbed-{prefix.rstrip('-')}"
        self._lock_path = self.base / f"testbed-{prefix.rstrip('-')}.lock"
        self._state_path = self.directory / "state.json"
        self._lock: int | None = None

    def acquire(self) -> bool:
        """Take the lock. Returns False when another live process has it."""
        _make_private(self.base)
        while True:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # The last owner removes the file: a lock on a removed file excludes no process.
            if self._lock_path.exists() and os.fstat(descriptor).st_ino == self._lock_path.stat().st_ino:
                self._lock = descriptor
                return True
            os.close(descriptor)

    def clear(self) -> None:
        """Remove the directory and all in it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self) -> None:
        """Give the lock back and remove the directory and all in it."""
        self.clear()
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
        with suppress(OSError):
            self.base.rmdir()

    def owned_elsewhere(self) -> bool:
        """Tell whether a live process owns a testbed here."""
        if not self._lock_path.exists():
            return False
        if self.acquire():
            assert self._lock is not None
            os.close(self._lock)
            self._lock = None
            return False
        return True

    def write(self, state: Inventory) -> None:
        """Write the state down, whole or not at all."""
        self.directory.mkdir(mode=0o755, exist_ok=True)
        temporary = self._state_path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(state), indent=1))
        temporary.replace(self._state_path)

    def read(self) -> Inventory | None:
        """Read what is written. Returns None when there is nothing, or nothing legible."""
        try:
            raw: dict[str, Any] = json.loads(self._state_path.read_text())
            return Inventory(
                raw["prefix"],
                raw["mode"],
                ProcessId(**raw["owner"]),
                dict(raw["namespaces"]),
                {name: ProcessId(**process) for name, process in raw["processes"].items()},
                dict(raw["facts"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def base_directory() -> Path:
    """Return the directory, private to this user, below which testbeds keep their state."""
    user = os.geteuid()
    if user == 0:
        return Path("/run/flowlb")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == user:
        return Path(runtime) / "flowlb"
    return Path(f"/tmp/flowlb-{user}")


def _make_private(directory: Path) -> None:
    with suppress(FileExistsError):
        # As root the servers run as another user, which must be able to enter.
        directory.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o002:
        raise TestbedError(f"{directory} is not a directory that only you can write: remove it")


def sweep(state: Inventory) -> None:
    """
    End and remove everything a state lists: its processes, others in its namespaces, then the namespaces. What
    is gone already is no error.
    """
    for process in state.processes.values():
        process.signal(signal.SIGKILL)
    _end_residents(state.namespaces)
    for process in state.processes.values():
        process.wait_gone(KILL_DEADLINE_S)
    for name in state.namespaces:
        isolation.remove_namespace(name)
    if state.facts.get("made_names_mount") == "yes":
        isolation.remove_names()


def _end_residents(namespaces: dict[str, int]) -> None:
    """
    End every process in these namespaces: workers whose leader was killed, and what `lb testbed exec` started. They are
    asked first; who stays, or is born meanwhile, is killed.
    """
    _signal_residents(namespaces, signal.SIGTERM, TERM_GRACE_S)
    deadline = time.monotonic() + KILL_DEADLINE_S
    while (left := deadline - time.monotonic()) > 0:
        if not _signal_residents(namespaces, signal.SIGKILL, left):
            return


def _signal_residents(namespaces: dict[str, int], number: int, timeout_s: float) -> int:
    """Signal the processes in these namespaces and wait until they have ended. Returns how many there were."""
    poller = select.poll()
    waiting = set(_pinned_residents({inode: name for name, inode in namespaces.items() if inode}))
    found = len(waiting)
    try:
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
            # It may have ended since, or belong to a user whose processes we may not signal: the deadline covers that.
            with suppress(OSError):
                signal.pidfd_send_signal(descriptor, number)
        deadline = time.monotonic() + timeout_s
        while waiting and (ended := poller.poll(max(0.0, deadline - time.monotonic()) * 1000)):
            for descriptor, _ in ended:
                poller.unregister(descriptor)
                waiting.remove(descriptor)
                os.close(descriptor)
    finally:
        for descriptor in waiting:
            os.close(descriptor)
    return found


def _pinned_residents(names: dict[int, str]) -> Iterator[int]:
    """Open a pidfd of every process but this one in these namespaces, given by inode."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if not _resides(entry, names):
                continue
            descriptor = os.pidfd_open(int(entry.name))
            try:
                # Asked again: from here on the descriptor pins the pid.
                resides = _resides(entry, names)
            except OSError:
                resides = False
            if resides:
                yield descriptor
            else:
                os.close(descriptor)


def _resides(process: Path, names: dict[int, str]) -> bool:
    """
    Tell whether a process, by its directory in /proc, is in one of these namespaces. Raise OSError when it has ended.

    The kernel reuses the inode numbers of namespaces that are gone, so the name must still lead there: seen from here,
    or, when the mounts of a killed owner are not ours to see, from the process itself.
    """
    namespace = (process / "ns/net").stat()
    name = names.get(namespace.st_ino)
    if name is None:
        return False
    for root in (Path("/"), process / "root"):
        with suppress(OSError):
            if os.path.samestat((root / isolation.NETNS_DIR.relative_to("/") / name).stat(), namespace):
                return True
    return False
