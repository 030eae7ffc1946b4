"""The primitives that both backends expose, against the vectors of their RFCs and papers."""

from __future__ import annotations

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    PROPERTY,
    ROUTER_MAC,
    VIP,
    VIP6,
    WEB_PORT,
    from_client,
    load_backend,
    query,
    request,
    with_options,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from lb.backends.python.picker import SplitMix64
from lb.packet.hashing import siphash24

MACS = {"src": "aa:aa:aa:00:00:21", "dst": ROUTER_MAC}


def test_checksum_rfc1071_example_is_its_complement(backend: str) -> None:
    """The eight bytes of RFC 1071 section 3 sum to ddf2."""
    assert load_backend(backend).checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


@pytest.mark.parametrize(
    ("data", "initial", "expected"),
    [
        (b"", 0, 0xFFFF),
        (b"\x01", 0, 0xFEFF),
        (b"\xff\xff", 0, 0),
        (b"\0\0", 0, 0xFFFF),
        (b"\xff\xff\xff\xff", 0, 0),
        (b"\x00\x01", 0xFFFF, 0xFFFE),
        (b"\x12\x34\x56", 0x10000, 0x97CA),
    ],
)
def test_checksum_edge_values_follow_ones_complement(backend: str, data: bytes, initial: int, expected: int) -> None:
    """Odd lengths are padded, carries folded until none is left."""
    assert load_backend(backend).checksum(data, initial) == expected


def test_checksum_update_rfc1624_vector_gives_zero(backend: str) -> None:
    """
    Rule 8.20, translation: HC=0xDD2F, m=0x5555 to m'=0x3285 gives 0x0000, where equation 2 of RFC 1141 gave 0xFFFF.
    """
    assert load_backend(backend).checksum_update(0xDD2F, b"\x55\x55", b"\x32\x85") == 0


@pytest.mark.parametrize(("old", "new"), [(b"\1\2", b"\1"), (b"\1", b"\2"), (b"\1\2\3", b"\1\2\3")])
def test_checksum_update_odd_or_unequal_raises(backend: str, old: bytes, new: bytes) -> None:
    """Only whole 16-bit words can be exchanged."""
    with pytest.raises(ValueError):
        load_backend(backend).checksum_update(0, old, new)


@PROPERTY
@given(data=st.binary(min_size=2, max_size=80), new=st.binary(min_size=2, max_size=40), at=st.integers(0, 39))
def test_checksum_update_any_change_equals_recomputation(backend: str, data: bytes, new: bytes, at: int) -> None:
    """Rule 8.20, translation: updating equals computing anew, up to the two zeros of ones' complement."""
    data, new = data[: len(data) // 2 * 2], new[: len(new) // 2 * 2]
    at = at * 2 % len(data)
    new = new[: len(data) - at]
    changed = data[:at] + new + data[at + len(new) :]
    module = load_backend(backend)
    updated = module.checksum_update(module.checksum(data), data[at : at + len(new)], new)
    assert updated % 0xFFFF == module.checksum(changed) % 0xFFFF


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, 0x726FDB47DD0E0E31),
        (1, 0x74F839C593DC67FD),
        (2, 0x0D6C8009D9A94F5A),
        (3, 0x85676696D7FB7E2D),
        (8, 0x93F5F5799A932462),
        (15, 0xA129CA6149BE45E5),
    ],
)
def test_siphash24_reference_vectors_match(length: int, expected: int) -> None:
    """The vectors of the SipHash paper and its reference code: key 00..0f, data 00, 01, ..."""
    k0, k1 = 0x0706050403020100, 0x0F0E0D0C0B0A0908
    assert siphash24(k0, k1, bytes(range(length))) == expected


