"""The listener of the admin API: bounded in every direction, errors as JSON; rule 21.3, control socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lb.control.api.client import change, fetch
from lb.control.api.listener import MAX_BODY_BYTES, Listener, bind_socket
from lb.control.http_connections import MAX_CONNECTIONS
from lb.errors import (
    ConfigError,
    DaemonError,
    LbError,
    RefusedError,
    RemoteError,
    RequestError,
    UnderWayError,
    UnknownNameError,
)

DEADLINE_S = 20.0
QUESTIONS = 20


async def echo(params: Mapping[str, Any]) -> dict[str, Any]:
    """Answer with the parameters."""
    return {"asked": dict(params)}


def failing(error: Exception) -> Callable[[Mapping[str, Any]], Awaitable[Any]]:
    async def fail(_: Mapping[str, Any]) -> Any:
        raise error

    return fail


@contextlib.asynccontextmanager
async def listening(
    path: Path,
    connection_s: float = DEADLINE_S,
    bind: Callable[[Path], socket.socket] | None = None,
    **errors: Exception,
) -> AsyncIterator[Listener]:
    handlers: dict[Any, Any] = {("GET", "/echo"): echo, ("POST", "/echo"): echo}
    handlers |= {("GET", f"/{name}"): failing(error) for name, error in errors.items()}
    opened = Listener(path, handlers, connection_s, bind)
    await opened.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield opened
    finally:
        await opened.stop()


def test_listener_answers_get_and_post_then_leaves_nothing(tmp_path: Path) -> None:
    """Rule 21.3, control socket: mode 0660, reads by GET, changes by POST; the socket is gone afterwards."""
    path = tmp_path / "deep" / "lb.sock"

    async def scenario() -> None:
        async with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert await asyncio.to_thread(fetch, path, "/echo", limit=3) == {"asked": {"limit": "3"}}
            assert await asyncio.to_thread(change, path, "/echo", {"reset": True}) == {"asked": {"reset": True}}

    asyncio.run(scenario())
    assert not path.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("weight: no"), 2),
        (UnknownNameError("there is no service x"), 2),
        (RefusedError("already exists"), 2),
        (ConfigError(["lb.toml:3:1: x: unknown key"]), 3),
        (UnderWayError("the reload is still in progress"), 6),
        (LbError("the loop has failed"), 1),
    ],
)
def test_listener_errors_keep_their_words_and_exit_codes(tmp_path: Path, error: LbError, code: int) -> None:
    """The command has the message and the exit code of the balancer's error."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock", broken=error) as opened:
            with pytest.raises(RemoteError) as caught:
                await asyncio.to_thread(fetch, opened.path, "/broken")
            assert (str(caught.value), caught.value.exit_code) == (str(error), code)

    asyncio.run(scenario())


def test_listener_fault_of_ours_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is an answer and a log entry."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock", broken=ZeroDivisionError("ours")) as opened:
            with pytest.raises(RemoteError, match="internal error; see the log"):
                await asyncio.to_thread(fetch, opened.path, "/broken")
            assert await asyncio.to_thread(fetch, opened.path, "/echo") == {"asked": {}}

    asyncio.run(scenario())
    assert "ZeroDivisionError: ours" in caplog.text


@pytest.mark.parametrize(("resource", "what"), [("/no", "Not Found"), ("/echo/../x", "Not Found")])
def test_listener_unknown_resource_is_no_balancer_of_this_version(tmp_path: Path, resource: str, what: str) -> None:
    """A resource that is not there: exit code 5, as for no balancer at all."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock") as opened:
            with pytest.raises(RemoteError, match=what) as caught:
                await asyncio.to_thread(fetch, opened.path, resource)
            assert caught.value.exit_code == DaemonError.exit_code

    asyncio.run(scenario())


async def speak(path: Path, *parts: bytes) -> tuple[int, bytes]:
    """Send bytes, and return the status of the answer and its body; status 0: cut off without one."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), await reader.read(65536)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""
    finally:
        writer.close()


POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
HOSTILE = {
    "line": [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"],
    "header": [b"GET /echo HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"],
    "headers": [b"GET /echo HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n"],
    "nonsense": [b"\x00\xff" * 1000 + b"\r\n\r\n"],
    "body": [POST + b"Content-Length: 1000000\r\n\r\n", b"[" * 1_000_000],
    "chunked": [
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"10000\r\n" + b"1" * 65536 + b"\r\n",
        b"10000\r\n" + b"1" * 65536,
    ],
    "no json": [POST + b"Content-Length: 4\r\n\r\n{'a'"],
    "deep json": [POST + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000],
    "no object": [POST + b"Content-Length: 2\r\n\r\n[]"],
    "length": [POST + b"Content-Length: -5\r\n\r\n"],
    "method": [b"DELETE /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"],
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_listener_oversized_or_nonsense_is_refused(tmp_path: Path, parts: list[bytes]) -> None:
    """Lines, headers and bodies are bounded; whatever comes, the next client is served."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock") as opened:
            status, _ = await speak(opened.path, *parts)
            assert status in (0, 400, 405, 413)
            assert await asyncio.to_thread(fetch, opened.path, "/echo") == {"asked": {}}

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET /ec", POST + b"Content-Length: 9\r\n\r\n{"], ids=["none", "line", "body"])
def test_listener_slow_client_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    """Who does not say what it wants loses its connection: it would hold a place for ever."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock", connection_s=0.2) as opened:
            assert await speak(opened.path, sent) == (0, b"")
            assert not opened.connections

    asyncio.run(scenario())


def test_listener_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """An answer that the client does not read is given up."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock", connection_s=0.3) as opened:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(str(opened.path))
                question = b"GET /echo?x=" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    while True:
                        sock.send(question)
                        await asyncio.sleep(0)
                while opened.connections:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_listener_too_many_connections_are_refused(tmp_path: Path) -> None:
    """Clients that hold all places do not keep the balancer from serving once they are gone."""

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock") as opened:
            held = [await asyncio.open_unix_connection(opened.path) for _ in range(MAX_CONNECTIONS)]
            while len(opened.connections) < MAX_CONNECTIONS:
                await asyncio.sleep(0.01)
            assert await speak(opened.path, b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n") == (0, b"")
            for _, writer in held:
                writer.close()
            while opened.connections:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(fetch, opened.path, "/echo") == {"asked": {}}

    asyncio.run(scenario())


def test_listener_that_pauses_answers_everyone(tmp_path: Path) -> None:
    """Clients who come while it pauses, again and again, are answered: before, or when it serves again."""

    async def ask(path: Path) -> None:
        for _ in range(QUESTIONS):
            assert (await speak(path, b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[0] == 200

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock") as opened:
            asking = [asyncio.create_task(ask(opened.path)) for _ in range(MAX_CONNECTIONS // 2)]
            pauses = 0
            while not all(task.done() for task in asking):
                await opened.pause()
                assert not opened.connections
                pauses += 1
                await opened.serve()
                # It takes a client some turns of the loop to become a connection: the pause comes at each.
                for _ in range(pauses % 6):
                    await asyncio.sleep(0)
            await asyncio.gather(*asking)
            assert pauses > 1

    asyncio.run(scenario())


class WithoutDescriptors(socket.socket):
    """A listening socket that cannot accept a client at first."""

    refusals = 2

    def accept(self) -> Any:
        """Accept a client, or have no descriptor for it."""
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_listener_without_descriptors_answers_when_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that cannot be accepted waits, and the log says why."""
    monkeypatch.setattr("lb.control.http_connections.REST_S", 0.01)

    def bind(path: Path) -> socket.socket:
        bound = bind_socket(path)
        return WithoutDescriptors(bound.family, bound.type, fileno=bound.detach())

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock", bind=bind) as opened:
            assert await asyncio.to_thread(fetch, opened.path, "/echo") == {"asked": {}}

    asyncio.run(scenario())
    assert caplog.text.count("Too many open files") == WithoutDescriptors.refusals


def test_listener_compressed_body_is_not_unpacked(tmp_path: Path) -> None:
    """A small body that unpacks to a huge one stays small."""
    import gzip

    bomb = gzip.compress(json.dumps({"a": "b" * 10_000_000}).encode())
    assert len(bomb) < MAX_BODY_BYTES
    head = POST + b"Content-Encoding: gzip\r\nContent-Length: " + str(len(bomb)).encode() + b"\r\n\r\n"

    async def scenario() -> None:
        async with listening(tmp_path / "lb.sock") as opened:
            assert (await speak(opened.path, head, bomb))[0] == 400

    asyncio.run(scenario())
