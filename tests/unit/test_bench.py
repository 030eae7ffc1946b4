"""The parts of `lb bench` that need no machine: numbers, document, targets, table, pictures, report, our own client."""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lb.errors import LbError
from lb.lab import spread
from lb.lab.bench import chart, command, cpu, headline, report, table, targets, web_client
from lb.lab.bench.catalogue import CONTESTANTS, MEASURES, METRICS, metric
from lb.lab.bench.contestants import make
from lb.lab.bench.document import Contestant, Document, MetricResult, metric_result
from lb.lab.bench.measures import BACKENDS, LOADED, memory
from lb.lab.bench.run import Run, count_steps
from lb.lab.bench.settings import Settings, quick
from lb.lab.pictures import axis, bars, page

Samples = dict[str, list[float | None]]


def result(name: str, samples: Samples, absent: dict[str, str] | None = None) -> MetricResult:
    return metric_result(metric(name), samples, absent or {})


def document(results: list[MetricResult]) -> Document:
    entries = [Contestant(name=name, title=f"<{name}>", version="1") for name in CONTESTANTS]
    entries[1] = entries[1].model_copy(update={"missing": "nft is not installed"})
    return Document(
        machine={"date": "2026-11-23", "processor": "P", "cores": "2", "kernel": "Linux"},
        settings={"turns": "3"},
        notes=["a note"],
        orders=[["rust", "routing"], ["routing", "rust"]],
        contestants=entries,
        metrics=results,
        targets=targets.judge(results),
    )


@pytest.fixture
def full() -> Document:
    """Return a document in which every metric has figures of routing, haproxy, python and rust."""
    results = []
    for index, each in enumerate(METRICS, 1):
        base = each.scale * 10.0**index
        samples: Samples = {
            "routing": [base, base * 1.25, base * 1.5],
            "haproxy": [base / 2, None, base],
            "python": [base / 100, base / 50, base / 25],
            "rust": [base, base, base * 1.5],
        }
        if each.agreement is not None:
            samples = {name: [base, base, base * (1 + each.agreement / 2)] for name in samples}
        results.append(result(each.name, samples, {"nft": "nft is not installed"}))
    return document(results)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 1.0, 2.0], (2, 1, 3)), ([4.0, None, 1.0], (2.5, 1, 4)), ([7.0], (7, 7, 7)), ([None], None), ([], None)],
)
def test_summarise_turns_median_and_spread(
    values: list[float | None], expected: tuple[float, float, float] | None
) -> None:
    """Turns without a value do not count."""
    assert spread.summarise(values) == expected


@pytest.mark.parametrize(
    ("values", "base", "expected"),
    [([2.0, 4.0], [1.0, 1.0], 3.0), ([2.0], [], None), ([None], [1.0], None), ([2.0], [0.0], None)],
)
def test_ratio_medians_or_none(values: list[float | None], base: list[float | None], expected: float | None) -> None:
    """Ratios are between medians; nothing is made of nothing."""
    assert spread.ratio(values, base) == expected


def test_subtract_same_turn_only() -> None:
    """A difference is between values of one turn."""
    assert spread.subtract([5.0, 6.0, None, 8.0], [1.0, None, 3.0]) == [4.0, None, None]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile_hundred_values(share: float, expected: float) -> None:
    """The smallest value which that share does not exceed."""
    assert spread.percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_metric_result_added_is_taken_turn_by_turn() -> None:
    """Drift that both share leaves no trace in what is added."""
    found = result("connect_p50", {"routing": [100.0, 200.0, 300.0], "rust": [110.0, 211.0, 309.0]})
    assert found.figures["rust"].added == (10.0, 9.0, 11.0)
    assert found.figures["routing"].added is None
    assert found.figures["rust"].ratios == {"routing": 211 / 200}