def test_split_mix_reference_vector_matches() -> None:
    """The first draws for the seed 1234567, as published with the generator."""
    random = SplitMix64(1234567)
    assert [random.draw() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


GOLDEN_SOURCE = 0x71765554A9944BC5
GOLDEN_FLOW = [
    (1, "c6120115", "c6120164", 40000, 9876, 6, 0xC5E14C62CFAC8562),
    (0, "00000000", "ffffffff", 0, 0, 17, 0x942F96C0B115F2E9),
    (
        2**64 - 1,
        "20010db8000100000000000000000021",
        "20010db8000100000000000000000100",
        65535,
        53,
        17,
        0x7E9D832A6199B9F4,
    ),
]


@pytest.mark.parametrize("row", GOLDEN_FLOW)
def test_flow_hash_golden_values_match(backend: str, row: tuple[int, str, str, int, int, int, int]) -> None:
    """Rule 21.1, secrets and seeds: balancers agree on placement, so the hash of a 5-tuple never changes."""
    seed, client, vip, client_port, vip_port, protocol, expected = row
    hashed = load_backend(backend).flow_hash(
        seed, bytes.fromhex(client), bytes.fromhex(vip), client_port, vip_port, protocol
    )
    assert hashed == expected


def test_source_hash_golden_value_matches(backend: str) -> None:
    """Rule 21.1, secrets and seeds: as for the 5-tuple."""
    assert load_backend(backend).source_hash(1, bytes.fromhex("c6120115")) == GOLDEN_SOURCE


def test_hashes_mapped_address_is_the_ipv4_address(backend: str) -> None:
    """An IPv4 address is hashed as ::ffff:a.b.c.d."""
    module = load_backend(backend)
    mapped = bytes(10) + b"\xff\xff\1\2\3\4"
    assert module.source_hash(7, b"\1\2\3\4") == module.source_hash(7, mapped)


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_hashes_address_of_other_length_raises(backend: str, size: int) -> None:
    """An address has 4 or 16 bytes."""
    module = load_backend(backend)
    with pytest.raises(ValueError):
        module.source_hash(1, bytes(size))
    with pytest.raises(ValueError):
        module.flow_hash(1, bytes(4), bytes(size), 1, 2, 6)


def test_parse_tcp_over_ipv4_reads_every_field(backend: str) -> None:
    """A plain segment, with padding behind it that is not data (rule 5, IP headers)."""
    headers = load_backend(backend).parse(bytes(from_client(request("PA", data=b"abc"))) + bytes(7))
    assert headers._asdict() == {
        "reason": None,
        "ethertype": 0x0800,
        "vlans": (),
        "l3_offset": 14,
        "l4_offset": 34,
        "payload_offset": 54,
        "source": bytes.fromhex("c6120115"),
        "destination": bytes.fromhex("c6120164"),
        "protocol": 6,
        "ttl": 64,
        "source_port": CLIENT_PORT,
        "destination_port": WEB_PORT,
        "tcp_flags": 0x18,
        "fragment_offset": 0,
        "more_fragments": False,
        "total_len": 43,
    }


def test_parse_udp_over_ipv6_behind_tags_and_extensions_reads_every_field(backend: str) -> None:
    """
    Rule 5.8, options and extension headers, and rule 3.4, VLAN tags: two tags, hop-by-hop and destination options,
    then UDP.
    """
    frame = Ether(**MACS) / Dot1AD(vlan=7) / Dot1Q(vlan=9, prio=1) / IPv6(src=CLIENT6, dst=VIP6, hlim=9)
    frame = frame / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / query(b"hello")
    headers = load_backend(backend).parse(bytes(frame))
    assert (headers.reason, headers.ethertype, headers.vlans) == (None, 0x86DD, (7, 0x2009))
    assert (headers.l3_offset, headers.l4_offset, headers.payload_offset) == (22, 78, 86)
    assert (headers.protocol, headers.ttl, headers.total_len) == (17, 9, 40 + 16 + 13)
    assert (headers.source_port, headers.destination_port, headers.tcp_flags) == (CLIENT_PORT, 53, 0)


def ipv4(payload: object, **fields: object) -> bytes:
    return bytes(Ether(**MACS) / IP(src=CLIENT, dst=VIP, **fields) / payload)


def ipv6(payload: object, **fields: object) -> bytes:
    return bytes(Ether(**MACS) / IPv6(src=CLIENT6, dst=VIP6, **fields) / payload)


def tcp(**fields: object) -> TCP:
    return TCP(**{"sport": 1, "dport": 2, "flags": "S", **fields})


def bad_checksum(frame: bytes) -> bytes:
    return frame[:24] + bytes([frame[24] ^ 1]) + frame[25:]


def options(raw: bytes) -> bytes:
    return with_options(Ether(**MACS) / IP(src=CLIENT, dst=VIP) / tcp(), raw)


MALFORMED = [
    ("empty", b"", "frame_truncated"),
    ("13 bytes", bytes(13), "frame_truncated"),
    ("tag cut short", bytes(12) + b"\x81\x00\x00\x01", "frame_truncated"),
    ("three tags", bytes(Ether() / Dot1Q() / Dot1Q() / Dot1Q() / IP()), "vlan_depth"),
    ("IPv4 of 19 bytes", ipv4(b"")[:33], "ip_truncated"),
    ("IPv4 version 5", ipv4(tcp(), version=5), "ip_version"),
    ("IHL 4", ipv4(tcp(), ihl=4), "ip_header_length"),
    ("IHL beyond the bytes", ipv4(b"", ihl=15), "ip_truncated"),
    ("wrong header checksum", bad_checksum(ipv4(tcp())), "ip_checksum"),
    ("total length under IHL", ipv4(tcp(), len=19), "ip_total_length"),
    ("total length beyond the bytes", ipv4(tcp(), len=1000), "ip_truncated"),
    ("option overruns", options(b"\x07\x09\x04\x00"), "ip_options"),
    ("option of length 1", options(b"\x07\x01\x00\x00"), "ip_options"),
    ("loose source route", options(b"\x83\x03\x04\x00"), "source_route"),
    ("strict source route", options(b"\x89\x03\x04\x00"), "source_route"),
    ("IPv6 of 39 bytes", ipv6(b"")[:53], "ip_truncated"),
    ("IPv6 version 4", ipv6(b"", version=4), "ip_version"),
    ("IPv6 payload beyond the bytes", ipv6(tcp(), plen=21), "ip_truncated"),
    ("hop-by-hop not first", ipv6(IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / tcp()), "ext_header"),
    ("two fragment headers", ipv6(IPv6ExtHdrFragment(m=1) / IPv6ExtHdrFragment() / tcp()), "ext_header"),
    ("routing type 0", ipv6(IPv6ExtHdrRouting(addresses=[VIP6]) / tcp()), "routing_header"),
    ("extension beyond the payload", ipv6(b"\x06\x01" + bytes(8), nh=60), "ip_truncated"),
    ("TCP of 19 bytes", ipv4(bytes(tcp())[:19], proto=6), "l4_truncated"),
    ("data offset 4", ipv4(tcp(dataofs=4)), "tcp_data_offset"),
    ("data offset beyond the bytes", ipv4(tcp(dataofs=6)), "tcp_data_offset"),
    ("SYN+FIN", ipv4(tcp(flags="SF")), "tcp_flags"),
    ("SYN+RST", ipv4(tcp(flags="SR")), "tcp_flags"),
    ("no flags", ipv4(tcp(flags=0)), "tcp_flags"),
    ("ECE and CWR alone", ipv4(tcp(flags="EC")), "tcp_flags"),
    ("FIN without ACK", ipv4(tcp(flags="F")), "tcp_flags"),
    ("UDP of 7 bytes", ipv4(bytes(query())[:7], proto=17), "l4_truncated"),
    ("UDP length 7", ipv4(UDP(sport=1, dport=2, len=7)), "udp_length"),
    ("UDP length beyond the bytes", ipv4(UDP(sport=1, dport=2, len=9)), "udp_length"),
    ("IPv6 UDP without checksum", ipv6(UDP(sport=1, dport=2, chksum=0)), "udp_checksum_zero"),
    ("source port 0", ipv4(tcp(sport=0)), "port_zero"),
    ("destination port 0", ipv4(UDP(sport=1, dport=0)), "port_zero"),
    ("first TCP fragment of 16 bytes", ipv4(bytes(tcp())[:16], proto=6, flags="MF"), "fragment_tiny"),
    ("first UDP fragment of 4 bytes", ipv4(bytes(query())[:4], proto=17, flags="MF"), "fragment_tiny"),
    ("first fragment with data offset 4", ipv4(tcp(dataofs=4), flags="MF"), "tcp_data_offset"),
    ("first fragment cuts the options", ipv4(bytes(tcp(dataofs=7)), proto=6, flags="MF"), "fragment_tiny"),
    ("TCP fragment at offset 8", ipv4(bytes(16), proto=6, frag=1), "fragment_tiny"),
]


@pytest.mark.parametrize(("name", "frame", "reason"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_parse_malformed_frame_names_the_reason(backend: str, name: str, frame: bytes, reason: str) -> None:
    """
    Rule 5, IP headers; rule 5.8, options and extension headers; rule 7, L4 headers; rule 6, fragments: each failure
    has its own reason.
    """
    assert load_backend(backend).parse(frame).reason == reason


def test_parse_ninth_extension_header_is_over_the_limit(backend: str) -> None:
    """Rule 5.8, options and extension headers: at most 8 are walked."""
    parse = load_backend(backend).parse
    eight = IPv6ExtHdrDestOpt()
    for _ in range(7):
        eight = eight / IPv6ExtHdrDestOpt()
    assert parse(ipv6(eight / tcp())).reason is None
    assert parse(ipv6(eight / IPv6ExtHdrDestOpt() / tcp())).reason == "ext_header_limit"


def test_parse_other_routing_header_is_walked(backend: str) -> None:
    """Rule 5.8, options and extension headers: only type 0 is dropped."""
    headers = load_backend(backend).parse(ipv6(IPv6ExtHdrSegmentRouting(addresses=[VIP6]) / tcp()))
    assert (headers.reason, headers.protocol, headers.source_port) == (None, 6, 1)


def test_parse_options_ports_are_read_behind_them(backend: str) -> None:
    """Rule 5.8, options and extension headers: record route and NOPs move the ports."""
    headers = load_backend(backend).parse(options(b"\x01\x01\x07\x04\x04\x00\x00\x00"))
    assert (headers.reason, headers.l4_offset, headers.source_port) == (None, 42, 1)


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_parse_later_fragment_has_no_ports(backend: str, make: object) -> None:
    """Rule 6, fragments: ports are never read from a later fragment."""
    data = b"\x11" * 24
    frame = (
        ipv4(data, proto=17, frag=3, flags="MF")
        if make is ipv4
        else ipv6(IPv6ExtHdrFragment(nh=17, offset=3, m=1) / Raw(data))
    )
    headers = load_backend(backend).parse(frame)
    assert (headers.reason, headers.fragment_offset, headers.more_fragments) == (None, 24, True)
    assert (headers.source_port, headers.destination_port, headers.payload_offset) == (0, 0, 0)
    assert headers.l4_offset == len(frame) - 24


def test_parse_other_protocols_stop_after_their_layer(backend: str) -> None:
    """ARP is not read, of ICMP only where it begins."""
    parse = load_backend(backend).parse
    arp = parse(bytes(Ether() / ARP()))
    assert (arp.reason, arp.ethertype, arp.l3_offset) == (None, 0x0806, 0)
    icmp = parse(ipv4(ICMP()))
    assert (icmp.reason, icmp.protocol, icmp.l4_offset, icmp.payload_offset) == (None, 1, 34, 0)


@PROPERTY
@given(frame=st.binary(max_size=120), kind=st.sampled_from([b"", b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
def test_parse_any_bytes_never_raises(backend: str, frame: bytes, kind: bytes) -> None:
    """Bad input is a reason, never an exception."""
    load_backend(backend).parse(frame[:12] + kind + frame[12:])
