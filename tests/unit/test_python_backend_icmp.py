"""
ICMP and ICMPv6 about flows, both ways (rule 10, ICMP about flows), and the limit on our own (rule 12.4, packets that
we send).
"""

from __future__ import annotations

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    CLIENT_PORT,
    FAR,
    ROUTER,
    ROUTER6,
    ROUTER_MAC,
    SERVER_MACS,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Box,
    answer,
    assert_checksums,
    from_client,
    from_server,
    inner_of,
    make_snapshot,
    only_frame,
    open_flow,
    query,
    request,
    response,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6ND_Redirect, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw


def error_v4(source: str, destination: str, inner: bytes, mac: str, **fields: int) -> Packet:
    """Build a port-unreachable, or another message, that quotes a packet."""
    message = ICMP(**{"type": 3, "code": 3, **fields}) / Raw(inner)
    return Ether(src=mac, dst=ROUTER_MAC) / IP(src=source, dst=destination, id=9) / message


def sent_by(result: object) -> bytes:
    """Return the IP packet that a result sent."""
    return bytes(only_frame(result)[1])


@pytest.mark.parametrize("length", [28, 36, 37, 38, 40, 60])
def test_error_from_server_side_reaches_the_client(backend: str, length: int) -> None:
    """Rule 10, ICMP about flows: the inner packet becomes what the client sent, however little of it is there."""
    box = Box(backend)
    syn = from_client(request("S", 1000, data=bytes(20)))
    inner = sent_by(box.send(syn))[:length]
    result = box.send(error_v4(SERVERS[0], CLIENT, inner, SERVER_MACS[31]))
    assert (result.verdict, result.direction, result.service, result.server) == ("forward", "reply", "web", "server1")
    frame = Ether(result.out[0][1])
    assert_checksums(result.out[0][1])
    assert (frame.dst, frame[IP].src, frame[IP].dst, frame[IP].ttl) == (CLIENT_MAC, VIP, CLIENT, 63)
    # But for its TTL, which was lowered on the way, and that word's checksum, the client knows its packet again.
    # Half a TCP checksum cannot be updated: it is left as it came.
    whole = length if length >= 38 else min(length, 36)
    seen, own = inner_of(result)[:whole], bytes(syn)[14:][:whole]
    assert (seen[:8], seen[9:10], seen[12:]) == (own[:8], own[9:10], own[12:])
    assert seen[8] == own[8] - 1
    assert box.states() == ["syn-sent"]


def test_error_from_a_router_behind_us_leaves_from_the_vip(backend: str) -> None:
    """Rule 10, ICMP about flows: no inner address is told (RFC 5508 REQ-5 c), whatever the router says."""
    box = Box(backend)
    inner = sent_by(box.send(from_client(query())))
    for kind, code in ((11, 0), (3, 1), (3, 4)):
        error = error_v4("198.18.1.250", CLIENT, inner, "aa:aa:aa:00:00:fa", type=kind, code=code)
        result = box.send(error)
        assert_checksums(result.out[0][1])
        assert (only_frame(result)[IP].src, only_frame(result)[ICMP].type) == (VIP, kind)


def test_error_from_a_router_on_the_clients_side_keeps_its_source(backend: str) -> None:
    """Rule 10, ICMP about flows: the server learns who it was (RFC 5508 REQ-4)."""
    box = Box(backend)
    box.send(from_client(query()))
    seen = sent_by(box.send(from_server(answer())))
    frame = only_frame(box.send(error_v4("198.18.1.250", VIP, seen, CLIENT_MAC, type=11, code=0)))
    assert (frame[IP].src, frame[IP].dst) == ("198.18.1.250", SERVERS[0])