def test_targets_bounds_never_moved() -> None:
    """The promises are those of the project, in order and in number."""
    bounds = [(what, least) for what, least, _ in targets.TARGETS]
    assert bounds == [
        ("pipeline per 60-byte packet, 1 k / 1 M / 10 M flows", "<= 40 / 90 / 130 ns"),
        ("memory per flow, both directions", "<= 128 bytes"),
        ("new flows, offline", ">= 2 million/s"),
        ("rust over python, whole pipeline offline", ">= 150x"),
        ("60-byte packets, straight path, one worker", ">= 1.2x nft, >= 0.85 Mpps"),
        ("keep-alive requests/s, one-armed testbed", ">= 0.75x routing, >= haproxy"),
        ("new connections/s", ">= 0.95x routing, >= 1.3x haproxy"),
        ("bulk throughput, default offloads", ">= 0.65x routing, >= haproxy"),
        ("added latency at low load, p50", "<= 15 us over routing"),
        ("added latency at low load, p99", "<= 60 us over routing"),
        ("CPU when idle", "<= 1 % of a core"),
        ("growth: 1 k to 10 M flows; Maglev build; reload", "<= 3.5x; <= 100 ms; <= 1 s"),
    ]


@pytest.mark.parametrize(
    ("name", "samples", "line", "reached"),
    [
        ("memory_per_flow", {"rust": [128.0]}, 1, True),
        ("memory_per_flow", {"rust": [128.1]}, 1, False),
        ("memory_per_flow", {"python": [1.0]}, 1, None),
        ("packets", {"rust": [0.85e6], "nft": [0.70e6]}, 4, True),
        ("packets", {"rust": [0.84e6], "nft": [0.70e6]}, 4, False),
        ("packets", {"rust": [0.90e6], "nft": [0.80e6]}, 4, False),
        ("packets", {"rust": [0.90e6]}, 4, None),
        ("keepalive", {"rust": [75.0], "routing": [100.0], "haproxy": [75.0]}, 5, True),
        ("keepalive", {"rust": [75.0], "routing": [100.0], "haproxy": [76.0]}, 5, False),
        ("keepalive", {"rust": [75.0], "routing": [100.0]}, 5, None),
        ("keepalive", {"rust": [74.0], "routing": [100.0]}, 5, False),
        ("connections", {"rust": [95.0], "routing": [100.0], "haproxy": [73.0]}, 6, True),
        ("connections", {"rust": [94.0], "routing": [100.0], "haproxy": [50.0]}, 6, False),
        ("bulk", {"rust": [65.0], "routing": [100.0], "haproxy": [64.0]}, 7, True),
        ("bulk", {"rust": [64.0], "routing": [100.0], "haproxy": [64.0]}, 7, False),
        ("idle_cpu", {"rust": [0.01]}, 10, True),
        ("idle_cpu", {"rust": [0.011]}, 10, False),
    ],
)
def test_target_figures_reached_or_not(name: str, samples: Samples, line: int, reached: bool | None) -> None:
    """At the bound is reached, beyond is not, without its peer nothing is said."""
    assert targets.judge([result(name, samples)])[line].reached is reached


@pytest.mark.parametrize(
    ("connect_us", "request_us", "reached"), [(14.0, 15.0, True), (14.0, 16.0, False), (16.0, 1.0, False)]
)
def test_target_latency_both_connect_and_request(connect_us: float, request_us: float, reached: bool) -> None:
    """What is added counts, to both."""
    results = [
        result("connect_p50", {"routing": [100e-6], "rust": [(100 + connect_us) * 1e-6 - 1e-12]}),
        result("request_p50", {"routing": [200e-6], "rust": [(200 + request_us) * 1e-6 - 1e-12]}),
    ]
    assert targets.judge(results)[8].reached is reached


def test_document_json_round_trip_and_schema(full: Document) -> None:
    """What is written reads back equal; unknown keys are refused; the schema names every part."""
    text = full.model_dump_json()
    assert Document.model_validate_json(text) == full
    assert json.loads(text)["format"] == "flowlb-bench-2"
    with pytest.raises(ValueError, match="surprise"):
        Document.model_validate(json.loads(text) | {"surprise": 1})
    schema = Document.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(json.loads(text))


