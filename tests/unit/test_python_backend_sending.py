"""
The way out: MTU, offload, routes, packets that wait for a neighbour (rule 8.20, translation; rule 12.2, frames over
the MTU; rule 11, next hop).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    FAR,
    ROUTER,
    ROUTER6,
    ROUTER_MAC_1,
    SERVER_MACS,
    SERVERS,
    SERVERS6,
    VIP,
    Box,
    answer,
    assert_checksums,
    from_client,
    from_server,
    inner_of,
    mac_bytes,
    make_next_hops,
    make_snapshot,
    only_frame,
    open_flow,
    query,
    request,
    with_options,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from lb.model.snapshot import Neighbour, NextHops, Route
from lb.packet.offload import Offload

NEEDS_CSUM, TCPV4, TCPV6, UDP_L4 = 1, 1, 4, 5
SMALL = 600


@pytest.mark.parametrize(("client", "kind"), [(CLIENT, (3, 4)), (CLIENT6, (2, 0))])
@pytest.mark.parametrize("by", ["route", "interface"])
def test_too_big_is_answered_with_the_mtu(backend: str, client: str, kind: tuple[int, int], by: str) -> None:
    """Rule 12.2, frames over the MTU: DF, or IPv6: the sender is told what would pass, quoting its own packet."""
    mtu = 1280
    snapshot = make_snapshot(mtu=mtu) if by == "interface" else make_snapshot()
    box = Box(backend, snapshot, make_next_hops(mtu=mtu if by == "route" else 9000))
    frame = from_client(query(bytes(1300)), client, **({"flags": "DF"} if kind == (3, 4) else {}))
    result = box.send(frame)
    assert (result.verdict, result.reason, result.server) == ("reply", "too_big", "server1")
    sent = only_frame(result)
    assert (sent[1].src, (sent[2].type, sent[2].code)) == (ROUTER if kind == (3, 4) else ROUTER6, kind)
    assert (sent[2].nexthopmtu if kind == (3, 4) else sent[2].mtu) == mtu
    assert inner_of(result) == bytes(frame)[14:][: 548 if kind == (3, 4) else 1232]


def test_too_big_exact_fit_passes(backend: str) -> None:
    """Rule 12.2, frames over the MTU: an IP packet of exactly the MTU is not too big."""
    box = Box(backend, next_hops=make_next_hops(mtu=1000))
    assert box.send(from_client(query(bytes(972)), flags="DF")).verdict == "forward"
    assert box.send(from_client(query(bytes(973)), flags="DF")).reason == "too_big"


def test_too_big_reply_is_told_to_the_server(backend: str) -> None:
    """Rule 12.2, frames over the MTU: the other direction: the client's interface has a smaller MTU."""
    base = make_snapshot()
    small = replace(base.interfaces[1], mtu=1000)
    box = Box(backend, replace(base, interfaces=(base.interfaces[0], small)))
    box.send(Ether(src=CLIENT_MAC, dst=ROUTER_MAC_1) / IP(src=FAR, dst=VIP) / query(), interface=1)
    result = box.send(from_server(answer(bytes(1200)), 0, FAR, flags="DF"))
    sent = only_frame(result)
    assert (result.reason, sent.dst, sent[IP].dst, sent[2].nexthopmtu) == ("too_big", SERVER_MACS[31], SERVERS[0], 1000)


@pytest.mark.parametrize("size", [573, 576, 1140, 1200, 3000])
def test_cut_fragments_fit_and_join_again(backend: str, size: int) -> None:
    """Rule 12.2, frames over the MTU: without DF, fragments in order, each as large as fits."""
    data = bytes(i % 251 for i in range(size))
    box = Box(backend, make_snapshot(mtu=9000), make_next_hops(mtu=SMALL))
    result = box.send(from_client(query(data), id=4242, tos=8))
    assert result.verdict == "forward"
    packets = [Ether(frame)[IP] for _, frame in result.out]
    assert [packet.frag * 8 for packet in packets] == [576 * i for i in range(len(packets))]
    assert all(packet.len <= SMALL and packet.id == 4242 and packet.tos == 8 for packet in packets)
    whole = IP(bytes(defragment(packets)[0]))
    assert (whole.dst, whole[UDP].dport, bytes(whole[UDP].payload)) == (SERVERS[0], 5353, data)
    assert_checksums(bytes(Ether() / whole))


