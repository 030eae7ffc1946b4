"""Policies: pure functions of the servers that return plans."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from helpers import DNS, answer, from_client, from_server, make_datapath, make_snapshot, query, server_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb import policies
from lb.model.snapshot import Plan
from lb.policies.base import STATES, ServerView
from lb.policies.maglev import Maglev, fill, is_prime, next_prime, permutation
from lb.policies.random import Random
from lb.policies.round_robin import RoundRobin
from lb.policies.slots import MAX_COMPARISONS, MAX_GROUPS, MAX_SLOTS, interleave, reduce_weights
from lb.policies.static import Static

EVERY = [policies.make(name, {}) for name in policies.POLICIES]
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
    """In one round every server has exactly as many slots as its weight says."""
    assert dict(enumerate(weights)) == Counter(interleave(weights))


@given(weights_strategy)
def test_interleave_any_prefix_no_server_a_whole_flow_ahead(weights: list[int]) -> None:
    """Smoothness: after n flows a server has fewer than its exact share plus one."""
    total, counts = sum(weights), Counter[int]()
    for step, index in enumerate(interleave(weights), start=1):
        counts[index] += 1
        assert counts[index] * total < step * weights[index] + total


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=50))
@settings(max_examples=50)
@example([1, 65534, 65535])
def test_reduce_weights_any_weights_bounded_and_proportional(weights: list[int]) -> None:
    """A round is at most MAX_SLOTS long (plus one slot per server that would have none), shares within a slot."""
    reduced = reduce_weights(weights)
    assert sum(reduced) <= MAX_SLOTS + len(weights)
    for weight, slots in zip(weights, reduced, strict=True):
        assert slots >= 1, "a server with a weight would get no flow"
        if sum(weights) // math.gcd(*weights) <= MAX_SLOTS:
            assert slots * math.gcd(*weights) == weight
        else:
            assert abs(slots - weight * MAX_SLOTS / sum(weights)) <= 1


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.name)
@given(servers=servers_strategy)
@settings(max_examples=50)
def test_plan_any_servers_holds_only_eligible(policy: policies.Policy, servers: list[ServerView]) -> None:
    """A draining, disabled or weightless server is never in a plan; with an eligible one, the plan is never empty."""
    plan = policy.plan("video", servers, {})
    eligible = {server.id for server in servers if server.state == "active" and server.weight > 0}
    assert set(plan.slots) <= eligible
    assert bool(eligible) == bool(plan.slots)


@given(servers=servers_strategy)
def test_round_robin_any_servers_every_eligible_one_has_slots(servers: list[ServerView]) -> None:
    """Round robin leaves no eligible server out, and its plan is a pure function of its arguments."""
    plan = RoundRobin().plan("video", servers, {})
    assert {server.id for server in servers if server.takes_flows} == set(plan.slots)
    assert plan == RoundRobin().plan("video", servers, {})


def test_round_robin_common_divisor_short_round() -> None:
    """Weights 10, 20 take a round of three slots."""
    servers = [ServerView(4, "a", 10), ServerView(7, "b", 20)]
    assert Plan("counter", (7, 4, 7)) == RoundRobin().plan("video", servers, {})


@pytest.mark.parametrize(
    ("server", "slots"),
    [(None, (1,)), ("b", (2,)), ("c", ()), ("d", ())],
    ids=["first", "named", "draining", "weight-0"],
)
def test_static_servers_one_slot(server: str | None, slots: tuple[int, ...]) -> None:
    """Static takes the first eligible server, or the named server only while it takes flows."""
    servers = [ServerView(0, "x", 0), ServerView(1, "a"), ServerView(2, "b"), ServerView(3, "c", 1, "draining")]
    servers.append(ServerView(4, "d", 0))
    assert Plan("counter", slots) == Static(server).plan("echo", servers, {})


def test_interleave_few_large_weights_share_is_exact_and_spread() -> None:
    """Where the step-by-step round would take long, no prefix is off by more than a slot all the same."""
    weights = [20_000, 13_001, 1_999]
    assert sum(weights) * len(weights) > MAX_COMPARISONS
    order, total, counts = interleave(weights), sum(weights), Counter[int]()
    for step, index in enumerate(order, start=1):
        counts[index] += 1
        assert abs(counts[index] - step * weights[index] / total) <= 1
    assert dict(enumerate(weights)) == counts


def test_interleave_many_different_weights_share_is_exact_and_spread() -> None:
    """With more weights than a step-by-step round is made for, shares stay exact and no server is far ahead."""
    weights = list(range(1, MAX_GROUPS + 20))
    order, total, counts = interleave(weights), sum(weights), Counter[int]()
    assert dict(enumerate(weights)) == Counter(order)
    for step, index in enumerate(order, start=1):
        counts[index] += 1
        assert counts[index] <= step * weights[index] / total + 2


def plain_maglev(names: list[str], order: list[int], size: int) -> list[int]:
    """The paper's pseudo-code, step by step."""
    entry = [-1] * size
    following = [0] * len(names)
    filled = 0
    while True:
        for index in order:
            offset, skip = permutation(names[index], size)
            slot = (offset + following[index] * skip) % size
            while entry[slot] >= 0:
                following[index] += 1
                slot = (offset + following[index] * skip) % size
            entry[slot] = index
            following[index] += 1
            filled += 1
            if filled == size:
                return entry