@pytest.mark.parametrize("selector", ["hash-flow", "hash-source"])
@pytest.mark.parametrize("port", range(40000, 40006))
def test_error_after_a_restart_finds_the_server_by_the_hash(backend: str, selector: str, port: int) -> None:
    """Rule 10, ICMP about flows: path-MTU discovery survives a restart, both ways; no entry is made."""
    before, after = (Box(backend, make_snapshot(selector)) for _ in range(2))
    syn = from_client(request("S", 1000, port=port))
    placed = before.send(syn)
    number = int(placed.server[-1]) - 1
    seen = sent_by(before.send(from_server(response(port=port), number)))
    result = after.send(error_v4(CLIENT, VIP, seen, CLIENT_MAC, code=4, nexthopmtu=1200))
    assert (result.verdict, result.direction, result.server) == ("forward", "forward", placed.server)
    assert only_frame(result)[IP].dst == SERVERS[number]
    result = after.send(error_v4("198.18.1.250", CLIENT, sent_by(placed), "aa:aa:aa:00:00:fa", code=4, nexthopmtu=1200))
    assert (result.verdict, result.direction, result.server) == ("forward", "reply", placed.server)
    assert (only_frame(result)[IP].src, only_frame(result)[IP].dst) == (VIP, CLIENT)
    assert inner_of(result)[12:] == bytes(syn)[14:][12:]
    assert after.states() == []


@pytest.mark.parametrize("udp", [False, True])
def test_error_from_client_side_reaches_the_server(backend: str, udp: bool) -> None:
    """
    Rule 10, ICMP about flows: an error about a reply of the VIP goes to the server that sent it, about what it sent.
    """
    box = Box(backend)
    if udp:
        box.send(from_client(query()))
        reply = (
            Ether(src=SERVER_MACS[31], dst=ROUTER_MAC)
            / IP(src=SERVERS[0], dst=CLIENT)
            / UDP(sport=5353, dport=CLIENT_PORT)
        )
    else:
        open_flow(box, index=0)
        segment = TCP(sport=8031, dport=CLIENT_PORT, flags="A", seq=5001, ack=1001)
        reply = Ether(src=SERVER_MACS[31], dst=ROUTER_MAC) / IP(src=SERVERS[0], dst=CLIENT) / segment
    seen = sent_by(box.send(reply))
    result = box.send(error_v4(CLIENT, VIP, seen, CLIENT_MAC, code=4, nexthopmtu=1200))
    assert (result.verdict, result.direction, result.server) == ("forward", "forward", "server1")
    frame = only_frame(result)
    assert (frame.dst, frame[IP].src, frame[IP].dst) == (SERVER_MACS[31], CLIENT, SERVERS[0])
    assert (frame[ICMP].code, frame[ICMP].nexthopmtu) == (4, 1200)
    inner, own = bytes(frame[ICMP].payload), bytes(reply[IP])
    assert (inner[12:], inner[8]) == (own[12:], own[8] - 1)


def test_error_v6_is_translated_both_ways(backend: str) -> None:
    """Rule 10, ICMP about flows: packet too big and unreachable for IPv6, pseudo-header and all."""
    box = Box(backend)
    seen = sent_by(box.send(from_client(request(), CLIENT6)))
    back = Ether(src=SERVER_MACS[31], dst=ROUTER_MAC) / IPv6(src=SERVERS6[0], dst=CLIENT6)
    frame = only_frame(box.send(back / ICMPv6DestUnreach(code=4) / Raw(seen)))
    inner = bytes(frame[2].payload)
    own = bytes(from_client(request(), CLIENT6)[IPv6])
    assert (frame[IPv6].src, inner[8:], inner[7]) == (VIP6, own[8:], 63)
    there = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IPv6(src=CLIENT6, dst=VIP6)
    answer = Ether(src=SERVER_MACS[31], dst=ROUTER_MAC) / IPv6(src=SERVERS6[0], dst=CLIENT6)
    segment = TCP(sport=8031, dport=CLIENT_PORT, flags="SA", ack=1001)
    seen = sent_by(box.send(answer / segment))
    frame = only_frame(box.send(there / ICMPv6PacketTooBig(mtu=1280) / Raw(seen)))
    assert (frame[IPv6].dst, frame[ICMPv6PacketTooBig].mtu) == (SERVERS6[0], 1280)
    assert bytes(frame[2].payload)[8:] == bytes((answer / segment)[IPv6])[8:]


