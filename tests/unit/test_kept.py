"""The state directory: flows that outlive their process, what their ids mean to the next one, what is not believed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, from_client, load_backend, make_snapshot, open_flow, request
from hypothesis import given
from hypothesis import strategies as st

from lb.backends.sharded import Sharded
from lb.compiler.spec import Spec
from lb.config import Config, parse
from lb.control import kept, kept_names, state_files
from lb.control.kept import NAMES, TABLES, Kept, StateDirectory
from lb.control.kept_names import Names, parsed, translations, written
from lb.control.runtime import require_kept_flows
from lb.errors import LbError
from lb.model.snapshot import Snapshot

CAPACITY = 64
MEMORY = Path("/dev/shm")
TABLE = CAPACITY * kept.FLOW_BYTES + kept.MORE_BYTES
NEEDED = TABLE + 2 * kept.NAMES_BYTES
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder in memory."""
    if state_files.file_system(MEMORY.stat().st_dev) not in state_files.IN_MEMORY:
        pytest.skip(f"{MEMORY} is not in memory here")
    path = Path(tempfile.mkdtemp(prefix="flowlb-test-", dir=MEMORY))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no lock."""
    monkeypatch.setattr(state_files, "LOCK_S", 0)


def started(
    folder: Path, snapshot: Snapshot | None = None, drawn_seed: int | None = None
) -> tuple[StateDirectory, Box, tuple[int, int, str | None]]:
    """Do what a process does at its start; return also what became of the flows."""
    state = StateDirectory.open(folder)
    snapshot = snapshot or make_snapshot()
    try:
        box = Box("rust", snapshot, capacity=CAPACITY, table_fd=state.new_table(CAPACITY))
        found = state.keep(box.path, snapshot, box.now, drawn_seed)
        state.begin(snapshot, Spec(config(1)))
        state.forget_left()
        return state, box, found
    except BaseException:
        state.close()
        raise


def sizes(folder: Path, names: tuple[str, ...]) -> list[int]:
    """Return the sizes of files."""
    return [(folder / name).stat().st_size for name in names]


def turned(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the same services and servers under other ids, and other interface ids."""
    count, services = len(snapshot.servers), len(snapshot.services)
    servers = [
        each and dataclasses.replace(each, service=services - 1 - each.service, endpoint=each.endpoint + 7)
        for each in snapshot.servers
    ]
    plans = [
        each and dataclasses.replace(each.plan, slots=tuple(count - 1 - slot for slot in each.plan.slots))
        for each in snapshot.services
    ]
    return dataclasses.replace(
        snapshot,
        interfaces=snapshot.interfaces[::-1],
        servers=tuple(servers[::-1]),
        services=tuple(
            each and dataclasses.replace(each, plan=plan)  # type: ignore[arg-type]
            for each, plan in zip(snapshot.services, plans, strict=True)
        )[::-1],
    )


def test_flows_of_a_process_that_is_gone_go_on_at_their_servers(folder: Path) -> None:
    """Whatever ids the next process gives: each client's next packet goes to the server it was with, none is new."""
    first, box, found = started(folder)
    assert found == (0, 0, None)
    servers = {port: open_flow(box, port=port) for port in range(40000, 40020)}
    assert len(set(servers.values())) == 3
    # Killed: nothing is said to anything.
    first.close()
    other = turned(make_snapshot())
    second, box, found = started(folder, other)
    assert found == (20, 0, None)
    for port, server in servers.items():
        result = box.send(from_client(request("A", 1001, 5001, b"more", port=port)), 1)
        assert (result.verdict, result.server) == ("forward", f"server{server + 1}")
    assert box.event("flow_created") == 0
    active = {entry.server for entry in box.path.flows(box.now)}
    assert active == {"server1", "server2", "server3"}
    counts = box.path.active_flows([number for number, server in enumerate(other.servers) if server])
    assert sum(counts) == 20
    second.close()


def test_flows_survive_any_number_of_processes(folder: Path) -> None:
    server = None
    for turn in range(5):
        state, box, found = started(folder)
        if turn:
            assert found == (1, 0, None)
            result = box.send(from_client(request("A", 1001, 5001, b"x")))
            assert result.server == f"server{server + 1}"  # type: ignore[operator]
        else:
            server = open_flow(box)
        state.close()


