"""
The load that `lb run --testbed` replays: one process per client host, reading the course's load lines.

    <start_time> <vip> <vport> <enum_size> <interval> <chunk_num>

Run as `python -m lb.testbed.load` with the lines on standard input; each fetch becomes one line of JSON on standard
output. Every fetch is a connection of its own, so that each is placed anew; the rate is bounded. Standard library
only: it starts fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from lb.errors import TestbedError

SIZES = (100, 500, 1000)
MAX_RATE_HZ = 100.0
TIMEOUT_S = 5.0
HEADER_LIMIT_BYTES = 16384
GREETING = b"Hello through the balancer\n"


@dataclass(frozen=True, slots=True)
class LoadLine:
    """Fetches of one player. `start_s`, `interval_s`: seconds; `size`: bitrate class in kbit/s; `chunks`: how many."""

    start_s: float
    vip: str
    port: int
    size: int
    interval_s: float
    chunks: int

    def __str__(self) -> str:
        return f"{self.start_s:g} {self.vip} {self.port} {self.size} {self.interval_s:g} {self.chunks}"


def parse_load(text: str, name: str = "load") -> list[LoadLine]:
    """
    Read load lines; `#` starts a comment.

    Raises:
        TestbedError: a line is wrong; says its number and why.
    """
    return [_parse_line(words, f"{name}:{number}") for number, words in _significant(text)]


def _significant(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if words:
            yield number, words


def _parse_line(words: list[str], where: str) -> LoadLine:
    if len(words) != 6:
        raise TestbedError(f"{where}: {len(words)} fields, not 6: start_time vip vport enum_size interval chunk_num")
    try:
        line = LoadLine(
            float(words[0]), str(ip_address(words[1])), int(words[2]), int(words[3]), float(words[4]), int(words[5])
        )
    except ValueError as error:
        raise TestbedError(f"{where}: {error}") from error
    if line.size not in SIZES:
        raise TestbedError(f"{where}: enum_size {line.size} is not one of 100, 500, 1000")
    if not 1 <= line.port <= 65535:
        raise TestbedError(f"{where}: vport {line.port} is not in 1..65535")
    if not (0 <= line.start_s < float("inf") and 0 <= line.interval_s < float("inf") and line.chunks >= 0):
        raise TestbedError(f"{where}: start_time, interval and chunk_num must not be negative")
    return line


class Pacer:
    """Hands out start times no closer together than a rate allows."""

    def __init__(self, rate_hz: float) -> None:
        self._gap_s = 1 / rate_hz
        self._next_s = 0.0

    async def wait(self) -> None:
        """Wait for the next start time."""
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now_s)
        delay_s, self._next_s = self._next_s - now_s, self._next_s + self._gap_s
        if delay_s > 0:
            await asyncio.sleep(delay_s)


async def fetch_chunk(line: LoadLine) -> tuple[str, int]:
    """
    Fetch one chunk over HTTP on a new connection.

    Returns:
        The name of the server that sent it (X-Served-By, or `-`), and the bytes of the body.

    Raises:
        OSError, EOFError, ValueError: no connection, an answer cut short, not 200, or not HTTP.
    """
    reader, writer = await asyncio.open_connection(line.vip, line.port, limit=HEADER_LIMIT_BYTES)
    try:
        request = f"GET /vod/{line.size}Seg2-Frag7 HTTP/1.1\r\nHost: {line.vip}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        status, fields = _parse_header(await reader.readuntil(b"\r\n\r\n"))
        if status != 200:
            raise ValueError(f"HTTP status {status}")
        expected, received = int(fields.get("content-length", "-1")), 0
        while block := await reader.read(1 << 16):
            received += len(block)
        if received != expected:
            raise EOFError(f"{received} of {expected} bytes")
        return fields.get("x-served-by", "-"), received
    finally:
        writer.close()


async def exchange_greeting(line: LoadLine) -> tuple[str, int]:
    """Send a greeting to an echo service on a new connection and take it back; as `fetch_chunk`."""
    reader, writer = await asyncio.open_connection(line.vip, line.port)
    try:
        writer.write(GREETING)
        if await reader.readexactly(len(GREETING)) != GREETING:
            raise ValueError("the echo differs from what was sent")
        return "-", len(GREETING)
    finally:
        writer.close()


def _parse_header(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = raw.decode("latin-1").split("\r\n")
    words = first.split()
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ValueError("the answer is not HTTP")
    pairs = (line.partition(":") for line in rest if ":" in line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _play(line: LoadLine, pacer: Pacer, echo: bool) -> None:
    await asyncio.sleep(line.start_s)
    for _ in range(line.chunks):
        await pacer.wait()
        print(json.dumps(await _measure(line, echo)), flush=True)
        await asyncio.sleep(line.interval_s)


async def _measure(line: LoadLine, echo: bool) -> dict[str, object]:
    clock = asyncio.get_running_loop().time
    start_s = clock()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            server, size = await (exchange_greeting(line) if echo else fetch_chunk(line))
    except TimeoutError:
        return {"ok": False, "error": f"no answer within {TIMEOUT_S:g} s"}
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        return {"ok": False, "error": getattr(error, "strerror", None) or str(error)}
    return {"ok": True, "server": server, "bytes": size, "duration_s": round(clock() - start_s, 6)}


async def _play_all(lines: list[LoadLine], rate_hz: float, echo: bool) -> None:
    pacer = Pacer(rate_hz)
    await asyncio.gather(*(_play(line, pacer, echo) for line in lines))


def main() -> None:
    """Play the lines on standard input."""
    parser = argparse.ArgumentParser(description="The load of one client host.")
    parser.add_argument("--rate", type=float, default=MAX_RATE_HZ, help="most fetches per second")
    parser.add_argument("--echo", action="store_true", help="the service is echo, not the web")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_play_all(parse_load(sys.stdin.read(), "standard input"), options.rate, options.echo))


if __name__ == "__main__":
    main()
