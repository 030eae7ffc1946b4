"""
Flows in a file, for after a reboot: what `lb flows dump` writes and `lb flows load` reads, snapshots on a disk, and
what is not believed (rule 23.4, flows over a reboot).
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import Box, from_client, from_server, make_snapshot, open_flow, request, response
from hypothesis import given
from hypothesis import strategies as st
from served import ServedBalancer, serving
from test_kept import turned
from test_operate import lb

from lb.backends.base import ServerIds
from lb.control import flow_file, kept_names, state_files
from lb.control.api import stored
from lb.control.api.client import change
from lb.control.kept_names import Names, NamesPart, ServerRow, ServiceRow
from lb.control.snapshots import PLACES, SnapshotDirectory
from lb.control.stored_flows import Loaded, StoredFlows
from lb.errors import LbError, RemoteError
from lb.model.snapshot import Snapshot

CAPACITY = 64
PORTS = range(40000, 40020)
REBOOT_NS = 7 * 10**9


class Balancer:
    """A data path with a snapshot, and its flows as they are stored. `booted_ns`: what its clock has more."""

    def __init__(self, snapshot: Snapshot | None = None, capacity: int = CAPACITY, backend: str = "rust") -> None:
        self.snapshot = snapshot or make_snapshot()
        self.box = Box(backend, self.snapshot, capacity=capacity)
        self.flows = StoredFlows(self, self)

    def flow_layout(self) -> str:
        return self.box.path.flow_layout()

    def copy_flows(self, place: int) -> tuple[bytes, int | None]:
        return self.box.path.copy_flows(place, self.box.now)

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None]
    ) -> tuple[int, int]:
        return self.box.path.load_flows(rows, servers, interfaces, self.box.now)


@pytest.fixture
def before() -> tuple[Balancer, dict[int, int]]:
    """Give a balancer with established flows, and the server of each by client port."""
    balancer = Balancer()
    return balancer, {port: open_flow(balancer.box, port=port) for port in PORTS}


def file_of(flows: flow_file.Source, sequence: int = 0) -> io.BytesIO:
    """Return a file of all flows."""
    file = io.BytesIO()
    flow_file.write(flows, file, sequence)
    return file


def test_flows_go_on_at_their_servers_by_another_clock_and_other_ids(before: tuple[Balancer, dict[int, int]]) -> None:
    """Rule 23.4, flows over a reboot: each client's next packet goes to the server it was with; none is new."""
    balancer, servers = before
    after = Balancer(turned(make_snapshot()))
    after.box.now = REBOOT_NS
    assert after.flows.load_all(flow_file.read(file_of(balancer.flows))) == Loaded(20, 0)
    for port, server in servers.items():
        result = after.box.send(from_client(request("A", 1001, 5001, b"more", port=port)), 1)
        assert (result.verdict, result.server) == ("forward", f"server{server + 1}")
    assert after.box.path.counters()["table"]["entries"] == 20


def test_idle_timers_go_on_as_if_no_time_had_passed(before: tuple[Balancer, dict[int, int]]) -> None:
    """Rule 23.4, flows over a reboot: what was idle for 2 s of its 100 has 98 left by any clock."""
    balancer, _ = before
    balancer.box.after(2)
    after = Balancer()
    after.box.now = REBOOT_NS
    after.flows.load_all(flow_file.read(file_of(balancer.flows)))
    assert {flow.idle_s for flow in after.box.path.flows(after.box.now)} == {2}
    established_s = after.snapshot.timeouts.established_ns // 10**9
    after.box.after(established_s - 3)
    after.box.tick()
    assert len(after.box.states()) == 20
    after.box.after(2)
    after.box.tick()
    assert after.box.states() == []


