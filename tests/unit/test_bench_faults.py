"""What makes a figure of `lb bench` doubtful: counters, marks, turns that disagree, and the order of the turns."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lb.errors import LbError
from lb.lab import kernel_counters, spread
from lb.lab.bench import (
    chart,
    headline,
    load_faults,
    machine,
    notes,
    order,
    report,
    table,
    targets,
    web_client,
)
from lb.lab.bench.catalogue import CONTESTANTS, metric
from lb.lab.bench.document import Contestant, Document, Faults, MetricResult, metric_result, sum_faults
from lb.lab.bench.measures import LOADED

NETSTAT = """TcpExt: SyncookiesSent ListenOverflows TCPTimeouts TCPSynRetrans PAWSTimewait TCPTimeWaitOverflow
TcpExt: 0 {listen} 7 {syn} {refused} 0
IpExt: InNoRoutes InTruncatedPkts
IpExt: 0 0
"""
SNMP = """Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm MaxConn ActiveOpens RetransSegs
Tcp: 1 -1 4 9
"""


def looked(syn: int = 0, refused: int = 0, listen: int = 0) -> dict[str, int]:
    return kernel_counters.parse(NETSTAT.format(syn=syn, refused=refused, listen=listen)) | kernel_counters.parse(SNMP)


def marked_result(faults: list[Faults | None]) -> MetricResult:
    samples: dict[str, list[float | None]] = {"routing": [10e3, 10e3], "rust": [15e3, 15e3]}
    return metric_result(metric("connections"), samples, {}, {"routing": faults})


def document(*results: MetricResult, found_notes: tuple[str, ...] = ()) -> Document:
    return Document(
        machine={"date": "d", "processor": "p", "cores": "2", "kernel": "k"},
        settings={},
        notes=list(found_notes),
        orders=[["routing", "rust"], ["rust", "routing"]],
        contestants=[Contestant(name=name, title=name, version="1") for name in CONTESTANTS],
        metrics=list(results),
        targets=targets.judge(results),
    )


def test_counters_parse_groups_and_negative_values() -> None:
    """Names and values come in pairs of lines; a value may be below 0."""
    found = looked(syn=3, refused=5)
    assert found["TcpExt.TCPSynRetrans"] == 3
    assert found["TcpExt.PAWSTimewait"] == 5
    assert found["Tcp.MaxConn"] == -1
    assert found["IpExt.InTruncatedPkts"] == 0


@pytest.mark.parametrize(
    "text", ["TcpExt: A B\nTcpExt: 1\n", "TcpExt: A\nIpExt: 1\n", "TcpExt: A\nTcpExt: 1\nIpExt: B\n"]
)
def test_counters_parse_broken_pairs_refused(text: str) -> None:
    """What cannot be read is not counted as nothing."""
    with pytest.raises(LbError, match="the kernel's counters"):
        kernel_counters.parse(text)


def test_counters_of_this_kernel_are_known() -> None:
    """This machine's own files are read, and have what marks a figure first of all."""
    for name in ("netstat", "snmp"):
        found = kernel_counters.parse(Path("/proc/net", name).read_text())
        assert found
        assert name == "snmp" or "TcpExt.TCPSynRetrans" in found


def test_faults_growth_between_two_looks_only() -> None:
    """What was counted before does not count, nor does a counter that one look lacks."""
    found = load_faults.faults(looked(syn=100, refused=1), looked(syn=104, refused=1, listen=2), failed=3, slow=1)
    assert found == Faults(syn_retransmits=4, listen_overflow=2, failed=3, slow=1)
    assert load_faults.faults({}, {}) == Faults()


@pytest.mark.parametrize(("text", "expected"), [("TCP: inuse 1 orphan 0 tw 17 alloc 2 mem 0\n", 17), ("UDP: a\n", 0)])
def test_parse_time_wait_sockstat(text: str, expected: int) -> None:
    """The number behind `tw`, of TCP."""
    assert load_faults.parse_time_wait("sockets: used 5\n" + text) == expected


