"""The load generator without a network: lines, plans, players, figures, records, what is printed and drawn."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lb.errors import ConfigError, LbError
from lb.lab.loadgen import document, figures, lines, plan, records, report, table, target_weights
from lb.lab.loadgen.course import CourseLog
from lb.lab.loadgen.lines import Event, LoadLine
from lb.lab.loadgen.plan import Options
from lb.lab.loadgen.player import BUFFER_S, Player
from lb.lab.loadgen.records import Fetch, LineEnded, LineStarted, Playback
from lb.lab.loadgen.results import Outputs

COURSE_LINE = "0 198.18.1.100 9876 1000 0 1"
LOADS = sorted((Path(__file__).parents[2] / "loadgen").glob("*.load"))


def fetch(
    started_s: float = 0.0,
    took_s: float = 0.1,
    server: str = "server1",
    client: str = "client1",
    error: str = "",
    late_s: float = 0.0,
) -> Fetch:
    return Fetch(
        client, 0, 0, 0, 100, started_s - late_s, started_s, started_s + took_s, 0 if error else 1000, server, error
    )


def test_line_of_the_course_is_read() -> None:
    """The course's line, its comments and its line ends are accepted unchanged."""
    load = lines.parse(f"#!/usr/bin/env lb\n# a comment\r\n\r\n {COURSE_LINE}\t# more\r\n#!shebang\n")
    assert load.lines == (LoadLine(0, "198.18.1.100", 9876, 1000, 0, 1),)


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("0 198.18.1.100 9876 1000 0", 27, "5 fields, not 6"),
        ("0 198.18.1.100 9876 1000 0 1 2", 30, "7 fields, not 6"),
        ("7", 2, "1 field, not 6"),
        ("x 198.18.1.100 9876 1000 0 1", 1, "start_time: 'x' is not a number of seconds"),
        ("-1 198.18.1.100 9876 1000 0 1", 1, "start_time: -1 is not in 0..31622400 seconds"),
        ("0 198.18.1.256 9876 1000 0 1", 3, "vip: '198.18.1.256' is neither an address nor a host name"),
        ("0 a_b 9876 1000 0 1", 3, "vip: 'a_b' is neither"),
        ("0 198.18.1.100 70000 1000 0 1", 16, "vport: 70000 is not in 1..65535"),
        ("0 198.18.1.100 1_0 1000 0 1", 16, "vport: '1_0' is not an integer"),
        ("0 198.18.1.100 9876 999 0 1", 21, "enum_size: 999 is not a size"),
        ("0 198.18.1.100 9876 big 0 1", 21, "enum_size: 'big' is not a size"),
        ("0 198.18.1.100 9876 1000 nan 1", 26, "interval: 'nan' is not a number of seconds"),
        ("0 198.18.1.100 9876 1000 \u0661 1", 26, "interval: '\u0661' is not a number of seconds"),
        ("1_0 198.18.1.100 9876 1000 0 1", 1, "start_time: '1_0' is not a number of seconds"),
        ("0 198.18.1.\u0661 9876 1000 0 1", 3, "vip: '198.18.1.\u0661' is neither an address nor a host name"),
        ("0 198.18.1.100 \u0661 1000 0 1", 16, "vport: '\u0661' is not an integer"),
        ("0 198.18.1.100 9876 1000 0 -1", 28, "chunk_num: -1 is not in"),
        ("0 198.18.1.100 9876 1000 0 1.5", 28, "chunk_num: '1.5' is not an integer"),
        ("#! fly away", 4, "unknown directive"),
        ("#! ", 3, "unknown directive"),
        ("#! -1 lose server1", 4, "time: -1 is not in"),
        ("#! 1 lose server/1", 11, "'server/1' is not a name"),
    ],
)
def test_wrong_line_is_refused_with_its_place(line: str, column: int, message: str) -> None:
    """A wrong line is told by file, line and column, with the line itself and the reason."""
    with pytest.raises(ConfigError) as caught:
        lines.parse(f"{COURSE_LINE}\n{line}\n", "some.load")
    (problem,) = caught.value.problems
    assert problem.startswith(f"some.load:2:{column}: {message}")
    assert f"    2 | {line}" in problem
    assert caught.value.exit_code == 3