@pytest.mark.parametrize("progress", [0, 1000, 1_000_000_000], ids=["none", "little", "much"])
@pytest.mark.parametrize("first", ["client", "server"])
def test_connection_that_has_gone_on_since_is_followed_again(first: str, progress: int) -> None:
    """
    Rule 23.4, flows over a reboot: whichever side speaks first, far from the numbers of the dump, one exchange later
    the numbers count again: a FIN of each side closes the flow, and a RST elsewhere is dropped.
    """
    balancer = Balancer()
    server = open_flow(balancer.box)
    after = Balancer()
    after.box.now = REBOOT_NS
    after.flows.load_all(flow_file.read(file_of(balancer.flows)))
    box, client_at, server_at = after.box, 1001 + progress, 5001 + progress

    def speak(side: str) -> None:
        nonlocal client_at, server_at
        if side == "client":
            frame = from_client(request("PA", client_at, server_at, b"hello"))
            client_at += 5
        else:
            frame = from_server(response("PA", server_at, client_at, b"hello"), server)
            server_at += 5
        assert box.send(frame).verdict == "forward"

    other = "server" if first == "client" else "client"
    for side in (first, other, first, other):
        box.after(1)
        speak(side)
        assert box.path.flows(box.now)[0].idle_s == 0, f"a segment of the {side} counts"
    assert box.send(from_client(request("R", client_at + 2_000_000_000))).reason == "rst_window"
    box.send(from_client(request("FA", client_at, server_at)))
    box.send(from_server(response("FA", server_at, client_at + 1), server))
    box.send(from_client(request("A", client_at + 1, server_at + 1)))
    assert box.states() == ["closing"]


@pytest.mark.parametrize("is_seen", [False, True], ids=["one-way", "established"])
def test_flow_whose_replies_come_to_any_balancer_is_there_again_wherever_its_client_is(is_seen: bool) -> None:
    """Rule 8.23, replies through any balancer: it is kept by what its client sends; no guess closes it."""
    snapshot = make_snapshot(any_replies=True)
    balancer = Balancer(snapshot)
    server = open_flow(balancer.box) if is_seen else 0
    if not is_seen:
        balancer.box.send(from_client(request("S", 1000)))
        balancer.box.send(from_client(request("A", 1001, 5001)))
    else:
        balancer.box.send(from_server(response("A", 5001, 1001), server))
    state = "established" if is_seen else "one-way"
    assert balancer.box.states() == [state]
    after = Balancer(snapshot)
    after.flows.load_all(flow_file.read(file_of(balancer.flows)))
    after.box.after(1)
    after.box.send(from_client(request("PA", 2_000_000_001, 3_000_000_001, b"hello")))
    assert (after.box.states(), after.box.path.flows(after.box.now)[0].idle_s) == ([state], 0)
    after.box.send(from_client(request("FA", 2_000_000_006, 3_000_000_001)))
    assert after.box.states() == [state]


def test_reset_of_an_idle_flow_after_a_load_has_the_numbers_that_both_ends_expect() -> None:
    """Rule 15, resetting flows: what each side has acknowledged is known still."""
    balancer = Balancer()
    open_flow(balancer.box)
    after = Balancer()
    after.flows.load_all(flow_file.read(file_of(balancer.flows)))
    assert after.box.path.reset_flows(None, 10, after.box.now) == 1
    expected = balancer.box.path.reset_flows(None, 10, balancer.box.now)
    assert expected == 1

    def numbers(balancer: Balancer) -> list[tuple[bytes, ...]]:
        """Return source port and sequence number of each frame."""
        frames = [frame for _, frame, _ in balancer.box.path.tick(balancer.box.now)]
        return [(frame[34:36], frame[38:42]) for frame in frames]

    assert numbers(after) == numbers(balancer) != []


def test_connection_that_is_being_opened_is_left_out(before: tuple[Balancer, dict[int, int]]) -> None:
    balancer, _ = before
    balancer.box.send(from_client(request("S", 1000, port=50000)))
    assert "syn-sent" in balancer.box.states()
    after = Balancer()
    assert after.flows.load_all(flow_file.read(file_of(balancer.flows))) == Loaded(20, 0)


def test_flows_that_are_there_stay_and_servers_that_are_gone_lose_theirs(
    before: tuple[Balancer, dict[int, int]],
) -> None:
    """Rule 23.4, flows over a reboot: loading twice changes nothing; all that is not loaded is counted."""
    balancer, servers = before
    file = flow_file.read(file_of(balancer.flows))
    assert balancer.flows.load_all(file) == Loaded(0, 20)
    assert len(balancer.box.states()) == 20
    base = make_snapshot()
    fewer = dataclasses.replace(base, servers=(*base.servers[:2], None, *base.servers[3:]))
    lost = list(servers.values()).count(2)
    assert Balancer(fewer).flows.load_all(file) == Loaded(20 - lost, lost)
    assert Balancer(capacity=5).flows.load_all(file) == Loaded(5, 15)


