"""
Who fetches what, and when: a load and the options become one plan, which is dealt to clients.

Pure data. An open loop (`--arrival poisson:RATE`) draws its intended starts from a seed, so that every run of the same
plan offers the same load to any server.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lb.lab.loadgen.lines import Load, LoadLine, decimal

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_CHUNK_S = 4.0


@dataclass(frozen=True, slots=True)
class Options:
    """
    How a load is played.

    Args:
        repeat: how often each client plays the file, one after the other.
        rate_hz: fetches per second of all clients together, in an open loop; None: each line waits for its answers.
        new_connection: each fetch gets a new connection; else a line keeps its connections.
        adaptive: each line is a player that buffers and switches bitrates.
        timeout_s: of one fetch, from its start to its last byte.
        retries: how often a failed fetch is tried again.
        seed: of the intended starts of an open loop.
        echo: exchange a greeting with an echo service instead of fetching.
        chunk_s: seconds of video in a chunk; only players ask.
    """

    repeat: int = 1
    rate_hz: float | None = None
    new_connection: bool = False
    adaptive: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    retries: int = 0
    seed: int = 1
    echo: bool = False
    chunk_s: float = DEFAULT_CHUNK_S


@dataclass(frozen=True, slots=True)
class Track:
    """
    One line as one client plays it.

    Args:
        number: of the line in its file, from 0.
        line: what to fetch.
        rate_hz: of its intended starts in an open loop; None: it waits for its answers.
    """

    number: int
    line: LoadLine
    rate_hz: float | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """What one client plays."""

    name: str
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What some clients play, and how."""

    options: Options
    clients: tuple[Client, ...]

    @property
    def fetches(self) -> int:
        """How many fetches it asks for, retries not counted."""
        return self.options.repeat * sum(track.line.chunks for client in self.clients for track in client.tracks)

    def only(self, name: str) -> Plan:
        """Return the part of one client."""
        return replace(self, clients=tuple(client for client in self.clients if client.name == name))


def make(load: Load, options: Options, names: Sequence[str]) -> Plan:
    """
    Deal a load to clients: each plays every line that is not another client's.

    In an open loop each line gets the share of the rate that it has of the chunks, so that lines which start together
    end together and sizes stay mixed as the file mixes them.

    Args:
        load: the file.
        options: how to play it.
        names: of the clients.
    """
    dealt = {
        name: [(number, line) for number, line in enumerate(load.lines) if line.client in (None, name)]
        for name in names
    }
    chunks = sum(line.chunks for lines in dealt.values() for _, line in lines)
    clients = []
    for name, lines in dealt.items():
        tracks = tuple(Track(number, line, _rate(options, line, chunks)) for number, line in lines)
        clients.append(Client(name, tracks))
    return Plan(options, tuple(clients))


def _rate(options: Options, line: LoadLine, chunks: int) -> float | None:
    if options.rate_hz is None or not line.chunks:
        return None
    return options.rate_hz * line.chunks / chunks


def to_json(plan: Plan) -> str:
    """Return a plan as one line."""
    return json.dumps(asdict(plan))


def from_json(text: str | bytes) -> Plan:
    """Read what `to_json` wrote."""
    raw: dict[str, Any] = json.loads(text)
    clients = (
        Client(
            client["name"],
            tuple(Track(track["number"], LoadLine(**track["line"]), track["rate_hz"]) for track in client["tracks"]),
        )
        for client in raw["clients"]
    )
    return Plan(Options(**raw["options"]), tuple(clients))


def client_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` clients."""
    return tuple(f"client{number}" for number in range(1, count + 1))


def intended_starts(track: Track, seed: int, client: str, round_number: int) -> Iterator[float]:
    """
    Yield the intended starts of an open-loop track, a Poisson process, in seconds after the start of its round.

    Every client, line and round has its own random stream.
    """
    assert track.rate_hz is not None
    # Text seeds are hashed alike on every machine.
    draws = random.Random(f"{seed}/{client}/{track.number}/{round_number}")
    at_s = track.line.start_s
    for _ in range(track.line.chunks):
        at_s += draws.expovariate(track.rate_hz)
        yield at_s


def parse_arrival(text: str) -> float:
    """
    Read `poisson:RATE`.

    Returns:
        Fetches per second.

    Raises:
        ValueError: it is anything else.
    """
    kind, _, rate = text.partition(":")
    if kind == "poisson":
        try:
            value = decimal(rate)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value > 0:
            return value
    raise ValueError(f"{text!r} is not poisson:RATE with RATE in fetches per second, above 0")
