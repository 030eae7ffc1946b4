"""The configuration that `lb init` writes: every key, with its default and what it means, as the model declares it."""

from __future__ import annotations

import os
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from lb.config.model import Config
from lb.errors import LbError
from lb.fields.key import Declared, keys_of
from lb.fields.schema import choices, properties_of, toml, unit, value_range

HEAD = """\
# flowlb configuration. `lb check` validates it, `lb config schema` prints its JSON Schema.
# Durations carry a unit: "500ms", "30s", "2h". Commented keys show their defaults.
# A change takes effect with `lb reload`; where "restart" is said, with the next start.
"""
WIDTH = 119
NO_BREAK = "\u00a0"
# A second element of an array shows how it goes on: only what it must have.
MORE: Mapping[str, Mapping[str, Any]] = {"server": {"name": "server2", "address": "198.18.1.32", "port": 8032}}


class _Row(NamedTuple):
    """A line of the template. `text`: what TOML reads, once `#` is taken away; empty: a blank line."""

    text: str
    comment: str = ""


def template() -> str:
    """Return the template."""
    rows = list(_keys(Config, ""))
    column = max(len(row.text) for row in rows) + 2
    lines = (line for row in rows for line in _aligned(row, column))
    return "\n".join([HEAD, *lines, ""])


def _keys(model: type[BaseModel], path: str, *, is_optional: bool = False) -> Iterator[_Row]:
    """
    Yield the keys of a table, then the tables in it: what follows a table's header belongs to that.

    Args:
        model: of the table.
        path: its name; empty: the whole file.
        is_optional: it is not there by default, and so are its keys.
    """
    for declared in keys_of(model):
        if declared.table is None:
            yield _assignment(model, declared, _indent(path), is_optional=is_optional)
    for declared in keys_of(model):
        if declared.table is not None:
            yield from _table(declared.table, declared, f"{path}.{declared.name}".lstrip("."))


def _indent(path: str) -> str:
    return "  " * path.count(".")


def _table(table: type[BaseModel], declared: Declared, path: str) -> Iterator[_Row]:
    indent = _indent(path)
    header = f"{indent}[[{path}]]" if declared.is_array else f"{indent}# [{path}]"
    yield _Row("")
    yield _Row(header, declared.key.description)
    yield from _keys(table, path, is_optional=not declared.is_array)
    if declared.name in MORE:
        yield _Row("")
        yield _Row(header)
        yield from (_Row(f"{indent}{name} = {toml(value)}") for name, value in MORE[declared.name].items())


def _assignment(model: type[BaseModel], declared: Declared, indent: str, *, is_optional: bool) -> _Row:
    schema = properties_of(model)[declared.name]
    value = schema.get("default", declared.key.example)
    mark = "" if declared.required and not is_optional else "# "
    return _Row(f"{indent}{mark}{declared.name} = {toml(value)}", _comment(declared, schema))


def _comment(declared: Declared, schema: Mapping[str, Any]) -> str:
    """Return what is said about a key: what it does, what it may be, when it takes effect, what holds without it."""
    limits = " | ".join(choices(schema)) or f"{value_range(schema)} {unit(schema)}".strip()
    restart = "restart" if declared.key.reload == "restart" else ""
    brackets = ", ".join(filter(None, (limits, restart)))
    other = declared.key.example if "default" in schema else None
    parts = (
        declared.key.description + (f" ({_unbroken(brackets)})" if brackets else ""),
        f"or {_unbroken(toml(other))}" if other is not None else "",
        f"default: {declared.key.unset}" if declared.key.unset else "",
        declared.key.note,
    )
    return "; ".join(filter(None, parts))


def _unbroken(text: str) -> str:
    """Return a text that is not broken over lines."""
    return text.replace(" ", NO_BREAK)


def _aligned(row: _Row, column: int) -> Iterable[str]:
    """Return a row with its comment beside it, from a column on, continued below where it is too long."""
    if not row.comment:
        return [row.text]
    first, *rest = (line.replace(NO_BREAK, " ") for line in textwrap.wrap(row.comment, WIDTH - column - 4))
    return [f"{row.text:{column}}# {first}", *(f"{'':{column}}#   {line}" for line in rest)]


def write_template(path: pathlib.Path, *, overwrite: bool) -> None:
    """
    Write the template to a file.

    Raises:
        LbError: the file is there and `overwrite` is not set, or it cannot be written.
    """
    try:
        # Whatever the umask: a file that its group can write is not believed (`lb.privileges.trust`).
        with open(path, "w" if overwrite else "x", encoding="utf-8", opener=_open_0644) as file:
            file.write(template())
    except FileExistsError:
        raise LbError(f"{path} already exists: --force overwrites it") from None
    except OSError as error:
        raise LbError(f"{path} cannot be written: {error.strerror}") from error


def _open_0644(name: str, flags: int) -> int:
    return os.open(name, flags, 0o644)
