"""How a plan picks a server: all seven selectors (docs/rules.md rule 8, flows)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from scene import (
    BOTH,
    SERVER_MACS,
    SERVER_PORTS,
    WEB_PORT,
    Case,
    Family,
    SplitMix64,
    Talk,
    hash_flow,
    hash_source,
    tcp,
    udp,
    web_service,
)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_counter(f), _random(f), *_hashes(f), *_least(f), *_two_choices(f), *_ask(f)]
        made += [*_passed_over(f), *_own_service(f), *_other_service(f), *_pickups(f)]
    return made


def _syn(case: Case, f: Family, number: int, sport: int, **fields: Any) -> Talk:
    talk = Talk(case, f, number=number, sport=sport, **fields)
    talk.c(tcp("S", 1000))
    return talk


def _counter(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"counter takes the slots in turn, {v}", ["8"], services=[web_service(f, "counter", (1, 2, 1, 3))])
    for i, number in enumerate((1, 2, 1, 3, 1, 2, 1, 3, 1)):
        _syn(case, f, number, 1000 + i)
    case.counters(
        servers={f"{f.web}/{f.web_servers[0]}": {"flows_active": 5}, f"{f.web}/{f.web_servers[2]}": {"flows_active": 2}}
    )
    static = Case(f"counter with one slot always takes it, {v}", ["8"], services=[web_service(f, "counter", (2,))])
    for i in range(3):
        _syn(static, f, 2, 1000 + i)
    return [case, static]


def _random(f: Family) -> Case:
    made = Case(
        f"random draws slots with SplitMix64 from the seed, IPv{f.version}",
        ["21.1"],
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
            ["8.14", "21.1"],
            "SipHash-2-4",
            services=[web_service(f, "hash-flow")],
            seed=seed,
        )
        for sport in range(5000, 5008):
            _syn(case, f, 1 + hash_flow(seed, f.client, f.vip, sport, 9876, 6) % 3, sport)
        made.append(case)
        case = Case(
            f"hash-source places by SipHash-2-4 of the client address, seed {seed}, {v}",
            ["8.14", "21.1"],
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


class Rounds:
    """The rule of `least`, once more: servers are numbers, in the order of the slots."""

    def __init__(self, weights: dict[int, int]) -> None:
        self.weights = weights
        self.round = dict.fromkeys(weights, 0)
        self.clock = 0

    def take(self, active: dict[int, int]) -> int:
        """Return the server that gets the next flow."""
        order = list(self.weights)
        idle = [n for n in order if not active[n]]
        if sum(active.values()) < len(order) and idle:
            best = min(idle, key=lambda n: self.round[n])
        else:
            best = min(order, key=lambda n: (Fraction(active[n] + 1, self.weights[n]), self.round[n]))
        self.clock = max(self.clock, self.round[best])
        self.round[best] = self.clock + 2**40 // self.weights[best]
        return best


def _least(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(
        f"least takes the server with the fewest active flows, {v}", ["8.8", "8.19"], services=[web_service(f, "least")]
    )
    first = Talk(case, f, number=1, sport=1000)
    first.open()
    _syn(case, f, 2, 1001)
    _syn(case, f, 3, 1002)
    _syn(case, f, 1, 1003)
    first.close()
    # Servers 1, 2 and 3 have one active flow each: a closing flow does not count. Server 1 was chosen twice.
    _syn(case, f, 2, 1004)
    _syn(case, f, 3, 1005)
    for _ in range(3):
        Talk(case, f, number=3, sport=1002).c(tcp("S", 1000))
    _syn(case, f, 1, 1006)
    made = [case]
    for words, slots, weights in (
        ("weight 0 counts as 1", (3, 2, 1), (0, 2, 3)),
        ("equal weights", (1, 2, 3), (4, 4, 4)),
        ("slots twice count once", (2, 1, 2, 3), (1, 5, 2)),
    ):
        weighted = Case(
            f"least compares active + 1 by weight, {words}, {v}",
            ["8.19"],
            services=[web_service(f, "least", slots, weights=weights)],
        )
        rounds = Rounds({n: weights[n - 1] or 1 for n in slots})
        active = dict.fromkeys(slots, 0)
        for i in range(14):
            best = rounds.take(active)
            active[best] += 1
            _syn(weighted, f, best, 1000 + i)
        made.append(weighted)
    for weights in ((1, 1, 1), (1, 2, 3)):
        made.append(_one_after_another(f, weights))
    return made


def _one_after_another(f: Family, weights: tuple[int, ...]) -> Case:
    """Connections of which each is over before the next begins."""
    case = Case(
        f"least on an idle service takes turns by weight {weights}, {f.version}",
        ["8.19"],
        services=[web_service(f, "least", weights=weights)],
    )
    rounds, idle = Rounds({1: weights[0], 2: weights[1], 3: weights[2]}), {1: 0, 2: 0, 3: 0}
    counts = {1: 0, 2: 0, 3: 0}
    for i in range(2 * sum(weights)):
        number = rounds.take(idle)
        counts[number] += 1
        talk = Talk(case, f, number=number, sport=1000 + i)
        talk.c(tcp("S", 1000))
        talk.s(tcp("RA", 0, 1001))
    assert counts == {n: 2 * weights[n - 1] for n in counts}
    # A reload starts no round anew; another server's weight changes the next ones alone.
    case.publish()
    _syn(case, f, rounds.take(idle), 3000)
    return case


def _pair(f: Family, **second: Any) -> list[dict[str, Any]]:
    """Describe two services on the same servers; the second one's are alt1, alt2, alt3."""
    one = web_service(f, "counter")
    two = web_service(f, **second)
    names = {name: f"alt{number}" for number, name in enumerate(f.web_servers, 1)}

    def renamed(plan: dict[str, Any]) -> dict[str, Any]:
        made = {**plan, "slots": [names[name] for name in plan["slots"]]}
        return {**made, "fallback": renamed(plan["fallback"])} if plan.get("fallback") else made

    servers = [{**server, "name": names[server["name"]]} for server in two["servers"]]
    return [one, {**two, "name": "alt", "port": 443, "plan": renamed(two["plan"]), "servers": servers}]


