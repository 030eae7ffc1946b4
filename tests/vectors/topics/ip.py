"""IP headers of both versions: validity, options, extension headers, addresses (docs/rules.md rule 5, IP headers)."""

from __future__ import annotations

import struct

from scapy.layers.inet import IP, TCP
from scapy.packet import Raw
from scapy.utils import checksum as internet_checksum
from scene import (
    CLIENT_MAC,
    CLIENT_PORT,
    ETH0,
    FAR4,
    FAR6,
    GATEWAY_MAC,
    ROUTER_MAC,
    SERVER_MACS,
    V4,
    V6,
    WEB_PORT,
    Case,
    Family,
    Talk,
    ether,
    icmp_error,
    pattern,
    tcp,
    two_interfaces,
    udp,
)


def ipv4() -> list[Case]:
    """Make the cases of ipv4.json."""
    return [*_headers4(), *_options(), *_last_hop(V4), *_common(V4), *_martians4()]


def ipv6() -> list[Case]:
    """Make the cases of ipv6.json."""
    return [*_headers6(), *_extensions(), *_last_hop(V6), *_common(V6), *_martians6()]


def _broken(frame: bytes, offset: int, value: int, right_checksum: bool = True) -> bytes:
    """Set one byte of the IPv4 header and make its checksum right again."""
    raw = bytearray(frame)
    raw[14 + offset] = value
    if right_checksum:
        header_len = max(20, (raw[14] & 15) * 4)
        raw[24:26] = b"\0\0"
        raw[24:26] = internet_checksum(bytes(raw[14 : 14 + header_len])).to_bytes(2, "big")
    return bytes(raw)


def _headers4() -> list[Case]:
    origin = "RFC 1812 section 5.2.2"
    whole = Talk(Case("", []), V4).c_in(tcp("S", 1, data=bytes(20)))
    table = [
        ("shorter than its header", whole[: 14 + 19], "ip_truncated"),
        ("of no bytes at all", whole[:14], "ip_truncated"),
        ("of version 5", _broken(whole, 0, 0x55), "ip_version"),
        ("of version 6", _broken(whole, 0, 0x65), "ip_version"),
        ("whose header length is 4 words", _broken(whole, 0, 0x44), "ip_header_length"),
        ("whose header is longer than the frame", _broken(whole[: 14 + 40], 0, 0x4F), "ip_truncated"),
        ("with a wrong header checksum", _broken(whole, 10, whole[24] ^ 1, right_checksum=False), "ip_checksum"),
        ("with a changed address and the old checksum", _broken(whole, 15, 99, right_checksum=False), "ip_checksum"),
        ("whose total length is less than its header", _broken(whole, 3, 19), "ip_total_length"),
        ("whose total length is more than the frame holds", _broken(whole, 3, 61), "ip_truncated"),
    ]
    made = []
    for words, frame, reason in table:
        case = Case(f"an IPv4 packet {words} is dropped", ["5"], origin)
        case.drop(frame, reason)
        made.append(case)
    return made


def _raw_options(talk: Talk, options: bytes, data: bytes = b"") -> tuple[bytes, bytes]:
    """Make the client's SYN with these option bytes, and what the server gets."""
    frames = []
    for frame, dst, port in ((talk.c_in, talk.vip, WEB_PORT), (talk.c_out, talk.server_address, talk.server_port)):
        ttl = 64 if dst == talk.vip else 63
        segment = TCP(sport=talk.sport, dport=port, seq=1000, flags="S") / Raw(data)
        l4 = bytes(IP(src=talk.client, dst=dst) / segment)[20:]
        header = bytearray(
            bytes(
                IP(
                    src=talk.client,
                    dst=dst,
                    ttl=ttl,
                    proto=6,
                    ihl=5 + len(options) // 4,
                    len=20 + len(options) + len(l4),
                )
            )
        )
        header = header[:20] + options
        header[10:12] = b"\0\0"
        header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
        made = frame(tcp("S", 1000))[:14] + bytes(header) + l4
        frames.append(made)
    return frames[0], frames[1]


