"""References to docs/rules.md: each names a rule that is there, and carries its title."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("python", "rust", "tests")
SUFFIXES = (".py", ".pyi", ".rs")
NUMBER = r"\d+(?:\.(?:\d+|[A-Z]\b))?"
HEADING = re.compile(rf"^##+ ({NUMBER})\.? (.+)$", re.MULTILINE)
REFERENCE = re.compile(rf"\b(rules?) ({NUMBER})", re.IGNORECASE)
# A sentence goes on in the next line, in Rust behind another comment mark.
LINE_BREAK = re.compile(r"\s*\n\s*(?://[/!]?|#)?\s*")
TITLES = {number: title.replace("`", "") for number, title in HEADING.findall((ROOT / "docs/rules.md").read_text())}
FILES = sorted(path for tree in TREES for path in (ROOT / tree).rglob("*") if path.suffix in SUFFIXES)


def problems(text: str) -> Iterator[str]:
    """Yield the references of a text that name no rule, lack the title, or are to several rules at once."""
    flat = LINE_BREAK.sub(" ", text)
    for found in REFERENCE.finditer(flat):
        word, number = found.groups()
        title = TITLES.get(number)
        if title is None:
            yield f"{found.group()}: there is no such rule"
        elif word.lower() == "rules":
            yield f"{found.group()}: each rule by itself: `rule {number}, {title}, and rule ...`"
        elif not flat[found.end() :].lower().startswith(f", {title.lower()}"):
            yield f"{found.group()}: its title is missing: {title}"


def test_references_name_a_rule_and_its_title() -> None:
    """`rule 8.2, reset acceptance`: a reader needs no second document to know what is meant."""
    assert len(TITLES) > 80
    assert len(FILES) > 300
    found = {str(path.relative_to(ROOT)): list(problems(path.read_text())) for path in FILES if path != Path(__file__)}
    assert {name: listed for name, listed in found.items() if listed} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rule 8.2, reset acceptance; rule 7.A, to a VIP.", []),
        ("Rule 8.2, reset\n    /// acceptance", []),
        ("rule 20.2, the host's\n# kernel", []),
        ("(rule 8.2)", ["rule 8.2: its title is missing: Reset acceptance"]),
        ("rule 8.2, placement", ["rule 8.2: its title is missing: Reset acceptance"]),
        ("rule 8.99, reset acceptance", ["rule 8.99: there is no such rule"]),
        ("rules 2 and 6", ["rules 2: each rule by itself: `rule 2, Expiry, and rule ...`"]),
    ],
)
def test_problems_are_found(text: str, expected: list[str]) -> None:
    assert list(problems(text)) == expected
