"""What is measured of servers (docs/rules.md rule 16, measurements), on both backends."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import START, Box, from_client, from_server, make_snapshot, request, response
from scapy.layers.inet import TCP
from scapy.packet import Packet

MS = 10**6
# Stamps count 1024 ns: what is measured from them is a whole number of those.
TICK = 1024
ASKED, ANSWER = b"GET /", b"x" * 100
# A number before those of the other connections.
BEFORE = 4_000_000_000


class Talk:
    """One client's connection to the only server, step by step: each step takes a number of milliseconds."""

    def __init__(self, backend: str) -> None:
        self.box = Box(backend, make_snapshot(slots=(0,)))

    def client(
        self, flags: str, seq: int, ack: int = 0, data: bytes = b"", *, after_ms: int = 0, port: int = 40000
    ) -> None:
        self._send(from_client(request(flags, seq, ack, data, port)), after_ms)

    def server(
        self, flags: str, seq: int, ack: int, data: bytes = b"", *, after_ms: int = 0, port: int = 40000
    ) -> None:
        self._send(from_server(response(flags, seq, ack, data, port)), after_ms)

    def _send(self, packet: Packet, after_ms: int) -> None:
        assert TCP in packet
        self.box.now += after_ms * MS
        assert self.box.send(packet).verdict == "forward"

    def open(self, port: int = 40000) -> None:
        self.client("S", 1000, port=port)
        self.server("SA", 5000, 1001, port=port, after_ms=3)
        self.client("A", 1001, 5001, port=port)

    def ask(self, port: int = 40000) -> None:
        self.client("PA", 1001, 5001, ASKED, port=port)

    def measured(self) -> dict[str, int]:
        return dict(self.box.path.measurements(self.box.now)["web"]["server1"])

    def expect(self, **values: int) -> None:
        measured = self.measured()
        assert values == {name: measured[name] for name in values}


