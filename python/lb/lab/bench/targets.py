"""
What must be reached, as data, and whether a run reached it. The bounds are the project's promises: they never follow
the figures.

Ratios hold within one run. A line whose peer did not take part is "not measured", never reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lb.lab.bench import notes
from lb.lab.bench.catalogue import ROUTING, metric
from lb.lab.bench.document import MetricResult, Target, figure_of

RUST = "rust"
MEMORY_BYTES = 128.0
PACKETS_PER_S = 0.85e6
ADDED_P50_S, ADDED_P99_S = 15e-6, 60e-6
IDLE_CORES = 0.01
OFFLINE = "by make bench"

Results = Sequence[MetricResult]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure in words and whether it is enough; `enough` is None when it is not there."""

    words: str
    enough: bool | None


Check = Callable[[Results], Verdict]


def ratio_at_least(name: str, peer: str, least: float, results: Results) -> Verdict:
    """Compare the ratio of rust to a peer with a bound."""
    found = figure_of(results, name, RUST)
    if found is None or peer not in found.ratios:
        return Verdict(f"no figure of {RUST if found is None else peer}", None)
    value = found.ratios[peer]
    return Verdict(f"{value:.2f}x {peer}{_mark(name, results, RUST, peer)}", value >= least)


def value_within(name: str, bound: float, results: Results) -> Verdict:
    """Compare the median of rust with a bound: at least it, or at most, as the metric is better higher or lower."""
    kind, found = metric(name), figure_of(results, name, RUST)
    if found is None:
        return Verdict(f"no figure of {RUST}", None)
    enough = found.median >= bound if kind.better == "higher" else found.median <= bound
    return Verdict(f"{kind.show(found.median)} {kind.shown_unit}{_mark(name, results, RUST)}", enough)


def added_at_most(name: str, bound_s: float, results: Results) -> Verdict:
    """Compare what rust adds to routing's latency with a bound."""
    found = figure_of(results, name, RUST)
    if found is None or found.added is None:
        return Verdict(f"no figure of {RUST if found is None else ROUTING}", None)
    median = found.added[0]
    what = f"{metric(name).title.split(',')[0].lower()}{_mark(name, results, RUST, ROUTING)}"
    return Verdict(f"{metric(name).show(median)} us ({what})", median <= bound_s)


def _mark(name: str, results: Results, *contestants: str) -> str:
    figures = (figure_of(results, name, contestant) for contestant in contestants)
    return notes.MARK if any(figure is not None and figure.marks for figure in figures) else ""


def bounds(first: Check, *others: Check) -> Check:
    """Join checks: all must be enough; the first that is not there makes the whole not measured."""

    def joined(results: Results) -> Verdict:
        verdicts = [check(results) for check in (first, *others)]
        words = ", ".join(verdict.words for verdict in verdicts)
        if any(verdict.enough is False for verdict in verdicts):
            return Verdict(words, False)
        return Verdict(words, None if any(verdict.enough is None for verdict in verdicts) else True)

    return joined


def elsewhere(_results: Results) -> Verdict:
    """Say that another command measures this."""
    return Verdict(OFFLINE, None)


TARGETS: tuple[tuple[str, str, Check], ...] = (
    ("pipeline per 60-byte packet, 1 k / 1 M / 10 M flows", "<= 40 / 90 / 130 ns", elsewhere),
    ("memory per flow, both directions", "<= 128 bytes", partial(value_within, "memory_per_flow", MEMORY_BYTES)),
    ("new flows, offline", ">= 2 million/s", elsewhere),
    ("rust over python, whole pipeline offline", ">= 150x", elsewhere),
    (
        "60-byte packets, straight path, one worker",
        ">= 1.2x nft, >= 0.85 Mpps",
        bounds(partial(ratio_at_least, "packets", "nft", 1.2), partial(value_within, "packets", PACKETS_PER_S)),
    ),
    (
        "keep-alive requests/s, one-armed testbed",
        ">= 0.75x routing, >= haproxy",
        bounds(
            partial(ratio_at_least, "keepalive", ROUTING, 0.75), partial(ratio_at_least, "keepalive", "haproxy", 1.0)
        ),
    ),
    (
        "new connections/s",
        ">= 0.95x routing, >= 1.3x haproxy",
        bounds(
            partial(ratio_at_least, "connections", ROUTING, 0.95),
            partial(ratio_at_least, "connections", "haproxy", 1.3),
        ),
    ),
    (
        "bulk throughput, default offloads",
        ">= 0.65x routing, >= haproxy",
        bounds(partial(ratio_at_least, "bulk", ROUTING, 0.65), partial(ratio_at_least, "bulk", "haproxy", 1.0)),
    ),
    (
        "added latency at low load, p50",
        "<= 15 us over routing",
        bounds(partial(added_at_most, "connect_p50", ADDED_P50_S), partial(added_at_most, "request_p50", ADDED_P50_S)),
    ),
    (
        "added latency at low load, p99",
        "<= 60 us over routing",
        bounds(partial(added_at_most, "connect_p99", ADDED_P99_S), partial(added_at_most, "request_p99", ADDED_P99_S)),
    ),
    ("CPU when idle", "<= 1 % of a core", partial(value_within, "idle_cpu", IDLE_CORES)),
    ("growth: 1 k to 10 M flows; Maglev build; reload", "<= 3.5x; <= 100 ms; <= 1 s", elsewhere),
)


def judge(results: Results) -> list[Target]:
    """Compare a run with every line."""
    judged = []
    for what, least, check in TARGETS:
        verdict = check(results)
        judged.append(Target(what=what, least=least, measured=verdict.words, reached=verdict.enough))
    return judged