def test_headline_rust_against_each_peer(full: Document) -> None:
    """Ratios for rates, what is added for latency, the backends only for memory."""
    found = headline.make(full)
    assert found is not None
    assert (found.subject, found.peers) == ("rust", ("routing", "haproxy", "python"))
    rows = dict(found.rows)
    assert rows["Keep-alive requests"] == ("0.80x", "1.33x", "50.00x")
    assert rows["Connect, p50"][0].endswith(" us")
    assert rows["Connect, p50"][1:] == ("", "")


def test_headline_without_backend_none() -> None:
    """Peers alone have no headline."""
    assert headline.make(document([result("bulk", {"routing": [1.0]})])) is None


def test_table_document_names_everyone_and_every_target(full: Document) -> None:
    """Every contestant, figure, missing one and promise is in the text."""
    text = table.render(full)
    block = re.search(r"Keep-alive requests \(k/s.*?\n\n", text, re.DOTALL)
    assert block is not None
    lines = block[0].splitlines()
    assert lines[1].split() == ["median", "min", "max", "/routing", "/haproxy", "/python", "/rust"]
    assert lines[3].split(maxsplit=2) == ["nft", "-", "nft is not installed"]
    assert lines[6].split() == ["rust", "10.0", "10.0", "15.0", "0.80", "1.33", "50.00"]
    assert all(each.title in text for each in METRICS)
    assert all(what in text for what, _, _ in targets.TARGETS)
    assert "NOT REACHED" in text
    assert "a note" in text


def test_table_value_in_shown_unit() -> None:
    """Stored in base units, shown in the unit of the head."""
    text = table.render_metric(result("bulk", {"routing": [2e9], "rust": [1.5e9]}), document([]))
    assert "1 MB responses (GB/s, higher is better)" in text
    assert re.search(r"rust\s+1\.50\s+1\.50\s+1\.50\s+0\.75", text)


@pytest.mark.parametrize(("top", "step"), [(1.0, 0.2), (0.85, 0.2), (12.0, 2.5), (40.0, 10.0), (100.0, 20.0)])
def test_nice_step_round(top: float, step: float) -> None:
    """About five ticks at round distances."""
    assert axis.nice_step(top) == pytest.approx(step)


def test_chart_bars_within_plot_and_texts_apart(full: Document) -> None:
    """No bar leaves the plot, rows and tick labels do not meet."""
    for each in full.metrics:
        made = chart.make(each, list(CONTESTANTS))
        assert made is not None
        picture = made.picture
        assert [bar.name for bar in picture.bars] == ["routing", "haproxy", "python", "rust"]
        assert all(0 <= bar.low <= bar.width <= bar.high <= bars.PLOT_PX + 0.01 for bar in picture.bars)
        rows = [bar.y for bar in picture.bars]
        assert all(below - above >= bars.BAR_PX for above, below in pairwise(rows))
        # A digit of 12 px is about 7 px wide.
        for (x, text), (after, following) in pairwise(picture.axis.ticks):
            assert after - x > (len(text) + len(following)) / 2 * 7, (each.name, text)
        assert len({text for _, text in picture.axis.ticks}) == len(picture.axis.ticks)
        assert all(len(bar.text) * 7 < bars.TEXT_PX for bar in picture.bars), [bar.text for bar in picture.bars]


