"""
The life of flows: timeouts, eviction, conflicts, change of servers, pickups (docs/rules.md rule 2, expiry, and
rule 8, flows).
"""

from __future__ import annotations

from typing import Any

from scene import (
    BOTH,
    SERVER_MACS,
    V4,
    Case,
    Family,
    Talk,
    dns_service,
    hash_flow,
    hash_source,
    icmp_error,
    tcp,
    udp,
    web_service,
)

from topics import eviction, pickups

SECOND = 1000


def cases() -> list[Case]:
    """Make the cases."""
    made = [*pickups.cases(), *eviction.cases()]
    for f in BOTH:
        made += [
            *_timeouts(f),
            *_timeout_limits(f),
            *_eviction(f),
            *_full(f),
            *_pickups(f),
            *_conflicts(f),
            *_changes(f),
        ]
    return made


def _timeouts(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    half = Case(f"a half-open flow ends after 30 s of silence, {v}", ["8.12"], "rule 8.12, idle timeouts")
    talk = Talk(half, f)
    talk.c(tcp("S", 1000))
    half.at(30 * SECOND - 1)
    half.flows(talk.flow("syn-sent", idle_s=29.999))
    talk.s(tcp("SA", 5000, 1001))
    half.at(60 * SECOND - 2)
    half.tick()
    half.flows(talk.flow("syn-received"))
    half.at(60 * SECOND - 1)
    half.drop(talk.s_in(tcp("SA", 5000, 1001)), "no_flow")
    half.flows()
    half.counters(events={"flow_expired": 1}, services={f.web: {"flows_active": 0}})

    established = Case(
        f"an established flow lives 7440 s after its last packet from either side, {v}", ["8.12"], "RFC 5382 REQ-5"
    )
    talk = Talk(established, f)
    talk.open()
    established.at(7440 * SECOND - 1)
    talk.s(tcp("A", 5001, 1001))
    established.at(2 * 7440 * SECOND - 2)
    talk.c(tcp("A", 1001, 5001))
    established.at(3 * 7440 * SECOND - 3)
    established.flows(talk.flow("established", idle_s=7439.999))
    established.at(3 * 7440 * SECOND - 2)
    established.flows()
    established.tick()
    established.counters(events={"flow_expired": 1})
    established.drop(talk.c_in(tcp("A", 1001, 5001)), "no_flow", direction="forward", service=f.web)

    closing = Case(f"a closing flow ends after 120 s, {v}", ["8.12"], "RFC 5382 REQ-5")
    talk = Talk(closing, f)
    talk.open()
    talk.close()
    closing.at(120 * SECOND - 1)
    talk.s(tcp("FA", 5001, 1002))
    closing.at(240 * SECOND - 1)
    closing.drop(talk.s_in(tcp("FA", 5001, 1002)), "no_flow")

    datagrams = Case(f"a UDP flow ends after 300 s, both sides refresh, {v}", ["8.12"], "RFC 4787 REQ-5")
    talk = Talk(datagrams, f, "udp")
    talk.c(udp(b"q"))
    datagrams.at(300 * SECOND - 1)
    talk.s(udp(b"a"))
    datagrams.at(600 * SECOND - 2)
    talk.c(udp(b"q"))
    datagrams.at(900 * SECOND - 2)
    datagrams.drop(talk.s_in(udp(b"late")), "no_flow")
    datagrams.counters(events={"flow_expired": 1, "flow_created": 1})
    talk.c(udp(b"again"))
    datagrams.counters(events={"flow_created": 2})

    silent = Case(
        f"a UDP flow that is never answered ends after 300 s of silence, too, {v}", ["8.12"], "RFC 4787 REQ-5"
    )
    talk = Talk(silent, f, "udp")
    talk.c(udp(b"q"))
    silent.at(300 * SECOND - 1)
    talk.c(udp(b"q"))
    silent.at(600 * SECOND - 2)
    silent.flows(talk.flow("udp-unreplied", idle_s=299.999))
    silent.at(600 * SECOND - 1)
    silent.flows()
    silent.tick()
    silent.counters(events={"flow_expired": 1}, services={f.dns: {"flows_active": 0}})

    return [half, established, closing, datagrams, silent]


def _timeout_limits(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    given = {"half_open": 2, "established": 20, "closing": 1, "udp": 5, "idle_floor": 60}
    config = Case(f"timeouts are configurable, {v}", ["8.12"], timeouts_s=given)
    one, two, three = Talk(config, f), Talk(config, f, "udp"), Talk(config, f, "udp", sport=40001)
    one.c(tcp("S", 1000))
    two.c(udp(b"x"))
    two.s(udp(b"y"))
    three.c(udp(b"x"))
    config.at(2 * SECOND)
    config.tick()
    config.flows(two.flow("udp"), three.flow("udp-unreplied"))
    config.at(5 * SECOND - 1)
    config.tick()
    config.flows(two.flow("udp"), three.flow("udp-unreplied"))
    config.at(5 * SECOND)
    config.tick()
    config.flows()

    bounded = Case(f"a tick removes at most 64 expired flows, a frame 4, {v}", ["8.12", "22.1"], capacity=128)
    talks = [Talk(bounded, f, "udp", sport=1000 + i) for i in range(70)]
    for talk in talks:
        talk.c(udp(b""))
        talk.s(udp(b""))
    bounded.at(300 * SECOND)
    bounded.tick()
    bounded.counters(events={"flow_expired": 64}, services={f.dns: {"flows_active": 6}})
    bounded.drop(bytes(60), "not_for_us")
    bounded.counters(events={"flow_expired": 68}, services={f.dns: {"flows_active": 2}})
    bounded.tick()
    bounded.counters(events={"flow_expired": 70}, services={f.dns: {"flows_active": 0}})
    return [config, bounded]


def _eviction(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    only = {"services": [web_service(f, "counter", (1,)), dns_service(f)]}
    order = Case(
        f"a full table evicts half-open flows first, then closing ones, {v}",
        ["8.17"],
        "rule 8.17, full table",
        capacity=3,
        **only,
    )
    done, half, live = (Talk(order, f, sport=port) for port in (1001, 1002, 1003))
    done.open()
    done.close()
    live.open()
    half.c(tcp("S", 1))
    order.at(1)
    new = [Talk(order, f, sport=port) for port in (2001, 2002)]
    new[0].open()
    order.counters(events={"flow_evicted_half_open": 1, "flow_evicted_closing": 0})
    new[1].open()
    order.counters(events={"flow_evicted_half_open": 1, "flow_evicted_closing": 1})
    order.flows(live.flow("established"), new[0].flow("established"), new[1].flow("established"))

    idle = Case(f"the longest idle flow beyond the floor makes room, {v}", ["8.17"], capacity=2, **only)
    first, second = Talk(idle, f, sport=1001), Talk(idle, f, "udp", sport=1002)
    first.open()
    idle.at(10)
    second.c(udp(b"x"))
    second.s(udp(b"y"))
    idle.at(60 * SECOND)
    new_flow = Talk(idle, f, sport=1003)
    idle.reply(new_flow.c_in(tcp("S", 1)), "table_full", new_flow.refusal(2), **new_flow.names)
    idle.at(60 * SECOND + 1)
    new_flow.open()
    idle.counters(events={"flow_evicted_idle": 1})
    idle.flows(second.flow("udp"), new_flow.flow("established"))
    idle.at(60 * SECOND + 11)
    last = Talk(idle, f, sport=1004)
    last.c(tcp("S", 1))
    idle.flows(new_flow.flow("established"), last.flow("syn-sent"))

    return [order, idle]


def _full(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    only = {"services": [web_service(f, "counter", (1,)), dns_service(f)]}
    full = Case(f"active flows are never evicted for a new flow, {v}", ["8.17"], capacity=2, **only)
    for port in (1001, 1002):
        Talk(full, f, sport=port).open()
    for port in (1003, 1004):
        talk = Talk(full, f, sport=port)
        full.reply(talk.c_in(tcp("S", 1)), "table_full", talk.refusal(2), **talk.names)
    talk = Talk(full, f, "udp", sport=1005)
    prohibited = icmp_error(f, talk.c_in(udp(b"x")), (3, 13) if f is V4 else (1, 1), f.vip, f.client)
    full.reply(talk.c_in(udp(b"x")), "table_full", prohibited, **talk.names)
    full.counters(verdicts={"reply.table_full": 3}, events={"flow_created": 2}, tx_packets=9)

    silent = {"services": [web_service(f, "counter", (1,), on_no_server="drop"), dns_service(f, on_no_server="drop")]}
    denied = Case(
        f"where on_no_server does not say RST the client of a refused new flow is told that it is prohibited, {v}",
        ["8.17", "8.18", "10", "12.4"],
        "RFC 1812 section 5.2.7.1",
        capacity=1,
        icmp_rate=2,
        **silent,
    )
    Talk(denied, f, sport=1001).open()
    kind = (3, 13) if f is V4 else (1, 1)
    for talk, l4 in ((Talk(denied, f, sport=1003), tcp("S", 1)), (Talk(denied, f, "udp", sport=1005), udp(b"x"))):
        frame = talk.c_in(l4)
        denied.reply(frame, "table_full", icmp_error(f, frame, kind, f.vip, f.client), **talk.names)
    denied.drop(frame, "rate_limited", **talk.names)

    stateless = Case(
        f"with a hash plan what cannot be stored is placed without state, both ways, {v}",
        ["8.14", "8.17"],
        capacity=1,
        services=[web_service(f, "hash-flow", (1, 2, 3)), dns_service(f)],
    )
    answered = Talk(stateless, f, "udp")
    answered.c(udp(b"first"))
    answered.s(udp(b"answer"))
    number = 1 + hash_flow(1, f.client, f.vip, 1003, 9876, 6) % 3
    talk = Talk(stateless, f, number=number, sport=1003)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"data"))
    talk.s(tcp("A", 5001, 1005, b"answer"))
    talk.close(1005, 5007)
    talk.c(tcp("R", 1006))
    stateless.counters(events={"flow_stateless": 9, "flow_created": 1})
    astray = Talk(stateless, f, number=number % 3 + 1, sport=1003)
    stateless.drop(astray.s_in(tcp("SA", 5000, 1001)), "no_flow")
    stateless.flows(answered.flow("udp"))
    return [full, denied, stateless]


def _pickups(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for selector in ("hash-flow", "hash-source"):
        services = [web_service(f, selector, (1, 2, 3, 1, 2))]
        if selector == "hash-flow":
            slot = hash_flow(7, f.client, f.vip, 40000, 9876, 6) % 5
        else:
            slot = hash_source(7, f.client) % 5
        number = (1, 2, 3, 1, 2)[slot]
        case = Case(
            f"with {selector} an ACK without a flow is picked up by the hash, {v}", ["8.14"], services=services, seed=7
        )
        talk = Talk(case, f, number=number)
        talk.c(tcp("PA", 1000, 5000, b"data"))
        case.flows(talk.flow("pickup"))
        talk.s(tcp("A", 5000, 1004))
        case.flows(talk.flow("established"))
        talk.c(tcp("R", 1004))
        case.flows(talk.flow("closing"))
        made.append(case)
        back = Case(
            f"with {selector} a server's ACK without a flow is picked up by the hash, {v}",
            ["8.14", "11"],
            services=services,
            seed=7,
        )
        talk = Talk(back, f, number=number)
        talk.s(tcp("PA", 5000, 1000, b"answer"))
        back.flows(talk.flow("pickup"))
        wrong = Talk(back, f, number=number % 3 + 1, sport=40001)
        slot = hash_flow(7, f.client, f.vip, 40001, 9876, 6) % 5 if selector == "hash-flow" else slot
        if (1, 2, 3, 1, 2)[slot] != wrong.number:
            back.drop(wrong.s_in(tcp("PA", 5000, 1000, b"answer")), "no_flow")
        talk.c(tcp("A", 1000, 5006))
        back.flows(talk.flow("established"))
        back.counters(events={"flow_created": 1})
        made.append(back)
    plan = {"selector": "hash-source", "slots": [f.dns_server]}
    datagram = Case(
        f"with a hash plan a server's datagram finds its flow, {v}", ["8.14"], services=[dns_service(f, plan=plan)]
    )
    talk = Talk(datagram, f, "udp")
    talk.s(udp(b"unasked"))
    datagram.flows(talk.flow("udp-unreplied"))
    made.append(datagram)
    return made


def _conflicts(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    hair = Case(
        f"a server that is its own client is refused where there is no other, {v}",
        ["8.16"],
        services=[web_service(f, slots=(1, 1))],
    )
    talk = Talk(hair, f, client=f.servers[0], mac=SERVER_MACS[0])
    hair.reply(talk.c_in(tcp("S", 1)), "hairpin", talk.refusal(2), **talk.names)
    hair.counters(events={"flow_created": 0})
    passing = Case(
        f"the end of a connection of a server to itself is dropped, never answered, {v}",
        ["8.14", "8.16"],
        services=[web_service(f, "hash-flow", (1,))],
    )
    talk = Talk(passing, f, client=f.servers[0], mac=SERVER_MACS[0])
    for flags in ("FA", "R"):
        passing.drop(talk.c_in(tcp(flags, 1, 1)), "hairpin", **talk.names)
    # What could have been placed is answered.
    passing.reply(talk.c_in(tcp("S", 1)), "hairpin", talk.refusal(2), **talk.names)
    passing.counters(events={"flow_created": 0, "flow_stateless": 0}, verdicts={"drop.hairpin": 2, "reply.hairpin": 1})

    second = {**web_service(f, "counter", (1,)), "name": "alt", "port": 443}
    second["servers"] = [{**second["servers"][0], "name": "alt1"}]
    second["plan"] = {"selector": "counter", "slots": ["alt1"]}
    services = [web_service(f, "counter", (1,)), second]
    clash = Case(
        f"one client port through two services to one server endpoint is refused, {v}", ["8", "8.15"], services=services
    )
    one, two = Talk(clash, f), Talk(clash, f, service="alt", server="alt1", vport=443)
    one.open()
    clash.reply(two.c_in(tcp("S", 1)), "flow_conflict", two.refusal(2), **two.names)
    one.s(tcp("A", 5001, 1001))
    one.close()
    two.c(tcp("S", 1))
    clash.flows(two.flow("syn-sent"))
    clash.counters(events={"flow_reused": 1, "flow_created": 2}, verdicts={"reply.flow_conflict": 1})
    server_side = Case(
        f"a server's packet that no flow can be made for is dropped, never answered, {v}",
        ["8.14", "10", "8.15"],
        services=[web_service(f, "hash-flow", (2,)), dns_service(f)],
    )
    Talk(server_side, f, number=2).open()
    server_side.publish(services=[web_service(f, "hash-flow", (1,)), dns_service(f)])
    one = Talk(server_side, f)
    server_side.drop(one.s_in(tcp("A", 9000, 1001)), "flow_conflict", **one.reply_names)
    # No flow of a server with itself is placed on it: its packets to itself fit no service.
    self_made = Talk(server_side, f, client=f.servers[0], sport=1001)
    server_side.drop(self_made.s_in(tcp("A", 9000, 1001)), "no_flow")
    server_side.counters(verdicts={"drop.flow_conflict": 1, "drop.no_flow": 1}, tx_packets=3)
    stale = Case(f"an expired flow is no conflict, {v}", ["8", "8.12"], services=services)
    one, two = Talk(stale, f), Talk(stale, f, service="alt", server="alt1", vport=443)
    one.c(tcp("S", 1))
    stale.at(30 * SECOND)
    two.c(tcp("S", 1))
    stale.counters(events={"flow_expired": 1, "flow_created": 2})
    return [hair, passing, clash, server_side, stale]


def _without(f: Family, number: int, **fields: Any) -> list[dict[str, Any]]:
    """Describe the web service after a server was removed."""
    service = web_service(f, "counter", tuple(n for n in (1, 2, 3) if n != number), **fields)
    service["servers"] = [server for index, server in enumerate(service["servers"], 1) if index != number]
    return [service]


def _changes(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    drain = Case(f"a server without slots keeps its flows, {v}", ["8", "8.1"])
    talk = Talk(drain, f)
    talk.open()
    drain.publish(services=[web_service(f, "counter", (2, 3))])
    talk.c(tcp("A", 1001, 5001, b"still here"))
    talk.s(tcp("A", 5001, 1011))
    fresh = Talk(drain, f, number=3, sport=40001)
    fresh.c(tcp("S", 1))
    gone = Case(f"a flow of a removed server is orphaned: its next packet finds none, {v}", ["8", "8.1"])
    talk = Talk(gone, f)
    talk.open()
    gone.publish(services=_without(f, 1))
    gone.drop(talk.c_in(tcp("A", 1001, 5001)), "no_flow", direction="forward", service=f.web)
    gone.flows()
    gone.counters(events={"flow_orphaned": 1})
    moved = Case(f"a SYN retransmitted after its server was removed is placed anew, {v}", ["8", "8.1"])
    talk = Talk(moved, f)
    talk.c(tcp("S", 1000))
    moved.publish(services=_without(f, 1))
    # The service's counter stands at 1 and there are two slots.
    Talk(moved, f, number=3).c(tcp("S", 1000))
    moved.counters(events={"flow_orphaned": 1, "flow_created": 2})
    reload_ = Case(f"a reload that changes nothing moves no flow and keeps the counters, {v}", ["8", "8.1"])
    talks = [Talk(reload_, f, number=i + 1, sport=1000 + i) for i in range(3)]
    for talk in talks:
        talk.open()
    reload_.publish()
    for talk in talks:
        talk.c(tcp("A", 1001, 5001))
        talk.s(tcp("A", 5001, 1001))
    Talk(reload_, f, number=1, sport=2000).c(tcp("S", 1))
    reload_.counters(events={"flow_created": 4}, services={f.web: {"flows_created": 4, "flows_active": 4}})
    back_mac = Case(f"replies follow the client's last hop, {v}", ["11"], "rule 11, next hop")
    talk = Talk(back_mac, f)
    talk.open()
    talk.mac = "aa:aa:aa:00:00:fe"
    talk.c(tcp("A", 1001, 5001))
    talk.s(tcp("A", 5001, 1001))
    return [drain, gone, moved, reload_, back_mac]
