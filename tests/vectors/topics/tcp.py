"""
TCP through a service: translation, states, RST and SYN rules (docs/rules.md rule 7, L4 headers, and rule 8, flows).
"""

from __future__ import annotations

from scapy.layers.inet import TCP
from scene import (
    BOTH,
    CLIENT2_MAC,
    CLIENT_MAC,
    ROUTER_MAC,
    Case,
    Family,
    Talk,
    ether,
    hash_flow,
    pattern,
    tcp,
    web_service,
)

from topics import handshake, numbers


def cases() -> list[Case]:
    """Make the cases."""
    made = [*handshake.cases(), *numbers.cases()]
    for f in BOTH:
        made += [*_life(f), *_resets(f), *_nonsense(f), *_strangers(f), *_syns(f), *_answers(f), _wrong_checksum(f)]
    return made


def _life(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"a connection is translated both ways from SYN to the last ACK, {v}", ["8", "8.8", "8.20"])
    talk = Talk(case, f)
    talk.c(
        tcp("S", 1000, options=[("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)])
    )
    case.flows(talk.flow("syn-sent"))
    talk.s(tcp("SA", 5000, 1001, options=[("MSS", 1460)]))
    case.flows(talk.flow("syn-received"))
    talk.c(tcp("A", 1001, 5001))
    case.flows(talk.flow("established"))
    talk.c(tcp("PA", 1001, 5001, pattern(301), window=501, urgptr=7))
    talk.s(tcp("A", 5001, 1302, pattern(1000), options=[("Timestamp", (3, 4)), ("NOP", None), ("NOP", None)]))
    talk.c(tcp("FA", 1302, 6001))
    case.flows(talk.flow("established"))
    talk.s(tcp("FA", 6001, 1303))
    case.flows(talk.flow("closing"))
    talk.c(tcp("A", 1303, 6002))
    case.counters(
        events={"flow_created": 1, "flow_miss": 1, "flow_hit": 7, "flow_closed": 1},
        verdicts={"forward": 8},
        services={f.web: {"flows_created": 1, "flows_active": 0, "packets_forward": 5, "packets_reply": 3}},
    )
    again = Case(f"retransmitted SYNs and a RST after FINs count one flow once, {v}", ["8.8"])
    talk = Talk(again, f)
    for _ in range(3):
        talk.c(tcp("S", 1000))
    again.counters(services={f.web: {"flows_active": 1, "flows_created": 1}})
    talk.s(tcp("SA", 5000, 1001))
    talk.c(tcp("A", 1001, 5001))
    talk.close()
    talk.c(tcp("R", 1002))
    again.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0, "flows_created": 1}})
    far = Case(f"sequence numbers wrap around, {v}", ["8.8", "8.10"])
    talk = Talk(far, f)
    talk.open(0xFFFFFFFF, 0xFFFFFFF0)
    talk.s(tcp("A", 0xFFFFFFF1, 0, pattern(32)))
    # The client has acknowledged up to 0xFFFFFFF1, and its window is 8192 bytes.
    far.drop(talk.s_in(tcp("R", 0xFFFFFFF0)), "rst_window", **talk.reply_names)
    far.drop(talk.s_in(tcp("R", 0x1FF2)), "rst_window", **talk.reply_names)
    for seq in (0xFFFFFFF2, 0x10, 0x12, 0x1FF1):
        talk.s(tcp("R", seq))
    far.flows(talk.flow("established"))
    talk.c(tcp("A", 0, 0x11))
    for seq in (0x10, 0xFFFFFFF1, 0x2012):
        far.drop(talk.s_in(tcp("R", seq)), "rst_window", **talk.reply_names)
    for seq in (0x12, 0x2011):
        talk.s(tcp("R", seq))
    far.flows(talk.flow("established"))
    talk.s(tcp("R", 0x11))
    far.flows(talk.flow("closing"))
    abort = Case(f"the end of data that is not acknowledged wraps around, {v}", ["8.8", "8.10"])
    talk = Talk(abort, f)
    talk.open(0xFFFFFFFF, 0xFFFFFFF0)
    talk.s(tcp("A", 0xFFFFFFF1, 0, pattern(32)))
    talk.s(tcp("R", 0x12))
    abort.flows(talk.flow("established"))
    talk.s(tcp("R", 0x11))
    abort.flows(talk.flow("closing"))
    return [case, again, far, abort]