def test_active_flows_are_counted_for_their_servers(before: tuple[Balancer, dict[int, int]]) -> None:
    """And a server that has lost all is free again."""
    balancer, servers = before
    after = Balancer()
    after.flows.load_all(flow_file.read(file_of(balancer.flows)))
    counts = [list(servers.values()).count(number) for number in range(3)]
    assert after.box.path.active_flows(range(3)) == counts
    after.box.path.reset_flows(None, 100, after.box.now)
    assert after.box.path.active_flows(range(3)) == [0, 0, 0]


def test_table_of_several_pages_is_copied_whole() -> None:
    """What a call returns has an end; the next one begins there."""
    one = Balancer()
    open_flow(one.box)
    row, _ = one.copy_flows(0)
    names = one.flows.names()
    # The client's port is behind its address.
    rows = b"".join(row[:16] + port.to_bytes(2, sys.byteorder) + row[18:] for port in range(1, 20_001))
    many = Balancer(capacity=30_000)
    assert many.flows.load(many.flow_layout(), names, rows) == Loaded(20_000, 0)
    page, following = many.copy_flows(0)
    assert following is not None
    assert len(page) // len(row) == following
    again = Balancer(capacity=30_000)
    assert again.flows.load_all(flow_file.read(file_of(many.flows))) == Loaded(20_000, 0)


def test_row_has_the_id_of_its_server_where_the_command_looks() -> None:
    """`lb flows load` sends what the ids in its rows mean, and no others."""
    balancer = Balancer()
    size = stored.row_bytes(balancer.flow_layout())
    for port in PORTS:
        server = open_flow(balancer.box, port=port)
        rows, _ = balancer.copy_flows(0)
        found = [stored.SERVER.unpack_from(rows, at + stored.SERVER_AT)[0] for at in range(0, len(rows), size)]
        assert found[-1] == server


@given(st.data())
def test_damaged_file_is_refused(data: st.DataObject) -> None:
    """Rule 23.4, flows over a reboot: any byte that is another, any end that is missing."""
    balancer = Balancer()
    for port in PORTS[:3]:
        open_flow(balancer.box, port=port)
    content = bytearray(file_of(balancer.flows).getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    with pytest.raises(LbError, match=r"no file of flows|another version|damaged or cut short"):
        flow_file.read(io.BytesIO(bytes(content)))


@pytest.mark.parametrize("content", [b"", b"\n", b"flowlb", b"x" * 1000, flow_file.HEAD + b"4 104 little\n"])
def test_file_of_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(LbError, match=r"no file of flows|damaged"):
        flow_file.read(io.BytesIO(content))


def with_checksum(content: bytes) -> io.BytesIO:
    """Return a file whose checksum is right, whatever is in it."""
    hashed = flow_file._Hashed(file := io.BytesIO())
    hashed.write(content)
    file.write(hashed.checksum())
    return file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"flowlb flows 1 4 104 little\n", "cut short"),
        (b"flowlb flows 1 4 104 little\n\xff\xff\xff\xff", "cut short"),
        (b"flowlb flows 1 4 104 little\n\x08\x00\x00\x00abc", "cut short"),
        (b"flowlb flows 1 4 104 little\n\x00\x00\x00\x00{}\n", "what its ids mean cannot be read"),
        (b"flowlb flows 2 4 104 little\n\x00\x00\x00\x00{}\n", "another version"),
    ],
)
def test_file_with_a_right_checksum_is_not_believed_for_that(content: bytes, message: str) -> None:
    with pytest.raises(LbError, match=message):
        flow_file.read(with_checksum(content))


def test_file_of_another_layout_is_refused(before: tuple[Balancer, dict[int, int]]) -> None:
    balancer, _ = before
    contents = flow_file.read(file_of(balancer.flows))
    after = Balancer()
    for layout in ("3 104 little", "4 112 little", "4 104 big", ""):
        with pytest.raises(LbError, match="laid out as those of another version of lb"):
            after.flows.load_all(contents._replace(layout=layout))
    assert after.box.states() == []


def test_backend_without_rows_says_so() -> None:
    balancer = Balancer(backend="python")
    with pytest.raises(LbError, match="backend python keeps no flows over a restart: use backend rust"):
        file_of(balancer.flows)
    with pytest.raises(LbError, match="use backend rust"):
        balancer.load_flows(b"", [], [])


