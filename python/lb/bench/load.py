"""Load on a contestant at work: `wrk` when it is installed, else our own client, in client1, bounded in time."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from lb.bench import programs
from lb.bench.contestants.base import Working
from lb.bench.settings import Settings
from lb.bench.web import SMALL_PATH
from lb.errors import LbError, TestbedError
from lb.testbed.bed import Testbed
from lb.testbed.topology import Host

CLIENT = "client1"
ANSWER_DEADLINE_S = 10.0
# What wrk counts, unrounded: its own text says gigabytes with two digits.
_SCRIPT = """function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('\\n{"responses": %d, "bytes": %d, "seconds": %.6f, "errors": %d}\\n', summary.requests,
        summary.bytes, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status))
end
"""


@dataclass(frozen=True, slots=True)
class Field:
    """Where measures take place. `tool`: `wrk` or `own`."""

    bed: Testbed
    server: Host
    settings: Settings
    tool: str


@dataclass(frozen=True, slots=True)
class Load:
    """What a load got: whole responses, bytes, and the seconds it took."""

    responses: int
    received: int
    seconds: float


def choose_tool() -> str:
    """Return `wrk` when it is installed, else `own`."""
    return "wrk" if programs.find("wrk") else "own"


def apply(field: Field, working: Working, path: str, close: bool = False) -> Load:
    """
    Let the client ask for a path on many connections at once.

    Args:
        field: where.
        working: whom.
        path: what.
        close: whether each request gets a connection of its own.

    Raises:
        LbError: an answer was wrong, or none came.
    """
    raw = _with_wrk(field, working, path, close) if field.tool == "wrk" else _with_own(field, working, path, close)
    found = Load(int(raw["responses"]), int(raw["bytes"]), float(raw["seconds"]))
    if found.received == 0:
        raise LbError(f"no answer within {found.seconds:.1f} s")
    return found


def _with_wrk(field: Field, working: Working, path: str, close: bool) -> dict[str, Any]:
    script = field.bed.directory / "wrk.lua"
    script.write_text(_SCRIPT)
    settings = field.settings
    command = [programs.find("wrk") or "wrk", "-t1", f"-c{settings.connections}", f"-d{settings.load_s}s"]
    command += ["-s", str(script), *(["-H", "Connection: close"] if close else [])]
    text = programs.run(
        field.bed, CLIENT, [*command, f"http://{working.address}:{working.port}{path}"], seconds=settings.load_s
    )
    raw: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    if raw["errors"]:
        raise LbError(f"{raw['errors']} of {raw['responses']} requests failed")
    return raw


def _with_own(field: Field, working: Working, path: str, close: bool) -> dict[str, Any]:
    options = ["--connections", str(field.settings.connections), *(["--close"] if close else [])]
    return ask(field.bed, working, path, field.settings.load_s, *options)


def ask(bed: Testbed, working: Working, path: str, seconds: float, *options: str, host: str = CLIENT) -> dict[str, Any]:
    """Run our own client in a host with these options and return what it printed. Raise LbError when it failed."""
    arguments = [str(working.address), str(working.port), path, "--seconds", str(seconds), *options]
    command = [sys.executable, "-P", "-m", "lb.bench.client", *arguments]
    answer: dict[str, Any] = json.loads(programs.run(bed, host, command, seconds=seconds))
    return answer


def wait_answer(bed: Testbed, working: Working) -> None:
    """
    Wait until the client gets a first answer: a contestant that has just started resolves neighbours first.

    Raises:
        LbError: none in time.
    """
    from lb.bench.client import AnswerError, exchange, request

    target = (str(working.address), working.port)
    deadline = time.monotonic() + ANSWER_DEADLINE_S
    while True:
        try:
            with bed.inside(CLIENT):
                exchange(target, request(target[0], SMALL_PATH, True))
        except (OSError, AnswerError) as error:
            if time.monotonic() >= deadline:
                raise TestbedError(f"no answer from {target[0]}:{target[1]}: {error}") from error
            time.sleep(0.02)
            continue
        return