def test_cut_options_only_copied_ones_are_repeated(backend: str) -> None:
    """
    Rule 5.8, options and extension headers, and rule 12.2, frames over the MTU: record route stays in the first
    fragment, an option with the copied flag is in all.
    """
    copied, record_route = b"\x88\x04\x12\x34", b"\x07\x07\x04\0\0\0\0"
    frame = with_options(from_client(query(bytes(1100))), record_route + b"\x01" + copied)
    result = Box(backend, next_hops=make_next_hops(mtu=SMALL)).send(frame)
    headers = [bytes(Ether(out)[IP])[: Ether(out)[IP].ihl * 4] for _, out in result.out]
    assert [header[20:] for header in headers] == [record_route + b"\x01" + copied, copied]
    assert all(scapy_checksum(header) == 0 for header in headers)


def test_cut_fragment_again_keeps_offset_and_more(backend: str) -> None:
    """Rule 12.2, frames over the MTU: a transit fragment that is cut is still a part of the same datagram."""
    box = Box(backend, make_snapshot(transit="forward"), make_next_hops(mtu=SMALL))
    fragment = from_client(Raw(bytes(1200)), CLIENT, FAR, proto=17, frag=100, flags="MF")
    packets = [Ether(frame)[IP] for _, frame in box.send(fragment).out]
    assert [(packet.frag, packet.flags.MF, packet.len) for packet in packets] == [
        (100, True, 596),
        (172, True, 596),
        (244, True, 68),
    ]


def test_cut_without_room_is_dropped(backend: str) -> None:
    """Rule 12.2, frames over the MTU: an MTU that leaves no 8 bytes for data."""
    box = Box(backend, next_hops=make_next_hops(mtu=27))
    assert box.send(from_client(query())).reason == "too_big"
    assert Box(backend, next_hops=make_next_hops(mtu=28)).send(from_client(query())).verdict == "forward"


