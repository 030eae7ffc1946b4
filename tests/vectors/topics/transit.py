"""
Packets of no service: dropped, or routed on as a router would (docs/rules.md rule 7, L4 headers, and rule 9,
transit).
"""

from __future__ import annotations

from typing import Any

from scapy.packet import Raw
from scene import (
    BOTH,
    CLIENT2_MAC,
    CLIENT_MAC,
    CLIENT_PORT,
    GATEWAY_MAC,
    ROUTER_MAC,
    ROUTES,
    SERVER_MACS,
    SERVER_PORTS,
    V4,
    Case,
    Family,
    Talk,
    ether,
    hash_flow,
    icmp,
    icmp_error,
    neighbours,
    pattern,
    pieces,
    tcp,
    two_interfaces,
    udp,
    web_service,
    with_ports,
)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_basic(f), *_edges(f), *_direct(f), *_direct_and_flows(f), *_direct_ends(f)]
    return made


def _packet(f: Family, dst: str, l4: Any, ttl: int = 64, src: str = "", **ip: Any) -> Any:
    return f.ip(src or f.client, dst, ttl, **ip) / with_ports(l4, 1111, 2222)


def _basic(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    field = "proto" if f is V4 else "nh"
    drop = Case(f"packets of no service are dropped unless told otherwise, {v}", ["7.A"])
    for l4 in (tcp("S", 1), udp(b"x")):
        drop.drop(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, l4)), "transit")
    drop.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, f.client2, **{field: 47}) / Raw(bytes(20))), "transit")
    # A server's port that is no endpoint is like any other host's.
    drop.drop(ether(SERVER_MACS[0], ROUTER_MAC, _packet(f, f.client, udp(b"x"), src=f.servers[0])), "transit")
    drop.counters(verdicts={"drop.transit": 4}, tx_packets=0)

    route = Case(
        f"transit packets are routed on unchanged but for the hop count, {v}", ["11.1", "8.20"], transit="forward"
    )
    for l4 in (
        tcp("S", 1, options=[("MSS", 1400)]),
        tcp("A", 1, 1, pattern(100)),
        udp(pattern(33)),
        udp(b"", chksum=0x1234),
    ):
        route.forward(
            ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, l4)),
            ether(ROUTER_MAC, CLIENT2_MAC, _packet(f, f.client2, l4, 63)),
        )
    gre_in, gre_out = (f.ip(f.client, f.client2, ttl, **{field: 47}) / Raw(bytes(20)) for ttl in (64, 63))
    route.forward(ether(CLIENT_MAC, ROUTER_MAC, gre_in), ether(ROUTER_MAC, CLIENT2_MAC, gre_out))
    to_server = _packet(f, f.servers[1], tcp("S", 1))
    route.forward(
        ether(CLIENT_MAC, ROUTER_MAC, to_server),
        ether(ROUTER_MAC, SERVER_MACS[1], _packet(f, f.servers[1], tcp("S", 1), 63)),
    )
    route.counters(events={"flow_created": 0, "flow_miss": 0}, verdicts={"forward": 6})

    default = "0.0.0.0/0" if f is V4 else "::/0"
    away = Case(
        f"transit packets leave through the gateway, {v}",
        ["11.1", "11"],
        transit="forward",
        routes=[*ROUTES, {"prefix": default, "interface": "eth0", "gateway": f.gateway}],
    )
    away.forward(
        ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.outside, udp(b"x"))),
        ether(ROUTER_MAC, GATEWAY_MAC, _packet(f, f.outside, udp(b"x"), 63)),
    )
    away.next_hops(routes=ROUTES)
    away.drop(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.outside, udp(b"x"))), "no_route")
    hidden = Case(
        f"a server's endpoint without a flow is dropped, also where transit is routed, {v}", ["8.15"], transit="forward"
    )
    talk = Talk(hidden, f)
    hidden.drop(talk.s_in(tcp("A", 1, 1)), "no_flow")
    return [drop, route, away, hidden]


