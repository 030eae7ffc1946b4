"""How a plan picks a server: all seven selectors (docs/datapath.md rule 8)."""

from __future__ import annotations

from typing import Any

from scene import BOTH, Case, Family, SplitMix64, Talk, hash_flow, hash_source, tcp, web_service


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_counter(f), _random(f), *_hashes(f), *_least(f), *_two_choices(f), *_ask(f)]
    return made


def _syn(case: Case, f: Family, number: int, sport: int, **fields: Any) -> Talk:
    talk = Talk(case, f, number=number, sport=sport, **fields)
    talk.c(tcp("S", 1000))
    return talk


def _counter(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"counter takes the slots in turn, {v}", [1], services=[web_service(f, "counter", (1, 2, 1, 3))])
    for i, number in enumerate((1, 2, 1, 3, 1, 2, 1, 3, 1)):
        _syn(case, f, number, 1000 + i)
    case.counters(
        servers={f"{f.web}/{f.web_servers[0]}": {"flows_active": 5}, f"{f.web}/{f.web_servers[2]}": {"flows_active": 2}}
    )
    static = Case(f"counter with one slot always takes it, {v}", [1], services=[web_service(f, "counter", (2,))])
    for i in range(3):
        _syn(static, f, 2, 1000 + i)
    return [case, static]


def _random(f: Family) -> Case:
    made = Case(
        f"random draws slots with SplitMix64 from the seed, IPv{f.version}",
        [33],
        "SplitMix64",
        services=[web_service(f, "random", (1, 2, 3))],
        seed=2026,
    )
    draws = SplitMix64(2026)
    for i in range(8):
        _syn(made, f, 1 + draws.draw() % 3, 1000 + i)
    return made


def _hashes(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for seed in (1, 2, 2**64 - 1):
        case = Case(
            f"hash-flow places by SipHash-2-4 of the 5-tuple, seed {seed}, {v}",
            [2, 33],
            "SipHash-2-4",
            services=[web_service(f, "hash-flow")],
            seed=seed,
        )
        for sport in range(5000, 5008):
            _syn(case, f, 1 + hash_flow(seed, f.client, f.vip, sport, 9876, 6) % 3, sport)
        made.append(case)
        case = Case(
            f"hash-source places by SipHash-2-4 of the client address, seed {seed}, {v}",
            [2, 33],
            "SipHash-2-4",
            services=[web_service(f, "hash-source")],
            seed=seed,
        )
        for host in range(1, 7):
            client = f"198.51.100.{host}" if f.version == 4 else f"2001:db8::{host}"
            number = 1 + hash_source(seed, client) % 3
            for sport in (1, 65535):
                _syn(case, f, number, sport, client=client)
        made.append(case)
    return made


def _least(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(
        f"least takes the server with the fewest active flows, first slot on ties, {v}",
        [3],
        services=[web_service(f, "least")],
    )
    first = Talk(case, f, number=1, sport=1000)
    first.open()
    _syn(case, f, 2, 1001)
    _syn(case, f, 3, 1002)
    _syn(case, f, 1, 1003)
    first.close()
    # Server 1 has one active flow again, as the others have: a closing flow does not count.
    _syn(case, f, 1, 1004)
    _syn(case, f, 2, 1005)
    for _ in range(3):
        Talk(case, f, number=3, sport=1002).c(tcp("S", 1000))
    _syn(case, f, 3, 1006)
    weighted = Case(
        f"least divides by weight, weight 0 counts as 1, {v}",
        [3],
        services=[web_service(f, "least", (3, 2, 1), weights=(0, 2, 3))],
    )
    # active/weight with weights 1, 2, 3 for servers 1, 2, 3; slots in the order 3, 2, 1.
    active, weight = {1: 0, 2: 0, 3: 0}, {1: 1, 2: 2, 3: 3}
    for i in range(9):
        best = min((3, 2, 1), key=lambda n: (active[n] / weight[n], (3, 2, 1).index(n)))
        active[best] += 1
        _syn(weighted, f, best, 1000 + i)
    return [case, weighted]


def _two_choices(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for scores in ((), (5, 1, 3)):
        words = "with scores " if scores else ""
        services = [web_service(f, "two-choices", (1, 2, 3), scores=list(scores))]
        case = Case(
            f"two-choices takes the cheaper of two draws, {words}{v}", [3, 33], "SplitMix64", services=services, seed=42
        )
        draws, active = SplitMix64(42), {1: 0, 2: 0, 3: 0}
        for i in range(10):
            one = draws.draw() % 3
            two = (one + 1 + draws.draw() % 2) % 3
            cost = [(active[n + 1] + 1) * (scores[n] if scores else 1) for n in (one, two)]
            number = 1 + (two if cost[1] < cost[0] else one)
            active[number] += 1
            _syn(case, f, number, 1000 + i)
        made.append(case)
    return made


def _ask(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    fallback = {"selector": "counter", "slots": [f.web_servers[1]]}
    service = web_service(f, "ask", (1, 2, 3), fallback=fallback)
    answers = Case(
        f"ask takes the server that the function names, {v}",
        [1],
        services=[service],
        ask={"by_port": {"1000": f.web_servers[2], "1001": f.web_servers[0]}},
    )
    _syn(answers, f, 3, 1000)
    _syn(answers, f, 1, 1001)
    answers.counters(events={"ask_fallback": 0})
    # Port 1002 gets no answer.
    _syn(answers, f, 2, 1002)
    answers.counters(events={"ask_fallback": 1})
    made = [answers]
    for words, ask in (
        ("names an unknown server", {"always": "nobody"}),
        ("names a server of another service", {"always": "dns1"}),
        ("raises", {"raises": "no idea"}),
        ("is missing", None),
    ):
        case = Case(f"when the ask function {words} the fall-back plan decides, {v}", [1], services=[service], ask=ask)
        _syn(case, f, 2, 1000)
        case.counters(events={"ask_fallback": 1})
        made.append(case)
    bare = web_service(f, "ask", (1, 2, 3))
    case = Case(
        f"without a fall-back plan a failed ask finds no server, {v}",
        [9],
        services=[{**bare, "on_no_server": "drop"}],
        ask={"always": "nobody"},
    )
    case.drop(Talk(case, f).c_in(tcp("S", 1)), "no_server", direction="forward", service=f.web)
    case.counters(events={"ask_fallback": 1})
    made.append(case)
    return made
