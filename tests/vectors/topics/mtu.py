"""Packets too big for the way out: told, or cut (docs/rules.md rule 12, sending)."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP
from scapy.utils import checksum as internet_checksum
from scene import (
    BOTH,
    CLIENT_MAC,
    ETH0,
    ROUTER_MAC,
    SERVER_MACS,
    V4,
    V6,
    Case,
    Family,
    Talk,
    ether,
    icmp_error,
    pattern,
    pieces,
    tag,
    tcp,
    udp,
    with_ports,
)

TOO_BIG = {4: (3, 4), 6: (2, 0)}


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += _told(f)
    return [*made, *_cut(), _options(), _again(), _no_room(), _later6()]


def narrow(f: Family, mtu: int) -> dict[str, Any]:
    """Describe a route to the servers with a smaller MTU."""
    return {"routes": [{"prefix": "198.18.1.0/24" if f is V4 else "2001:2:0:1::/64", "interface": "eth0", "mtu": mtu}]}


def _told(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    mtu = 600 if f is V4 else 1280
    marks: dict[str, Any] = {"flags": "DF"} if f is V4 else {}
    origin = "RFC 1191, RFC 8201, RFC 1812 section 4.3.2.3"
    case = Case(
        f"a packet too big for the route is answered with the MTU, {v}", ["12.2", "12.4"], origin, **narrow(f, mtu)
    )
    talk = Talk(case, f)
    talk.open()
    frame = talk.c_in(tcp("PA", 1001, 5001, pattern(1400)), **marks)
    case.reply(frame, "too_big", icmp_error(f, frame, TOO_BIG[f.version], f.router, f.client, mtu), **talk.names)
    fits = mtu - f.header_len - 20
    frame = talk.c_in(tcp("PA", 1001, 5001, pattern(fits + 1)), **marks)
    case.reply(frame, "too_big", icmp_error(f, frame, TOO_BIG[f.version], f.router, f.client, mtu), **talk.names)
    talk.c(tcp("PA", 1001, 5001, pattern(fits)), **marks)
    # The quote ends where the packet ends: padding is none of it.
    case.reply(
        frame + bytes(3), "too_big", icmp_error(f, frame, TOO_BIG[f.version], f.router, f.client, mtu), **talk.names
    )

    back = Case(
        f"a reply too big for the client's link is answered to the server, {v}",
        ["12.2", "12.4"],
        origin,
        interfaces=[{**ETH0, "mtu": 1300}],
    )
    talk = Talk(back, f)
    talk.open()
    frame = talk.s_in(tcp("PA", 5001, 1001, pattern(1400)), **marks)
    told = icmp_error(f, frame, TOO_BIG[f.version], f.router, f.servers[0], 1300, dst_mac=SERVER_MACS[0])
    back.reply(frame, "too_big", told, **talk.reply_names)
    back.counters(servers={f"{talk.service}/{talk.server}": {"packets_reply": 2}})

    tagged = Case(f"the answer about a tagged packet carries the tag, {v}", ["12.2", "3.4"], **narrow(f, mtu))
    talk = Talk(tagged, f, "udp", tags=(tag(9),))
    frame = talk.c_in(udp(pattern(1300)), **marks)
    told = icmp_error(f, frame, TOO_BIG[f.version], f.router, f.client, mtu, l3=18, tags=(tag(9),))
    tagged.reply(frame, "too_big", told, **talk.names)

    limited = Case(f"the answers are rate-limited, {v}", ["12.2", "12.4"], icmp_rate=1, **narrow(f, mtu))
    talk = Talk(limited, f, "udp")
    frame = talk.c_in(udp(pattern(1300)), **marks)
    limited.reply(frame, "too_big", icmp_error(f, frame, TOO_BIG[f.version], f.router, f.client, mtu), **talk.names)
    limited.drop(frame, "rate_limited", **talk.names)
    return [case, back, tagged, limited]


def chunks(total: int, size: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut `total` bytes into pieces of at most `size`, the first at offset `start`."""
    return [(start + at, min(size, total - at)) for at in range(0, total, size)]


def _cut() -> list[Case]:
    f = V4
    case = Case(
        "an IPv4 packet without DF is cut into fragments in order, both ways",
        ["12.2"],
        "RFC 791 section 3.2",
        **narrow(f, 600),
    )
    talk = Talk(case, f, "udp")
    out = pieces(
        f,
        talk.client,
        talk.server_address,
        with_ports(udp(pattern(1900)), talk.sport, 5353),
        chunks(1908, 576),
        ttl=63,
        ident=7,
    )
    frames = [ether(ROUTER_MAC, talk.server_mac, packet) for packet in out]
    case.forward(talk.c_in(udp(pattern(1900)), id=7), *frames, **talk.names)
    exact = Case(
        "fragments are as large as fits, in units of 8 bytes", ["12.2"], "RFC 791 section 3.2", **narrow(f, 604)
    )
    talk = Talk(exact, f, "udp")
    for size in (577, 584, 1160, 1161):
        l4 = udp(pattern(size - 8))
        out = pieces(
            f, talk.client, talk.server_address, with_ports(l4, talk.sport, 5353), chunks(size, 584), ttl=63, ident=7
        )
        frames = [ether(ROUTER_MAC, talk.server_mac, packet) for packet in out]
        exact.forward(talk.c_in(l4, id=7), *frames, **talk.names)
    back = Case("a reply without DF is cut for the client's link", ["12.2"], interfaces=[{**ETH0, "mtu": 1300}])
    talk = Talk(back, f)
    talk.open()
    l4 = with_ports(tcp("PA", 5001, 1001, pattern(1400)), 9876, talk.sport)
    out = pieces(f, talk.vip, talk.client, l4, chunks(1420, 1280), ttl=63, ident=7, tos=4)
    frames = [ether(ROUTER_MAC, talk.mac, packet) for packet in out]
    back.forward(talk.s_in(tcp("PA", 5001, 1001, pattern(1400)), id=7, tos=4), *frames, **talk.reply_names)
    back.counters(tx_packets=5)
    return [case, exact, back]


