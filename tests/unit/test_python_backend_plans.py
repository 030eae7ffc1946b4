"""
The seven selectors (`docs/rules.md` rule 8, flows), the same on every backend for the same plan, seed and counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from ipaddress import ip_address

import pytest
from helpers import CLIENT, CLIENT_PORT, VIP, WEB_PORT, Box, from_client, load_backend, make_snapshot, query, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lb.backends.python.picker import SplitMix64
from lb.model.snapshot import Plan, Selector, Server, Snapshot


def placed(box: Box, count: int, first_port: int = 1) -> list[int]:
    """Open flows and return the index of the server of each."""
    results = [box.send(from_client(request(port=first_port + i))) for i in range(count)]
    return [int(str(result.server)[-1]) - 1 for result in results]


def finish(box: Box, port: int) -> None:
    """Let the client give up a connection that the server refuses."""
    entry = next(flow for flow in box.path.flows(box.now) if flow.client_port == port)
    assert entry.state == "syn-sent"
    assert box.send(from_client(request("R", 1001, port=port))).verdict == "forward"


def test_counter_takes_the_slots_in_turn(backend: str) -> None:
    """Weights are repeated slots; each service has its own round."""
    box = Box(backend, make_snapshot("counter", (0, 1, 0, 2)))
    assert placed(box, 3) == [0, 1, 0]
    assert box.send(from_client(query())).server == "server1"
    assert placed(box, 2, 100) == [2, 0]


def test_counter_goes_on_across_snapshots(backend: str) -> None:
    """Rule 18.1, reloads and changes: a reload does not restart the round."""
    box = Box(backend)
    assert placed(box, 1) == [0]
    box.path.publish(make_snapshot(generation=2))
    assert placed(box, 2, 10) == [1, 2]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_random_draws_are_those_of_the_seed(backend: str, seed: int) -> None:
    """Random is reproducible: SplitMix64 from the data path's seed."""
    random = SplitMix64(seed)
    expected = [random.draw() % 3 for _ in range(20)]
    assert placed(Box(backend, make_snapshot("random"), seed=seed), 20) == expected


@pytest.mark.parametrize("seed", [1, 99])
def test_hash_selectors_take_the_slot_of_the_hash(backend: str, seed: int) -> None:
    """Rule 21.1, secrets and seeds: the snapshot's seed keys the placement hash."""
    module = load_backend(backend)
    client, vip = ip_address(CLIENT).packed, ip_address(VIP).packed
    box = Box(backend, make_snapshot("hash-flow", (2, 1, 0, 1, 2), seed=seed))
    expected = [(2, 1, 0, 1, 2)[module.flow_hash(seed, client, vip, port, WEB_PORT, 6) % 5] for port in range(1, 9)]
    assert placed(box, 8) == expected
    box = Box(backend, make_snapshot("hash-source", (2, 1, 0, 1, 2), seed=seed))
    assert placed(box, 3) == [(2, 1, 0, 1, 2)[module.source_hash(seed, client) % 5]] * 3


def test_least_takes_the_fewest_active_flows_per_weight(backend: str) -> None:
    """Rule 8.19, selectors: (active + 1) / weight, once every server has a flow; weights 1, 2, 3 share six flows so."""
    box = Box(backend, make_snapshot("least", weights=(1, 2, 3)))
    assert placed(box, 7) == [0, 1, 2, 2, 1, 2, 2]


def test_least_closing_flows_do_not_count(backend: str) -> None:
    """Rule 8.8, states: a flow that is over is no load."""
    box = Box(backend, make_snapshot("least"))
    assert placed(box, 4) == [0, 1, 2, 0]
    finish(box, 2)
    assert placed(box, 2, 50) == [1, 2]


def give_up(box: Box, port: int) -> None:
    """Let the client reset a connection that has just begun."""
    assert box.send(from_client(request("R", 1001, port=port))).verdict == "forward"


@pytest.mark.parametrize(("count", "rounds"), [(5, 20), (100, 3)])
@pytest.mark.parametrize("first_round", [0, 3])
def test_least_idle_equal_servers_take_turns(backend: str, count: int, rounds: int, first_round: int) -> None:
    """
    Rule 8.19, selectors: connections one after another over idle servers: each gets as many, from the first round on.
    """
    box = Box(backend, many_servers(count, "least"), first_round=first_round)
    chosen = []
    for port in range(1, rounds * count + 1):
        chosen += [server_number(box, port)]
        give_up(box, port)
    assert chosen == [(first_round + number) % count for number in range(rounds * count)]


@pytest.mark.parametrize("weights", [(1, 2, 3), (5, 1, 1), (40, 20, 10)])
def test_least_idle_servers_share_by_weight(backend: str, weights: tuple[int, ...]) -> None:
    """Rule 8.19, selectors: connections one after another come out by weight."""
    box, rounds = Box(backend, make_snapshot("least", weights=weights)), 3
    counts = [0, 0, 0]
    for port in range(1, rounds * sum(weights) + 1):
        counts[placed(box, 1, port)[0]] += 1
        give_up(box, port)
    assert counts == [rounds * weight for weight in weights]


def test_counter_starts_at_its_first_round(backend: str) -> None:
    """Workers beside each other do not all begin with the same server (rule 17, several workers)."""
    box = Box(backend, first_round=2)
    assert box.path.peek(0, ip_address(CLIENT), 1, box.now) == (None, 2)
    assert placed(box, 4) == [2, 0, 1, 2]


