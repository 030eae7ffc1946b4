"""
The clients of a run of chaos: long flows that speak now and then, short connections, bulk, datagrams.

Runs in a client as `python -m lb.lab.chaos.traffic`. It says what happens to its flows, a line of JSON each, until
SIGTERM; then it says how much there was of each kind. Times are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

# A flow that says nothing for that long is broken. TCP's own patience doubles: after an outage of 6 s it may take 12,
# and a SYN is sent 0, 1, 3, 7, 15 and 31 s after the first.
SILENCE_S = 40.0
# Answers later than that are stalls.
STALL_S = 0.1
# Between two words of a long flow.
PAUSE_S = (0.02, 0.6)
WORD_BYTES = (1, 4000)
BULK_BYTES = 2 << 20
CHUNK = 1 << 16
DATAGRAM_S = 0.25


class Port(NamedTuple):
    """A port of this client, and since when it has it."""

    number: int
    since: float


class Connection(NamedTuple):
    """One that is open."""

    port: Port
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Speaker:
    """All flows of one client."""

    def __init__(self, host: str, tcp_port: int, udp_port: int, seed: int) -> None:
        self._host, self._tcp_port, self._udp_port = host, tcp_port, udp_port
        self._draw = random.Random(seed)
        self._is_over = asyncio.Event()
        self._counts: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        # A mistake of this program: it ends, without its totals.
        self._error: BaseException | None = None

    async def run(self, long: int, short_per_s: float, bulk: int, udp: int) -> None:
        """Speak until told to end; wait for what is being said."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._is_over.set)
        for _ in range(long):
            self._start(self._forever(self._long))
        for _ in range(bulk):
            self._start(self._forever(self._bulk))
        for _ in range(udp):
            self._start(self._udp())
        _say(ready=True)
        while not self._is_over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), 1 / short_per_s if short_per_s else None)
            if short_per_s and not self._is_over.is_set():
                self._start(self._short())
        await asyncio.gather(*self._tasks)
        if self._error is not None:
            raise self._error
        _say(totals=dict(self._counts))

    def _start(self, job: Any) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._is_over.set()

    async def _forever(self, flow: Callable[[], Awaitable[None]]) -> None:
        while not self._is_over.is_set():
            await flow()

    async def _long(self) -> None:
        """Connect, and speak now and then for as long as the run lasts."""
        async with self._connection("long") as connection:
            if connection is None:
                return
            # Once it is reset another one may have its port, before this one speaks again and notices.
            number = next(self._numbers)
            _say(opened=number, port=connection.port.number, at=time.monotonic())
            try:
                await self._speak(connection, number)
            finally:
                _say(closed=number, at=time.monotonic())

    async def _speak(self, connection: Connection, number: int) -> None:
        heard = False
        while not self._is_over.is_set():
            word = self._draw.randbytes(self._draw.randint(*WORD_BYTES))
            began = time.monotonic()
            error = await _exchange(connection, word, SILENCE_S)
            self._note("long", connection.port, began, error, number=number, heard=heard)
            heard = True
            if error is not None:
                return
            await self._pause()

    async def _short(self) -> None:
        """Connect, ask, and close."""
        async with self._connection("short") as connection:
            if connection is None:
                return
            began = time.monotonic()
            error = await _exchange(connection, self._draw.randbytes(200), SILENCE_S)
            self._note("short", connection.port, began, error)

    async def _bulk(self) -> None:
        """Send megabytes, and compare the hash of what comes back."""
        async with self._connection("bulk") as connection:
            if connection is None:
                return
            port, reader, writer = connection
            sent, received, gaps = hashlib.sha256(), hashlib.sha256(), [0.0]
            began = time.monotonic()

            async def send() -> None:
                for _ in range(BULK_BYTES // CHUNK):
                    chunk = self._draw.randbytes(CHUNK)
                    sent.update(chunk)
                    writer.write(chunk)
                    await writer.drain()

            async def receive() -> None:
                left = BULK_BYTES
                while left:
                    last = time.monotonic()
                    async with asyncio.timeout(SILENCE_S):
                        chunk = await reader.read(CHUNK)
                    if not chunk:
                        raise ConnectionError("closed early")
                    gaps.append(time.monotonic() - last)
                    received.update(chunk)
                    left -= len(chunk)

            error = await _outcome(_both(send(), receive()))
            if error is None and sent.digest() != received.digest():
                error = "another hash"
            self._note("bulk", port, began, error, stalled_s=max(gaps), heard=len(gaps) > 1)
            # A pause, so that the cores are not full of bulk all the while.
            await asyncio.sleep(self._draw.uniform(*PAUSE_S))

    async def _udp(self) -> None:
        """Send datagrams by one socket, each again until its answer comes."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((self._host, self._udp_port))
            port, number = Port(sock.getsockname()[1], time.monotonic()), 0
            self._counts["udp"] += 1
            while not self._is_over.is_set():
                began, number = time.monotonic(), number + 1
                error = await _outcome(asyncio.wait_for(_ask(sock, b"%d" % number), SILENCE_S))
                self._note("udp", port, began, error)
                await self._pause()

    async def _pause(self) -> None:
        """Say nothing for a while, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._draw.uniform(*PAUSE_S)):
                await self._is_over.wait()

    @contextlib.asynccontextmanager
    async def _connection(self, kind: str) -> AsyncIterator[Connection | None]:
        """Give a new connection; None, and say so, when there is none to be had."""
        self._counts[kind] += 1
        began, sock = time.monotonic(), socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        # Bound before it connects: its placement can be looked up even when it fails.
        sock.bind(("0.0.0.0", 0))
        port = Port(sock.getsockname()[1], began)
        error = await _outcome(
            asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (self._host, self._tcp_port)), SILENCE_S)
        )
        self._note(kind, port, began, error, what="connect")
        if error is not None:
            sock.close()
            yield None
            await asyncio.sleep(PAUSE_S[1])
            return
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            yield Connection(port, reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _note(
        self,
        kind: str,
        port: Port,
        began: float,
        error: str | None,
        what: str = "exchange",
        stalled_s: float | None = None,
        number: int | None = None,
        heard: bool = False,
    ) -> None:
        """
        Say what is worth a word: what broke, and what took long. `number`: of a long flow that is open. `heard`:
        whether its server had said something before.
        """
        now = time.monotonic()
        stalled_s = now - began if stalled_s is None else stalled_s
        self._counts[f"{kind} {what}"] += 1
        words = {"flow": kind, "port": port.number, "since": port.since, "heard": heard, "number": number}
        words |= {"what": what, "began": began, "ended": now}
        if error is not None:
            _say(**words, error=error)
        elif stalled_s > STALL_S:
            _say(**words, stalled_s=stalled_s)


async def _exchange(connection: Connection, word: bytes, limit_s: float) -> str | None:
    _, reader, writer = connection

    async def exchange() -> None:
        writer.write(word)
        async with asyncio.timeout(limit_s):
            answer = await reader.readexactly(len(word))
        if answer != word:
            raise ConnectionError("other bytes came back")

    return await _outcome(exchange())


async def _ask(sock: socket.socket, text: bytes) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            await loop.sock_sendall(sock, text)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATAGRAM_S):
                    # Late answers to a datagram that was sent again are none to this one.
                    while await loop.sock_recv(sock, 64) != text:
                        pass
                    return
        # Refused at once: not again at once.
        await asyncio.sleep(DATAGRAM_S / 10)


async def _both(one: Any, other: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(one)
        group.create_task(other)


async def _outcome(job: Any) -> str | None:
    """Return what went wrong; None: nothing."""
    try:
        await job
    except (OSError, EOFError, ExceptionGroup) as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "silence"
    if not isinstance(error, OSError | EOFError):
        raise error
    number = getattr(error, "errno", None)
    if isinstance(error, ConnectionResetError):
        # The streams of asyncio say so without a number where they knew before.
        number = errno.ECONNRESET
    return os.strerror(number).lower() if number else str(error) or type(error).__name__


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Speak as the arguments say."""
    parser = argparse.ArgumentParser(description="The clients of a run of chaos.")
    parser.add_argument("--vip", required=True)
    for name in ("tcp-port", "udp-port", "seed", "long", "bulk", "udp"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--short", type=float, required=True, help="connections per second")
    options = parser.parse_args()
    speaker = Speaker(options.vip, options.tcp_port, options.udp_port, options.seed)
    asyncio.run(speaker.run(options.long, options.short, options.bulk, options.udp))


if __name__ == "__main__":
    main()
