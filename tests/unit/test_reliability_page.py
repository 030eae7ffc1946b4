"""docs/reliability.md: each requirement of the NAT RFCs once, with a verdict, a rule and tests that are there."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text()
RULES = (ROOT / "docs/rules.md").read_text()
VERDICTS = ("pass", "differs", "fail", "n.a.")
# Letters are parts of a requirement. RFC 5508 REQ-10 has nothing but parts, RFC 7857 has sections in place of numbers.
REQUIREMENTS = {
    "4787": "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a",
    "5382": "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10",
    "5508": "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10a 10b 10c 10d 10e 10f 11",
    "7857": "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12",
}
RULE = re.compile(r"\[([\d.]+(?:\.[A-Z])?), ([^]]+)\]\(rules\.md#[^)]+\)")
NAMED = re.compile(r"`([^`]+)`")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without the table's own heading."""
    section = TEXT.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section, maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def vector_names(topic: str) -> frozenset[str]:
    """Return the names of the vectors of a topic; none where there is no such topic."""
    path = ROOT / f"tests/vectors/{topic}.json"
    return frozenset(vector["name"] for vector in json.loads(path.read_text())) if path.exists() else frozenset()


def fault(name: str) -> str | None:
    """Return what is wrong with the name of a test, None where there is such a test, of IPv4 and IPv6 if a vector."""
    if "::" in name:
        file, _, test = name.partition("::")
        path = ROOT / file if file.endswith(".rs") else ROOT / "tests" / file
        start = "fn" if file.endswith(".rs") else "def"
        found = path.exists() and re.search(rf"^ *{start} {re.escape(test)}\(", path.read_text(), re.MULTILINE)
        return None if found else f"{name}: no such test"
    topic, _, vector = name.partition(": ")
    names = vector_names(topic)
    twin = {"ipv4": "ipv6", "ipv6": "ipv4"}.get(topic, topic)
    if vector in names or {f"{vector}, IPv4", f"{vector}, IPv6"} <= names | vector_names(twin):
        return None
    return f"{name}: no such vector"


def faults(cell: str, test: str, *, needs_test: bool = True) -> list[str]:
    """Return what is wrong with the rule and the tests of a row."""
    found = [problem for name in NAMED.findall(test) if (problem := fault(name))]
    rules = RULE.findall(cell)
    headings = RULES.lower().replace("`", "")
    found += [f"{number}, {title}: no such rule" for number, title in rules if not is_heading(headings, number, title)]
    if not rules:
        found.append(f"{cell}: no rule")
    if needs_test and not NAMED.findall(test):
        found.append("no test")
    return found


def is_heading(headings: str, number: str, title: str) -> bool:
    return (
        re.search(rf"^##+ {re.escape(number.lower())}\.? {re.escape(title.lower())}$", headings, re.MULTILINE)
        is not None
    )


@pytest.mark.parametrize("rfc", REQUIREMENTS)
def test_requirements_each_once_in_order(rfc: str) -> None:
    """No requirement is passed over, and none has two verdicts."""
    kind = "section " if rfc == "7857" else "REQ-"
    assert [row[0] for row in rows(f"### RFC {rfc}")] == [kind + number for number in REQUIREMENTS[rfc].split()]


@pytest.mark.parametrize("rfc", REQUIREMENTS)
def test_requirements_have_verdict_reason_rule_and_test(rfc: str) -> None:
    """A verdict is proven by tests; what does not apply has a reason instead."""
    found = {}
    for number, asks, verdict, here, rule, test in rows(f"### RFC {rfc}"):
        assert verdict in VERDICTS, number
        assert asks, number
        assert here, number
        found[number] = faults(rule, test, needs_test=verdict != "n.a.")
    assert {number: listed for number, listed in found.items() if listed} == {}


def test_score_is_what_the_rows_say() -> None:
    """The sums of the verdicts are those of the tables below."""
    expected = []
    for rfc in REQUIREMENTS:
        verdicts = Counter(row[2] for row in rows(f"### RFC {rfc}"))
        expected.append([rfc, *(str(verdicts[verdict]) for verdict in VERDICTS)])
    assert rows("## Score against the NAT RFCs") == expected


def test_events_have_rule_and_test() -> None:
    """What is promised stands in a rule and is proven."""
    promised = rows("## What is promised")
    assert len(promised) > 30
    found = {event: faults(rule, test) for event, _, rule, test in promised}
    assert {event: listed for event, listed in found.items() if listed} == {}


def test_commands_of_the_tests_exist() -> None:
    """Each `make` target that the page names is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)`", TEXT)
    assert len(named) >= 5
    assert set(named) <= targets


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("unit/test_reliability_page.py::test_names_that_are_not_there_are_found", True),
        ("unit/test_reliability_page.py::test_names_that_are_not", False),
        ("unit/test_none.py::test_names_that_are_not_there_are_found", False),
        ("rust/core/src/flow/table/tests.rs::find_after_insert_by_both_keys", True),
        ("rust/core/src/flow/table/tests.rs::find_after", False),
        ("udp: two clients with the same port have two flows", True),
        ("udp: two clients with the same port", False),
        ("none: two clients with the same port have two flows", False),
    ],
)
def test_names_that_are_not_there_are_found(name: str, is_there: bool) -> None:
    """The tests above are worth as much as what they see."""
    assert (fault(name) is None) == is_there


def test_rules_that_are_not_there_are_found() -> None:
    assert faults("[8.2, reset acceptance](rules.md#82-reset-acceptance)", "", needs_test=False) == []
    assert faults("[8.2, placement](rules.md#816-placement)", "", needs_test=False) == ["8.2, placement: no such rule"]
    assert faults("", "") == [": no rule", "no test"]