def test_every_wrong_line_is_told() -> None:
    """Two mistakes are two messages; a file without a line is one."""
    with pytest.raises(ConfigError) as caught:
        lines.parse("a\nb\n")
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="nothing to fetch"):
        lines.parse("# nothing\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        lines.read(Path("/nonexistent/a.load"))


def test_directives_name_clients_and_events() -> None:
    """Lines after `only` are one client's until `everybody`; events come in order of time."""
    text = f"""
        #! 20 return server2
        #! 10 lose server2
        {COURSE_LINE}
        #! only client3
        {COURSE_LINE}
        #! everybody
        {COURSE_LINE}
    """
    load = lines.parse(text)
    assert [line.client for line in load.lines] == [None, "client3", None]
    assert load.events == (Event(10, "lose", "server2"), Event(20, "return", "server2"))


@pytest.mark.parametrize("path", LOADS, ids=lambda path: path.stem)
def test_shipped_loads_are_valid(path: Path) -> None:
    """Every .load file in the tree can be read, and says how long it lasts in words."""
    assert lines.read(path).lines
    assert path.read_text().startswith("#")


def test_shipped_loads_are_there() -> None:
    """The course's file and those worth having."""
    names = {path.stem for path in LOADS}
    assert names >= {"simple", "steady", "rush_hour", "one_heavy_client", "mixed_sizes", "server_lost"}


def test_plan_deals_lines_to_clients() -> None:
    """Each client plays the lines of all clients and its own; numbers are those of the file."""
    load = lines.parse(f"{COURSE_LINE}\n#! only client2\n{COURSE_LINE}")
    made = plan.make(load, Options(repeat=3), plan.client_names(2))
    assert [[track.number for track in client.tracks] for client in made.clients] == [[0], [0, 1]]
    assert made.fetches == 9
    assert made.only("client2").fetches == 6
    assert plan.from_json(plan.to_json(made)) == made


def test_open_loop_rate_is_shared_by_chunks() -> None:
    """All lines of all clients together have the rate asked for, each its share of the chunks."""
    load = lines.parse("0 198.18.1.100 80 100 0 30\n0 198.18.1.100 80 500 0 10\n0 198.18.1.100 80 500 0 0")
    made = plan.make(load, Options(rate_hz=80), plan.client_names(2))
    assert [track.rate_hz for track in made.clients[0].tracks] == [30, 10, None]


def test_intended_starts_repeat_with_the_seed_alone() -> None:
    """The same seed gives the same starts; another client, round or seed others, at the same rate."""
    track = plan.Track(0, LoadLine(5.0, "198.18.1.100", 80, 100, 0, 2000), 100.0)
    first = list(plan.intended_starts(track, 1, "client1", 0))
    assert list(plan.intended_starts(track, 1, "client1", 0)) == first
    for other in ((2, "client1", 0), (1, "client2", 0), (1, "client1", 1)):
        assert list(plan.intended_starts(track, *other)) != first
    assert first[0] > 5
    assert all(before < after for before, after in pairwise(first))
    assert (first[-1] - 5) / 2000 == pytest.approx(1 / 100, rel=0.1)


@pytest.mark.parametrize(
    "text",
    ["poisson", "poisson:", "poisson:0", "poisson:-1", "poisson:nan", "poisson:\u0662", "poisson:1_0", "fixed:3", "3"],
)
def test_wrong_arrival_is_refused(text: str) -> None:
    """Anything but poisson:RATE is refused."""
    with pytest.raises(ValueError, match="is not poisson:RATE"):
        plan.parse_arrival(text)
    assert plan.parse_arrival("poisson:2.5") == 2.5


def feed(player: Player, now_s: float, took_s: float) -> None:
    """Let a chunk of the present bitrate arrive, with as many bytes as it has."""
    player.arrived(now_s, took_s, int(player.bitrate * 1000 / 8 * 4))


def test_player_fast_network_climbs_and_then_waits_for_room() -> None:
    """It starts small, takes the highest bitrate, fills its buffer, and then asks once per chunk."""
    player = Player(0.0, 4.0)
    assert player.bitrate == 100
    for number in range(3):
        feed(player, 0.1 * (number + 1), 0.1)
    assert player.bitrate == 1000
    assert player.buffer_s(0.3) == pytest.approx(11.8)
    # There is room for four seconds when eight are left.
    assert player.next_s == pytest.approx(0.1 + 12 + 4 - BUFFER_S)
    playback = player.end(0.3, "client1", 0, 0)
    assert (playback.startup_s, playback.stalls, playback.switches) == (0.1, (), 1)


def test_player_late_chunk_is_a_stall_until_it_comes() -> None:
    """The picture stands still from the moment the buffer is dry to the next chunk."""
    player = Player(10.0, 4.0)
    feed(player, 11.0, 1.0)
    feed(player, 17.0, 6.0)
    playback = player.end(18.0, "client1", 2, 1)
    assert playback.startup_s == 1.0
    assert playback.stalls == ((15.0, 17.0),)
    assert playback.stalled_s == 2.0
    assert playback.played_s == 8.0


def test_player_slow_network_stays_small() -> None:
    """What the throughput does not carry is not asked for: 500 kbit/s at 600 kbit/s is too much, at 700 it is not."""
    for kbit, expected in ((600, 100), (700, 500)):
        player = Player(0.0, 4.0)
        player.arrived(1.0, 1.0, kbit * 1000 // 8)
        feed(player, 2.0, player.bitrate * 4 / kbit)
        assert player.bitrate == expected


def test_player_never_above_its_line() -> None:
    """The size in the line is the highest bitrate it may choose."""
    player = Player(0.0, 4.0, highest=500)
    for number in range(3):
        feed(player, 0.1 * (number + 1), 0.01)
    assert player.bitrate == 500


def test_player_failure_asks_again_later_for_the_smallest() -> None:
    """After a failure it waits a second and asks for little; what never comes is a stall to the end."""
    player = Player(0.0, 4.0)
    feed(player, 0.1, 0.01)
    assert player.bitrate == 1000
    player.failed(5.0)
    assert (player.bitrate, player.next_s) == (100, 6.0)
    assert player.end(9.0, "client1", 0, 0).stalls == ((4.1, 9.0),)
    assert Player(0.0, 4.0).end(3.0, "client1", 0, 0).startup_s is None


def test_figures_count_shares_and_percentiles() -> None:
    """Latencies are of successes, failures stand beside them, servers that sent nothing are shown if weighted."""
    fetches = [fetch(number, took_s=(number + 1) / 100, server=f"server{number % 2 + 1}") for number in range(100)]
    fetches.append(fetch(50.0, took_s=5.0, server="-", client="client2", error="no answer within 5 s"))
    found = figures.figure(fetches, target_weights={"server1": 2, "server2": 1, "server3": 1})
    assert found.total.latency is not None
    assert found.total.latency.p50_s == pytest.approx(0.5)
    assert found.total.latency.p95_s == pytest.approx(0.95)
    assert found.total.latency.mean_s == pytest.approx(0.505)
    assert (found.total.fetches, found.total.failures) == (100, 1)
    assert {server.name: server.share for server in found.servers} == {
        "-": 0.0,
        "server1": 0.5,
        "server2": 0.5,
        "server3": 0.0,
    }
    assert [(client.name, client.failures) for client in found.clients] == [("client1", 0), ("client2", 1)]
    assert found.errors == {"no answer within 5 s": 1}
    assert found.duration_s == pytest.approx(100.0)
    # 25, 50 and 0 per weight.
    assert found.fairness == pytest.approx(75**2 / (3 * (25**2 + 50**2)))


def test_figures_of_unknown_servers_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers without a name are neither "no answer" nor a server whose share is compared."""
    found = figures.figure(
        [fetch(0, server="unknown"), fetch(1, server="server1"), fetch(2, server="-", error="refused")]
    )
    table.show(found)
    assert {row.split("  ")[0] for row in capsys.readouterr().out.splitlines()[2:5]} == {
        "no answer",
        "server1",
        "unknown",
    }
    assert found.fairness == 1


def test_figures_without_success_have_no_latency() -> None:
    """Nothing is divided by nothing."""
    found = figures.figure([fetch(error="refused", server="-")])
    assert (found.total.latency, found.fairness, found.rate_hz) == (None, None, 0.0)
    nothing = figures.figure([])
    assert (nothing.total.fetches, nothing.lag, nothing.players) == (0, None, None)


def test_figures_late_start_counts_from_the_intended_one() -> None:
    """A late start counts as waiting: the response counts from the intended start, the lag is reported."""
    found = figures.figure([fetch(1.0, took_s=0.1, late_s=0.5)])
    assert found.total.latency is not None
    assert found.total.response is not None
    assert found.lag is not None
    assert (found.total.latency.mean_s, found.total.response.mean_s, found.lag.mean_s) == pytest.approx((0.1, 0.6, 0.5))


@pytest.mark.parametrize(("values", "index"), [([1, 1, 1], 1.0), ([3, 0, 0], 1 / 3), ([4, 2], 0.9), ([0, 0], None)])
def test_jain_index_known_values(values: list[float], index: float | None) -> None:
    """1 when equal, 1/n when one has all."""
    assert figures.jain(values) == (None if index is None else pytest.approx(index))


def test_names_in_the_order_of_people() -> None:
    """client2 comes before client10."""
    assert sorted(["client10", "client2", "-", "b"], key=figures.natural) == ["-", "b", "client2", "client10"]


def playback(stalls: tuple[tuple[float, float], ...] = (), startup_s: float | None = 0.5) -> Playback:
    points = ((0.5, 100, 4.0), (1.0, 1000, 7.5)) if startup_s is not None else ()
    return Playback("client1", 0, 0, 0.0, startup_s, 10.5, stalls, 8.0, 1, points)


def test_players_together() -> None:
    """Stalls add up; their share is of the time pictures should have moved."""
    found = figures.watch([playback(((4.5, 9.5),)), playback(), playback(startup_s=None)])
    assert found is not None
    assert (found.players, found.unseen, found.stalls, found.stalled_s) == (3, 1, 1, 5.0)
    assert found.startup_s == pytest.approx(0.5)
    assert found.stall_share == pytest.approx(5 / 20)
    assert found.bitrate == pytest.approx(550)


@pytest.mark.parametrize("record", [fetch(), LineStarted("a", 1, 2), LineEnded("a", 1, 2, 3, 0.5), playback(((1, 2),))])
def test_records_as_text_read_back(record: records.Record) -> None:
    """What a client's process writes is what its parent reads."""
    assert records.from_json(records.to_json(record)) == record


def test_course_prints_and_log(tmp_path: Path) -> None:
    """The prints and the log are the course's, and the log is appended to."""
    path = tmp_path / "log"
    path.write_text("before\n")
    load = lines.parse(COURSE_LINE.replace(" 0 1", " 0.5 2"))
    log = CourseLog(load.lines, several=False, log=path, verbose=True)
    said = [
        line
        for record in (LineStarted("client1", 0, 0), fetch(took_s=0.25), LineEnded("client1", 0, 0, 2, 0.25))
        for line in log.take(record)
    ]
    log.close()
    assert said == [
        "Fetched chunk 0 in 0.250000 sec from server1",
        "Fetched 2 1000bitrate chunk with interval 0.500000 sec. Mean fetching time is 0.250000 sec",
    ]
    assert path.read_text() == "before\nCommand id 0 start\nid: 0, [(0, 0.25)]\n"
    with pytest.raises(LbError, match="cannot be written"):
        CourseLog(load.lines, several=False, log=tmp_path / "none" / "log", verbose=False)


def test_want_is_read_or_refused() -> None:
    """Weights by name; anything else says which part is wrong."""
    assert target_weights.parse("server1=2, server2=0.5") == {"server1": 2.0, "server2": 0.5}
    for text in ("server1", "server1=x", "=1", "server1=-1", "a=1,", "a=inf", "a=\u0661", "a=1_0"):
        with pytest.raises(ValueError, match="is not SERVER=WEIGHT"):
            target_weights.parse(text)


def test_want_of_a_status_is_that_of_the_service_asked() -> None:
    """The service is found by the line's address and port; who takes no flows has no weight."""
    servers = [
        {"name": "server1", "weight": 3, "state": "active"},
        {"name": "server2", "weight": 1, "state": "draining"},
    ]
    service = {"address": "2001:2:0:1::100", "port": 80, "protocol": "tcp", "policy": "random", "servers": servers}
    line = LoadLine(0, "2001:2:0:1:0:0:0:100", 80, 100, 0, 1)
    assert target_weights.of_status({"services": [service]}, line) == {"server1": 3.0, "server2": 0.0}
    assert target_weights.of_status({"services": [service | {"port": 81}]}, line) is None
    assert target_weights.of_status({"services": [service | {"policy": "static"}]}, line) is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ('"round-robin"', {"server1": 0.75, "server2": 0.25, "server3": 0}),
        ('"maglev"', {"server1": 0.75, "server2": 0.25, "server3": 0}),
        ('{ name = "static", server = "server2" }', {"server1": 0, "server2": 1, "server3": 0}),
    ],
)
def test_want_of_a_configuration_is_the_policys_plan(tmp_path: Path, policy: str, expected: dict[str, float]) -> None:
    """The target weights are what the policy's plan says: weights, or all for one."""
    path = tmp_path / "lb.toml"
    path.write_text(f"""
        [[interface]]
        name = "eth0"
        [[service]]
        name = "video"
        address = "198.18.1.100"
        port = 9876
        policy = {policy}
        server = [
          {{ name = "server1", address = "198.18.1.31", port = 80, weight = 3 }},
          {{ name = "server2", address = "198.18.1.32", port = 80 }},
          {{ name = "server3", address = "198.18.1.33", port = 80, state = "draining" }},
        ]
    """)
    weights = target_weights.of_config(path, LoadLine(0, "198.18.1.100", 9876, 100, 0, 1))
    assert table.shares(weights) == pytest.approx(expected, abs=0.001)


