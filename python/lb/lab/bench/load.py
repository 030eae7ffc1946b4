"""
Load on a contestant at work: `wrk` when it is installed, else our own client, bounded in time.

Each kind of load has its own host, so that one does not inherit the TIME_WAIT sockets of another.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from lb.errors import LbError, TestbedError
from lb.lab.bench import programs
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.settings import Settings
from lb.lab.bench.web_client import SLOW_S
from lb.lab.bench.web_server import SMALL_PATH
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import Host

CLIENT, PACED_CLIENT, CLOSING_CLIENT = "client1", "client2", "client3"
CLIENTS = (CLIENT, PACED_CLIENT, CLOSING_CLIENT)
ANSWER_DEADLINE_S = 10.0
# What wrk counts, unrounded: its own text says gigabytes with two digits. It times requests, not connects. A time T
# stands in its statistics with copies at T - e, T - 2e, ... above e, where e is the time between two requests of a
# connection (its correction of coordinated omission), so the requests beyond a limit are the entries of the first e.
_SCRIPT = """function done(summary, latency, requests)
    local e, slow, apart = summary.errors, 0, 0
    local each = math.floor(summary.requests / CONNECTIONS)
    if each > 0 then apart = math.floor(summary.duration / each) end
    for i = 1, #latency do
        local value, count = latency(i)
        if value > LIMIT and value <= math.max(LIMIT + apart, 2 * apart) then slow = slow + count end
    end
    io.write(string.format('\\n{"responses": %d, "bytes": %d, "seconds": %.6f, "failed": %d, "slow": %d}\\n',
        summary.requests, summary.bytes, summary.duration / 1e6,
        e.connect + e.read + e.write + e.timeout + e.status, slow))
end
"""


@dataclass(frozen=True, slots=True)
class Field:
    """Where measures take place. `tool`: `wrk` or `own`."""

    testbed: Testbed
    server: Host
    settings: Settings
    tool: str


@dataclass(frozen=True, slots=True)
class Load:
    """
    What a load got: whole responses, bytes, and the seconds it took; beside them requests that `failed`, or were `slow`
    (of small pages: a large one may take its time).
    """

    responses: int
    received: int
    seconds: float
    failed: int
    slow: int


class Measured(NamedTuple):
    """What a measure found: values by metric, and how much of the load failed or was slow."""

    figures: dict[str, float]
    failed: int = 0
    slow: int = 0


def choose_tool() -> str:
    """Return `wrk` when it is installed, else `own`."""
    return "wrk" if programs.find("wrk") else "own"


def apply(field: Field, working: Working, path: str, close: bool = False) -> Load:
    """
    Let the client ask for a path on many connections at once.

    Args:
        field: where.
        working: the target.
        path: what.
        close: whether each request gets a new connection.

    Raises:
        LbError: no answer came.
    """
    raw = _with_wrk(field, working, path, close) if field.tool == "wrk" else _with_own(field, working, path, close)
    slow = int(raw["slow"]) if path == SMALL_PATH else 0
    found = Load(int(raw["responses"]), int(raw["bytes"]), float(raw["seconds"]), int(raw["failed"]), slow)
    if found.received == 0:
        raise LbError(f"no answer within {found.seconds:.1f} s ({found.failed} requests failed)")
    return found


def _with_wrk(field: Field, working: Working, path: str, close: bool) -> dict[str, Any]:
    script = field.testbed.directory / "wrk.lua"
    settings = field.settings
    limit_us = int(SLOW_S * 1e6)
    script.write_text(_SCRIPT.replace("CONNECTIONS", str(settings.connections)).replace("LIMIT", str(limit_us)))
    command = [programs.find("wrk") or "wrk", "-t1", f"-c{settings.connections}", f"-d{settings.load_s}s"]
    command += ["-s", str(script), *(["-H", "Connection: close"] if close else [])]
    text = programs.run(
        field.testbed,
        host_of(close),
        [*command, f"http://{working.address}:{working.port}{path}"],
        seconds=settings.load_s,
    )
    raw: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return raw


def _with_own(field: Field, working: Working, path: str, close: bool) -> dict[str, Any]:
    options = ["--connections", str(field.settings.connections), *(["--close"] if close else [])]
    return ask(field.testbed, working, path, field.settings.load_s, *options, host=host_of(close))


def host_of(close: bool) -> str:
    """Return the host that a load comes from; `close`: as `apply`."""
    return CLOSING_CLIENT if close else CLIENT


def ask(testbed: Testbed, working: Working, path: str, seconds: float, *options: str, host: str) -> dict[str, Any]:
    """Run our own client in a host with these options and return what it printed. Raise LbError when it failed."""
    arguments = [str(working.address), str(working.port), path, "--seconds", str(seconds), *options]
    command = [sys.executable, "-P", "-m", "lb.lab.bench.web_client", *arguments]
    answer: dict[str, Any] = json.loads(programs.run(testbed, host, command, seconds=seconds))
    return answer


def wait_answer(testbed: Testbed, working: Working, host: str = CLIENT) -> None:
    """
    Wait until a client gets a first answer: a contestant that has just started resolves neighbours first.

    Raises:
        LbError: none in time.
    """
    from lb.lab.bench.web_client import AnswerError, exchange, request

    target = (str(working.address), working.port)
    deadline = time.monotonic() + ANSWER_DEADLINE_S
    while True:
        try:
            with testbed.inside(host):
                exchange(target, request(target[0], SMALL_PATH, True))
        except (OSError, AnswerError) as error:
            if time.monotonic() >= deadline:
                raise TestbedError(f"no answer from {target[0]}:{target[1]}: {error}") from error
            time.sleep(0.02)
            continue
        return