def test_process_that_is_killed_before_it_kept_them_leaves_them_to_the_next(folder: Path) -> None:
    first, box, _ = started(folder)
    open_flow(box)
    first.close()
    between = StateDirectory.open(folder)
    Box("rust", capacity=CAPACITY, table_fd=between.new_table(CAPACITY))
    between.close()
    last, _, found = started(folder)
    assert found == (1, 0, None)
    last.close()


def test_flows_of_a_server_that_is_gone_are_dropped(folder: Path) -> None:
    first, box, _ = started(folder)
    servers = [open_flow(box, port=port) for port in range(40000, 40006)]
    first.close()
    whole = make_snapshot(slots=(0, 1))
    gone = dataclasses.replace(
        whole, servers=tuple(each if each and each.name != "server3" else None for each in whole.servers)
    )
    second, _, found = started(folder, gone)
    assert found == (6 - servers.count(2), servers.count(2), None)
    second.close()


def test_a_new_meaning_is_written_down_before_it_is_used_and_an_old_one_only_once(folder: Path) -> None:
    state, _, _ = started(folder)
    before = sizes(folder, NAMES)
    state.note(make_snapshot(weights=(3, 2, 1)))
    assert sizes(folder, NAMES) == before
    other = turned(make_snapshot())
    state.note(other)
    state.close()
    again = StateDirectory.open(folder)
    assert again.left is not None
    assert again.left == Names.of(other, again.left.sequence, again.left.table)
    again.close()


def test_names_that_are_damaged_are_not_believed(folder: Path) -> None:
    """The other file counts then; with both damaged nothing is kept."""
    state, box, _ = started(folder)
    open_flow(box)
    state.note(turned(make_snapshot()))
    state.note(make_snapshot())
    state.close()
    newest = max(NAMES, key=lambda name: parsed((folder / name).read_bytes(), Names).sequence)  # type: ignore[union-attr]
    for name in (newest, *(set(NAMES) - {newest})):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        again = StateDirectory.open(folder)
        assert (again.left is None) == (name != newest)
        again.close()


GOOD = Names.of(make_snapshot(), 7, 1, drawn=True)
EMPTY = Names(
    format=kept_names.FORMAT,
    sequence=1,
    table=0,
    memory="file",
    seed=1,
    drawn=False,
    interfaces=(),
    services=(),
    servers=(),
)


def signed(line: bytes) -> bytes:
    """Return a names file with the right checksum, whatever is in it."""
    return line + b"\n" + hashlib.sha256(line + b"\n").hexdigest().encode() + b"\n"


@pytest.mark.parametrize("data", [b"", b"{}", b"\n\n", b"x" * 1000, written(EMPTY)[:-9], written(EMPTY) + b"\n"])
def test_names_file_of_anything_else_is_none(data: bytes) -> None:
    assert parsed(data, Names) is None


def test_names_are_read_as_they_were_written() -> None:
    assert parsed(written(GOOD), Names) == GOOD
    assert parsed(signed(GOOD.model_dump_json().encode()), Names) == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"format": kept_names.FORMAT + 1},
        {"format": kept_names.FORMAT - 1},
        {"format": True},
        {"table": 2},
        {"table": True},
        {"sequence": -1},
        {"sequence": "1"},
        {"sequence": 2**63},
        {"seed": -1},
        {"seed": 2**64},
        {"drawn": 1},
        {"more": 1},
        {"interfaces": [1]},
        {"services": [["10.0.0.1", 0, "tcp", "web"]]},
        {"services": [["10.0.0.1", 65536, "tcp", "web"]]},
        {"services": [["10.0.0.1", 80, "sctp", "web"]]},
        {"services": [[1, 80, "tcp", "web"]]},
        {"services": [["10.0.0.1", 80, "tcp"]]},
        {"services": [["10.0.0.1", 80, "tcp", 1]]},
        {"servers": [[-1, 0, "10.0.0.1", 80, "a"]]},
        {"servers": [[len(GOOD.services), 0, "10.0.0.1", 80, "a"]]},
        {"servers": [[0, 2**32, "10.0.0.1", 80, "a"]]},
        {"servers": [[0, 0.5, "10.0.0.1", 80, "a"]]},
        {"servers": [[0, 0, None, 80, "a"]]},
    ],
    ids=str,
)
def test_names_with_a_value_that_none_has_are_none(change: dict[str, Any]) -> None:
    """A right checksum says that a file is whole, not that it makes sense."""
    assert parsed(signed(json.dumps({**json.loads(GOOD.model_dump_json()), **change}).encode()), Names) is None