def test_report_page_self_contained(full: Document) -> None:
    """One page: a picture per metric, every word escaped, nothing fetched, no script, light and dark."""
    pytest.importorskip("jinja2")
    text = report.render(full)
    assert text.count("<svg") == len(METRICS)
    assert "&lt;rust&gt;" in text
    assert "<rust>" not in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|<link|<img|https?:|url\(", text)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(picture)
        assert root.get("aria-label")
        assert len(root.findall("rect")) == 4


def test_report_without_jinja2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is one line, before anything is measured."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(LbError, match=re.escape("pip install 'flowlb[report]'")):
        page.require()


def test_parse_names_keeps_order_and_refuses_unknown() -> None:
    """Names in any order give the known order; an unknown one is named with what there is."""
    assert command.parse_names("rust, routing", CONTESTANTS) == ("routing", "rust")
    assert command.parse_names(None, MEASURES) == MEASURES
    with pytest.raises(ValueError, match="'fast' is none of routing, nft"):
        command.parse_names("fast,rust", CONTESTANTS)
    with pytest.raises(ValueError, match="is none of"):
        command.parse_names(",", CONTESTANTS)


def test_aa_names_a_contestant_and_its_double() -> None:
    """One known name gives two contestants that do the same under two names."""
    assert command.twice("rust", CONTESTANTS) == ("rust", "rust-again")
    original, again = (make(name) for name in command.twice("direct", CONTESTANTS))
    assert (again.name, again.kind, again.protocols) == ("direct-again", "direct", original.protocols)
    for wrong in ("ipvs", "rust,nft", "", "rust-again"):
        with pytest.raises(ValueError, match="is n"):
            command.twice(wrong, CONTESTANTS)


def test_aa_run_measures_memory_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double is asked for what only our backends are asked for."""
    monkeypatch.setattr("lb.lab.bench.measures.memory.measure", lambda _backend, _flows: {"memory_per_flow": 120.0})
    run = Run(Settings(measures=("memory",), contestants=("rust", "rust-again"), turns=1), lambda _line, _done: None)
    run.measure()
    found = run.document()
    assert {name: figure.median for name, figure in found.metrics[0].figures.items()} == {
        "rust": 120.0,
        "rust-again": 120.0,
    }
    assert [note for note in found.notes if note.startswith("A/A")] == [
        "A/A Memory per flow: rust-again is 1.000x rust (1.000 to 1.000 in single turns)"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "speed"), "speed"),
        (("--aa", "ipvs"), "ipvs"),
        (("--aa", "rust", "--contestants", "nft"), "--aa"),
        (("--contestants", "ipvs"), "ipvs"),
        (("--turns", "0"), "--turns"),
    ],
)
def test_bench_wrong_option_exit_2(arguments: tuple[str, ...], words: str) -> None:
    """A wrong option is a usage error, told before anything is built."""
    done = subprocess.run(
        [sys.executable, "-m", "lb", "bench", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_bench_unwritable_file_exit_1_at_once(tmp_path: Path) -> None:
    """A file that cannot be written is told before minutes of measuring."""
    path = tmp_path / "missing" / "out.json"
    arguments = ["bench", "--json", str(path)]
    done = subprocess.run([sys.executable, "-m", "lb", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"lb: {path}: No such file or directory\n"


def test_names_every_measure_and_contestant_has_code() -> None:
    """What a user can name exists, and every metric belongs to a measure."""
    assert set(LOADED) | {"packets", "memory"} == set(MEASURES)
    assert [make(name).name for name in CONTESTANTS] == list(CONTESTANTS)
    assert set(BACKENDS) <= set(CONTESTANTS)
    with pytest.raises(KeyError):
        make("ipvs")


def test_count_steps_settings() -> None:
    """The progress bar knows what comes."""
    assert count_steps(Settings(measures=("bulk",), contestants=("routing", "rust"), turns=3)) == 6
    assert count_steps(Settings(measures=("idle", "packets"), contestants=("routing", "rust"), turns=3)) == 7
    assert quick().turns == 1


def test_run_missing_contestant_named_with_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not installed is in the document, with the reason, in every metric."""
    monkeypatch.setattr("lb.lab.bench.programs.find", lambda _program: None)
    lines: list[str] = []
    run = Run(
        Settings(measures=("memory",), contestants=("nft", "haproxy"), turns=1), lambda line, _: lines.append(line)
    )
    run.measure()
    found = run.document()
    assert [entry.missing for entry in found.contestants] == ["nft is not installed", "haproxy is not installed"]
    assert found.metrics[0].absent == {"nft": "nft is not installed", "haproxy": "haproxy is not installed"}
    assert lines == [
        "nft does not take part: nft is not installed",
        "haproxy does not take part: haproxy is not installed",
    ]


def test_memory_batches_every_flow_once() -> None:
    """Each packet is another flow, also beyond one client's ports."""
    flows = memory.PORTS + 1500
    seen = {frame[26:30] + frame[34:36] for batch in memory.batches(flows) for frame in batch}
    assert len(seen) == flows


@pytest.mark.parametrize("backend", ["python", "rust"])
def test_memory_fill_small_table_positive(backend: str) -> None:
    """The process gets larger by something per flow."""
    assert memory.measure(backend, 20_000)["memory_per_flow"] > 0


def test_memory_failing_process_says_why() -> None:
    """The last line of the process is the reason."""
    with pytest.raises(LbError, match="'ebpf' is not in this version"):
        memory.measure("ebpf", 1000)


def test_process_clock_own_process_grows() -> None:
    """The clock of a pid is that of the process, and a pid without a process is an error."""
    import os
    import time

    before = cpu.process_ns(os.getpid())
    assert abs(before - time.process_time_ns()) < 10**9
    while time.process_time_ns() - before < 2_000_000:
        pass
    assert cpu.process_ns(os.getpid()) - before >= 2_000_000
    with pytest.raises(LbError, match="is gone"):
        cpu.process_ns(2**22 - 1)


HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [(HEADER + b"hel", (5, 3)), (HEADER[:-2], None), (b"", None)],
)
def test_split_header_parts(data: bytes, expected: tuple[int, int] | None) -> None:
    """The length it tells, and what of the body is there already."""
    assert web_client.split_header(data) == expected


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 20_000]
)
def test_split_header_no_usable_answer_refused(data: bytes) -> None:
    """An error page is no answer."""
    with pytest.raises(web_client.AnswerError):
        web_client.split_header(data)