def run_of(count: int) -> document.Document:
    """Make a run with everything in it."""
    fetches = [fetch(i / 10, 0.01 * (i % 7 + 1), f"server{i % 3 + 1}", f"client{i % 2 + 1}") for i in range(count)]
    fetches.append(fetch(0.1, 5.0, "-", error="no <answer>"))
    settings = dict.fromkeys(("load", "date", "arrival", "clients", "target"), "<x>")
    return document.make(
        settings, fetches, [playback(((4.5, 9.5),))], {"server1": 1, "server4": 1}, [(1.0, "server2 is lost")]
    )


def test_document_json_and_csv_hold_every_fetch() -> None:
    """JSON is whole, CSV has a row per fetch, in order of intended starts."""
    made = run_of(20)
    content = json.loads(document.to_json(made))
    assert content["format"] == "flowlb-load-1"
    assert len(content["fetches"]) == 21
    assert content["figures"]["total"]["failures"] == 1
    rows = list(csv.DictReader(io.StringIO(document.to_csv(made))))
    assert len(rows) == 21
    starts = [float(row["intended_s"]) for row in rows]
    assert starts == sorted(starts)
    assert Counter(row["error"] for row in rows)["no <answer>"] == 1


@pytest.mark.parametrize("count", [1, 20, 5000])
def test_report_is_self_contained_and_within_bounds(count: int) -> None:
    """One page, well-formed pictures, every word escaped, nothing fetched, and not too big for many fetches."""
    pytest.importorskip("jinja2")
    text = report.render(run_of(count))
    assert "<x>" not in text
    assert "<answer>" not in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|<link|<img|https?:|url\(", text)
    pictures = [ElementTree.fromstring(found) for found in re.findall(r"<svg viewBox.*?</svg>", text, re.DOTALL)]
    assert len([picture for picture in pictures if picture.get("aria-label")]) == 4
    assert len(text) < 200_000


def test_report_nothing_succeeded_still_a_page() -> None:
    """A run of failures has its crosses and its words."""
    pytest.importorskip("jinja2")
    settings = dict.fromkeys(("load", "date", "arrival", "clients", "target"), "x")
    text = report.render(document.make(settings, [fetch(error="refused", server="-")]))
    assert "failed (1)" in text
    assert "failed 1 times: refused" in text
    assert report.render(document.make(settings, []))


def test_thinned_keeps_the_slowest() -> None:
    """A big run loses dots, not its slowest fetches."""
    fetches = [fetch(i / 100, took_s=10.0 if i == 777 else 0.01) for i in range(report.MAX_DOTS * 2)]
    shown = report.thinned(fetches)
    assert len(shown) == report.MAX_DOTS
    assert fetches[777] in shown


def test_wishes_without_directory_are_refused(tmp_path: Path) -> None:
    """A file that cannot be written is told before anything runs."""
    with pytest.raises(LbError, match="there is no directory"):
        Outputs(json_file=tmp_path / "none" / "a.json").require()
    Outputs(json_file=tmp_path / "a.json").require()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0001, "0.10 ms"), (0.01234, "12.3 ms"), (0.4321, "432 ms"), (12.3, "12300 ms")]
)
def test_milliseconds_have_three_digits(seconds: float, text: str) -> None:
    """Durations are shown in milliseconds."""
    assert table.milliseconds(seconds) == text
