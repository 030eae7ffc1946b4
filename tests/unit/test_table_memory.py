"""Flow tables in maps of the kernel, which outlive their process; rule 23.1, flows over a restart."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, from_client, make_snapshot, open_flow, request

from lb import _core
from lb.compiler.spec import Spec
from lb.config import parse
from lb.control import preparation, state_files, table_memory
from lb.control.kept import NAMES, Kept, StateDirectory
from lb.control.table_memory import BPF, PINS, TABLES
from lb.errors import LbError

CAPACITY = 64
FLOWS = 20
NOBODY = 65534
SPEC = Spec(
    parse("""
[[interface]]
name = "eth0"
[[service]]
name = "web"
address = "198.18.1.100"
port = 80
""")
)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a BPF file system")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a state directory in which a BPF file system is mounted."""
    path = Path(tempfile.mkdtemp(prefix="flowlb-test-", dir="/dev/shm"))
    (path / BPF).mkdir()
    mounted = subprocess.run(["mount", "-t", "bpf", "bpf", path / BPF], capture_output=True, text=True, check=False)
    try:
        if mounted.returncode:
            pytest.skip(f"a BPF file system cannot be mounted here: {mounted.stderr.strip()}")
        try:
            os.close(_core.create_table_map(1, str(path / BPF / "try")))
        except OSError as error:
            pytest.skip(f"the kernel makes no map here: {error}")
        yield path
    finally:
        subprocess.run(["umount", "-l", path / BPF], capture_output=True, check=False)
        shutil.rmtree(path)


def started(folder: Path, capacity: int = CAPACITY) -> tuple[StateDirectory, Box, Kept]:
    """Do what a process does at its start."""
    state, snapshot = StateDirectory.open(folder, capacity=capacity), make_snapshot()
    try:
        box = Box("rust", snapshot, capacity=capacity, table_fd=state.new_table(capacity))
        found = state.keep(box.path, snapshot, box.now)
        state.begin(snapshot, SPEC)
        state.forget_left()
        return state, box, found
    except BaseException:
        state.close()
        raise


def pinned(folder: Path) -> list[str]:
    """Return which tables are maps."""
    return sorted(path.name for path in (folder / BPF).glob("flowlb-*/*"))


def sizes(folder: Path) -> list[int]:
    """Return the sizes of the files for tables."""
    return [(folder / name).stat().st_size for name in TABLES]


def refuse(*_: Any) -> int:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_flows_in_a_map_go_on_in_the_next_process_and_the_one_after(folder: Path) -> None:
    state, box, found = started(folder)
    assert found == Kept()
    assert (state.where.memory, state.where.path.name) == ("map", PINS[0])
    servers = {port: open_flow(box, port=port) for port in range(40000, 40000 + FLOWS)}
    assert len(set(servers.values())) == 3
    for turn in (1, 0, 1):
        # Killed: nothing is said to anything.
        state.close()
        state, box, found = started(folder)
        assert found == Kept(FLOWS)
        # The one before is gone, and no file has taken its place.
        assert (pinned(folder), sizes(folder)) == ([PINS[turn]], [0, 0])
        for port, server in servers.items():
            result = box.send(from_client(request("A", 1001, 5001, b"more", port=port)))
            assert (result.verdict, result.server) == ("forward", f"server{server + 1}")
    state.close()


def test_map_that_was_left_is_removed_without_rights(folder: Path) -> None:
    """Rule 21.2, privileges: by the user that the process has become, who owns the directory for maps."""
    started(folder)[0].close()
    state, snapshot = StateDirectory.open(folder, capacity=CAPACITY, owner=NOBODY), make_snapshot()
    box = Box("rust", snapshot, capacity=CAPACITY, table_fd=state.new_table(CAPACITY))
    state.keep(box.path, snapshot, box.now)
    state.begin(snapshot, SPEC)
    assert pinned(folder) == [*PINS]
    os.seteuid(NOBODY)
    try:
        state.forget_left()
    finally:
        os.seteuid(0)
    assert pinned(folder) == [PINS[1]]
    state.close()


