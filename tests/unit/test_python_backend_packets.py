"""What is dropped, passed or answered before any flow: Ethernet, ARP, ND, addresses, classification, transit."""

from __future__ import annotations

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    FAR,
    FAR6,
    FAR_MAC,
    ROUTER,
    ROUTER6,
    ROUTER_MAC,
    ROUTER_MAC_1,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Box,
    assert_checksums,
    from_client,
    load_backend,
    make_snapshot,
    only_frame,
    query,
    request,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from lb.packet.announcement import frames_for_announcement

BROADCAST = "ff:ff:ff:ff:ff:ff"


def frame(packet: object, src: str = CLIENT_MAC, dst: str = ROUTER_MAC) -> bytes:
    return bytes(Ether(src=src, dst=dst) / packet)


def v4(src: str = CLIENT, dst: str = VIP) -> bytes:
    return frame(IP(src=src, dst=dst) / request())


def v6(src: str = CLIENT6, dst: str = VIP6) -> bytes:
    return frame(IPv6(src=src, dst=dst) / request())


CASES = [
    ("own frame", 18, frame(IP(src=CLIENT, dst=VIP) / request(), src=ROUTER_MAC), "drop", "own_frame"),
    ("group source", 18, frame(IP(src=CLIENT, dst=VIP) / request(), src="01:00:5e:00:00:01"), "drop", "bad_source_mac"),
    ("another MAC", 18, frame(IP(src=CLIENT, dst=VIP) / request(), dst="aa:aa:aa:00:00:02"), "drop", "not_for_us"),
    ("unicast in broadcast", 18, frame(IP(src=CLIENT, dst=VIP) / request(), dst=BROADCAST), "drop", "l2_broadcast"),
    ("other EtherType", 3, bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC, type=0x88CC)) + b"lldp", "pass", None),
    ("multicast", 5, v4(dst="224.0.0.251"), "pass", None),
    ("limited broadcast", 5, frame(IP(src=CLIENT, dst="255.255.255.255") / query(), dst=BROADCAST), "pass", None),
    ("directed broadcast", 5, v4(dst="198.18.1.255"), "pass", None),
    ("IPv6 multicast", 5, v6(dst="ff02::1"), "pass", None),
    ("IPv6 link-local", 5, v6(src="fe80::1", dst="fe80::2"), "pass", None),
    ("to the router", 5, v4(dst=ROUTER), "pass", None),
    ("to the router by IPv6", 5, v6(dst=ROUTER6), "pass", None),
    ("from 0/8", 16, v4("0.1.2.3"), "drop", "martian_source"),
    ("from 127/8", 16, v4("127.0.0.1"), "drop", "martian_source"),
    ("from 224/4", 16, v4("239.1.2.3"), "drop", "martian_source"),
    ("from 240/4", 16, v4("240.0.0.1"), "drop", "martian_source"),
    ("from broadcast", 16, v4("255.255.255.255"), "drop", "martian_source"),
    ("from the VIP", 16, v4(VIP), "drop", "martian_source"),
    ("from the router", 16, v4(ROUTER), "drop", "martian_source"),
    ("from the other interface's address", 16, v4("198.18.2.1"), "drop", "martian_source"),
    ("from a directed broadcast", 16, v4("198.18.2.255"), "drop", "martian_source"),
    ("from ::", 16, v6("::"), "drop", "martian_source"),
    ("from ::1", 16, v6("::1"), "drop", "martian_source"),
    ("from ff00::/8", 16, v6("ff05::1"), "drop", "martian_source"),
    ("from v4-mapped", 16, v6("::ffff:1.2.3.4"), "drop", "martian_source"),
    ("from link-local to global", 16, v6("fe80::1"), "drop", "martian_source"),
    ("from the IPv6 VIP", 16, v6(VIP6), "drop", "martian_source"),
    ("to 0/8", 16, v4(dst="0.0.0.1"), "drop", "martian_destination"),
    ("to 127/8", 16, v4(dst="127.0.0.1"), "drop", "martian_destination"),
    ("to 240/4", 16, v4(dst="250.0.0.1"), "drop", "martian_destination"),
    ("to ::1", 16, v6(dst="::1"), "drop", "martian_destination"),
    ("to v4-mapped", 16, v6(dst="::ffff:1.2.3.4"), "drop", "martian_destination"),
    ("VIP, no such port", 22, frame(IP(src=CLIENT, dst=VIP) / TCP(sport=1, dport=1)), "drop", "no_service"),
    (
        "VIP, other protocol of the port",
        22,
        frame(IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=9876)),
        "drop",
        "no_service",
    ),
    ("VIP, GRE", 22, frame(IP(src=CLIENT, dst=VIP, proto=47) / Raw(b"1234")), "drop", "l4_protocol"),
    ("VIP, nothing in IPv6", 22, frame(IPv6(src=CLIENT6, dst=VIP6, nh=59)), "drop", "l4_protocol"),
    ("echo to the VIP", 22, frame(IP(src=CLIENT, dst=VIP) / ICMP()), "drop", "vip_echo"),
    ("echo to the IPv6 VIP", 22, frame(IPv6(src=CLIENT6, dst=VIP6) / ICMPv6EchoRequest()), "drop", "vip_echo"),
    ("echo to a server", 7, frame(IP(src=CLIENT, dst=SERVERS[0]) / ICMP()), "drop", "server_echo"),
    (
        "echo to an IPv6 server",
        7,
        frame(IPv6(src=CLIENT6, dst=SERVERS6[0]) / ICMPv6EchoRequest()),
        "drop",
        "server_echo",
    ),
    ("short ICMP", 10, frame(IP(src=CLIENT, dst=FAR, proto=1) / Raw(b"\x08\0\0\0\0\0\0")), "drop", "l4_truncated"),
    ("transit", 22, v4(dst=FAR), "drop", "transit"),
    ("transit of an unknown protocol", 9, frame(IP(src=CLIENT, dst=FAR, proto=89) / Raw(b"x")), "drop", "transit"),
    ("short ARP", 4, frame(Raw(bytes(ARP())[:27])).replace(b"\x90\x00", b"\x08\x06", 1), "drop", "bad_arp"),
    ("ARP of another kind", 4, frame(ARP(hwtype=6)), "drop", "bad_arp"),
    ("ARP reply", 4, frame(ARP(op=2, pdst=VIP)), "pass", None),
    ("ARP for the router", 4, frame(ARP(op=1, pdst=ROUTER), dst=BROADCAST), "pass", None),
]