@given(weights_strategy, st.sampled_from([13, 101, 251, 1009]))
def test_maglev_table_equals_the_papers_pseudo_code(weights: list[int], size: int) -> None:
    """The shortcut for the last slots changes the cost, not the table."""
    names = [f"server{number}" for number in range(len(weights))]
    assert plain_maglev(names, interleave(weights), size) == fill(tuple(names), tuple(weights), size)


def test_maglev_permutation_known_answers() -> None:
    """The hash that places a server in the table is fixed: other balancers and other versions agree."""
    assert [permutation(name, 65537) for name in ("server1", "server2")] == [(58626, 63891), (62023, 55047)]
    # b2sum -l 64 of "server1" gives the number itself.
    assert permutation("server1", 2**61 - 1) == (0xD776BC77, 0x767FF992 + 1)


def servers_named(count: int, weight: int = 1) -> list[ServerView]:
    return [ServerView(number, f"server{number}", weight) for number in range(count)]


def test_maglev_hundred_servers_share_within_one_percent() -> None:
    """With a table of more than 100 slots per server, every server's share is within 1 %."""
    plan = Maglev().plan("video", servers_named(100), {})
    assert len(plan.slots) == 65537
    for slots in Counter(plan.slots).values():
        assert abs(slots * 100 / len(plan.slots) - 1) <= 0.01


def test_maglev_one_of_hundred_leaves_few_others_move() -> None:
    """Flows of the servers that stay move in at most 3 % of the slots."""
    servers = servers_named(100)
    before = Maglev().plan("video", servers, {}).slots
    for gone in (0, 50, 99):
        after = Maglev().plan("video", [server for server in servers if server.id != gone], {}).slots
        moved = sum(old not in (new, gone) for old, new in zip(before, after, strict=True))
        assert moved / len(before) <= 0.03
        assert gone not in after


def test_maglev_weights_followed() -> None:
    """Weights 5, 3, 2 give shares of 50, 30 and 20 % to within a slot per round."""
    servers = [ServerView(7, "a", 5), ServerView(8, "b", 3), ServerView(9, "c", 2)]
    shares = Counter(Maglev().plan("video", servers, {}).slots)
    assert [round(shares[number] / 65537, 3) for number in (7, 8, 9)] == [0.5, 0.3, 0.2]


def test_maglev_order_of_servers_does_not_matter() -> None:
    """Two balancers that list the same servers in another order agree."""
    servers = servers_named(20)
    assert Maglev().plan("video", servers, {}) == Maglev().plan("video", servers[::-1], {})


def test_source_hash_has_the_table_of_maglev() -> None:
    """A server that leaves takes only its own clients with it."""
    servers = servers_named(5)
    plan = policies.make("source-hash", {"table_size": 1009}).plan("video", servers, {})
    assert Plan("hash-source", Maglev(1009).plan("video", servers, {}).slots) == plan


@pytest.mark.parametrize("number", [2, 3, 65537, 655373])
def test_next_prime_of_prime_is_itself(number: int) -> None:
    assert (True, number) == (is_prime(number), next_prime(number))


@pytest.mark.parametrize(("number", "prime"), [(0, 2), (1, 2), (4, 5), (65538, 65539), (9, 11)])
def test_next_prime_of_other_number_is_larger(number: int, prime: int) -> None:
    assert (False, prime) == (is_prime(number), next_prime(number))


def test_random_weights_slots_by_weight() -> None:
    """A server has as many slots as its weight says."""
    plan = Random().plan("video", [ServerView(1, "a", 4), ServerView(2, "b", 2)], {})
    assert (plan.selector, Counter(plan.slots)) == ("random", {1: 2, 2: 1})


