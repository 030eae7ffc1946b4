"""
What a run yields, one record after the other, and how a record crosses from a client's process: a line of JSON.

Times are seconds after the start of the run, on the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

# Of an answer without X-Served-By: it came from a server, and who that is has not been said.
UNKNOWN_SERVER = "unknown"
# There was no answer.
NO_SERVER = "-"


@dataclass(frozen=True, slots=True)
class Fetch:
    """
    One fetch.

    Args:
        client: who fetched.
        line: of the load file, from 0. round, number: of the repetition, and of the fetch in its line, from 0.
        size: bitrate class in kbit/s.
        intended_s, started_s, ended_s: when it should have started, when it did, when its last byte came.
        received: bytes of the body.
        server: what X-Served-By said; UNKNOWN_SERVER when an answer does not name its server, NO_SERVER without one.
        error: why it failed; empty when it did not.
        attempts: 1, and one for each retry.
    """

    client: str
    line: int
    round: int
    number: int
    size: int
    intended_s: float
    started_s: float
    ended_s: float
    received: int
    server: str
    error: str = ""
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return not self.error

    @property
    def duration_s(self) -> float:
        """Seconds from its actual start."""
        return self.ended_s - self.started_s

    @property
    def response_s(self) -> float:
        """Seconds from its intended start: how long a client that came then had to wait."""
        return self.ended_s - self.intended_s

    @property
    def lag_s(self) -> float:
        """Seconds it started late."""
        return self.started_s - self.intended_s


@dataclass(frozen=True, slots=True)
class LineStarted:
    """A client begins to play a line."""

    client: str
    line: int
    round: int


@dataclass(frozen=True, slots=True)
class LineEnded:
    """A client has played a line. `mean_s`: of its fetches that succeeded, 0 without one; `fetches`: of all."""

    client: str
    line: int
    round: int
    fetches: int
    mean_s: float


@dataclass(frozen=True, slots=True)
class Playback:
    """
    What a viewer of a player saw.

    Args:
        start_s: when it asked for its first chunk. startup_s: how long until the picture moved; None: it never did.
        end_s: when its last chunk came.
        stalls: begin and end of each standstill after that.
        played_s: seconds of video it has got.
        switches: how often the bitrate changed.
        points: (time, bitrate of the chunk in kbit/s, seconds in the buffer), whenever a chunk had come.
    """

    client: str
    line: int
    round: int
    start_s: float
    startup_s: float | None
    end_s: float
    stalls: tuple[tuple[float, float], ...]
    played_s: float
    switches: int
    points: tuple[tuple[float, int, float], ...]

    @property
    def stalled_s(self) -> float:
        """Seconds it stood still after its start."""
        return sum(end_s - begin_s for begin_s, end_s in self.stalls)

    @property
    def bitrate(self) -> float:
        """Mean bitrate of its chunks in kbit/s; 0 without one."""
        return sum(bitrate for _, bitrate, _ in self.points) / len(self.points) if self.points else 0.0


Record: TypeAlias = Fetch | LineStarted | LineEnded | Playback
Emit: TypeAlias = Callable[[Record], None]
_KINDS: dict[str, Callable[..., Record]] = {
    "fetch": Fetch,
    "started": LineStarted,
    "ended": LineEnded,
    "playback": Playback,
}
# What a client's process says beside records, each a line: it has read a plan, it has played it.
READY, DONE = json.dumps({"kind": "ready"}), json.dumps({"kind": "done"})
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_json(record: Record) -> str:
    """Return a record as one line, without its end."""
    # Not asdict(): it copies, and there may be thousands of records a second.
    fields = {name: getattr(record, name) for name in type(record).__slots__}
    return json.dumps({"kind": _NAMES[type(record)], **fields})


def from_json(line: str | bytes) -> Record:
    """Read what `to_json` wrote."""
    fields: dict[str, Any] = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    if kind is Playback:
        fields |= {name: tuple(map(tuple, fields[name])) for name in ("stalls", "points")}
    return kind(**fields)
