"""Which numbers of a TCP connection are believed: windows, FIN, RST (docs/rules.md rule 8.10, believed segments)."""

from __future__ import annotations

from typing import Any

from scapy.packet import Packet
from scene import BOTH, STRANGER, Case, Family, Talk, Watch, tcp, two_interfaces

SECOND = 1000
WINDOW = 8192
RFC = "RFC 5961 section 3.2"


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [
            *_windows(f),
            *_scales(f),
            *_idle(f),
            *_exact_resets(f),
            *_gaps(f),
            *_other_resets(f),
            *_early_resets(f),
            *_fins(f),
            *_fins_ahead(f),
            *_forged_fins(f),
        ]
    return made


def _opened(case: Case, f: Family) -> Watch:
    """Open a connection: each side has acknowledged the other's SYN (1001, 5001), both windows are 8192 bytes."""
    talk = Talk(case, f)
    talk.open()
    return Watch(talk)


def _edges(watch: Watch, client: int, server: int, client_window: int, server_window: int) -> None:
    """
    Put segments just inside and just outside both windows, where `client` and `server` were acknowledged, `client` by
    the server. Those inside move nothing of that: each acknowledges what was acknowledged before.
    """
    # One beyond the window is room for a probe or a FIN.
    for sign in (1, -1):
        end = (server_window + 1) * sign
        watch.forged_client(tcp("A", (client + end + sign) % 2**32, server, window=1))
        watch.client(tcp("A", (client + end) % 2**32, server, window=1))
        end = (client_window + 1) * sign
        watch.forged_server(tcp("A", (server + end + sign) % 2**32, client, window=1))
        watch.server(tcp("A", (server + end) % 2**32, client, window=1))