@pytest.mark.parametrize("key", Names.model_fields)
def test_names_without_a_key_are_none(key: str) -> None:
    rest = {name: value for name, value in json.loads(GOOD.model_dump_json()).items() if name != key}
    assert parsed(signed(json.dumps(rest).encode()), Names) is None


@given(st.binary(max_size=300))
def test_names_of_random_bytes_are_none(data: bytes) -> None:
    assert parsed(data, Names) is None
    assert parsed(signed(data.replace(b"\n", b"")), Names) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Names.model_fields]), JSON, min_size=1))
def test_names_with_other_values_are_names_or_none(change: dict[str, Any]) -> None:
    """Never an error; and what is believed can be translated."""
    found = parsed(signed(json.dumps({**json.loads(GOOD.model_dump_json()), **change}).encode()), Names)
    if found is not None:
        assert parsed(written(found), Names) == found
        translations(found, make_snapshot())


@given(st.integers(0, len(GOOD.model_dump_json()) - 1), st.binary(max_size=3), st.integers(0, 5))
def test_names_that_are_mutated_are_names_or_none(at: int, put: bytes, cut: int) -> None:
    line = GOOD.model_dump_json().encode()
    found = parsed(signed((line[:at] + put + line[at + cut :]).replace(b"\n", b"")), Names)
    if found is not None:
        translations(found, make_snapshot())


def test_names_nested_deeply_or_beyond_the_most_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(signed(b"[" * 100_000), Names) is None
    assert parsed(signed(b'{"sequence":' + b"9" * 10_000 + b"}"), Names) is None
    data = written(GOOD)
    for module in (kept, kept_names):
        monkeypatch.setattr(module, "MOST_BYTES", len(data) - 1)
    assert parsed(data, Names) is None
    (folder / NAMES[0]).write_bytes(data)
    (folder / NAMES[0]).chmod(0o600)
    state = StateDirectory.open(folder)
    assert state.left is None
    state.close()


def test_table_that_is_damaged_is_given_up_and_the_next_begins_anew(folder: Path) -> None:
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    (folder / TABLES[0]).write_bytes(b"not a table" * 100)
    after, box, found = started(folder)
    assert found == (0, 0, "the flows that were left are lost: it is no flow table")
    open_flow(box)
    after.close()
    last, _, found = started(folder)
    assert found == (1, 0, None)
    last.close()


def test_table_without_names_is_told_and_flows_begin_empty(folder: Path) -> None:
    """Lost names are trouble; a directory that was never used is none."""
    state, box, found = started(folder)
    assert found == Kept()
    open_flow(box)
    state.close()
    for name in NAMES:
        (folder / name).unlink()
    after, _, found = started(folder)
    assert found == (0, 0, "what was left cannot be read: flows begin empty")
    after.close()


class Unreadable:
    """An engine whose reads fail."""

    def keep_flows(self, *_: object) -> tuple[int, int]:
        """Fail as a read does."""
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_table_that_cannot_be_read_now_is_left_to_the_next(folder: Path) -> None:
    """Nothing is written: the start fails, and one that can read it has all flows."""
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    before = {name: (folder / name).read_bytes() for name in (*TABLES, *NAMES)}
    failing = StateDirectory.open(folder)
    failing.new_table(CAPACITY)
    with pytest.raises(LbError, match="cannot be read now: input/output error: start again, or remove /dev/shm"):
        failing.keep(Unreadable(), make_snapshot(), box.now)  # type: ignore[arg-type]
    failing.note(turned(make_snapshot()))
    failing.close()
    assert {name: (folder / name).read_bytes() for name in before} == before
    last, _, found = started(folder)
    assert found == (1, 0, None)
    last.close()


@pytest.mark.usefixtures("short_wait")
def test_second_process_is_refused_while_the_first_runs(folder: Path) -> None:
    state = StateDirectory.open(folder)
    with pytest.raises(LbError, match="another balancer uses the state directory"):
        StateDirectory.open(folder)
    state.close()
    StateDirectory.open(folder).close()


