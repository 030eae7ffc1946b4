"""
TCP of no flow: picked up by a hash, sent on stateless, refused, answered (docs/rules.md rule 8.14, client packets
of no flow, and rule 8.15, server packets of no flow).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scapy.layers.inet import TCP
from scapy.packet import Packet
from scene import (
    BOTH,
    CLIENT2_MAC,
    CLIENT_MAC,
    ETH0,
    ETH1,
    ROUTER_MAC,
    STRANGER,
    Case,
    Family,
    Talk,
    Watch,
    ether,
    hash_flow,
    hash_source,
    tcp,
    web_service,
)

SECOND = 1000
UNHEARD = 2**30
# Of a segment's window of 8192 whose scale is unknown.
UNSCALED = 8192 << 14
NO_FLOW = "RFC 9293 section 3.10.7.1"


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [
            *_from_client(f),
            *_from_server(f),
            *_windows(f),
            *_expiry(f),
            *_last_hop(f),
            *_resets(f),
            *_ends(f),
            *_refused(f),
            *_answered(f),
        ]
    return made


def _hashed(name: str, rules: list[str], f: Family, origin: str = "docs/rules.md rule 8, flows") -> tuple[Case, Talk]:
    """Make a case of a hash service, and a talk with the server that the hash names."""
    case = Case(name, rules, origin, services=[web_service(f, "hash-flow")])
    return case, Talk(case, f, number=1 + hash_flow(1, f.client, f.vip, 40000, 9876, 6) % 3)


def _active(case: Case, talk: Talk, count: int) -> None:
    case.counters(
        services={talk.service: {"flows_active": count, "flows_created": 1}},
        servers={f"{talk.service}/{talk.server}": {"flows_active": count}},
    )


def _from_client(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case, talk = _hashed(
        f"a client's ACK of no flow is unconfirmed until its server answers, {v}", ["8.14", "8.10", "8.17", "8.13"], f
    )
    talk.c(tcp("PA", 1000, 5000, b"data"))
    watch = Watch(talk, "pickup")
    _active(case, talk, 0)
    # More of the client, also from elsewhere, also its FIN.
    watch.forged_client(tcp("PA", 1004, 5000, b"data"))
    watch.forged_client(tcp("A", 77777, 99999))
    watch.forged_client(tcp("FA", 88888, 11111))
    watch.forged_client(tcp("S", 1000))
    watch.forged_server(tcp("SA", 5000, 1001))
    _active(case, talk, 0)
    # The server's numbers count for both sides, whatever the client's were.
    watch.server(tcp("A", 5000, 1008), "established")
    _active(case, talk, 1)
    watch.forged_client(tcp("A", 1008 + UNSCALED + 2, 5000))
    watch.client(tcp("A", 1008, 5000))
    watch.dropped_client(tcp("R", 1007))
    watch.client(tcp("R", 1008), "closing")

    ended, talk = _hashed(f"a server's FIN confirms a flow that was picked up, {v}", ["8.14", "8.8"], f)
    talk.c(tcp("A", 1000, 5000))
    watch = Watch(talk, "pickup")
    watch.server(tcp("FA", 5000, 1000), "established")
    _active(ended, talk, 1)
    watch.client(tcp("FA", 1000, 5001), "closing")
    _active(ended, talk, 0)
    ended.counters(events={"flow_closed": 1})
    return [case, ended]


def _from_server(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case, talk = _hashed(
        f"a server's ACK of no flow is unconfirmed until its client fits it, {v}", ["8.14", "8.10", "8.17"], f
    )
    talk.s(tcp("PA", 5000, 1000, b"answer"))
    watch = Watch(talk, "pickup")
    _active(case, talk, 0)
    watch.forged_server(tcp("PA", 5006, 1000, b"answer"))
    for sign in (1, -1):
        watch.forged_client(tcp("A", (1000 + (UNSCALED + 2) * sign) % 2**32, 5012))
        watch.forged_client(tcp("A", 1000, (5012 + (UNHEARD + 2) * sign) % 2**32))
    watch.forged_client(tcp("A", 1000, 5013))
    _active(case, talk, 0)
    watch.client(tcp("A", 1000, 5012), "established")
    _active(case, talk, 1)
    watch.server(tcp("PA", 5012, 1000, b"more"))

    edges = []
    for sign, reach, word in ((1, 0, "ahead"), (-1, UNHEARD + 1, "behind")):
        edge, talk = _hashed(
            f"the unknown windows and one {word} still fit a flow that was picked up, {v}", ["8.14", "8.10"], f
        )
        talk.s(tcp("PA", 5000, 1000, b"answer"))
        seq, ack = 1000 + (UNSCALED + 1) * sign, 5006 + reach * sign
        watch = Watch(talk, "pickup")
        watch.client(tcp("A", seq % 2**32, ack % 2**32), "established")
        edges.append(edge)

    source = Case(
        f"with hash-source a pickup is unconfirmed, too, {v}",
        ["8.14", "8.17"],
        services=[web_service(f, "hash-source")],
    )
    talk = Talk(source, f, number=1 + hash_source(1, f.client) % 3)
    talk.c(tcp("A", 1000, 5000))
    source.flows(talk.flow("pickup"))
    _active(source, talk, 0)
    return [case, *edges, source]


def _last_hop(f: Family) -> list[Case]:
    """Where a scale is unknown, guesses find room too often to turn replies elsewhere (rule 11, next hop)."""
    v = f"IPv{f.version}"
    two = {"interfaces": [ETH0, ETH1]}
    guess = tcp("A", 1008 + UNSCALED, 5000)
    stolen, talk = _hashed(f"a guess in unknown windows turns no reply to another interface, {v}", ["8.10", "8.13"], f)
    stolen.setup |= two
    astray = replace(talk, mac=STRANGER, client_if="eth1")
    talk.c(tcp("PA", 1000, 5000, b"data"))
    talk.s(tcp("A", 5000, 1008))
    for _ in range(2):
        astray.c(guess)
        talk.s(tcp("A", 5000, 1008))
    # It refreshes all the same; and on the same interface the client may have another neighbour.
    stolen.at(7_439_000)
    astray.c(guess)
    talk = replace(talk, mac=CLIENT2_MAC)
    talk.c(tcp("A", 1008, 5000))
    talk.s(tcp("A", 5000, 1008))
    stolen.flows(talk.flow("established", idle_s=0.0))

    routed, talk = _hashed(
        f"a segment by the way that its client is routed moves the replies, {v}", ["8.10", "8.13"], f
    )
    routed.setup |= two
    before = replace(talk, mac=STRANGER, client_if="eth1")
    before.c(tcp("A", 1008, 5000))
    before.s(tcp("A", 5000, 1008))
    talk.c(tcp("A", 1008, 5000))
    talk.s(tcp("A", 5000, 1008))
    # From elsewhere only what has exact numbers does.
    for seq, ack in ((1008, 4999), (1007, 5000), (1009, 5000)):
        before.c(tcp("A", seq, ack))
        talk.s(tcp("A", 5000, 1008))
    return [stolen, routed, _exact(f)]


def _exact(f: Family) -> Case:
    """Where both SYNs were seen, too, a segment turns the replies to another interface only by exact numbers."""
    exact = Case(
        f"replies follow the client to another interface by exact numbers only, IPv{f.version}",
        ["8.10", "8.13"],
        interfaces=[ETH0, ETH1],
    )
    talk = Talk(exact, f)
    away = replace(talk, mac=STRANGER, client_if="eth1")
    option = {"options": [("WScale", 7)]}
    talk.c(tcp("S", 1000, **option))
    talk.s(tcp("SA", 5000, 1001, **option))
    talk.c(tcp("A", 1001, 5001))
    talk.s(tcp("PA", 5001, 1001, b"answer"))
    for seq, ack in ((1001, 5000), (1000, 5007), (1001, 5008)):
        away.c(tcp("A", seq, ack))
        talk.s(tcp("A", 5007, 1001))
    # Data ahead may be a guess: the numbers up to there are not exact.
    away.c(tcp("PA", 1003, 5007, b"ahead"))
    away.c(tcp("PA", 1008, 5007, b"more"))
    talk.s(tcp("A", 5007, 1001))
    away.c(tcp("A", 1001, 5007))
    away.s(tcp("A", 5007, 1001))
    return exact


def _windows(f: Family) -> list[Case]:
    """Windows of a flow whose SYNs were not seen: their scale is unknown, and counts as the largest there is."""
    v = f"IPv{f.version}"
    origin = "RFC 7323 section 2.3"
    known, talk = _hashed(f"a window of unknown scale counts as scaled by 14, {v}", ["8.14", "8.10"], f, origin)
    talk.c(tcp("A", 1000, 5000))
    watch = Watch(talk, "pickup")
    watch.server(tcp("A", 5000, 1000, window=501), "established")
    watch.client(tcp("A", 1000, 5000, window=2000))
    for sign in (1, -1):
        for window, base, fits, other in (
            (501 << 14, 1000, watch.client, watch.forged_client),
            (2000 << 14, 5000, watch.server, watch.forged_server),
        ):
            edge = (window + 1) * sign
            fits(tcp("A", (base + edge) % 2**32, 6000 - base, window=1))
            other(tcp("A", (base + edge + sign) % 2**32, 6000 - base, window=1))
    watch.server(tcp("A", 5000, 1000, window=502))
    watch.client(tcp("A", 1000 + (502 << 14) + 1, 5000))
    watch.forged_client(tcp("A", 1000 + (502 << 14) + 2, 5000))

    guessed, talk = _hashed(
        f"a guess tells nothing of the window of a side that was not heard, {v}", ["8.14", "8.10"], f
    )
    talk.c(tcp("A", 1000, 5000))
    watch = Watch(talk, "pickup")
    watch.server(tcp("A", 5000, 1000), "established")
    # It finds room in 2^30 of the client's window, and has a narrow one: the server is believed all the same.
    watch.client(tcp("A", 1000, (5000 - 2**29) % 2**32, window=0))
    watch.forged_client(tcp("A", 1000, 5000 + 2**29, window=0))
    watch.server(tcp("PA", 5000, 1000, b"true"))
    watch.server(tcp("PA", 5004 + 1460, 1000, b"true"))
    watch.client(tcp("A", 1000, 5004))

    confirms, talk = _hashed(f"a client that confirms a pickup vouches for no number, {v}", ["8.14", "8.10"], f)
    talk.s(tcp("PA", 5000, 1000, b"answer"))
    watch = Watch(talk, "pickup")
    watch.client(tcp("FPA", 100000, 4000, b"guess"), "established")
    for seq in (100000, 100005, 100006):
        watch.forged_client(tcp("R", seq))
    watch.dropped_server(tcp("R", 4000))
    watch.server(tcp("FA", 5006, 1000))
    watch.client(tcp("PA", 1000, 5007, b"true"))
    watch.client(tcp("R", 1000), "closing")
    return [known, guessed, confirms]


def _expiry(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for who in ("client", "server"):
        case, talk = _hashed(
            f"a pickup that only its {who} speaks in ends 30 s after its first segment, {v}", ["8.14", "8.12"], f
        )
        send = talk.c if who == "client" else talk.s
        for second in (0, 10, 20, 29):
            case.at(second * SECOND)
            send(tcp("PA", 1000 + second, 5000, b"x"))
        case.at(30 * SECOND - 1)
        case.flows(talk.flow("pickup", idle_s=29.999))
        case.at(30 * SECOND)
        case.flows()
        case.tick()
        case.counters(events={"flow_expired": 1, "flow_created": 1}, services={f.web: {"flows_active": 0}})
        send(tcp("PA", 1030, 5000, b"x"))
        case.flows(talk.flow("pickup", idle_s=0.0))
        case.counters(events={"flow_created": 2})
        made.append(case)
    kept, talk = _hashed(f"a pickup that was confirmed lives as long as any established flow, {v}", ["8.14", "8.12"], f)
    talk.c(tcp("A", 1000, 5000))
    kept.at(30 * SECOND - 1)
    talk.s(tcp("A", 5000, 1000))
    kept.at(7470 * SECOND - 2)
    kept.flows(talk.flow("established", idle_s=7439.999))
    return [*made, kept]


def _resets(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    # A server that knows nothing of the connection answers by a RST at the number that the client acknowledged.
    server, talk = _hashed(f"a server's RST closes what was picked up from its client, {v}", ["8.14", "8.10"], f)
    talk.c(tcp("PA", 1000, 5000, b"data"))
    watch = Watch(talk, "pickup")
    watch.forged_server(tcp("R", 5001))
    watch.dropped_server(tcp("R", 4999))
    watch.dropped_server(tcp("RA", 0, 1004))
    watch.server(tcp("R", 5000), "closing")
    _active(server, talk, 0)
    server.counters(events={"flow_closed": 1})
    made.append(server)

    # Nothing has confirmed the numbers of the side that a flow was picked up from.
    client, talk = _hashed(f"a client's RST is sent on and leaves what was picked up from it, {v}", ["8.14", "8.10"], f)
    talk.c(tcp("PA", 1000, 5000, b"data"))
    watch = Watch(talk, "pickup")
    watch.forged_client(tcp("R", 1005))
    watch.dropped_client(tcp("R", 1003))
    watch.forged_client(tcp("R", 1004))
    watch.forged_client(tcp("RA", 1004, 5000))
    client.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 1})
    watch.server(tcp("A", 5000, 1004), "established")
    watch.client(tcp("R", 1004), "closing")
    client.counters(events={"flow_closed": 1})
    made.append(client)

    own, talk = _hashed(f"a server's RST is sent on and leaves what was picked up from it, {v}", ["8.14", "8.10"], f)
    talk.s(tcp("PA", 5000, 1000, b"answer"))
    watch = Watch(talk, "pickup")
    watch.forged_server(tcp("R", 5007))
    watch.dropped_server(tcp("R", 5005))
    watch.forged_server(tcp("R", 5006))
    watch.forged_server(tcp("RA", 5006, 1000))
    own.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 1})
    watch.client(tcp("A", 1000, 5006), "established")
    watch.server(tcp("R", 5006), "closing")
    own.counters(events={"flow_closed": 1})
    made.append(own)

    attack, talk = _hashed(
        f"a forged ACK and a RST at its number close no flow that was picked up, {v}", ["8.14", "8.10", "8.13"], f
    )
    talk.c(tcp("A", 1000, 5000))
    watch = Watch(talk, "pickup")
    for guess in (0x70000000, 0xF0000000):
        watch.forged_client(tcp("A", guess, 0x12345678))
        watch.forged_client(tcp("R", guess))
        watch.forged_client(tcp("RA", guess, 0x12345678))
    watch.forged_client(tcp("A", 0x70000000, 0x12345678))
    watch.forged_client(tcp("R", 0x70000000))
    _active(attack, talk, 0)
    attack.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 0})
    watch.server(tcp("A", 5000, 1000), "established")
    _active(attack, talk, 1)
    watch.dropped_client(tcp("R", 0x70000000))
    watch.client(tcp("PA", 1000, 5000, b"more"))
    attack.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 1})
    made.append(attack)

    reply, talk = _hashed(f"a client's RST closes what was picked up from its server, {v}", ["8.14", "8.10"], f)
    talk.s(tcp("PA", 5000, 1000, b"answer"))
    watch = Watch(talk, "pickup")
    watch.dropped_client(tcp("R", 999))
    watch.client(tcp("R", 1000), "closing")
    made.append(reply)

    ending, talk = _hashed(
        f"a FIN of the side that a flow was picked up from moves no number, {v}", ["8.14", "8.10"], f
    )
    talk.c(tcp("A", 1000, 5000))
    watch = Watch(talk, "pickup")
    watch.forged_client(tcp("FA", 77777, 4000))
    watch.dropped_server(tcp("R", 4000))
    watch.server(tcp("R", 5000), "closing")
    made.append(ending)

    confirmed, talk = _hashed(f"a server that confirms a pickup vouches for its own number, {v}", ["8.14", "8.10"], f)
    talk.c(tcp("A", 77777, 99999))
    watch = Watch(talk, "pickup")
    watch.server(tcp("PA", 5000, 1000, b"0123456789"), "established")
    watch.dropped_server(tcp("R", 4999))
    watch.server(tcp("R", 5000), "closing")
    made.append(confirmed)
    return made


def _ends(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for selector in ("hash-flow", "hash-source"):
        case = Case(
            f"with {selector} FIN and RST of no flow reach their server and leave no entry, {v}",
            ["8.14"],
            services=[web_service(f, selector)],
        )
        hashed = hash_flow(1, f.client, f.vip, 40000, 9876, 6) if selector == "hash-flow" else hash_source(1, f.client)
        number = 1 + hashed % 3
        talk, astray = (Talk(case, f, number=which) for which in (number, number % 3 + 1))
        ends = (tcp("FA", 1000, 5000), tcp("FPA", 1000, 5000, b"bye"), tcp("R", 1000), tcp("RA", 1000, 5000))
        for end in ends:
            talk.c(end)
            talk.s(end)
            case.drop(astray.s_in(end), "no_flow")
        case.flows()
        case.counters(
            events={"flow_stateless": 8, "flow_created": 0, "flow_miss": 12},
            services={f.web: {"packets_forward": 4, "packets_reply": 4, "flows_created": 0}},
        )
        made.append(case)

    for selector in ("counter", "random", "least", "two-choices", "ask"):
        case = Case(
            f"with {selector} FIN, RST and ACK of no flow are dropped, {v}",
            ["8.14"],
            services=[web_service(f, selector)],
        )
        talk = Talk(case, f)
        for flags in ("FA", "R", "RA", "A", "PA", "SA"):
            case.drop(talk.c_in(tcp(flags, 1000, 5000)), "no_flow", direction="forward", service=f.web)
            case.drop(talk.s_in(tcp(flags, 5000, 1000)), "no_flow")
        case.counters(events={"flow_stateless": 0, "flow_created": 0, "flow_miss": 12})
        made.append(case)

    # A stateless packet removes nothing either: an entry of another service with this client's port is a conflict.
    second = {**web_service(f, "hash-source", (1,)), "name": "alt", "port": 443}
    second["servers"] = [{**second["servers"][0], "name": "alt1"}]
    second["plan"] = {"selector": "hash-source", "slots": ["alt1"]}
    clash = Case(
        f"stateless FIN and RST disturb no other flow, {v}",
        ["8.14", "8.15"],
        services=[web_service(f, "counter", (1,)), second],
    )
    one, two = Talk(clash, f), Talk(clash, f, service="alt", server="alt1", vport=443)
    one.open()
    clash.drop(two.c_in(tcp("R", 1)), "flow_conflict", **two.names)
    one.close()
    clash.drop(two.c_in(tcp("FA", 1, 1)), "flow_conflict", **two.names)
    clash.flows(one.flow("closing"))
    return [*made, clash]


def _reset(f: Family, seq: int, mac: str = CLIENT_MAC) -> bytes:
    """Make the RST that answers a segment whose ACK is `seq`."""
    fields: dict[str, Any] = {"ttl": 64, "id": 0, "flags": "DF"} if f.version == 4 else {"ttl": 64}
    packet = f.ip(f.vip, f.client, **fields) / TCP(sport=9876, dport=40000, flags="R", seq=seq, ack=0, window=0)
    return ether(ROUTER_MAC, mac, packet)


def _refused(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    names = {"direction": "forward", "service": f.web}
    case = Case(
        f'on_no_flow = "reset": a segment of no flow with ACK is answered by a RST at that number, {v}',
        ["8.14"],
        NO_FLOW,
        services=[web_service(f, on_no_flow="reset")],
    )
    talk = Talk(case, f)
    segments: list[Packet] = [
        tcp("A", 1000, 5000),
        tcp("PA", 1000, 77, b"data"),
        tcp("FA", 1000, 0),
        tcp("SA", 1000, 2**32 - 1),
    ]
    for segment in segments:
        case.reply(talk.c_in(segment), "no_flow", _reset(f, segment.ack), **names)
    for flags in ("R", "RA", "U", "P"):
        case.drop(talk.c_in(tcp(flags, 1000, 5000)), "no_flow", **names)
    # A server is never answered.
    for flags in ("A", "FA", "SA", "R"):
        case.drop(talk.s_in(tcp(flags, 5000, 1000)), "no_flow")
    case.flows()
    case.counters(verdicts={"reply.no_flow": 4, "drop.no_flow": 8}, events={"flow_created": 0}, tx_packets=4)

    ended = Case(
        f'on_no_flow = "reset": a client whose flow has expired learns at once, {v}',
        ["8.14", "8.12"],
        NO_FLOW,
        services=[web_service(f, on_no_flow="reset")],
    )
    talk = Talk(ended, f)
    talk.open()
    ended.at(7440 * SECOND)
    ended.reply(talk.c_in(tcp("PA", 1001, 5001, b"late")), "no_flow", _reset(f, 5001), **names)
    ended.counters(events={"flow_expired": 1})
    Talk(ended, f, number=2).c(tcp("S", 2000))

    silent = Case(f'on_no_flow = "drop" is silent, {v}', ["8.14"], services=[web_service(f, on_no_flow="drop")])
    silent.drop(Talk(silent, f).c_in(tcp("A", 1000, 5000)), "no_flow", **names)
    return [case, ended, silent]


def _answered(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    names = {"direction": "forward", "service": f.web}
    limited = Case(
        f'on_no_flow = "reset": the resets are rate-limited, {v}',
        ["8.14", "12.4"],
        NO_FLOW,
        services=[web_service(f, on_no_flow="reset")],
        icmp_rate=1,
    )
    talk = Talk(limited, f)
    # What is not answered takes no token.
    limited.drop(talk.c_in(tcp("R", 1000)), "no_flow", **names)
    limited.reply(talk.c_in(tcp("A", 1000, 5000)), "no_flow", _reset(f, 5000), **names)
    limited.drop(talk.c_in(tcp("A", 1000, 5000)), "rate_limited", **names)
    limited.drop(talk.c_in(tcp("R", 1000)), "no_flow", **names)
    limited.at(SECOND)
    limited.reply(talk.c_in(tcp("A", 1000, 5000)), "no_flow", _reset(f, 5000), **names)

    away = Case(
        f'on_no_flow = "reset": the RST goes to the MAC the segment came from, {v}',
        ["8.14", "11"],
        NO_FLOW,
        services=[web_service(f, on_no_flow="reset")],
    )
    talk = Talk(away, f, mac=CLIENT2_MAC)
    away.reply(talk.c_in(tcp("A", 1000, 5000)), "no_flow", _reset(f, 5000, CLIENT2_MAC), **names)

    hashed = Case(
        f'on_no_flow = "reset" with a hash plan: what it places is placed, the rest is answered, {v}',
        ["8.14"],
        NO_FLOW,
        services=[web_service(f, "hash-flow", on_no_flow="reset")],
    )
    talk = Talk(hashed, f, number=1 + hash_flow(1, f.client, f.vip, 40000, 9876, 6) % 3)
    hashed.reply(talk.c_in(tcp("SA", 1000, 5000)), "no_flow", _reset(f, 5000), **names)
    hashed.drop(talk.c_in(tcp("P", 1000)), "no_flow", **names)
    talk.c(tcp("FA", 1000, 5000))
    talk.c(tcp("R", 1000))
    talk.c(tcp("A", 1000, 5000))
    hashed.flows(talk.flow("pickup"))

    nowhere = Case(
        f'on_no_flow = "reset" with a hash plan without servers: a FIN is answered, an ACK has no server, {v}',
        ["8.14", "8.18"],
        NO_FLOW,
        services=[web_service(f, "hash-flow", (), on_no_flow="reset", on_no_server="drop")],
    )
    talk = Talk(nowhere, f)
    nowhere.reply(talk.c_in(tcp("FA", 1000, 5000)), "no_flow", _reset(f, 5000), **names)
    nowhere.drop(talk.c_in(tcp("RA", 1000, 5000)), "no_flow", **names)
    nowhere.drop(talk.c_in(tcp("A", 1000, 5000)), "no_server", **names)
    return [limited, away, hashed, nowhere]
