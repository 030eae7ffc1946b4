"""ARP and neighbour discovery: who answers for a VIP (docs/rules.md rule 4, ARP and neighbour discovery)."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw
from scene import CLIENT_MAC, ETH0, ROUTER_MAC, V4, V6, Case, ether, tag

BROADCAST = "ff:ff:ff:ff:ff:ff"
QUIET = {"interfaces": [{**ETH0, "announce": False}]}
SOLICITED_NODE = "ff02::1:ff00:100"
SOLICITED_MAC = "33:33:ff:00:01:00"


def cases() -> list[Case]:
    """Make the cases."""
    return [*_arp(), *_bad_arp(), *_solicitations(), *_not_answered()]


def _request(target: str, dst: str = BROADCAST, tags: tuple[Packet, ...] = (), **fields: Any) -> bytes:
    arp = ARP(op=1, hwsrc=CLIENT_MAC, psrc=V4.client, hwdst="00:00:00:00:00:00", pdst=target, **fields)
    return ether(CLIENT_MAC, dst, arp, tags=tags)


def _arp() -> list[Case]:
    answer = ARP(op=2, hwsrc=ROUTER_MAC, psrc=V4.vip, hwdst=CLIENT_MAC, pdst=V4.client)
    case = Case("an ARP request for a VIP is answered, broadcast and unicast", ["4"], "RFC 826")
    case.reply(_request(V4.vip), "arp", ether(ROUTER_MAC, CLIENT_MAC, answer))
    case.reply(_request(V4.vip, ROUTER_MAC), "arp", ether(ROUTER_MAC, CLIENT_MAC, answer))
    case.reply(_request(V4.vip) + bytes(18), "arp", ether(ROUTER_MAC, CLIENT_MAC, answer))
    tagged = Case("the answer to a tagged ARP request carries the same tag", ["3.4", "4"])
    tagged.reply(_request(V4.vip, tags=(tag(42),)), "arp", ether(ROUTER_MAC, CLIENT_MAC, answer, tags=(tag(42),)))
    probe = Case("an ARP probe for a VIP is answered", ["4"], "RFC 5227 section 2.1.1")
    asked = ARP(op=1, hwsrc=CLIENT_MAC, psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=V4.vip)
    told = ARP(op=2, hwsrc=ROUTER_MAC, psrc=V4.vip, hwdst=CLIENT_MAC, pdst="0.0.0.0")
    probe.reply(ether(CLIENT_MAC, BROADCAST, asked), "arp", ether(ROUTER_MAC, CLIENT_MAC, told))
    host = Case("ARP that is not a request for a VIP is the host's affair", ["4"])
    host.passes(_request(V4.router))
    host.passes(_request(V4.servers[0]))
    host.passes(
        ether(CLIENT_MAC, ROUTER_MAC, ARP(op=2, hwsrc=CLIENT_MAC, psrc=V4.client, hwdst=ROUTER_MAC, pdst=V4.router))
    )
    host.passes(ether(CLIENT_MAC, BROADCAST, ARP(op=2, hwsrc=CLIENT_MAC, psrc=V4.vip, hwdst=BROADCAST, pdst=V4.vip)))
    quiet = Case("an ARP request for a VIP is left alone on an interface that does not announce", ["4"], **QUIET)
    quiet.passes(_request(V4.vip))
    return [case, tagged, probe, host, quiet]


def _bad_arp() -> list[Case]:
    case = Case("malformed ARP is dropped", ["4"], "RFC 826")
    whole = _request(V4.vip)
    case.drop(whole[: 14 + 27], "bad_arp")
    case.drop(whole[:14], "bad_arp")
    case.drop(_request(V4.vip, hwtype=6), "bad_arp")
    for offset, value in ((14 + 2, 0x86), (14 + 4, 8), (14 + 5, 16)):
        broken = bytearray(whole)
        broken[offset] = value
        case.drop(bytes(broken), "bad_arp")
    return [case]


def _solicitation(
    target: str, src: str, dst: str, dst_mac: str, hlim: int = 255, code: int = 0, **fields: Any
) -> bytes:
    message = ICMPv6ND_NS(tgt=target, code=code, **fields)
    if src != "::":
        message = message / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)
    return ether(CLIENT_MAC, dst_mac, IPv6(src=src, dst=dst, hlim=hlim) / message)


def _advertisement(dst: str, dst_mac: str, solicited: int, tags: tuple[Packet, ...] = ()) -> bytes:
    message = ICMPv6ND_NA(tgt=V6.vip, R=0, S=solicited, O=1) / ICMPv6NDOptDstLLAddr(lladdr=ROUTER_MAC)
    return ether(ROUTER_MAC, dst_mac, IPv6(src=V6.vip, dst=dst, hlim=255) / message, tags=tags)


def _solicitations() -> list[Case]:
    case = Case("a neighbour solicitation for a VIP is answered", ["4"], "RFC 4861 section 7.2.4")
    answer = _advertisement(V6.client, CLIENT_MAC, 1)
    case.reply(_solicitation(V6.vip, V6.client, SOLICITED_NODE, SOLICITED_MAC), "nd", answer)
    case.reply(_solicitation(V6.vip, V6.client, V6.vip, ROUTER_MAC), "nd", answer)
    local = Case("a neighbour solicitation from a link-local source is answered", ["4"], "RFC 4861 section 7.2.4")
    local.reply(
        _solicitation(V6.vip, "fe80::21", SOLICITED_NODE, SOLICITED_MAC),
        "nd",
        _advertisement("fe80::21", CLIENT_MAC, 1),
    )
    probe = Case("duplicate address detection for a VIP is answered to all nodes", ["4"], "RFC 4861 section 7.2.4")
    probe.reply(
        _solicitation(V6.vip, "::", SOLICITED_NODE, SOLICITED_MAC),
        "nd",
        _advertisement("ff02::1", "33:33:00:00:00:01", 0),
    )
    return [case, local, probe]


def _not_answered() -> list[Case]:
    case = Case(
        "a neighbour solicitation that is not valid, or not for a VIP, is the host's affair",
        ["4"],
        "RFC 4861 section 7.1.1",
    )
    case.passes(_solicitation(V6.router, V6.client, SOLICITED_NODE, SOLICITED_MAC))
    case.passes(_solicitation(V6.vip, V6.client, SOLICITED_NODE, SOLICITED_MAC, hlim=254))
    case.passes(_solicitation(V6.vip, V6.client, SOLICITED_NODE, SOLICITED_MAC, code=1))
    case.passes(_solicitation(V6.vip, V6.client, SOLICITED_NODE, SOLICITED_MAC, cksum=0x1234))
    short = IPv6(src=V6.client, dst=SOLICITED_NODE, hlim=255, nh=58) / Raw(
        bytes(IPv6(src=V6.client, dst=SOLICITED_NODE) / ICMPv6ND_NS(tgt=V6.vip))[40:63]
    )
    case.passes(ether(CLIENT_MAC, SOLICITED_MAC, short))
    routed = Case(
        "a neighbour solicitation that crossed a router is dropped at the VIP", ["10", "4"], "RFC 4861 section 7.1.1"
    )
    routed.drop(_solicitation(V6.vip, V6.client, V6.vip, ROUTER_MAC, hlim=254), "icmp_type")
    quiet = Case("a neighbour solicitation for a VIP is left alone where it is not announced", ["4"], **QUIET)
    quiet.passes(_solicitation(V6.vip, V6.client, SOLICITED_NODE, SOLICITED_MAC))
    return [case, routed, quiet]
