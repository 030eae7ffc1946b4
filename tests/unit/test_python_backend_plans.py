"""The seven selectors (`docs/datapath.md` rule 8), the same on every backend for the same plan, seed and counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import CLIENT, CLIENT_PORT, VIP, WEB_PORT, Box, from_client, load_backend, make_snapshot, query, request

from lb.backends.python.plan import SplitMix64
from lb.snapshot import Plan, Snapshot


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
    """Weights are repeated slots; a service's turn has nothing to do with another's."""
    box = Box(backend, make_snapshot("counter", (0, 1, 0, 2)))
    assert placed(box, 3) == [0, 1, 0]
    assert box.send(from_client(query())).server == "server1"
    assert placed(box, 2, 100) == [2, 0]


def test_counter_goes_on_across_snapshots(backend: str) -> None:
    """behaviour 29: a reload does not start the turn anew."""
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
    """behaviour 33: the snapshot's seed keys the placement hash."""
    module = load_backend(backend)
    client, vip = ip_address(CLIENT).packed, ip_address(VIP).packed
    box = Box(backend, make_snapshot("hash-flow", (2, 1, 0, 1, 2), seed=seed))
    expected = [(2, 1, 0, 1, 2)[module.flow_hash(seed, client, vip, port, WEB_PORT, 6) % 5] for port in range(1, 9)]
    assert placed(box, 8) == expected
    box = Box(backend, make_snapshot("hash-source", (2, 1, 0, 1, 2), seed=seed))
    assert placed(box, 3) == [(2, 1, 0, 1, 2)[module.source_hash(seed, client) % 5]] * 3


def test_least_takes_the_fewest_active_flows_per_weight(backend: str) -> None:
    """The first of equals; weights 1, 2, 3 share six flows so."""
    box = Box(backend, make_snapshot("least", weights=(1, 2, 3)))
    assert placed(box, 7) == [0, 1, 2, 2, 1, 2, 0]


def test_least_closing_flows_do_not_count(backend: str) -> None:
    """behaviour 3: a flow that is over is no load."""
    box = Box(backend, make_snapshot("least"))
    assert placed(box, 4) == [0, 1, 2, 0]
    finish(box, 2)
    assert placed(box, 2, 50) == [1, 1]


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
    """behaviour 9: every selector can find nobody."""
    result = Box(backend, make_snapshot(selector, ())).send(from_client(request()))
    assert (result.verdict, result.reason, result.service) == ("reply", "no_server", "web")


def test_slot_of_a_removed_server_is_no_server(backend: str) -> None:
    """A plan that names a server which is gone finds nobody."""
    base: Snapshot = make_snapshot(slots=(0,))
    box = Box(backend, replace(base, servers=(None, *base.servers[1:])))
    assert box.send(from_client(request())).reason == "no_server"