def test_lock_of_a_process_that_is_ending_is_waited_for(folder: Path) -> None:
    state = StateDirectory.open(folder)
    ending = threading.Timer(0.1, state.close)
    ending.start()
    StateDirectory.open(folder).close()
    ending.join()


def test_folder_that_others_may_write_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(LbError, match="others may write there"):
        StateDirectory.open(folder)


@AS_ROOT
def test_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, 65534, 65534)
    with pytest.raises(LbError, match="is another user's"):
        StateDirectory.open(folder)


@AS_ROOT
def test_folder_that_others_can_replace_is_refused(folder: Path) -> None:
    """The way to it is judged as that of a configuration; nothing is made."""
    folder.chmod(0o777)
    with pytest.raises(LbError, match=r"can be written by others \(mode 0777\): chmod"):
        StateDirectory.open(folder / "new" / "state")
    assert [*folder.iterdir()] == []
    folder.chmod(0o1777)
    StateDirectory.open(folder / "state").close()


def test_folder_that_is_made_is_the_owners_alone(folder: Path) -> None:
    """What leads there may have other users' files, too: a control socket beside it."""
    StateDirectory.open(folder / "new" / "state").close()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder / "new", folder / "new" / "state")] == [0o755, 0o700]
    assert {stat.S_IMODE(each.stat().st_mode) for each in (folder / "new" / "state").iterdir()} == {0o600}


def test_symbolic_link_in_place_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "real").mkdir(0o700)
    (folder / "state").symlink_to(folder / "real")
    with pytest.raises(LbError, match="not a directory"):
        StateDirectory.open(folder / "state")


@pytest.mark.parametrize("name", ["lock", TABLES[1], NAMES[0]])
@pytest.mark.parametrize("kind", ["open to others", "linked twice", "fifo", "symbolic link", "another's"])
def test_file_that_another_may_have_made_is_refused(folder: Path, name: str, kind: str) -> None:
    StateDirectory.open(folder).close()
    file, other = folder / name, folder / "other"
    if kind == "open to others":
        file.chmod(0o640)
    elif kind == "linked twice":
        other.hardlink_to(file)
    elif kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give files to others")
        os.chown(file, 65534, 65534)
    else:
        file.rename(other)
        os.mkfifo(file, 0o600) if kind == "fifo" else file.symlink_to(other)
    with pytest.raises(LbError, match=f"remove {folder}|too many levels of symbolic links"):
        StateDirectory.open(folder)


def test_folder_on_a_disk_is_refused_and_nothing_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "IN_MEMORY", frozenset())
    with pytest.raises(LbError, match=r"is on tmpfs, not in memory: choose one in /run or /dev/shm"):
        StateDirectory.open(folder / "state")
    assert not (folder / "state").exists()


def rooms(monkeypatch: pytest.MonkeyPatch, *found: int) -> None:
    """Have the file system tell these free bytes, one after another."""
    rest = iter(found)
    monkeypatch.setattr(state_files, "free_bytes", lambda _: next(rest))


def test_first_table_needs_room_for_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory.open(folder)
    both = NEEDED + TABLE
    rooms(monkeypatch, both - 1, both)
    with pytest.raises(LbError, match=f"^{both} bytes are needed in .* for two flow tables, .* are free: make "):
        state.new_table(CAPACITY)
    state.new_table(CAPACITY)
    state.close()


