"""
TOML files of any kind: text into a frozen, validated model, or every error at once with its place in the file.

The configuration (`lb.config`) and experiments (`lb.lab.experiment.file`) say what their tables are; everything from
bytes to printed mistakes is here. Positions are found by `lb.config.toml.locator`.
"""

from __future__ import annotations

import codecs
import difflib
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from lb.config.toml.excerpt import block
from lb.config.toml.locator import START, Locator, Path, Position, locate
from lb.config.toml.problem import Problem, dotted
from lb.errors import ConfigError
from lb.fields.key import tables_of
from lb.fields.types import CUSTOM_ERROR, show, type_name
from lb.privileges.trust import open_file

# A file is read whole; beyond this it is no configuration (rule 21.3, control socket: what is read is bounded).
MAX_FILE_BYTES = 16 * 1024 * 1024
HERE = pathlib.Path()

HUGE_INTEGER = re.compile(r"[0-9_]{4000,}")
TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")

Model = TypeVar("Model", bound=BaseModel)


class Table(BaseModel):
    """A table of a file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Report(Generic[Model]):
    """What reading a file found. `config`: None when there are problems; the lists hold printable blocks in order."""

    config: Model | None
    problems: list[str]
    warnings: list[str]


def require(report: Report[Model]) -> Model:
    """Return what was read. Raise ConfigError, with every problem found, when it is invalid."""
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


@dataclass(frozen=True)
class TomlFile(Generic[Model]):
    """
    A kind of file.

    Args:
        model: of the whole file.
        check: yields problems between fields, from the raw document and the folder that relative paths start from.
        missing: the problem of a required key of the whole file that is not there, where there is more to say.
        array_hints: how an array of tables is written, by its key.
    """

    model: type[Model]
    check: Callable[[Mapping[str, Any], pathlib.Path], Iterable[Problem]]
    missing: Callable[[str], Problem | None] | None = None
    array_hints: Mapping[str, str] = field(default_factory=dict)

    def read(self, path: str | pathlib.Path) -> Report[Model]:
        """Read a configuration file; report its problems and warnings instead of raising."""
        name = str(path)
        try:
            with open_file(pathlib.Path(path)) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return Report(None, [f"{name}: cannot be read: {error.strerror}"], [])
        if len(data) > MAX_FILE_BYTES:
            return Report(None, [f"{name}: larger than {MAX_FILE_BYTES} bytes: this is not a configuration"], [])
        try:
            source = data.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            line, column = _end(error.object[: error.start].decode())
            return Report(None, [f"{name}:{line}:{column}: byte {error.object[error.start]:#04x} is not UTF-8"], [])
        return self.inspect(source, name, pathlib.Path(path).parent)

    def inspect(self, source: str, name: str, base: pathlib.Path = HERE) -> Report[Model]:
        """
        Check TOML text; report its problems and warnings.

        Args:
            source: the text.
            name: stands for the file in messages.
            base: the folder that relative paths in it start from; validators find it in their context.
        """
        source = source.replace("\r\n", "\n")
        try:
            return self._inspect(source, name, base)
        except tomllib.TOMLDecodeError as error:
            message, position = _syntax_error(str(error), source)
            return Report(None, [block(name, source, *position, message)], [])
        except ValueError:
            # Python refuses to convert integers of thousands of digits, and does not say where they are.
            number = HUGE_INTEGER.search(source)
            if number is None:
                raise
            line, column = _end(source[: number.start()])
            return Report(None, [f"{name}:{line}:{column}: an integer of {len(number[0])} digits"], [])
        except RecursionError:
            return Report(None, [f"{name}:1:1: nested too deeply"], [])

    def _inspect(self, source: str, name: str, base: pathlib.Path) -> Report[Model]:
        document = tomllib.loads(source)
        config, problems = self.validate(document, base)
        problems.extend(self.check(document, base))
        # Only mistakes need places, and finding them takes longer than reading the file.
        locator = locate(source) if problems else Locator()
        blocks: dict[str, list[str]] = {"error": [], "warning": []}
        for position, problem in sorted(
            ((_place(locator, problem), problem) for problem in problems), key=lambda p: p[0]
        ):
            warning = "warning: " if problem.severity == "warning" else ""
            message = f"{warning}{dotted(problem.path)}: {problem.message}"
            if problem.first is not None:
                message += f", first defined at {name}:{locator.value(problem.first).line}"
            blocks[problem.severity].append(block(name, source, *position, message, problem.hint))
        return Report(None if blocks["error"] else config, blocks["error"], blocks["warning"])

    def validate(self, document: object, base: pathlib.Path) -> tuple[Model | None, list[Problem]]:
        """Make the model of a document, or return its problems; what `check` finds is not among them."""
        try:
            return self.model.model_validate(document, context={"base": base}), []
        except ValidationError as error:
            return None, [self._problem(details) for details in error.errors(include_url=False)]

    def _problem(self, details: ErrorDetails) -> Problem:
        """Turn an error of pydantic into a problem of ours."""
        path, value, context = details["loc"], details["input"], details.get("ctx", {})
        match details["type"]:
            case _ if details["type"] == CUSTOM_ERROR:
                return Problem(path, context["message"], context["hint"])
            case "extra_forbidden":
                return Problem(path, "unknown key", self._unknown_hint(path), at="key")
            case "missing":
                return self._missing(path)
            case "literal_error":
                allowed = re.findall(r"'([^']+)'", context["expected"])
                return Problem(path, f"{show(value)} is not allowed", _near(str(value), allowed))
            case "bool_type":
                return Problem(path, f"{show(value)} is {type_name(value)}, not a boolean", "true or false")
            case "tuple_type":
                written = self.array_hints.get(str(path[-1]))
                hint = f"write {written}" if written else "[...]"
                return Problem(path, f"{show(value)} is {type_name(value)}, not an array", hint)
            case "model_type" | "model_attributes_type" | "dict_type":
                return Problem(path, f"{show(value)} is {type_name(value)}, not a table")
        return Problem(path, details["msg"])

    def _unknown_hint(self, path: Path) -> str:
        """Return what was probably meant by an unknown key."""
        key = str(path[-1])
        if len(path) > 1 and key in _keys(self.model):
            return f'"{key}" is about the whole file: it goes above the first [table]'
        return _near(key, _keys(self._model(path[:-1])))

    def _missing(self, path: Path) -> Problem:
        """Return the problem of a required key that is not there; it points at the table that lacks it."""
        key = path[-1]
        special = self.missing(str(key)) if self.missing is not None and len(path) == 1 else None
        return special or Problem(path[:-1], f'required key "{key}" is missing')

    def _model(self, path: Path) -> type[BaseModel]:
        """Return the model of the table at a path."""
        tables = tables_of(self.model)
        known = [tables[part] for part in path if isinstance(part, str) and part in tables]
        return known[-1] if known else self.model


def _end(before: str) -> Position:
    """Return the position of what follows a text."""
    return Position(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f'did you mean "{near[0]}"?' if near else f"allowed: {', '.join(words)}"


def _syntax_error(message: str, source: str) -> tuple[str, Position]:
    """Split the message of tomllib into what is wrong and where; the end of the document is its last line."""
    match = TOML_PLACE.search(message)
    if match is None:
        return message, START
    text = message[: match.start()]
    if match[1]:
        return text, Position(int(match[1]), int(match[2]))
    lines = source.rstrip("\n").split("\n")
    return f"{text}, but the file ends here", Position(len(lines), len(lines[-1]) + 1)


def _place(locator: Locator, problem: Problem) -> Position:
    return locator.key(problem.path) if problem.at == "key" else locator.value(problem.path)