@pytest.fixture
def web() -> Iterator[tuple[str, int]]:
    """Run a server that answers `hello` to each request, on as many connections as come."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    stop, stopped = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(listener, stopped))
    thread.start()
    yield listener.getsockname()
    stop.close()
    thread.join()
    listener.close()
    stopped.close()


def _serve(listener: socket.socket, stopped: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stopped, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is stopped:
                    for each in list(selector.get_map().values()):
                        if each.fileobj not in (listener, stopped):
                            each.fileobj.close()  # type: ignore[union-attr]
                    return
                if ready is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif not _answer(ready):
                    selector.unregister(ready)
                    ready.close()


def _answer(connection: socket.socket) -> bool:
    try:
        asked = connection.recv(4096)
        connection.sendall((HEADER + b"hello") * bool(asked))
    except OSError:
        return False
    return bool(asked) and b"Connection: close" not in asked


@pytest.mark.parametrize("close", [False, True], ids=["kept", "closed"])
def test_client_load_counts_whole_responses(web: tuple[str, int], close: bool) -> None:
    """Responses and bytes of bodies agree, on kept connections and on new ones."""
    found = web_client.load(web, "/", close, 0.2, 3)
    assert found["responses"] > 3
    assert found["bytes"] == 5 * found["responses"]
    assert found["seconds"] >= 0.2
    assert found["failed"] == 0


def test_client_paced_one_exchange_per_interval(web: tuple[str, int]) -> None:
    """A pace and a time give a number."""
    found = web_client.paced(web, "/", 0.1, 100.0)
    assert len(found["connect"]) == len(found["request"]) == 10
    assert all(value > 0 for name in ("connect", "request") for value in found[name])
    assert found["failed"] == 0


def test_client_no_listener_exit_1_with_a_line() -> None:
    """An error is a line and a status, for the bench to quote."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command_line = [sys.executable, "-m", "lb.lab.bench.web_client", "127.0.0.1", str(port), "/", "--seconds", "1"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr
