"""Lines end before column 120, also where no formatter looks: pages, comments, examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("benches", "build_backend", "docker", "docs", "examples", "loadgen", "python", "rust", "scripts", "tests")
LONGEST = 120
# Whole lines. Python is not here: ruff holds it to the same length.
PROSE = (".html", ".load", ".md", ".rs", ".toml")
# Comments only: a command, an expression or a value may be longer where breaking it makes it no clearer.
CODE = (".css", ".js", ".sh", ".yaml", ".yml", "Dockerfile", "Makefile", "run")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s*(?:#|//|/\*|\* )")
FILES = [
    path
    for path in (*ROOT.glob("*"), *(path for tree in TREES for path in sorted((ROOT / tree).rglob("*"))))
    if path.is_file() and path.name.endswith(PROSE + CODE)
]


def too_long(name: str, text: str) -> Iterator[str]:
    """Yield the lines of a file that are too long, each with its number. `name` tells what it is."""
    if name.endswith(".md"):
        text = FENCE.sub(lambda found: "\n" * found.group().count("\n"), text)
    for number, line in enumerate(text.splitlines(), 1):
        is_table = name.endswith(".md") and line.startswith("|")
        is_prose = name.endswith(PROSE) or COMMENT.match(line)
        if len(line) > LONGEST and is_prose and not is_table:
            yield f"{name}:{number}: {len(line)} columns"


def test_no_line_of_prose_is_too_long() -> None:
    """Of Markdown all but tables and fenced code; of programs and settings their comments; of the others every line."""
    assert len(FILES) > 200
    found = [line for path in FILES for line in too_long(str(path.relative_to(ROOT)), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("name", "line", "is_found"),
    [
        ("a.md", "x" * 121, True),
        ("a.md", "x" * 120, False),
        ("a.md", "| " + "x" * 121, False),
        ("a.md", "```\n" + "x" * 121 + "\n```", False),
        ("a.toml", "x" * 121, True),
        ("a.js", "  // " + "x" * 121, True),
        ("a.js", "x" * 121, False),
        ("Dockerfile", "# " + "x" * 121, True),
        ("Dockerfile", "RUN " + "x" * 121, False),
    ],
)
def test_lines_that_are_too_long_are_found(name: str, line: str, is_found: bool) -> None:
    assert bool(list(too_long(name, line))) == is_found
