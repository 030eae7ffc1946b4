"""UDP through a service, and its checksum rules (docs/rules.md rule 7, L4 headers, and rule 8, flows)."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import UDP
from scene import (
    BOTH,
    CLIENT2_MAC,
    CLIENT_MAC,
    ETH0,
    ETH1,
    GATEWAY_MAC,
    ROUTER_MAC,
    ROUTES,
    STRANGER,
    V4,
    Case,
    Family,
    Talk,
    dns_service,
    ether,
    icmp_error,
    pattern,
    udp,
)


def cases() -> list[Case]:
    """Make the cases."""
    made = [*_vectors()]
    for f in BOTH:
        made += [*_life(f), *_unreplied(f), *_last_hop(f), *_lengths(f), *_answers(f), *_checksums(f), *_leaving(f)]
    return made


def _vectors() -> list[Case]:
    """The two known vectors of rule 8.20, translation, seen through a service."""
    service = dns_service(V4, address="203.0.113.10", server_address="10.0.0.11")
    hops = {
        "services": [service],
        "routes": [{"prefix": "10.0.0.0/24", "interface": "eth0"}],
        "neighbours": [["eth0", "10.0.0.11", "aa:aa:aa:00:00:11"]],
    }
    case = Case("a computed UDP checksum of 0 is sent as FFFF", ["8.20"], "rule 8.20, translation; RFC 768", **hops)
    talk = Talk(
        case,
        V4,
        "udp",
        client="198.51.100.7",
        vip="203.0.113.10",
        mac=GATEWAY_MAC,
        server_address="10.0.0.11",
        server_mac="aa:aa:aa:00:00:11",
    )
    incoming, outgoing = talk.c_in(udp(b"\x1a\x6b")), talk.c_out(udp(b"\x1a\x6b"))
    assert incoming[40:42] == b"\xe2\xb3", incoming[40:42].hex()
    assert outgoing[40:42] == b"\xff\xff", outgoing[40:42].hex()
    case.forward(incoming, outgoing, **talk.names)

    # RFC 1624 section 4: its equation 3 gives 0000 where RFC 1141's arithmetic gives FFFF.
    service = dns_service(V4, address="203.0.85.85", server_address="203.0.50.133")
    case2 = Case(
        "an updated IPv4 header checksum of 0 is sent as 0, not FFFF",
        ["8.20"],
        "RFC 1624 section 4",
        services=[service],
        routes=[{"prefix": "203.0.0.0/16", "interface": "eth0"}],
        neighbours=[["eth0", "203.0.50.133", "aa:aa:aa:00:00:11"]],
    )
    talk = Talk(
        case2,
        V4,
        "udp",
        client="198.51.100.7",
        vip="203.0.85.85",
        mac=GATEWAY_MAC,
        server_address="203.0.50.133",
        server_mac="aa:aa:aa:00:00:11",
    )
    # The identification that makes the outgoing header sum to FFFF, so that its checksum is 0.
    ident = next(i for i in range(65536) if talk.c_out(udp(b"x"), id=i)[24:26] == b"\0\0")
    talk.c(udp(b"x"), id=ident)
    assert talk.c_out(udp(b"x"), id=ident)[24:26] == b"\0\0"
    return [case, case2]


def _life(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"any datagram makes a flow, both directions translate, {v}", ["8", "8.20"])
    talk = Talk(case, f, "udp")
    talk.c(udp(b""))
    talk.s(udp(b"odd"))
    talk.c(udp(pattern(1001)))
    talk.s(udp(pattern(1472 if f.version == 4 else 1452)))
    case.flows(talk.flow("udp"))
    case.counters(
        events={"flow_created": 1, "flow_hit": 3, "flow_miss": 1},
        services={f.dns: {"packets_forward": 2, "packets_reply": 2}},
    )
    other = Case(f"two clients with the same port have two flows, {v}", ["8"])
    one, two = Talk(other, f, "udp"), Talk(other, f, "udp", client=f.client2, mac="aa:aa:aa:00:00:22")
    one.c(udp(b"1"))
    two.c(udp(b"2"))
    two.s(udp(b"22"))
    one.s(udp(b"11"))
    other.flows(one.flow("udp"), two.flow("udp"))
    stranger = Case(f"a datagram from a server without a flow is dropped, {v}", ["8.15"])
    stranger.drop(Talk(stranger, f, "udp").s_in(udp(b"x")), "no_flow")
    stranger.flows()
    return [case, other, stranger]


def _unreplied(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"a UDP flow counts as active once its server has answered, {v}", ["8.8", "8.12", "8.17"])
    talk = Talk(case, f, "udp")
    for second in (0, 1, 2):
        case.at(second * 1000)
        talk.c(udp(b"q"))
        case.flows(talk.flow("udp-unreplied", idle_s=0.0))
        case.counters(services={f.dns: {"flows_created": 1, "flows_active": 0}})
    case.at(3000)
    talk.s(udp(b"a"))
    case.flows(talk.flow("udp", idle_s=0.0))
    case.counters(services={f.dns: {"flows_active": 1}}, servers={f"{f.dns}/{f.dns_server}": {"flows_active": 1}})
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))
    case.counters(services={f.dns: {"flows_created": 1, "flows_active": 1}}, events={"flow_hit": 5, "flow_closed": 0})
    case.at(303_000)
    case.tick()
    case.counters(services={f.dns: {"flows_active": 0}}, events={"flow_expired": 1})
    return [case]


def _last_hop(f: Family) -> list[Case]:
    """Nothing vouches for a datagram: what it may say of the return path to its client (rule 11, next hop)."""
    v = f"IPv{f.version}"
    two = {"interfaces": [ETH0, ETH1]}
    same = Case(f"a UDP client's other MAC on its interface is followed, {v}", ["8.10", "8.13"])
    talk = Talk(same, f, "udp")
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))
    talk.mac = CLIENT2_MAC
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))

    other = Case(
        f"a datagram through an interface that its client is not routed to moves no reply, {v}", ["8.10", "8.13"], **two
    )
    talk = Talk(other, f, "udp")
    astray = Talk(other, f, "udp", mac=STRANGER, client_if="eth1")
    talk.c(udp(b"q"))
    for _ in range(2):
        astray.c(udp(b"guess"))
        talk.s(udp(b"a"))
    # It refreshes all the same.
    other.at(299_000)
    astray.c(udp(b"guess"))
    other.at(301_000)
    other.flows(talk.flow("udp", idle_s=2.0))
    talk.s(udp(b"a"))

    routed = Case(
        f"a datagram through the interface that its client is routed to moves the replies, {v}", ["11"], **two
    )
    talk = Talk(routed, f, "udp")
    before = Talk(routed, f, "udp", mac=STRANGER, client_if="eth1")
    before.c(udp(b"q"))
    before.s(udp(b"a"))
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))
    before.c(udp(b"q"))
    talk.s(udp(b"a"))
    # The route changes: now the other interface is the client's.
    prefix = f"{f.client}/{32 if f is V4 else 128}"
    routed.next_hops(routes=[*ROUTES, {"prefix": prefix, "interface": "eth1"}])
    talk.s(udp(b"a"))
    before.c(udp(b"q"))
    before.s(udp(b"a"))
    talk.c(udp(b"q"))
    before.s(udp(b"a"))

    gone = Case(f"when a UDP client's interface is gone its datagrams tell the way anew, {v}", ["11"], **two)
    # The client is routed nowhere.
    talk = Talk(gone, f, "udp", client=f.outside)
    before = Talk(gone, f, "udp", client=f.outside, mac=STRANGER, client_if="eth1")
    before.c(udp(b"q"))
    before.s(udp(b"a"))
    talk.c(udp(b"q"))
    before.s(udp(b"a"))
    gone.publish(interfaces=[ETH0])
    gone.drop(talk.s_in(udp(b"a")), "no_route", **talk.reply_names)
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))

    plan = {"selector": "hash-source", "slots": [f.dns_server]}
    none = Case(
        f"a UDP flow that its server began takes its way from the client's first datagram, {v}",
        ["8.14", "11"],
        **two,
        services=[dns_service(f, plan=plan)],
    )
    talk = Talk(none, f, "udp")
    first = Talk(none, f, "udp", mac=STRANGER, client_if="eth1")
    talk.s(udp(b"unasked"))
    first.c(udp(b"q"))
    first.s(udp(b"a"))
    return [same, other, routed, gone, none]


def _lengths(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"a UDP length below 8 or beyond the packet is dropped, {v}", ["5"], "RFC 768")
    talk = Talk(case, f, "udp")
    for length in (0, 7, 13):
        case.drop(talk.c_in(udp(b"four", len=length)), "udp_length")
    cut = Case(f"a UDP header cut short is dropped, {v}", ["5"])
    header = bytes(UDP(sport=40000, dport=53))
    for length in (0, 7):
        packet = f.ip(f.client, f.vip, **{"proto" if f.version == 4 else "nh": 17}) / header[:length]
        cut.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "l4_truncated")
    zero = Case(f"UDP port 0 is dropped, source and destination, {v}", ["5.4"])
    zero.drop(Talk(zero, f, "udp", sport=0).c_in(udp(b"x")), "port_zero")
    zero.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, f.vip) / UDP(sport=40000, dport=0)), "port_zero")
    unknown = Case(f"a datagram to a VIP's port of no service is dropped, {v}", ["7.A"], transit="forward")
    unknown.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, f.vip) / UDP(sport=40000, dport=5353)), "no_service")
    unknown.drop(ether(CLIENT_MAC, ROUTER_MAC, f.ip(f.client, f.vip) / UDP(sport=40000, dport=9876)), "no_service")
    return [case, cut, zero, unknown]


def _answers(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    none = {"plan": {"selector": "counter", "slots": []}}
    names = {"direction": "forward", "service": f.dns}
    kind = (3, 3) if f.version == 4 else (1, 4)
    case = Case(
        f"a datagram to a service without servers gets port unreachable from the VIP, {v}",
        ["8.18", "12.4"],
        services=[dns_service(f, **none)],
    )
    talk = Talk(case, f, "udp")
    for size in (0, 30, 1400):
        frame = talk.c_in(udp(pattern(size)))
        case.reply(frame, "no_server", icmp_error(f, frame, kind, f.vip, f.client), **names)
    case.flows()
    silent = Case(
        f"on_no_server = drop is silent for UDP, {v}", ["8.18"], services=[dns_service(f, on_no_server="drop", **none)]
    )
    silent.drop(Talk(silent, f, "udp").c_in(udp(b"x")), "no_server", **names)
    return [case, silent]


def _checksums(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    case = Case(f"UDP checksum 0: no checksum in IPv4, a fault in IPv6; {v}", ["8.20"], "RFC 768, RFC 8200 section 8.1")
    talk = Talk(case, f, "udp")
    if f is V4:
        talk.c(udp(b"unsummed", chksum=0))
        talk.s(udp(b"unsummed", chksum=0))
    else:
        case.drop(talk.c_in(udp(b"unsummed", chksum=0)), "udp_checksum_zero")
        case.drop(talk.s_in(udp(b"unsummed", chksum=0)), "udp_checksum_zero")
    made.append(case)
    wrong = Case(f"a wrong UDP checksum stays wrong by the same amount, {v}", ["8.20"], "RFC 1624 section 3")
    talk = Talk(wrong, f, "udp")

    def spoil(frame: bytes) -> bytes:
        where = 14 + f.header_len + 6
        value = int.from_bytes(frame[where : where + 2], "big") + 0x1111
        value = (value & 0xFFFF) + (value >> 16)
        return frame[:where] + value.to_bytes(2, "big") + frame[where + 2 :]

    wrong.forward(spoil(talk.c_in(udp(b"payload"))), spoil(talk.c_out(udp(b"payload"))), **talk.names)
    wrong.forward(spoil(talk.s_in(udp(b"answer"))), spoil(talk.s_out(udp(b"answer"))), **talk.reply_names)
    made.append(wrong)
    zero = Case(f"a reply whose computed checksum is 0 is sent as FFFF, {v}", ["8.20"], "RFC 768")
    talk = Talk(zero, f, "udp")
    talk.c(udp(b"q"))
    where = 14 + f.header_len + 6
    word = talk.s_out(udp(b"\0\0"))[where : where + 2]
    assert talk.s_out(udp(word))[where : where + 2] == b"\xff\xff"
    talk.s(udp(word))
    made.append(zero)
    return made


def _leaving(f: Family) -> list[Case]:
    """UDP flows whose server was removed, or drained for its time."""
    v = f"IPv{f.version}"
    hosts = [
        {"name": name, "address": f.servers[number], "port": 5353, "weight": 1, "mac": None}
        for number, name in enumerate((f.dns_server, "other"))
    ]

    def service(selector: str, slots: list[str], leaves: bool) -> dict[str, Any]:
        servers = [{**hosts[0], "moves_udp": leaves}, hosts[1]]
        return dns_service(f, plan={"selector": selector, "slots": slots}, servers=servers)

    made = []
    for selector in ("counter", "hash-source"):
        case = Case(f"a datagram moves its flow away from a server that leaves, {selector}, {v}", ["18.2"])
        case.setup["services"] = [service(selector, [f.dns_server], leaves=False)]
        old, new = Talk(case, f, "udp"), Talk(case, f, "udp", number=2, server="other")
        old.c(udp(b"one"))
        # Drained: the flow goes on.
        case.publish(services=[service(selector, ["other"], leaves=False)])
        old.c(udp(b"two"))
        # At the deadline: answers still pass, the next datagram goes elsewhere.
        case.publish(services=[service(selector, ["other"], leaves=True)])
        old.s(udp(b"the second one's answer"))
        new.c(udp(b"three"))
        new.s(udp(b"the third one's answer"))
        case.drop(old.s_in(udp(b"too late")), "no_flow")
        case.flows(new.flow("udp"))
        case.counters(
            events={"flow_moved": 1, "flow_created": 2},
            servers={f"{f.dns}/{f.dns_server}": {"flows_active": 0}, f"{f.dns}/other": {"flows_active": 1}},
        )
        made.append(case)
    pushed = Case(f"what only a server that leaves keeps up ends after the idle timeout, {v}", ["8.12", "18.2"])
    pushed.setup["services"] = [service("counter", [f.dns_server], leaves=False)]
    talk = Talk(pushed, f, "udp")
    talk.c(udp(b"begin"))
    pushed.at(1_000)
    talk.s(udp(b"refreshes"))
    pushed.publish(services=[service("counter", ["other"], leaves=True)])
    for now_ms in (100_000, 200_000, 300_999):
        pushed.at(now_ms)
        talk.s(udp(b"passes"))
    pushed.at(301_000)
    pushed.drop(talk.s_in(udp(b"over")), "no_flow")
    pushed.counters(events={"flow_expired": 1, "flow_moved": 0})
    alone = Case(f"a datagram of a server that leaves is refused where there is no other, {v}", ["18.2", "8.18"])
    alone.setup["services"] = [service("counter", [f.dns_server], leaves=False)]
    talk = Talk(alone, f, "udp")
    talk.c(udp(b"one"))
    alone.publish(services=[{**service("counter", [], leaves=True), "on_no_server": "drop"}])
    alone.drop(talk.c_in(udp(b"two")), "no_server", direction="forward", service=f.dns)
    alone.flows()
    return [*made, pushed, alone]