def many_servers(count: int, selector: Selector, weights: Sequence[int] = ()) -> Snapshot:
    """Return one TCP service with this many servers."""
    base = make_snapshot()
    servers = tuple(
        Server(f"s{n}", 0, n, ip_address(f"198.18.1.{n + 120}"), 80, weights[n] if weights else 1, bytes(6))
        for n in range(count)
    )
    service = replace(base.services[0], plan=Plan(selector, tuple(range(count))))
    return replace(base, services=(service,), servers=servers)


def server_number(box: Box, port: int) -> int:
    """Open a flow and return the number of its server."""
    result = box.send(from_client(request(port=port)))
    assert result.server is not None, result
    return int(result.server.removeprefix("s"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_least_random_load_equals_reference(backend: str, data: st.DataObject) -> None:
    """
    Rule 8.19, selectors: whatever flows come and go and whatever weights are published, every choice is the rule's.
    """
    count = data.draw(st.integers(1, 9))
    weights = [data.draw(st.integers(0, 5)) for _ in range(count)]
    box = Box(backend, many_servers(count, "least", weights))
    active, starts, clock, living = [0] * count, [0] * count, 0, []
    for port in range(1, data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(("open", "open", "open", "finish", "publish")))
        if action == "publish":
            weights = [data.draw(st.integers(0, 5)) for _ in range(count)]
            box.path.publish(many_servers(count, "least", weights))
        elif action == "finish" and living:
            number, old = living.pop(data.draw(st.integers(0, len(living) - 1)))
            give_up(box, old)
            active[number] -= 1
        else:
            idle = [n for n in range(count) if not active[n]] if sum(active) < count else []
            loads = [(Fraction(active[n] + 1, weights[n] or 1), starts[n]) for n in range(count)]
            best = min(idle, key=lambda n: starts[n]) if idle else min(range(count), key=lambda n: loads[n])
            assert server_number(box, port) == best
            clock = max(clock, starts[best])
            starts[best] = clock + 2**40 // (weights[best] or 1)
            active[best] += 1
            living.append((best, port))


def test_least_weight_zero_counts_as_one(backend: str) -> None:
    """No division by zero, and no server that looks infinitely loaded."""
    assert placed(Box(backend, make_snapshot("least", weights=(0, 1, 1))), 4) == [0, 1, 2, 0]


@pytest.mark.parametrize("scores", [(), (5, 1, 3)])
def test_two_choices_takes_the_cheaper_of_two_draws(backend: str, scores: tuple[int, ...]) -> None:
    """Cost is active flows plus one, times the slot's score; the first draw wins ties."""
    random, active, expected = SplitMix64(1), [0, 0, 0], []
    for _ in range(30):
        i = random.draw() % 3
        j = (i + 1 + random.draw() % 2) % 3
        cost = [(active[k] + 1) * (scores[k] if scores else 1) for k in range(3)]
        expected.append(j if cost[j] < cost[i] else i)
        active[expected[-1]] += 1
    assert placed(Box(backend, make_snapshot("two-choices", scores=scores)), 30) == expected


def test_ask_gets_the_flow_and_its_answer_decides(backend: str) -> None:
    """The question: service, client address and port, one server name per slot."""
    asked: list[tuple[str, str, int, list[str]]] = []

    def ask(service: str, client: str, port: int, servers: Sequence[str]) -> str:
        asked.append((service, client, port, list(servers)))
        return "server3"

    box = Box(backend, make_snapshot("ask", (0, 2, 2), ask=ask))
    assert placed(box, 1, CLIENT_PORT) == [2]
    assert asked == [("web", CLIENT, CLIENT_PORT, ["server1", "server3", "server3"])]
    assert box.event("ask_fallback") == 0


def broken(*_question: object) -> str:
    raise RuntimeError("a fault in the user's policy")


@pytest.mark.parametrize(
    "ask", [broken, lambda *_: None, lambda *_: "nobody", lambda *_: "server3", lambda *_: 7, None]
)
@pytest.mark.parametrize("fallback", [None, Plan("counter", (1,))])
def test_ask_without_usable_answer_falls_back(backend: str, ask: object, fallback: Plan | None) -> None:
    """An exception, nothing, or not one of the slots' servers: the fall-back plan, or no server."""
    box = Box(backend, make_snapshot("ask", (0, 1), ask=ask, fallback=fallback))
    result = box.send(from_client(request()))
    assert box.event("ask_fallback") == 1
    if fallback is None:
        assert (result.verdict, result.reason) == ("reply", "no_server")
    else:
        assert (result.verdict, result.server) == ("forward", "server2")


@pytest.mark.parametrize("selector", ["counter", "random", "hash-source", "hash-flow", "least", "two-choices", "ask"])
def test_empty_slots_are_no_server(backend: str, selector: str) -> None:
    """Rule 8.18, refusals: every selector can find no server."""
    result = Box(backend, make_snapshot(selector, ())).send(from_client(request()))
    assert (result.verdict, result.reason, result.service) == ("reply", "no_server", "web")


def test_slot_of_a_removed_server_is_no_server(backend: str) -> None:
    """A plan of a removed server finds no server."""
    base: Snapshot = make_snapshot(slots=(0,))
    box = Box(backend, replace(base, servers=(None, *base.servers[1:])))
    assert box.send(from_client(request())).reason == "no_server"
