"""
From a table of the configuration to the part of a snapshot that it describes.

Control side, used where snapshots are made: offline (`lb.compiler.compile`) and from the kernel's facts
(`lb.net.kernel`). A key that both have under one name is copied by that name, so that a new one is declared twice, in
`lb.config.model` and in `lb.model.snapshot`, and copied nowhere else.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from lb.config.toml.toml_file import Table
from lb.fields.key import keys_of
from lb.model.snapshot import Interface, Server, Service, Snapshot


class PartTable(Table):
    """A table inside a table that is a part of its own inside the snapshot's part."""

    @abstractmethod
    def part(self) -> object:
        """Return it as a snapshot carries it."""


Part = TypeVar("Part", Interface, Server, Service, Snapshot)


def part_of(part: type[Part], table: Table, **made: Any) -> Part:
    """
    Return a part of a snapshot.

    Args:
        part: its class.
        table: has the keys that the part has as well.
        made: the fields that the table has not, or otherwise: a name may be another, an MTU the kernel's.
    """
    kind: type = part
    for name in shared_keys(kind, type(table)):
        if name not in made:
            value = getattr(table, name)
            made[name] = value.part() if isinstance(value, PartTable) else value
    return part(**made)


@functools.cache
def shared_keys(part: type, table: type[Table]) -> tuple[str, ...]:
    """Return the names that a part of a snapshot and a table have both."""
    assert is_dataclass(part), part
    keys = {declared.attribute for declared in keys_of(table)}
    return tuple(field.name for field in fields(part) if field.name in keys)
