"""
How a TCP connection opens, and opens anew: SYNs, SYN+ACKs, the third ACK (docs/rules.md rule 8.1, port reuse, to
rule 8.6, segments without ACK).
"""

from __future__ import annotations

from scapy.packet import Packet
from scene import BOTH, CLIENT2_MAC, STRANGER, Case, Family, Talk, Watch, tcp, two_interfaces

SECOND = 1000
# The client's SYN is 1000, the server's 5000; a client that has rebooted begins at 900000, its server at 700000.
SYN = tcp("S", 1000)
CROSSED = tcp("S", 5000)
CROSSED_ANSWER = tcp("SA", 1000, 5001)
SYN_ACK = tcp("SA", 5000, 1001)
SYN_ONLY_ACK = tcp("A", 5001, 1001)


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_retries(f), *_guessed(f), *_answers(f), *_third(f), *_simultaneous(f), *_forged(f), *_again(f)]
        made += [*_reset_again(f), *_cookies(f), *_refused_again(f)]
    return made


def _begun(case: Case, f: Family, syn: Packet = SYN) -> tuple[Talk, Watch]:
    talk = Talk(case, f)
    talk.c(syn)
    return talk, Watch(talk, "syn-sent")


def _retries(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    silent = Case(
        f"SYNs that nothing answers do not keep a flow: 30 s after the first it is placed anew, {v}", ["8.8", "8.12"]
    )
    talk = Talk(silent, f)
    talk.c(SYN)
    for second in (1, 3, 7, 15):
        silent.at(second * SECOND)
        talk.c(SYN)
    silent.at(30 * SECOND - 1)
    talk.c(SYN)
    silent.flows(talk.flow("syn-sent", idle_s=29.999))
    silent.at(30 * SECOND)
    Talk(silent, f, number=2).c(SYN)
    silent.counters(events={"flow_created": 2, "flow_expired": 1, "flow_hit": 5}, services={f.web: {"flows_active": 1}})

    repeated = Case(f"a SYN tells where its client is only if it repeats the first SYN, {v}", ["8.10", "8.13"])
    _, watch = _begun(repeated, f)
    watch.client(SYN, refreshes=False)
    # The last SYN may be forged, however often it comes.
    watch.forged_client(tcp("S", 7000))
    watch.forged_client(tcp("S", 7000))
    watch.client(SYN, refreshes=False)
    watch.forged_client(tcp("S", 7000))
    watch.forged_client(tcp("S", 999))
    watch.client(SYN, refreshes=False)

    early = Case(f"data that a SYN had is remembered when it comes again without, {v}", ["8.8", "8.10"], "RFC 7413")
    talk, watch = _begun(early, f, tcp("S", 1000, data=b"fast"))
    watch.client(SYN, refreshes=False)
    watch.server(tcp("SA", 5000, 1005), "syn-received")
    hidden = Case(f"a SYN in a client's name does not hide the data that its own had, {v}", ["8.8", "8.10"], "RFC 7413")
    talk, watch = _begun(hidden, f, tcp("S", 1000, data=b"fast"))
    watch.forged_client(tcp("S", 7000, data=b"other data"))
    watch.server(tcp("SA", 5000, 1005), "syn-received")
    retried = Case(
        f"data that another SYN had is remembered when it comes again without, {v}", ["8.8", "8.10"], "RFC 7413"
    )
    talk, watch = _begun(retried, f, tcp("S", 1000, data=b"fast"))
    watch.forged_client(tcp("S", 7000, data=b"other data"))
    watch.forged_client(tcp("S", 7000))
    watch.server(tcp("SA", 5000, 7011), "syn-received")
    watch.client(tcp("A", 7011, 5001), "established")
    return [silent, repeated, early, hidden, retried]


def _guessed(f: Family) -> list[Case]:
    """Make what a sender can do to a handshake that knows its addresses and ports, and no number."""
    v = f"IPv{f.version}"
    near = Case(f"SYNs in a client's name, and a RST that fits them, end no handshake, {v}", ["8.10", "8.13"])
    _, watch = _begun(near, f)
    for segment in (tcp("S", 777), tcp("S", 777), tcp("R", 778), tcp("R", 777)):
        watch.forged_client(segment)
    near.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.server(SYN_ACK, "syn-received")
    watch.dropped_client(tcp("R", 778))
    watch.client(tcp("A", 1001, 5001), "established")

    far = Case(
        f"SYNs in a client's name from another interface turn no answer there, {v}",
        ["8.10", "8.13"],
        **two_interfaces(),
    )
    address = next(s for s in far.setup["services"] if s["name"] == f.web)["servers"][0]["address"]
    talk = Talk(far, f, server_address=address, server_if="eth1")
    beside = Talk(far, f, mac=STRANGER, client_if="eth1", server_address=address, server_if="eth1")
    talk.c(SYN)
    for segment in (tcp("S", 777), tcp("S", 777), tcp("R", 778)):
        beside.c(segment)
        far.flows(talk.flow("syn-sent"))
    talk.s(SYN_ACK)
    far.flows(talk.flow("syn-received"))
    talk.c(tcp("A", 1001, 5001))
    talk.s(tcp("A", 5001, 1001))
    far.flows(talk.flow("established"))

    given_up = Case(f"a client that gives up behind SYNs in its name is believed, {v}", ["8.10"])
    _, watch = _begun(given_up, f)
    watch.forged_client(tcp("S", 777))
    watch.forged_client(tcp("R", 778))
    watch.client(tcp("R", 1001), "closing")
    return [near, far, given_up]


def _answers(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for which, seq in (("first", 1000), ("last", 900000)):
        case = Case(f"a SYN+ACK that answers the {which} SYN of a client is believed, {v}", ["8.8", "8.10"])
        talk, watch = _begun(case, f)
        talk.c(tcp("S", 500000))
        talk.c(tcp("S", 900000))
        # Neither SYN, nor one between.
        for ack in (0, 1000, 1002, 500001, 900000, 900002):
            watch.forged_server(tcp("SA", 5000, ack))
        watch.server(tcp("SA", 5000, seq + 1), "syn-received")
        other = 900000 if seq == 1000 else 1000
        watch.forged_server(tcp("SA", 6000, other + 1))
        watch.forged_client(tcp("A", other + 1, 5001))
        watch.client(tcp("A", seq + 1, 5001), "established")
        made.append(case)

    wrong = Case(f"a SYN+ACK that answers no SYN keeps no flow, {v}", ["8.12", "8.10"])
    talk, _ = _begun(wrong, f)
    wrong.at(30 * SECOND - 1)
    talk.s(tcp("SA", 5000, 1002))
    wrong.flows(talk.flow("syn-sent", idle_s=29.999))
    wrong.at(30 * SECOND)
    wrong.drop(talk.s_in(SYN_ACK), "no_flow")
    wrong.counters(events={"flow_expired": 1}, services={f.web: {"flows_active": 0}})

    again = Case(f"a SYN+ACK sent again refreshes a handshake and nothing else, {v}", ["8.8", "8.12"])
    talk, watch = _begun(again, f)
    watch.server(SYN_ACK, "syn-received")
    watch.server(SYN_ACK)
    watch.forged_server(tcp("SA", 5000, 1002))
    watch.client(tcp("A", 1001, 5001), "established")
    watch.forged_server(SYN_ACK)

    partly = Case(
        f"a SYN+ACK may answer the SYN without its data, and is acknowledged so, {v}", ["8.8", "8.10"], "RFC 7413"
    )
    talk, watch = _begun(partly, f, tcp("S", 1000, data=b"fast"))
    for ack in (1000, 1006):
        watch.forged_server(tcp("SA", 5000, ack))
    watch.server(SYN_ACK, "syn-received")
    watch.client(tcp("A", 1001, 5001, b"fast"), "established")

    anew = Case(f"a SYN+ACK sent again with another number is the one to acknowledge, {v}", ["8.8", "8.10"])
    _, watch = _begun(anew, f)
    watch.server(SYN_ACK, "syn-received")
    watch.server(tcp("SA", 6000, 1001))
    watch.forged_client(tcp("A", 1001, 5001))
    watch.client(tcp("A", 1001, 6001), "established")
    return [*made, wrong, again, partly, anew]


def _third(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    blind = Case(
        f"only an ACK of exactly the SYN+ACK establishes a flow, {v}", ["8.8", "8.10"], "RFC 9293 section 3.10.7.4"
    )
    talk, watch = _begun(blind, f)
    watch.forged_client(tcp("A", 1001, 5001))
    watch.server(SYN_ACK, "syn-received")
    # The server's window is 8192: a segment may begin that far, and one more for SYN or FIN, from 1001.
    for seq, ack in (
        (1001, 5000),
        (1001, 5002),
        (1001, 0),
        (2**31, 5001),
        (1001 + 8194, 5001),
        (2**32 + 1001 - 8194, 5001),
    ):
        watch.forged_client(tcp("A", seq % 2**32, ack))
        watch.forged_client(tcp("PA", seq % 2**32, ack, b"guess"))
        watch.forged_client(tcp("FA", seq % 2**32, ack))
    blind.counters(events={"flow_closed": 0})
    watch.client(tcp("A", 1001, 5001), "established")

    expired = Case(f"ACKs that do not answer the SYN+ACK keep no handshake, {v}", ["8.8", "8.12", "8.10"])
    talk, watch = _begun(expired, f)
    watch.server(SYN_ACK, "syn-received")
    expired.at(31 * SECOND - 1)
    talk.c(tcp("A", 1001, 5002))
    expired.flows(talk.flow("syn-received", idle_s=29.999))
    expired.at(31 * SECOND)
    expired.drop(talk.c_in(tcp("A", 1001, 5001)), "no_flow", direction="forward", service=f.web)

    ahead = Case(f"the third segment may be lost: a later one within the window establishes, too, {v}", ["8.8", "8.10"])
    talk, watch = _begun(ahead, f)
    watch.server(SYN_ACK, "syn-received")
    watch.client(tcp("PA", 1001 + 8193, 5001, b"later"), "established")

    data = Case(f"the third ACK may acknowledge what followed the SYN+ACK, and no more, {v}", ["8.8", "8.10"])
    talk, watch = _begun(data, f)
    watch.server(SYN_ACK, "syn-received")
    watch.server(tcp("PA", 5001, 1001, b"0123456789"))
    for ack in (5000, 5012):
        watch.forged_client(tcp("A", 1001, ack))
    watch.client(tcp("A", 1001, 5011), "established")

    early = Case(f"the third ACK may acknowledge data of the SYN+ACK, and no more, {v}", ["8.8", "8.10"], "RFC 7413")
    talk, watch = _begun(early, f)
    watch.server(tcp("SA", 5000, 1001, b"early"), "syn-received")
    for ack in (5000, 5007):
        watch.forged_client(tcp("A", 1001, ack))
    watch.client(tcp("A", 1001, 5006), "established")

    ending = Case(f"a FIN may be the third segment, {v}", ["8.8"])
    talk, watch = _begun(ending, f)
    watch.server(SYN_ACK, "syn-received")
    watch.client(tcp("FA", 1001, 5001), "established")
    watch.server(tcp("FA", 5001, 1002), "closing")
    ending.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
    return [blind, expired, ahead, data, early, ending]


# What follows the client's SYN, in order: who sends, what, and where the flow stands then.
ORDERS: dict[str, list[tuple[str, Packet, str]]] = {
    "simultaneous open, both SYN+ACKs after both SYNs": [
        ("forged server", CROSSED, "syn-sent"),
        ("client", CROSSED_ANSWER, "syn-sent"),
        ("server", SYN_ACK, "established"),
    ],
    "simultaneous open, the server's SYN+ACK first": [
        ("forged server", CROSSED, "syn-sent"),
        ("server", SYN_ACK, "syn-received"),
        ("client", CROSSED_ANSWER, "established"),
    ],
    "simultaneous open, the client's SYN+ACK lost": [
        ("forged server", CROSSED, "syn-sent"),
        ("server", SYN_ACK, "syn-received"),
        ("client", tcp("A", 1001, 5001), "established"),
    ],
    "simultaneous open, the server acknowledges by an ACK": [
        ("forged server", CROSSED, "syn-sent"),
        ("client", CROSSED_ANSWER, "syn-sent"),
        ("server", SYN_ONLY_ACK, "established"),
    ],
    "split handshake, the server's ACK before its SYN": [
        ("server", tcp("A", 5000, 1001), "syn-sent"),
        ("forged server", CROSSED, "syn-sent"),
        ("client", CROSSED_ANSWER, "established"),
    ],
    "split handshake, the server's ACK after its SYN": [
        ("forged server", CROSSED, "syn-sent"),
        ("server", SYN_ONLY_ACK, "syn-sent"),
        ("client", CROSSED_ANSWER, "established"),
    ],
    "split handshake, SYNs sent again": [
        ("forged server", CROSSED, "syn-sent"),
        ("forged server", CROSSED, "syn-sent"),
        ("client", CROSSED_ANSWER, "syn-sent"),
        ("client", CROSSED_ANSWER, "syn-sent"),
        ("server", SYN_ACK, "established"),
    ],
}


def _play(watch: Watch, order: list[tuple[str, Packet, str]]) -> None:
    for who, segment, state in order:
        if who == "client":
            watch.client(segment, state)
        elif who == "server":
            watch.server(segment, state)
        else:
            watch.forged_server(segment)


def _simultaneous(f: Family) -> list[Case]:
    made = []
    for name, order in ORDERS.items():
        case = Case(
            f"{name}: established once each side has acknowledged the other's SYN, IPv{f.version}",
            ["8.8"],
            "RFC 9293 section 3.5, RFC 5382 REQ-2",
        )
        _, watch = _begun(case, f)
        _play(watch, order)
        case.counters(services={f.web: {"flows_active": 1, "flows_created": 1}})
        watch.client(tcp("PA", 1001, 5001, b"question"))
        watch.server(tcp("PA", 5001, 1009, b"answer"))
        watch.forged_client(tcp("A", 1009 + 8194, 5007))
        watch.client(tcp("FA", 1009, 5007))
        watch.server(tcp("FA", 5007, 1010), "closing")
        case.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
        made.append(case)
    return made


def _forged(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"a simultaneous open with wrong numbers changes nothing, {v}", ["8.8", "8.10"])
    _, watch = _begun(case, f)
    # The server has sent no SYN yet.
    for ack in (0, 5001):
        watch.forged_client(tcp("SA", 1000, ack))
    watch.forged_server(CROSSED)
    for seq, ack in ((1000, 5000), (1000, 5002), (999, 5001), (1001, 5001), (77, 5001)):
        watch.forged_client(tcp("SA", seq, ack))
    for ack in (1000, 1002, 0):
        watch.forged_server(tcp("A", 5001, ack))
        watch.forged_server(tcp("SA", 5000, ack))
    watch.forged_client(tcp("A", 1001, 5001))
    watch.server(SYN_ACK, "syn-received")
    for seq, ack in ((1000, 5000), (1000, 5002), (999, 5001), (1001, 5001)):
        watch.forged_client(tcp("SA", seq, ack))
    watch.client(CROSSED_ANSWER, "established")

    replaced = Case(f"of two SYNs of a server that cross the client's, the last counts, {v}", ["8.8", "8.10"])
    _, watch = _begun(replaced, f)
    watch.forged_server(CROSSED)
    watch.forged_server(tcp("S", 6000))
    watch.forged_client(tcp("SA", 1000, 5001))
    watch.client(tcp("SA", 1000, 6001))
    watch.server(tcp("SA", 6000, 1001), "established")

    other = Case(f"a SYN+ACK with another number than the client has acknowledged needs its ACK, {v}", ["8.8", "8.10"])
    _, watch = _begun(other, f)
    watch.forged_server(CROSSED)
    watch.client(CROSSED_ANSWER)
    watch.server(tcp("SA", 6000, 1001), "syn-received")
    watch.forged_client(tcp("A", 1001, 5001))
    watch.client(tcp("A", 1001, 6001), "established")

    data = Case(f"data of a crossed SYN+ACK may be acknowledged, {v}", ["8.8", "8.10"], "RFC 9293 section 3.5")
    _, watch = _begun(data, f)
    watch.forged_server(CROSSED)
    watch.client(tcp("SA", 1000, 5001, b"early"))
    watch.forged_server(tcp("A", 5001, 1007))
    watch.server(tcp("A", 5001, 1006), "established")

    late = Case(f"a SYN of the server, or a crossed SYN+ACK, is none on a connection that stands, {v}", ["8.8", "8.10"])
    talk = Talk(late, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_server(tcp("S", 6000))
    watch.forged_client(tcp("SA", 1000, 6001))
    watch.forged_client(tcp("SA", 1000, 5001))
    watch.client(tcp("A", 1001, 5001))
    return [case, replaced, other, data, late]


def _rebooted(case: Case, f: Family) -> tuple[Talk, Watch]:
    """Open a connection of which only half is known, then let the client begin anew, and its server and it answer."""
    talk = Talk(case, f)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"hello"))
    talk.c(tcp("FA", 1006, 5001))
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000))
    for ack in (1001, 1007, 900000, 900002, 0):
        watch.forged_server(tcp("SA", 700000, ack))
        watch.forged_client(tcp("A", 900001, 700001))
    watch.forged_server(tcp("SA", 700000, 900001))
    # No other host knows the server's number.
    for ack in (700000, 700002, 900001, 0):
        watch.forged_client(tcp("A", 900001, ack))
    watch.client(tcp("A", 900001, 700001))
    return talk, watch