def corrupt(frame: Packet, at: int) -> bytes:
    data = bytearray(bytes(frame))
    data[at] ^= 0x55
    return bytes(data)


def inner_packet(source: str, destination: str, payload: Packet, **fields: object) -> bytes:
    return bytes(IP(src=source, dst=destination, **fields) / payload)


REPLY_OF_VIP = inner_packet(VIP, CLIENT, UDP(sport=53, dport=CLIENT_PORT))
BAD_HEADER = REPLY_OF_VIP[:10] + b"\x12\x34" + REPLY_OF_VIP[12:]

TO_VIP = [
    ("bad ICMP checksum", corrupt(error_v4(CLIENT, VIP, REPLY_OF_VIP, CLIENT_MAC), 40), "icmp_checksum"),
    ("redirect", error_v4(CLIENT, VIP, REPLY_OF_VIP, CLIENT_MAC, type=5, code=1), "icmp_redirect"),
    ("source quench", error_v4(CLIENT, VIP, REPLY_OF_VIP, CLIENT_MAC, type=4, code=0), "icmp_type"),
    ("echo reply", error_v4(CLIENT, VIP, REPLY_OF_VIP, CLIENT_MAC, type=0, code=0), "icmp_type"),
    ("bad inner header checksum", error_v4(CLIENT, VIP, BAD_HEADER, CLIENT_MAC), "icmp_inner"),
    ("short inner header", error_v4(CLIENT, VIP, REPLY_OF_VIP[:19], CLIENT_MAC), "icmp_inner"),
    ("7 bytes of inner L4", error_v4(CLIENT, VIP, REPLY_OF_VIP[:27], CLIENT_MAC), "icmp_inner"),
    ("inner version", error_v4(CLIENT, VIP, b"\x65" + REPLY_OF_VIP[1:], CLIENT_MAC), "icmp_inner"),
    ("inner IHL", error_v4(CLIENT, VIP, b"\x44" + REPLY_OF_VIP[1:], CLIENT_MAC), "icmp_inner"),
    ("inner later fragment", error_v4(CLIENT, VIP, inner_packet(VIP, CLIENT, UDP(), frag=1), CLIENT_MAC), "icmp_inner"),
    ("inner source is not the VIP", error_v4(CLIENT, VIP, inner_packet(FAR, CLIENT, UDP()), CLIENT_MAC), "icmp_inner"),
    ("about an error", error_v4(CLIENT, VIP, inner_packet(VIP, CLIENT, ICMP(type=3)), CLIENT_MAC), "icmp_about_icmp"),
    ("about an echo", error_v4(CLIENT, VIP, inner_packet(VIP, CLIENT, ICMP()), CLIENT_MAC), "icmp_no_flow"),
    (
        "about GRE",
        error_v4(CLIENT, VIP, inner_packet(VIP, CLIENT, Raw(b"12345678"), proto=47), CLIENT_MAC),
        "icmp_no_flow",
    ),
    ("no such service", error_v4(CLIENT, VIP, inner_packet(VIP, CLIENT, UDP(sport=54)), CLIENT_MAC), "icmp_no_flow"),
    ("no such flow", error_v4(CLIENT, VIP, REPLY_OF_VIP, CLIENT_MAC), "icmp_no_flow"),
]


@pytest.mark.parametrize(("name", "frame", "reason"), TO_VIP, ids=[row[0] for row in TO_VIP])
def test_icmp_to_vip_without_use_is_dropped(backend: str, name: str, frame: bytes, reason: str) -> None:
    """Rule 10, ICMP about flows: bad checksums, redirects, errors about errors, unknown flows."""
    result = Box(backend).send(frame)
    assert (result.verdict, result.reason, result.service, result.direction) == ("drop", reason, None, None)


