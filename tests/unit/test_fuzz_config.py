"""
Damaged configurations: each is read, or every problem has its place in the file; nothing else is raised.

FLOWLB_FUZZ_S=600 goes on for ten minutes with other cases; `make fuzz` does so.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from served import CONFIG, INTERFACE

import lb.backends
from fuzzing import NUMBERS, TEXTS, cases, damaged
from lb import config
from lb.config.template import template
from lb.control.controller import Controller
from lb.errors import LbError
from lb.model.snapshot import Snapshot

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = 1500
PLACE = re.compile(r"lb\.toml:(\d+):(\d+): ")
COMMENTED = re.compile(r"^(\s*)# ?(?=\[|[a-z_]+ = )", re.MULTILINE)
VALUE = re.compile(r"(?<== ).*$")


def whole() -> list[str]:
    """Return valid configurations: the examples, and the template with all its keys."""
    examples = sorted(EXAMPLES.glob("*.toml"))
    return [CONFIG, COMMENTED.sub(r"\1", template()), *(path.read_text() for path in examples)]


def as_toml(rng: random.Random) -> str:
    """Draw a value as TOML writes it, or nearly so."""
    text = rng.choice(TEXTS)
    written = (
        str(rng.choice(NUMBERS)),
        f'"{text}"',
        f"'{text}'",
        rng.choice(
            ("true", "false", "inf", "-nan", "1979-05-27T07:32:00Z", "07:32:00", "0x_f", "[]", "{}", "[[1], {}]")
        ),
        f'{{ name = "{text}", {rng.choice(("table_size", "server", "interval"))} = {rng.choice(NUMBERS)} }}',
    )
    return rng.choice(written)


def changed(rng: random.Random, source: str, others: Sequence[str]) -> str:
    """Change some lines: their values, their order, their number; lines of other configurations come in."""
    lines = source.split("\n")
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 | 2:
                lines[at] = VALUE.sub(as_toml(rng).replace("\\", r"\\"), lines[at])
            case 3:
                lines[at : at + 1] = []
                lines = lines or [""]
            case 4:
                lines.insert(at, rng.choice(lines))
            case _:
                lines.insert(at, rng.choice(rng.choice(others).split("\n")))
    return "\n".join(lines)


class Published:
    """A runtime that publishes to a data path."""

    def __init__(self, backend: str) -> None:
        self.path = lb.backends.load(backend).DataPath(16, bytes(16), 1)

    def publish(self, snapshot: Snapshot) -> None:
        self.path.publish(snapshot)

    def reset_flows(self, server: int) -> None:
        self.path.reset_flows(server, 1000, 1)


def check_report(report: config.Report, source: str) -> None:  # type: ignore[name-defined]
    """Check that a report has a configuration, or problems that are in the file."""
    lines = source.replace("\r\n", "\n").split("\n")
    assert (report.config is None) == bool(report.problems)
    for problem in [*report.problems, *report.warnings]:
        place = PLACE.match(problem)
        assert place is not None, problem
        line, column = int(place[1]), int(place[2])
        assert 1 <= line <= len(lines), problem
        assert 1 <= column <= len(lines[line - 1]) + 1, problem


def test_config_with_changed_lines_is_read_or_every_problem_has_its_place(backend: str, tmp_path: Path) -> None:
    """What is valid is published as well, or refused in one of our own errors: no type is too narrow for it."""
    sources, read = whole(), 0
    assert all(config.inspect(source, "lb.toml", EXAMPLES).config for source in sources)
    for case, rng in cases(CASES):
        source = changed(rng, rng.choice(sources), sources)
        try:
            report = config.inspect(source, "lb.toml", tmp_path)
            check_report(report, source)
            if report.config is not None:
                read += 1
                config.dump_config(report.config)
                publish(report.config, backend)
        except Exception as error:
            error.add_note(f"case {case}:\n{source}")
            raise
    assert read


def publish(read: config.Config, backend: str) -> None:
    """Compile a configuration and publish it; what only a machine can know about it may be refused."""
    with contextlib.suppress(LbError):
        Controller(read, (INTERFACE,), Published(backend)).start()


def test_config_with_damaged_bytes_is_read_or_every_problem_has_its_place(tmp_path: Path) -> None:
    """Bytes that are no text, and text that is no TOML."""
    sources, path = [source.encode() for source in whole()], tmp_path / "lb.toml"
    for case, rng in cases(CASES // 3):
        data = damaged(rng, rng.choice(sources))
        path.write_bytes(data)
        try:
            report = config.read(path)
            problems = [problem.removeprefix(f"{tmp_path}/") for problem in report.problems]
            assert all(PLACE.match(problem) for problem in problems), problems
            assert (report.config is None) == bool(problems)
        except Exception as error:
            error.add_note(f"case {case}: {data!r}")
            raise


@pytest.mark.parametrize("source", ["", "\ufeff", "\0", "[" * 3000, "a = " + "9" * 5000, "a = 1\r\rb"])
def test_config_of_odd_text_is_refused_at_its_place(source: str) -> None:
    """By hand: what a drawn case hardly comes to."""
    check_report(config.inspect(source, "lb.toml"), source)
