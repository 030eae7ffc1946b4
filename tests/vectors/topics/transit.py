"""Packets of no service: dropped, or routed on as a router would (docs/datapath.md rules 7 and 9)."""

from __future__ import annotations

from typing import Any

from scapy.packet import Raw
from scene import (
    BOTH,
    CLIENT2_MAC,
    CLIENT_MAC,
    GATEWAY_MAC,
    ROUTER_MAC,
    ROUTES,
    SERVER_MACS,
    V4,
    Case,
    Family,
    Talk,
    ether,
    icmp_error,
    neighbours,
    pattern,
    tcp,
    two_interfaces,
    udp,
    with_ports,
)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_basic(f), *_edges(f)]
    return made


def _packet(f: Family, dst: str, l4: Any, ttl: int = 64, src: str = "", **ip: Any) -> Any:
    return f.ip(src or f.client, dst, ttl, **ip) / with_ports(l4, 1111, 2222)


def _basic(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    field = "proto" if f is V4 else "nh"
    drop = Case(f"packets of no service are dropped unless told otherwise, {v}", [22])
    for l4 in (tcp("S", 1), udp(b"x")):
        drop.drop(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, l4)), "transit")
    drop.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, f.client2, **{field: 47}) / Raw(bytes(20))), "transit")
    # A server's port that is no endpoint is like any other host's.
    drop.drop(ether(SERVER_MACS[0], ROUTER_MAC, _packet(f, f.client, udp(b"x"), src=f.servers[0])), "transit")
    drop.counters(verdicts={"drop.transit": 4}, tx_packets=0)

    route = Case(f"transit packets are routed on unchanged but for the hop count, {v}", [11, 12, 23], transit="forward")
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
        [11, 28],
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
        f"a server's endpoint without a flow is dropped, also where transit is routed, {v}", [24], transit="forward"
    )
    talk = Talk(hidden, f)
    hidden.drop(talk.s_in(tcp("A", 1, 1)), "no_flow")
    return [drop, route, away, hidden]


def _edges(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    exceeded = (11, 0) if f is V4 else (3, 0)
    last = Case(f"a transit packet on its last hop is answered, {v}", [11, 27], transit="forward")
    frame = ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(b"x"), ttl=1))
    last.reply(frame, "ttl_exceeded", icmp_error(f, frame, exceeded, f.router, f.client))
    broken = Case(f"a malformed transit packet is dropped, {v}", [10, 16, 17], transit="forward")
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
    big = Case(f"a transit packet too big is answered with the MTU, {v}", [21], transit="forward", routes=[route])
    marks: dict[str, Any] = {"flags": "DF"} if f is V4 else {}
    frame = ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(pattern(1300)), **marks))
    big.reply(frame, "too_big", icmp_error(f, frame, (3, 4) if f is V4 else (2, 0), f.router, f.client, mtu))
    wait = Case(
        f"a transit packet waits for its neighbour, {v}",
        [28],
        transit="forward",
        neighbours=[n for n in neighbours() if n[1] != f.client2],
    )
    wait.send(ether(CLIENT_MAC, ROUTER_MAC, _packet(f, f.client2, udp(b"x"))), "hold", "neighbour")
    wait.unresolved(("eth0", f.client2))
    wait.next_hops(neighbours=neighbours())
    wait.tick(ether(ROUTER_MAC, CLIENT2_MAC, _packet(f, f.client2, udp(b"x"), 63)))
    far = "10.0.0.31" if f is V4 else "2001:2:0:2::31"
    across = Case(f"a transit packet crosses interfaces, {v}", [28], **two_interfaces(transit="forward"))
    across.forward(
        ether(CLIENT_MAC, ROUTER_MAC, _packet(f, far, udp(b"x"))),
        ["eth1", ether("aa:aa:aa:00:01:01", SERVER_MACS[0], _packet(f, far, udp(b"x"), 63))],
    )
    return [last, broken, big, wait, across]
