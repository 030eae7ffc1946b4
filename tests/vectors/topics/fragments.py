"""IP fragments of flows: in order, reordered, hostile (docs/rules.md rule 6, fragments)."""

from __future__ import annotations

from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.packet import Packet, Raw
from scene import (
    BOTH,
    CLIENT_MAC,
    ROUTER_MAC,
    V4,
    Case,
    Family,
    Talk,
    ether,
    icmp,
    neighbours,
    pattern,
    pieces,
    tcp,
    udp,
    with_ports,
)

CUTS = [(0, 400), (400, 400), (800, 208)]  # of 1008 bytes of UDP


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_orders(f), *_duplicates(f), *_overlaps(f), *_malformed(f), *_limits(f), *_shares(f), *_others(f)]
    return made


def _client(
    talk: Talk, l4: Packet, cuts: list[tuple[int, int]], ttl: int = 64, ident: int = 0x1234
) -> list[tuple[bytes, bytes]]:
    """Make (in, out) frames of a fragmented packet from the client."""
    f = talk.family
    before = pieces(f, talk.client, talk.vip, with_ports(l4, talk.sport, talk.vport), cuts, ttl, ident)
    after = pieces(
        f, talk.client, talk.server_address, with_ports(l4, talk.sport, talk.server_port), cuts, ttl - 1, ident
    )
    return [
        (ether(talk.mac, ROUTER_MAC, one), ether(ROUTER_MAC, talk.server_mac, two))
        for one, two in zip(before, after, strict=True)
    ]


def _server(talk: Talk, l4: Packet, cuts: list[tuple[int, int]], ident: int = 0x1234) -> list[tuple[bytes, bytes]]:
    """Make (in, out) frames of a fragmented packet from the server."""
    f = talk.family
    before = pieces(f, talk.server_address, talk.client, with_ports(l4, talk.server_port, talk.sport), cuts, 64, ident)
    after = pieces(f, talk.vip, talk.client, with_ports(l4, talk.vport, talk.sport), cuts, 63, ident)
    return [
        (ether(talk.server_mac, ROUTER_MAC, one), ether(ROUTER_MAC, talk.mac, two))
        for one, two in zip(before, after, strict=True)
    ]


def _held(case: Case, frame: bytes) -> None:
    case.send(frame, "hold", "fragment")