def _windows(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    plain = Case(f"a segment is believed from a window before to a window after what was acknowledged, {v}", ["8.10"])
    _edges(_opened(plain, f), 1001, 5001, WINDOW, WINDOW)

    acks = Case(f"a segment is believed if it acknowledges what was sent, or a window before, {v}", ["8.10"])
    watch = _opened(acks, f)
    watch.client(tcp("PA", 1001, 5001, b"question"))
    watch.server(tcp("PA", 5001, 1001, b"answer"))
    for end in (1, 2, WINDOW, WINDOW + 1, 2**31, 2**32 - WINDOW - 10):
        watch.forged_client(tcp("A", 1009, (5007 + end) % 2**32))
        watch.forged_server(tcp("A", 5007, (1009 + end) % 2**32))
    watch.client(tcp("A", 1009, (5001 - WINDOW - 1) % 2**32))
    watch.server(tcp("A", 5007, (1001 - WINDOW - 1) % 2**32))
    watch.client(tcp("A", 1009, 5007))
    watch.server(tcp("A", 5007, 1009))
    _edges(watch, 1009, 5007, WINDOW, WINDOW)

    chain = Case(f"guesses that begin where others have led lead nowhere, {v}", ["8.10", "8.13"], RFC)
    watch = _opened(chain, f)
    for number in range(1, 8):
        watch.forged_client(tcp("A", 1001, 5001 + WINDOW * number))
        watch.forged_server(tcp("A", 5001, 1001 + WINDOW * number))
    # Data ahead moves the end of what may be acknowledged, once: the window begins at what the other side acknowledges.
    watch.client(tcp("PA", 1001 + WINDOW, 5001, b"guess"))
    watch.forged_client(tcp("PA", 1001 + 2 * WINDOW, 5001, b"guess"))
    watch.server(tcp("PA", 5001, 1001, b"true"))
    watch.client(tcp("PA", 1001, 5005, b"true"))
    watch.server(tcp("A", 5005, 1005))
    watch.client(tcp("A", 1005, 5005))
    watch.client(tcp("R", 1005), "closing")

    grown = Case(f"the largest window that was advertised counts, {v}", ["8.10"])
    watch = _opened(grown, f)
    watch.client(tcp("A", 1001, 5001, window=60000))
    watch.server(tcp("A", 5001, 1001, window=30000))
    watch.client(tcp("A", 1001, 5001, window=0))
    watch.server(tcp("A", 5001, 1001, window=0))
    _edges(watch, 1001, 5001, 60000, 30000)

    ignored = Case(f"a window of a segment that is not believed counts nothing, {v}", ["8.10"])
    watch = _opened(ignored, f)
    watch.forged_client(tcp("A", 1001, 77777, window=65535))
    watch.forged_server(tcp("A", 77777, 1001, window=65535))
    watch.forged_client(tcp("P", 1001, window=65535))
    _edges(watch, 1001, 5001, WINDOW, WINDOW)

    wrapped = Case(f"windows wrap around with the numbers, {v}", ["8.10"])
    talk = Talk(wrapped, f)
    talk.open(2**32 - 2, 2**32 - 3)
    _edges(Watch(talk), 2**32 - 1, 2**32 - 2, WINDOW, WINDOW)

    without = Case(f"a segment without ACK is never believed, {v}", ["8.10"])
    watch = _opened(without, f)
    watch.forged_client(tcp("P", 1001, data=b"data"))
    watch.forged_server(tcp("PU", 5001, data=b"data"))
    watch.dropped_client(tcp("R", 1001 + WINDOW + 1))
    watch.client(tcp("R", 1001), "closing")

    apart = Case(
        f"only a believed segment moves the way back to another interface, {v}", ["8.10", "8.13"], **two_interfaces()
    )
    address = next(s for s in apart.setup["services"] if s["name"] == f.web)["servers"][0]["address"]
    talk = Talk(apart, f, server_address=address, server_if="eth1")
    talk.open()
    beside = Talk(apart, f, mac=STRANGER, client_if="eth1", server_address=address, server_if="eth1")
    beside.c(tcp("A", 1001, 5001 + WINDOW + 2, b"guess"))
    talk.s(tcp("A", 5001, 1001))
    beside.c(tcp("A", 1001, 5001))
    beside.s(tcp("A", 5001, 1001))
    return [plain, acks, chain, grown, ignored, wrapped, without, apart]


def _shift(shift: int, *more: tuple[str, Any]) -> dict[str, Any]:
    return {"options": [("NOP", None), ("WScale", shift), *more]}


def _syn(flags: str, seq: int, ack: int, window: int, options: bytes) -> Packet:
    """Make a SYN with option bytes as they are, a multiple of 4: scapy would repair them."""
    return tcp(flags, seq, ack, options, dataofs=5 + len(options) // 4, window=window)


def _scales(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    # Name; what client and server offer (option bytes) and the shift that each window has then.
    nothing = b""
    mss = b"\x02\x04\x05\xb4"
    rows: list[tuple[str, bytes, bytes, int, int]] = [
        ("both offer", b"\x01\x03\x03\x07", b"\x03\x03\x02\x00", 7, 2),
        ("both offer, after other options", mss + b"\x01\x03\x03\x07", mss + b"\x04\x02\x03\x03\x02\x00\x00\x00", 7, 2),
        ("the client alone offers", b"\x01\x03\x03\x07", nothing, 0, 0),
        ("the server alone offers", mss, b"\x01\x03\x03\x07", 0, 0),
        ("the server's option follows one of length 1", b"\x01\x03\x03\x07", b"\x08\x01\x01\x01\x01\x03\x03\x07", 0, 0),
        (
            "the server's option follows one that is too long",
            b"\x01\x03\x03\x07",
            b"\x08\x0a\x01\x03\x03\x07\x01\x01",
            0,
            0,
        ),
        ("the client's option is cut short", b"\x01\x01\x03\x03", b"\x01\x03\x03\x07", 0, 0),
        ("the client's option has another length", b"\x03\x04\x07\x07", b"\x01\x03\x03\x07", 0, 0),
        ("the server's option is behind the end of options", b"\x01\x03\x03\x07", b"\x00\x03\x03\x07", 0, 0),
        ("a shift above 14 counts as 14", b"\x01\x03\x03\x0f", b"\x01\x03\x03\xff", 14, 14),
        ("both offer a shift of 0", b"\x01\x03\x03\x00", b"\x01\x03\x03\x00", 0, 0),
    ]
    made = []
    for name, client, server, client_shift, server_shift in rows:
        case = Case(f"window scale: {name}, {v}", ["8.10"], "RFC 7323 section 2.2, 2.3")
        talk = Talk(case, f)
        talk.c(_syn("S", 1000, 0, 1000, client))
        talk.s(_syn("SA", 5000, 1001, 500, server))
        talk.c(tcp("A", 1001, 5001, window=0))
        watch = Watch(talk)
        # So far only the windows of the SYNs, which are not scaled, but counted in units of the shift, rounded up.
        counted = [-(-raw >> shift) << shift for raw, shift in ((1000, client_shift), (500, server_shift))]
        _edges(watch, 1001, 5001, *counted)
        watch.client(tcp("A", 1001, 5001, window=3000))
        watch.server(tcp("A", 5001, 1001, window=2000))
        _edges(watch, 1001, 5001, 3000 << client_shift, 2000 << server_shift)
        made.append(case)

    resets = Case(f"a RST is sent on within the scaled window, and dropped beyond, {v}", ["8.10"], RFC)
    talk = Talk(resets, f)
    talk.c(tcp("S", 1000, window=1000, **_shift(7)))
    talk.s(tcp("SA", 5000, 1001, window=500, **_shift(2)))
    talk.c(tcp("A", 1001, 5001, window=500))
    watch = Watch(talk)
    watch.server(tcp("A", 5001, 1001, window=1000))
    for seq, far in ((1002, False), (1001 + 4000, False), (1001 + 4001, True), (1000, True)):
        (watch.dropped_client if far else watch.forged_client)(tcp("R", seq))
    for seq, far in ((5002, False), (5001 + 64000, False), (5001 + 64001, True), (5000, True)):
        (watch.dropped_server if far else watch.forged_server)(tcp("R", seq))

    renewed = Case(f"numbers that begin anew have windows of their own, {v}", ["8.10", "8.1"], "RFC 7323 section 2.2")
    talk = Talk(renewed, f)
    talk.open()
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000, window=77, **_shift(3)))
    watch.forged_server(tcp("SA", 700000, 900001, window=1000, **_shift(1)))
    watch.client(tcp("A", 900001, 700001, window=0))
    # Of both SYNs the shifts were kept, their windows count as the largest there are.
    _edges(watch, 900001, 700001, 65536, 65536)
    watch.client(tcp("A", 900001, 700001, window=9000))
    watch.server(tcp("A", 700001, 900001, window=40000))
    _edges(watch, 900001, 700001, 9000 << 3, 40000 << 1)

    unscaled = Case(
        f"numbers that begin anew without a window scale are not scaled, {v}", ["8.10", "8.1"], "RFC 7323 section 2.2"
    )
    talk = Talk(unscaled, f)
    talk.c(tcp("S", 1000, **_shift(7)))
    talk.s(tcp("SA", 5000, 1001, **_shift(7)))
    talk.c(tcp("A", 1001, 5001))
    watch = Watch(talk)
    watch.forged_client(tcp("S", 900000, **_shift(7)))
    watch.forged_server(tcp("SA", 700000, 900001, window=1000))
    watch.client(tcp("A", 900001, 700001, window=1000))
    _edges(watch, 900001, 700001, 65535, 65535)
    return [*made, resets, renewed, unscaled, *_crossed_scales(f)]


def _crossed_scales(f: Family) -> list[Case]:
    """Windows of a simultaneous or split handshake: each side's SYN offers, and both are settled at the end."""
    v = f"IPv{f.version}"
    made = []
    crossed = tcp("S", 5000, window=500, **_shift(2))
    answer = tcp("SA", 1000, 5001, window=1000, **_shift(7))
    only_ack = tcp("A", 5001, 1001, window=0)
    for name, order in (
        ("the client's SYN+ACK is the last", (("s", crossed), ("s", only_ack), ("c", answer))),
        ("the server's ACK is the last", (("s", crossed), ("c", answer), ("s", only_ack))),
    ):
        case = Case(f"window scale: a split handshake, {name}, {v}", ["8.8", "8.10"], "RFC 7323 section 2.2")
        talk = Talk(case, f)
        talk.c(tcp("S", 1000, window=1000, **_shift(7)))
        for who, segment in order:
            (talk.c if who == "c" else talk.s)(segment)
        # 1000 bytes are 8 units of 128.
        _edges(Watch(talk), 1001, 5001, 1024, 500)
        made.append(case)
    last = Case(
        f"window scale: the server's SYN+ACK counts, not its SYN before, {v}", ["8.8", "8.10"], "RFC 7323 section 2.2"
    )
    talk = Talk(last, f)
    talk.c(tcp("S", 1000, window=1000, **_shift(7)))
    talk.s(tcp("S", 5000, window=60000, **_shift(2)))
    talk.s(tcp("SA", 5000, 1001, window=500))
    talk.c(tcp("A", 1001, 5001, window=0))
    _edges(Watch(talk), 1001, 5001, 1000, 500)
    several = Case(
        f"window scale: of several SYNs the largest window and shift count, {v}", ["8.10"], "RFC 7323 section 2.3"
    )
    talk = Talk(several, f)
    talk.c(tcp("S", 1000, window=60000, **_shift(7)))
    talk.c(tcp("S", 1000, window=1000, **_shift(2)))
    talk.s(tcp("SA", 5000, 1001, window=500, **_shift(0)))
    talk.c(tcp("A", 1001, 5001, window=0))
    # 60000 bytes are 469 units of 128, rounded up.
    _edges(Watch(talk), 1001, 5001, 469 << 7, 500)
    return [*made, last, several, *_other_syns(f)]


def _other_syns(f: Family) -> list[Case]:
    """Several SYNs of a client: one that is not answered may be forged, and has no say in its windows."""
    v = f"IPv{f.version}"
    made = []
    # Of the client's SYN that is answered: its number, the shift it offers, the window it has.
    for name, answered, shift, window in (
        ("the first is answered", 1000, 2, 1000),
        ("the last is answered", 900000, 14, 65536),
    ):
        case = Case(f"window scale: of two SYNs of a client {name}, {v}", ["8.10"], "RFC 7323 section 2.3")
        talk = Talk(case, f)
        talk.c(tcp("S", 1000, window=1000, **_shift(2)))
        talk.c(tcp("S", 900000, window=65535, **_shift(14)))
        talk.s(tcp("SA", 5000, answered + 1, window=500, **_shift(1)))
        talk.c(tcp("A", answered + 1, 5001, window=0))
        watch = Watch(talk)
        _edges(watch, answered + 1, 5001, window, 500)
        watch.client(tcp("A", answered + 1, 5001, window=3000))
        _edges(watch, answered + 1, 5001, max(3000 << shift, window), 500)
        made.append(case)
    repeated = Case(f"window scale: a SYN that repeats the first offers with it, {v}", ["8.10"], "RFC 7323 section 2.3")
    talk = Talk(repeated, f)
    talk.c(tcp("S", 1000, window=1000))
    talk.c(tcp("S", 900000, window=65535, **_shift(14)))
    talk.c(tcp("S", 1000, window=2000, **_shift(3)))
    talk.s(tcp("SA", 5000, 900001))
    repeated.flows(talk.flow("syn-sent"))
    talk.s(tcp("SA", 5000, 1001, window=500, **_shift(0)))
    talk.c(tcp("A", 1001, 5001, window=0))
    _edges(Watch(talk), 1001, 5001, 2000, 500)
    crossed = Case(
        f"window scale: of a server's SYNs the one that is answered counts, {v}", ["8.10"], "RFC 7323 section 2.3"
    )
    talk = Talk(crossed, f)
    talk.c(tcp("S", 1000, window=1000, **_shift(1)))
    talk.s(tcp("S", 777777, window=65535, **_shift(14)))
    talk.s(tcp("S", 5000, window=500, **_shift(2)))
    talk.c(tcp("SA", 1000, 5001, window=1000, **_shift(1)))
    # The client has answered: no other SYN has a say, on either side.
    talk.s(tcp("S", 777777, window=65535, **_shift(14)))
    talk.c(tcp("S", 900000, window=65535, **_shift(14)))
    talk.s(tcp("A", 5001, 1001, window=0))
    watch = Watch(talk)
    _edges(watch, 1001, 5001, 1000, 500)
    watch.dropped_server(tcp("R", 777778))
    watch.dropped_client(tcp("R", 900001))
    return [*made, repeated, crossed]


def _idle(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"segments outside the window do not keep a connection, {v}", ["8.12", "8.10"], "RFC 5382 REQ-5")
    talk = Talk(case, f)
    talk.open()
    for hours in (1, 2):
        case.at(hours * 3600 * SECOND)
        talk.c(tcp("PA", 1001 + WINDOW + 2, 5001, b"guess"))
        talk.s(tcp("PA", 5001, 1001 + WINDOW + 2, b"guess"))
        talk.c(tcp("R", 1002))
        talk.c(tcp("S", 99))
    case.at(7440 * SECOND - 1)
    case.flows(talk.flow("established", idle_s=7439.999))
    case.at(7440 * SECOND)
    case.drop(talk.c_in(tcp("A", 1001, 5001)), "no_flow", direction="forward", service=f.web)
    case.counters(events={"flow_expired": 1, "flow_closed": 0})
    return [case]


def _exact_resets(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    made = []
    at_end = "at the end of what it has sent is believed, too"
    for who, what, seq in (
        ("client", "at what the server has acknowledged is believed", 1001),
        ("client", at_end, 1006),
        ("server", "at what the client has acknowledged is believed", 5001),
        ("server", at_end, 5007),
    ):
        case = Case(f"a RST of the {who} {what}, {v}", ["8.8", "8.10"], RFC)
        watch = _opened(case, f)
        watch.client(tcp("PA", 1001, 5001, b"hello"))
        watch.server(tcp("PA", 5001, 1001, b"world!"))
        # 1001 and 5001 are acknowledged, 1006 and 5007 follow what was sent: no other number is believed.
        for inside in (1002, 1005, 1007, 1001 + WINDOW):
            watch.forged_client(tcp("R", inside))
            watch.forged_client(tcp("RA", inside, 5007))
        for inside in (5002, 5006, 5008, 5001 + WINDOW):
            watch.forged_server(tcp("R", inside))
            watch.forged_server(tcp("RA", inside, 1006))
        for outside in (1000, 1001 + WINDOW + 1, 1001 + 2**31, 0):
            watch.dropped_client(tcp("RA", outside, 5007))
        for outside in (5000, 5001 + WINDOW + 1, 5001 + 2**31, 0):
            watch.dropped_server(tcp("RA", outside, 1006))
        case.counters(events={"flow_closed": 0}, verdicts={"drop.rst_window": 8}, services={f.web: {"flows_active": 1}})
        (watch.client if who == "client" else watch.server)(tcp("R", seq), "closing")
        case.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
        made.append(case)
    return made


def _gaps(f: Family) -> list[Case]:
    """Data that do not follow what was seen: they may be a guess, till they are acknowledged."""
    v = f"IPv{f.version}"
    guessed = Case(f"data that do not follow what was sent make no number for a RST, {v}", ["8.10"], RFC)
    watch = _opened(guessed, f)
    for seq in (1002, 5000, 1001 + WINDOW - 5, 1000, 500):
        watch.client(tcp("PA", seq, 5001, b"guess"))
        (watch.forged_client if seq > 1000 else watch.dropped_client)(tcp("R", seq))
        # What ends at 1005 starts at 1000, before what is acknowledged.
        (watch.forged_client if seq >= 1000 else watch.dropped_client)(tcp("R", seq + 5))
    for seq in (5002, 9000, 5001 + WINDOW - 5):
        watch.server(tcp("PA", seq, 1001, b"guess"))
        watch.forged_server(tcp("R", seq))
        watch.forged_server(tcp("R", seq + 5))
    guessed.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("R", 1001), "closing")

    filled = Case(f"data beyond a gap count once they are acknowledged, {v}", ["8.8", "8.10"], RFC)
    watch = _opened(filled, f)
    watch.client(tcp("PA", 1006, 5001, b"later"))
    watch.client(tcp("PA", 1001, 5001, b"first"))
    watch.forged_client(tcp("R", 1011))
    watch.server(tcp("A", 5001, 1011))
    watch.client(tcp("PA", 1011, 5001, b"again"))
    watch.client(tcp("R", 1016), "closing")

    merged = Case(f"data sent again, and more with them, follow what was sent, {v}", ["8.8", "8.10"], RFC)
    watch = _opened(merged, f)
    watch.server(tcp("PA", 5001, 1001, b"0123456789"))
    watch.server(tcp("PA", 5006, 1001, b"56789 and more"))
    watch.forged_server(tcp("R", 5011))
    watch.server(tcp("R", 5020), "closing")

    acked = Case(f"several losses at once keep no number back, {v}", ["8.8", "8.10"], RFC)
    watch = _opened(acked, f)
    for seq in (1001, 1021, 1041):
        watch.client(tcp("PA", seq, 5001, b"0123456789"))
    watch.forged_server(tcp("A", 5001, 1052))
    for seq in (1011, 1031):
        watch.server(tcp("A", 5001, seq))
        watch.client(tcp("PA", seq, 5001, b"0123456789"))
        # Whether all before its end was seen is not known: this is no exact RST.
        watch.forged_client(tcp("R", 1051))
    watch.server(tcp("A", 5001, 1051))
    watch.dropped_client(tcp("R", 1031))
    watch.client(tcp("R", 1051), "closing")
    return [guessed, filled, merged, acked]


def _other_resets(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    acked = Case(f"a RST follows what the other side acknowledges, {v}", ["8.10"], RFC)
    watch = _opened(acked, f)
    watch.client(tcp("PA", 1001, 5001, b"hello"))
    watch.server(tcp("A", 5001, 1006))
    watch.dropped_client(tcp("R", 1001))
    watch.dropped_client(tcp("R", 1005))
    watch.client(tcp("R", 1006), "closing")

    closing = Case(f"in closing any RST is sent on, and an exact one refreshes, {v}", ["8.8", "8.10"], RFC)
    watch = _opened(closing, f)
    watch.client(tcp("R", 1001), "closing")
    for seq in (77, 1000, 1002, 2**31):
        watch.forged_client(tcp("R", seq))
        watch.forged_server(tcp("RA", seq, 77))
    watch.client(tcp("R", 1001))
    watch.server(tcp("RA", 5001, 1001))
    closing.counters(events={"flow_closed": 1}, verdicts={"drop.rst_window": 0})

    finished = Case(f"a RST after both FINs is sent on and closes nothing anew, {v}", ["8.8", "8.10"])
    talk = Talk(finished, f)
    talk.open()
    talk.close()
    watch = Watch(talk, "closing")
    watch.forged_server(tcp("R", 99))
    watch.client(tcp("R", 1002))
    finished.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
    return [acked, closing, finished]


def _early_resets(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    given_up = Case(f"a client's RST after its SYN is believed at the number after that, {v}", ["8.10"], RFC)
    talk = Talk(given_up, f)
    talk.c(tcp("S", 1000))
    watch = Watch(talk, "syn-sent")
    # Any other may answer an ACK of a connection that only the server knows.
    for seq in (1002, 1001 + 2**30, 1000, 1001 + 2**30 + 1, 1001 + 2**31):
        watch.forged_client(tcp("R", seq))
    watch.client(tcp("R", 1001), "closing")

    first = Case(
        f"a client's RST is believed at the number after its first SYN, not at that after its last, {v}", ["8.10"]
    )
    talk = Talk(first, f)
    talk.c(tcp("S", 1000))
    talk.c(tcp("S", 900000))
    watch = Watch(talk, "syn-sent")
    for seq in (1000, 900001):
        watch.forged_client(tcp("R", seq))
    watch.client(tcp("R", 1001), "closing")

    unheard = Case(
        f"of a server that has not answered, only a RST that acknowledges the SYN is believed, {v}", ["8.10"]
    )
    talk = Talk(unheard, f)
    talk.c(tcp("S", 1000))
    watch = Watch(talk, "syn-sent")
    for segment in (tcp("R", 0), tcp("R", 1001), tcp("R", 0, 1001), tcp("RA", 0, 1000), tcp("RA", 1001, 1002)):
        watch.dropped_server(segment)
    # A SYN that crosses tells nothing that could not be guessed.
    watch.forged_server(tcp("S", 5000))
    for segment in (tcp("R", 5001), tcp("RA", 5001, 1002)):
        watch.dropped_server(segment)
    watch.server(tcp("RA", 5001, 1001), "closing")

    half_open = []
    for name, segment, from_client in (
        ("the client gives up", tcp("R", 1001), True),
        ("the server resets at the number after its SYN", tcp("R", 5001), False),
        ("the server refuses the SYN that came again", tcp("RA", 0, 1001), False),
    ):
        case = Case(f"a half-open flow is reset: {name}, {v}", ["8.8", "8.10"], "RFC 9293 section 3.10.7.4")
        talk = Talk(case, f)
        talk.c(tcp("S", 1000))
        talk.s(tcp("SA", 5000, 1001))
        watch = Watch(talk, "syn-received")
        watch.forged_client(tcp("R", 1002))
        watch.dropped_client(tcp("R", 1000))
        watch.dropped_client(tcp("R", 1001 + WINDOW + 1))
        watch.forged_server(tcp("RA", 5002, 1002))
        watch.dropped_server(tcp("RA", 0, 1002))
        watch.dropped_server(tcp("RA", 5000, 1000))
        watch.dropped_server(tcp("R", 0, 1001))
        (watch.client if from_client else watch.server)(segment, "closing")
        case.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})
        half_open.append(case)
    return [given_up, first, unheard, *half_open]


def _fins(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    forged = Case(f"a FIN outside the window is none, {v}", ["8.8", "8.10"])
    watch = _opened(forged, f)
    for seq, ack in ((1001 + WINDOW + 2, 5001), (1001, 5001 + WINDOW + 2), (2**31, 0)):
        watch.forged_client(tcp("FA", seq, ack))
    for seq, ack in ((5001 + WINDOW + 2, 1001), (5001, 1001 + WINDOW + 2), (2**31, 0)):
        watch.forged_server(tcp("FA", seq, ack))
    forged.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("FA", 1001, 5001))
    watch.forged_server(tcp("FA", 5001, 1002 + WINDOW + 2))
    watch.server(tcp("FA", 5001, 1002), "closing")

    one = Case(f"one side's FIN, sent again and again, closes nothing, {v}", ["8.8"])
    watch = _opened(one, f)
    for _ in range(3):
        watch.client(tcp("FA", 1001, 5001))
    watch.server(tcp("A", 5001, 1002))
    watch.server(tcp("PA", 5001, 1002, b"half-closed"))
    one.counters(services={f.web: {"flows_active": 1}})
    watch.client(tcp("A", 1002, 5012))
    watch.server(tcp("FA", 5012, 1002), "closing")
    watch.client(tcp("A", 1002, 5013))
    watch.server(tcp("FA", 5012, 1002))
    one.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})

    both = Case(f"FINs that cross close a flow, {v}", ["8.8"], "RFC 9293 section 3.6")
    watch = _opened(both, f)
    watch.client(tcp("FA", 1001, 5001))
    watch.server(tcp("FA", 5001, 1001), "closing")
    watch.client(tcp("A", 1002, 5002))
    watch.server(tcp("A", 5002, 1002))

    with_data = Case(f"a FIN with data ends after them, {v}", ["8.8"])
    watch = _opened(with_data, f)
    watch.client(tcp("FPA", 1001, 5001, b"bye"))
    watch.server(tcp("FPA", 5001, 1005, b"bye"), "closing")
    # The end of all that was sent is 1005 for the client, 5005 for the server. That is not acknowledged yet, and what
    # is over needs no more.
    watch.client(tcp("R", 1005))
    watch.forged_client(tcp("R", 1004))
    watch.forged_server(tcp("R", 5005))
    watch.client(tcp("A", 1005, 5005))
    watch.server(tcp("R", 5005))
    watch.forged_server(tcp("R", 5004))
    return [forged, one, both, with_data]