WEB = ServiceRow("198.18.1.100", 80, "tcp", "web")
SERVER1 = ServerRow(0, 0, "198.18.1.31", 80, "server1")
SERVER2 = ServerRow(0, 1, "198.18.1.32", 80, "server2")
NAMES = Names(
    format=kept_names.FORMAT,
    sequence=0,
    table=0,
    memory="file",
    seed=1,
    drawn=False,
    interfaces=("eth0",),
    services=(WEB, None),
    servers=(SERVER1, None),
)


def test_names_of_ids_that_came_or_went_meanwhile_are_all_known() -> None:
    """An id that meant two things makes the copy useless: which rows mean which is not known."""
    more = NAMES.model_copy(update={"servers": (None, SERVER2, None)})
    both = flow_file.merged(NAMES, more)
    assert both is not None
    assert both.servers == (SERVER1, SERVER2, None)
    reused = NAMES.model_copy(update={"servers": (SERVER2,)})
    assert flow_file.merged(NAMES, reused) is None
    source = SimpleNamespace(names=iter([NAMES, reused]).__next__, layout=lambda: "4 104 little", rows=no_rows)
    with pytest.raises(LbError, match="were replaced while their flows were copied: try again"):
        file_of(source)


def no_rows(_place: int) -> tuple[bytes, int | None]:
    return b"", None


def test_part_of_the_names_has_what_some_rows_need() -> None:
    part = NamesPart.of(NAMES, [0, 1, 99])
    assert part.names().servers == (SERVER1,)
    assert part.names().services == (WEB,)


# Snapshots.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def directory(folder: Path) -> Iterator[SnapshotDirectory]:
    opened = SnapshotDirectory.open(folder)
    yield opened
    opened.close()


def loaded(folder: Path) -> Loaded | None:
    """Return what a new process loads; None: there is nothing."""
    opened = SnapshotDirectory.open(folder)
    latest = opened.latest()
    found = None if latest is None else Balancer().flows.load_all(latest.contents)
    opened.close()
    return found


def test_latest_snapshot_is_read_by_the_next_process(folder: Path) -> None:
    """Rule 23.4, flows over a reboot: whichever of the two it is in."""
    balancer = Balancer()
    for count in range(1, 6):
        opened = SnapshotDirectory.open(folder)
        opened.latest()
        open_flow(balancer.box, port=PORTS[count])
        opened.write(balancer.flows)
        opened.close()
        assert loaded(folder) == Loaded(count, 0)
    assert {(folder / place).stat().st_mode & 0o777 for place in PLACES} == {0o600}


def test_snapshot_of_a_process_that_read_none_is_newer_than_all(folder: Path) -> None:
    """Rule 23.4, flows over a reboot: its flows came from the memory of the one before, or that one still ran."""
    balancer = Balancer()
    for count in range(1, 5):
        opened = SnapshotDirectory.open(folder)
        for _ in range(4 - count):
            opened.write(balancer.flows)
        open_flow(balancer.box, port=PORTS[count])
        opened.write(balancer.flows)
        opened.close()
        assert loaded(folder) == Loaded(count, 0)


