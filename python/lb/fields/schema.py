"""
The JSON Schema of a model as TOML has it, and what people are told of a key's values: kind, unit, range, default.

Control side. The types (`lb.fields.types`) say in their JSON Schema what their parsers accept: with `minimum`,
`maximum` and `enum`, and with the keywords below, which JSON Schema leaves to its users. Nothing else has a copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

# What a value is, where JSON's types do not say it; its unit; its range or its form, in words; its reload mode.
KIND, UNIT, RANGE, FORM, RELOAD = "x-kind", "x-unit", "x-range", "x-form", "x-reload"
# Bounds as large as these read better as a power of two.
LARGE = 2**32


class TomlSchema(GenerateJsonSchema):
    """Makes schemas without what TOML does not have, null, and without titles that only repeat the key's name."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a value that may be left out: that of the value."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Return a schema with its default as TOML has it; a key that may be left out and has none has none here."""
        made = super().default_schema(schema)
        if made.get("default") is None:
            return {key: value for key, value in made.items() if key != "default"}
        writer = schema["schema"].get("serialization", {}).get("function")
        if writer is not None and not isinstance(made["default"], str):
            made["default"] = writer(made["default"])
        return made

    def field_title_should_be_set(self, _: Any) -> bool:
        """Tell that fields have no title."""
        return False


@cache
def schema_of(model: type) -> Mapping[str, Any]:
    """Return the JSON Schema of a model, or of a dataclass of options."""
    made: dict[str, Any] = TypeAdapter(model).json_schema(by_alias=True, schema_generator=TomlSchema)
    return made


def properties_of(model: type) -> Mapping[str, Mapping[str, Any]]:
    """Return the JSON Schemas of a model's keys, by name."""
    properties: Mapping[str, Mapping[str, Any]] = schema_of(model).get("properties", {})
    return properties


def kind(schema: Mapping[str, Any]) -> str:
    """Return what a value is, in a word or two: `integer`, `duration`, `array of addresses`."""
    if "items" in schema:
        return f"array, each {kind(schema['items'])}"
    if KIND in schema:
        return str(schema[KIND])
    return str(schema.get("type", "table"))


def unit(schema: Mapping[str, Any]) -> str:
    """Return the unit of a number; empty where there is none, or where the value carries it."""
    return str(schema.get(UNIT, ""))


def choices(schema: Mapping[str, Any]) -> list[str]:
    """Return the values that a key is limited to; empty when it is not."""
    return [str(value) for value in schema.get("enum", [])]


def value_range(schema: Mapping[str, Any]) -> str:
    """Return the range of numbers and durations, `1..64`; empty where there is none."""
    if RANGE in schema:
        return str(schema[RANGE])
    return f"{schema['minimum']}..{_bound(schema['maximum'])}" if "minimum" in schema else ""


def form(schema: Mapping[str, Any]) -> str:
    """Return what text has to look like, in words; empty where any will do."""
    return str(schema.get("items", schema).get(FORM, ""))


def _bound(number: int) -> str:
    power = (number + 1).bit_length() - 1
    return f"2^{power}-1" if number >= LARGE and number + 1 == 2**power else str(number)


def toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    # JSON writes text, numbers and booleans as TOML reads them.
    return json.dumps(value)