def _again(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(
        f"a client that acknowledges the answer to its SYN on an established flow begins anew, {v}", ["8.10", "8.1"]
    )
    talk, watch = _rebooted(case, f)
    # What was believed of the connection before may now be forged.
    watch.forged_client(tcp("A", 1007, 5001))
    watch.forged_server(tcp("FA", 5001, 1007))
    watch.client(tcp("PA", 900001, 700001, b"question"))
    watch.server(tcp("PA", 700001, 900009, b"answer"))
    # The FIN of the connection before is forgotten: the flow closes when both have sent one in this.
    watch.server(tcp("FA", 700007, 900009))
    watch.client(tcp("FA", 900009, 700008), "closing")
    case.counters(events={"flow_created": 1, "flow_closed": 1, "flow_reused": 0}, services={f.web: {"flows_active": 0}})

    unasked = Case(f"a SYN+ACK on an established flow without a SYN changes nothing, {v}", ["8.10", "8.1"])
    talk = Talk(unasked, f)
    talk.open()
    watch = Watch(talk)
    for ack in (1001, 1000, 900001):
        watch.forged_server(tcp("SA", 700000, ack))
    watch.server(tcp("A", 5001, 1001))

    last = Case(f"of two SYNs on an established flow the last counts, and once, {v}", ["8.10", "8.1"])
    talk = Talk(last, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000))
    watch.forged_client(tcp("S", 950000))
    watch.forged_server(tcp("SA", 700000, 900001))
    watch.forged_server(tcp("SA", 700000, 950001))
    watch.forged_server(tcp("SA", 800000, 950001))
    watch.forged_client(tcp("A", 950001, 700001))
    watch.client(tcp("A", 950001, 800001))
    watch.forged_client(tcp("A", 1001, 5001))
    watch.forged_server(tcp("SA", 900000, 950001))
    watch.forged_client(tcp("A", 950001, 900001))

    later = Case(f"a SYN on an established flow takes the place of one that was answered, {v}", ["8.10", "8.1"])
    talk = Talk(later, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000))
    watch.forged_server(tcp("SA", 700000, 900001))
    watch.forged_client(tcp("S", 950000))
    watch.forged_client(tcp("A", 900001, 700001))
    watch.forged_server(tcp("SA", 800000, 950001))
    # The connection goes on meanwhile.
    watch.client(tcp("PA", 1001, 5001, b"hello"))
    watch.server(tcp("A", 5001, 1006))
    # Its ACK may have been lost behind us: data tell as well.
    watch.client(tcp("PA", 950001, 800001, b"hello"))
    watch.forged_client(tcp("A", 1006, 5001))
    watch.server(tcp("A", 800001, 950006))

    same = Case(f"a SYN that comes again late, and is answered again, begins nothing anew, {v}", ["8.10"])
    talk = Talk(same, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_client(SYN)
    watch.forged_server(SYN_ACK)
    watch.client(tcp("A", 1001, 5001))
    watch.client(tcp("PA", 1001, 5001, b"hello"))
    watch.client(tcp("PA", 1006, 5001, b"hello"))
    watch.server(tcp("A", 5001, 1001))
    watch.client(tcp("R", 1011), "closing")

    opening = Case(
        f"a client that acknowledges the answer to its SYN on a half-open flow begins anew, {v}", ["8.8", "8.10", "8.1"]
    )
    _, watch = _begun(opening, f)
    watch.server(SYN_ACK, "syn-received")
    watch.forged_client(tcp("S", 900000))
    watch.forged_server(tcp("SA", 700000, 900002))
    watch.forged_server(tcp("SA", 700000, 900001))
    watch.forged_client(tcp("A", 1001, 700001 + 2**31))
    watch.client(tcp("A", 900001, 700001), "established")

    kept = Case(
        f"a SYN on an established flow and its challenge ACK change no number, {v}",
        ["8.10", "8.1"],
        "RFC 5961 section 4.2",
    )
    talk = Talk(kept, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000))
    watch.server(tcp("A", 5001, 1001))
    watch.client(tcp("PA", 1001, 5001, b"still here"))
    watch.dropped_client(tcp("R", 900001))
    watch.server(tcp("A", 5001, 1011))
    watch.dropped_client(tcp("R", 900001))
    watch.client(tcp("R", 1011), "closing")

    ahead = Case(f"a FIN ahead is forgotten when numbers begin anew, {v}", ["8.8", "8.10", "8.1"])
    talk = Talk(ahead, f)
    talk.open()
    watch = Watch(talk)
    watch.client(tcp("FA", 1011, 5001))
    watch.forged_client(tcp("S", 900000))
    watch.forged_server(tcp("SA", 700000, 900001))
    watch.client(tcp("A", 900001, 700001))
    watch.server(tcp("FA", 700001, 900001))
    ahead.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("FA", 900001, 700002), "closing")
    return [case, unasked, last, later, same, opening, kept, ahead]


