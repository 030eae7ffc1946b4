"""The load generator against real sockets of this process: what is a fetch, what a failure, on which connections."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lb.lab.loadgen import figures, plan
from lb.lab.loadgen.engine import play
from lb.lab.loadgen.lines import Load, LoadLine
from lb.lab.loadgen.plan import Options
from lb.lab.loadgen.records import Fetch, LineEnded, LineStarted, Playback, Record, from_json
from lb.lab.testbed.load_clients import PIPES, LoadClients

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
LOADGEN = Path(__file__).parents[2] / "loadgen" / "loadgen.py"
BODY = b"x" * 5000
DEADLINE_S = 20.0


async def good(request: bytes, writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nX-Served-By: server1\r\n\r\n"
    writer.write(head.encode() + BODY)


class Server:
    """A web server in this process: counts connections, remembers requests."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self.connections = 0
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(request)
                await self._respond(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(
    respond: Respond, options: Options, line: tuple[int, float, int] = (100, 0.0, 3)
) -> tuple[list[Record], Server]:
    """Play one line (size, interval, chunks) against a server. Returns the records, and the server."""
    records: list[Record] = []
    server = Server(respond)

    async def both() -> None:
        async with server:
            size, interval_s, chunks = line
            load = Load("test", (LoadLine(0.0, "127.0.0.1", server.port, size, interval_s, chunks),))
            made = plan.make(load, options, ["client1"])
            await play(made, records.append, asyncio.get_running_loop().time())

    asyncio.run(both())
    return records, server


def fetches(records: list[Record]) -> list[Fetch]:
    return [record for record in records if isinstance(record, Fetch)]


@pytest.mark.parametrize(("new_connection", "connections"), [(False, 1), (True, 3)])
def test_connections_are_kept_or_new(new_connection: bool, connections: int) -> None:
    """A line has one HTTP session, as the course's had; or each chunk has a connection of its own."""
    records, server = run(good, Options(new_connection=new_connection))
    assert server.connections == connections
    assert [(fetch.ok, fetch.server, fetch.received) for fetch in fetches(records)] == [(True, "server1", 5000)] * 3
    assert isinstance(records[0], LineStarted)
    assert isinstance(records[-1], LineEnded)
    assert records[-1].fetches == 3


def test_request_is_for_the_courses_chunk_without_cookies() -> None:
    """The path is the course's; nothing is stored or compressed on the way."""

    async def with_cookie(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\n\r\nx")

    _, server = run(with_cookie, Options(), (500, 0.0, 2))
    assert server.requests[0].startswith(b"GET /vod/500Seg2-Frag7 HTTP/1.1\r\n")
    assert all(b"cookie" not in request.lower() for request in server.requests)
    assert all(b"Accept-Encoding: identity" in request for request in server.requests)


@pytest.mark.parametrize("field", ["", "X-Served-By: \r\n", "X-Served-By:   \r\n"])
def test_answer_that_does_not_name_its_server_is_a_success(field: str) -> None:
    """What came whole is a success of an unknown server, told apart from no answer."""

    async def nameless(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n{field}\r\n".encode() + BODY)

    records, _ = run(nameless, Options(), (100, 0.0, 2))
    assert [(fetch.ok, fetch.server) for fetch in fetches(records)] == [(True, "unknown")] * 2
    found = figures.figure(fetches(records))
    assert [(server.name, server.fetches, server.failures) for server in found.servers] == [("unknown", 2, 0)]
    assert (found.total.fetches, found.total.failures, found.fairness) == (2, 0, None)


async def not_found(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nX-Served-By: server2\r\n\r\nnone")


async def redirect(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")


async def short(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nxxx")
    await writer.drain()
    writer.close()


async def empty(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def hang_up(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def nonsense(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"I am no web server\r\n\r\n")


async def silence(request: bytes, writer: asyncio.StreamWriter) -> None:
    pass


async def drip(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        (not_found, "HTTP status 404"),
        (redirect, "HTTP status 302"),
        (short, "short body"),
        (empty, "empty body"),
        (hang_up, "the connection was closed without an answer"),
        (nonsense, "400"),
        (silence, "no answer within 0.2 s"),
        (drip, "no answer within 0.2 s"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_wrong_answer_is_a_failure_and_not_retried(respond: Respond, error: str) -> None:
    """Errors, short bodies and silence are failures with a reason; each is asked for once."""
    records, server = run(respond, Options(timeout_s=0.2), (100, 0.0, 2))
    assert [error in fetch.error for fetch in fetches(records)] == [True, True], fetches(records)
    assert len(server.requests) == 2


def test_kept_connection_closed_meanwhile_is_not_retried_in_silence() -> None:
    """A server that hangs up at the second request on a connection has failed it: no hidden second try."""
    answered = 0

    async def once(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        if answered % 2:
            await good(request, writer)
        else:
            writer.close()

    records, server = run(once, Options(), (100, 0.0, 4))
    assert [fetch.ok for fetch in fetches(records)] == [True, False, True, False]
    assert len(server.requests) == 4


def test_retries_are_counted_in_one_fetch() -> None:
    """With retries a failed fetch is tried again, and says how often."""
    answered = 0

    async def third(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        await (good if answered % 3 == 0 else not_found)(request, writer)

    records, _ = run(third, Options(retries=2), (100, 0.0, 2))
    assert [(fetch.ok, fetch.attempts) for fetch in fetches(records)] == [(True, 3), (True, 3)]


def test_closed_port_is_a_failure() -> None:
    """No server listens: every fetch fails at once."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        load = Load("test", (LoadLine(0.0, "127.0.0.1", placeholder.getsockname()[1], 100, 0.0, 2),))
        records: list[Record] = []

        async def alone() -> None:
            await play(plan.make(load, Options(), ["a"]), records.append, asyncio.get_running_loop().time())

        asyncio.run(alone())
    assert [fetch.error for fetch in fetches(records)] == ["connection refused"] * 2


def test_open_loop_does_not_wait_for_answers() -> None:
    """Fetches start when they are due although the first is not answered before all have come."""
    waiting: list[asyncio.StreamWriter] = []

    async def when_all_are_there(request: bytes, writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)
        if len(waiting) == 5:
            for each in waiting:
                await good(request, each)

    records, _ = run(when_all_are_there, Options(rate_hz=200.0), (100, 0.0, 5))
    done = fetches(records)
    assert [fetch.ok for fetch in done] == [True] * 5
    assert max(fetch.started_s for fetch in done) <= min(fetch.ended_s for fetch in done)
    assert all(fetch.intended_s <= fetch.started_s for fetch in done)


def test_repeat_plays_the_file_again() -> None:
    """Each round starts when the one before has ended."""
    records, _ = run(good, Options(repeat=2), (100, 0.0, 2))
    done = fetches(records)
    assert [(fetch.round, fetch.number) for fetch in done] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert done[1].ended_s <= done[2].started_s


def test_players_watch_and_report() -> None:
    """A player asks for small chunks first, then larger ones, and says what was seen."""
    records, server = run(good, Options(adaptive=True, chunk_s=4.0), (1000, 0.0, 2))
    (playback,) = (record for record in records if isinstance(record, Playback))
    assert [request.split()[1] for request in server.requests] == [b"/vod/100Seg2-Frag7", b"/vod/1000Seg2-Frag7"]
    assert (playback.played_s, playback.stalls, len(playback.points)) == (8.0, (), 2)


def test_echo_exchanges_a_greeting() -> None:
    """An echo service gets a greeting instead of a request."""
    records: list[Record] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def both() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            load = Load("test", (LoadLine(0.0, "127.0.0.1", port, 100, 0.0, 2),))
            await play(plan.make(load, Options(echo=True), ["a"]), records.append, asyncio.get_running_loop().time())

    asyncio.run(both())
    assert [fetch.ok for fetch in fetches(records)] == [True, True]


def play_file(tmp_path: Path, respond: Respond, *options: str, chunks: int = 2) -> tuple[int, str, str]:
    """Run the course's command line against a server. Returns exit status, standard output and error."""

    async def both() -> tuple[int, str, str]:
        async with Server(respond) as server:
            load = tmp_path / "a.load"
            load.write_text(f"0 127.0.0.1 {server.port} 1000 0 {chunks}\n")
            command = [sys.executable, str(LOADGEN), "-e", str(load), *options]
            pipe = asyncio.subprocess.PIPE
            child = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
            output, errors = await asyncio.wait_for(child.communicate(), 60)
            assert child.returncode is not None
            return child.returncode, output.decode(), errors.decode()

    return asyncio.run(both())


def test_program_prints_table_files_and_the_courses_words(tmp_path: Path) -> None:
    """`python3 loadgen.py -e FILE -v -l LOG` as in the course; table, JSON, CSV and a page beside it."""
    paths = {name: tmp_path / name for name in ("log", "o.json", "o.csv", "o.html")}
    options = [
        "-v",
        "-l",
        paths["log"],
        "--json",
        paths["o.json"],
        "--csv",
        paths["o.csv"],
        "--report",
        paths["o.html"],
    ]
    status, output, errors = play_file(tmp_path, good, *map(str, options), "--want", "server1=1,server2=1")
    assert status == 0, errors
    assert re.search(r"server2 +0 +0 +0\.0% +50\.0% +- +- +- +- +0\n", output)
    assert "Fetched 2 1000bitrate chunk with interval 0.000000 sec. Mean fetching time is 0." in errors
    assert errors.endswith("Events finished\n")
    assert paths["log"].read_text().startswith("Command id 0 start\nid: 0, [(0, 0.")
    assert json.loads(paths["o.json"].read_text())["figures"]["total"]["fetches"] == 2
    assert paths["o.csv"].read_text().count("\n") == 3
    assert "<svg" in paths["o.html"].read_text()


@pytest.mark.parametrize(("respond", "status"), [(good, 0), (not_found, 1), (silence, 1)])
def test_program_ends_with_1_when_nothing_succeeded(tmp_path: Path, respond: Respond, status: int) -> None:
    """A VIP that does not answer is counted, and ends the program with 1 instead of hanging it."""
    got, output, errors = play_file(tmp_path, respond, "--timeout", "0.2", "-o", "json")
    assert got == status, errors
    assert json.loads(output)["figures"]["total"]["failures"] == (2 if status else 0)


def test_program_interrupted_shows_what_there_was(tmp_path: Path) -> None:
    """Ctrl-C while a server keeps silent: a table of what came before, and 130."""

    async def both() -> tuple[int | None, str, str]:
        stuck = asyncio.Event()
        answered = 0

        async def once(request: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            answered += 1
            if answered == 1:
                await good(request, writer)
            else:
                stuck.set()

        async with Server(once) as server:
            load = tmp_path / "a.load"
            load.write_text(f"0 127.0.0.1 {server.port} 1000 0 3\n")
            pipe = asyncio.subprocess.PIPE
            command = [sys.executable, str(LOADGEN), "-e", str(load), "--timeout", "60"]
            child = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
            await asyncio.wait_for(stuck.wait(), 60)
            child.send_signal(signal.SIGINT)
            output, errors = await asyncio.wait_for(child.communicate(), 60)
            return child.returncode, output.decode(), errors.decode()

    status, output, errors = asyncio.run(both())
    assert status == 130
    assert "1 fetches, 0 failures" in output
    assert errors == "Interrupted\n"


def test_program_report_without_jinja2_is_told_before_anything_runs(tmp_path: Path) -> None:
    """A missing extra is one line that says how to get it, and nothing was fetched."""
    load = tmp_path / "a.load"
    load.write_text("0 127.0.0.1 1 1000 0 1\n")
    code = "import sys; sys.modules['jinja2'] = None; from lb.cli import main; main()"
    command = [sys.executable, "-c", code, "loadgen", "-e", str(load), "--report", str(tmp_path / "o.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    expected = "lb: the report needs jinja2: pip install 'flowlb[report]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-e", "none.load"], 2, "does not exist"),
        (["-e", "{bad}"], 3, "bad.load:2:2: 1 field, not 6"),
        (["-e", "{good}", "--arrival", "often"], 2, "is not poisson:RATE"),
        (["-e", "{good}", "--arrival", "poisson:1", "--adaptive"], 2, "leave out --arrival or --adaptive"),
        (["-e", "{good}", "--want", "server1"], 2, "is not SERVER=WEIGHT"),
        (["-e", "{good}", "--clients", "0"], 2, "for '--clients'"),
        (["-e", "{good}", "--json", "/nonexistent/x.json"], 1, "there is no directory /nonexistent"),
        ([], 2, "Missing option"),
    ],
)
def test_program_wrong_usage(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    """What is typed wrong is usage, exit 2; what the file says wrong is invalid, exit 3."""
    names = {"bad": tmp_path / "bad.load", "good": tmp_path / "good.load"}
    names["bad"].write_text("# x\n0\n")
    names["good"].write_text("0 127.0.0.1 1 1000 0 1\n")
    filled = [argument.format(**names) for argument in arguments]
    done = subprocess.run(
        [sys.executable, str(LOADGEN), *filled], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (status, "")
    # Words may be parted by line ends.
    assert message in " ".join(done.stderr.split())


def test_worker_plays_one_plan_after_the_other() -> None:
    """A client host's process reads a plan and a start, and writes records; then it is ready for the next plan."""

    async def both() -> list[str]:
        async with Server(good) as server:
            load = Load("test", (LoadLine(0.0, "127.0.0.1", server.port, 100, 0.0, 2),))
            pipe = asyncio.subprocess.PIPE
            command = [sys.executable, "-P", "-m", "lb.lab.loadgen.worker"]
            child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            origin_s = asyncio.get_running_loop().time()
            plans = [plan.to_json(plan.make(load, Options(), [name])) for name in ("client4", "client5")]
            told = "".join(f"{made}\n{origin_s}\n" for made in plans)
            output, _ = await asyncio.wait_for(child.communicate(told.encode()), 60)
            assert child.returncode == 0
            return output.decode().splitlines()

    said = asyncio.run(both())
    kinds = [json.loads(line)["kind"] for line in said]
    assert kinds == ["ready", "started", "fetch", "fetch", "ended", "done"] * 2
    played = fetches([from_json(line) for line, kind in zip(said, kinds, strict=True) if kind == "fetch"])
    assert [fetch.client for fetch in played] == ["client4"] * 2 + ["client5"] * 2


def test_workers_ended_in_the_middle_of_a_plan_end_in_order() -> None:
    """Who stops a load waits for no plan after it: every process ends by itself, none has to be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn(_host: str, module: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-P", "-m", module], **PIPES))
        return started[-1]

    with socket.create_server(("127.0.0.1", 0)) as silent:
        load = Load("test", (LoadLine(0.0, "127.0.0.1", silent.getsockname()[1], 100, 0.0, 2),))
        with LoadClients(plan.make(load, Options(), ["client4", "client5"]), spawn) as clients:
            playing: set[str] = set()
            while playing < {"client4", "client5"}:
                playing |= {record.client for record in clients.poll(DEADLINE_S)}
    assert [process.returncode for process in started] == [0, 0]