@pytest.mark.parametrize(("name", "line", "data", "verdict", "reason"), CASES, ids=[row[0] for row in CASES])
def test_packet_before_flows_gets_its_verdict(
    backend: str, name: str, line: int, data: bytes, verdict: str, reason: str | None
) -> None:
    """
    Rule 5.4, martian sources; rule 3, Ethernet and VLAN; rule 7.A, to a VIP: one verdict, one reason, one counter; and
    nothing is sent.
    """
    box = Box(backend)
    result = box.send(data)
    assert (result.verdict, result.reason, result.out) == (verdict, reason, [])
    assert (result.direction, result.service, result.server) == (None, None, None)
    key = verdict if reason is None else f"{verdict}.{reason}"
    assert box.counters()["verdicts"] == {key: 1}
    assert (box.counters()["rx_bytes"], box.counters()["tx_packets"]) == (len(data), 0)


def test_server_address_from_another_interface_is_dropped(backend: str) -> None:
    """Rule 5.4, martian sources: a server's address arriving where the server is not."""
    box = Box(backend)
    spoofed = Ether(src=FAR_MAC, dst=ROUTER_MAC_1) / IP(src=SERVERS[1], dst=CLIENT) / request()
    assert box.send(spoofed, interface=1).reason == "spoofed_server"


def test_arp_request_for_the_vip_is_answered(backend: str) -> None:
    """Rule 4, ARP and neighbour discovery: in the VIP's name, with the tag that the request had."""
    box = Box(backend)
    ask = Ether(src=CLIENT_MAC, dst=BROADCAST) / Dot1Q(vlan=9) / ARP(op=1, hwsrc=CLIENT_MAC, psrc=CLIENT, pdst=VIP)
    result = box.send(bytes(ask) + bytes(14))
    assert (result.verdict, result.reason, len(result.out)) == ("reply", "arp", 1)
    expected = Ether(src=ROUTER_MAC, dst=CLIENT_MAC) / Dot1Q(vlan=9)
    expected = expected / ARP(op=2, hwsrc=ROUTER_MAC, psrc=VIP, hwdst=CLIENT_MAC, pdst=CLIENT)
    assert result.out == [("eth0", bytes(expected))]


def test_arp_without_announce_is_the_hosts_affair(backend: str) -> None:
    """Rule 4, ARP and neighbour discovery: eth1 does not announce."""
    ask = Ether(src=FAR_MAC, dst=BROADCAST) / ARP(op=1, hwsrc=FAR_MAC, psrc=FAR, pdst=VIP)
    assert Box(backend).send(ask, interface=1).verdict == "pass"


def solicitation(source: str, target: str = VIP6, hop_limit: int = 255, code: int = 0) -> Ether:
    packet = IPv6(src=source, dst="ff02::1:ff00:100", hlim=hop_limit) / ICMPv6ND_NS(tgt=target, code=code)
    return Ether(src=CLIENT_MAC, dst="33:33:ff:00:01:00") / packet


