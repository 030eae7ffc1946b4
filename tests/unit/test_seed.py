"""The seed of placement: that of the file, or one that a run draws; and the log line about it."""

from __future__ import annotations

import pytest

import lb
from lb.compiler.compile import OFFLINE_SEED
from lb.config import parse
from lb.control.seed import describe_drawn, draw_seed, with_seed
from lb.explain.placement import Question, explain, known_from, parse_endpoint

CONFIG = """\
[[interface]]
name = "eth0"
mac = "aa:aa:aa:00:00:01"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
policy = "maglev"
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
"""


def test_draw_seed_differs_and_fits_a_configuration() -> None:
    """Rule 21.1, secrets and seeds: no two runs have the same seed, and each can be written into a file."""
    drawn = {draw_seed() for _ in range(50)}
    assert len(drawn) == 50
    assert all(parse(f"seed = {seed}\n" + CONFIG).seed == seed < 2**63 for seed in drawn)


def test_with_seed_the_file_wins() -> None:
    """A seed that is written holds; one that is not is filled in."""
    assert with_seed(parse("seed = 0\n" + CONFIG), 9).seed == 0
    assert with_seed(parse(CONFIG), 9).seed == 9


def test_balancer_without_seed_is_deterministic_offline(backend: str) -> None:
    """The offline API takes a fixed seed where neither the call nor the configuration has one; both come first."""
    assert lb.Balancer.from_config(parse(CONFIG), backend).snapshot.seed == OFFLINE_SEED == 1
    assert lb.Balancer.from_config(parse("seed = 5\n" + CONFIG), backend).snapshot.seed == 5
    assert lb.Balancer.from_config(parse("seed = 5\n" + CONFIG), backend, seed=6).snapshot.seed == 6


@pytest.mark.parametrize(("policy", "told"), [("maglev", True), ("source-hash", True), ("random", False)])
def test_describe_drawn_says_when_to_write_it(policy: str, told: bool) -> None:
    """Where a hash places flows, a restart with another seed moves them: the log line says so."""
    line = describe_drawn(parse(CONFIG.replace("maglev", policy)), 77)
    assert line.startswith("seed 77, drawn at start")
    assert ("write seed = 77" in line) is told


@pytest.mark.parametrize(("seed", "told"), [("", True), ("seed = 1\n", False)])
def test_explain_from_a_file_without_seed_says_so(seed: str, told: bool) -> None:
    """What a hash decides from a file alone is not what a running balancer with a seed of its own decides."""
    question = Question(parse_endpoint("198.18.1.21:40000"), parse_endpoint("198.18.1.100:9876"), None)
    notes = explain(question, known_from(parse(seed + CONFIG)))["notes"]
    assert any("has no seed" in note for note in notes) is told