def _orders(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"fragments follow the first one, both ways, {v}", ["6"])
    talk = Talk(case, f, "udp")
    for incoming, outgoing in _client(talk, udp(pattern(1000)), CUTS):
        case.forward(incoming, outgoing, **talk.names)
    for incoming, outgoing in _server(talk, udp(pattern(1000)[::-1]), CUTS, ident=9):
        case.forward(incoming, outgoing, **talk.reply_names)
    case.counters(
        services={f.dns: {"packets_forward": 3, "packets_reply": 3}}, events={"flow_created": 1, "flow_hit": 1}
    )

    late = Case(
        f"later fragments that arrive first are held and leave after the first, in order of arrival, {v}", ["6"]
    )
    talk = Talk(late, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    _held(late, frames[2][0])
    _held(late, frames[1][0])
    late.forward(frames[0][0], frames[0][1], frames[2][1], frames[1][1], **talk.names)
    late.counters(verdicts={"forward": 3, "hold.fragment": 2}, tx_packets=3)
    # The datagram is complete and forgotten: the same id may be used again.
    for incoming, outgoing in frames:
        late.forward(incoming, outgoing, **talk.names)

    mixed = Case(f"a later fragment before and one after the first, {v}", ["6"])
    talk = Talk(mixed, f, "udp")
    frames = _server(talk, udp(pattern(1000)), CUTS)
    talk.c(udp(b"question"))
    _held(mixed, frames[1][0])
    mixed.forward(frames[0][0], frames[0][1], frames[1][1], **talk.reply_names)
    mixed.forward(frames[2][0], frames[2][1], **talk.reply_names)

    stream = Case(f"a TCP segment in fragments, {v}", ["6"])
    talk = Talk(stream, f)
    talk.open()
    cuts = [(0, 32), (32, 600), (632, 388)]
    for incoming, outgoing in _client(talk, tcp("PA", 1001, 5001, pattern(1000)), cuts):
        stream.forward(incoming, outgoing, **talk.names)
    both = Case(f"datagrams with different identifications do not mix, {v}", ["6"])
    talk = Talk(both, f, "udp")
    one, two = _client(talk, udp(pattern(1000)), CUTS, ident=1), _client(talk, udp(pattern(1000)[::-1]), CUTS, ident=2)
    _held(both, two[1][0])
    for incoming, outgoing in one:
        both.forward(incoming, outgoing, **talk.names)
    both.forward(two[0][0], two[0][1], two[1][1], **talk.names)
    both.forward(two[2][0], two[2][1], **talk.names)
    return [case, late, mixed, stream, both]


def _overlaps(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    overlap = Case(f"overlapping fragments are dropped, and all that belongs to them, {v}", ["6"], "RFC 5722")
    talk = Talk(overlap, f, "udp")
    frames = _client(talk, udp(pattern(1000)), [(0, 400), (400, 400), (392, 400), (800, 208)])
    _held(overlap, frames[1][0])
    overlap.drop(frames[2][0], "fragment_overlap")
    overlap.counters(verdicts={"drop.fragment_overlap": 2, "hold.fragment": 1})
    overlap.drop(frames[0][0], "fragment_refused")
    overlap.drop(frames[3][0], "fragment_refused")
    overlap.flows()

    twice = Case(
        f"a fragment with the range of another one and another MF counts as overlap, {v}", ["6"], "RFC 8200 section 4.5"
    )
    talk = Talk(twice, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    [(ended, _)] = _client(talk, udp(pattern(792)), [(400, 400)])
    _held(twice, frames[1][0])
    twice.drop(ended, "fragment_overlap")
    twice.drop(frames[0][0], "fragment_refused")

    ends = Case(f"data beyond the known end counts as overlap, {v}", ["6"], "RFC 5722")
    talk = Talk(ends, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    longer = _client(talk, udp(pattern(2000)), [(1208, 400)])
    _held(ends, frames[2][0])
    ends.drop(longer[0][0], "fragment_overlap")

    two_ends = Case(f"a second, different end counts as overlap, {v}", ["6"], "RFC 5722")
    talk = Talk(two_ends, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    shorter = _client(talk, udp(pattern(720)), [(400, 328)])
    _held(two_ends, frames[2][0])
    two_ends.drop(shorter[0][0], "fragment_overlap")

    return [overlap, twice, ends, two_ends]


def _duplicates(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for order in ((0, 0, 1, 2), (0, 1, 1, 2), (1, 1, 0, 2), (2, 2, 1, 0)):
        case = Case(
            f"an exact copy of a fragment is dropped alone, order {'-'.join(map(str, order))}, {v}",
            ["6"],
            "RFC 791, RFC 8200 section 4.5",
        )
        talk = Talk(case, f, "udp")
        frames = _client(talk, udp(pattern(1000)), CUTS)
        seen: list[int] = []
        for index in order:
            if index in seen:
                case.drop(frames[index][0], "fragment_duplicate")
                continue
            seen.append(index)
            if 0 not in seen:
                _held(case, frames[index][0])
            elif index == 0:
                waited = [frames[number][1] for number in seen[:-1]]
                case.forward(frames[0][0], frames[0][1], *waited, **talk.names)
            else:
                case.forward(frames[index][0], frames[index][1], **talk.names)
        case.counters(verdicts={"forward": 3, "drop.fragment_duplicate": 1}, tx_packets=3)
        made.append(case)
    return made


def _malformed(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    tiny = Case(f"a first fragment that cuts the TCP or UDP header is dropped, {v}", ["6"], "RFC 1858")
    talk = Talk(tiny, f)
    segment = tcp(
        "S",
        1000,
        data=pattern(100),
        options=[("MSS", 1460), ("NOP", None), ("NOP", None), ("Timestamp", (1, 2)), ("EOL", None)],
    )
    header = len(bytes(with_ports(segment, 1, 2))) - 100
    assert header > 24
    for ident, length in ((1, 8), (2, 16), (3, 24)):
        tiny.drop(_client(talk, segment, [(0, length)], ident=ident)[0][0], "fragment_tiny")
    tiny.drop(_client(talk, segment, [(8, 32)], ident=4)[0][0], "fragment_tiny")
    bad = tcp("S", 1000, data=pattern(100), dataofs=4)
    tiny.drop(_client(talk, bad, [(0, 40)], ident=5)[0][0], "tcp_data_offset")

    length = Case(f"fragments of impossible length are dropped, {v}", ["6"], "RFC 791, RFC 8200 section 4.5")
    talk = Talk(length, f, "udp")
    length.drop(_client(talk, udp(pattern(1000)), [(400, 300)], ident=1)[0][0], "fragment_length")
    length.drop(_client(talk, udp(pattern(1000)), [(0, 399)], ident=2)[0][0], "fragment_length")
    length.drop(_client(talk, udp(pattern(1000)), [(400, 0)], ident=3)[0][0], "fragment_length")
    # 65528 + 16 is more than any packet holds.
    length.drop(_at_offset(f, talk, 65528, 16), "fragment_length")

    refused = Case(f"fragments of a refused first fragment are refused, held ones too, {v}", ["6"])
    talk = Talk(refused, f, "udp", vport=5353)
    frames = _client(talk, udp(pattern(1000)), CUTS)
    _held(refused, frames[2][0])
    refused.drop(frames[0][0], "no_service")
    refused.counters(verdicts={"drop.fragment_refused": 1, "drop.no_service": 1})
    refused.drop(frames[1][0], "fragment_refused")
    return [tiny, length, refused]


def _at_offset(f: Family, talk: Talk, offset: int, size: int) -> bytes:
    """Make a last fragment at an offset that no real datagram reaches."""
    [packet] = pieces(
        f, talk.client, talk.vip, with_ports(udp(pattern(100)), talk.sport, talk.vport), [(16, size)], ident=0x77
    )
    if f is V4:
        packet.frag = offset // 8
        packet.flags = 0
    else:
        packet.payload.offset = offset // 8
        packet.payload.m = 0
    return ether(talk.mac, ROUTER_MAC, packet)


def _limits(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"held fragments are given up after 30 s, {v}", ["6"], "rule 6, fragments")
    talk = Talk(case, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    _held(case, frames[1][0])
    case.at(29_999)
    _held(case, frames[2][0])
    case.counters(verdicts={"hold.fragment": 2})
    case.at(30_000)
    case.tick()
    case.counters(verdicts={"hold.fragment": 2, "drop.fragment_timeout": 2})
    case.forward(frames[0][0], frames[0][1], **talk.names)

    many = Case(
        f"of datagrams that are too old together, some go at a time, and one that comes again, {v}", ["6", "22.1"]
    )
    talk = Talk(many, f, "udp")
    frames = [_client(talk, udp(pattern(1000)), CUTS, ident=number) for number in range(76)]
    for _, second, _ in frames[:75]:
        _held(many, second[0])
    many.at(30_000)
    # A frame removes four, and the one whose identification comes again makes five.
    _held(many, frames[70][2][0])
    many.counters(verdicts={"hold.fragment": 76, "drop.fragment_timeout": 5})
    many.tick()
    many.counters(verdicts={"drop.fragment_timeout": 69})
    many.tick()
    many.counters(verdicts={"drop.fragment_timeout": 75})
    many.forward(frames[70][0][0], frames[70][0][1], frames[70][2][1], **talk.names)

    pieces_limit = Case(f"more than 256 pieces of a datagram are dropped, {v}", ["6"])
    talk = Talk(pieces_limit, f, "udp")
    cuts = [(8 * (i + 1), 8) for i in range(257)]
    frames = _client(talk, udp(pattern(3000)), cuts)
    for incoming, _ in frames[:256]:
        _held(pieces_limit, incoming)
    pieces_limit.drop(frames[256][0], "fragment_limit")
    pieces_limit.drop(frames[7][0], "fragment_duplicate")
    pieces_limit.counters(verdicts={"hold.fragment": 256, "drop.fragment_limit": 1, "drop.fragment_duplicate": 1})

    ttl = Case(f"a later fragment on its last hop is dropped, never answered, {v}", ["11.1", "6", "12.4"])
    talk = Talk(ttl, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    ttl.forward(frames[0][0], frames[0][1], **talk.names)
    dying = _client(talk, udp(pattern(1000)), CUTS, ttl=1)
    ttl.drop(dying[1][0], "ttl_exceeded", **talk.names)
    ttl.forward(frames[2][0], frames[2][1], **talk.names)
    origin = "found by tests/differential.py"
    after = Case(
        f"fragments whose flow is gone are routed to the client, not to another flow's last hop, {v}",
        ["6", "11"],
        origin,
    )
    talk = Talk(after, f)
    talk.c(tcp("S", 1000))
    frames = _server(talk, tcp("A", 5000, 1001, pattern(1000)), [(0, 400), (400, 620)])
    after.forward(frames[0][0], frames[0][1], **talk.reply_names)
    talk.c(tcp("R", 1001))
    # The same client port again, through another hop, to the next server.
    anew = Talk(after, f, number=2, mac="aa:aa:aa:00:00:fe")
    anew.c(tcp("S", 90000))
    after.forward(frames[1][0], frames[1][1], **talk.reply_names)
    return [case, many, pieces_limit, ttl, after]


def _shares(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    refused = Case(f"refused datagrams take no room of others, {v}", ["6"], "rule 6, fragments")
    talk = Talk(refused, f, "udp")
    other = Talk(refused, f, "udp", vport=5353, client=f.client2)
    frames = _client(talk, udp(pattern(1000)), CUTS, ident=1)
    _held(refused, frames[1][0])
    for ident in range(150):
        refused.drop(_client(other, udp(pattern(40)), [(0, 40)], ident=ident)[0][0], "no_service")
    refused.drop(_client(other, udp(pattern(40)), [(40, 8)], ident=0)[0][0], "fragment_refused")
    refused.forward(frames[0][0], frames[0][1], frames[1][1], **talk.names)
    refused.counters(verdicts={"forward": 2, "drop.no_service": 150, "drop.fragment_refused": 1})
    # After 30 s nothing is remembered: a later fragment waits like any other.
    refused.at(30_000)
    _held(refused, _client(other, udp(pattern(40)), [(40, 8)], ident=0)[0][0])

    source = Case(f"a source with an eighth of all datagrams loses its own oldest, {v}", ["6"], "rule 6, fragments")
    talk = Talk(source, f, "udp")
    other = Talk(source, f, "udp", client=f.client2)
    kept, lost = _client(talk, udp(pattern(1000)), CUTS, ident=1), _client(other, udp(pattern(1000)), CUTS, ident=0)
    _held(source, kept[1][0])
    _held(source, lost[1][0])
    for ident in range(1, 129):
        _held(source, _client(other, udp(pattern(40)), [(8, 8)], ident=ident)[0][0])
    source.counters(verdicts={"drop.fragment_evicted": 1})
    source.forward(lost[0][0], lost[0][1], **other.names)
    source.counters(verdicts={"drop.fragment_evicted": 2})
    source.forward(kept[0][0], kept[0][1], kept[1][1], **talk.names)
    return [refused, source]


def _others(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    message = Case(f"ICMP in fragments is dropped, {v}", ["6", "10"])
    whole = icmp(f, f.client, f.vip, 8 if f is V4 else 128, 0, pattern(100))
    raw = bytes(whole)[f.header_len :]
    for packet in _cut_raw(f, f.client, f.vip, raw, 1 if f is V4 else 58):
        message.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "icmp_fragment")
    other = Case(f"fragments of other protocols end at the VIP, {v}", ["6", "7.A"])
    for packet in _cut_raw(f, f.client, f.vip, raw, 132):
        other.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "l4_protocol")
    waiting = Case(
        f"fragments wait together for a neighbour, {v}",
        ["6", "11"],
        neighbours=[n for n in neighbours() if n[1] != f.servers[0]],
    )
    talk = Talk(waiting, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    _held(waiting, frames[1][0])
    waiting.send(frames[0][0], "hold", "neighbour", **talk.names)
    waiting.send(frames[2][0], "hold", "neighbour", **talk.names)
    waiting.counters(verdicts={"hold.fragment": 1, "hold.neighbour": 3})
    waiting.next_hops(neighbours=neighbours())
    waiting.tick(frames[0][1], frames[1][1], frames[2][1])
    waiting.counters(verdicts={"forward": 3})
    offload = Case(f"fragments with offload work left are refused, {v}", ["8.20", "6"])
    talk = Talk(offload, f, "udp")
    frames = _client(talk, udp(pattern(1000)), CUTS)
    start = 34 if f is V4 else 62
    offload.drop(frames[0][0], "bad_offload", offload=[1, 0, 0, 0, start, 6])
    offload.drop(frames[1][0], "bad_offload", offload=[0, 5, 62, 500, 0, 0])
    transit = Case(f"fragments of no service are transit, in any order, {v}", ["6"], transit="forward")
    for incoming, outgoing in zip(
        pieces(f, f.client, f.client2, with_ports(udp(pattern(1000)), 5, 6), CUTS[::-1]),
        pieces(f, f.client, f.client2, with_ports(udp(pattern(1000)), 5, 6), CUTS[::-1], ttl=63),
        strict=True,
    ):
        transit.forward(ether(CLIENT_MAC, ROUTER_MAC, incoming), ether(ROUTER_MAC, "aa:aa:aa:00:00:22", outgoing))
    return [message, other, waiting, offload, transit]


def _cut_raw(f: Family, src: str, dst: str, raw: bytes, protocol: int) -> list[Packet]:
    made = []
    for offset, part in ((0, raw[:48]), (48, raw[48:])):
        more = offset == 0
        if f is V4:
            made.append(V4.ip(src, dst, id=5, proto=protocol, flags="MF" if more else 0, frag=offset // 8) / Raw(part))
        else:
            made.append(
                f.ip(src, dst, nh=44)
                / IPv6ExtHdrFragment(nh=protocol, offset=offset // 8, m=int(more), id=5)
                / Raw(part)
            )
    return made