def waited(asked_ns: int, answered_ns: int) -> int:
    """Return a time between two instants after the start, as stamps measure it."""
    return ((START + answered_ns) // TICK - (START + asked_ns) // TICK) * TICK


@pytest.fixture
def talk(backend: str) -> Talk:
    return Talk(backend)


def test_fresh_server_everything_zero(talk: Talk) -> None:
    """All measures are there from the start, for each server of each service."""
    assert set(talk.measured().values()) == {0}
    assert {name: len(servers) for name, servers in talk.box.path.measurements(0).items()} == {
        "web": 3, "dns": 3, "web6": 3, "dns6": 3,
    }  # fmt: skip


def test_connect_time_syn_to_syn_ack(talk: Talk) -> None:
    """From the last SYN to its answer; a SYN+ACK sent again measures nothing."""
    talk.open()
    first = waited(0, 3 * MS)
    talk.expect(connects=1, connect_ns=first, connect_peak_ns=first, syn_retransmitted=0)
    talk.client("S", 1000, port=40001)
    talk.client("S", 1000, port=40001, after_ms=1000)
    talk.server("SA", 5000, 1001, port=40001, after_ms=1)
    talk.server("SA", 5000, 1001, port=40001, after_ms=200)
    talk.expect(connects=2, connect_ns=first + waited(1003 * MS, 1004 * MS), syn_retransmitted=1)


def test_connect_time_after_another_attempt(talk: Talk) -> None:
    """A SYN of another number may be forged, also when repeated: it is no retransmission."""
    talk.client("S", 1000)
    talk.client("S", 9000, after_ms=1000)
    talk.client("S", 9000, after_ms=1000)
    talk.expect(syn_retransmitted=0)
    talk.server("SA", 5000, 9001, after_ms=1)
    talk.expect(connects=1, connect_ns=waited(0, 2001 * MS))
    talk.client("S", 1000, port=40001)
    talk.client("S", 9000, port=40001, after_ms=1000)
    talk.client("S", 1000, port=40001, after_ms=1000)
    talk.expect(syn_retransmitted=1)
    talk.server("SA", 5000, 1001, port=40001, after_ms=1)
    talk.expect(connects=2, connect_ns=waited(0, 2001 * MS) + waited(4001 * MS, 4002 * MS))


def test_segments_that_are_not_believed_measure_nothing(talk: Talk) -> None:
    """Windows are 8192 bytes: what starts beyond is no request, no answer, and nothing that was sent again."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001 + 8194, 1006, ANSWER, after_ms=1)
    talk.client("PA", 1006 + 8194, 5001, ASKED, after_ms=1)
    talk.server("PA", 5001, 1006 + 8194, ANSWER, after_ms=1)
    talk.expect(requests=1, first_bytes=0, waiting_flows=1, in_flight_bytes=0, retransmitted=0, stalled_ns=3 * MS)
    talk.server("PA", 5001, 1006, ANSWER, after_ms=1)
    talk.expect(first_bytes=1, first_byte_ns=waited(3 * MS, 7 * MS), waiting_flows=0, in_flight_bytes=100)


def test_numbers_that_begin_anew_end_what_was_asked(talk: Talk) -> None:
    """A rebooted client gets no answer to what it asked before; what it asks then is measured as ever."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER)
    talk.client("PA", 1006, 5101, ASKED)
    talk.client("S", BEFORE, after_ms=1000)
    talk.expect(failed=0, waiting_flows=1, in_flight_bytes=0)
    talk.server("PA", 5101, 1011, ANSWER, after_ms=1)
    talk.client("PA", 1011, 5101, ASKED)
    talk.expect(waiting_flows=1, in_flight_bytes=100, requests=3)
    talk.server("SA", 700000, BEFORE + 1)
    talk.expect(failed=0, waiting_flows=1, in_flight_bytes=100)
    talk.client("PA", BEFORE + 1, 700001, ASKED)
    talk.expect(requests=4, waiting_flows=1, failed=1, in_flight_bytes=0, flows_active=1, connects=1)
    talk.server("PA", 700001, BEFORE + 6, ANSWER, after_ms=2)
    talk.expect(first_bytes=3, waiting_flows=0, in_flight_bytes=100)


def test_flow_picked_up_is_measured_once_confirmed(talk: Talk, backend: str) -> None:
    """What one side alone says of a connection that began before us is no measure of its server."""
    talk.box = Box(backend, make_snapshot("hash-flow", slots=(0,)))
    talk.ask()
    talk.expect(requests=0, waiting_flows=0, flows_active=0)
    talk.server("PA", 5001, 1006, ANSWER, after_ms=1)
    talk.expect(flows_active=1, first_bytes=0, retransmitted=0, in_flight_bytes=100)
    talk.client("PA", 1006, 5101, ASKED)
    talk.expect(requests=1, requests_active=1, waiting_flows=1, in_flight_bytes=0)


def test_flow_picked_up_and_reset_leaves_nothing_behind(talk: Talk, backend: str) -> None:
    """A server that does not know the connection neither refuses nor fails."""
    talk.box = Box(backend, make_snapshot("hash-flow", slots=(0,)))
    talk.ask()
    talk.server("R", 5001, 0)
    assert talk.box.states() == ["closing"]
    talk.expect(refused=0, failed=0, waiting_flows=0, in_flight_bytes=0, flows_active=0)


def test_answer_time_and_first_byte_time(talk: Talk) -> None:
    """From the request to the first byte, and on to the last; acknowledgements are no answer."""
    talk.open()
    talk.ask()
    talk.expect(requests=1, requests_active=1, waiting_flows=1, first_bytes=0)
    talk.server("A", 5001, 1006, after_ms=1)
    talk.server("PA", 5001, 1006, ANSWER, after_ms=9)
    talk.server("PA", 5101, 1006, ANSWER, after_ms=5)
    first, whole = waited(3 * MS, 13 * MS), waited(3 * MS, 18 * MS)
    talk.expect(first_bytes=1, first_byte_ns=first, answer_ns=whole, waiting_flows=0, in_flight_bytes=200)
    talk.client("A", 1006, 5101, after_ms=5)
    talk.expect(in_flight_bytes=100)
    talk.client("A", 1006, 5201, after_ms=5)
    talk.expect(in_flight_bytes=0, answer_ns=whole)


def test_second_request_is_measured_anew(talk: Talk) -> None:
    """A kept connection is measured at each request; the time between requests does not count."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER, after_ms=10)
    talk.client("A", 1006, 5101)
    talk.client("PA", 1006, 5101, ASKED, after_ms=500)
    talk.client("PA", 1006, 5101, ASKED, after_ms=5)
    talk.server("PA", 5101, 1011, ANSWER, after_ms=15)
    talk.client("PA", 1011, 5201, ASKED, after_ms=1)
    talk.expect(first_bytes=2, requests=3, waiting_flows=1)
    assert abs(talk.measured()["answer_ns"] - 30 * MS) <= 2 * TICK


def test_request_sees_the_active_flows(talk: Talk) -> None:
    """How many shared the server is known from the requests."""
    for port in (40000, 40001):
        talk.open(port)
    talk.ask(40000)
    talk.ask(40001)
    talk.expect(requests=2, requests_active=4, waiting_flows=2)


def test_pause_in_an_answer_counts_up_to_a_second(talk: Talk) -> None:
    """A server that pushes something now and then is not slow."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER)
    talk.server("PA", 5101, 1006, ANSWER, after_ms=60_000)
    talk.expect(answer_ns=1 << 30)


def test_stall_lasts_until_the_server_speaks(talk: Talk) -> None:
    """While a client waits and no data comes, the stall grows."""
    talk.open()
    talk.expect(stalled_ns=0)
    talk.ask()
    talk.box.now += 700 * MS
    talk.expect(stalled_ns=700 * MS)
    talk.open(40001)
    talk.ask(40001)
    talk.expect(stalled_ns=703 * MS)
    talk.server("PA", 5001, 1006, ANSWER)
    talk.box.now += 10 * MS
    talk.expect(stalled_ns=10 * MS, waiting_flows=1)
    talk.server("PA", 5001, 1006, ANSWER, port=40001)
    talk.box.now += 10 * MS
    talk.expect(stalled_ns=0, waiting_flows=0)


def test_refused_connection(talk: Talk) -> None:
    """RST in answer to a SYN."""
    talk.client("S", 1000)
    talk.server("RA", 0, 1001, after_ms=1)
    talk.expect(refused=1, connects=0, failed=0, flows_active=0)


def test_unanswered_connection(talk: Talk) -> None:
    """A SYN without an answer, until it times out."""
    talk.client("S", 1000)
    talk.box.now += 30_000 * MS
    talk.box.path.tick(talk.box.now)
    talk.expect(unanswered=1, refused=0, flows_active=0)


@pytest.mark.parametrize("end", ["reset by server", "reset by client", "both close"])
def test_flow_that_ends_without_an_answer_failed(talk: Talk, end: str) -> None:
    """A request was open: that is a failure, whichever side ends it, and no flow waits any more."""
    talk.open()
    talk.ask()
    if end == "reset by server":
        talk.server("R", 5001, 0, after_ms=4)
    elif end == "reset by client":
        talk.server("A", 5001, 1006, after_ms=4)
        talk.expect(failed=0, waiting_flows=1)
        talk.client("R", 1006, 0)
    else:
        talk.server("FA", 5001, 1006, after_ms=4)
        talk.client("FA", 1006, 5002)
    talk.expect(failed=1, waiting_flows=0, stalled_ns=0, in_flight_bytes=0)


def test_flow_that_ends_after_its_answer_did_not_fail(talk: Talk) -> None:
    """Neither does one that asked nothing."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER)
    talk.client("R", 1006, 0)
    talk.open(40001)
    talk.client("R", 1001, 0, port=40001)
    talk.expect(failed=0, waiting_flows=0, in_flight_bytes=0)


def test_retransmission_of_the_server(talk: Talk) -> None:
    """Data that was sent before; an empty keep-alive segment is none."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER)
    talk.server("PA", 5001, 1006, ANSWER, after_ms=200)
    talk.server("A", 5100, 1006)
    talk.expect(retransmitted=1, in_flight_bytes=100, first_bytes=1)


def test_data_beyond_a_gap_was_not_sent_before(talk: Talk) -> None:
    """Data lost before they reached the balancer do not count: only data seen before are retransmissions."""
    talk.open()
    talk.ask()
    for number in (1, 2, 3):
        talk.server("PA", 5001 + 100 * number, 1006, ANSWER)
    talk.expect(retransmitted=0, in_flight_bytes=400, first_bytes=1)
    talk.server("PA", 5001, 1006, ANSWER, after_ms=200)
    talk.expect(retransmitted=0, in_flight_bytes=400)
    # Where the gap ends is not known before the client has all of it.
    talk.server("PA", 5201, 1006, ANSWER, after_ms=200)
    talk.expect(retransmitted=0)
    talk.client("A", 1006, 5401)
    talk.server("PA", 5301, 1006, ANSWER, after_ms=200)
    talk.expect(retransmitted=1, in_flight_bytes=0)


def test_server_that_speaks_first_answers_no_request(talk: Talk) -> None:
    """A greeting without a request is no answer."""
    talk.open()
    talk.server("PA", 5001, 1001, b"220 hello", after_ms=1)
    talk.expect(requests=0, first_bytes=0, answer_ns=0, in_flight_bytes=9)


def test_flow_that_is_removed_leaves_nothing_behind(talk: Talk) -> None:
    """An entry that times out in the middle of an answer takes its gauges with it."""
    talk.open()
    talk.ask()
    talk.server("PA", 5001, 1006, ANSWER)
    talk.box.now += 7440 * 1000 * MS
    talk.box.path.tick(talk.box.now)
    talk.expect(flows_active=0, waiting_flows=0, in_flight_bytes=0, failed=0)


def test_connect_peak_rises_at_once_and_falls_slowly(talk: Talk) -> None:
    """Peak-sensitive: a slow connect shows at once, quick ones make it forgotten within seconds."""
    values: list[Any] = []
    expected, peak, before = [], 0, 0
    for port, took_ms in ((1, 2), (2, 100), (3, 2), (4, 2), (5, 2)):
        talk.client("S", 1000, port=port, after_ms=1000)
        asked = talk.box.now - START
        talk.server("SA", 5000, 1001, port=port, after_ms=took_ms)
        values.append(talk.measured()["connect_peak_ns"])
        sample = waited(asked, talk.box.now - START)
        elapsed = min(talk.box.now - before, 1 << 33) >> 13
        peak = sample if sample >= peak else peak - ((peak - sample) * elapsed >> 20)
        before = talk.box.now
        expected.append(peak)
    assert values == expected
    assert [round(value / MS) for value in values] == [2, 100, 89, 78, 70]