def test_faults_every_counter_is_told_or_marks() -> None:
    """Each fault but those that a large transfer may have marks, and each that marks has words."""
    every = Faults(**dict.fromkeys(Faults.model_fields, 1))
    assert set(Faults.model_fields) - set(every.marking) == {"timeouts", "retransmits"}
    assert notes.describe(every.marking).count(",") == len(every.marking) - 1
    assert Faults().marking == {}


def test_sum_faults_turns_without_a_look() -> None:
    """Turns add up; one that counted nothing adds nothing."""
    assert sum_faults([Faults(slow=1), None, Faults(slow=2, failed=1)]) == Faults(slow=3, failed=1)


def test_marked_figure_shows_in_table_headline_targets_chart_and_json() -> None:
    """A SYN that was sent again in one of two turns marks the figure wherever it is shown, with the number."""
    result = marked_result([Faults(), Faults(syn_retransmits=4000)])
    made = document(result)
    assert result.figures["routing"].marks == {"syn_retransmits": 4000}
    text = table.render(made)
    assert re.search(r"^\* routing ", text, re.MULTILINE)
    assert "* routing: 4000 SYN retransmissions" in text
    assert not re.search(r"^\* rust ", text, re.MULTILINE)
    top = headline.make(made)
    assert top is not None
    assert dict(top.rows)["New connections"] == ("1.50x*",)
    assert any(target.measured.startswith("1.50x routing*") for target in made.targets)
    picture = chart.make(result, list(CONTESTANTS))
    assert picture is not None
    assert [bar.text for bar in picture.picture.bars] == ["10.00 k/s*", "15.00 k/s (1.50x routing)"]
    assert picture.marks == ("* routing: 4000 SYN retransmissions",)
    again = Document.model_validate_json(made.model_dump_json())
    assert again.metrics[0].figures["routing"].faults == [Faults(), Faults(syn_retransmits=4000)]


def test_marked_figure_shows_in_report() -> None:
    """The page has the line too, and the orders of the turns."""
    pytest.importorskip("jinja2")
    page = report.render(document(marked_result([Faults(slow=2), None])))
    assert "* routing: 2 slow (&gt; 200 ms)" in page
    assert "routing, rust; rust, routing" in page


def test_unmarked_figure_no_mark_anywhere() -> None:
    """Without a fault there is no star, though segments of large transfers were sent again."""
    made = document(marked_result([Faults(retransmits=5, timeouts=1), Faults()]))
    assert "*" not in table.render(made)
    assert notes.make(made.metrics, CONTESTANTS, [0.05]) == []


def test_notes_marks_and_other_work_told() -> None:
    """How many figures are marked, and how busy the machine was before measures."""
    found = notes.make([marked_result([Faults(failed=1)])], CONTESTANTS, [0.02, 0.6, 0.3])
    assert len(found) == 2
    assert "marked figures: 1;" in found[0]
    assert "other work took 60% of the machine or less before 2 of 3 measures" in found[1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([100.0, 105.0, 109.0], 9 / 105), ([100.0, None], None), ([100.0], None), ([0.0, 0.0], None), ([], None)],
)
def test_disagreement_share_of_median(values: list[float | None], expected: float | None) -> None:
    """Largest minus smallest over the median; one turn cannot disagree, nor agree."""
    assert spread.disagreement(values) == expected


def test_cpu_turns_that_disagree_left_out_with_values() -> None:
    """33, 327 and 540 ns are no figure: no ratio is made of them, the reason has them, and the JSON keeps them."""
    samples: dict[str, list[float | None]] = {
        "routing": [33e-9, 327e-9, 540e-9],
        "rust": [5000e-9, 5200e-9, 5400e-9],
        "nft": [900e-9],
    }
    found = metric_result(metric("cpu_per_packet"), samples, {"haproxy": "it carries no UDP"})
    assert set(found.figures) == {"rust"}
    assert found.figures["rust"].ratios == {}
    assert found.absent["routing"] == "left out: its turns differ by 155%, more than 10% (33, 327, 540)"
    assert found.absent["nft"] == "left out: one turn only (900)"
    assert found.left_out == {"routing": samples["routing"], "nft": samples["nft"]}
    assert "155%" in table.render(document(found))