TO_SERVER = inner_packet(CLIENT, SERVERS[0], UDP(sport=CLIENT_PORT, dport=5353))
ELSEWHERE = [
    ("no such flow", error_v4(SERVERS[0], CLIENT, TO_SERVER, SERVER_MACS[31]), "icmp_no_flow"),
    ("bad ICMP checksum", corrupt(error_v4(SERVERS[0], CLIENT, TO_SERVER, SERVER_MACS[31]), 40), "icmp_checksum"),
    ("to another host", error_v4(SERVERS[0], FAR, TO_SERVER, SERVER_MACS[31]), "icmp_inner"),
    ("redirect", error_v4(SERVERS[0], CLIENT, TO_SERVER, SERVER_MACS[31], type=5), "icmp_redirect"),
    (
        "quotes too little of a packet to a server",
        error_v4(SERVERS[0], CLIENT, TO_SERVER[:27], SERVER_MACS[31]),
        "icmp_inner",
    ),
    (
        "about another port",
        error_v4(SERVERS[0], CLIENT, inner_packet(CLIENT, SERVERS[0], UDP()), SERVER_MACS[31]),
        "transit",
    ),
    (
        "about a stranger",
        error_v4(SERVERS[0], CLIENT, inner_packet(CLIENT, FAR, UDP())[:24], SERVER_MACS[31]),
        "transit",
    ),
    ("quotes nothing", error_v4(SERVERS[0], CLIENT, b"", SERVER_MACS[31]), "transit"),
    ("echo reply of a server", error_v4(SERVERS[0], CLIENT, b"", SERVER_MACS[31], type=0), "transit"),
]


@pytest.mark.parametrize(("name", "frame", "reason"), ELSEWHERE, ids=[row[0] for row in ELSEWHERE])
def test_icmp_elsewhere_without_use_is_dropped(backend: str, name: str, frame: bytes, reason: str) -> None:
    """
    Rule 10, ICMP about flows, and rule 8.15, server packets of no flow: what is about no flow is transit, or dropped
    when it is about a server.
    """
    result = Box(backend).send(frame)
    assert (result.verdict, result.reason, result.service) == ("drop", reason, None)


def test_icmp_v6_redirect_and_bad_checksum_are_dropped(backend: str) -> None:
    """Rule 10, ICMP about flows, for IPv6."""
    box = Box(backend)
    redirect = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IPv6(src=CLIENT6, dst=VIP6) / ICMPv6ND_Redirect()
    assert box.send(redirect).reason == "icmp_redirect"
    assert box.send(corrupt(from_client(ICMPv6EchoRequest(), CLIENT6), 56)).reason == "icmp_checksum"


def test_error_never_refreshes_nor_removes(backend: str) -> None:
    """Rule 8.12, idle timeouts: ICMP errors change nothing about a flow."""
    box = Box(backend)
    inner = sent_by(box.send(from_client(query())))
    box.after(299)
    assert box.send(error_v4(SERVERS[0], CLIENT, inner, SERVER_MACS[31])).verdict == "forward"
    # Nor is it the server's answer.
    assert box.states() == ["udp-unreplied"]
    hits = box.event("flow_hit")
    box.after(1)
    assert box.states() == []
    assert hits == 0


def test_error_counts_for_the_server_alone(backend: str) -> None:
    """Rule 10.6, rewriting an error: the service's counters tell of its clients' packets."""
    box = Box(backend)
    inner = sent_by(box.send(from_client(query())))
    box.send(error_v4(SERVERS[0], CLIENT, inner, SERVER_MACS[31]))
    counters = box.counters()
    assert (counters["services"]["dns"]["packets_reply"], counters["servers"]["dns/server1"]["packets_reply"]) == (0, 1)


TTL_CASES = [(CLIENT, ROUTER, 11, 548), (CLIENT6, ROUTER6, 3, 1232)]


