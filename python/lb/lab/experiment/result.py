"""
What experiments add up to: figures of each policy and load, over all turns and turn by turn, and ratios to a baseline.

Pure arithmetic and plain data. Latencies count from the intended start: in an open loop every policy owes the same
fetches at the same moments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lb.lab.experiment.file import Expectation, Experiment, policy_name
from lb.lab.loadgen.figures import Figures, figure, jain
from lb.lab.loadgen.records import Fetch, Playback

FORMAT: Literal["flowlb-experiment-1"] = "flowlb-experiment-1"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one policy did with one load, once."""

    fetches: Sequence[Fetch]
    playbacks: Sequence[Playback]


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One policy and one load.

    Args:
        figures: of all turns together. turns: of each.
        values: the figures that are compared, by name; None: there is none.
        spread: the smallest and largest value of the turns, by name.
        ratios: of the values to the baseline's, by name; those that exist.
        fairness: Jain's index of what servers sent, by bandwidth where all have one, else by weight.
        durations_s: of the fetches that succeeded, from their intended starts.
    """

    policy: str
    load: str
    figures: Figures
    turns: tuple[Figures, ...]
    values: dict[str, float | None]
    spread: dict[str, tuple[float, float]]
    ratios: dict[str, float]
    fairness: float | None
    durations_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    Whether what was expected holds; `holds` None: that is not known. `ratio`: None: the policy or its figure is not
    there.
    """

    expectation: str
    ratio: float | None
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Result:
    """One experiment. `entries`: policies within loads, in their order."""

    title: str
    about: str
    baseline: str
    policies: tuple[str, ...]
    loads: tuple[str, ...]
    settings: dict[str, str]
    weights: dict[str, float]
    bandwidths: dict[str, float] | None
    entries: tuple[Entry, ...]
    verdicts: tuple[Verdict, ...]

    def entry(self, policy: str, load: str) -> Entry | None:
        """Return what a policy did with a load."""
        return next((entry for entry in self.entries if (entry.policy, entry.load) == (policy, load)), None)

    def of_load(self, load: str) -> list[Entry]:
        """Return what each policy did with a load, in the order of the policies."""
        return [entry for entry in self.entries if entry.load == load]


@dataclass(slots=True)
class Collected:
    """The turns as they come, by policy and load."""

    turns: dict[tuple[str, str], list[Turn]] = field(default_factory=dict)

    def add(self, policy: str, load: str, turn: Turn) -> None:
        """Add a turn."""
        self.turns.setdefault((policy, load), []).append(turn)


def make(
    experiment: Experiment,
    collected: Collected,
    policies: Sequence[str],
    settings: Mapping[str, str],
    judged: bool = True,
) -> Result:
    """
    Add up an experiment; of one that was stopped, what was complete.

    Args:
        experiment: what was done.
        collected: the results; policies and loads without a turn are left out.
        policies: names of those that took part, in order.
        settings: about machine and run, in words.
        judged: whether it was played as the file says: only then what is expected holds or does not.
    """
    played = {load for _, load in collected.turns}
    loads = tuple(load.name for load in experiment.loads if load.name in played)
    raw = {
        (policy, load): _entry(experiment, policy, load, turns)
        for load in loads
        for policy in policies
        if (turns := collected.turns.get((policy, load)))
    }
    entries = tuple(_compared(entry, raw.get((policy_name(experiment.baseline), entry.load))) for entry in raw.values())
    result = Result(
        experiment.title,
        experiment.about,
        policy_name(experiment.baseline),
        tuple(policy for policy in policies if any(key[0] == policy for key in raw)),
        loads,
        dict(settings),
        experiment.weights(),
        experiment.bandwidths(),
        entries,
        (),
    )
    verdicts = tuple(_verdict(expectation, result, judged) for expectation in experiment.expectations)
    return replace(result, verdicts=verdicts)


def _entry(experiment: Experiment, policy: str, load: str, turns: Sequence[Turn]) -> Entry:
    weights, bandwidths = experiment.weights(), experiment.bandwidths()
    each = tuple(figure(turn.fetches, turn.playbacks, weights) for turn in turns)
    fetches = [fetch for turn in turns for fetch in turn.fetches]
    figures = figure(fetches, [playback for turn in turns for playback in turn.playbacks], weights)
    values, by_turn = compared_values(figures), [compared_values(found) for found in each]
    spread = {}
    for name in values:
        there = [value for found in by_turn if (value := found[name]) is not None]
        if there:
            spread[name] = (min(there), max(there))
    received = {server.name: server.received for server in figures.servers}
    fairness = figures.fairness
    if bandwidths is not None:
        fairness = jain([received.get(name, 0) / bandwidth for name, bandwidth in bandwidths.items()])
    durations_s = tuple(sorted(fetch.response_s for fetch in fetches if fetch.ok))
    return Entry(policy, load, figures, each, values, spread, {}, fairness, durations_s)


def compared_values(figures: Figures) -> dict[str, float | None]:
    """Return the figures that are compared: seconds, and counts."""
    latency = figures.total.response
    players = figures.players
    times = (
        dict.fromkeys(("mean", "p50", "p95", "p99"))
        if latency is None
        else {
            "mean": latency.mean_s,
            "p50": latency.p50_s,
            "p95": latency.p95_s,
            "p99": latency.p99_s,
        }
    )
    return {
        **times,
        "failures": float(figures.total.failures),
        "stalls": None if players is None else float(players.stalls),
        "stalled": None if players is None else players.stalled_s,
    }


def _compared(entry: Entry, baseline: Entry | None) -> Entry:
    ratios = {}
    for name, value in entry.values.items():
        base = None if baseline is None else baseline.values[name]
        if value is not None and base:
            ratios[name] = value / base
    return replace(entry, ratios=ratios)


def _verdict(expectation: Expectation, result: Result, judged: bool) -> Verdict:
    text = (
        f"{expectation.policy}: {expectation.figure} of {expectation.load} at most {expectation.at_most:g}x "
        f"{result.baseline}"
    )
    entry = result.entry(expectation.policy, expectation.load)
    ratio = None if entry is None else entry.ratios.get(expectation.figure)
    return Verdict(text, ratio, ratio <= expectation.at_most if judged and ratio is not None else None)


def to_json(results: Sequence[Result]) -> str:
    """Return experiments as JSON, without the single fetches."""
    content: dict[str, Any] = {"format": FORMAT, "experiments": [asdict(result) for result in results]}
    for experiment in content["experiments"]:
        for entry in experiment["entries"]:
            del entry["durations_s"]
    return json.dumps(content, indent=1)
