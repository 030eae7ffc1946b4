"""
What is bounded: answers per second, hops that wait, the flow table, new flows of a source (docs/rules.md rule 8,
flows; rule 11, next hop; rule 12, sending).
"""

from __future__ import annotations

from typing import Any

from scene import (
    BOTH,
    CLIENT2_MAC,
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
        made += [*_rates(f), *_new_flows(f)]
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


def _new_flows(f: Family) -> list[Case]:
    """How many flows the clients of a prefix may begin."""
    v = f"IPv{f.version}"
    limit = {"rate": 2, "burst": 2, "prefix_ipv4": 24, "prefix_ipv6": 56}
    names = {"direction": "forward", "service": f.web}
    far = "203.0.113.9" if f is V4 else "2001:db8:9::9"

    def case(name: str, *services: dict[str, Any]) -> Case:
        return Case(f"{name}, {v}", ["8.22", "8.14"], "rule 8.22, limits of new flows", services=list(services))

    rate = case("a prefix begins a burst of flows, then one each 1/rate seconds", web_service(f, new_flow_limit=limit))
    rate.at(10_000)
    first = Talk(rate, f, sport=1)
    second = Talk(rate, f, sport=2, number=2, client=f.client2, mac=CLIENT2_MAC)
    third, other = Talk(rate, f, sport=3), Talk(rate, f, sport=3, number=3, client=far)
    first.open()
    second.c(tcp("S", 1000))
    rate.drop(third.c_in(tcp("S", 1000)), "new_flow_limit", **names)
    # Flows that exist go on, and what begins none takes no token.
    second.c(tcp("S", 1000))
    first.c(tcp("PA", 1001, 5001, b"x"))
    rate.drop(third.c_in(tcp("A", 1000, 5000)), "no_flow", **names)
    other.c(tcp("S", 1000))
    rate.at(10_499)
    rate.drop(third.c_in(tcp("S", 1000)), "new_flow_limit", **names)
    rate.at(10_500)
    third.c(tcp("S", 1000))
    rate.drop(Talk(rate, f, sport=4).c_in(tcp("S", 1000)), "new_flow_limit", **names)
    # A client that begins anew on a port that is over begins a flow.
    first.close()
    rate.drop(first.c_in(tcp("S", 90_000)), "new_flow_limit", **names)
    rate.counters(verdicts={"drop.new_flow_limit": 4, "drop.no_flow": 1}, events={"flow_created": 4, "flow_reused": 1})

    changed = case("a changed limit holds from the publication on", web_service(f, new_flow_limit={**limit, "rate": 1}))
    for port in (1, 2):
        Talk(changed, f, sport=port, number=port).c(tcp("S", 1000))
    changed.drop(Talk(changed, f, sport=3).c_in(tcp("S", 1000)), "new_flow_limit", **names)
    changed.publish(services=[web_service(f, new_flow_limit={**limit, "rate": 100, "burst": 1})])
    changed.drop(Talk(changed, f, sport=3).c_in(tcp("S", 1000)), "new_flow_limit", **names)
    changed.at(10)
    Talk(changed, f, sport=3, number=3).c(tcp("S", 1000))
    changed.publish(services=[web_service(f)])
    for port in (4, 5, 6):
        Talk(changed, f, sport=port, number=port - 3).c(tcp("S", 1000))

    whole = case(
        "a prefix of no bits is all clients of a service, and services have limits of their own",
        web_service(f, new_flow_limit={"rate": 1, "burst": 1, "prefix_ipv4": 0, "prefix_ipv6": 0}),
        dns_service(f, new_flow_limit={"rate": 1, "burst": 1, "prefix_ipv4": 32, "prefix_ipv6": 128}),
    )
    Talk(whole, f, sport=1).c(tcp("S", 1000))
    whole.drop(Talk(whole, f, sport=1, client=far).c_in(tcp("S", 1000)), "new_flow_limit", **names)
    about = {"direction": "forward", "service": f.dns}
    asks = Talk(whole, f, "udp", sport=1)
    asks.c(udp(b"q"))
    asks.c(udp(b"again"))
    whole.drop(Talk(whole, f, "udp", sport=2).c_in(udp(b"q")), "new_flow_limit", **about)
    Talk(whole, f, "udp", sport=1, client=f.client2, mac=CLIENT2_MAC).c(udp(b"q"))

    taken = case(
        "pickups are limited, what leaves no flow is not",
        web_service(f, "hash-flow", (1,), new_flow_limit={**limit, "rate": 1, "burst": 1}),
    )
    Talk(taken, f, sport=1).c(tcp("A", 1000, 5000))
    taken.drop(Talk(taken, f, sport=2).c_in(tcp("A", 1000, 5000)), "new_flow_limit", **names)
    Talk(taken, f, sport=2).c(tcp("FA", 1000, 5000))
    # A server's packet takes none.
    Talk(taken, f, sport=3).s(tcp("A", 5000, 1000))

    hosts = [
        {"name": name, "address": f.servers[number], "port": 5353, "weight": 1, "mac": None}
        for number, name in enumerate((f.dns_server, "other"))
    ]

    def leaving(leaves: bool) -> dict[str, Any]:
        servers = [{**hosts[0], "moves_udp": leaves}, hosts[1]]
        plan = {"selector": "counter", "slots": ["other" if leaves else f.dns_server]}
        limited = {"rate": 1, "burst": 1, "prefix_ipv4": 24, "prefix_ipv6": 56}
        return dns_service(f, plan=plan, servers=servers, new_flow_limit=limited)

    moved = case("a flow that moves to another server is no new one", leaving(False))
    Talk(moved, f, "udp").c(udp(b"one"))
    moved.publish(services=[leaving(True)])
    Talk(moved, f, "udp", number=2, server="other").c(udp(b"two"))
    moved.counters(events={"flow_moved": 1, "flow_created": 2})
    return [rate, changed, whole, taken, moved]


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
