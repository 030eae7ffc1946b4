"""One metric of all contestants as a bar chart: median, spread, and how it compares with routing."""

from __future__ import annotations

from dataclasses import dataclass

from lb.lab.bench import notes
from lb.lab.bench.catalogue import ROUTING, Metric, metric
from lb.lab.bench.contestants.again import SUFFIX
from lb.lab.bench.document import Figure, MetricResult
from lb.lab.bench.headline import OURS
from lb.lab.pictures.bars import BarChart, Row
from lb.lab.pictures.bars import make as make_bars


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of one metric. `reasons`: (contestant, why it has no row); `marks`: a line per marked figure."""

    title: str
    picture: BarChart
    reasons: tuple[tuple[str, str], ...]
    marks: tuple[str, ...] = ()


def make(result: MetricResult, names: list[str]) -> Chart | None:
    """
    Lay out one metric.

    Args:
        result: the metric.
        names: contestants in order; those without a figure get no row but a reason.

    Returns:
        The chart, or None without any figure.
    """
    kind = metric(result.name)
    there = [(name, result.figures[name]) for name in names if name in result.figures]
    if not there:
        return None
    top = max(max(figure.high for _, figure in there) / kind.scale, 10.0**-kind.digits)
    rows = [_row(name, figure, kind) for name, figure in there]
    picture = make_bars(result.title, f"{kind.shown_unit} ({result.better} is better)", rows, top)
    reasons = tuple((name, result.absent[name]) for name in names if name in result.absent)
    return Chart(result.title, picture, reasons, tuple(notes.describe_result(result, names)))


def _row(name: str, figure: Figure, kind: Metric) -> Row:
    return Row(
        name,
        figure.median / kind.scale,
        _text(figure, kind),
        low=figure.low / kind.scale,
        high=figure.high / kind.scale,
        emphasis=name.removesuffix(SUFFIX) in OURS,
    )


def _text(figure: Figure, kind: Metric) -> str:
    text = f"{kind.show(figure.median)} {kind.shown_unit}{notes.MARK if figure.marks else ''}"
    if kind.relative == "added" and figure.added is not None:
        return f"{text} ({figure.added[0] / kind.scale:+.{kind.digits}f})"
    if kind.relative == "ratio" and ROUTING in figure.ratios:
        return f"{text} ({figure.ratios[ROUTING]:.2f}x routing)"
    return text