def partial(packet: Packet) -> tuple[bytes, Offload]:
    """Replace the L4 checksum by the pseudo-header's sum, as a sender with checksum offload does."""
    frame = bytearray(bytes(packet))
    layer = packet.getlayer(TCP) or packet.getlayer(UDP)
    v6 = IPv6 in packet
    start = 54 if v6 else 34
    offset = 16 if isinstance(layer, TCP) else 6
    addresses = frame[22:54] if v6 else frame[26:34]
    length = len(frame) - start
    pseudo = bytes(addresses) + length.to_bytes(4, "big") + bytes([0, 0, 0, 6 if offset == 16 else 17])
    frame[start + offset : start + offset + 2] = (scapy_checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(frame), Offload(NEEDS_CSUM, csum_start=start, csum_offset=offset)


def finished(frame: bytes, offload: Offload) -> bytes:
    """Do what the network card would: sum from csum_start on, the field's partial sum included."""
    data = bytearray(frame)
    at = offload.csum_start + offload.csum_offset
    total = scapy_checksum(bytes(data[offload.csum_start :])) or (0xFFFF if offload.csum_offset == 6 else 0)
    data[at : at + 2] = total.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("payload", [request(data=b"odd"), query(b"even")])
def test_partial_checksum_pseudo_header_is_updated(backend: str, client: str, payload: Packet) -> None:
    """Rule 8.20, translation: what the card finishes afterwards is right."""
    frame, offload = partial(from_client(payload, client))
    result = Box(backend).send(frame, offload=offload._replace(flags=NEEDS_CSUM | 2))
    assert (result.verdict, result.offloads) == ("forward", [offload])
    assert_checksums(finished(result.out[0][1], offload))


def test_partial_checksum_is_finished_before_cutting(backend: str) -> None:
    """
    Rule 8.20, translation, and rule 12.2, frames over the MTU: no card can finish the checksum of a datagram in
    pieces.
    """
    frame, offload = partial(from_client(query(bytes(range(256)) * 5)))
    result = Box(backend, next_hops=make_next_hops(mtu=SMALL)).send(frame, offload=offload)
    assert result.offloads == [None] * 3
    whole = IP(bytes(defragment([Ether(out)[IP] for _, out in result.out])[0]))
    assert_checksums(bytes(Ether() / whole))


BAD_OFFLOADS = [
    Offload(NEEDS_CSUM, csum_start=35, csum_offset=16),
    Offload(NEEDS_CSUM, csum_start=34, csum_offset=6),
    Offload(NEEDS_CSUM, TCPV6, 54, 1000, 34, 16),
    Offload(NEEDS_CSUM, UDP_L4, 54, 1000, 34, 16),
    Offload(NEEDS_CSUM, 3, 54, 1000, 34, 16),
    Offload(NEEDS_CSUM, TCPV4, 54, 0, 34, 16),
]


@pytest.mark.parametrize("offload", BAD_OFFLOADS)
def test_offload_that_does_not_fit_is_dropped(backend: str, offload: Offload) -> None:
    """Rule 7, L4 headers: never pass on an order to write a checksum in the wrong place."""
    assert Box(backend).send(from_client(request()), offload=offload).reason == "bad_offload"


@pytest.mark.parametrize("offload", [Offload(), Offload(flags=2), Offload(gso_type=0x80)])
def test_offload_that_asks_nothing_is_not_passed_on(backend: str, offload: Offload) -> None:
    """Rule 1, inputs and outcome: neither partial nor GSO is output as absent."""
    assert Box(backend).send(from_client(request()), offload=offload).offloads == [None]


@pytest.mark.parametrize(("client", "gso"), [(CLIENT, TCPV4), (CLIENT, TCPV4 | 0x80), (CLIENT6, TCPV6)])
def test_gso_passes_whole_with_its_header(backend: str, client: str, gso: int) -> None:
    """Rule 12.2, frames over the MTU: larger than the MTU, but its segments are not."""
    box = Box(backend)
    open_flow(box, client)
    frame, offload = partial(from_client(request("PA", 1001, 5001, bytes(20000)), client))
    header = 74 if ":" in client else 54
    offload = offload._replace(gso_type=gso, gso_size=1500 - header + 14, hdr_len=header)
    result = box.send(frame, offload=offload)
    assert (result.verdict, len(result.out[0][1]), result.offloads) == ("forward", len(frame), [offload])
    assert_checksums(finished(result.out[0][1], offload))
    too_long = offload._replace(gso_size=offload.gso_size + 1)
    result = box.send(frame, offload=too_long)
    if ":" in client:
        assert result.reason == "too_big"
    else:
        assert result.offloads == [offload]


def test_gso_tcp_with_df_is_told_the_mtu(backend: str) -> None:
    """Rule 12.2, frames over the MTU: segments too long for the way out; nothing to cut when DF forbids it."""
    box = Box(backend, next_hops=make_next_hops(mtu=1000))
    open_flow(box)
    frame, offload = partial(from_client(request("A", 1001, 5001, bytes(4000)), flags="DF"))
    offload = offload._replace(gso_type=TCPV4, gso_size=961, hdr_len=54)
    assert box.send(frame, offload=offload).reason == "too_big"
    assert box.send(frame, offload=offload._replace(gso_size=960)).verdict == "forward"


def test_gso_udp_segments_are_never_cut_elsewhere(backend: str) -> None:
    """Rule 12.2, frames over the MTU: the borders of datagrams carry meaning."""
    box = Box(backend, next_hops=make_next_hops(mtu=1000))
    frame, offload = partial(from_client(query(bytes(4000))))
    offload = offload._replace(gso_type=UDP_L4, gso_size=973, hdr_len=42)
    assert box.send(frame, offload=offload).reason == "too_big"
    assert box.send(frame, offload=offload._replace(gso_size=972)).verdict == "forward"


def test_route_most_specific_first_of_equals_through_gateway(backend: str) -> None:
    """Rule 11, next hop: as the kernel's table says, to the gateway's MAC."""
    near, far = mac_bytes("aa:aa:aa:00:01:fe"), mac_bytes("aa:aa:aa:00:01:fd")
    hops = NextHops(
        (
            Route(ip_network("0.0.0.0/0"), 0, ip_address("198.18.1.254")),
            Route(ip_network("192.0.2.0/24"), 1, ip_address("198.18.2.254")),
            Route(ip_network("192.0.2.0/24"), 1, ip_address("198.18.2.253")),
        ),
        (Neighbour(1, ip_address("198.18.2.254"), near), Neighbour(0, ip_address("198.18.1.254"), far)),
    )
    box = Box(backend, make_snapshot(transit="forward"), hops)
    for destination, interface, mac in (("192.0.2.7", "eth1", near), ("192.0.3.7", "eth0", far)):
        result = box.send(from_client(query(), CLIENT, destination))
        assert (result.out[0][0], result.out[0][1][:6]) == (interface, mac)


def test_server_mac_from_the_configuration_needs_no_neighbour(backend: str) -> None:
    """Rule 11, next hop: nor a route: interface 0."""
    box = Box(backend, make_snapshot(server_macs=True), NextHops())
    assert only_frame(box.send(from_client(request()))).dst == SERVER_MACS[31]
    assert Box(backend, next_hops=NextHops()).send(from_client(request())).reason == "no_route"


@pytest.mark.parametrize(("client", "server"), [(CLIENT, SERVERS[0]), (CLIENT6, SERVERS6[0])])
def test_neighbour_unresolved_three_packets_wait_and_leave_in_order(backend: str, client: str, server: str) -> None:
    """Rule 11, next hop: the hop is asked for once, up to 3 packets wait, `tick` sends them when it is known."""
    box = Box(backend, make_snapshot(slots=(0,)), make_next_hops(without=(*SERVERS, *SERVERS6)))
    results = [box.send(from_client(query(bytes([i])), client)) for i in range(4)]
    assert [(r.verdict, r.reason) for r in results] == [("hold", "neighbour")] * 3 + [("drop", "neighbour_unresolved")]
    assert (results[0].server, results[0].out) == ("server1", [])
    assert box.path.take_unresolved() == [(0, ip_address(server))]
    assert box.path.take_unresolved() == []
    assert box.tick() == []
    box.path.set_next_hops(make_next_hops())
    sent = box.tick()
    assert [bytes(Ether(frame)[UDP].payload)[:1] for _, frame, _ in sent] == [b"\0", b"\1", b"\2"]
    assert {(name, Ether(frame).dst) for name, frame, _ in sent} == {("eth0", SERVER_MACS[31])}
    for _, frame, _ in sent:
        assert_checksums(frame)
    assert box.counters()["verdicts"] == {"hold.neighbour": 3, "drop.neighbour_unresolved": 1, "forward": 3}
    assert box.counters()["tx_packets"] == 3


def test_neighbour_that_never_answers_times_out(backend: str) -> None:
    """Rule 11, next hop: after 3 s, then the hop may be asked for again."""
    box = Box(backend, next_hops=make_next_hops(without=SERVERS))
    box.send(from_client(query()))
    box.now += 3 * 10**9 - 1
    assert box.tick() == []
    assert "drop.neighbour_timeout" not in box.counters()["verdicts"]
    box.now += 1
    box.path.set_next_hops(make_next_hops())
    [(name, frame, offload)] = box.tick()
    told = Ether(frame)
    assert (name, offload, told.dst, told[IP].src, told[IP].dst) == ("eth0", None, CLIENT_MAC, VIP, CLIENT)
    assert (told[ICMP].type, told[ICMP].code) == (3, 1)
    assert box.counters()["verdicts"]["reply.neighbour_timeout"] == 1
    assert box.path.take_unresolved() == []


def test_neighbour_failed_is_answered_at_once_and_asked_once_more(backend: str) -> None:
    """
    Rule 11.4, unreachable servers: who comes within 3 s of the failure does not wait 3 s; then packets wait again.
    """
    box = Box(backend, make_snapshot(slots=(0,)), next_hops=make_next_hops(without=SERVERS))
    box.send(from_client(query()))
    box.path.take_unresolved()
    box.now += 3 * 10**9
    results = [box.send(from_client(query(bytes([i])))) for i in range(3)]
    assert [(r.verdict, r.reason) for r in results] == [("reply", "neighbour_unresolved")] * 3
    assert [len(r.out) for r in results] == [1, 1, 1]
    assert box.path.take_unresolved() == [(0, ip_address(SERVERS[0]))]
    assert len(box.tick()) == 1
    box.now += 3 * 10**9
    assert box.send(from_client(query())).reason == "neighbour"
    assert box.path.take_unresolved() == [(0, ip_address(SERVERS[0]))]
    verdicts = box.counters()["verdicts"]
    assert verdicts == {"hold.neighbour": 2, "reply.neighbour_timeout": 1, "reply.neighbour_unresolved": 3}
    assert box.counters()["tx_packets"] == 4


def test_neighbour_failed_makes_room_for_another(backend: str) -> None:
    """Rule 11.3, unresolved neighbours: hops that failed are remembered only while no other needs their place."""
    hops = NextHops((Route(ip_network("10.0.0.0/8"), 1),))
    box = Box(backend, make_snapshot(transit="forward"), hops)
    for i in range(256):
        box.send(from_client(query(), CLIENT, f"10.0.0.{i}"))
    box.now += 3 * 10**9
    reasons = [box.send(from_client(query(), CLIENT, f"10.0.1.{i}")).reason for i in range(256)]
    assert reasons == ["neighbour"] * 256
    assert box.send(from_client(query(), CLIENT, "10.0.2.1")).reason == "neighbour_unresolved"
    assert box.counters()["verdicts"]["drop.neighbour_timeout"] == 256


def test_neighbour_hops_are_bounded(backend: str) -> None:
    """Rule 11.3, unresolved neighbours: 256 hops at a time."""
    hops = NextHops((Route(ip_network("10.0.0.0/8"), 1),))
    box = Box(backend, make_snapshot(transit="forward"), hops)
    frames = [from_client(query(), CLIENT, f"10.0.{i // 256}.{i % 256}") for i in range(1, 259)]
    reasons = [box.send(frame).reason for frame in frames]
    assert reasons == ["neighbour"] * 256 + ["neighbour_unresolved"] * 2
    assert len(box.path.take_unresolved()) == 256


def test_neighbour_changed_mac_is_used_at_once(backend: str) -> None:
    """Rule 11, next hop: the next packet goes to the new MAC."""
    box = Box(backend, make_snapshot(slots=(0,)))
    box.send(from_client(query()))
    base = make_next_hops()
    moved = tuple(
        replace(each, mac=b"\2\2\2\2\2\2") if str(each.address) == SERVERS[0] else each for each in base.neighbours
    )
    box.path.set_next_hops(replace(base, neighbours=moved))
    assert box.send(from_client(query())).out[0][1][:6] == b"\2\2\2\2\2\2"


def test_fragments_of_one_packet_wait_as_one(backend: str) -> None:
    """Rule 11.3, unresolved neighbours: cutting comes before waiting."""
    box = Box(backend, next_hops=make_next_hops(mtu=SMALL, without=SERVERS))
    assert [box.send(from_client(query(bytes(1500)))).reason for _ in range(4)] == ["neighbour"] * 3 + [
        "neighbour_unresolved"
    ]
    box.path.set_next_hops(make_next_hops())
    sent = box.tick()
    assert len(sent) == 9
    assert box.counters()["verdicts"]["forward"] == 3