def with_options(src: str, dst: str, ttl: int, options: bytes, data: bytes, **fields: Any) -> bytes:
    """Make an IPv4 packet with raw option bytes."""
    length = 20 + len(options) + len(data)
    header = bytearray(
        bytes(IP(src=src, dst=dst, ttl=ttl, ihl=5 + len(options) // 4, len=length, **fields))[:20] + options
    )
    header[10:12] = b"\0\0"
    header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + data


def _options() -> Case:
    f = V4
    alert, record = b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00\x00"
    case = Case(
        "options with the copied flag are in every fragment, others in the first only",
        ["5.8", "12.2"],
        "RFC 791 section 3.1",
        **narrow(f, 600),
    )
    talk = Talk(case, f, "udp")
    l4_in = bytes(f.ip(talk.client, talk.vip) / with_ports(udp(pattern(1500)), talk.sport, 53))[20:]
    l4_out = bytes(f.ip(talk.client, talk.server_address) / with_ports(udp(pattern(1500)), talk.sport, 5353))[20:]
    incoming = with_options(talk.client, talk.vip, 64, record[:7] + alert + b"\x00", l4_in, id=3, proto=17)
    # The first header is 32 bytes long, the others 24: 568 and 576 bytes fit.
    out, at = [], 0
    for size, options in ((568, record[:7] + alert + b"\x00"), (576, alert), (364, alert)):
        flags = "MF" if at + size < len(l4_out) else 0
        packet = with_options(
            talk.client,
            talk.server_address,
            63,
            options,
            l4_out[at : at + size],
            id=3,
            proto=17,
            flags=flags,
            frag=at // 8,
        )
        out.append(ether(ROUTER_MAC, talk.server_mac, packet, 0x0800))
        at += size
    assert at == len(l4_out)
    case.forward(ether(CLIENT_MAC, ROUTER_MAC, incoming, 0x0800), *out, **talk.names)
    return case


def _again() -> Case:
    f = V4
    case = Case(
        "a fragment too big is cut again, MF and offset go on", ["6", "12.2"], "RFC 791 section 3.2", **narrow(f, 600)
    )
    talk = Talk(case, f, "udp")
    l4 = udp(pattern(1600))
    before = pieces(f, talk.client, talk.vip, with_ports(l4, talk.sport, 53), [(0, 800), (800, 808)], ident=5)
    cuts = [[(0, 576), (576, 224)], [(800, 576), (1376, 232)]]
    for packet, parts in zip(before, cuts, strict=True):
        after = pieces(f, talk.client, talk.server_address, with_ports(l4, talk.sport, 5353), parts, ttl=63, ident=5)
        case.forward(
            ether(CLIENT_MAC, ROUTER_MAC, packet),
            *[ether(ROUTER_MAC, talk.server_mac, one) for one in after],
            **talk.names,
        )
    return case


def _no_room() -> Case:
    case = Case("an MTU without room for 8 bytes of data drops the packet", ["12.2"], **narrow(V4, 27))
    talk = Talk(case, V4, "udp")
    case.drop(talk.c_in(udp(pattern(100))), "too_big", **talk.names)
    case.next_hops(**narrow(V4, 28))
    out = pieces(
        V4,
        talk.client,
        talk.server_address,
        with_ports(udp(pattern(12)), talk.sport, 5353),
        chunks(20, 8),
        ttl=63,
        ident=1,
    )
    case.forward(
        talk.c_in(udp(pattern(12)), id=1), *[ether(ROUTER_MAC, talk.server_mac, one) for one in out], **talk.names
    )
    return case


def _later6() -> Case:
    f = V6
    case = Case(
        "an IPv6 fragment too big is answered for the first one only",
        ["6", "12.2", "12.4"],
        "RFC 4443 section 2.4",
        **narrow(f, 1280),
    )
    talk = Talk(case, f, "udp")
    l4 = with_ports(udp(pattern(4000)), talk.sport, 53)
    sizes = [(0, 800), (800, 1400), (2200, 1400)]
    frames = [ether(CLIENT_MAC, ROUTER_MAC, packet) for packet in pieces(f, talk.client, talk.vip, l4, sizes)]
    after = pieces(f, talk.client, talk.server_address, with_ports(l4, talk.sport, 5353), sizes, ttl=63)
    case.forward(frames[0], ether(ROUTER_MAC, talk.server_mac, after[0]), **talk.names)
    case.drop(frames[1], "too_big", **talk.names)
    first = ether(CLIENT_MAC, ROUTER_MAC, pieces(f, talk.client, talk.vip, l4, [(0, 1400)], ident=6)[0])
    case.reply(first, "too_big", icmp_error(f, first, (2, 0), f.router, f.client, 1280), **talk.names)
    rest = ether(CLIENT_MAC, ROUTER_MAC, pieces(f, talk.client, talk.vip, l4, [(1400, 400)], ident=6)[0])
    case.drop(rest, "fragment_refused")
    return case
