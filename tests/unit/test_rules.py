"""docs/rules.md: references to it carry the title of a rule that is there; defaults on it are the declared ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.config.model import UDP_DRAIN_TIMEOUT_NS, Config, FlowsConfig, ServiceConfig
from lb.config.rules import MIN_UDP_TIMEOUT_NS

ROOT = Path(__file__).resolve().parents[2]
TREES = ("benches", "docker", "docs", "examples", "loadgen", "python", "rust", "scripts", "tests")
SUFFIXES = (".js", ".load", ".md", ".py", ".pyi", ".rs", ".sh", ".toml", ".yml")
RULES = ROOT / "docs/rules.md"
# A rule that names another leaves out its title: it is on the same page.
UNTITLED = (Path(__file__), RULES)
NUMBER = r"\d+(?:\.(?:\d+|[A-Z]\b))?"
HEADING = re.compile(rf"^##+ ({NUMBER})\.? (.+)$", re.MULTILINE)
REFERENCE = re.compile(rf"\b(rules?) ({NUMBER})", re.IGNORECASE)
# A sentence goes on in the next line, in Rust behind another comment mark.
LINE_BREAK = re.compile(r"\s*\n\s*(?://[/!]?|#)?\s*")
TITLES = {number: title.replace("`", "") for number, title in HEADING.findall(RULES.read_text())}
FILES = [
    *ROOT.glob("*.md"),
    *sorted(path for tree in TREES for path in (ROOT / tree).rglob("*") if path.suffix in SUFFIXES),
]
FLOWS, SECOND_NS = FlowsConfig(), 10**9


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
    found = {str(path.relative_to(ROOT)): list(problems(path.read_text())) for path in FILES if path not in UNTITLED}
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so a client of a dead server is placed anew after {} s", FLOWS.half_open // SECOND_NS),
        ("half-open {} s (syn-sent,", FLOWS.half_open // SECOND_NS),
        ("established {} s [5382", FLOWS.established // SECOND_NS),
        ("closing {} s, udp", FLOWS.closing // SECOND_NS),
        ("udp {} s (udp, udp-unreplied)", FLOWS.udp // SECOND_NS),
        ("a UDP timeout below {} s gets a warning", MIN_UDP_TIMEOUT_NS // SECOND_NS),
        ("`icmp_rate` per second (default {})", Config.model_fields["icmp_rate"].default),
        ("(`drain_timeout`, {} s for UDP by default)", UDP_DRAIN_TIMEOUT_NS // SECOND_NS),
        ('(`on_stop = "{}"`, the default', Config.model_fields["on_stop"].default),
        ('`on_server_down = "reset" | "keep"` (default {}:', ServiceConfig.model_fields["on_server_down"].default),
    ],
)
def test_defaults_on_the_page_are_those_of_the_configuration(text: str, expected: int | str) -> None:
    """What is said there once more is what `lb.config.model` declares: numbers have blanks between thousands."""
    flat = LINE_BREAK.sub(" ", RULES.read_text())
    before, after = map(re.escape, text.split("{}"))
    found = re.findall(rf"{before}([\d ]+|\w+){after}", flat)
    assert [value.replace(" ", "") for value in found] == [str(expected)]
