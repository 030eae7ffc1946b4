"""
What a `.load` file says: the course's six fields, and our own directives in comments.

    <start_time> <vip> <vport> <enum_size> <interval> <chunk_num>

`#` starts a comment. A line that starts with `#!` and a space is a directive, which the course's program takes for a
comment: `#! only CLIENT`, `#! everybody`, `#! TIME lose SERVER`, `#! TIME return SERVER`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from lb.config.toml.excerpt import block
from lb.errors import ConfigError

SIZES = (100, 500, 1000)
FIELDS = ("start_time", "vip", "vport", "enum_size", "interval", "chunk_num")
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_CHUNKS = 10**9
# A year: a longer wait is a slip of the pen, and clocks stay exact below it.
MAX_SECONDS = 366 * 24 * 3600.0

Action = Literal["lose", "return"]
_ACTIONS = ("lose", "return")
_WORD = re.compile(r"\S+")
_DIRECTIVE = re.compile(r"\s*#!(?=\s)")
# Host names as RFC 1123 has them; what looks like a number is held to be an address.
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.?)*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# float() takes 1_000, digits of other scripts and "nan"; a file or an option that others read has none of them.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DIRECTIVES = "only CLIENT, everybody, TIME lose SERVER, TIME return SERVER"


@dataclass(frozen=True, slots=True)
class LoadLine:
    """
    Fetches one after the other.

    Args:
        start_s: seconds after the start of the load.
        vip, port: of the service.
        size: bitrate class of the chunks, in kbit/s.
        interval_s: seconds between the end of a fetch and the next.
        chunks: how many.
        client: the only client that plays this line; None: all do.
    """

    start_s: float
    vip: str
    port: int
    size: int
    interval_s: float
    chunks: int
    client: str | None = None

    def __str__(self) -> str:
        return f"{self.start_s:g} {self.vip} {self.port} {self.size} {self.interval_s:g} {self.chunks}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a server `at_s` seconds after the start: it is lost, or returns."""

    at_s: float
    action: Action
    server: str


@dataclass(frozen=True, slots=True)
class Load:
    """A whole file. `events`: in order of time."""

    name: str
    lines: tuple[LoadLine, ...]
    events: tuple[Event, ...] = ()


class _Word(NamedTuple):
    text: str
    column: int


class _MistakeError(Exception):
    """A word that is not what it should be. `column`: from 1."""

    def __init__(self, column: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.column, self.message, self.hint = column, message, hint


def read(path: Path) -> Load:
    """
    Read a `.load` file.

    Raises:
        ConfigError: it cannot be read, or lines are wrong; with all of them.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_FILE_BYTES} bytes: this is not a load"])
    return parse(data.decode(errors="replace").removeprefix("\ufeff"), str(path))


def parse(text: str, name: str = "load") -> Load:
    """
    Read the text of a `.load` file.

    Args:
        text: the lines.
        name: stands for the file in messages.

    Raises:
        ConfigError: lines are wrong, each with file:line:column, the line and the reason; or there is none.
    """
    source = text.replace("\r\n", "\n")
    lines: list[LoadLine] = []
    events: list[Event] = []
    problems: list[str] = []
    client: str | None = None
    for number, row in enumerate(source.split("\n"), 1):
        try:
            if directive := _DIRECTIVE.match(row):
                found = _parse_directive(_words(row, directive.end()), len(row.rstrip()) + 1)
                if isinstance(found, Event):
                    events.append(found)
                else:
                    client = found
            elif words := _words(row.split("#", 1)[0]):
                lines.append(_parse_line(words, len(row.split("#", 1)[0].rstrip()) + 1, client))
        except _MistakeError as mistake:
            problems.append(block(name, source, number, mistake.column, mistake.message, mistake.hint))
    if not lines and not problems:
        problems.append(f"{name}: no line: there is nothing to fetch")
    if problems:
        raise ConfigError(problems)
    return Load(name, tuple(lines), tuple(sorted(events, key=lambda event: event.at_s)))


def _words(text: str, start: int = 0) -> list[_Word]:
    return [_Word(match[0], match.start() + 1) for match in _WORD.finditer(text, start)]


def _parse_line(words: list[_Word], end: int, client: str | None) -> LoadLine:
    if len(words) != len(FIELDS):
        column = words[len(FIELDS)].column if len(words) > len(FIELDS) else end
        count = f"{len(words)} field{'s' if len(words) != 1 else ''}"
        raise _MistakeError(column, f"{count}, not {len(FIELDS)}", " ".join(f"<{field}>" for field in FIELDS))
    parsers: tuple[Callable[[str], Any], ...] = (_seconds, _host, _port, _size, _seconds, _chunks)
    values = [_field(word, name, parse) for word, name, parse in zip(words, FIELDS, parsers, strict=True)]
    start_s, vip, port, size, interval_s, chunks = values
    return LoadLine(start_s, vip, port, size, interval_s, chunks, client)


def _field(word: _Word, name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(word.text)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise _MistakeError(word.column, f"{name}: {message}", hint) from None


def decimal(text: str) -> float:
    """
    Read a decimal number as people and other programs write it, in ASCII digits.

    Raises:
        ValueError: it is anything else.
    """
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def _seconds(text: str) -> float:
    try:
        value = decimal(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds") from None
    if not math.isfinite(value) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{text} is not in 0..{MAX_SECONDS:.0f} seconds")
    return value


def _integer(text: str, low: int, high: int) -> int:
    # int() takes 1_000 and digits of other scripts; a load file has neither.
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not an integer")
    if not low <= int(text) <= high:
        raise ValueError(f"{text} is not in {low}..{high}")
    return int(text)


def _port(text: str) -> int:
    return _integer(text, 1, 65535)


def _chunks(text: str) -> int:
    return _integer(text, 0, MAX_CHUNKS)


def _size(text: str) -> int:
    allowed = "100, 500, 1000"
    try:
        value = _integer(text, 0, 10**9)
    except ValueError:
        raise ValueError(f"{text!r} is not a size; allowed: {allowed}") from None
    if value not in SIZES:
        raise ValueError(f"{text} is not a size; allowed: {allowed}")
    return value


def _host(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        if _HOST_NAME.fullmatch(text) and len(text) < 254:
            return text
    raise ValueError(f"{text!r} is neither an address nor a host name") from None


def _parse_directive(words: list[_Word], end: int) -> Event | str | None:
    """Return an event, or the client whose lines follow, None for all clients."""
    match [word.text for word in words]:
        case ["everybody"]:
            return None
        case ["only", client]:
            return _name(client, words[1].column)
        case [_, action, server] if action in _ACTIONS:
            at_s = _field(words[0], "time", _seconds)
            return Event(at_s, cast(Action, action), _name(server, words[2].column))
    raise _MistakeError(words[0].column if words else end, "unknown directive", f"after #!: {_DIRECTIVES}")


def _name(text: str, column: int) -> str:
    if not _PLAIN_NAME.fullmatch(text):
        raise _MistakeError(column, f"{text!r} is not a name")
    return text
