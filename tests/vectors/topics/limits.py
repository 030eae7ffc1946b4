"""
What is bounded: answers per second, hops that wait, the flow table (docs/rules.md rule 8, flows; rule 11, next hop;
rule 12, sending).
"""

from __future__ import annotations

from scene import (
    BOTH,
    CLIENT_MAC,
    ROUTER_MAC,
    V4,
    Case,
    Family,
    Talk,
    dns_service,
    ether,
    icmp,
    icmp_error,
    tcp,
    udp,
    web_service,
    with_ports,
)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += _rates(f)
    return [*made, _hops()]


def _rates(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    exceeded = (11, 0) if f is V4 else (3, 0)
    names = {"direction": "forward", "service": f.web}
    never = Case(f"icmp_rate 0 answers nothing, {v}", ["12.4"], icmp_rate=0)
    never.drop(Talk(never, f).c_in(tcp("S", 1), ttl=1), "rate_limited", **names)
    rate = Case(f"a burst of icmp_rate answers, then one each 1/rate seconds, {v}", ["12.4"], icmp_rate=4)
    frame = Talk(rate, f).c_in(tcp("S", 1), ttl=1)
    told = icmp_error(f, frame, exceeded, f.router, f.client)
    rate.at(10_000)
    for _ in range(4):
        rate.reply(frame, "ttl_exceeded", told, **names)
    rate.drop(frame, "rate_limited", **names)
    rate.at(10_249)
    rate.drop(frame, "rate_limited", **names)
    rate.at(10_250)
    rate.reply(frame, "ttl_exceeded", told, **names)
    rate.drop(frame, "rate_limited", **names)
    rate.at(60_000)
    for _ in range(4):
        rate.reply(frame, "ttl_exceeded", told, **names)
    rate.drop(frame, "rate_limited", **names)
    rate.counters(verdicts={"reply.ttl_exceeded": 9, "drop.rate_limited": 4}, rx_packets=13, tx_packets=9)
    changed = Case(f"a changed icmp_rate holds from the publication on, {v}", ["12.4"], icmp_rate=0)
    changed.drop(Talk(changed, f).c_in(tcp("S", 1), ttl=1), "rate_limited", **names)
    changed.publish(icmp_rate=1)
    changed.reply(frame, "ttl_exceeded", told, **names)
    kinds = Case(
        f"each kind of answer has a bucket of its own, {v}",
        ["12.4"],
        icmp_rate=1,
        answer_echo=True,
        services=[web_service(f, slots=()), dns_service(f, plan={"selector": "counter", "slots": []})],
    )
    ping = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.vip, 8 if f is V4 else 128, 0, bytes(8)))
    fields = {"id": 0, "flags": "DF"} if f is V4 else {}
    pong = ether(ROUTER_MAC, CLIENT_MAC, icmp(f, f.vip, f.client, 0 if f is V4 else 129, 0, bytes(8), **fields))
    talk, other = Talk(kinds, f), Talk(kinds, f, "udp")
    dying, syn, ask = talk.c_in(tcp("S", 1), ttl=1), talk.c_in(tcp("S", 1)), other.c_in(udp(b"x"))
    about = {"direction": "forward", "service": f.dns}
    refused = icmp_error(f, ask, (3, 3) if f is V4 else (1, 4), f.vip, f.client)
    kinds.reply(ping, "echo", pong)
    kinds.reply(dying, "ttl_exceeded", icmp_error(f, dying, exceeded, f.router, f.client), **names)
    kinds.reply(syn, "no_server", talk.refusal(2), **names)
    kinds.reply(ask, "no_server", refused, **about)
    kinds.drop(ping, "rate_limited")
    kinds.drop(dying, "rate_limited", **names)
    kinds.drop(syn, "rate_limited", **names)
    kinds.drop(ask, "rate_limited", **about)
    return [never, rate, changed, kinds]


def _hops() -> Case:
    case = Case(
        "at most 256 hops are waited for",
        ["11"],
        transit="forward",
        routes=[{"prefix": "10.0.0.0/8", "interface": "eth0"}],
        neighbours=[],
    )
    for i in range(257):
        packet = V4.ip(V4.client, f"10.0.{i // 200}.{i % 200 + 1}") / with_ports(udp(b""), 1, 2)
        frame = ether(CLIENT_MAC, ROUTER_MAC, packet)
        if i < 256:
            case.send(frame, "hold", "neighbour")
        else:
            case.drop(frame, "neighbour_unresolved")
    case.at(3000)
    case.tick()
    case.counters(verdicts={"hold.neighbour": 256, "drop.neighbour_timeout": 256, "drop.neighbour_unresolved": 1})
    return case
