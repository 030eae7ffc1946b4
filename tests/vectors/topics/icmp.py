"""ICMP about flows, both ways, and ICMP to a VIP (docs/rules.md rule 10, ICMP about flows)."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP, IPOption
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.packet import Packet
from scapy.utils import checksum as internet_checksum
from scene import (
    BOTH,
    CLIENT_MAC,
    CLIENT_PORT,
    ROUTER_MAC,
    SERVER_MACS,
    V4,
    WEB_PORT,
    Case,
    Family,
    Talk,
    dns_service,
    ether,
    hash_flow,
    hash_source,
    icmp,
    icmp_error,
    pattern,
    tcp,
    udp,
    web_service,
    with_ports,
)

ZERO = bytes(4)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [
            *_translated(f),
            *_hashed(f),
            *_quotes(f),
            *_inner_shapes(f),
            *_between_servers(f),
            *_refused(f),
            *_refused_quotes(f),
            *_echo(f),
            *_not_flows(f),
        ]
    return made


def _errors(f: Family) -> list[tuple[str, int, int, bytes]]:
    """List (words, type, code, rest of header) of the errors that are translated."""
    if f is V4:
        return [
            ("host unreachable", 3, 1, ZERO),
            ("fragmentation needed", 3, 4, b"\0\0\x05\x14"),
            ("port unreachable", 3, 3, ZERO),
            ("time exceeded", 11, 0, ZERO),
            ("parameter problem", 12, 0, b"\x08\0\0\0"),
        ]
    return [
        ("no route", 1, 0, ZERO),
        ("packet too big", 2, 0, b"\0\0\x05\x14"),
        ("port unreachable", 1, 4, ZERO),
        ("time exceeded", 3, 0, ZERO),
        ("parameter problem", 4, 1, b"\0\0\0\x28"),
    ]


def _reply_quote(talk: Talk, l4: Packet, cut: int | None, inside: bool, **ip: Any) -> bytes:
    """Return the packet that an error from the client's side quotes: as the client saw it, or as the server sent it."""
    f = talk.family
    if inside:
        packet = f.ip(talk.server_address, talk.client, 61, **ip) / with_ports(l4, talk.server_port, talk.sport)
    else:
        packet = f.ip(talk.vip, talk.client, 61, **ip) / with_ports(l4, talk.vport, talk.sport)
    return bytes(packet)[: None if cut is None else f.header_len + cut]


def _forward_quote(talk: Talk, l4: Packet, cut: int | None, inside: bool, **ip: Any) -> bytes:
    """Return the packet that an error from the server's side quotes: as the server saw it, or as the client sent it."""
    f = talk.family
    if inside:
        packet = f.ip(talk.client, talk.server_address, 61, **ip) / with_ports(l4, talk.sport, talk.server_port)
    else:
        packet = f.ip(talk.client, talk.vip, 61, **ip) / with_ports(l4, talk.sport, talk.vport)
    return bytes(packet)[: None if cut is None else f.header_len + cut]


def from_client(
    talk: Talk, kind: tuple[int, int, bytes], l4: Packet, cut: int | None, src: str = "", **ip: Any
) -> tuple[bytes, bytes]:
    """Make (in, out) of an error about a reply packet."""
    f, (number, code, word) = talk.family, kind
    src = src or talk.client
    before = icmp(f, src, talk.vip, number, code, word + _reply_quote(talk, l4, cut, False, **ip))
    after = icmp(f, src, talk.server_address, number, code, word + _reply_quote(talk, l4, cut, True, **ip), ttl=63)
    return ether(talk.mac, ROUTER_MAC, before), ether(ROUTER_MAC, talk.server_mac, after)


