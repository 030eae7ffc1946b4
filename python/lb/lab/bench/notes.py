"""What must be said beside the figures of a run: marks, other work on the machine, the noise of an A/A run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lb.lab import spread
from lb.lab.bench.contestants.again import SUFFIX
from lb.lab.bench.document import MetricResult
from lb.lab.bench.machine import QUIET_SHARE

# Stands beside a marked figure wherever it is shown.
MARK = "*"
_WORDS = {
    "syn_retransmits": "SYN retransmissions",
    "failed": "failed",
    "slow": "slow (> 200 ms)",
    "time_wait_refused": "refused by TIME_WAIT",
    "time_wait_overflow": "TIME_WAIT overflows",
    "listen_overflow": "listener overflows",
    "crowded_ports": "client ports in TIME_WAIT",
}


def describe(marks: Mapping[str, int]) -> str:
    """Return what marks a figure, for people; empty when nothing does."""
    return ", ".join(f"{value} {_WORDS[name]}" for name, value in marks.items())


def describe_result(result: MetricResult, names: Sequence[str]) -> list[str]:
    """Return a line for each marked figure of a metric."""
    return [
        f"{MARK} {name}: {describe(result.figures[name].marks)}"
        for name in names
        if name in result.figures and result.figures[name].marks
    ]


def make(results: Sequence[MetricResult], contestants: Sequence[str], busy: Sequence[float]) -> list[str]:
    """
    Return the notes of a run.

    Args:
        results: all metrics.
        contestants: their names.
        busy: the share of the machine that was busy before each measure, 0..1.
    """
    notes = []
    marked = sum(bool(figure.marks) for result in results for figure in result.figures.values())
    if marked:
        notes.append(f"{MARK} marked figures: {marked}; they contain retransmitted SYNs, failed or slow requests")
    disturbed = [share for share in busy if share > QUIET_SHARE]
    if disturbed:
        notes.append(
            f"other work took {max(disturbed):.0%} of the machine or less before {len(disturbed)} of {len(busy)} "
            "measures: the figures are not those of a quiet machine"
        )
    return notes + [
        noise for name in contestants if name.endswith(SUFFIX) for noise in _noise(results, name, name[: -len(SUFFIX)])
    ]


def _noise(results: Sequence[MetricResult], again: str, name: str) -> list[str]:
    found = []
    for result in results:
        if name not in result.figures or again not in result.figures:
            continue
        mine, other = result.figures[name], result.figures[again]
        turns = [
            value / base for value, base in zip(other.values, mine.values, strict=False) if value is not None and base
        ]
        ratio, span = spread.ratio(other.values, mine.values), spread.summarise(turns)
        if ratio is not None and span is not None:
            turn_by_turn = f"{span.low:.3f} to {span.high:.3f} in single turns"
            found.append(f"A/A {result.title}: {again} is {ratio:.3f}x {name} ({turn_by_turn})")
    return found
