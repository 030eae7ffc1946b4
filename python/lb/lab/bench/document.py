"""
The result of a run as one document: what JSON holds, what the table and the report are drawn from.

Values are kept turn by turn, in base units; nothing is rounded. Medians and ratios stand beside them so that a reader
of the JSON needs no arithmetic, and are made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lb.lab import spread
from lb.lab.bench import catalogue

FORMAT: Literal["flowlb-bench-2"] = "flowlb-bench-2"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contestant(_Model):
    """Who was asked to take part. `missing`: why it did not, or why it stopped; None when it took part to the end."""

    name: str
    title: str
    version: str
    missing: str | None = None


class Faults(_Model):
    """
    What went wrong while a value was measured. All but the last two mark the figure.

    Args:
        syn_retransmits: SYN and SYN/ACK segments that had to be sent again, by any host.
        failed: requests without a whole answer; at a pace of packets: those that did not arrive.
        slow: requests or connects of a small page that took longer than `client.SLOW_S`.
        time_wait_refused: segments that a TIME_WAIT entry refused for their timestamp.
        time_wait_overflow: TIME_WAIT entries there was no room for.
        listen_overflow: connections a listener had no room for.
        crowded_ports: ports of the client that TIME_WAIT held, when that many slow its connects.
        timeouts, retransmits: retransmission timers that ran out, and segments sent again, SYNs included.
    """

    syn_retransmits: int = 0
    failed: int = 0
    slow: int = 0
    time_wait_refused: int = 0
    time_wait_overflow: int = 0
    listen_overflow: int = 0
    crowded_ports: int = 0
    timeouts: int = 0
    retransmits: int = 0

    def plus(self, other: Faults) -> Faults:
        """Return the sums of both."""
        mine, more = self.model_dump(), other.model_dump()
        return Faults(**{name: value + more[name] for name, value in mine.items()})

    @property
    def marking(self) -> dict[str, int]:
        """Return those that mark a figure and are not 0, by name."""
        return {name: value for name, value in self.model_dump().items() if value and name not in _TOLD_ONLY}


# Large transfers lose segments when queues are full; a figure contains that rightly.
_TOLD_ONLY = ("timeouts", "retransmits")


class Figure(_Model):
    """
    One metric of one contestant.

    Args:
        values: one per turn; None when the turn gave nothing.
        median, low, high: of those there are.
        ratios: to the median of each other contestant.
        added: median and spread of the difference to routing's value of the same turn.
        faults: one per turn, as the values; None where nothing was counted.
    """

    values: list[float | None]
    median: float
    low: float
    high: float
    ratios: dict[str, float]
    added: tuple[float, float, float] | None
    faults: list[Faults | None]

    @property
    def marks(self) -> dict[str, int]:
        """Return what marks this figure, summed over its turns, by name; empty when nothing does."""
        return sum_faults(self.faults).marking


class MetricResult(_Model):
    """
    One metric of all contestants.

    Args:
        absent: why a contestant has none, by name.
        left_out: the values, turn by turn, of contestants whose turns disagree too much to be a figure.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    figures: dict[str, Figure]
    absent: dict[str, str]
    left_out: dict[str, list[float | None]] = {}


class Target(_Model):
    """
    One line of what must be reached.

    Args:
        what: the figure.
        least: the bound, in words.
        measured: the figure of this run, in words, or why there is none.
        reached: None when this run cannot tell.
    """

    what: str
    least: str
    measured: str
    reached: bool | None


class Document(_Model):
    """A whole run. `orders`: the contestants in the order of each turn, which `seed` of the settings gives."""

    format: Literal["flowlb-bench-2"] = FORMAT
    machine: dict[str, str]
    settings: dict[str, str]
    notes: list[str]
    orders: list[list[str]]
    contestants: list[Contestant]
    metrics: list[MetricResult]
    targets: list[Target]

    def figure(self, metric: str, contestant: str) -> Figure | None:
        """Return a figure, or None when this run does not have it."""
        return figure_of(self.metrics, metric, contestant)


def figure_of(results: Sequence[MetricResult], metric: str, contestant: str) -> Figure | None:
    """Return a figure, or None when there is none."""
    for result in results:
        if result.name == metric:
            return result.figures.get(contestant)
    return None


def sum_faults(faults: Iterable[Faults | None]) -> Faults:
    """Return the sums over all turns."""
    total = Faults()
    for each in faults:
        if each is not None:
            total = total.plus(each)
    return total


def metric_result(
    metric: catalogue.Metric,
    samples: dict[str, list[float | None]],
    absent: dict[str, str],
    faults: dict[str, list[Faults | None]] | None = None,
) -> MetricResult:
    """
    Make the result of one metric.

    Args:
        metric: which.
        samples: contestant to its values, one per turn.
        absent: contestant to why it has none.
        faults: contestant to what went wrong, one per turn; it may be missing or shorter.
    """
    samples, left_out = _agreeing(metric, samples)
    absent = absent | {name: reason for name, (_, reason) in left_out.items()}
    figures = {
        name: figure for name in samples if (figure := _figure(name, samples, (faults or {}).get(name, []))) is not None
    }
    return MetricResult(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        better=metric.better,
        figures=figures,
        absent=absent,
        left_out={name: values for name, (values, _) in left_out.items()},
    )


def _figure(name: str, samples: dict[str, list[float | None]], faults: list[Faults | None]) -> Figure | None:
    """Return a contestant's figure of one metric, compared with the others; None without any value."""
    values = samples[name]
    summary = spread.summarise(values)
    if summary is None:
        return None
    ratios = {
        other: found
        for other, base in samples.items()
        if other != name and (found := spread.ratio(values, base)) is not None
    }
    added = None
    if name != catalogue.ROUTING and catalogue.ROUTING in samples:
        added = spread.summarise(spread.subtract(values, samples[catalogue.ROUTING]))
    return Figure(
        values=values,
        median=summary.median,
        low=summary.low,
        high=summary.high,
        ratios=ratios,
        added=added,
        faults=_aligned(faults, len(values)),
    )


def _aligned(faults: list[Faults | None], turns: int) -> list[Faults | None]:
    return (faults + [None] * turns)[:turns]


def _agreeing(
    metric: catalogue.Metric, samples: dict[str, list[float | None]]
) -> tuple[dict[str, list[float | None]], dict[str, tuple[list[float | None], str]]]:
    """Return the samples that are fit to be figures, and the others with why they are not."""
    if metric.agreement is None:
        return samples, {}
    fit, unfit = {}, {}
    for name, values in samples.items():
        apart = spread.disagreement(values)
        if apart is not None and apart <= metric.agreement:
            fit[name] = values
            continue
        shown = ", ".join(metric.show(value) for value in values if value is not None)
        reason = f"its turns differ by {apart:.0%}, more than {metric.agreement:.0%}" if apart else "one turn only"
        unfit[name] = (values, f"left out: {reason} ({shown})")
    return fit, unfit