def from_server(
    talk: Talk, kind: tuple[int, int, bytes], l4: Packet, cut: int | None, src: str = "", **ip: Any
) -> tuple[bytes, bytes]:
    """Make (in, out) of an error about a client's packet. It leaves from the VIP, whatever its source."""
    f, (number, code, word) = talk.family, kind
    before = icmp(
        f, src or talk.server_address, talk.client, number, code, word + _forward_quote(talk, l4, cut, True, **ip)
    )
    after = icmp(f, talk.vip, talk.client, number, code, word + _forward_quote(talk, l4, cut, False, **ip), ttl=63)
    return ether(talk.server_mac, ROUTER_MAC, before), ether(ROUTER_MAC, talk.mac, after)


def _translated(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    hop = "192.0.2.9" if f is V4 else "2001:db8:9::9"
    for words, number, code, word in _errors(f):
        kind = (number, code, word)
        case = Case(
            f"{words} about a flow is translated both ways, quoting 8 bytes or all, {v}",
            ["10"],
            "RFC 5508 REQ-4, REQ-5 (c)",
        )
        talk = Talk(case, f)
        talk.open()
        out, back = tcp("PA", 1001, 5001, pattern(100)), tcp("PA", 5001, 1001, pattern(101))
        for cut in (8, None):
            incoming, outgoing = from_client(talk, kind, back, cut)
            case.forward(incoming, outgoing, **talk.names)
            incoming, outgoing = from_server(talk, kind, out, cut)
            case.forward(incoming, outgoing, **talk.reply_names)
        # A router on the way sends them too. That of one on the client's side stays, that of one behind us is not told.
        incoming, outgoing = from_client(talk, kind, back, 8, src=hop)
        case.forward(incoming, outgoing, **talk.names)
        incoming, outgoing = from_server(talk, kind, out, 8, src=hop)
        case.forward(incoming, outgoing, **talk.reply_names)
        case.flows(talk.flow("established"))
        made.append(case)
    datagram = Case(f"port unreachable about a datagram is translated both ways, {v}", ["10"], "RFC 5508 REQ-4, REQ-5")
    talk = Talk(datagram, f, "udp")
    talk.c(udp(b"question"))
    kind = (3, 3, ZERO) if f is V4 else (1, 4, ZERO)
    for cut in (8, None):
        incoming, outgoing = from_server(talk, kind, udp(b"question"), cut)
        datagram.forward(incoming, outgoing, **talk.reply_names)
        incoming, outgoing = from_client(talk, kind, udp(b"answer"), cut)
        datagram.forward(incoming, outgoing, **talk.names)
    # Neither error is the server's answer.
    datagram.flows(talk.flow("udp-unreplied"))
    made.append(datagram)
    return made


def _hashed(f: Family) -> list[Case]:
    """Errors about flows that have no entry: after a restart, or beyond the table's capacity."""
    v = f"IPv{f.version}"
    too_big = (3, 4, b"\0\0\x05\x14") if f is V4 else (2, 0, b"\0\0\x05\x14")
    hop = "192.0.2.9" if f is V4 else "2001:db8:9::9"
    made = []
    for selector in ("hash-flow", "hash-source"):
        services = [web_service(f, selector, (1, 2, 3)), {**dns_service(f), "plan": _hash_plan(f, selector)}]
        case = Case(
            f"an error about a flow without an entry is translated by the hash, {selector}, {v}",
            ["8.14", "10"],
            "RFC 5508 REQ-4, REQ-5",
            services=services,
        )
        if selector == "hash-flow":
            chosen = hash_flow(1, f.client, f.vip, CLIENT_PORT, WEB_PORT, 6) % 3 + 1
        else:
            chosen = hash_source(1, f.client) % 3 + 1
        talk, datagram = Talk(case, f, number=chosen), Talk(case, f, "udp")
        for cut in (8, None):
            for one, l4 in ((talk, tcp("A", 5001, 1001, pattern(101))), (datagram, udp(b"answer"))):
                incoming, outgoing = from_client(one, too_big, l4, cut, src=hop)
                case.forward(incoming, outgoing, **one.names)
                incoming, outgoing = from_server(one, too_big, l4, cut, src=hop)
                case.forward(incoming, outgoing, **one.reply_names)
        incoming, _ = from_server(Talk(case, f, number=chosen % 3 + 1), too_big, tcp("A", 1001, 5001), None)
        case.drop(incoming, "icmp_no_flow")
        case.flows()
        case.counters(events={"flow_created": 0, "flow_hit": 0, "flow_miss": 0, "flow_stateless": 0})
        made.append(case)
    return [*made, *_hashed_otherwise(f, too_big)]


def _hash_plan(f: Family, selector: str) -> dict[str, Any]:
    return {"selector": selector, "slots": [f.dns_server]}


def _hashed_otherwise(f: Family, too_big: tuple[int, int, bytes]) -> list[Case]:
    """The hash is not asked where the table says something else."""
    v = f"IPv{f.version}"
    moved = Case(
        f"an error about a flow whose entry names another server is not translated by the hash, {v}",
        ["10"],
        services=[web_service(f, "hash-flow", (2,))],
    )
    old = Talk(moved, f, number=2)
    old.open()
    moved.publish(services=[web_service(f, "hash-flow", (1,))])
    incoming, outgoing = from_client(old, too_big, tcp("A", 5001, 1001), None)
    moved.forward(incoming, outgoing, **old.names)
    incoming, _ = from_server(Talk(moved, f), too_big, tcp("A", 1001, 5001), None)
    moved.drop(incoming, "icmp_no_flow")

    second = {**web_service(f, "hash-flow", (1,)), "name": "alt", "port": 443}
    second["servers"] = [{**second["servers"][0], "name": "alt1"}]
    second["plan"] = {"selector": "hash-flow", "slots": ["alt1"]}
    shared = Case(
        f"an error about a service that shares its server is not mixed up with another's flow, {v}",
        ["10", "8.15"],
        services=[web_service(f, "hash-flow", (1,)), second],
    )
    Talk(shared, f).open()
    alt = Talk(shared, f, service="alt", server="alt1", vport=443)
    shared.drop(from_client(alt, too_big, tcp("A", 5001, 1001), None)[0], "icmp_no_flow")
    itself = Case(
        f"no hash names a server as its own client, {v}", ["10"], services=[web_service(f, "hash-flow", (1,))]
    )
    talk = Talk(itself, f, client=f.servers[0], mac=SERVER_MACS[0])
    itself.drop(from_client(talk, too_big, tcp("A", 5001, 1001), None)[0], "icmp_no_flow")
    return [moved, shared, itself]


def _quotes(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    kind = (3, 1, ZERO) if f is V4 else (1, 0, ZERO)
    sums = Case(f"the inner TCP checksum is updated when 18 bytes or more of the header are there, {v}", ["8.20", "10"])
    talk = Talk(sums, f)
    talk.open()
    for cut in (8, 12, 16, 18, 19, 20, 60):
        incoming, outgoing = from_server(talk, kind, tcp("PA", 1001, 5001, pattern(80)), cut)
        sums.forward(incoming, outgoing, **talk.reply_names)
    refresh = Case(
        f"ICMP errors neither refresh a flow nor remove it, {v}", ["8.12", "10"], "RFC 5382 REQ-10, RFC 5508 REQ-6"
    )
    talk = Talk(refresh, f)
    talk.c(tcp("S", 1000))
    refresh.at(29_000)
    incoming, outgoing = from_server(talk, kind, tcp("S", 1000), None)
    refresh.forward(incoming, outgoing, **talk.reply_names)
    refresh.flows(talk.flow("syn-sent", idle_s=29.0))
    refresh.at(30_000)
    refresh.drop(incoming, "icmp_no_flow")
    made = [sums, refresh]
    if f is V4:
        zero = Case("an inner UDP checksum of 0 stays 0", ["8.20", "10"])
        talk = Talk(zero, f, "udp")
        talk.c(udp(b"x", chksum=0))
        incoming, outgoing = from_server(talk, (3, 3, ZERO), udp(b"x", chksum=0), None)
        zero.forward(incoming, outgoing, **talk.reply_names)
        made.append(zero)
    fields = {"tos": 0xC0, "id": 77} if f is V4 else {"tc": 0xC0, "fl": 0x12345}
    marks = Case(f"the inner packet keeps its hop count and marks, {v}", ["10", "8.20"])
    talk = Talk(marks, f)
    talk.open()
    incoming, outgoing = from_client(talk, kind, tcp("A", 5001, 1001, pattern(40)), None, **fields)
    marks.forward(incoming, outgoing, **talk.names)
    made.append(marks)
    return made


def _inner_shapes(f: Family) -> list[Case]:
    """What may stand before, in and behind the L4 header of an inner packet."""
    v = f"IPv{f.version}"
    kind = (3, 1, ZERO) if f is V4 else (1, 0, ZERO)
    segment = tcp("PA", 1001, 5001, pattern(40))

    options = Case(f"the ports of an inner packet are read behind its options, {v}", ["10", "5.8"], "RFC 5508 REQ-3 b)")
    talk = Talk(options, f)
    talk.open()
    for cut in (8, None):
        incoming, outgoing = (_optioned(talk, kind, segment, inside, cut) for inside in (True, False))
        options.forward(incoming, outgoing, **talk.reply_names)

    wrong = Case(
        f"a wrong checksum of an inner segment is not judged, and stays wrong by the same amount, {v}",
        ["10", "8.20"],
        "RFC 5508 REQ-3 c)",
    )
    talk = Talk(wrong, f)
    talk.open()
    before, after = (_spoiled(f, _forward_quote(talk, segment, None, inside)) for inside in (True, False))
    wrong.forward(*_carrying(talk, kind, before, after), **talk.reply_names)

    # RFC 4884: the inner packet is filled up to 128 bytes, the rest of the header says so, and objects follow.
    extended = Case(
        f"extensions behind an inner packet stay as they are and count in no checksum of it, {v}",
        ["10", "8.20"],
        "RFC 5508 REQ-3 d), RFC 4884 section 4",
    )
    talk = Talk(extended, f)
    talk.open()
    kind = (11, 0, b"\0\x20\0\0") if f is V4 else (3, 0, b"\x10\0\0\0")
    label = b"\x00\x08\x01\x01" + b"\x01\x23\x41\x40"
    objects = b"\x20\0" + internet_checksum(b"\x20\0\0\0" + label).to_bytes(2, "big") + label
    before, after = (
        _forward_quote(talk, segment, None, inside).ljust(128, b"\0") + objects for inside in (True, False)
    )
    extended.forward(*_carrying(talk, kind, before, after), **talk.reply_names)
    return [options, wrong, extended]


def _carrying(talk: Talk, kind: tuple[int, int, bytes], before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """Make (in, out) of an error of the server with these inner packets."""
    f, (number, code, word) = talk.family, kind
    incoming = icmp(f, talk.server_address, talk.client, number, code, word + before)
    outgoing = icmp(f, talk.vip, talk.client, number, code, word + after, ttl=63)
    return ether(talk.server_mac, ROUTER_MAC, incoming), ether(ROUTER_MAC, talk.mac, outgoing)


def _spoiled(f: Family, packet: bytes) -> bytes:
    """Add 0x0101 to the TCP checksum of a packet without options."""
    where = f.header_len + 16
    value = int.from_bytes(packet[where : where + 2], "big") + 0x0101
    value = (value & 0xFFFF) + (value >> 16)
    return packet[:where] + value.to_bytes(2, "big") + packet[where + 2 :]


def _optioned(talk: Talk, kind: tuple[int, int, bytes], l4: Packet, inside: bool, cut: int | None) -> bytes:
    """
    Make an error of the server about a packet with 8 bytes of options: as it comes in, about what the server saw, or
    as it leaves, about what the client sent.
    """
    f, (number, code, word) = talk.family, kind
    ends = (talk.client, talk.server_address if inside else talk.vip, 61)
    header = (
        f.ip(*ends, options=[IPOption(b"\x44\x08\x05\0\0\0\0\0")]) if f is V4 else f.ip(*ends) / IPv6ExtHdrDestOpt()
    )
    quoted = bytes(header / with_ports(l4, talk.sport, talk.server_port if inside else talk.vport))
    quoted = quoted[: None if cut is None else f.header_len + 8 + cut]
    if inside:
        return ether(
            talk.server_mac, ROUTER_MAC, icmp(f, talk.server_address, talk.client, number, code, word + quoted)
        )
    return ether(ROUTER_MAC, talk.mac, icmp(f, talk.vip, talk.client, number, code, word + quoted, ttl=63))


def _between_servers(f: Family) -> list[Case]:
    """The client of a flow is a server itself: errors about it come and go as those of any other."""
    v = f"IPv{f.version}"
    case = Case(
        f"errors about a flow of one server to another are translated both ways, {v}", ["10", "8.16"], "RFC 5508 REQ-7"
    )
    talk = Talk(case, f, client=f.servers[1], mac=SERVER_MACS[1])
    talk.open()
    kind = (3, 3, ZERO) if f is V4 else (1, 4, ZERO)
    for cut in (8, None):
        incoming, outgoing = from_client(talk, kind, tcp("PA", 5001, 1001, pattern(30)), cut)
        case.forward(incoming, outgoing, **talk.names)
        incoming, outgoing = from_server(talk, kind, tcp("PA", 1001, 5001, pattern(31)), cut)
        case.forward(incoming, outgoing, **talk.reply_names)
    case.flows(talk.flow("established"))
    return [case]


class _Errors:
    """
    The cases of errors that are refused: each with an open flow, and errors about it from a client's side to the VIP
    and from a server's to the client.
    """

    def __init__(self, f: Family) -> None:
        self.f = f
        self.kind = (3, 1) if f is V4 else (1, 0)
        self.made: list[Case] = []
        talk = Talk(Case("", []), f)
        self.ours = _reply_quote(talk, tcp("A", 5001, 1001), None, False)
        self.theirs = _forward_quote(talk, tcp("A", 1001, 5001), None, True)

    def start(self, name: str, origin: str = "RFC 5508") -> tuple[Case, Talk]:
        case = Case(f"{name}, IPv{self.f.version}", ["10"], origin)
        talk = Talk(case, self.f)
        talk.open()
        self.made.append(case)
        return case, talk

    def to_vip(self, talk: Talk, body: bytes, number: int | None = None, **fields: Any) -> bytes:
        number = self.kind[0] if number is None else number
        error = icmp(self.f, talk.client, talk.vip, number, self.kind[1], ZERO + body, **fields)
        return ether(talk.mac, ROUTER_MAC, error)

    def to_client(self, talk: Talk, body: bytes, number: int | None = None, **fields: Any) -> bytes:
        number = self.kind[0] if number is None else number
        error = icmp(self.f, talk.server_address, talk.client, number, self.kind[1], ZERO + body, **fields)
        return ether(talk.server_mac, ROUTER_MAC, error)


def _refused(f: Family) -> list[Case]:
    errors = _Errors(f)
    redirect = 5 if f is V4 else 137
    case, talk = errors.start("an ICMP error with a wrong checksum is dropped", "RFC 5508 REQ-3")
    case.drop(errors.to_vip(talk, errors.ours, checksum=0xBAD), "icmp_checksum")
    case.drop(errors.to_client(talk, errors.theirs, checksum=0xBAD), "icmp_checksum")

    case, talk = errors.start("redirects are dropped", "rule 10, ICMP about flows")
    case.drop(errors.to_vip(talk, errors.ours, redirect), "icmp_redirect")
    case.drop(errors.to_client(talk, errors.theirs, redirect), "icmp_redirect")

    case, talk = errors.start("errors about errors are dropped", "RFC 1122 section 3.2.2")
    about = bytes(icmp(f, f.vip, f.client, errors.kind[0], errors.kind[1], ZERO + errors.theirs))
    case.drop(errors.to_vip(talk, about), "icmp_about_icmp")
    about = bytes(icmp(f, f.vip, f.client, redirect, 0, ZERO + errors.theirs))
    case.drop(errors.to_vip(talk, about), "icmp_about_icmp")
    about = bytes(icmp(f, f.vip, f.client, 8 if f is V4 else 128, 0, ZERO + errors.theirs))
    case.drop(errors.to_vip(talk, about), "icmp_no_flow")

    case, talk = errors.start("errors about unknown flows are dropped")
    stranger = Talk(case, f, sport=talk.sport + 1)
    case.drop(errors.to_vip(talk, _reply_quote(stranger, tcp("A", 1, 1), None, False)), "icmp_no_flow")
    case.drop(errors.to_client(talk, _forward_quote(stranger, tcp("A", 1, 1), None, True)), "icmp_no_flow")
    other = Talk(case, f, vport=81)
    case.drop(errors.to_vip(talk, _reply_quote(other, tcp("A", 1, 1), None, False)), "icmp_no_flow")
    return errors.made


def _refused_quotes(f: Family) -> list[Case]:
    errors = _Errors(f)
    case, talk = errors.start("an error whose quote is cut too short or broken is dropped")
    for length in (0, 8, f.header_len - 1, f.header_len, f.header_len + 7):
        case.drop(errors.to_vip(talk, errors.ours[:length]), "icmp_inner")
    version = bytes([0x15]) + errors.ours[1:]
    case.drop(errors.to_vip(talk, version), "icmp_inner")
    if f is V4:
        spoiled = bytearray(errors.ours)
        spoiled[10] ^= 1
        case.drop(errors.to_vip(talk, bytes(spoiled)), "icmp_inner")
        spoiled = bytearray(errors.theirs)
        spoiled[10] ^= 1
        case.drop(errors.to_client(talk, bytes(spoiled)), "icmp_inner")
        short = bytearray(errors.ours)
        short[0] = 0x44
        case.drop(errors.to_vip(talk, bytes(short)), "icmp_inner")
        later = bytes(IP(src=f.vip, dst=f.client, proto=6, frag=10) / (b"x" * 20))
        case.drop(errors.to_vip(talk, later), "icmp_inner")

    case, talk = errors.start(
        "a quote of another IP version about a server is dropped, not routed on", "found by tests/differential.py"
    )
    case.setup["transit"] = "forward"
    case.drop(errors.to_client(talk, bytes([0x65 if f is V4 else 0x40]) + errors.theirs[1:]), "icmp_inner")

    case, talk = errors.start("an error to a VIP about a packet of another address is dropped", "RFC 5508 section 4.2")
    foreign = bytes(f.ip(f.router, f.client) / with_ports(tcp("A", 1, 1), 9876, 40000))
    case.drop(errors.to_vip(talk, foreign), "icmp_inner")
    case, talk = errors.start("an error to a client about another client's packet is dropped", "RFC 5508 section 4.2")
    stolen = bytes(f.ip(f.client2, f.servers[0]) / with_ports(tcp("A", 1, 1), 40000, 8031))
    case.drop(errors.to_client(talk, stolen), "icmp_inner")

    case, talk = errors.start("an error on its last hop is dropped unanswered", "rule 12.4, packets that we send")
    case.rules.append("12.4")
    case.drop(errors.to_vip(talk, errors.ours, ttl=1), "ttl_exceeded", **talk.names)
    case.drop(errors.to_client(talk, errors.theirs, ttl=1), "ttl_exceeded", **talk.reply_names)

    case, talk = errors.start("an error about another protocol is dropped")
    other_protocol = bytes(f.ip(f.vip, f.client, **{"proto" if f is V4 else "nh": 132}) / bytes(20))
    case.drop(errors.to_vip(talk, other_protocol), "icmp_no_flow")
    return errors.made


def _echo(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    ask, answer = (8, 0) if f is V4 else (128, 129)
    body = b"\x12\x34\x00\x01" + pattern(56)
    request = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.vip, ask, 0, body))
    silent = Case(f"an echo request to a VIP is not answered, {v}", ["7.A"])
    silent.drop(request, "vip_echo")
    fields = {"id": 0, "flags": "DF"} if f is V4 else {}
    told = ether(ROUTER_MAC, CLIENT_MAC, icmp(f, f.vip, f.client, answer, 0, body, **fields))
    loud = Case(
        f"an echo request to a VIP is answered when configured, rate-limited, {v}",
        ["7.A", "12.4"],
        answer_echo=True,
        icmp_rate=2,
    )
    loud.reply(request, "echo", told)
    loud.reply(request + b"\x99" * 4, "echo", told)
    loud.drop(request, "rate_limited")
    loud.at(500)
    loud.reply(request, "echo", told)
    loud.drop(request, "rate_limited")
    broken = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.vip, ask, 0, body, checksum=0x1234))
    loud.at(5000)
    loud.drop(broken, "icmp_checksum")
    marked = ether(
        CLIENT_MAC,
        ROUTER_MAC,
        icmp(f, f.client, f.vip, ask, 0, body, **({"tos": 0xB8, "id": 99} if f is V4 else {"tc": 0xB8, "fl": 7})),
    )
    loud.reply(marked, "echo", told)
    direct = Case(f"an echo request to a server's address is dropped, {v}", ["8.15"], transit="forward")
    direct.drop(ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.servers[0], ask, 0, body)), "server_echo")
    return [silent, loud, direct]