def _options() -> list[Case]:
    made = []
    passed = {
        "no operation": b"\x01\x01\x01\x00",
        "record route": b"\x07\x07\x04\x00\x00\x00\x00\x00",
        "timestamp": b"\x44\x08\x05\x00\x00\x00\x00\x00",
        "router alert": b"\x94\x04\x00\x00",
        "40 bytes of options": b"\x01" * 39 + b"\x00",
        "source route after the end of options": b"\x00\x83\x07\x04\x01\x02\x03\x04",
    }
    for words, options in passed.items():
        case = Case(
            f"a packet with {words} is forwarded, its ports read after the real header", ["5.8"], "RFC 791 section 3.1"
        )
        talk = Talk(case, V4)
        incoming, outgoing = _raw_options(talk, options)
        case.forward(incoming, outgoing, **talk.names)
        made.append(case)
    dropped = {
        "loose source route": (b"\x83\x07\x04\xc6\x12\x01\x1f\x00", "source_route"),
        "strict source route": (b"\x89\x07\x04\xc6\x12\x01\x1f\x00", "source_route"),
        "source route after no operation": (b"\x01\x83\x07\x04\xc6\x12\x01\x1f", "source_route"),
        "an option of length 0": (b"\x07\x00\x00\x00", "ip_options"),
        "an option of length 1": (b"\x07\x01\x00\x00", "ip_options"),
        "an option longer than the header": (b"\x07\x05\x04\x00", "ip_options"),
        "an option without room for its length": (b"\x01\x01\x01\x07", "ip_options"),
    }
    for words, (options, reason) in dropped.items():
        case = Case(f"a packet with {words} is dropped", ["5.8"], "RFC 791 section 3.1")
        case.drop(_raw_options(Talk(case, V4), options)[0], reason)
        made.append(case)
    return made


def _headers6() -> list[Case]:
    whole = Talk(Case("", []), V6).c_in(tcp("S", 1, data=bytes(20)))
    version = bytearray(whole)
    version[14] = 0x40
    longer = bytearray(whole)
    longer[14 + 5] += 1
    table = [
        ("shorter than its header", whole[: 14 + 39], "ip_truncated"),
        ("of version 4", bytes(version), "ip_version"),
        ("whose payload length is more than the frame holds", bytes(longer), "ip_truncated"),
    ]
    made = []
    for words, frame, reason in table:
        case = Case(f"an IPv6 packet {words} is dropped", ["5"], "RFC 8200 section 3")
        case.drop(frame, reason)
        made.append(case)
    return made


HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60


def _spliced(frame: bytes, chain: list[tuple[int, bytes]], last: int = 6) -> bytes:
    """Put extension headers behind the IPv6 header; no checksum sees them. `chain`: (number, body after byte 0)."""
    numbers = [number for number, _ in chain] + [last]
    headers = b"".join(bytes([following]) + body for following, (_, body) in zip(numbers[1:], chain, strict=True))
    raw = bytearray(frame)
    raw[14 + 6] = numbers[0]
    raw[14 + 4 : 14 + 6] = struct.pack("!H", len(frame) - 54 + len(headers))
    return bytes(raw[:54]) + headers + bytes(raw[54:])


EMPTY_OPTIONS = b"\x00\x01\x04\x00\x00\x00\x00"  # length 0 (8 bytes), PadN of 6
LONG_OPTIONS = b"\x01\x01\x0c" + bytes(12)  # 16 bytes
TYPE4_ROUTING = b"\x00\x04\x00" + bytes(4)  # segment routing with nothing left
TYPE0_ROUTING = b"\x02\x00\x01" + bytes(4) + bytes.fromhex("20010002000000010000000000000031")
ATOMIC = b"\x00\x00\x00\x00\x00\x00\x07"


def _extensions() -> list[Case]:
    made = []
    walked: dict[str, list[tuple[int, bytes]]] = {
        "hop-by-hop options": [(HOP, EMPTY_OPTIONS)],
        "destination options of 16 bytes": [(DESTINATION, LONG_OPTIONS)],
        "a routing header of type 4": [(ROUTING, TYPE4_ROUTING)],
        "a fragment header but whole (atomic)": [(FRAGMENT, ATOMIC)],
        "all known headers": [
            (HOP, EMPTY_OPTIONS),
            (DESTINATION, EMPTY_OPTIONS),
            (ROUTING, TYPE4_ROUTING),
            (FRAGMENT, ATOMIC),
            (DESTINATION, LONG_OPTIONS),
        ],
        "eight headers": [(HOP, EMPTY_OPTIONS)] + [(DESTINATION, EMPTY_OPTIONS)] * 7,
    }
    for words, chain in walked.items():
        case = Case(
            f"an IPv6 packet with {words} is forwarded, its ports read after them", ["5.8"], "RFC 8200 section 4"
        )
        talk = Talk(case, V6)
        case.forward(_spliced(talk.c_in(tcp("S", 1)), chain), _spliced(talk.c_out(tcp("S", 1)), chain), **talk.names)
        talk2 = Talk(case, V6, "udp")
        case.forward(
            _spliced(talk2.c_in(udp(b"x")), chain, 17), _spliced(talk2.c_out(udp(b"x")), chain, 17), **talk2.names
        )
        made.append(case)
    dropped: dict[str, tuple[list[tuple[int, bytes]], str]] = {
        "nine headers": ([(HOP, EMPTY_OPTIONS)] + [(DESTINATION, EMPTY_OPTIONS)] * 8, "ext_header_limit"),
        "hop-by-hop options not in first place": ([(DESTINATION, EMPTY_OPTIONS), (HOP, EMPTY_OPTIONS)], "ext_header"),
        "two fragment headers": ([(FRAGMENT, ATOMIC), (FRAGMENT, ATOMIC)], "ext_header"),
        "a routing header of type 0": ([(ROUTING, TYPE0_ROUTING)], "routing_header"),
    }
    for words, (chain, reason) in dropped.items():
        case = Case(f"an IPv6 packet with {words} is dropped", ["5.8"], "RFC 8200 section 4, RFC 5095")
        case.drop(_spliced(Talk(case, V6).c_in(tcp("S", 1)), chain), reason)
        made.append(case)
    case = Case("an IPv6 extension header beyond the payload is dropped", ["5.8"], "RFC 8200 section 4")
    talk = Talk(case, V6)
    case.drop(_spliced(talk.c_in(tcp("S", 1)), [(DESTINATION, b"\x0a" + EMPTY_OPTIONS[1:])]), "ip_truncated")
    empty = bytearray(talk.c_in(tcp("S", 1))[:54])
    empty[14 + 4 : 14 + 7] = b"\x00\x00\x3c"
    case.drop(bytes(empty), "ip_truncated")
    made.append(case)
    return made


