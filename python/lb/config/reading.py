"""Reading a configuration: from a file, from text, or a part of it that a command brings."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lb.config.model import HERE, Config, ServerConfig
from lb.config.rules import check, missing_array
from lb.config.toml.problem import Problem, dotted
from lb.config.toml.toml_file import Report, TomlFile, require
from lb.errors import RequestError
from lb.fields.schema import schema_of
from lb.fields.types import Weight

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SERVER = TomlFile(model=ServerConfig, check=lambda _, __: ())
_FORMAT = TomlFile(
    model=Config,
    check=check,
    missing=lambda key: missing_array(key) if key in ("interface", "service") else None,
    array_hints={"interface": "[[interface]]", "service": "[[service]]", "server": "[[service.server]]"},
)
_OUTLINE = dataclasses.replace(_FORMAT, check=functools.partial(check, runs_policies=False))


def load(path: str | pathlib.Path) -> Config:
    """
    Read a configuration file.

    Raises:
        ConfigError: it cannot be read or is invalid; with every problem found.
    """
    return require(read(path))


def parse(source: str, name: str = "<config>") -> Config:
    """
    Read a configuration from TOML text.

    Args:
        source: the text.
        name: stands for the file in messages.

    Raises:
        ConfigError: it is invalid; with every problem found.
    """
    return require(inspect(source, name))


def read(path: str | pathlib.Path) -> Report[Config]:
    """Read a configuration file; report its problems and warnings instead of raising."""
    return _FORMAT.read(path)


def outline(path: str | pathlib.Path) -> Report[Config]:
    """Read a configuration file as `read`, but run no code of users' policies: their problems are not found."""
    return _OUTLINE.read(path)


def inspect(source: str, name: str, base: pathlib.Path = HERE) -> Report[Config]:
    """
    Check TOML text; report its problems and warnings.

    Args:
        source: the text.
        name: stands for the file in messages.
        base: the folder that relative paths in it start from.
    """
    return _FORMAT.inspect(source, name, base)


def dump_config(config: Config) -> dict[str, Any]:
    """Return a configuration as JSON, with the keys and values that its file would have."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_server(table: object) -> ServerConfig:
    """
    Read a server from what a `[[service.server]]` may hold.

    Raises:
        RequestError: it is invalid.
    """
    server, problems = _SERVER.validate(table, HERE)
    if server is None:
        raise RequestError("; ".join(_sentence(problem) for problem in problems))
    return server


def _sentence(problem: Problem) -> str:
    where = dotted(("server", *problem.path))
    return f"{where}: {problem.message}" + (f" ({problem.hint})" if problem.hint else "")


def parse_weight(value: object) -> int:
    """
    Read a weight.

    Raises:
        RequestError: it is none.
    """
    try:
        return TypeAdapter[int](Weight).validate_python(value)
    except ValidationError as error:
        raise RequestError(f"weight: {error.errors()[0]['msg']}") from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration."""
    return {"$schema": DIALECT, **schema_of(Config), "title": "flowlb configuration"}