def _resets(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    refused = Case(f"connection refused reaches the client, {v}", ["8.8", "8.10"], "RFC 9293 section 3.10.7.3")
    talk = Talk(refused, f)
    talk.c(tcp("S", 1000))
    refused.drop(talk.s_in(tcp("RA", 0, 1002)), "rst_window", **talk.reply_names)
    refused.flows(talk.flow("syn-sent"))
    talk.s(tcp("RA", 0, 1001))
    refused.flows(talk.flow("closing"))
    again = Case(
        f"a SYN sent again and refused after a lost SYN+ACK reaches the client, {v}",
        ["8.10"],
        "RFC 9293 section 3.10.7.3",
    )
    talk = Talk(again, f)
    talk.c(tcp("S", 1000))
    talk.s(tcp("SA", 5000, 1001))
    talk.c(tcp("S", 1000))
    again.drop(talk.s_in(tcp("RA", 0, 1002)), "rst_window", **talk.reply_names)
    talk.s(tcp("RA", 0, 1001))
    again.flows(talk.flow("closing"))
    window = Case(f"a RST is believed only at the expected sequence number, {v}", ["8.10"], "RFC 5961 section 3.2")
    talk = Talk(window, f)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"hello"))
    # Acknowledged are 1001 and 5001; both windows are 8192 bytes.
    for seq in (1000, 0, 1001 + 8193, 1006 + 2**31):
        window.drop(talk.c_in(tcp("R", seq)), "rst_window", **talk.names)
    for seq in (5000, 5001 + 8193):
        window.drop(talk.s_in(tcp("RA", seq, 1006)), "rst_window", **talk.reply_names)
    for seq in (1002, 1005, 1007, 1001 + 8192):
        talk.c(tcp("R", seq))
    for seq in (5002, 5001 + 8192):
        talk.s(tcp("RA", seq, 1006))
    window.flows(talk.flow("established"))
    window.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 6})
    talk.s(tcp("A", 5001, 1006))
    talk.c(tcp("R", 1006))
    window.flows(talk.flow("closing"))
    window.counters(events={"flow_closed": 1}, verdicts={"drop.rst_window": 6})
    abort = Case(
        f"a client that sends a request and aborts at once leaves no active flow, {v}",
        ["8.8", "8.10"],
        "RFC 9293 3.10.5",
    )
    talk = Talk(abort, f)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"hello"))
    talk.c(tcp("RA", 1006, 5001))
    abort.flows(talk.flow("closing"))
    abort.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
    forgotten = Case(
        f"a client whose old connection only the server knows resets that and opens, {v}",
        ["8.10", "8.1"],
        "RFC 9293 3.5.1",
    )
    talk = Talk(forgotten, f)
    talk.c(tcp("S", 1000))
    talk.s(tcp("A", 7000, 3_000_000_000))
    talk.c(tcp("R", 3_000_000_000))
    forgotten.flows(talk.flow("syn-sent"))
    talk.c(tcp("S", 1000))
    talk.s(tcp("SA", 5000, 1001))
    talk.c(tcp("A", 1001, 5001))
    forgotten.flows(talk.flow("established"))
    forgotten.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1, "flows_created": 1}})
    acked = Case(f"a RST at what the other side has acknowledged is believed, {v}", ["8.10"], "RFC 5961 section 3.2")
    talk = Talk(acked, f)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"lost on the way to the server"))
    talk.c(tcp("R", 1001))
    acked.flows(talk.flow("closing"))
    data = Case(f"data out of window is never dropped, {v}", ["8.10"])
    talk = Talk(data, f)
    talk.open()
    for seq in (0, 500, 2**31, 2**32 - 1):
        talk.c(tcp("A", seq, 77, b"strange"))
        talk.s(tcp("A", seq, 77, b"strange"))
    data.flows(talk.flow("established"))
    return [refused, again, window, abort, forgotten, acked, data]