def _through(case: Case, f: Family, number: int, sport: int) -> Talk:
    """Open a flow through the second service, which must reach this server."""
    talk = Talk(case, f, number=number, sport=sport, service="alt", server=f"alt{number}", vport=443)
    talk.c(tcp("S", 1000))
    return talk


def _passed_over(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    case = Case(f"counter passes over a server that has the client's port, and goes on behind, {v}", ["8.16"])
    case.setup["services"] = _pair(f, selector="counter")
    for i in range(6):
        _syn(case, f, 1 + i % 3, 1000 + i)
    # In step with the first service, its round would always meet the same server.
    _through(case, f, 2, 1000)
    _through(case, f, 3, 1001)
    _through(case, f, 1, 1002)
    case.counters(events={"flow_created": 9}, services={"alt": {"flows_created": 3}})
    made.append(case)

    for selector, seed in (("random", 7), ("two-choices", 7), ("hash-flow", 3), ("hash-source", 3)):
        slots = (1, 1, 2, 3, 1, 2)
        case = Case(f"{selector} passes over to the next slot of another server, {v}", ["8.16"], seed=seed)
        case.setup["services"] = _pair(f, selector=selector, slots=slots)
        draws, active = SplitMix64(seed), {1: 0, 2: 0, 3: 0}
        for i in range(8):
            sport, has = 1000 + i, 1 + i % 3
            _syn(case, f, has, sport)
            if selector == "random":
                at = draws.draw() % 6
            elif selector == "two-choices":
                one = draws.draw() % 6
                two = (one + 1 + draws.draw() % 5) % 6
                at = two if active[slots[two]] < active[slots[one]] else one
            elif selector == "hash-flow":
                at = hash_flow(seed, f.client, f.vip, sport, 443, 6) % 6
            else:
                at = hash_source(seed, f.client) % 6
            number = next(slots[(at + k) % 6] for k in range(6) if slots[(at + k) % 6] != has)
            active[number] += 1
            _through(case, f, number, sport)
        made.append(case)

    case = Case(f"least passes over to the next best, {v}", ["8.16", "8.19"])
    case.setup["services"] = _pair(f, selector="least", weights=(1, 1, 1))
    _syn(case, f, 1, 1000)
    _through(case, f, 2, 1000)
    _through(case, f, 1, 1001)
    _through(case, f, 3, 1002)
    _syn(case, f, 2, 1003)
    # All have one active flow; server 3 was taken last of those that remain: 1 is next.
    _through(case, f, 1, 1003)
    made.append(case)

    fallback = {"selector": "counter", "slots": [f.web_servers[1]]}
    case = Case(
        f"ask passes over to its fall-back plan, then to the other slots, {v}",
        ["8.16"],
        ask={"by_port": {"1000": "alt1", "1001": "alt2", "1002": "nobody"}},
    )
    case.setup["services"] = _pair(f, selector="ask", slots=(1, 2, 3), fallback=fallback)
    _syn(case, f, 1, 1000)
    _syn(case, f, 2, 1001)
    _syn(case, f, 3, 999)
    _through(case, f, 2, 1000)
    # The answer and the fall-back plan are the same server.
    _through(case, f, 1, 1001)
    case.counters(events={"ask_fallback": 0})
    _syn(case, f, 1, 998)
    _syn(case, f, 2, 1002)
    _through(case, f, 1, 1002)
    case.counters(events={"ask_fallback": 1})
    made.append(case)
    return [*made, *_none_left(f)]


def _none_left(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for selector in ("counter", "least", "hash-flow"):
        third = {**_pair(f, selector="counter")[1], "name": "third", "port": 444}
        third["servers"] = [{**server, "name": f"third{n}"} for n, server in enumerate(third["servers"], 1)]
        third["plan"] = {"selector": selector, "slots": ["third2", "third1"]}
        case = Case(f"{selector} refuses with the first obstacle when no server is left, {v}", ["8.16"])
        case.setup["services"] = [*_pair(f, selector="counter", slots=(2, 3)), third]
        _syn(case, f, 1, 1000)
        _through(case, f, 2, 1000)
        first = 2
        if selector == "hash-flow":
            first = (2, 1)[hash_flow(1, f.client, f.vip, 1000, 444, 6) % 2]
        talk = Talk(case, f, number=first, sport=1000, service="third", server=f"third{first}", vport=444)
        case.reply(talk.c_in(tcp("S", 1)), "flow_conflict", talk.refusal(2), **talk.names)
        case.counters(verdicts={"reply.flow_conflict": 1}, services={"third": {"flows_created": 0}})
        # The client resets its first flow: that is over, and makes way.
        Talk(case, f, number=1, sport=1000).c(tcp("R", 1001))
        Talk(case, f, number=1, sport=1000, service="third", server="third1", vport=444).c(tcp("S", 1))
        case.counters(events={"flow_reused": 1})
        made.append(case)
    return made


def _other_service(f: Family) -> list[Case]:
    """Slots that name servers of another service, whose plan names them, too: `least` never ended."""
    other = {"name": "other", "address": f.vip, "port": 9877, "protocol": "tcp", "on_no_server": "reset"}
    server = {"name": "other1", "address": f.servers[0], "port": 8041, "weight": 1, "mac": None}
    made = []
    for selector in ("counter", "random", "hash-source", "hash-flow", "least", "two-choices"):
        case = Case(f"servers of another service are no candidates, {selector}, IPv{f.version}", ["8.19"])
        plan = {"selector": selector, "slots": [f.web_servers[1], "other1", f.web_servers[2]]}
        case.setup["services"] = [{**other, "plan": plan, "servers": [server]}, web_service(f, selector)]
        for i in range(3):
            _syn(case, f, 1, 1000 + i, service="other", server="other1", vport=9877, server_port=8041)
        made.append(case)
    return made


def _own_service(f: Family) -> list[Case]:
    """A server that calls a service of its own."""
    v = f"IPv{f.version}"
    made = []
    for selector in ("counter", "random", "hash-source", "hash-flow", "least", "two-choices"):
        case = Case(f"a server that calls its own service gets another one, {selector}, {v}", ["8.16"], seed=5)
        case.setup["services"] = [web_service(f, selector)]
        draws, counter, taken = SplitMix64(5), 0, {1: 0, 3: 0}
        for i in range(6):
            if selector == "counter":
                at = counter
            elif selector in ("random", "two-choices"):
                at = draws.draw() % 3
            else:
                number = hash_source(5, f.servers[1])
                at = (number if selector == "hash-source" else hash_flow(5, f.servers[1], f.vip, 1000 + i, 9876, 6)) % 3
            if selector == "two-choices":
                two = (at + 1 + draws.draw() % 2) % 3
                active = {**taken, 2: 0}
                at = two if active[two + 1] < active[at + 1] else at
            number = at + 1 if at != 1 else 3
            if selector == "least":
                number = (1, 3)[i % 2]
            counter = number % 3
            taken[number] += 1
            _syn(case, f, number, 1000 + i, client=f.servers[1], mac=SERVER_MACS[1])
        case.counters(verdicts={"forward": 6})
        made.append(case)
    return made


def _pickups(f: Family) -> list[Case]:
    """Flows that a hash takes up without their SYN, where another flow is a conflict."""
    v = f"IPv{f.version}"
    seed = 1
    # A client port for which both services begin with the same server.
    sport = next(
        port
        for port in range(2000, 3000)
        if hash_flow(seed, f.client, f.vip, port, 9876, 6) % 3 == hash_flow(seed, f.client, f.vip, port, 443, 6) % 3
    )
    first = hash_flow(seed, f.client, f.vip, sport, 443, 6) % 3 + 1
    then = first % 3 + 1
    services = _pair(f, selector="hash-flow")
    services[0] = web_service(f, "hash-flow")
    forward = Case(f"an ACK of no flow passes over too, {v}", ["8.14", "8.16"], services=services)
    _syn(forward, f, first, sport)
    talk = Talk(forward, f, number=then, sport=sport, service="alt", server=f"alt{then}", vport=443)
    talk.c(tcp("A", 1, 1))
    forward.flows(Talk(forward, f, number=first, sport=sport).flow("syn-sent"), talk.flow("pickup"))
    talk.s(tcp("A", 1, 1))
    forward.flows(Talk(forward, f, number=first, sport=sport).flow("syn-sent"), talk.flow("established"))
    back = Case(f"a server's packet of no flow is taken up where the plan passes over to it, {v}", ["8.14", "8.16"])
    back.setup["services"] = services
    _syn(back, f, first, sport)
    talk = Talk(back, f, number=then, sport=sport, service="alt", server=f"alt{then}", vport=443)
    talk.s(tcp("A", 1, 1))
    # The flow is there now: the third server has nothing to say about it.
    last = Talk(back, f, number=then % 3 + 1, sport=sport)
    back.drop(last.s_in(tcp("A", 1, 1)), "no_flow")
    return [forward, back]


def _two_choices(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for scores in ((), (5, 1, 3)):
        words = "with scores " if scores else ""
        services = [web_service(f, "two-choices", (1, 2, 3), scores=list(scores))]
        case = Case(
            f"two-choices takes the cheaper of two draws, {words}{v}",
            ["8.8", "21.1"],
            "SplitMix64",
            services=services,
            seed=42,
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
    services = [web_service(f, "two-choices", (1, 2, 3), scores=[5, 1, 3], protocol="udp")]
    idle = Case(
        f"over UDP that no server answers two-choices takes the first draw, {v}",
        ["8.19"],
        "SplitMix64",
        services=services,
        seed=42,
    )
    draws = SplitMix64(42)
    for i in range(10):
        number = 1 + draws.draw() % 3
        draws.draw()
        port = SERVER_PORTS["tcp"][number - 1]
        talk = Talk(
            idle,
            f,
            "udp",
            number=number,
            sport=1000 + i,
            service=f.web,
            server=f.web_servers[number - 1],
            vport=WEB_PORT,
            server_port=port,
        )
        talk.c(udp(b"one way"))
    made.append(idle)
    return made


def _ask(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    fallback = {"selector": "counter", "slots": [f.web_servers[1]]}
    service = web_service(f, "ask", (1, 2, 3), fallback=fallback)
    answers = Case(
        f"ask takes the server that the function names, {v}",
        ["8"],
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
        case = Case(
            f"when the ask function {words} the fall-back plan decides, {v}", ["8"], services=[service], ask=ask
        )
        _syn(case, f, 2, 1000)
        case.counters(events={"ask_fallback": 1})
        made.append(case)
    bare = web_service(f, "ask", (1, 2, 3))
    case = Case(
        f"without a fall-back plan a failed ask finds no server, {v}",
        ["8.18"],
        services=[{**bare, "on_no_server": "drop"}],
        ask={"always": "nobody"},
    )
    case.drop(Talk(case, f).c_in(tcp("S", 1)), "no_server", direction="forward", service=f.web)
    case.counters(events={"ask_fallback": 1})
    made.append(case)
    return made
