"""Which flow goes first when the table is full (docs/rules.md rule 8.17, full table)."""

from __future__ import annotations

from typing import Any

from scene import BOTH, Case, Family, Talk, dns_service, hash_flow, tcp, udp, web_service

SECOND = 1000
# The longest a half-open flow that the server has answered is spared: a tenth of 30 s, the idle floor being 60 s.
HANDSHAKE_FLOOR = 3 * SECOND
IDLE_FLOOR = 60 * SECOND


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [_ladder(f), *_unconfirmed(f), *_handshakes(f), *_confirmed(f), *_stateless(f)]
    return made


def _services(f: Family) -> list[dict[str, Any]]:
    """Describe three services with a server each: `alt`, on port 443, takes flows up in their middle."""
    alt = {**web_service(f, "hash-flow", (1,)), "name": "alt", "port": 443}
    alt["servers"] = [{**alt["servers"][0], "name": "alt1"}]
    alt["plan"] = {"selector": "hash-flow", "slots": ["alt1"]}
    return [web_service(f, "counter", (1,)), dns_service(f), alt]


def _case(name: str, f: Family, capacity: int, **setup: Any) -> Case:
    return Case(
        f"{name}, IPv{f.version}", ["8.17"], "rule 8.17, full table", capacity=capacity, services=_services(f), **setup
    )


def _web(case: Case, f: Family, port: int) -> Talk:
    return Talk(case, f, sport=port)


def _dns(case: Case, f: Family, port: int) -> Talk:
    return Talk(case, f, "udp", sport=port)


def _alt(case: Case, f: Family, port: int) -> Talk:
    return Talk(case, f, sport=port, service="alt", server="alt1", vport=443)


def _full(case: Case, f: Family, port: int = 9999) -> None:
    """Expect that a new flow finds no room, and its client is told so."""
    talk = _web(case, f, port)
    case.reply(talk.c_in(tcp("S", 1000)), "table_full", talk.refusal(1001), **talk.names)


def _ladder(f: Family) -> Case:
    case = _case("a full table evicts in order: unconfirmed, handshakes, closing ones, the idlest", f, 7)
    live, over, waiting, opening = (_web(case, f, port) for port in (1, 2, 3, 4))
    answered, asked = (_dns(case, f, port) for port in (5, 6))
    taken = _alt(case, f, 7)
    live.open()
    answered.c(udp(b"q"))
    answered.s(udp(b"a"))
    over.open()
    over.close()
    waiting.c(tcp("S", 1000))
    waiting.s(tcp("SA", 5000, 1001))
    opening.c(tcp("S", 1000))
    asked.c(udp(b"q"))
    taken.c(tcp("A", 1000, 5000))
    left = {
        "live": live.flow("established"),
        "answered": answered.flow("udp"),
        "over": over.flow("closing"),
        "waiting": waiting.flow("syn-received"),
        "opening": opening.flow("syn-sent"),
        "asked": asked.flow("udp-unreplied"),
        "taken": taken.flow("pickup"),
    }
    case.flows(*left.values())
    case.counters(table={"entries": 7, "capacity": 7})
    new_flows = []
    events = {f"flow_evicted_{name}": 0 for name in ("unconfirmed", "half_open", "closing", "idle")}
    order = [
        (HANDSHAKE_FLOOR + 1, "taken", "unconfirmed"),
        (HANDSHAKE_FLOOR + 1, "asked", "unconfirmed"),
        (HANDSHAKE_FLOOR + 1, "opening", "half_open"),
        (HANDSHAKE_FLOOR + 1, "waiting", "half_open"),
        (HANDSHAKE_FLOOR + 1, "over", "closing"),
        (IDLE_FLOOR + 1, "live", "idle"),
        (IDLE_FLOOR + 1, "answered", "idle"),
    ]
    for port, (now, goes, event) in enumerate(order, 101):
        if event == "idle" and now != case.now_ms:
            _full(case, f)
            case.at(IDLE_FLOOR)
            _full(case, f)
        case.at(now)
        new_flow = _web(case, f, port)
        new_flow.open()
        new_flows.append(new_flow.flow("established"))
        del left[goes]
        case.flows(*left.values(), *new_flows)
        events[f"flow_evicted_{event}"] += 1
        case.counters(events=dict(events))
    _full(case, f)
    case.counters(
        services={f.web: {"flows_active": 7}, f.dns: {"flows_active": 0}, "alt": {"flows_active": 0}},
        verdicts={"reply.table_full": 3},
    )
    return case


