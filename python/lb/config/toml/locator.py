"""
Find where each key of a TOML document stands, so that a configuration error can point at it.

Control side, used by `lb.config` only: `tomllib` returns values without positions. This scanner walks text that
`tomllib` has already accepted, so it checks nothing and decodes no values; it follows tables, arrays of tables,
dotted keys, inline tables and the four string forms (TOML 1.0) just far enough to know the path of each key. Lines
and columns count from 1, columns in characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Path: TypeAlias = tuple[str | int, ...]

BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
SPACE = re.compile(r"[ \t]*")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SCALAR = re.compile(r"[^,\]}#\n]+")
# Longest first: three quotes open a string that one quote does not end.
STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\])*"'),
    re.compile(r"'[^']*'"),
)
ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


class Position(NamedTuple):
    """A place in the source. `line`, `column`: from 1."""

    line: int
    column: int


START = Position(1, 1)


@dataclass
class Locator:
    """Where the keys and values of a document are, by path: `("service", 0, "port")`."""

    keys: dict[Path, Position] = field(default_factory=dict)
    values: dict[Path, Position] = field(default_factory=dict)

    def key(self, path: Path) -> Position:
        """Return the position of a key; of the nearest table above it when the key is not there."""
        return self._nearest(self.keys, path)

    def value(self, path: Path) -> Position:
        """Return the position of a value; of the nearest table above it when the value is not there."""
        return self._nearest(self.values, path)

    @staticmethod
    def _nearest(places: dict[Path, Position], path: Path) -> Position:
        for length in range(len(path), 0, -1):
            if path[:length] in places:
                return places[path[:length]]
        return START


def locate(source: str) -> Locator:
    """
    Find every key and value of a document.

    Args:
        source: TOML text that `tomllib` accepts, its lines ended by a line feed alone.
    """
    return _Scanner(source).scan()


class _Scanner:
    def __init__(self, source: str) -> None:
        self.source = source
        self.offset = 0
        self.locator = Locator()
        self.lengths: dict[Path, int] = {}
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", source))]

    def scan(self) -> Locator:
        table: Path = ()
        while self._skip_blank():
            if self.source.startswith("[", self.offset):
                table = self._header()
            else:
                self._assignment(table)
        return self.locator

    def _skip_blank(self) -> bool:
        if match := BLANK.match(self.source, self.offset):
            self.offset = match.end()
        return self.offset < len(self.source)

    def _position(self, offset: int) -> Position:
        low, high = 0, len(self.line_starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.line_starts[middle] <= offset else (low, middle)
        return Position(low + 1, offset - self.line_starts[low] + 1)

    def _header(self) -> Path:
        """Read `[a.b]` or `[[a.b]]`; return the path of the table that follows."""
        start = self._position(self.offset)
        is_array = self.source.startswith("[[", self.offset)
        self.offset += 2 if is_array else 1
        path: Path = ()
        parts = self._key_parts()
        for number, (part, _) in enumerate(parts):
            path = (*path, part)
            is_last = number == len(parts) - 1
            if is_last and is_array:
                self.lengths[path] = self.lengths.get(path, 0) + 1
                self._note(path, start)
            if path in self.lengths:
                path = (*path, self.lengths[path] - 1)
            self._note(path, start)
        self.offset += 2 if is_array else 1
        return path

    def _note(self, path: Path, position: Position) -> None:
        self.locator.keys.setdefault(path, position)
        self.locator.values.setdefault(path, position)

    def _key_parts(self) -> list[tuple[str, Position]]:
        """Read a dotted key up to what follows it."""
        parts = []
        while True:
            self._skip_space()
            start = self.offset
            parts.append((self._key_part(), self._position(start)))
            self._skip_space()
            if not self.source.startswith(".", self.offset):
                return parts
            self.offset += 1

    def _skip_space(self) -> None:
        match = SPACE.match(self.source, self.offset)
        self.offset = match.end() if match else self.offset

    def _key_part(self) -> str:
        if match := BARE_KEY.match(self.source, self.offset):
            self.offset = match.end()
            return match.group()
        text = self._string()
        return text[1:-1] if text.startswith("'") else ESCAPE.sub(_unescape, text[1:-1])

    def _string(self) -> str:
        for pattern in STRINGS:
            if match := pattern.match(self.source, self.offset):
                self.offset = match.end()
                return match.group()
        self.offset += 1
        return "''"

    def _assignment(self, table: Path) -> None:
        """Read `key = value` in a table."""
        path = table
        for part, position in self._key_parts():
            path = (*path, part)
            self.locator.keys.setdefault(path, position)
        self._skip_space()
        self.offset += 1
        self._skip_space()
        self._value(path)

    def _value(self, path: Path) -> None:
        self.locator.values[path] = self._position(self.offset)
        opening = self.source[self.offset : self.offset + 1]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        elif opening in ('"', "'"):
            self._string()
        elif match := SCALAR.match(self.source, self.offset):
            self.offset = match.end()

    def _array(self, path: Path) -> None:
        self.offset += 1
        number = 0
        while self._skip_blank() and self.source[self.offset] != "]":
            self.locator.keys[(*path, number)] = self._position(self.offset)
            self._value((*path, number))
            self._skip_blank()
            if self.source.startswith(",", self.offset):
                self.offset += 1
            number += 1
        self.offset += 1

    def _inline_table(self, path: Path) -> None:
        self.offset += 1
        while self._skip_blank() and self.source[self.offset] != "}":
            self._assignment(path)
            self._skip_blank()
            if self.source.startswith(",", self.offset):
                self.offset += 1
        self.offset += 1


def _unescape(match: re.Match[str]) -> str:
    short, long, other = match.groups()
    if short or long:
        return chr(int(short or long, 16))
    return ESCAPED.get(other, other)
