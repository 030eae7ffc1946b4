"""Where packets go next: routes, gateways, neighbours that must be asked for (docs/rules.md rule 11, next hop)."""

from __future__ import annotations

from typing import Any

from scene import (
    BOTH,
    CLIENT_MAC,
    FAR4,
    FAR6,
    GATEWAY_MAC,
    ROUTER_MAC,
    ROUTES,
    SERVER_MACS,
    V4,
    Case,
    Family,
    Talk,
    ether,
    icmp,
    icmp_error,
    neighbours,
    pieces,
    tcp,
    two_interfaces,
    udp,
    web_service,
    with_ports,
)

FOUND = "found by tests/differential.py"


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_waiting(f), *_asking(f), *_routes(f), *_interfaces(f)]
    return made


def _missing(*addresses: str) -> list[list[str]]:
    return [entry for entry in neighbours() if entry[1] not in addresses]


def _waiting(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    server = f.servers[0]
    case = Case(
        f"up to three packets wait for a neighbour and leave when it is known, {v}", ["11"], neighbours=_missing(server)
    )
    talk = Talk(case, f)
    case.send(talk.c_in(tcp("S", 1000)), "hold", "neighbour", **talk.names)
    case.unresolved(("eth0", server))
    case.unresolved()
    case.at(1000)
    case.send(talk.c_in(tcp("S", 1000)), "hold", "neighbour", **talk.names)
    case.send(talk.c_in(tcp("S", 1000)), "hold", "neighbour", **talk.names)
    case.drop(talk.c_in(tcp("S", 1000)), "neighbour_unresolved", **talk.names)
    case.unresolved()
    case.tick()
    case.next_hops(neighbours=neighbours())
    case.at(1200)
    case.tick(*[talk.c_out(tcp("S", 1000))] * 3)
    case.tick()
    case.counters(verdicts={"forward": 3, "hold.neighbour": 3, "drop.neighbour_unresolved": 1})
    talk.c(tcp("S", 1000))

    late = Case(f"packets that waited 3 s for a neighbour are given up, {v}", ["11"], neighbours=_missing(server))
    talk = Talk(late, f, "udp")
    late.send(talk.c_in(udp(b"1")), "hold", "neighbour", **talk.names)
    late.at(500)
    late.send(talk.c_in(udp(b"2")), "hold", "neighbour", **talk.names)
    late.unresolved(("eth0", server))
    late.at(2999)
    late.tick()
    late.counters(verdicts={"hold.neighbour": 2})
    late.at(3000)
    kind = (3, 1) if f is V4 else (1, 3)
    late.tick(*(icmp_error(f, talk.c_in(udp(data)), kind, f.vip, f.client) for data in (b"1", b"2")))
    late.counters(verdicts={"hold.neighbour": 2, "reply.neighbour_timeout": 2}, tx_packets=2)
    late.next_hops(neighbours=neighbours())
    late.tick()
    talk.c(udp(b"3"))

    return [case, late, *_unreachable(f)]


def _unreachable(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    server, kind = f.servers[0], (3, 1) if f is V4 else (1, 3)
    origin = "RFC 1812 section 5.2.7.1, RFC 4443 section 3.1"
    failed = Case(
        f"a neighbour that did not answer is not waited for during the next 3 s, {v}",
        ["10", "12.4", "11"],
        origin,
        neighbours=_missing(server),
        icmp_rate=2,
    )
    talk = Talk(failed, f, "udp")
    failed.send(talk.c_in(udp(b"1")), "hold", "neighbour", **talk.names)
    failed.unresolved(("eth0", server))
    failed.at(3000)
    frame = talk.c_in(udp(b"2"))
    # The error about the first packet leaves at the next tick; both take a token.
    failed.reply(frame, "neighbour_unresolved", icmp_error(f, frame, kind, f.vip, f.client), **talk.names)
    failed.unresolved(("eth0", server))
    failed.drop(frame, "rate_limited", **talk.names)
    failed.unresolved()
    failed.tick(icmp_error(f, talk.c_in(udp(b"1")), kind, f.vip, f.client))
    failed.counters(verdicts={"reply.neighbour_timeout": 1, "reply.neighbour_unresolved": 1}, tx_packets=2)
    failed.at(6000)
    failed.send(frame, "hold", "neighbour", **talk.names)
    failed.unresolved(("eth0", server))
    failed.next_hops(neighbours=neighbours())
    failed.tick(talk.c_out(udp(b"2")))

    long = Case(
        f"the inner packet of the error about what waited in vain is as it came, up to 576 or 1280 bytes, {v}",
        ["10"],
        origin,
        neighbours=_missing(server),
    )
    talk = Talk(long, f)
    frame = talk.c_in(tcp("S", 1000, data=bytes(1400)), ttl=9)
    long.send(frame, "hold", "neighbour", **talk.names)
    long.at(3000)
    long.tick(icmp_error(f, frame, kind, f.vip, f.client))
    long.flows(talk.flow("syn-sent"))

    limited = Case(
        f"errors about packets that waited are rate-limited, {v}",
        ["10", "12.4"],
        origin,
        neighbours=_missing(server),
        icmp_rate=1,
    )
    talk = Talk(limited, f, "udp")
    for data in (b"1", b"2", b"3"):
        limited.send(talk.c_in(udp(data)), "hold", "neighbour", **talk.names)
    limited.at(3000)
    limited.tick(icmp_error(f, talk.c_in(udp(b"1")), kind, f.vip, f.client))
    limited.counters(verdicts={"reply.neighbour_timeout": 1, "drop.rate_limited": 2})

    silent = Case(
        f"no error about errors, later fragments, or packets toward a client, {v}",
        ["10", "12.4"],
        "RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)",
        neighbours=_missing(server, f.client),
    )
    silent.next_hops(neighbours=neighbours())
    talk = Talk(silent, f, "udp")
    talk.c(udp(b"question"))
    silent.next_hops(neighbours=_missing(server))
    cuts = [(0, 400), (400, 400), (800, 208)]
    parts = pieces(f, f.client, f.vip, with_ports(udp(bytes(1000)), talk.sport, talk.vport), cuts)
    for part in parts:
        silent.send(ether(talk.mac, ROUTER_MAC, part), "hold", "neighbour", **talk.names)
    silent.at(3000)
    silent.tick(icmp_error(f, ether(talk.mac, ROUTER_MAC, parts[0]), kind, f.vip, f.client))
    silent.counters(verdicts={"reply.neighbour_timeout": 1, "drop.neighbour_timeout": 2})
    silent.at(6000)
    quote = bytes(f.ip(f.vip, f.client, 61) / with_ports(udp(b"answer"), talk.vport, talk.sport))
    about = icmp(f, f.client, f.vip, *((3, 3) if f is V4 else (1, 4)), bytes(4) + quote)
    silent.send(ether(talk.mac, ROUTER_MAC, about), "hold", "neighbour", **talk.names)
    silent.at(9000)
    silent.tick()
    silent.counters(verdicts={"reply.neighbour_timeout": 1, "drop.neighbour_timeout": 3})
    return [failed, long, limited, silent]


def _asking(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    server = f.servers[0]
    again = Case(
        f"a neighbour is asked for again after its packets were given up, {v}", ["11"], neighbours=_missing(server)
    )
    talk = Talk(again, f, "udp")
    again.send(talk.c_in(udp(b"1")), "hold", "neighbour", **talk.names)
    again.unresolved(("eth0", server))
    again.at(3000)
    again.tick(icmp_error(f, talk.c_in(udp(b"1")), (3, 1) if f is V4 else (1, 3), f.vip, f.client))
    again.at(6000)
    again.send(talk.c_in(udp(b"2")), "hold", "neighbour", **talk.names)
    again.unresolved(("eth0", server))

    late_ask = Case(
        f"a neighbour that no packet waits for any more is not asked for, {v}",
        ["11"],
        FOUND,
        neighbours=_missing(server),
    )
    talk = Talk(late_ask, f, "udp")
    late_ask.send(talk.c_in(udp(b"1")), "hold", "neighbour", **talk.names)
    late_ask.at(3000)
    late_ask.tick(icmp_error(f, talk.c_in(udp(b"1")), (3, 1) if f is V4 else (1, 3), f.vip, f.client))
    late_ask.unresolved()
    late_ask.at(6000)
    late_ask.send(talk.c_in(udp(b"2")), "hold", "neighbour", **talk.names)
    late_ask.next_hops(neighbours=neighbours())
    late_ask.tick(talk.c_out(udp(b"2")))
    late_ask.unresolved()

    moved = Case(f"a changed MAC is used from the moment it is published, {v}", ["11"])
    talk = Talk(moved, f)
    talk.open()
    moved.next_hops(neighbours=[*_missing(server), ["eth0", server, SERVER_MACS[2]]])
    talk.server_mac = SERVER_MACS[2]
    talk.c(tcp("A", 1001, 5001))
    return [again, late_ask, moved]


def _routes(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    gateway_routes = [
        {"prefix": "198.18.1.0/24" if f is V4 else "2001:2:0:1::/64", "interface": "eth0", "gateway": f.gateway}
    ]
    case = Case(f"a server behind a gateway is reached through it, {v}", ["11"], routes=gateway_routes)
    talk = Talk(case, f, server_mac=GATEWAY_MAC)
    talk.open()
    made.append(case)
    wide, narrow = ("198.18.0.0/15", "198.18.1.31/32") if f is V4 else ("2001:2::/48", "2001:2:0:1::31/128")
    default = "0.0.0.0/0" if f is V4 else "::/0"
    routes = [
        {"prefix": default, "interface": "eth0", "gateway": f.client2},
        {"prefix": wide, "interface": "eth0"},
        {"prefix": narrow, "interface": "eth0", "gateway": f.gateway},
        {"prefix": narrow, "interface": "eth0", "gateway": f.client2},
    ]
    case = Case(
        f"the most specific route wins, the first among equals, {v}", ["11"], "RFC 1812 section 5.2.4.3", routes=routes
    )
    talk = Talk(case, f, server_mac=GATEWAY_MAC)
    talk.c(tcp("S", 1))
    talk = Talk(case, f, number=2, sport=40001)
    talk.c(tcp("S", 1))
    made.append(case)
    case = Case(
        f"without a route to the server a client is told so, {v}", ["10", "11"], "RFC 1812 section 5.2.7.1", routes=[]
    )
    talk = Talk(case, f)
    told = icmp_error(f, talk.c_in(tcp("S", 1)), (3, 1) if f is V4 else (1, 0), f.vip, f.client)
    case.reply(talk.c_in(tcp("S", 1)), "no_route", told, **talk.names)
    case.next_hops(routes=ROUTES)
    talk.c(tcp("S", 1))
    made.append(case)
    macs = {"services": [web_service(f, "counter", (1,), macs=("aa:bb:cc:00:00:01", None, None))], "neighbours": []}
    case = Case(f"a server's configured MAC needs no neighbour, nor a route, {v}", ["11"], routes=[], **macs)
    talk = Talk(case, f, server_mac="aa:bb:cc:00:00:01")
    talk.open()
    made.append(case)
    case = Case(f"replies to a client from far away go to the last hop, route or no route, {v}", ["11"], routes=ROUTES)
    talk = Talk(case, f, client=f.outside, mac=GATEWAY_MAC)
    talk.open()
    made.append(case)
    case = Case(
        f"before a client's packet was seen, replies are routed; afterwards they follow the last hop, {v}",
        ["8.14", "11"],
        services=[web_service(f, "hash-flow", (1,))],
        routes=[*ROUTES, {"prefix": default, "interface": "eth0", "gateway": f.gateway}],
    )
    talk = Talk(case, f, client=f.outside, mac=GATEWAY_MAC)
    talk.s(tcp("A", 5000, 1000, b"x"))
    talk.mac = CLIENT_MAC
    talk.c(tcp("A", 1000, 5001))
    talk.s(tcp("A", 5001, 1000, b"x"))
    made.append(case)
    return made


def _interfaces(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    far = FAR4 if f is V4 else FAR6
    case = Case(f"clients on one interface, servers on another, {v}", ["11"], **two_interfaces())
    talk = Talk(case, f, server_address=far[0], server_if="eth1")
    talk.open()
    talk.close()
    made = [case]
    fields: dict[str, Any] = two_interfaces()
    fields["neighbours"] = [entry for entry in fields["neighbours"] if entry[0] == "eth0"]
    case = Case(f"a neighbour is asked for on the interface of its route, {v}", ["11"], **fields)
    talk = Talk(case, f, server_address=far[0], server_if="eth1")
    case.send(talk.c_in(tcp("S", 1)), "hold", "neighbour", **talk.names)
    case.unresolved(("eth1", far[0]))
    case.next_hops(neighbours=two_interfaces()["neighbours"])
    case.tick(["eth1", talk.c_out(tcp("S", 1))])
    made.append(case)
    unknown = Case(f"a server whose interface is not known yet is not taken for spoofed, {v}", ["5.4", "11"], routes=[])
    packet = f.ip(f.servers[0], f.client) / udp(b"x", sport=9, dport=9)
    unknown.drop(ether(SERVER_MACS[0], ROUTER_MAC, packet), "transit")
    made.append(unknown)
    return made