def _fins_ahead(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    acknowledged = Case(f"a FIN ahead of what was seen counts once it is acknowledged, {v}", ["8.8", "8.10"])
    watch = _opened(acknowledged, f)
    watch.client(tcp("FA", 1011, 5001))
    watch.server(tcp("FA", 5001, 1001))
    for ack in (1001, 1011):
        watch.server(tcp("A", 5002, ack))
    watch.server(tcp("A", 5002, 1012), "closing")
    acknowledged.counters(events={"flow_closed": 1})

    other = Case(f"a server's FIN ahead of what was seen counts once it is acknowledged, {v}", ["8.8", "8.10"])
    watch = _opened(other, f)
    watch.client(tcp("FA", 1001, 5001))
    watch.server(tcp("FA", 5101, 1002))
    watch.client(tcp("A", 1002, 5001))
    watch.client(tcp("A", 1002, 5102), "closing")

    guessed = Case(f"a FIN ahead that is never acknowledged closes nothing, {v}", ["8.8", "8.10"])
    watch = _opened(guessed, f)
    # A sender has guessed a number inside the window: as good as the client's, till the server acknowledges.
    watch.client(tcp("FA", 1501, 5001))
    watch.server(tcp("FA", 5001, 1001))
    watch.server(tcp("A", 5002, 1001))
    watch.client(tcp("PA", 1001, 5002, b"true"))
    watch.server(tcp("A", 5002, 1005))
    guessed.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("FA", 1005, 5002), "closing")

    filled = Case(f"a FIN ahead counts when it comes again behind what was acknowledged, {v}", ["8.8", "8.10"])
    watch = _opened(filled, f)
    watch.server(tcp("FA", 5001, 1001))
    watch.client(tcp("FA", 1011, 5002))
    watch.client(tcp("PA", 1001, 5002, b"0123456789"))
    # How far the data reach is not known any more, so it may be a guess still.
    watch.client(tcp("FA", 1011, 5002))
    watch.server(tcp("A", 5002, 1011))
    watch.client(tcp("FA", 1011, 5002), "closing")

    at_once = Case(f"a FIN ahead counts when it comes again with all that was missing, {v}", ["8.8", "8.10"])
    watch = _opened(at_once, f)
    watch.server(tcp("FA", 5001, 1001))
    watch.client(tcp("FA", 1011, 5002))
    watch.client(tcp("FPA", 1001, 5002, b"0123456789"), "closing")
    return [acknowledged, other, guessed, filled, at_once]


