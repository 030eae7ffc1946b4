"""Checks of real servers on the loopback: what passes, what fails, and with which message."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest
from aiohttp import web

from lb.config import HealthConfig
from lb.control.health import prober as prober_module
from lb.control.health.http_check import request
from lb.control.health.prober import Key, Prober, Slots, Target
from lb.control.tasks import Supervisor

DEADLINE_S = 20.0
KEY = ("video", "server1")


def target(port: int, check: str = "tcp", address: str = "127.0.0.1", **options: object) -> Target:
    return Target(ip_address(address), port, HealthConfig.model_validate({"check": check, **options}))


async def check(asked: Target) -> str | None:
    prober = Prober(lambda key, failure: None)
    try:
        return await prober.check(asked)
    finally:
        await prober.stop()


def free_port() -> int:
    """Return a port without a listener: it was ours a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def website(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """Serve HTTP on the loopback for the block; give the port."""
    server = web.Server(answer)  # type: ignore[arg-type] # its type asks for BaseRequest
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def listening(talk: Callable[[asyncio.StreamReader], Awaitable[bytes]]) -> AsyncIterator[int]:
    """Accept connections for the block: read as `talk` does, write what it returns, hang up. Give the port."""
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.Event())
        mine = ended[-1]
        with suppress(OSError, asyncio.IncompleteReadError):
            writer.write(await talk(reader))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        mine.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        async with asyncio.timeout(DEADLINE_S):
            for event in ended:
                await event.wait()


def test_tcp_check_listening_server_passes() -> None:
    """A connect is enough: nothing is sent."""

    async def scenario() -> tuple[str | None, bytes]:
        received = asyncio.get_running_loop().create_future()

        async def talk(reader: asyncio.StreamReader) -> bytes:
            received.set_result(await reader.read())
            return b""

        async with listening(talk) as port, asyncio.timeout(DEADLINE_S):
            return await check(target(port)), await received

    assert asyncio.run(scenario()) == (None, b"")


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_check_closed_port_fails_with_reason(kind: str) -> None:
    """A refused connect is reported as refused, with the address."""
    port = free_port()
    assert asyncio.run(check(target(port, kind))) == f"127.0.0.1 port {port}: connection refused"


def test_http_check_silent_server_times_out() -> None:
    """A server that accepts and says nothing fails after the timeout."""

    async def scenario() -> tuple[str | None, int]:
        async with listening(asyncio.StreamReader.read) as port:
            return await check(target(port, "http", timeout="50ms")), port

    failure, port = asyncio.run(scenario())
    assert failure == f"no answer from 127.0.0.1 port {port} within 0.05 s"


@pytest.mark.parametrize(
    ("status", "expect", "failure"),
    [
        (200, 200, None),
        (204, "200-399", None),
        (399, "200-399", None),
        (400, "200-399", "answered 400, 200-399 is expected"),
        (503, 200, "answered 503, 200 is expected"),
        (302, 200, "answered 302, 200 is expected"),
        (500, 500, None),
    ],
)
def test_http_check_status_decides(status: int, expect: object, failure: str | None) -> None:
    """What is expected passes and nothing else; a redirect is an answer and is not followed."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path_qs} {request.headers['User-Agent']}")
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def scenario() -> tuple[str | None, int]:
        async with website(answer) as port:
            return await check(target(port, "http", path="/ready?full=1", expect=expect)), port

    result, port = asyncio.run(scenario())
    assert result == (failure and f"http://127.0.0.1:{port}/ready?full=1 {failure}")
    assert asked == ["GET /ready?full=1 flowlb-health"]


def test_http_check_endless_body_is_not_read() -> None:
    """The headers decide: a body without an end costs neither time nor memory."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
        except (ConnectionError, asyncio.CancelledError):
            return response

    async def scenario() -> str | None:
        async with website(answer) as port:
            return await check(target(port, "http", timeout="10s", interval="10s"))

    assert asyncio.run(scenario()) is None


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"", "closed without an answer"),
        (b"\x00" * 64 + b"\r\n\r\n", 'not HTTP: "' + "\\x00" * 40 + '"...'),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 'not HTTP: "SSH-2.0-OpenSSH_9.9\\r\\n"'),
        (b"\x15\x03\x01\xff", 'not HTTP: "\\x15\\x03\\x01\\xff"'),
        (b"HTTP/2 200 OK\r\n\r\n", 'not HTTP: "HTTP/2 200 OK\\r\\n\\r\\n"'),
        (b"HTTP/1.1 twohundred\r\n\r\n", 'not HTTP: "HTTP/1.1 twohundred\\r\\n\\r\\n"'),
        (b"HTTP/1.1 200 OK\r\nX: y", 'the answer ends inside its head: "HTTP/1.1 200 OK\\r\\nX: y"'),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "the answer's head is longer than 65536 bytes"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000, "the answer's head is longer than 65536 bytes"),
    ],
)
def test_http_check_odd_answer_said_as_it_was(answer: bytes, failure: str) -> None:
    """What is no answer of a web server fails, in one line of bounded length that says what it was."""
    result, port = asyncio.run(ask_raw(answer))
    assert result == f"127.0.0.1 port {port}: {failure}"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200\r\n\r\n",
        b"HTTP/1.1 204 No Content\n\n",
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody",
    ],
)
def test_http_check_unusual_answer_passes(answer: bytes) -> None:
    """A long head, a short status line, a redirect and an interim answer before the final one are answers."""
    assert asyncio.run(ask_raw(answer))[0] is None


