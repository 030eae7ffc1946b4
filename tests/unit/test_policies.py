"""Policies: pure functions of the servers that return plans."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb import policies
from lb.policies.base import STATES, ServerView
from lb.policies.round_robin import MAX_SLOTS, RoundRobin, interleave, reduce_weights
from lb.policies.static import Static
from lb.snapshot import Plan

weights_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=12)
servers_strategy = st.lists(st.tuples(st.integers(0, 20), st.sampled_from(STATES)), min_size=0, max_size=8).map(
    lambda rows: [ServerView(10 + i, f"server{i}", weight, state) for i, (weight, state) in enumerate(rows)]
)


def richest_takes_all(weights: list[int]) -> list[int]:
    """The definition, step by step: every server gains its weight, the richest pays the total; the first wins ties."""
    credit = [0] * len(weights)
    order = []
    for _ in range(sum(weights)):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        winner = max(range(len(weights)), key=lambda index: (credit[index], -index))
        credit[winner] -= sum(weights)
        order.append(winner)
    return order


def test_round_robin_known_weights_interleaved() -> None:
    """Weights 5, 1, 1 give the published sequence a a b a c a a."""
    assert interleave([5, 1, 1]) == [0, 0, 1, 0, 2, 0, 0]


@given(weights_strategy)
def test_interleave_any_weights_equals_definition(weights: list[int]) -> None:
    """Grouping servers by weight changes the cost, not the sequence."""
    assert richest_takes_all(weights) == interleave(weights)


@given(weights_strategy)
def test_interleave_any_weights_share_is_exact(weights: list[int]) -> None:
    """In one turn every server has exactly as many slots as its weight says."""
    assert dict(enumerate(weights)) == Counter(interleave(weights))


@given(weights_strategy)
def test_interleave_any_prefix_nobody_a_whole_flow_ahead(weights: list[int]) -> None:
    """Smoothness: after n flows a server has fewer than its exact share plus one."""
    total, counts = sum(weights), Counter[int]()
    for step, index in enumerate(interleave(weights), start=1):
        counts[index] += 1
        assert counts[index] * total < step * weights[index] + total


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=50))
@settings(max_examples=50)
@example([1, 65534, 65535])
def test_reduce_weights_any_weights_bounded_and_proportional(weights: list[int]) -> None:
    """The turn is at most MAX_SLOTS long (plus one slot per server that would have none), shares within a slot."""
    reduced = reduce_weights(weights)
    assert sum(reduced) <= MAX_SLOTS + len(weights)
    for weight, slots in zip(weights, reduced, strict=True):
        assert slots >= 1, "a server with a weight would get no flow"
        if sum(weights) // math.gcd(*weights) <= MAX_SLOTS:
            assert slots * math.gcd(*weights) == weight
        else:
            assert abs(slots - weight * MAX_SLOTS / sum(weights)) <= 1


@pytest.mark.parametrize("policy", [RoundRobin(), Static()])
@given(servers=servers_strategy)
def test_plan_any_servers_holds_only_takers(policy: policies.Policy, servers: list[ServerView]) -> None:
    """A draining, disabled or weightless server is never in a plan; with a taker, the plan is never empty."""
    plan = policy.plan("video", servers, {})
    takers = {server.id for server in servers if server.state == "active" and server.weight > 0}
    assert set(plan.slots) <= takers
    assert bool(takers) == bool(plan.slots)


@given(servers=servers_strategy)
def test_round_robin_any_servers_every_taker_has_slots(servers: list[ServerView]) -> None:
    """Round robin leaves no taker out, and its plan is a pure function of its arguments."""
    plan = RoundRobin().plan("video", servers, {})
    assert {server.id for server in servers if server.takes_flows} == set(plan.slots)
    assert plan == RoundRobin().plan("video", servers, {})


def test_round_robin_common_divisor_short_turn() -> None:
    """Weights 10, 20 take a turn of three slots."""
    servers = [ServerView(4, "a", 10), ServerView(7, "b", 20)]
    assert Plan("counter", (7, 4, 7)) == RoundRobin().plan("video", servers, {})


@pytest.mark.parametrize(
    ("server", "slots"),
    [(None, (1,)), ("b", (2,)), ("c", ()), ("d", ())],
    ids=["first", "named", "draining", "weight-0"],
)
def test_static_servers_one_slot(server: str | None, slots: tuple[int, ...]) -> None:
    """Static takes the first taker, or the named server only while it takes flows."""
    servers = [ServerView(0, "x", 0), ServerView(1, "a"), ServerView(2, "b"), ServerView(3, "c", 1, "draining")]
    servers.append(ServerView(4, "d", 0))
    assert Plan("counter", slots) == Static(server).plan("echo", servers, {})


def test_registry_names_are_those_of_the_classes() -> None:
    """A policy is found under its own name, and no name is both here and for later."""
    assert {name: policy.name for name, policy in policies.POLICIES.items()} == {
        name: name for name in policies.POLICIES
    }
    assert not set(policies.POLICIES) & policies.NOT_YET
