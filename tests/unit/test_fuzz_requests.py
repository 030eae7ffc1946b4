"""
Damaged requests to the control socket: each gets an answer of HTTP, an error of one line in JSON where it is refused,
and the balancer answers the next one; nothing is ever an internal error.

FLOWLB_FUZZ_S=600 goes on for ten minutes with other cases; `make fuzz` does so.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import select
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from served import ServedBalancer, serving

from fuzzing import TEXTS, cases, damaged, value
from lb.control.api.client import fetch
from lb.control.api.listener import MAX_BODY_BYTES

CASES = 300
TIMEOUT_S = 20.0
# A whole request is answered sooner; it need not be.
HALF_S = 0.02
SERVER = {"service": "video", "server": "server1"}
ADDED = {"name": "server9", "address": "198.18.1.39", "port": 80, "weight": 2, "mac": "aa:aa:aa:00:00:39"}
READS: Mapping[str, Mapping[str, Any]] = {
    "/status": {},
    "/server": SERVER,
    "/flows": {"limit": 5, "offset": 1, "client": "198.18.1.21", "state": "established", **SERVER},
    "/counters": {},
    "/config": {},
    "/history": {},
    "/explain": {"service": "video", "client": "198.18.1.21", "port": 4000},
    "/nothing": {},
}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "/drain": {**SERVER, "reset": False},
    "/enable": SERVER,
    "/disable": {**SERVER, "reset": True},
    "/weight": {**SERVER, "weight": 7},
    "/add": {"service": "video", "server": ADDED},
    "/remove": {"service": "video", "server": "server9", "reset": True},
    "/reload": {"dry_run": True},
    "/nothing": {},
}
HEADERS = (
    "",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: websocket\r\n",
    "Content-Encoding: gzip\r\n",
    "Content-Type: multipart/form-data\r\n",
    f"X: {'y' * 5000}\r\n",
)


class Socket(http.client.HTTPConnection):
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


@pytest.fixture
def served(backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[ServedBalancer]:
    """Serve a balancer; afterwards it still answers, and has logged no error of its own."""
    made = ServedBalancer(tmp_path, backend)
    with serving(made):
        yield made
        assert fetch(made.control, "/status")["services"]
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


def changed(rng: random.Random, content: Any, depth: int = 0) -> Any:
    """Put drawn values in the place of some, or leave some out, or add some."""
    if not isinstance(content, dict) or (depth > 0 and rng.random() < 0.2):
        return value(rng)
    made = dict(content)
    for _ in range(rng.randrange(3)):
        key = rng.choice([*made, *TEXTS])
        if key in made and rng.random() < 0.3:
            del made[key]
        else:
            made[key] = changed(rng, made.get(key), depth + 1)
    return made


def drawn(rng: random.Random) -> tuple[str, str, bytes | None]:
    """Draw a request: method, resource with its query, body. It is one of HTTP, whatever it asks for."""
    if rng.random() < 0.4:
        resource = rng.choice([*READS])
        query = changed(rng, READS[resource])
        pairs = query.items() if isinstance(query, dict) else [(str(query), "")]
        text = "&".join(f"{quote(str(key)[:100])}={quote(str(item)[:100])}" for key, item in pairs)
        return rng.choice(("GET", "GET", "GET", "POST", "DELETE")), f"{resource}?{text}", None
    resource = rng.choice([*CHANGES])
    body = json.dumps(changed(rng, CHANGES[resource])).encode()
    if rng.random() < 0.2:
        body = damaged(rng, body)
    return rng.choice(("POST", "POST", "POST", "POST", "PUT", "GET")), resource, body


def answer(control: Path, request: tuple[str, str, bytes | None]) -> tuple[int, bytes]:
    """Send a request, and return status and body."""
    connection = Socket(control)
    try:
        connection.request(*request)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_request_of_any_content_is_answered_or_refused_in_one_line(served: ServedBalancer) -> None:
    """Whatever is asked for: 200, or 400 to 499 with what is wrong."""
    statuses = set()
    for case, rng in cases(CASES):
        request = drawn(rng)
        try:
            status, body = answer(served.control, request)
            statuses.add(status)
            content = json.loads(body)
            assert status == http.client.OK or 400 <= status < 500, (status, content)
            if status != http.client.OK:
                assert content["error"], content
                assert "\n" not in content["error"], content
                assert content["exit_code"] > 0
        except Exception as error:
            error.add_note(f"case {case}: {request}")
            raise
    assert statuses >= {200, 400, 404, 405}


def raw(rng: random.Random) -> bytes:
    """Draw the bytes of a request, damaged."""
    method, resource, body = drawn(rng)
    body = body or b""
    head = f"{method} {resource} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return damaged(rng, (head + rng.choice(HEADERS) + "\r\n").encode() + body)


def test_request_of_damaged_bytes_never_is_an_internal_error(served: ServedBalancer) -> None:
    """A client that speaks no HTTP, or half of it, gets an error or is cut off. The next one is served."""
    answered = 0
    for case, rng in cases(CASES):
        data = raw(rng)
        try:
            reply = exchange(served.control, data)
            answered += bool(reply)
            status = reply.split(b" ", 2)[1] if reply.startswith(b"HTTP/") else b""
            assert not reply or status.isdigit(), reply
            assert not status.startswith(b"5"), reply
        except Exception as error:
            error.add_note(f"case {case}: {data!r}")
            raise
    assert answered


def exchange(control: Path, data: bytes, patience_s: float = HALF_S) -> bytes:
    """Send bytes, and return the answer. When none comes for a while, half a request was sent: that was all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(str(control))
        reply = b""
        try:
            sock.sendall(data)
            select.select([sock], [], [], patience_s)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                reply += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return reply


def test_request_that_is_too_large_is_refused(served: ServedBalancer) -> None:
    """By hand: a body beyond the bound is no drawn case."""
    status, _ = answer(served.control, ("POST", "/add", b" " * (MAX_BODY_BYTES + 1)))
    assert status == http.client.REQUEST_ENTITY_TOO_LARGE


def test_request_with_a_line_feed_in_a_name_is_refused_in_one_line(served: ServedBalancer) -> None:
    """Found by a drawn case: names were repeated as they came, in keys of JSON and in the path."""
    _, body = answer(served.control, ("POST", "/drain", json.dumps({"a\nb\x1b[2J": 1}).encode()))
    assert json.loads(body)["error"].startswith(r"unknown: a\nb\x1b[2J; allowed:")
    _, body = answer(served.control, ("GET", "/a%0Ab", None))
    assert json.loads(body)["error"] == r"GET /a\nb: Not Found"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\nb\r\n\r\n"]
)
def test_request_that_is_no_http_is_refused_without_a_line_in_the_log(served: ServedBalancer, data: bytes) -> None:
    """Found by a drawn case: each made a traceback in the log, which any client could fill so."""
    assert exchange(served.control, data, TIMEOUT_S).split(b" ", 2)[1] == b"400"


def test_request_whose_expect_is_no_text_is_refused(served: ServedBalancer) -> None:
    """Found by a drawn case: aiohttp fails over it, and answered 500."""
    request = b"GET /status HTTP/1.1\r\nHost: x\r\nExpect: \xa9\r\nConnection: close\r\n\r\n"
    assert exchange(served.control, request, TIMEOUT_S).split(b" ", 2)[1] == b"400"