def _last_hop(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    case = Case(
        f"a packet on its last hop is answered with time exceeded, {v}",
        ["11.1", "12.4"],
        "RFC 1812 section 5.3.1, RFC 4443 section 3.3",
    )
    talk = Talk(case, f)
    kind = (11, 0) if f.version == 4 else (3, 0)
    names = {"direction": "forward", "service": f.web}
    for ttl in (1, 0):
        frame = talk.c_in(tcp("S", 1000, data=pattern(30)), ttl=ttl)
        case.reply(frame, "ttl_exceeded", icmp_error(f, frame, kind, f.router, f.client), **names)
    case.counters(events={"flow_created": 0, "flow_miss": 0})
    talk.c(tcp("S", 1000), ttl=2)
    made.append(case)

    case = Case(
        f"the quote of a time exceeded is cut to the allowed length and holds no padding, {v}",
        ["11.1", "12.2", "12.4"],
        "RFC 1812 section 4.3.2.3",
    )
    talk = Talk(case, f, "udp")
    names = {"direction": "forward", "service": f.dns}
    frame = talk.c_in(udp(pattern(1400)), ttl=1)
    case.reply(frame, "ttl_exceeded", icmp_error(f, frame, kind, f.router, f.client), **names)
    frame = talk.c_in(udp(pattern(9)), ttl=1)
    case.reply(frame + b"\xee" * 9, "ttl_exceeded", icmp_error(f, frame, kind, f.router, f.client), **names)
    made.append(case)

    case = Case(f"a server's packet on its last hop is answered before the flow is looked up, {v}", ["11.1"])
    talk = Talk(case, f)
    talk.open()
    frame = talk.s_in(tcp("A", 5001, 1001), ttl=1)
    case.reply(frame, "ttl_exceeded", icmp_error(f, frame, kind, f.router, f.servers[0], dst_mac=SERVER_MACS[0]))
    made.append(case)

    bare = {**ETH0, "addresses": []}
    case = Case(
        f"without an address of our own, a time exceeded for a VIP comes from the VIP, {v}",
        ["11.1", "12.4"],
        interfaces=[bare],
    )
    talk = Talk(case, f)
    frame = talk.c_in(tcp("S", 1), ttl=1)
    case.reply(frame, "ttl_exceeded", icmp_error(f, frame, kind, f.vip, f.client), direction="forward", service=f.web)
    made.append(case)
    case = Case(
        f"without any address, a packet on its last hop from a server is dropped unanswered, {v}",
        ["11.1", "12.4"],
        interfaces=[bare],
    )
    talk = Talk(case, f)
    talk.open()
    case.drop(talk.s_in(tcp("A", 5001, 1001), ttl=1), "ttl_exceeded")
    made.append(case)
    return made


def _common(f: Family) -> list[Case]:
    """Make the other cases that both versions share."""
    v = f"IPv{f.version}"
    made = []
    case = Case(f"traffic class, ECN and labels pass unchanged, {v}", ["8.20"], "RFC 2474, RFC 3168")
    talk = Talk(case, f)
    fields = {"tos": 0xBB, "id": 0xBEEF, "flags": "DF"} if f.version == 4 else {"tc": 0xBB, "fl": 0xABCDE}
    talk.c(tcp("S", 1000), **fields)
    talk.s(tcp("SA", 5000, 1001), **fields)
    made.append(case)

    case = Case(
        f"a server's address from another interface than the server's is dropped, {v}",
        ["5.4"],
        "RFC 2827",
        **two_interfaces(),
    )
    far = FAR4 if f.version == 4 else FAR6
    talk = Talk(case, f, client=far[0], server_address=far[0])
    case.drop(talk.c_in(tcp("S", 1)), "spoofed_server")
    packet = f.ip(far[1], f.client) / udp(b"x")
    case.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "spoofed_server")
    made.append(case)

    case = Case(f"protocols other than TCP, UDP and ICMP end at a VIP, {v}", ["7.A"])
    field = "proto" if f.version == 4 else "nh"
    for protocol in (47, 132, 59):
        packet = f.ip(f.client, f.vip, **{field: protocol}) / Raw(bytes(20))
        case.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "l4_protocol")
    made.append(case)
    return made