def test_flows_begin_empty_only_once_the_start_can_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails before it has a table leaves the map that it could not open."""
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    with monkeypatch.context() as without_rights:
        without_rights.setattr(_core, "open_table_map", refuse)
        StateDirectory.open(folder, capacity=CAPACITY).close()
    state, _, found = started(folder)
    assert found == Kept(1)
    state.close()


def test_map_that_cannot_be_opened_is_told_and_flows_begin_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    monkeypatch.setattr(_core, "open_table_map", refuse)
    monkeypatch.setattr(_core, "create_table_map", refuse)
    state, _, found = started(folder)
    assert found.flows == 0
    assert "the flow table that was left cannot be opened: the kernel's map" in (found.trouble or "")
    assert state.where.memory == "file"
    assert state.where.why == "the kernel makes no BPF map: operation not permitted"
    assert pinned(folder) == []
    state.close()


def test_flows_change_from_a_file_into_a_map_and_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = _core.create_table_map
    for allowed, memory in ((False, "file"), (True, "map"), (False, "file")):
        monkeypatch.setattr(_core, "create_table_map", create if allowed else refuse)
        state, box, found = started(folder)
        assert state.where.memory == memory
        if found != Kept():
            assert found == Kept(1)
            assert box.send(from_client(request("A", 1001, 5001, b"more"))).verdict == "forward"
        else:
            open_flow(box)
        state.close()
    assert (pinned(folder), sum(size > 0 for size in sizes(folder))) == ([], 1)


def test_map_of_a_process_that_fails_at_its_start_is_removed(folder: Path) -> None:
    StateDirectory.open(folder, capacity=CAPACITY).close()
    assert pinned(folder) == []


def test_map_for_another_capacity_is_not_used(folder: Path) -> None:
    state = StateDirectory.open(folder, capacity=CAPACITY)
    Box("rust", make_snapshot(), capacity=CAPACITY + 1, table_fd=state.new_table(CAPACITY + 1))
    assert state.where.memory == "file"
    assert pinned(folder) == []
    state.close()


def test_directory_for_maps_that_others_may_look_into_is_not_used(folder: Path) -> None:
    state, _, _ = started(folder)
    state.close()
    (pins,) = (folder / BPF).glob("flowlb-*")
    pins.chmod(0o755)
    state, _, _ = started(folder)
    assert (state.where.memory, "others may look into it" in state.where.why) == ("file", True)
    state.close()


def test_file_system_with_huge_pages_is_preferred(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_memory, "_has_huge_pages", lambda _: True)
    state, _, _ = started(folder)
    assert (state.where.memory, pinned(folder)) == ("file", [])
    state.close()


def test_take_over_whose_names_are_gone_meanwhile_is_refused(folder: Path) -> None:
    """Rule 23.2, taking over: the running one goes on; nothing is taken for "there were no flows"."""
    running, box, _ = started(folder)
    open_flow(box)

    class Running:
        def take(self, what: str) -> int | None:
            return os.dup(running.descriptors()[what])

    successor = StateDirectory.open(folder, Running(), capacity=CAPACITY)  # type: ignore[arg-type]
    for name in NAMES:
        os.truncate(folder / name, 0)
    successor.read_left()
    snapshot = make_snapshot()
    other = Box("rust", snapshot, capacity=CAPACITY, table_fd=successor.new_table(CAPACITY))
    with pytest.raises(LbError, match="take-over: what the running balancer's flows mean cannot be read any more"):
        successor.keep(other.path, snapshot, other.now)
    successor.close()
    assert pinned(folder) == [PINS[0]]
    running.close()


def test_map_without_names_is_told(folder: Path) -> None:
    started(folder)[0].close()
    for name in NAMES:
        os.truncate(folder / name, 0)
    state, _, found = started(folder)
    assert found == Kept(trouble="what was left cannot be read: flows begin empty")
    state.close()


def test_map_is_not_given_up_for_room_that_it_does_not_take(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is too small for a file, and the kernel makes no second map: the start fails, flows stay."""
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    with monkeypatch.context() as short:
        short.setattr(_core, "create_table_map", refuse)
        short.setattr(state_files, "free_bytes", lambda _: 4096)
        with pytest.raises(LbError, match="bytes are needed"):
            started(folder)
    state, _, found = started(folder)
    assert found == Kept(1)
    state.close()


def test_map_that_is_given_up_is_removed(folder: Path) -> None:
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    again = StateDirectory.open(folder, capacity=CAPACITY)
    assert again.give_up("no memory")
    assert pinned(folder) == [PINS[1]]
    again.close()


@pytest.mark.parametrize(("before", "now"), [(NOBODY, NOBODY - 1), (NOBODY, None), (None, NOBODY)])
def test_flows_in_a_map_go_on_under_another_user(folder: Path, before: int | None, now: int | None) -> None:
    """Rule 21.2, privileges: `--user` changed, or the account `flowlb` was made."""
    snapshot = make_snapshot()
    for owner, flows in ((before, 0), (now, 1)):
        state = StateDirectory.open(folder, capacity=CAPACITY, owner=owner)
        box = Box("rust", snapshot, capacity=CAPACITY, table_fd=state.new_table(CAPACITY))
        assert state.keep(box.path, snapshot, box.now) == Kept(flows)
        state.begin(snapshot, SPEC)
        state.forget_left()
        assert state.where.memory == "map"
        assert state.where.path.parent.stat().st_uid == (owner or 0)
        if not flows:
            open_flow(box)
        state.close()


def test_file_beside_a_new_map_is_emptied(folder: Path) -> None:
    (folder / TABLES[0]).write_bytes(b"left")
    (folder / TABLES[0]).chmod(0o600)
    state, _, _ = started(folder)
    assert (pinned(folder), sizes(folder)) == ([PINS[0]], [0, 0])
    state.close()


@pytest.mark.parametrize(
    ("text", "capacity"),
    [
        ("", 262_144),
        ("[flows]\ncapacity = 5", 5),
        ("workers = 2", None),
        ("flows = 1", None),
        *((f"[flows]\ncapacity = {wrong}", None) for wrong in ("-5", "0", "true", '"7"', "1.5", 2**28 + 1, 2**62)),
    ],
)
def test_capacity_of_a_map_is_that_of_a_configuration_without_mistake(text: str, capacity: int | None) -> None:
    """Rights are needed before a configuration is read in full; its mistakes are told then."""
    assert preparation._capacity(tomllib.loads(text)) == capacity


def test_table_map_errors_are_those_of_the_kernel(folder: Path) -> None:
    with pytest.raises(PermissionError):
        _core.create_table_map(1, str(folder / "not-bpf"))
    with pytest.raises(FileNotFoundError):
        _core.open_table_map(str(folder / BPF / "none"))
    with pytest.raises(LbError):
        _core.create_table_map(0, str(folder / BPF / "empty"))
