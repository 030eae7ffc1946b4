"""
Our own HTTP client, run in the client's host: for when `wrk` is not installed, and for paced exchanges.

Run as `python -m lb.lab.bench.web_client`. One thread, one epoll loop, bounded in time; prints one JSON object. Counts
whole responses, bytes of bodies, and beside them what failed and what was slow; it ends when too much fails.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import re
import selectors
import socket
import sys
import time
from typing import Any

TIMEOUT_S = 5.0
# No connect and no small page takes that long on one machine, unless something was lost and sent again.
SLOW_S = 0.2
MAX_FAILED = 100
HEADER_LIMIT_BYTES = 16384
BUFFER_BYTES = 1 << 20
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class AnswerError(Exception):
    """The other side did not answer as a web server should."""


def request(host: str, path: str, close: bool) -> bytes:
    """Return a GET request."""
    last = "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{last}\r\n".encode()


def split_header(data: bytes) -> tuple[int, int] | None:
    """
    Find the end of a response's header.

    Returns:
        (length of the body, bytes of the body that are in `data`), or None when the header is not whole yet.

    Raises:
        AnswerError: not 200, or no length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEADER_LIMIT_BYTES:
            raise AnswerError("an endless header")
        return None
    found = _LENGTH.search(data, 0, end + 2)
    if not data.startswith(b"HTTP/1.1 200") or found is None:
        raise AnswerError(f"no usable answer: {data[:60]!r}")
    return int(found[1]), len(data) - end - 4


def _require(code: int, allowed: tuple[int, ...]) -> None:
    if code not in allowed:
        raise OSError(code, os.strerror(code))


class Connection:
    """
    One connection that asks again and again. `responses`, `received`: whole answers, and bytes of bodies; `failed`,
    `slow`: requests without an answer, connects and answers beyond SLOW_S; `events`: what the selector waits for.
    """

    def __init__(self, target: tuple[str, int], text: bytes, close: bool) -> None:
        self._target, self._text, self._close = target, text, close
        self.responses = self.received = self.failed = self.slow = 0
        self._missing = -1
        self._head = b""
        self.events = selectors.EVENT_WRITE
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        # Non-blocking: while one connects, the others work.
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_s = time.monotonic()
        _require(connection.connect_ex(self._target), (0, errno.EINPROGRESS))
        self.events = selectors.EVENT_WRITE
        return connection

    def advance(self, buffer: bytearray) -> bool:
        """
        Do what the socket is ready for.

        Returns:
            Whether the socket, or what to wait for, is another one now.

        Raises:
            OSError, AnswerError: too much has failed; what failed last.
        """
        try:
            return self._read(buffer) if self.events == selectors.EVENT_READ else self._connected()
        except (OSError, AnswerError):
            self.failed += 1
            if self.failed > MAX_FAILED:
                raise
            return self._reconnect()

    def finish(self) -> None:
        """Close it; what has waited too long by now is slow as well."""
        self._time()
        self.socket.close()

    def _connected(self) -> bool:
        _require(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), (0,))
        self._time()
        self.socket.sendall(self._text)
        self.events = selectors.EVENT_READ
        return True

    def _time(self) -> None:
        """End one span, of a connect or a request, and begin the next."""
        now_s = time.monotonic()
        self.slow += now_s - self._start_s > SLOW_S
        self._start_s = now_s

    def _reconnect(self) -> bool:
        self._missing, self._head = -1, b""
        self.socket.close()
        self.socket = self._connect()
        return True

    def _read(self, buffer: bytearray) -> bool:
        size = self.socket.recv_into(buffer)
        if size == 0:
            raise AnswerError("the server closed the connection")
        if self._missing < 0:
            self._head += buffer[:size]
            found = split_header(self._head)
            if found is None:
                return False
            self._missing, size = found
        self._missing -= size
        self.received += size
        return self._missing == 0 and self._answered()

    def _answered(self) -> bool:
        self.responses += 1
        self._time()
        if self._close:
            return self._reconnect()
        self._missing, self._head = -1, b""
        self.socket.sendall(self._text)
        return False