def _not_flows(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"other ICMP messages to a VIP are dropped, {v}", ["10", "7.A"])
    for number in (0, 4, 13, 17) if f is V4 else (129, 133, 136, 143):
        case.drop(ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.vip, number, 0, bytes(20))), "icmp_type")
    short = Case(f"an ICMP message cut short is dropped, {v}", ["10"])
    field = "proto" if f is V4 else "nh"
    for length in (0, 7):
        packet = (
            f.ip(f.client, f.vip, **{field: 1 if f is V4 else 58})
            / bytes(icmp(f, f.client, f.vip, 8, 0, bytes(4)))[f.header_len :][:length]
        )
        short.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "l4_truncated")
    kind = (3, 1) if f is V4 else (1, 0)
    through = Case(f"ICMP between others is transit, {v}", ["10"], transit="forward")
    about = bytes(f.ip(f.client2, f.outside) / with_ports(udp(b"x"), 1, 2))
    for number, code, body in (
        (8 if f is V4 else 128, 0, bytes(20)),
        (*kind, ZERO + about),
        (*kind, ZERO + b"\x99" * 30),
    ):
        through.forward(
            ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.client2, number, code, body)),
            ether(ROUTER_MAC, "aa:aa:aa:00:00:22", icmp(f, f.client, f.client2, number, code, body, ttl=63)),
        )
    through.drop(
        ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.client2, 5 if f is V4 else 137, 0, ZERO + about)),
        "icmp_redirect",
    )
    dying = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.client2, *kind, ZERO + about, ttl=1))
    through.drop(dying, "ttl_exceeded")
    ping = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.client2, 8 if f is V4 else 128, 0, bytes(20), ttl=1))
    exceeded = (11, 0) if f is V4 else (3, 0)
    through.reply(ping, "ttl_exceeded", icmp_error(f, ping, exceeded, f.router, f.client))
    partial = Case(f"ICMP with offload work left is refused, {v}", ["8.20", "10"])
    request = ether(CLIENT_MAC, ROUTER_MAC, icmp(f, f.client, f.vip, 8 if f is V4 else 128, 0, bytes(20)))
    partial.drop(request, "bad_offload", offload=[1, 0, 0, 0, 14 + f.header_len, 2])
    return [case, short, through, partial]