def _forged_fins(f: Family) -> list[Case]:
    """FINs that find room in the window, and are not the peer's."""
    v = f"IPv{f.version}"
    behind = Case(f"a FIN behind what was acknowledged is none, {v}", ["8.8", "8.10"])
    watch = _opened(behind, f)
    watch.client(tcp("PA", 1001, 5001, b"0123456789"))
    watch.server(tcp("A", 5001, 1011))
    for seq in (999, 1001, 1009, 1010):
        watch.client(tcp("FA", seq, 5001))
    watch.server(tcp("FA", 5001, 1011))
    watch.server(tcp("A", 5002, 1011))
    behind.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("FA", 1011, 5002), "closing")

    passed = Case(f"a FIN ahead is forgotten when more is acknowledged, {v}", ["8.8", "8.10"])
    watch = _opened(passed, f)
    watch.client(tcp("FA", 1005, 5001))
    watch.forged_client(tcp("R", 1006))
    watch.server(tcp("FA", 5001, 1001))
    watch.client(tcp("PA", 1001, 5002, b"0123456789"))
    watch.server(tcp("A", 5002, 1011))
    watch.server(tcp("A", 5002, 1011))
    passed.counters(events={"flow_closed": 0}, services={f.web: {"flows_active": 1}})
    watch.client(tcp("PA", 1011, 5002, b"more"))
    watch.client(tcp("R", 1015), "closing")

    first = Case(f"of FINs ahead the first in order counts, {v}", ["8.8", "8.10"])
    watch = _opened(first, f)
    for seq in (1501, 1011, 1501, 1011, 3000):
        watch.client(tcp("FA", seq, 5001))
    watch.server(tcp("FA", 5001, 1012), "closing")
    first.counters(events={"flow_closed": 1}, services={f.web: {"flows_active": 0}})

    again = Case(f"a FIN that is marked and comes again changes nothing, {v}", ["8.8", "8.10"])
    watch = _opened(again, f)
    for seq in (1001, 1001, 1501):
        watch.client(tcp("FA", seq, 5001))
    watch.server(tcp("A", 5001, 1002))
    for seq in (1001, 1501):
        watch.client(tcp("FA", seq, 5001))
    watch.forged_client(tcp("R", 1502))
    watch.server(tcp("PA", 5001, 1002, b"half-closed"))
    watch.forged_server(tcp("R", 5011))
    watch.server(tcp("FA", 5012, 1002), "closing")
    return [behind, passed, first, again]