def test_two_choices_equal_weights_no_scores() -> None:
    """Equal weights need no scores."""
    plan = policies.make("two-choices", {}).plan("video", servers_named(3, weight=7), {})
    assert Plan("two-choices", (0, 1, 2)) == plan


def test_two_choices_weights_compare_by_weight() -> None:
    """A server of twice the weight is drawn twice as often, and a flow on it costs half."""
    plan = policies.make("two-choices", {}).plan("video", [ServerView(1, "a", 2), ServerView(2, "b", 1)], {})
    scores = dict(zip(plan.slots, plan.scores, strict=True))
    assert (Counter(plan.slots), scores[2]) == ({1: 2, 2: 1}, 2 * scores[1])


def test_least_connections_one_slot_per_eligible_server() -> None:
    """The backend knows the weights: one slot per server is enough."""
    servers = [ServerView(3, "a", 5), ServerView(1, "b", 2), ServerView(2, "c", 1, "draining")]
    assert Plan("least", (3, 1)) == policies.make("least-connections", {}).plan("video", servers, {})


def test_registry_names_are_those_of_the_classes() -> None:
    """A policy is found under its own name, and an alias is a name of one that exists."""
    assert {name: policy.name for name, policy in policies.POLICIES.items()} == {
        name: name for name in policies.POLICIES
    }
    assert set(policies.ALIASES.values()) <= set(policies.POLICIES)
    assert not set(policies.ALIASES) & set(policies.POLICIES)


def test_make_alias_same_plan() -> None:
    """`weighted-round-robin` is another name of `round-robin`."""
    assert policies.make("round-robin", {}) == policies.make("weighted-round-robin", {})


def test_make_wrong_option_raises() -> None:
    """Options that do not exist or have wrong values are refused."""
    with pytest.raises(policies.OptionsError, match="speed: policy random has no such option"):
        policies.make("random", {"speed": 3})
    with pytest.raises(policies.OptionsError, match=r"table_size: .* not an integer"):
        policies.make("maglev", {"table_size": "big"})


def placed_by(backend: str, name: str, weights: list[int], flows: int) -> Counter[str]:
    """Return how many new flows each server was given, by real packets, each flow answered at once."""
    servers = [ServerView(number, f"server{number + 1}", weight) for number, weight in enumerate(weights)]
    base = make_snapshot(weights=weights)
    services = (None, replace(base.services[DNS], plan=shifted(make_plan(name, servers))), *base.services[2:])  # type: ignore[type-var]
    path = make_datapath(backend, replace(base, services=services), capacity=flows)
    question, at = bytearray(bytes(from_client(query()))), 14 + 20
    answers = [bytearray(bytes(from_server(answer(), index))) for index in range(len(weights))]
    placed = Counter[str]()
    for number in range(flows):
        port = (1024 + number).to_bytes(2, "big")
        question[at : at + 2] = port
        server = str(path.process(bytes(question), 0, 1).server)
        placed[server] += 1
        # A flow counts for its server once that has answered.
        reply = answers[int(server[-1]) - 1]
        reply[at + 2 : at + 4] = port
        assert path.process(bytes(reply), 0, 1).verdict == "forward"
    return placed


def make_plan(name: str, servers: list[ServerView]) -> Plan:
    return policies.make(name, {}).plan("dns", servers, {})


def shifted(plan: Plan) -> Plan:
    """Return a plan for the servers of the service `dns`."""
    return replace(plan, slots=tuple(server_id(DNS, slot) for slot in plan.slots))


WEIGHTS, FLOWS = [5, 3, 2], 10_000


@pytest.mark.parametrize("name", ["round-robin", "least-connections", "two-choices", "adaptive"])
def test_weights_ten_thousand_flows_shares_within_one_percent(backend: str, name: str) -> None:
    """Policies that count give each server its share, to within 1 %."""
    placed = placed_by(backend, name, WEIGHTS, FLOWS)
    for number, weight in enumerate(WEIGHTS):
        assert abs(placed[f"server{number + 1}"] / (FLOWS * weight / 10) - 1) <= 0.01


def test_weights_ten_thousand_flows_random_within_three_sigma(backend: str) -> None:
    """Chance gives each server its share, to within three standard deviations."""
    placed = placed_by(backend, "random", WEIGHTS, FLOWS)
    for number, weight in enumerate(WEIGHTS):
        share = weight / 10
        assert abs(placed[f"server{number + 1}"] - FLOWS * share) <= 3 * math.sqrt(FLOWS * share * (1 - share))