def _edges(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    exceeded = (11, 0) if f is V4 else (3, 0)
    last = Case(f"a transit packet on its last hop is answered, {v}", ["11.1", "12.4"], transit="forward")
    frame = ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(b"x"), ttl=1))
    last.reply(frame, "ttl_exceeded", icmp_error(f, frame, exceeded, f.router, f.client))
    broken = Case(f"a malformed transit packet is dropped, {v}", ["5", "5.4", "7"], transit="forward")
    for l4, reason in (
        (tcp("SF", 1), "tcp_flags"),
        (tcp("S", 1, dataofs=3), "tcp_data_offset"),
        (udp(b"x", len=7), "udp_length"),
    ):
        broken.drop(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, l4)), reason)
    packet = f.ip(f.client, f.client2) / with_ports(udp(b"x"), 0, 5)
    broken.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "port_zero")
    mtu = 600 if f is V4 else 1280
    route = {"prefix": "198.18.1.0/24" if f is V4 else "2001:2:0:1::/64", "interface": "eth0", "mtu": mtu}
    big = Case(f"a transit packet too big is answered with the MTU, {v}", ["12.2"], transit="forward", routes=[route])
    marks: dict[str, Any] = {"flags": "DF"} if f is V4 else {}
    frame = ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(pattern(1300)), **marks))
    big.reply(frame, "too_big", icmp_error(f, frame, (3, 4) if f is V4 else (2, 0), f.router, f.client, mtu))
    wait = Case(
        f"a transit packet waits for its neighbour, {v}",
        ["11"],
        transit="forward",
        neighbours=[n for n in neighbours() if n[1] != f.client2],
    )
    wait.send(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(b"x"))), "hold", "neighbour")
    wait.unresolved(("eth0", f.client2))
    wait.next_hops(neighbours=neighbours())
    wait.tick(ether(ROUTER_MAC, CLIENT2_MAC, _packet(f, f.client2, udp(b"x"), 63)))
    far = "10.0.0.31" if f is V4 else "2001:2:0:2::31"
    across = Case(f"a transit packet crosses interfaces, {v}", ["11"], **two_interfaces(transit="forward"))
    across.forward(
        ether(CLIENT_MAC, ROUTER_MAC, _packet(f, far, udp(b"x"))),
        ["eth1", ether("aa:aa:aa:00:01:01", SERVER_MACS[0], _packet(f, far, udp(b"x"), 63))],
    )
    return [last, broken, big, wait, across]


class Straight:
    """A client's connection to a server's own address and port: nothing but the hop count changes."""

    def __init__(self, case: Case, f: Family, number: int = 1, kind: str = "tcp", sport: int = CLIENT_PORT) -> None:
        self.case, self.f, self.mac, self.sport = case, f, SERVER_MACS[number - 1], sport
        self.server, self.port = f.servers[number - 1], SERVER_PORTS[kind][number - 1]

    def c_in(self, l4: Any, ttl: int = 64) -> bytes:
        """Make what the client sends."""
        packet = self.f.ip(self.f.client, self.server, ttl) / with_ports(l4, self.sport, self.port)
        return ether(CLIENT_MAC, ROUTER_MAC, packet)

    def s_in(self, l4: Any, ttl: int = 64) -> bytes:
        """Make what the server sends."""
        packet = self.f.ip(self.server, self.f.client, ttl) / with_ports(l4, self.port, self.sport)
        return ether(self.mac, ROUTER_MAC, packet)

    def c(self, l4: Any) -> None:
        """Send from the client and expect it at the server."""
        packet = self.f.ip(self.f.client, self.server, 63) / with_ports(l4, self.sport, self.port)
        self.case.forward(self.c_in(l4), ether(ROUTER_MAC, self.mac, packet))

    def s(self, l4: Any) -> None:
        """Send from the server and expect it at the client, from the server's own address."""
        packet = self.f.ip(self.server, self.f.client, 63) / with_ports(l4, self.port, self.sport)
        self.case.forward(self.s_in(l4), ether(ROUTER_MAC, CLIENT_MAC, packet))

    def unasked(self, l4: Any) -> None:
        """Send from the server and expect a drop."""
        self.case.drop(self.s_in(l4), "no_flow")