def _unconfirmed(f: Family) -> list[Case]:
    made = []
    for name, first_is_pickup in (("a pickup", True), ("a datagram without an answer", False)):
        case = _case(f"of unconfirmed flows the one heard of longest ago goes first: {name}", f, 3)
        pickup, asked, live = _alt(case, f, 1), _dns(case, f, 2), _web(case, f, 3)
        live.open()
        for is_pickup in (first_is_pickup, not first_is_pickup):
            if is_pickup:
                pickup.c(tcp("A", 1000, 5000))
            else:
                asked.c(udp(b"q"))
            case.at(case.now_ms + 1)
        new_flow = _web(case, f, 4)
        new_flow.open()
        stays = asked.flow("udp-unreplied") if first_is_pickup else pickup.flow("pickup")
        case.flows(live.flow("established"), new_flow.flow("established"), stays)
        case.counters(events={"flow_evicted_unconfirmed": 1})
        made.append(case)

    refreshed = _case("one-way UDP that goes on is evicted after one that has stopped", f, 2)
    one, two = _dns(refreshed, f, 1), _dns(refreshed, f, 2)
    one.c(udp(b"q"))
    refreshed.at(1)
    two.c(udp(b"q"))
    refreshed.at(2 * SECOND)
    one.c(udp(b"q"))
    new_flow = _dns(refreshed, f, 3)
    new_flow.c(udp(b"q"))
    refreshed.flows(one.flow("udp-unreplied"), new_flow.flow("udp-unreplied"))
    refreshed.counters(events={"flow_evicted_unconfirmed": 1})

    flood = _case("a flood of datagrams evicts its own, and no handshake", f, 4)
    live, answered, opening = _web(flood, f, 1), _dns(flood, f, 2), _web(flood, f, 3)
    live.open()
    answered.c(udp(b"q"))
    answered.s(udp(b"a"))
    opening.c(tcp("S", 1000))
    for port in range(100, 110):
        _dns(flood, f, port).c(udp(b"flood"))
    flood.flows(
        live.flow("established"),
        answered.flow("udp"),
        opening.flow("syn-sent"),
        _dns(flood, f, 109).flow("udp-unreplied"),
    )
    flood.counters(events={"flow_evicted_unconfirmed": 9, "flow_evicted_half_open": 0})
    return [*made, refreshed, flood]