def _nonsense(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for flags in ("SF", "SFA", "SR", "SRA", "", "F", "FPU", "FR", "EC"):
        case = Case(f"TCP flags {flags or 'none'} are dropped, {v}", ["7"])
        case.drop(Talk(case, f).c_in(tcp(flags, 1, 1)), "tcp_flags")
        made.append(case)
    case = Case(f"ECN setup flags on a SYN are fine, {v}", ["7", "8.20"], "RFC 3168 section 6.1.1")
    Talk(case, f).c(tcp("SEC", 1))
    made.append(case)
    case = Case(f"a TCP data offset below 5 or beyond the packet is dropped, {v}", ["7"])
    talk = Talk(case, f)
    case.drop(talk.c_in(tcp("S", 1, dataofs=4)), "tcp_data_offset")
    case.drop(talk.c_in(tcp("S", 1, dataofs=0)), "tcp_data_offset")
    case.drop(talk.c_in(tcp("S", 1, dataofs=6)), "tcp_data_offset")
    case.drop(talk.c_in(tcp("S", 1, dataofs=15, data=bytes(39))), "tcp_data_offset")
    made.append(case)
    case = Case(f"a TCP header cut short is dropped, {v}", ["5", "7"])
    l4 = bytes(TCP(sport=40000, dport=9876, flags="S"))
    for length in (0, 8, 19):
        packet = f.ip(f.client, f.vip, **{"proto" if f.version == 4 else "nh": 6}) / l4[:length]
        case.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "l4_truncated")
    made.append(case)
    case = Case(f"TCP port 0 is dropped, source and destination, {v}", ["5.4"])
    case.drop(Talk(case, f, sport=0).c_in(tcp("S", 1)), "port_zero")
    packet = f.ip(f.client, f.vip) / TCP(sport=40000, dport=0, flags="S")
    case.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "port_zero")
    made.append(case)
    return made


def _strangers(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"only a SYN without ACK makes a flow with a plan that keeps none, {v}", ["8.14"])
    talk = Talk(case, f)
    for flags in ("A", "R", "RA", "SA", "FA", "PA", "U"):
        case.drop(talk.c_in(tcp(flags, 1, 1)), "no_flow", direction="forward", service=f.web)
    case.flows()
    case.counters(events={"flow_miss": 7, "flow_created": 0})
    hashed = Case(
        f"RST, FIN and SYN/ACK never make a flow, not even with a hash plan, {v}",
        ["8.14"],
        services=[web_service(f, "hash-flow")],
    )
    number = 1 + hash_flow(1, f.client, f.vip, 40000, 9876, 6) % 3
    talk, astray = (Talk(hashed, f, number=which) for which in (number, number % 3 + 1))
    # RST and FIN are the end of a connection that began before us: they reach it, and leave nothing.
    for flags in ("R", "RA", "FA"):
        talk.c(tcp(flags, 1, 1))
        talk.s(tcp(flags, 1, 1))
        hashed.drop(astray.s_in(tcp(flags, 1, 1)), "no_flow")
    for flags in ("SA", "U"):
        hashed.drop(talk.c_in(tcp(flags, 1, 1)), "no_flow", direction="forward", service=f.web)
        hashed.drop(talk.s_in(tcp(flags, 1, 1)), "no_flow")
    hashed.flows()
    hashed.counters(events={"flow_created": 0, "flow_stateless": 6}, verdicts={"forward": 6, "drop.no_flow": 7})
    back = Case(f"from a server without a flow nothing leaks toward a client, {v}", ["8.15"])
    talk = Talk(back, f)
    for flags in ("SA", "A", "R", "FA", "S"):
        back.drop(talk.s_in(tcp(flags, 1, 1)), "no_flow")
    back.flows()
    unknown = Case(f"a VIP's port of no service is dropped, never routed on, {v}", ["7.A"], transit="forward")
    packet = f.ip(f.client, f.vip) / TCP(sport=40000, dport=81, flags="S")
    unknown.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "no_service")
    packet = f.ip(f.client, f.vip) / TCP(sport=40000, dport=53, flags="S")
    unknown.drop(ether(CLIENT_MAC, ROUTER_MAC, packet), "no_service")
    return [case, hashed, back, unknown]