def test_other_metrics_turns_may_differ() -> None:
    """Throughput is shown with its spread, whatever that is."""
    found = metric_result(metric("connections"), {"rust": [1.0, 9.0]}, {})
    assert found.figures["rust"].high == 9.0
    assert found.left_out == {}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_orders_each_place_and_each_predecessor_equally_often(count: int) -> None:
    """Over a full square every contestant is at each place, and behind each other, equally often."""
    names = CONTESTANTS[:count]
    turns = count * (1 + count % 2)
    for seed in range(5):
        rows = order.orders(names, turns, seed)
        assert all(sorted(row) == sorted(names) for row in rows)
        places = Counter((name, place) for row in rows for place, name in enumerate(row))
        assert set(places.values()) == {turns // count}
        follows = Counter(pair for row in rows for pair in pairwise(row))
        assert len(follows) == count * (count - 1)
        assert len(set(follows.values())) <= 1


def test_orders_seed_decides_and_turns_differ() -> None:
    """The same seed gives the same orders, another one others; no two neighbouring turns are alike."""
    assert order.orders(CONTESTANTS, 3, 7) == order.orders(CONTESTANTS, 3, 7)
    assert len({order.orders(CONTESTANTS, 3, seed) for seed in range(10)}) > 1
    assert all(first != second for first, second in pairwise(order.orders(CONTESTANTS, 6, 1)))
    assert order.orders((), 2, 1) == ((), ())


def test_loaded_measures_what_leaves_most_behind_comes_last() -> None:
    """Thousands of closed connections are met by no other measure of the turn."""
    assert list(LOADED)[-1] == "connections"
    assert next(iter(LOADED)) == "idle"


def test_cpu_ticks_busy_without_idle_and_guests() -> None:
    """Idle and iowait are not busy; guest time is in user already."""
    assert machine.cpu_ticks("cpu  10 1 20 100 5 2 3 4 7 1\ncpu0 1\n") == (145, 40)


HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.fixture
def failing_web() -> Iterator[tuple[str, int]]:
    """Run a server that answers one connection, and closes the next without a word, in turns."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    ended = threading.Event()

    def serve() -> None:
        good = True
        while not ended.is_set():
            connection, _ = listener.accept()
            with connection:
                if good and connection.recv(4096):
                    connection.sendall(HEADER + b"hello")
            good = not good

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    ended.set()
    socket.create_connection(listener.getsockname()).close()
    thread.join()
    listener.close()


def test_client_load_failed_requests_counted_and_load_goes_on(
    failing_web: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that ends without an answer is one failed request; answers are still counted."""
    monkeypatch.setattr(web_client, "MAX_FAILED", 10**6)
    found = web_client.load(failing_web, "/", True, 0.2, 1)
    assert found["responses"] > 1
    assert abs(found["responses"] - found["failed"]) <= 1


def test_client_load_too_many_failures_end_it(failing_web: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that mostly fails is no contestant."""
    monkeypatch.setattr(web_client, "MAX_FAILED", 3)
    with pytest.raises((OSError, web_client.AnswerError)):
        web_client.load(failing_web, "/", True, 10.0, 1)


def test_client_paced_failed_exchange_counted(failing_web: tuple[str, int]) -> None:
    """An exchange that fails has no time, and counts."""
    found = web_client.paced(failing_web, "/", 2.0, 10.0)
    assert len(found["connect"]) == len(found["request"]) == 10
    assert found["failed"] == 10


def test_client_slow_answer_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits longer than the limit for its answer is slow, also when it never comes."""
    monkeypatch.setattr(web_client, "SLOW_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = web_client.load(silent.getsockname(), "/", False, 0.2, 2)
    assert found["responses"] == 0
    assert found["slow"] == 2
