"""Experiments without a testbed: what their files say, what turns add up to, what is shown."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lb import config
from lb.errors import ConfigError
from lb.lab.experiment import file, quick, report, result, table
from lb.lab.experiment.file import Experiment, policy_name
from lb.lab.experiment.result import Collected, Result, Turn
from lb.lab.loadgen.records import Fetch, Playback
from lb.policies import POLICIES

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "experiments").glob("*.toml"))
SMALLEST = """\
title = "t"
policies = ["round-robin", { name = "static", server = "server2" }]
[[load]]
name = "a"
lines = "0 198.18.1.100 9876 100 0 1"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "e.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path: Path) -> None:
    """Every example can be read, and says its purpose."""
    experiment, loads = file.read(path)
    assert experiment.about
    assert len(loads) == len(experiment.loads)


def test_slow_server_is_the_issues_first_experiment() -> None:
    """One server has a quarter of the others' bandwidth, five clients, every policy that needs no option."""
    experiment, _ = file.read(next(path for path in EXAMPLES if path.stem == "slow-server"))
    speeds = experiment.bandwidths()
    assert speeds is not None
    assert speeds["server3"] * 4 == speeds["server1"] == speeds["server2"]
    assert all(load.clients == 5 for load in experiment.loads)
    assert set(experiment.policies) == set(file.optionless())
    assert set(file.optionless()) <= set(POLICIES)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ('"round-robin",', '"fastest",', "2:13", 'policies[0]: unknown policy "fastest"'),
        ('"server2"', '"server9"', "2:28", 'policies[1]: "server9" is not a server of this service'),
        ('title = "t"', "titel = 1", "1:1", "titel: unknown key"),
        ('title = "t"', "", "1:1", 'required key "title" is missing'),
        ("[[load]]", 'baseline = "random"\n[[load]]', "3:12", 'baseline: "random" is not one of the policies'),
        ("[[load]]", "[server.server9]\nweight = 1\n[[load]]", "3:1", "server.server9: the testbed has no server"),
        ("[[load]]", '[server.server1]\nbandwidth = "40"\n[[load]]', "4:13", "is not a bandwidth"),
        ("[[load]]", '[health]\ncheck = "icmp"\n[[load]]', "3:1", 'health: "icmp" is not allowed'),
        ('name = "a"', 'name = "a"\nfile = "x"', "3:1", "load[0]: a load has either a file or lines"),
        ('name = "a"', 'name = "a"\narrival = "poisson:x"', "5:11", "load[0].arrival: 'poisson:x' is not"),
        ('name = "a"', 'name = "a"\nclients = 6', "5:11", "load[0].clients: 6 is not in 1..5"),
        ('name = "a"', 'name = "a"\nadaptive = true\narrival = "poisson:1"', "6:11", "leave out arrival or adaptive"),
        ("[[load]]", "[lod]", "3:1", "lod: unknown key"),
    ],
)
def test_wrong_file_is_told_with_its_place(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    """A mistake is told by file:line:column and reason, as in a configuration."""
    assert old in SMALLEST
    path = written(tmp_path, SMALLEST.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        file.read(path)
    assert caught.value.exit_code == 3
    problems = "\n".join(caught.value.problems)
    assert f"{path}:{place}: " in problems
    assert message in problems


def test_wrong_load_is_told_with_its_line(tmp_path: Path) -> None:
    """A mistake in the lines of a load is told as in a .load file, and a missing file by its name."""
    with pytest.raises(ConfigError, match="load a:1:21: enum_size: 7 is not a size"):
        file.read(written(tmp_path, SMALLEST.replace(" 100 0 1", " 7 0 1")))
    with pytest.raises(ConfigError, match=r"none\.load: cannot be read"):
        file.read(written(tmp_path, re.sub(r'lines = ".*"', 'file = "none.load"', SMALLEST)))


def test_load_file_is_found_beside_the_experiment(tmp_path: Path) -> None:
    """A file is looked for from the experiment's own directory."""
    (tmp_path / "x.load").write_text("0 198.18.1.100 9876 500 0 3\n")
    _, (load,) = file.read(written(tmp_path, re.sub(r'lines = ".*"', 'file = "x.load"', SMALLEST)))
    assert load.lines[0].chunks == 3


def test_policy_of_ones_own_is_found_beside_the_experiment(tmp_path: Path) -> None:
    """A policy in a file starts from the experiment's folder, and is called by its file and class."""
    (tmp_path / "mine.py").write_text(
        "from lb.policies import Plan\nclass Mine:\n    def plan(self, service, servers, measurements):\n"
        "        return Plan('counter', tuple(server.id for server in servers))\n"
    )
    experiment, _ = file.read(written(tmp_path, SMALLEST.replace("{ name", '"./mine.py:Mine", { name')))
    assert policy_name(experiment.policies[1]) == "mine.py:Mine"
    assert str(tmp_path / "mine.py") in file.service_toml(experiment, experiment.policies[1])


def test_service_of_each_policy_is_a_valid_configuration(tmp_path: Path) -> None:
    """What `lb run` gets for a policy has the policy, its options, weights and health checks."""
    text = SMALLEST.replace(
        "[[load]]", '[server.server2]\nweight = 3\n[health]\ncheck = "http"\npath = "/a b\\"c"\n[[load]]'
    ).replace('"/a b\\"c"', '"/status"')
    experiment, _ = file.read(written(tmp_path, text))
    for policy in experiment.policies:
        made = config.parse(file.service_toml(experiment, policy))
        (service,) = made.services
        assert policy_name({"name": service.policy.name, **service.policy.options}) == policy_name(policy)
        assert [server.weight for server in service.servers] == [1, 3, 1]
        assert service.health is not None


# What a run has beside its loads, at most, in seconds: the testbed, a balancer's start for each policy, and at the end
# of each load the chunks that are on their way.
TESTBED_S, START_S, TAIL_S = 8.0, 2.0, 1.8


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_quick_run_of_every_policy_is_planned_within_90_s(path: Path) -> None:
    """By its plan, with all that is around it; as the file says it takes minutes."""
    experiment, loads = file.read(path)
    policies = len(experiment.policies)
    assert quick.experiment_s(experiment, loads, policies) > 300
    short, short_loads = quick.shortened(experiment, loads, policies)
    planned_s = quick.experiment_s(short, short_loads, policies)
    assert planned_s <= quick.QUICK_LOAD_S
    assert planned_s + TESTBED_S + policies * (START_S + len(loads) * TAIL_S) <= 90
    assert [len(load.lines) for load in short_loads] == [len(load.lines) for load in loads]
    assert all(line.chunks >= 2 for load in short_loads for line in load.lines)


def test_quick_loses_servers_sooner_by_as_much() -> None:
    """The outage is the same part of the load as in the file, and rates stay."""
    experiment, (load,) = file.read(next(path for path in EXAMPLES if path.stem == "server-lost"))
    short, (made,) = quick.shortened(experiment, (load,), 8)
    share = made.lines[0].chunks / load.lines[0].chunks
    assert [event.at_s for event in made.events] == pytest.approx([6 * share, 14 * share], rel=0.1)
    assert short.loads[0].arrival == experiment.loads[0].arrival


def test_quick_leaves_a_short_experiment_as_it_is(tmp_path: Path) -> None:
    """What fits the budget is played whole, once."""
    experiment, loads = file.read(written(tmp_path, SMALLEST))
    short, made = quick.shortened(experiment, loads, 2)
    assert (short.turns, made) == (1, loads)


@pytest.mark.parametrize(
    ("lines", "keys", "expected_s"),
    [
        ("0 198.18.1.100 9876 100 2 4", "", 6),
        ("3 198.18.1.100 9876 100 2 4", "repeat = 2", 18),
        ("0 198.18.1.100 9876 100 0 4", 'arrival = "poisson:5"', 4),
        ("1 198.18.1.100 9876 100 0 10", "adaptive = true", 29),
        ("0 198.18.1.100 9876 100 0 2", "adaptive = true", 0),
        ("0 198.18.1.100 9876 100 1 0", "", 0),
    ],
)
def test_load_seconds_by_plan(tmp_path: Path, lines: str, keys: str, expected_s: float) -> None:
    """Closed loops wait their intervals, open ones have a rate, players fill 12 s and go on as they play."""
    text = SMALLEST.replace("0 198.18.1.100 9876 100 0 1", lines) + keys + "\n"
    experiment, (load,) = file.read(written(tmp_path, text))
    assert quick.load_s(load, experiment.loads[0]) == pytest.approx(expected_s)


@pytest.mark.parametrize("value", ['a "b" \\ \n\t\x7f', 3, 1.5, True, ["x", {"y": [1]}], {"a b": "c"}])
def test_toml_of_a_value_reads_back(value: Any) -> None:
    """What is written into a configuration is what the experiment said."""
    assert tomllib.loads(f"x = {file._toml(value)}")["x"] == value


def turn(mean_s: float, failures: int = 0, slow: str = "server3") -> Turn:
    """Make a turn of ten fetches of each server around a mean, and some failures."""
    fetches = [
        Fetch("client1", 0, 0, i, 100, i, i, i + mean_s * (1.5 if server == slow else 0.75), 1000, server)
        for server in ("server1", "server2", "server3")
        for i in range(10)
    ]
    fetches += [Fetch("client1", 0, 0, i, 100, i, i, i + 1, 0, "-", "refused") for i in range(failures)]
    return Turn(
        fetches, [Playback("client1", 0, 0, 0.0, 0.1, 10.0, ((5.0, 5.0 + mean_s),), 8.0, 0, ((0.1, 100, 4.0),))]
    )


def made(expectations: str = "", bandwidths: bool = True, judged: bool = True) -> Result:
    """Make the result of two policies, the second twice as fast."""
    servers = "".join(f'[server.server{n}]\nbandwidth = "{40 if n < 3 else 10} Mbit/s"\n' for n in (1, 2, 3))
    text = SMALLEST.replace("[[load]]", (servers if bandwidths else "") + "[[load]]", 1) + expectations
    report = file._FORMAT.inspect(text, "e.toml")
    assert report.problems == []
    experiment = report.config
    assert isinstance(experiment, Experiment)
    collected = Collected()
    policies = [policy_name(policy) for policy in experiment.policies]
    for name, means in zip(policies, ((0.2, 0.4), (0.1, 0.2)), strict=True):
        for mean_s in means:
            collected.add(name, "a", turn(mean_s, failures=1 if name == policies[0] else 0))
    settings = dict.fromkeys(("date", "turns", "bandwidth of servers"), "<x>")
    return result.make(experiment, collected, policies, settings, judged)


def test_ratios_are_to_the_baseline_over_all_turns() -> None:
    """Turns are pooled; half the time is 0.5x; the spread is of the turns."""
    found = made()
    entry = found.entry("static (server=server2)", "a")
    assert entry is not None
    assert entry.values["mean"] == pytest.approx(0.15)
    assert entry.ratios["mean"] == pytest.approx(0.5)
    assert entry.ratios["p95"] == pytest.approx(0.5)
    assert entry.ratios["stalled"] == pytest.approx(0.5)
    assert entry.spread["mean"] == pytest.approx((0.1, 0.2))
    assert table.comparison(entry) == "mean 0.50x, p95 0.50x, stalled 0.50x"
    assert entry.figures.total.failures == 0
    base = found.entry("round-robin", "a")
    assert base is not None
    assert base.figures.total.failures == 2


@pytest.mark.parametrize(("bandwidths", "index"), [(True, (0.25 + 0.25 + 1) ** 2 / (3 * 1.125)), (False, 1.0)])
def test_fairness_is_by_bandwidth_where_it_is_known(bandwidths: bool, index: float) -> None:
    """Three equal shares are fair among equals, not when one server has a quarter of the others' bandwidth."""
    entry = made(bandwidths=bandwidths).entry("round-robin", "a")
    assert entry is not None
    assert entry.fairness == pytest.approx(index)


@pytest.mark.parametrize(
    ("policy", "at_most", "holds"),
    [("static (server=server2)", 0.5001, True), ("static (server=server2)", 0.49, False), ("clever", 1, None)],
)
def test_expectation_holds_or_not_or_is_not_measured(policy: str, at_most: float, holds: bool | None) -> None:
    """A policy that does not exist yet is not measured; it is no failure."""
    text = f'[[expect]]\npolicy = "{policy}"\nload = "a"\nfigure = "mean"\nat_most = {at_most}\n'
    (verdict,) = made(text).verdicts
    assert verdict.holds is holds
    assert table.HOLDS[holds] in table.expectation_line(verdict)


def test_expectation_of_loads_that_were_shortened_is_not_judged() -> None:
    """A few chunks prove nothing: the ratio is shown, and no verdict."""
    text = '[[expect]]\npolicy = "static (server=server2)"\nload = "a"\nfigure = "mean"\nat_most = 0.1\n'
    (verdict,) = made(text, judged=False).verdicts
    assert (verdict.ratio, verdict.holds) == (pytest.approx(0.5), None)
    assert table.expectation_line(verdict).endswith(": not judged (0.50x)")


def test_result_of_a_stopped_run_has_what_was_complete(tmp_path: Path) -> None:
    """Policies and loads without a complete turn are left out, and what is there is shown, without a baseline too."""
    pytest.importorskip("jinja2")
    text = SMALLEST + '[[load]]\nname = "b"\nlines = "0 198.18.1.100 9876 100 0 1"\n'
    experiment, _ = file.read(written(tmp_path, text))
    names = [policy_name(policy) for policy in experiment.policies]
    settings = dict.fromkeys(("date", "turns", "bandwidth of servers"), "x") | {"interrupted": "after 1 of 4 runs"}
    collected = Collected()
    collected.add(names[1], "a", turn(0.2))
    found = result.make(experiment, collected, names, settings)
    assert (found.policies, found.loads) == ((names[1],), ("a",))
    assert [(entry.policy, entry.load, entry.ratios) for entry in found.entries] == [(names[1], "a", {})]
    table.show([found])
    assert "Stopped after 1 of 4 runs" in report.render([found])
    assert json.loads(result.to_json([found]))["experiments"][0]["settings"]["interrupted"] == "after 1 of 4 runs"


def test_table_has_a_row_per_policy_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """The table names each policy with its figures and shares, and says how it compares."""
    table.show([made()])
    output = capsys.readouterr().out
    assert re.search(r"round-robin +60 +2 +300 ms .* 33\.3% +33\.3% +33\.3%", output)
    assert "a: static (server=server2): mean 0.50x, p95 0.50x, stalled 0.50x of round-robin" in output


def test_json_has_figures_and_no_single_fetch() -> None:
    """JSON is for programs: every figure, turn by turn."""
    content = json.loads(result.to_json([made()]))
    assert content["format"] == "flowlb-experiment-1"
    entries = content["experiments"][0]["entries"]
    assert [len(entry["turns"]) for entry in entries] == [2, 2]
    assert "durations_s" not in entries[0]


def test_report_is_self_contained() -> None:
    """One page for all experiments: well-formed pictures, every word escaped, nothing fetched."""
    pytest.importorskip("jinja2")
    text = report.render([made(), made()])
    assert "<x>" not in text
    assert not re.search(r"<script|<link|<img|https?:|url\(", text)
    labelled = [
        picture
        for picture in (ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox.*?</svg>", text, re.DOTALL))
        if picture.get("aria-label")
    ]
    assert len(labelled) == 2 * 5