async def ask_raw(answer: bytes, **options: object) -> tuple[str | None, int]:
    """Check a server that gives this answer to any request, and closes; return the result and its port."""

    async def talk(reader: asyncio.StreamReader) -> bytes:
        await reader.readuntil(b"\r\n\r\n")
        return answer

    async with listening(talk) as port:
        return await check(target(port, "http", timeout="5s", interval="5s", **options)), port


def test_http_check_answer_that_stops_halfway_times_out_as_such() -> None:
    """A server that begins an answer and goes silent is distinguished from one that sends nothing."""

    async def scenario() -> tuple[str | None, int]:
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            await reader.read()
            await reader.read()
            writer.close()
            done.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await check(target(port, "http", timeout="300ms")), port
        finally:
            server.close()
            async with asyncio.timeout(DEADLINE_S):
                await done.wait()

    failure, port = asyncio.run(scenario())
    assert failure == f"only a part of an answer from 127.0.0.1 port {port} within 0.3 s"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?",
        "//a//b",
        "/a/../b",
        "/%2f%2F%41",
        "/a?x=%20&y=a+b",
        "/a;v=1",
        '/a?b=[c]|{d}^`e"<>\\',
        "/a/./",
        "/%",
        "/~",
    ],
)
def test_http_check_path_arrives_byte_for_byte(path: str) -> None:
    """The configured path is requested byte for byte: nothing is normalised or quoted again."""

    async def scenario() -> list[bytes]:
        lines: list[bytes] = []

        async def talk(reader: asyncio.StreamReader) -> bytes:
            lines.extend((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n"))
            return b"HTTP/1.1 200 OK\r\n\r\n"

        async with listening(talk) as port:
            assert await check(target(port, "http", path=path)) is None
            lines[1] = lines[1].replace(str(port).encode(), b"PORT")
        return lines

    expected = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1:PORT", "User-Agent: flowlb-health", "Accept: */*"]
    assert asyncio.run(scenario()) == [*(line.encode() for line in expected), b"Connection: close", b"", b""]


def test_request_names_host_as_a_url_would() -> None:
    """IPv6 addresses stand in brackets, and the port of HTTP is left out (RFC 9110 7.2)."""
    assert b"\r\nHost: [2001:db8::31]:81\r\n" in request(ip_address("2001:db8::31"), 81, "/")
    assert b"\r\nHost: 192.0.2.1\r\n" in request(ip_address("192.0.2.1"), 80, "/")


def test_target_url_brackets_ipv6() -> None:
    """An IPv6 server is requested with a valid URL."""
    assert target(80, "http", "2001:db8::31", path="/x").url == "http://[2001:db8::31]:80/x"


def test_follow_checks_each_target_until_it_goes() -> None:
    """Results come per server, again and again; those of a target that was removed end, the others go on."""

    async def scenario() -> None:
        results: asyncio.Queue[tuple[Key, str | None]] = asyncio.Queue()
        prober = Prober(lambda key, failure: results.put_nowait((key, failure)), seed=1)
        port, other = free_port(), ("video", "server2")
        quick = {"interval": "20ms", "timeout": "20ms"}

        async def wait_for(key: Key, times: int) -> None:
            async with asyncio.timeout(DEADLINE_S):
                while times:
                    times -= (await results.get())[0] == key

        prober.follow({KEY: target(port, **quick), other: target(port, **quick)})
        await wait_for(KEY, 3)
        await wait_for(other, 3)
        prober.follow({KEY: target(port, **quick)})
        while not results.empty():
            results.get_nowait()
        await wait_for(KEY, 5)
        await prober.stop()
        assert {results.get_nowait()[0] for _ in range(results.qsize())} <= {KEY}

    asyncio.run(scenario())


def quick(port: int, **options: object) -> Target:
    return target(port, **{"interval": "20ms", "timeout": "20ms", **options})


def test_follow_result_that_cannot_be_taken_ends_no_checks() -> None:
    """An exception in the handling of a result is noted; this server's checks and those of others go on."""

    async def scenario() -> None:
        supervisor, results = Supervisor(), Counter[Key]()
        enough, other = asyncio.Event(), ("video", "server2")

        def on_result(key: Key, failure: str | None) -> None:
            results[key] += 1
            if min(results[KEY], results[other]) >= 3:
                enough.set()
            if key == KEY:
                raise KeyError("a fault")

        prober, port = Prober(on_result, supervisor, seed=1), free_port()
        prober.follow({KEY: quick(port), other: quick(port)})
        async with asyncio.timeout(DEADLINE_S):
            await enough.wait()
        state = supervisor.states()[prober_module.TASK]
        assert (state.failures >= 3, state.last_error) == (True, "KeyError: 'a fault'")
        await prober.stop()

    asyncio.run(scenario())


def test_follow_shared_endpoint_is_checked_once_for_all() -> None:
    """The same address, port and check in several services is one check; how often one has to fail is no part of it."""

    async def scenario() -> None:
        results: asyncio.Queue[Key] = asyncio.Queue()
        prober, checks, port = Prober(lambda key, failure: results.put_nowait(key)), 0, free_port()
        real = prober.check

        async def check(asked: Target) -> str | None:
            nonlocal checks
            checks += 1
            return await real(asked)

        prober.check = check  # type: ignore[method-assign]
        keys = [("video", "server1"), ("echo", "a"), ("echo6", "b")]
        shared = {key: quick(port, fall=number + 1) for number, key in enumerate(keys)}
        prober.follow({**shared, ("other", "c"): quick(port, interval="1h", timeout="1s")})
        async with asyncio.timeout(DEADLINE_S):
            told = [await results.get() for _ in range(6)]
            assert told == keys * 2
            assert checks == 2
            prober.follow({keys[1]: shared[keys[1]]})
            assert await results.get() == keys[1]
        await prober.stop()

    asyncio.run(scenario())


def test_limit_caps_what_is_under_way_and_counts_what_is_late() -> None:
    """Checks at a time are bounded; a check that waits longer than a tenth of its interval is late, but made."""

    async def scenario() -> None:
        prober, under_way, most, port = Prober(lambda key, failure: None), 0, 0, free_port()
        gate, full, all_in = asyncio.Event(), asyncio.Event(), asyncio.Event()
        made = 0

        async def check(asked: Target) -> str | None:
            nonlocal under_way, most, made
            under_way += 1
            most = max(most, under_way)
            if under_way == 3:
                full.set()
            await gate.wait()
            under_way -= 1
            made += 1
            if made >= 9:
                all_in.set()
            return None

        prober.check = check  # type: ignore[method-assign]
        prober.limit(3)
        prober.follow({("s", str(n)): quick(port, path=f"/{n}", check="http") for n in range(9)})
        async with asyncio.timeout(DEADLINE_S):
            await full.wait()
            # All are due within the first interval, and late a tenth of one after that.
            loop = asyncio.get_running_loop()
            late_s = loop.time() + 1.1 * quick(port).health.interval / 1e9
            while loop.time() < late_s:
                await asyncio.sleep(0)
            assert most == 3
            gate.set()
            await all_in.wait()
        assert prober.late >= 6
        assert most == 3
        await prober.stop()

    asyncio.run(scenario())


HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("held_s", "answers_after_s", "late"),
    [(0.04 * HOUR_S, 0.0, 0), (2.0 * HOUR_S, 0.0, 3), (0.04 * HOUR_S, HOUR_S, 0), (0.04 * HOUR_S, 3.0 * HOUR_S, 2)],
    ids=["on time", "held up", "server takes its whole timeout", "held up in the check before"],
)
def test_check_that_begins_after_it_was_due_is_late(held_s: float, answers_after_s: float, late: int) -> None:
    """Rule 19, health: also when nothing but the loop held it up; not because the check before took the time it may."""

    async def scenario() -> None:
        loop, passed_s, made = asyncio.get_running_loop(), 0.0, 0
        real, moment = loop.time, asyncio.Event()
        loop.time = lambda: real() + passed_s  # type: ignore[method-assign]
        prober = Prober(lambda key, failure: None)

        async def check(asked: Target) -> str | None:
            nonlocal passed_s, made
            passed_s += answers_after_s
            made += 1
            moment.set()
            return None

        prober.check = check  # type: ignore[method-assign]
        prober.follow({("s", "a"): target(1, interval="1h", timeout="1h")})
        while made < 3:
            # The loop does nothing meanwhile.
            passed_s += held_s
            for _ in range(5):
                await asyncio.sleep(0)
        assert prober.late == late
        await prober.stop()

    asyncio.run(scenario())


def test_slots_cancelled_waiter_loses_no_place() -> None:
    """A check that is cancelled while it waits, or just when it is admitted, does not keep its slot."""

    async def scenario() -> None:
        slots, entered = Slots(1), []

        async def enter(name: str) -> None:
            async with slots:
                entered.append(name)
                await asyncio.sleep(0)

        async with asyncio.timeout(DEADLINE_S):
            async with slots:
                waiting = [asyncio.create_task(enter(name)) for name in "abc"]
                await asyncio.sleep(0)
                waiting[0].cancel()
            # Admitted by now, and not yet run.
            waiting[1].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await enter("d")
        assert entered == ["c", "d"]

    asyncio.run(scenario())