@pytest.mark.parametrize("place", PLACES)
def test_snapshot_that_is_damaged_leaves_the_other(
    folder: Path, before: tuple[Balancer, dict[int, int]], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that stopped while one was written has the one before; the log says which is not used."""
    opened = SnapshotDirectory.open(folder)
    opened.write(before[0].flows)
    opened.write(before[0].flows)
    opened.close()
    content = (folder / place).read_bytes()
    (folder / place).write_bytes(content[: len(content) // 2])
    assert loaded(folder) == Loaded(20, 0)
    assert f"{place}: it is damaged or cut short: nothing of it is used" in caplog.text


def test_no_snapshot_is_nothing_to_load(folder: Path) -> None:
    assert loaded(folder) is None


def test_disk_that_is_full_costs_one_line_and_not_the_snapshot_before(
    folder: Path,
    directory: SnapshotDirectory,
    before: tuple[Balancer, dict[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 23.4, flows over a reboot: once there is room again, it goes on; another want of room is told again."""
    balancer, _ = before
    directory.write(balancer.flows)
    full = OSError(28, "No space left on device")

    def no_room(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(state_files.Writer, "write", no_room)
        for _ in range(3):
            directory.write(balancer.flows)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        f"{folder}: no snapshot of the flows can be written, the one before stays: no space left on device: "
        "make room on the file system, or make it larger"
    ]
    directory.close()
    assert loaded(folder) == Loaded(20, 0)


def test_snapshots_are_written_again_and_again(
    directory: SnapshotDirectory, before: tuple[Balancer, dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    async def run() -> None:
        job = asyncio.create_task(directory.keep_writing(before[0].flows, 0.001))
        while len(written) < 3:
            await asyncio.sleep(0.001)
        job.cancel()

    monkeypatch.setattr(directory, "_write", written.append)
    asyncio.run(asyncio.wait_for(run(), 20))
    assert written[:3] == [before[0].flows] * 3


def test_second_process_with_the_same_directory_is_refused(
    directory: SnapshotDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "LOCK_S", 0)
    with pytest.raises(LbError, match="another balancer uses the snapshot directory"):
        SnapshotDirectory.open(directory.path)


def test_directory_that_others_may_write_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LbError, match=f"snapshot directory {re.escape(str(folder))}"):
        SnapshotDirectory.open(folder)


def test_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LbError, match=r"snapshot directory .*: not a directory"):
        SnapshotDirectory.open(tmp_path / "file")


# The commands.


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedBalancer]:
    made = ServedBalancer(tmp_path, "rust")
    with serving(made):
        yield made


def established(served: ServedBalancer) -> dict[int, str]:
    """Return the server of each flow by client port."""
    return {flow.client_port: flow.server for flow in served.find_flows(0, 1000, None, None, None)[1]}


def open_dns(served: ServedBalancer, count: int) -> None:
    for port in range(1, count + 1):
        served.open("198.18.1.21", port, "dns")


def test_dump_and_load_restore_flows_and_listing_stays(served: ServedBalancer, tmp_path: Path) -> None:
    """Rule 23.4, flows over a reboot: more flows than fit one request."""
    open_dns(served, 450)
    before, file = established(served), tmp_path / "flows"
    done = lb(served.control, "flows", "dump", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"450 flows written to {file}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "flows" in path.name] == ["flows"]
    served.reset_some(1000)
    assert established(served) == {}
    done = lb(served.control, "flows", "load", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "450 flows loaded, 0 dropped\n")
    assert established(served) == before
    assert lb(served.control, "flows", "load", str(file)).stderr == "0 flows loaded, 450 dropped\n"
    assert lb(served.control, "flows", "--limit", "1").stdout.strip().endswith("flows 1 to 1 of 450")


def test_load_of_a_wrong_file_exit_1_one_line(served: ServedBalancer, tmp_path: Path) -> None:
    file = tmp_path / "flows"
    file.write_text("nonsense")
    done = lb(served.control, "flows", "load", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"lb: {file}: it is no file of flows\n")
    open_dns(served, 1)
    lb(served.control, "flows", "dump", str(file))
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    done = lb(served.control, "flows", "load", str(file))
    assert (done.returncode, done.stderr) == (1, f"lb: {file}: it is damaged or cut short\n")


def test_dump_where_no_file_can_be_made_exit_1_and_leaves_nothing(served: ServedBalancer, tmp_path: Path) -> None:
    done = lb(served.control, "flows", "dump", str(tmp_path / "none" / "flows"))
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert lb(tmp_path / "none.sock", "flows", "dump", str(tmp_path / "flows")).returncode == 5
    assert not [path.name for path in tmp_path.iterdir() if "flows" in path.name]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"layout": 1, "names": {}, "rows": ""},
        {"layout": "x", "names": {}, "rows": "!"},
        {"layout": "x", "names": {"interfaces": [], "services": [], "servers": [[0, [0, 0, "x", 1, "y"]]]}, "rows": ""},
        {
            "layout": "x",
            "names": {"interfaces": [], "services": [], "servers": [[2**20, [0, 0, "x", 1, "y"]]]},
            "rows": "",
        },
        {"rows": "", "more": 1},
    ],
)
def test_load_request_with_nonsense_is_refused(served: ServedBalancer, parameters: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        change(served.control, "/flows/load", parameters)


def test_row_bytes_of_no_layout_is_refused() -> None:
    for layout in ("", "4", "4 x little", "4 3 little"):
        with pytest.raises(LbError, match="is no layout of flows"):
            stored.row_bytes(layout)