def _address_case(f: Family, name: str, sources: list[str], destinations: list[str], reason: str) -> Case:
    case = Case(name, ["5.4"], "RFC 1812 section 5.3.7, RFC 4291 section 2")
    for source in sources:
        case.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(source, f.vip) / _syn()), reason)
    for destination in destinations:
        case.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, destination) / _syn()), reason)
    return case


def _syn() -> TCP:
    return TCP(sport=CLIENT_PORT, dport=WEB_PORT, flags="S", seq=1)


def _martians4() -> list[Case]:
    sources = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.0.9",
        "224.0.0.1",
        "239.1.2.3",
        "240.0.0.1",
        "255.255.255.255",
    ]
    made = [_address_case(V4, "IPv4 packets from martian sources are dropped", sources, [], "martian_source")]
    ours = [V4.vip, V4.router, "198.18.1.255"]
    made.append(
        _address_case(
            V4, "IPv4 packets from a VIP, from us or from our broadcast address are dropped", ours, [], "martian_source"
        )
    )
    destinations = ["0.0.0.0", "0.0.0.1", "127.0.0.1", "240.0.0.1", "254.1.1.1"]
    made.append(
        _address_case(V4, "IPv4 packets to martian destinations are dropped", [], destinations, "martian_destination")
    )
    case = Case("IPv4 packets to multicast, broadcast and our own address are left to the host", ["5.4", "3"])
    for destination, mac in (
        ("224.0.0.5", "01:00:5e:00:00:05"),
        ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        ("198.18.1.255", "ff:ff:ff:ff:ff:ff"),
        (V4.router, ROUTER_MAC),
    ):
        case.passes(ether(CLIENT_MAC, mac, V4.ip(V4.client, destination) / _syn()))
    # A DHCP client has no address yet: 0.0.0.0 to the limited broadcast is not ours to judge.
    case.passes(
        ether(CLIENT_MAC, "ff:ff:ff:ff:ff:ff", V4.ip("0.0.0.0", "255.255.255.255") / udp(b"", sport=68, dport=67))
    )
    made.append(case)
    case = Case("the broadcast address of another interface's prefix is a martian source", ["5.4"], **two_interfaces())
    case.drop(ether(GATEWAY_MAC, ROUTER_MAC, V4.ip("10.0.0.255", V4.vip) / _syn()), "martian_source")
    made.append(case)
    point = [{**ETH0, "addresses": ["198.18.1.0/31", "198.18.1.9/32"]}]
    case = Case("a prefix of 31 bits or more has no broadcast address", ["5.4"], "RFC 3021", interfaces=point)
    talk = Talk(case, V4, client="198.18.1.1")
    talk.c(tcp("S", 1))
    made.append(case)
    return made


def _martians6() -> list[Case]:
    sources = ["::", "::1", "ff02::1", "::ffff:192.0.2.1", "fe80::1", "febf::1"]
    made = [_address_case(V6, "IPv6 packets from martian sources are dropped", sources, [], "martian_source")]
    made.append(
        _address_case(V6, "IPv6 packets from a VIP or from us are dropped", [V6.vip, V6.router], [], "martian_source")
    )
    made.append(
        _address_case(
            V6,
            "IPv6 packets to martian destinations are dropped",
            [],
            ["::", "::1", "::ffff:192.0.2.1"],
            "martian_destination",
        )
    )
    case = Case("IPv6 packets to multicast, link-local and our own address are left to the host", ["5.4", "3"])
    for destination, mac in (("ff02::1", "33:33:00:00:00:01"), ("fe80::1", ROUTER_MAC), (V6.router, ROUTER_MAC)):
        case.passes(ether(CLIENT_MAC, mac, V6.ip(V6.client, destination) / _syn()))
    made.append(case)
    return made