def _direct(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"a connection straight to a server gets its answers, {v}", ["8.15", "9.1"], transit="forward")
    straight = Straight(case, f)
    straight.unasked(tcp("SA", 9, 2))
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    straight.c(tcp("A", 2, 10, pattern(100)))
    straight.s(tcp("A", 10, 102, pattern(1000)))
    Straight(case, f, number=2).unasked(tcp("A", 1, 1))
    Straight(case, f, sport=CLIENT_PORT + 1).unasked(tcp("A", 1, 1))
    case.counters(events={"flow_created": 0, "flow_miss": 5}, verdicts={"forward": 4, "drop.no_flow": 3})
    datagrams = Case(f"datagrams straight to a server get their answers, {v}", ["8.15", "9.1"], transit="forward")
    straight = Straight(datagrams, f, kind="udp")
    straight.c(udp(b"question"))
    straight.s(udp(b"answer"))
    straight.s(udp(b"and more"))
    last = Case(
        f"an answer straight from a server on its last hop is answered, {v}", ["11.1", "9.1"], transit="forward"
    )
    straight = Straight(last, f)
    straight.c(tcp("S", 1))
    frame = straight.s_in(tcp("SA", 9, 2), ttl=1)
    exceeded = (11, 0) if f is V4 else (3, 0)
    last.reply(frame, "ttl_exceeded", icmp_error(f, frame, exceeded, f.router, straight.server, dst_mac=SERVER_MACS[0]))
    big = Case(f"a datagram straight to a server in fragments gets its answer, {v}", ["6", "9.1"], transit="forward")
    straight = Straight(big, f, kind="udp")
    l4 = with_ports(udp(pattern(1200)), CLIENT_PORT, straight.port)
    cuts = [(0, 800), (800, 408)]
    sent = zip(
        pieces(f, f.client, straight.server, l4, cuts), pieces(f, f.client, straight.server, l4, cuts, 63), strict=True
    )
    for before, after in sent:
        big.forward(ether(CLIENT_MAC, ROUTER_MAC, before), ether(ROUTER_MAC, SERVER_MACS[0], after))
    straight.s(udp(b"answer"))
    back = with_ports(udp(pattern(1200)), straight.port, CLIENT_PORT)
    sent = zip(
        pieces(f, straight.server, f.client, back, cuts),
        pieces(f, straight.server, f.client, back, cuts, 63),
        strict=True,
    )
    for before, after in sent:
        big.forward(ether(SERVER_MACS[0], ROUTER_MAC, before), ether(ROUTER_MAC, CLIENT_MAC, after))
    return [case, datagrams, last, big, _direct_error(f)]


def _direct_error(f: Family) -> Case:
    """A server that refuses a datagram says so in an ICMP error, which names nothing of ours."""
    case = Case(f"an ICMP error about a connection straight to a server is routed on, IPv{f.version}", ["10", "9.1"])
    case.setup["transit"] = "forward"
    straight = Straight(case, f, kind="udp")
    straight.c(udp(b"question"))
    inner = bytes(f.ip(f.client, straight.server, 63) / with_ports(udp(b"question"), CLIENT_PORT, straight.port))
    kind = (3, 3) if f is V4 else (1, 4)
    before, after = (icmp(f, straight.server, f.client, *kind, bytes(4) + inner, ttl) for ttl in (64, 63))
    case.forward(ether(SERVER_MACS[0], ROUTER_MAC, before), ether(ROUTER_MAC, CLIENT_MAC, after))
    case.drop(
        ether(
            SERVER_MACS[1],
            ROUTER_MAC,
            icmp(
                f,
                f.servers[1],
                f.client,
                *kind,
                bytes(4)
                + bytes(
                    f.ip(f.client, f.servers[1], 63) / with_ports(tcp("A", 1, 1), CLIENT_PORT, SERVER_PORTS["tcp"][1])
                ),
            ),
        ),
        "icmp_no_flow",
    )
    return case