@pytest.mark.parametrize(
    ("source", "mac", "destination", "solicited"),
    [
        ("fe80::21", CLIENT_MAC, "fe80::21", 1),
        (CLIENT6, CLIENT_MAC, CLIENT6, 1),
        ("::", "33:33:00:00:00:01", "ff02::1", 0),
    ],
)
def test_neighbour_solicitation_for_the_vip_is_answered(
    backend: str, source: str, mac: str, destination: str, solicited: int
) -> None:
    """Rule 4, ARP and neighbour discovery, for IPv6: RFC 4861 7.2.4, duplicate address detection included."""
    result = Box(backend).send(solicitation(source))
    assert (result.verdict, result.reason) == ("reply", "nd")
    sent = only_frame(result)
    assert (sent.src, sent.dst, sent[IPv6].src, sent[IPv6].dst, sent[IPv6].hlim) == (
        ROUTER_MAC,
        mac,
        VIP6,
        destination,
        255,
    )
    advert = sent[ICMPv6ND_NA]
    assert (advert.tgt, advert.S, advert.O, advert.R) == (VIP6, solicited, 1, 0)
    assert sent[ICMPv6NDOptDstLLAddr].lladdr == ROUTER_MAC


@pytest.mark.parametrize(
    "ask",
    [
        solicitation(CLIENT6, hop_limit=254),
        solicitation(CLIENT6, code=1),
        solicitation(CLIENT6, target=ROUTER6),
        bytes(solicitation(CLIENT6))[:-1] + b"\x01",
    ],
    ids=["hop limit", "code", "other target", "checksum"],
)
def test_neighbour_solicitation_not_ours_is_passed(backend: str, ask: object) -> None:
    """RFC 4861 7.1.1: what is not valid, or not about a VIP, is left to the host."""
    assert Box(backend).send(ask).verdict == "pass"


@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_echo_to_the_vip_is_answered_when_configured(backend: str, size: int) -> None:
    """Rule 7.A, to a VIP: the same bytes come back from the VIP."""
    data = bytes(i % 256 for i in range(size))
    box = Box(backend, make_snapshot(answer_echo=True))
    sent = only_frame(box.send(from_client(ICMP(id=7, seq=9) / Raw(data), tos=4)))
    assert (sent.dst, sent[IP].src, sent[IP].dst, sent[IP].ttl, sent[IP].tos) == (CLIENT_MAC, VIP, CLIENT, 64, 0)
    assert (sent[ICMP].type, sent[ICMP].id, sent[ICMP].seq, bytes(sent[ICMP].payload)) == (0, 7, 9, data)
    sent = only_frame(box.send(from_client(ICMPv6EchoRequest(id=7, seq=9, data=data), CLIENT6)))
    assert (sent[IPv6].src, sent[IPv6].hlim, sent[2].type, sent[2].data) == (VIP6, 64, 129, data)


@pytest.mark.parametrize(("source", "destination"), [(CLIENT, FAR), (CLIENT6, FAR6)])
def test_transit_forward_routes_on(backend: str, source: str, destination: str) -> None:
    """Rule 9, transit: TTL less one, nothing else changed, out through the other interface."""
    box = Box(backend, make_snapshot(transit="forward"))
    result = box.send(from_client(query(), source, destination, ttl=9))
    assert (result.verdict, result.direction, result.out[0][0]) == ("forward", None, "eth1")
    sent = only_frame(result)
    assert (sent.src, sent.dst, sent[1].src, sent[1].dst) == (ROUTER_MAC_1, FAR_MAC, source, destination)
    assert (sent[1].hlim if ":" in source else sent[1].ttl) == 8
    assert (
        box.send(from_client(query(), source, "192.0.2.1" if "." in source else "2001:db8:9::1")).reason == "no_route"
    )


def test_transit_forward_never_routes_a_vip_port_on(backend: str) -> None:
    """Rule 7.A, to a VIP: packets to a VIP on a port of no service are dropped, whatever transit says."""
    box = Box(backend, make_snapshot(transit="forward"))
    assert box.send(from_client(TCP(sport=1, dport=1))).reason == "no_service"


def test_announcement_names_every_vip_on_announcing_interfaces() -> None:
    """Rule 4, ARP and neighbour discovery: gratuitous ARP and unsolicited advertisements, once per VIP."""
    frames = frames_for_announcement(make_snapshot())
    assert [interface for interface, _ in frames] == [0, 0]
    arp, advert = (Ether(data) for _, data in frames)
    assert (arp.src, arp.dst) == (ROUTER_MAC, BROADCAST)
    assert (arp[ARP].op, arp[ARP].psrc, arp[ARP].pdst, arp[ARP].hwsrc) == (1, VIP, VIP, ROUTER_MAC)
    assert (advert.dst, advert[IPv6].src, advert[IPv6].dst) == ("33:33:00:00:00:01", VIP6, "ff02::1")
    assert (advert[ICMPv6ND_NA].tgt, advert[ICMPv6ND_NA].S, advert[ICMPv6ND_NA].O) == (VIP6, 0, 1)
    assert_checksums(frames[1][1])


def test_backend_says_its_name(backend: str) -> None:
    """So that logs and results can tell which one worked."""
    assert backend == load_backend(backend).NAME