def test_table_that_was_left_is_given_up_for_want_of_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names go first; a start with room in between has lost nothing."""
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    rooms(monkeypatch, NEEDED - 1, NEEDED)
    after, box, found = started(folder)
    trouble = "there is no room for a table beside the one that was left: its flows are lost"
    assert found == (0, 0, trouble)
    assert sizes(folder, TABLES)[0] == 0
    open_flow(box)
    after.close()
    rooms(monkeypatch, NEEDED, NEEDED)
    last, _, found = started(folder)
    assert found == (1, 0, None)
    last.close()


def test_table_that_finds_no_room_at_all_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(folder)[0].close()
    rooms(monkeypatch, 0, NEEDED - 1)
    with pytest.raises(LbError, match=f"^{NEEDED} bytes are needed in .* for the flow table; "):
        started(folder)
    assert sizes(folder, NAMES) == [0, 0]


def test_file_system_without_a_limit_has_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory.open(folder)
    real = os.statvfs(folder)
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result((*real[:2], 0, 0, 0, *real[5:])))
    state.new_table(CAPACITY)
    state.close()


def test_trouble_with_the_files_is_an_error_of_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> os.statvfs_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    state = StateDirectory.open(folder)
    monkeypatch.setattr(os, "fstatvfs", refuse)
    with pytest.raises(LbError, match=f"state directory {folder}: permission denied"):
        state.new_table(CAPACITY)
    state.close()


def full(descriptor: int, data: bytes, at: int) -> int:
    """Write as a file system does that has room for ten bytes more."""
    if at >= 10:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return PWRITE(descriptor, data[: 10 - at], at)


def lying(descriptor: int, data: bytes, at: int) -> int:
    """Write less than is said."""
    PWRITE(descriptor, data[:-1], at)
    return len(data)


PWRITE = os.pwrite


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (full, "no space left on device: make room on the file system"),
        (lying, "input/output error"),
        (lambda *_: 0, "input/output"),
    ],
)
def test_names_that_cannot_be_written_are_told_once_and_none_are_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, write: Any, why: str
) -> None:
    """The publication goes on; once there is room again, flows are kept again."""
    state, box, _ = started(folder)
    open_flow(box)
    monkeypatch.setattr(os, "pwrite", write)
    state.note(turned(make_snapshot()))
    state.note(make_snapshot())
    assert sizes(folder, NAMES) == [0, 0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert why in record.message
    monkeypatch.setattr(os, "pwrite", PWRITE)
    state.note(make_snapshot())
    state.close()
    after, _, found = started(folder)
    assert found == (1, 0, None)
    after.close()


def test_table_that_was_left_is_there_until_the_names_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(folder)[0].close()
    seen: list[int] = []
    real = state_files.write_whole

    def write(descriptor: int, data: bytes) -> None:
        seen.append(sizes(folder, TABLES)[0])
        real(descriptor, data)

    monkeypatch.setattr(state_files, "write_whole", write)
    started(folder)[0].close()
    assert len(seen) == 2
    assert min(seen) > 0
    assert sizes(folder, TABLES)[0] == 0


def test_publication_without_another_meaning_makes_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _, _ = started(folder)
    monkeypatch.setattr(Names, "of", None)
    state.note(make_snapshot(weights=(3, 2, 1)))
    state.close()


@pytest.mark.parametrize(("drawn_seed", "left"), [(1, 1), (None, None), (2, None)])
def test_seed_stays_only_when_it_was_drawn(folder: Path, drawn_seed: int | None, left: int | None) -> None:
    """One of a configuration, at the start or since a reload, ends with it."""
    snapshot = dataclasses.replace(make_snapshot(), seed=1)
    started(folder, snapshot, drawn_seed)[0].close()
    state = StateDirectory.open(folder)
    assert state.seed_left == left
    state.close()


CONFIG = """
workers = {workers}
[[interface]]
name = "eth0"
[[service]]
name = "echo"
address = "198.18.1.100"
port = 9876
  [[service.server]]
  name = "server1"
  address = "198.18.2.2"
  port = 9876