def _direct_and_flows(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    beside = Case(f"a connection straight to a server beside a flow of the same client port, {v}", ["8.16", "9.1"])
    beside.setup["transit"] = "forward"
    talk, straight = Talk(beside, f), Straight(beside, f, number=2)
    talk.open()
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    talk.c(tcp("A", 1001, 5001, b"still here"))
    talk.s(tcp("A", 5001, 1011))
    straight.c(tcp("A", 2, 10))

    clash = Case(f"a connection straight to the server of a flow of that client port is refused, {v}", ["8.15", "9.1"])
    clash.setup["transit"] = "forward"
    talk, straight = Talk(clash, f), Straight(clash, f)
    talk.open()
    clash.drop(straight.c_in(tcp("S", 1)), "flow_conflict")
    talk.s(tcp("A", 5001, 1001, b"data"))
    talk.c(tcp("A", 1001, 5005))
    talk.close(1001, 5005)
    # The flow is over: it makes way, but for nothing that may be forged while its last segments are under way.
    for flags in ("A", "PA", "FA", "R", "SA", "RA"):
        clash.drop(straight.c_in(tcp(flags, 1, 1)), "flow_conflict")
    clash.flows(talk.flow("closing"))
    talk.c(tcp("A", 1002, 5006))
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    clash.flows()
    clash.counters(events={"flow_reused": 1}, verdicts={"drop.flow_conflict": 7})

    over = Case(
        f"a flow passes over a server that its client speaks to directly, {v}", ["8.16", "9.1"], transit="forward"
    )
    straight = Straight(over, f)
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    Talk(over, f, number=2).open()
    straight.s(tcp("A", 10, 2, b"data"))
    alone = Case(f"a flow whose only server its client speaks to directly is refused, {v}", ["8.16", "9.1"])
    alone.setup |= {"transit": "forward", "services": [web_service(f, slots=(1,))]}
    straight, talk = Straight(alone, f), Talk(alone, f)
    straight.c(tcp("S", 1))
    alone.reply(talk.c_in(tcp("S", 1)), "flow_conflict", talk.refusal(2), **talk.names)
    straight.c(tcp("R", 2))
    talk.c(tcp("S", 1))
    alone.counters(events={"flow_created": 1})

    sport = next(port for port in range(2000, 3000) if hash_flow(1, f.client, f.vip, port, 9876, 6) % 3 == 0)
    hashed = Case(f"no hash takes up an answer straight from a server, {v}", ["8.14", "9.1"], transit="forward")
    hashed.setup["services"] = [web_service(f, "hash-flow")]
    straight = Straight(hashed, f, sport=sport)
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    straight.c(tcp("A", 2, 10))
    straight.s(tcp("A", 10, 2))
    hashed.flows()
    straight.c(tcp("R", 2))
    hashed.at(120_000)
    # The record is gone; what the server says now, the hash takes up, as it did before.
    Talk(hashed, f, number=1, sport=sport).s(tcp("A", 10, 2))

    # Its server's answer may be of a flow that the hash would place: so it is placed, or dropped.
    middle = Case(
        f"where a hash places, only a SYN opens a connection straight to a server, {v}", ["8.14", "8.15", "9.1"]
    )
    middle.setup |= {"transit": "forward", "services": [web_service(f, "hash-flow")]}
    other = next(port for port in range(2000, 3000) if hash_flow(1, f.client, f.vip, port, 9876, 6) % 3 == 1)
    straight = Straight(middle, f, sport=other)
    for flags in ("A", "PA", "FA", "R"):
        straight.c(tcp(flags, 2, 10))
        straight.unasked(tcp("A", 10, 2))
    middle.flows()
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    straight.c(tcp("A", 2, 10))
    straight.s(tcp("A", 10, 2))
    middle.flows()
    straight, talk = Straight(middle, f, sport=sport), Talk(middle, f, number=1, sport=sport)
    straight.c(tcp("A", 2, 10))
    middle.flows()
    talk.s(tcp("A", 10, 2))
    middle.flows(talk.flow("pickup"))
    middle.drop(straight.c_in(tcp("A", 2, 10)), "flow_conflict")

    known = Case(f"where no hash places, an ACK opens a connection straight to a server, too, {v}", ["9.1"])
    known.setup |= {"transit": "forward", "services": [web_service(f, "counter")]}
    straight = Straight(known, f)
    straight.c(tcp("A", 2, 10))
    straight.s(tcp("A", 10, 2))
    return [beside, clash, over, alone, hashed, middle, known, *_spoofed(f, sport)]


def _spoofed(f: Family, sport: int) -> list[Case]:
    """Make SYNs straight to a server in the name of a client that speaks to it through a hash service."""
    v = f"IPv{f.version}"

    def begin(name: str) -> tuple[Case, Talk, Straight]:
        case = Case(f"{name}, {v}", ["8.14", "8.15", "9.1"])
        case.setup |= {"transit": "forward", "services": [web_service(f, "hash-flow")]}
        straight = Straight(case, f, sport=sport)
        straight.c(tcp("S", 77))
        return case, Talk(case, f, number=1, sport=sport), straight

    data, talk, straight = begin("a SYN straight to a server does not unmask what it says in a flow")
    for flags in ("FA", "R", "RA"):
        talk.s(tcp(flags, 5001, 1001))
    data.flows()
    talk.s(tcp("PA", 5001, 1001, b"data"))
    data.flows(talk.flow("pickup"))
    talk.c(tcp("A", 1001, 5005))
    data.flows(talk.flow("established"))
    data.drop(straight.c_in(tcp("S", 77)), "flow_conflict")
    talk.s(tcp("SA", 9, 78))

    client, talk, straight = begin("a SYN straight to a server turns no connection of a hash away from it")
    for flags in ("FA", "R"):
        talk.c(tcp(flags, 1001, 5001))
    talk.c(tcp("A", 1001, 5001))
    client.flows(talk.flow("pickup"))
    talk.s(tcp("A", 5001, 1001))
    client.flows(talk.flow("established"))

    new, talk, straight = begin("a flow passes over a server that its client has sent a SYN, where a hash places, too")
    Talk(new, f, number=2, sport=sport).c(tcp("S", 1000))
    straight.s(tcp("SA", 9, 78))
    straight.s(tcp("A", 10, 78))

    refused, talk, straight = begin("a SYN straight to a server is refused, where a hash places, too")
    straight.s(tcp("RA", 0, 78))
    refused.flows()

    error, talk, straight = begin("an error about a SYN straight to a server names no server, where a hash places")
    kind = (3, 3) if f is V4 else (1, 4)
    port = SERVER_PORTS["tcp"][0]
    inner = bytes(f.ip(f.client, straight.server, 63) / with_ports(tcp("A", 1001, 5001), sport, port))
    seen = bytes(f.ip(f.client, f.vip, 63) / with_ports(tcp("A", 1001, 5001), sport, 9876))
    before = icmp(f, straight.server, f.client, *kind, bytes(4) + inner, 64)
    after = icmp(f, f.vip, f.client, *kind, bytes(4) + seen, 63)
    frames = ether(SERVER_MACS[0], ROUTER_MAC, before), ether(ROUTER_MAC, CLIENT_MAC, after)
    error.forward(*frames, **talk.reply_names)
    return [data, client, new, refused, error]


def _direct_ends(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    idle = Case(
        f"a connection straight to a server is forgotten when it was idle, {v}", ["8.12", "9.1"], transit="forward"
    )
    silent, answered, datagrams = (
        Straight(idle, f, sport=1000),
        Straight(idle, f, sport=1001),
        Straight(idle, f, kind="udp", sport=1002),
    )
    silent.c(tcp("S", 1))
    answered.c(tcp("S", 1))
    answered.s(tcp("SA", 9, 2))
    datagrams.c(udp(b"question"))
    idle.at(30_000)
    silent.unasked(tcp("SA", 9, 2))
    answered.s(tcp("SA", 9, 2))
    idle.at(299_999)
    datagrams.s(udp(b"answer"))
    idle.at(599_999)
    datagrams.unasked(udp(b"answer"))
    idle.at(30_000 + 7_440_000)
    answered.unasked(tcp("A", 10, 2))

    fins = Case(f"a connection straight to a server is closing after both FINs, and a SYN makes it anew, {v}", ["9.1"])
    fins.setup["transit"] = "forward"
    straight = Straight(fins, f)
    straight.c(tcp("S", 1))
    straight.s(tcp("SA", 9, 2))
    straight.c(tcp("FA", 2, 10))
    straight.s(tcp("FA", 10, 3))
    straight.c(tcp("A", 3, 11))
    fins.at(120_000)
    straight.unasked(tcp("A", 11, 3))
    straight.c(tcp("S", 1))
    straight.s(tcp("RA", 0, 2))
    straight.c(tcp("S", 100))
    fins.at(149_999)
    straight.s(tcp("SA", 50, 101))
    fins.at(300_000)
    straight.s(tcp("A", 51, 101))

    full = Case(f"the connection straight to a server that was used least makes room, {v}", ["8.17", "9.1"], capacity=2)
    full.setup["transit"] = "forward"
    one, two, three = (Straight(full, f, sport=port) for port in (1000, 1001, 1002))
    one.c(tcp("S", 1))
    two.c(tcp("S", 1))
    one.s(tcp("SA", 9, 2))
    three.c(tcp("S", 1))
    two.unasked(tcp("SA", 9, 2))
    one.s(tcp("SA", 9, 2))
    three.s(tcp("SA", 9, 2))
    full.counters(events={"direct_evicted": 1})

    off = Case(f"connections straight to servers are forgotten when transit is dropped, {v}", ["7.A", "9.1"])
    off.setup["transit"] = "forward"
    straight = Straight(off, f)
    straight.c(tcp("S", 1))
    off.publish(transit="drop")
    straight.unasked(tcp("SA", 9, 2))
    off.publish(transit="forward")
    straight.unasked(tcp("SA", 9, 2))
    reset = Case(f"a reset straight to a server lets no answer pass, {v}", ["8.15", "9.1"], transit="forward")
    straight = Straight(reset, f)
    straight.c(tcp("R", 1))
    straight.unasked(tcp("A", 9, 2))
    return [idle, fins, full, off, reset]
