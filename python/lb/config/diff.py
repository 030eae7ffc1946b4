"""
What differs between two configurations, key by key, and whether a reload puts it into effect (rule 18.1, reloads and
changes).

Pure. Which keys there are, how their values are shown and what a reload does with them is what the models declare
(`lb.fields.key`): nothing here knows a key by name, but for what identifies the elements of arrays. Services and
servers as they are, with what the operator asked for, are compared by `lb.control.diff`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from lb.config.model import Config, ServerConfig, ServiceConfig
from lb.fields.key import Declared, keys_of

# What a service is (`service_identity`) and where a server is, and what the operator overrides: `lb.control.diff` has
# lines of its own for them.
IDENTITY = frozenset({"name", "address", "port", "protocol"})
OVERRIDDEN = frozenset({"weight", "state"})


class Change(NamedTuple):
    """A key with another value. `key`: `flows.udp`; `before`, `after`: for people; `note`: why it is not in effect."""

    key: str
    before: str
    after: str
    note: str = ""


def settings(before: Config, after: Config, running: Config) -> Iterator[str]:
    """
    Yield a line for each key that differs, of all but services.

    Args:
        before: the configuration in use.
        after: the one that takes its place; it has the same interfaces.
        running: that of the start, which keys that wait for a restart are compared with.
    """
    for change in changes(before, after, running):
        yield _line("", change)
    started = {interface.name: interface for interface in running.interfaces}
    for one, two in zip(before.interfaces, after.interfaces, strict=False):
        for change in changes(one, two, started.get(two.name, one)):
            yield _line(f"interface {two.name}: ", change)


def of_service(before: ServiceConfig, after: ServiceConfig) -> Iterator[Change]:
    """Yield the keys of a service that differ, apart from its identity and its servers."""
    return changes(before, after, before, IDENTITY)


def of_server(before: ServerConfig, after: ServerConfig) -> Iterator[Change]:
    """Yield the keys of a server that differ, apart from where it is and from what the operator may override."""
    # Of thousands of servers, most stay as they are.
    return iter(()) if before == after else changes(before, after, before, IDENTITY | OVERRIDDEN)


def changes(
    before: BaseModel, after: BaseModel, running: BaseModel, apart: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[Change]:
    """
    Yield the keys of a table that differ, those of the tables in it last; arrays of tables are left out.

    Args:
        before: the table in use.
        after: the one that takes its place.
        running: that of the start.
        apart: keys that are left out.
        prefix: goes before the keys' names.
    """
    for declared in _compared(type(after), apart):
        old = running if declared.key.reload == "restart" else before
        one, two = (getattr(each, declared.attribute) for each in (old, after))
        if declared.table is not None and one is not None and two is not None:
            start = getattr(running, declared.attribute) or one
            yield from changes(one, two, start, prefix=f"{prefix}{declared.name}.")
        elif one != two or declared.key.shown is not None:
            texts = shown(old, declared), shown(after, declared)
            if texts[0] != texts[1]:
                yield Change(prefix + declared.name, *texts, declared.key.reload_note)


@functools.cache
def _compared(model: type[BaseModel], apart: frozenset[str]) -> list[Declared]:
    """Return the keys of a table that are compared: those that are tables last."""
    keys = [declared for declared in keys_of(model) if not declared.is_array and declared.name not in apart]
    return sorted(keys, key=lambda declared: declared.table is not None)


def shown(table: BaseModel, declared: Declared) -> str:
    """Return the value of a key for people: text without quotes, else as JSON has it."""
    if declared.key.shown is not None:
        return declared.key.shown(table)
    value = table.model_dump(mode="json", include={declared.attribute})[declared.attribute]
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _line(prefix: str, change: Change) -> str:
    note = f": {change.note}" if change.note else ""
    return f"~ {prefix}{change.key}: {change.before} -> {change.after}{note}"