def load(target: tuple[str, int], path: str, close: bool, seconds: float, connections: int) -> dict[str, Any]:
    """
    Ask on several connections at once, for some seconds.

    Args:
        target: address and port.
        path: what to ask for.
        close: whether each request gets a new connection.
        seconds: how long.
        connections: how many at once.

    Returns:
        `responses`, `bytes` of bodies, `seconds`, `failed` and `slow` requests.
    """
    buffer, text = bytearray(BUFFER_BYTES), request(target[0], path, close)
    with selectors.DefaultSelector() as selector:
        made = [Connection(target, text, close) for _ in range(connections)]
        for each in made:
            selector.register(each.socket, each.events, each)
        try:
            elapsed_s = _drive(selector, buffer, seconds)
        finally:
            for each in made:
                each.finish()
    return {
        "responses": sum(each.responses for each in made),
        "bytes": sum(each.received for each in made),
        "seconds": elapsed_s,
        "failed": sum(each.failed for each in made),
        "slow": sum(each.slow for each in made),
    }


def _drive(selector: selectors.BaseSelector, buffer: bytearray, seconds: float) -> float:
    """Run the connections of a selector for some seconds; return the seconds it took."""
    start_s = time.monotonic()
    while (left_s := start_s + seconds - time.monotonic()) > 0:
        for key, _ in selector.select(left_s):
            # A closed socket has left the selector by itself, but not its map.
            if key.data.advance(buffer):
                selector.unregister(key.fileobj)
                selector.register(key.data.socket, key.data.events, key.data)
    return time.monotonic() - start_s


def exchange(target: tuple[str, int], text: bytes) -> tuple[float, float]:
    """Connect and fetch once. Returns the seconds of the connect, and of the request up to its whole answer."""
    with socket.socket() as connection:
        connection.settimeout(TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start_s = time.perf_counter()
        connection.connect(target)
        connected_s = time.perf_counter()
        connection.sendall(text)
        data = b""
        while True:
            block = connection.recv(HEADER_LIMIT_BYTES)
            if not block:
                raise AnswerError("the server closed the connection")
            data += block
            found = split_header(data)
            if found is not None and found[0] <= found[1]:
                return connected_s - start_s, time.perf_counter() - connected_s


def paced(target: tuple[str, int], path: str, seconds: float, rate_hz: float) -> dict[str, Any]:
    """
    Exchange at a pace.

    Returns:
        `connect` and `request`: seconds of each exchange; `failed` and `slow` ones.

    Raises:
        OSError, AnswerError: none succeeded; what failed last.
    """
    text = request(target[0], path, False)
    connects: list[float] = []
    requests: list[float] = []
    failed = 0
    # Collections are pauses of our own.
    gc.disable()
    start_s = time.perf_counter()
    for number in range(int(seconds * rate_hz)):
        early_s = start_s + number / rate_hz - time.perf_counter()
        if early_s > 0:
            time.sleep(early_s)
        try:
            connect_s, request_s = exchange(target, text)
        except (OSError, AnswerError):
            failed += 1
            # A failure may take the whole timeout: a pace that only fails must end.
            if not connects or failed > MAX_FAILED * seconds / TIMEOUT_S:
                raise
            continue
        connects.append(connect_s)
        requests.append(request_s)
    slow = sum(max(pair) > SLOW_S for pair in zip(connects, requests, strict=True))
    return {"connect": connects, "request": requests, "failed": failed, "slow": slow}


def main() -> int:
    """Do what the arguments ask for and print it. Returns the exit status."""
    parser = argparse.ArgumentParser(description="The load of `lb bench`.")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--close", action="store_true", help="one request per connection")
    parser.add_argument("--rate", type=float, help="exchanges per second, one after the other")
    options = parser.parse_args()
    target = (options.address, options.port)
    try:
        if options.rate:
            answer: dict[str, Any] = paced(target, options.path, options.seconds, options.rate)
        else:
            answer = load(target, options.path, options.close, options.seconds, options.connections)
    except (OSError, AnswerError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