def _syns(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    reuse = Case(f"a SYN on a closing 5-tuple is a new flow at once, {v}", ["8.1"], "RFC 6191")
    talk = Talk(reuse, f)
    talk.open()
    talk.close()
    second = Talk(reuse, f, number=2)
    second.c(tcp("S", 90000))
    second.s(tcp("SA", 70000, 90001))
    second.c(tcp("A", 90001, 70001))
    reuse.flows(second.flow("established"))
    reuse.counters(events={"flow_created": 2, "flow_reused": 1, "flow_closed": 1})
    inside = Case(
        f"a SYN inside an established flow goes to the same server, whose challenge ACK returns, {v}",
        ["8.1"],
        "RFC 5961 section 4.2",
    )
    talk = Talk(inside, f)
    talk.open()
    talk.c(tcp("S", 123456))
    talk.s(tcp("A", 5001, 1001))
    inside.flows(talk.flow("established"))
    talk.c(tcp("R", 1001))
    inside.flows(talk.flow("closing"))
    retries = []
    # The last SYN may be forged, and so its refusal.
    for which, number, state in (("first", 1001, "closing"), ("last", 3001, "syn-sent")):
        retry = Case(
            f"new attempts on a half-open flow keep the server, which may refuse the {which} SYN, {v}",
            ["8.8", "8.10", "8.1"],
        )
        talk = Talk(retry, f)
        for seq in (1000, 2000, 3000):
            talk.c(tcp("S", seq))
        # Of more attempts than two, the first and the last are remembered.
        for other in (1000, 1002, 2001, 3000, 3002):
            retry.drop(talk.s_in(tcp("RA", 0, other)), "rst_window", **talk.reply_names)
        retry.flows(talk.flow("syn-sent"))
        talk.s(tcp("RA", 0, number))
        retry.flows(talk.flow(state))
        retries.append(retry)
    server_syn = Case(f"a SYN from the server within a flow changes no state, {v}", ["8.8"])
    talk = Talk(server_syn, f)
    talk.c(tcp("S", 1000))
    talk.s(tcp("S", 5000))
    server_syn.flows(talk.flow("syn-sent"))
    talk.c(tcp("SA", 1000, 5001))
    server_syn.flows(talk.flow("syn-sent"))
    # A server may acknowledge the SYN alone, or any of what came with it.
    early = []
    for number in (1001, 1003, 1005):
        data = Case(
            f"a SYN with data is refused at {number}, between its SYN and its end, {v}", ["8.8", "8.10"], "RFC 7413"
        )
        talk = Talk(data, f)
        talk.c(tcp("S", 1000, data=b"fast"))
        for other in (1000, 1006):
            data.drop(talk.s_in(tcp("RA", 0, other)), "rst_window", **talk.reply_names)
        data.flows(talk.flow("syn-sent"))
        talk.s(tcp("RA", 0, number))
        data.flows(talk.flow("closing"))
        early.append(data)
    return [reuse, inside, *retries, server_syn, *early]


def _answers(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    empty = [web_service(f, slots=())]
    names = {"direction": "forward", "service": f.web}
    fields = {"ttl": 64, "id": 0, "flags": "DF"} if f.version == 4 else {"ttl": 64}
    case = Case(
        f"a SYN to a service without servers is reset with valid numbers, {v}",
        ["8.18"],
        "RFC 9293 section 3.10.7.1",
        services=empty,
    )
    talk = Talk(case, f)
    for data, ack in ((b"", 1001), (b"early", 1006)):
        answer = f.ip(f.vip, f.client, **fields) / TCP(sport=9876, dport=40000, flags="RA", seq=0, ack=ack, window=0)
        case.reply(talk.c_in(tcp("S", 1000, data=data)), "no_server", ether(ROUTER_MAC, CLIENT_MAC, answer), **names)
    wrap = f.ip(f.vip, f.client, **fields) / TCP(sport=9876, dport=40000, flags="RA", seq=0, ack=0, window=0)
    case.reply(talk.c_in(tcp("S", 0xFFFFFFFF)), "no_server", ether(ROUTER_MAC, CLIENT_MAC, wrap), **names)
    case.flows()
    middle = Case(
        f"an ACK to a hash service without servers is reset at its acknowledgement, {v}",
        ["8.14", "8.18"],
        "RFC 9293 section 3.10.7.1",
        services=[web_service(f, "hash-flow", ())],
    )
    talk = Talk(middle, f)
    answer = f.ip(f.vip, f.client, **fields) / TCP(sport=9876, dport=40000, flags="R", seq=777, ack=0, window=0)
    middle.reply(talk.c_in(tcp("PA", 1000, 777, b"data")), "no_server", ether(ROUTER_MAC, CLIENT_MAC, answer), **names)
    for flags in ("FA", "R", "RA", "SA"):
        middle.drop(talk.c_in(tcp(flags, 1000, 777)), "no_flow", **names)
    silent = Case(
        f"on_no_server = drop is silent, {v}", ["8.18"], services=[web_service(f, slots=(), on_no_server="drop")]
    )
    silent.drop(Talk(silent, f).c_in(tcp("S", 1)), "no_server", **names)
    limited = Case(f"resets are rate-limited, {v}", ["8.18", "12.4"], services=empty, icmp_rate=1)
    talk = Talk(limited, f)
    answer = f.ip(f.vip, f.client, **fields) / TCP(sport=9876, dport=40000, flags="RA", seq=0, ack=1001, window=0)
    limited.reply(talk.c_in(tcp("S", 1000)), "no_server", ether(ROUTER_MAC, CLIENT_MAC, answer), **names)
    limited.drop(talk.c_in(tcp("S", 1000)), "rate_limited", **names)
    tagged = Case(f"a reset goes to the MAC the SYN came from, {v}", ["8.18", "11"], services=empty)
    talk = Talk(tagged, f, mac=CLIENT2_MAC)
    tagged.reply(talk.c_in(tcp("S", 1000)), "no_server", ether(ROUTER_MAC, CLIENT2_MAC, answer), **names)
    return [case, middle, silent, limited, tagged]


def _wrong_checksum(f: Family) -> Case:
    """RFC 1624: the update of a wrong sum is off by the same amount."""
    case = Case(f"a wrong TCP checksum stays wrong by the same amount, {f.web}", ["8.20"], "RFC 1624 section 3")
    talk = Talk(case, f)

    def spoil(frame: bytes) -> bytes:
        where = 14 + f.header_len + 16
        value = int.from_bytes(frame[where : where + 2], "big") + 0x0101
        value = (value & 0xFFFF) + (value >> 16)
        return frame[:where] + value.to_bytes(2, "big") + frame[where + 2 :]

    segment = tcp("S", 1000, data=b"payload")
    case.forward(spoil(talk.c_in(segment)), spoil(talk.c_out(segment)), **talk.names)
    return case