def _handshakes(f: Family) -> list[Case]:
    made = []
    for name, floor_s, half_open_s, floor_ms in (
        ("a tenth of the half-open timeout", 60, 30, 3 * SECOND),
        ("a tenth of a short half-open timeout", 60, 5, SECOND // 2),
        ("the idle floor where that is shorter", 1, 30, SECOND),
    ):
        timeouts = {"half_open": half_open_s, "established": 7440, "closing": 120, "udp": 300, "idle_floor": floor_s}
        case = _case(f"a handshake that the server has answered is spared for {name}", f, 1, timeouts_s=timeouts)
        waiting = _web(case, f, 1)
        waiting.c(tcp("S", 1000))
        case.at(100)
        waiting.s(tcp("SA", 5000, 1001))
        case.at(100 + floor_ms)
        _full(case, f)
        case.flows(waiting.flow("syn-received"))
        case.at(101 + floor_ms)
        new_flow = _web(case, f, 2)
        new_flow.c(tcp("S", 1000))
        case.flows(new_flow.flow("syn-sent"))
        case.counters(events={"flow_evicted_half_open": 1, "flow_evicted_idle": 0})
        made.append(case)

    flood = _case("a flood of SYNs evicts its own, and no handshake that the server has answered", f, 4)
    live, waiting, over = (_web(flood, f, port) for port in (1, 2, 3))
    live.open()
    over.open()
    over.close()
    waiting.c(tcp("S", 1000))
    waiting.s(tcp("SA", 5000, 1001))
    for port in range(100, 110):
        _web(flood, f, port).c(tcp("S", port))
    waiting.c(tcp("A", 1001, 5001))
    flood.flows(
        live.flow("established"),
        waiting.flow("established"),
        over.flow("closing"),
        _web(flood, f, 109).flow("syn-sent"),
    )
    flood.counters(events={"flow_evicted_half_open": 9, "flow_evicted_closing": 0})

    oldest = _case("of SYNs the one that came first goes first, however often it was sent again", f, 2)
    one, two = _web(oldest, f, 1), _web(oldest, f, 2)
    one.c(tcp("S", 1000))
    oldest.at(500)
    two.c(tcp("S", 1000))
    oldest.at(2 * SECOND)
    one.c(tcp("S", 1000))
    new_flow = _web(oldest, f, 3)
    new_flow.c(tcp("S", 1000))
    oldest.flows(two.flow("syn-sent"), new_flow.flow("syn-sent"))
    return [*made, flood, oldest]


def _confirmed(f: Family) -> list[Case]:
    made = []
    for name, udp_first in (("UDP", True), ("TCP", False)):
        case = _case(f"of flows that were answered the idlest goes first: {name}", f, 2)
        live, answered = _web(case, f, 1), _dns(case, f, 2)
        for is_udp in (udp_first, not udp_first):
            if is_udp:
                answered.c(udp(b"q"))
                answered.s(udp(b"a"))
            else:
                live.open()
            case.at(case.now_ms + 10)
        case.at(IDLE_FLOOR)
        _full(case, f)
        case.at(IDLE_FLOOR + 1)
        new_flow = _web(case, f, 3)
        new_flow.open()
        case.flows(live.flow("established") if udp_first else answered.flow("udp"), new_flow.flow("established"))
        case.counters(events={"flow_evicted_idle": 1})
        _full(case, f)
        made.append(case)

    blind = _case("segments outside the window do not spare an idle flow", f, 1)
    idle = _web(blind, f, 1)
    idle.open()
    blind.at(IDLE_FLOOR)
    idle.c(tcp("A", 77777, 99999))
    blind.at(IDLE_FLOOR + 1)
    new_flow = _web(blind, f, 2)
    new_flow.open()
    blind.flows(new_flow.flow("established"))
    blind.counters(events={"flow_evicted_idle": 1})
    return [*made, blind]


def _stateless(f: Family) -> list[Case]:
    case = Case(
        f"with a hash plan a new flow evicts an unconfirmed one before it goes stateless, IPv{f.version}",
        ["8.14", "8.17"],
        capacity=1,
        services=[web_service(f, "hash-flow")],
    )

    def talk(port: int) -> Talk:
        return Talk(case, f, number=1 + hash_flow(1, f.client, f.vip, port, 9876, 6) % 3, sport=port)

    talk(1).c(tcp("A", 1000, 5000))
    new_flow = talk(2)
    new_flow.c(tcp("A", 1000, 5000))
    case.flows(new_flow.flow("pickup"))
    # What cannot create a flow evicts none.
    talk(3).c(tcp("FA", 1000, 5000))
    case.flows(new_flow.flow("pickup"))
    new_flow.s(tcp("A", 5000, 1000))
    talk(4).c(tcp("A", 1000, 5000))
    talk(5).c(tcp("S", 1000))
    case.flows(new_flow.flow("established"))
    case.counters(events={"flow_evicted_unconfirmed": 1, "flow_stateless": 3, "flow_created": 2})
    return [case]