def _reset_again(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    for who, right, wrong in (
        ("client", (900001,), (1001, 1006, 1007, 900000)),
        ("server", (700001,), (5000, 5001, 5002, 700000)),
    ):
        for seq in right:
            case = Case(
                f"after numbers began anew, a RST of the {who} is believed by the new ones, {v}", ["8.10", "8.1"]
            )
            talk, watch = _rebooted(case, f)
            dropped, believed = (
                (watch.dropped_client, watch.client) if who == "client" else (watch.dropped_server, watch.server)
            )
            for other in wrong:
                dropped(tcp("R", other))
            believed(tcp("R", seq), "closing")
            case.counters(events={"flow_closed": 1}, verdicts={"drop.rst_window": len(wrong)})
            made.append(case)

    stranger = Case(
        f"a client that begins anew elsewhere is followed once it is believed, {v}", ["8.10", "8.1", "8.13"]
    )
    talk = Talk(stranger, f)
    talk.open()
    moved = Talk(stranger, f, mac=CLIENT2_MAC)
    moved.c(tcp("S", 900000))
    talk.s(tcp("SA", 700000, 900001))
    talk.s(tcp("A", 5001, 1001))
    moved.c(tcp("A", 900001, 700001))
    moved.s(tcp("A", 700001, 900001))
    Talk(stranger, f, mac=STRANGER).c(tcp("A", 1001, 5001))
    moved.s(tcp("A", 700001, 900001))
    return [*made, stranger]


def _cookies(f: Family) -> list[Case]:
    """Make handshakes with a server that answers every SYN and remembers none, amid SYNs in the client's name."""
    v = f"IPv{f.version}"
    origin = "RFC 4987 section 3.6"
    forged, answer = tcp("S", 77777), tcp("SA", 6000, 77778)
    after = Case(
        f"a SYN in a client's name, answered by a SYN cookie, harms no handshake, {v}", ["8.8", "8.10"], origin
    )
    _, watch = _begun(after, f)
    watch.server(SYN_ACK, "syn-received")
    watch.forged_client(forged)
    watch.forged_server(answer)
    watch.client(tcp("A", 1001, 5001), "established")
    _goes_on(watch)

    late = Case(f"a SYN cookie to a SYN in a client's name that comes late is nothing, {v}", ["8.8", "8.10"], origin)
    _, watch = _begun(late, f)
    watch.forged_client(forged)
    watch.server(SYN_ACK, "syn-received")
    watch.client(tcp("A", 1001, 5001), "established")
    watch.forged_server(answer)
    _goes_on(watch)

    first = Case(f"the true of two SYN cookies is the one that the client acknowledges, {v}", ["8.8", "8.10"], origin)
    _, watch = _begun(first, f)
    watch.forged_client(forged)
    watch.server(answer, "syn-received")
    watch.forged_server(SYN_ACK)
    watch.client(tcp("A", 1001, 5001), "established")
    _goes_on(watch)

    before = Case(
        f"a flow that a SYN in a client's name began is the client's in the end, {v}", ["8.8", "8.10"], origin
    )
    _, watch = _begun(before, f, forged)
    watch.forged_client(SYN)
    watch.server(answer, "syn-received")
    watch.forged_server(SYN_ACK)
    watch.client(tcp("PA", 1001, 5001, b""), "established")
    _goes_on(watch)
    return [after, late, first, before]


def _goes_on(watch: Watch) -> None:
    """Let the connection of SYN and SYN_ACK go on to its end."""
    watch.client(tcp("PA", 1001, 5001, b"question"))
    watch.server(tcp("PA", 5001, 1009, b"answer"))
    watch.dropped_client(tcp("R", 77778))
    watch.server(tcp("FA", 5007, 1009))
    watch.client(tcp("FA", 1009, 5008), "closing")


def _refused_again(f: Family) -> list[Case]:
    """Make clients that begin anew on a flow that stands, and connections that are given up before they count."""
    v = f"IPv{f.version}"
    made = []
    for state in ("syn-received", "established"):
        refused = Case(f"a client that begins anew on a {state} flow learns that it is refused, {v}", ["8.10", "8.1"])
        _, watch = _begun(refused, f)
        watch.server(SYN_ACK, "syn-received")
        if state == "established":
            watch.client(tcp("A", 1001, 5001), state)
        watch.forged_client(tcp("S", 900000))
        for number in (900000, 900002, 0):
            watch.dropped_server(tcp("RA", 0, number))
        watch.dropped_server(tcp("R", 900001, 900001))
        # A server's name may be used, too: what is over here says who knows its numbers.
        watch.forged_server(tcp("RA", 0, 900001))
        watch.dropped_client(tcp("R", 900001))
        watch.client(tcp("A", 1001, 5001), "established")

        given_up = Case(
            f"a client or server that gives up another connection on a {state} flow is heard, {v}", ["8.10", "8.1"]
        )
        _, watch = _begun(given_up, f)
        watch.server(SYN_ACK, "syn-received")
        if state == "established":
            watch.client(tcp("A", 1001, 5001), state)
        watch.forged_client(tcp("S", 900000))
        watch.forged_server(tcp("SA", 700000, 900001))
        watch.forged_client(tcp("R", 900001))
        watch.forged_server(tcp("R", 700001))
        watch.dropped_server(tcp("R", 700002))
        watch.dropped_server(tcp("RA", 0, 900001))
        watch.client(tcp("R", 1001), "closing")
        made += [refused, given_up]
    return made