@pytest.mark.parametrize(("client", "router", "kind", "length"), TTL_CASES)
@pytest.mark.parametrize("ttl", [0, 1])
def test_ttl_exceeded_is_answered_from_our_address(
    backend: str, client: str, router: str, kind: int, length: int, ttl: int
) -> None:
    """
    Rule 11.1, TTL, and rule 12.2, frames over the MTU: time exceeded, quoting the packet as it came in, within 576 or
    1280 bytes.
    """
    frame = from_client(query(bytes(1300)), client, ttl=ttl)
    result = Box(backend).send(frame)
    assert (result.verdict, result.reason, result.direction, result.server) == (
        "reply",
        "ttl_exceeded",
        "forward",
        None,
    )
    sent = only_frame(result)
    assert (sent.dst, sent[1].src, sent[1].dst, sent[2].type, sent[2].code) == (CLIENT_MAC, router, client, kind, 0)
    assert inner_of(result) == bytes(frame)[14:][:length]
    if kind == 11:
        assert (sent[IP].tos, sent[IP].id, int(sent[IP].flags), sent[IP].ttl) == (0xC0, 0, 2, 64)


def test_ttl_exceeded_is_never_answered_about_an_error(backend: str) -> None:
    """Rule 12.4, packets that we send: no ICMP about ICMP errors."""
    box = Box(backend, make_snapshot(transit="forward"))
    frame = error_v4(CLIENT, FAR, inner_packet(FAR, CLIENT, UDP()), CLIENT_MAC)
    frame[IP].ttl = 1
    assert (box.send(frame).verdict, box.send(frame).reason) == ("drop", "ttl_exceeded")
    echo = from_client(ICMP(), CLIENT, FAR, ttl=1)
    assert box.send(echo).verdict == "reply"


def test_no_server_udp_is_port_unreachable(backend: str) -> None:
    """Rule 8.18, refusals: from the VIP, quoting the datagram."""
    box = Box(backend, make_snapshot(slots=()))
    for client, vip, kind in ((CLIENT, VIP, (3, 3)), (CLIENT6, VIP6, (1, 4))):
        frame = from_client(query(), client)
        result = box.send(frame)
        sent = only_frame(result)
        assert (sent[1].src, sent[1].dst, (sent[2].type, sent[2].code)) == (vip, client, kind)
        assert inner_of(result) == bytes(frame)[14:]


def test_rate_limit_is_a_token_bucket(backend: str) -> None:
    """
    Rule 12.4, packets that we send: a burst of `rate`, then one per 1/rate second; what is over is dropped and
    counted.
    """
    box = Box(backend, make_snapshot(slots=(), icmp_rate=5))
    frame = from_client(request())
    assert [box.send(frame).verdict for _ in range(7)] == ["reply"] * 5 + ["drop"] * 2
    assert box.counters()["verdicts"] == {"reply.no_server": 5, "drop.rate_limited": 2}
    box.now += 200_000_000 - 1
    assert box.send(frame).reason == "rate_limited"
    box.now += 1
    assert [box.send(frame).verdict for _ in range(2)] == ["reply", "drop"]
    box.after(3600)
    assert [box.send(frame).verdict for _ in range(6)] == ["reply"] * 5 + ["drop"]


def test_rate_limit_pings_do_not_starve_path_mtu_discovery(backend: str) -> None:
    """Rule 12.4, packets that we send: each kind of answer has a bucket of its own."""
    box = Box(backend, make_snapshot(icmp_rate=5, answer_echo=True, mtu=1280))
    ping, large = from_client(ICMP() / Raw(bytes(8))), from_client(query(bytes(1400)), flags="DF")
    assert [box.send(ping).reason for _ in range(6)] == ["echo"] * 5 + ["rate_limited"]
    assert [box.send(large).reason for _ in range(6)] == ["too_big"] * 5 + ["rate_limited"]
    dying = from_client(query(), ttl=1)
    assert [box.send(dying).reason for _ in range(6)] == ["ttl_exceeded"] * 5 + ["rate_limited"]


def test_rate_limit_zero_answers_nothing(backend: str) -> None:
    """Rule 12, sending: rate 0 is always limited; ARP takes no token."""
    box = Box(backend, make_snapshot(slots=(), icmp_rate=0, answer_echo=True))
    assert box.send(from_client(request())).reason == "rate_limited"
    assert box.send(from_client(ICMP())).reason == "rate_limited"
