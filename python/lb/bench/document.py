"""
The result of a run as one document: what JSON holds, what the table and the report are drawn from.

Values are kept turn by turn, in base units; nothing is rounded. Medians and ratios stand beside them so that a reader
of the JSON needs no arithmetic, and are made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lb.bench import metrics, spread

FORMAT: Literal["flowlb-bench-1"] = "flowlb-bench-1"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contestant(_Model):
    """Who was asked to take part. `missing`: why it did not, or why it stopped; None when it took part to the end."""

    name: str
    title: str
    version: str
    missing: str | None = None


class Figure(_Model):
    """
    One metric of one contestant.

    Args:
        values: one per turn; None when the turn gave nothing.
        median, low, high: of those there are.
        ratios: to the median of each other contestant.
        added: median and spread of the difference to routing's value of the same turn.
    """

    values: list[float | None]
    median: float
    low: float
    high: float
    ratios: dict[str, float]
    added: tuple[float, float, float] | None


class MetricResult(_Model):
    """One metric of all contestants. `absent`: why a contestant has none, by name."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    figures: dict[str, Figure]
    absent: dict[str, str]


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
    """A whole run."""

    format: Literal["flowlb-bench-1"] = FORMAT
    machine: dict[str, str]
    settings: dict[str, str]
    notes: list[str]
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


def metric_result(
    metric: metrics.Metric, samples: dict[str, list[float | None]], absent: dict[str, str]
) -> MetricResult:
    """
    Make the result of one metric.

    Args:
        metric: which.
        samples: contestant to its values, one per turn.
        absent: contestant to why it has none.
    """
    figures = {}
    for name, values in samples.items():
        summary = spread.summarise(values)
        if summary is None:
            continue
        ratios = {
            other: found
            for other, base in samples.items()
            if other != name and (found := spread.ratio(values, base)) is not None
        }
        difference = None
        if name != metrics.ROUTING and metrics.ROUTING in samples:
            difference = spread.summarise(spread.subtract(values, samples[metrics.ROUTING]))
        figures[name] = Figure(
            values=values, median=summary.median, low=summary.low, high=summary.high, ratios=ratios, added=difference
        )
    return MetricResult(
        name=metric.name, title=metric.title, unit=metric.unit, better=metric.better, figures=figures, absent=absent
    )
