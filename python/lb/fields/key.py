"""
The declaration of a configuration key: in one place what it means, an example, and when a changed value takes effect.

Control side, below the models that declare keys (`lb.config.model`, the policies' options). The template of `lb init`,
the JSON Schema, `docs/configuration.md` and the diff of a reload are made from these declarations. Kind, unit and range
belong to a key's type (`lb.fields.types`), where its parser has them from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lb.fields.schema import FORM, RANGE, RELOAD

Reload: TypeAlias = Literal["live", "restart"]
RESTART = "takes effect after a restart"
REQUIRED: Any = PydanticUndefined


@dataclass(frozen=True, slots=True)
class Key:
    """
    What is declared about a key, beside its type and default.

    Args:
        description: what it is or does, without a full stop.
        example: a value, as a file would have it; None: the default is one.
        reload: when a changed value takes effect: with the reload, or after a restart.
        note: what a reload says about a changed value that is live and yet not wholly in effect.
        unset: what holds without it, where it has no default.
        shown: returns the value as a reload shows it, given the table that has the key; None: as TOML has it.
    """

    description: str
    example: Any = None
    reload: Reload = "live"
    note: str = ""
    unset: str = ""
    shown: Callable[[Any], str] | None = None

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add to a JSON Schema what is declared: called by pydantic, with the schema of the key."""
        allowed = ", ".join(filter(None, (schema.get(RANGE), schema.get(FORM))))
        sentences = [
            self.description,
            allowed and f"Allowed: {allowed}",
            self.unset and f"Default: {self.unset}",
            self.reload_note.capitalize(),
        ]
        schema["description"] = ". ".join(filter(None, sentences)) + "."
        if self.example is not None:
            schema["examples"] = [self.example]
        schema[RELOAD] = self.reload

    @property
    def reload_note(self) -> str:
        """What a reload says about a changed value; empty: it is in effect."""
        return RESTART if self.reload == "restart" else self.note


@dataclass(frozen=True, slots=True)
class Declared:
    """
    A key of a table.

    Args:
        name: as files have it. attribute: as Python has it.
        key: what is declared about it.
        required: whether a file must have it.
        table: the model of its value when that is a table, or an array of tables; None: it is a plain value.
        is_array: whether it is an array of tables.
    """

    name: str
    attribute: str
    key: Key
    required: bool
    table: type[BaseModel] | None = None
    is_array: bool = False


def key(description: str, *, default: Any = REQUIRED, alias: str | None = None, **more: Any) -> Any:
    """
    Return a field of a model for a key.

    Args:
        description: as of `Key`.
        default: what holds without the key; text is read as if a file had it.
        alias: its name in files, where Python's is another.
        more: as of `Key`.
    """
    declared: Any = Key(description, **more)
    return Field(default, alias=alias, validate_default=isinstance(default, str), json_schema_extra=declared)


def option(description: str, *, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """Return a field of a dataclass for an option of a policy. Arguments as of `key`; the default is a parsed value."""
    return dataclasses.field(default=default, metadata={"json_schema_extra": Key(description, **more)})


def keys_of(model: type) -> tuple[Declared, ...]:
    """Return the declared keys of a model or of a dataclass of options, in order."""
    return _keys_of(model)


@functools.cache
def _keys_of(model: type) -> tuple[Declared, ...]:
    if issubclass(model, BaseModel):
        found = (_of_model(name, field) for name, field in model.model_fields.items())
        return tuple(declared for declared in found if declared is not None)
    assert dataclasses.is_dataclass(model), model
    return tuple(
        Declared(field.name, field.name, declared, field.default is dataclasses.MISSING)
        for field in dataclasses.fields(model)
        if isinstance(declared := field.metadata.get("json_schema_extra"), Key)
    )


def default_of(model: type[BaseModel], attribute: str) -> Any:
    """Return the default of a key as it is declared: as files have it where it is text."""
    return model.model_fields[attribute].default


def _of_model(name: str, field: FieldInfo) -> Declared | None:
    declared: object = field.json_schema_extra
    if not isinstance(declared, Key):
        return None
    table, is_array = _table(field.annotation)
    return Declared(field.alias or name, name, declared, field.is_required(), table, is_array)


def _table(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the model with declared keys that an annotation holds, if any, and whether it holds an array of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation if keys_of(annotation) else None), False
    for part in get_args(annotation):
        table, is_array = _table(part)
        if table is not None:
            return table, is_array or getattr(annotation, "__origin__", None) is tuple
    return None, False


def tables_of(model: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """Return the models of all tables below a model, by the key that holds them."""
    found: dict[str, type[BaseModel]] = {}
    for declared in keys_of(model):
        if declared.table is not None:
            found |= {declared.name: declared.table, **tables_of(declared.table)}
    return found