"""


def config(workers: int) -> Config:
    """Return a configuration."""
    return parse(CONFIG.format(workers=workers))


@pytest.mark.parametrize("asked", ["--state", "flows.snapshot"])
def test_state_directory_is_refused_where_flows_are_not_kept(asked: str) -> None:
    """Else a later process would believe a table that is older than it thinks."""
    require_kept_flows(config(1), load_backend("rust"), asked)
    with pytest.raises(LbError, match=f"backend python keeps no flows .*: leave out {asked}, or use backend rust"):
        require_kept_flows(config(1), load_backend("python"), asked)
    with pytest.raises(LbError, match=f"several workers keep no flows .*: leave out {asked}, or use workers = 1"):
        require_kept_flows(config(2), load_backend("rust"), asked)


def test_table_without_room_is_refused_before_it_is_made(folder: Path) -> None:
    state = StateDirectory.open(folder)
    room = os.statvfs(folder)
    with pytest.raises(LbError, match="bytes are needed in"):
        state.new_table(room.f_bavail * room.f_frsize // kept.FLOW_BYTES // 2 + 1)
    assert sizes(folder, TABLES) == [0, 0]
    state.close()


def test_promise_of_bytes_per_flow_is_that_of_the_table(folder: Path) -> None:
    state, _, _ = started(folder)
    size = (folder / TABLES[0]).stat().st_size
    assert CAPACITY * kept.FLOW_BYTES < size <= CAPACITY * kept.FLOW_BYTES + kept.MORE_BYTES
    state.close()


def test_ids_that_mean_nothing_now_are_translated_to_none() -> None:
    names = Names.of(make_snapshot(), 1, 0)
    empty = dataclasses.replace(make_snapshot(), services=(), servers=(), interfaces=())
    ids = translations(names, empty)
    assert (ids.rows, ids.interfaces, ids.services) == ([None] * 12, [None] * 2, [None] * 4)


def test_backends_that_keep_no_flows_say_so(folder: Path) -> None:
    with (folder / "file").open("w+b") as file:
        with pytest.raises(LbError, match="backend python keeps no flows"):
            Box("python", table_fd=file.fileno())
        with pytest.raises(LbError, match="backend python keeps no flows"):
            Box("python").path.keep_flows(file.fileno(), (), (), 1)
        for call in (Box("python").path.carried, Box("python").path.leave):
            with pytest.raises(LbError, match="backend python keeps no flows"):
                call()
        with pytest.raises(LbError, match="backend python keeps no flows"):
            Box("python").path.carry({"totals": {}, "services": [], "servers": [], "io": {}}, (), ())
        with pytest.raises(LbError, match="several workers keep no flows"):
            Sharded(type(Box("python").path), 2, 16, bytes(16), 1).keep_flows(file.fileno(), (), (), 1)


def test_names_without_room_beside_two_tables_are_written_once_the_old_one_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(folder)[0].close()
    write, full = state_files.write_whole, iter([True])

    def write_when_there_is_room(descriptor: int, data: bytes) -> None:
        if next(full, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, data)

    monkeypatch.setattr(state_files, "write_whole", write_when_there_is_room)
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    last, _, found = started(folder)
    assert found == (1, 0, None)
    last.close()


def test_table_that_was_left_is_given_up_for_want_of_memory(folder: Path) -> None:
    """Once: with nothing left there is nothing to give up."""
    state, box, _ = started(folder)
    open_flow(box)
    state.close()
    again = StateDirectory.open(folder)
    assert again.give_up("no memory")
    assert not again.give_up("no memory")
    assert sizes(folder, NAMES) == [0, 0]
    again.close()


class Running:
    """A running balancer that shares its lock; `lb.control.predecessor`."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state

    def take(self, what: str) -> int | None:
        """Return a descriptor of its own, as one that came over a socket is."""
        return os.dup(self.state.descriptors()[what])


def test_table_of_a_running_one_whose_names_cannot_be_read_is_not_touched(folder: Path) -> None:
    """Rule 23.2, taking over: nothing tells which of the tables it uses, and packets come to it."""
    state, box, _ = started(folder)
    open_flow(box)
    before = (folder / TABLES[0]).read_bytes()
    for name in NAMES:
        os.truncate(folder / name, 0)
    with pytest.raises(LbError, match="take-over: what the running balancer's flows mean cannot be read: restart it"):
        StateDirectory.open(folder, Running(state))  # type: ignore[arg-type]
    assert (folder / TABLES[0]).read_bytes() == before
    state.close()


def test_table_of_a_running_one_is_not_given_up_for_want_of_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 23.2, taking over: the successor is refused instead."""
    state, box, _ = started(folder)
    open_flow(box)
    before = (folder / TABLES[0]).read_bytes()
    successor = StateDirectory.open(folder, Running(state))  # type: ignore[arg-type]
    rooms(monkeypatch, NEEDED - 1)
    with pytest.raises(LbError, match=r"bytes are needed in .* for the flow table"):
        successor.new_table(CAPACITY)
    assert not successor.give_up("no memory")
    assert (folder / TABLES[0]).read_bytes() == before
    successor.close()
    state.close()


def test_last_names_stand_whichever_thread_writes_them(folder: Path) -> None:
    """Once there is room, what packets use is written, not what they used at the start."""
    state, _, _ = started(folder)
    state.note(turned(make_snapshot()))
    state._noted = None
    state.forget_left()
    state.close()
    again = StateDirectory.open(folder)
    assert again.left is not None
    assert again.left.interfaces == Names.of(turned(make_snapshot()), 0, 0).interfaces
    again.close()
