"""
Where the parts of a bar chart go: pure geometry in pixels, drawn by the template.

One row per contestant: its name at the left, a bar from 0 to the median with a line over its spread, its value at the
right in a column of its own, so that no text meets another whatever the values are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lb.bench.document import Figure, MetricResult
from lb.bench.metrics import ROUTING, Metric, metric

NAME_PX, PLOT_PX, TEXT_PX = 84, 400, 236
ROW_PX, BAR_PX, TOP_PX, AXIS_PX = 30, 16, 8, 44
TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. `y`: its middle; `width`, `low`, `high`: from the left of the plot."""

    name: str
    y: float
    width: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of one metric. `ticks`: (pixels from the left of the plot, text)."""

    title: str
    axis: str
    better: str
    width: int
    height: int
    plot_height: int
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    reasons: tuple[tuple[str, str], ...]


def nice_step(top: float, ticks: int = TICKS) -> float:
    """Return a round distance between ticks, so that about so many reach up to `top`, which is above 0."""
    rough = top / ticks
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(step * magnitude for step in STEPS if step * magnitude >= rough * (1 - 1e-9))


def make(result: MetricResult, names: list[str]) -> Chart | None:
    """
    Lay out one metric.

    Args:
        result: the metric.
        names: contestants in order; those without a figure get no row but a reason.

    Returns:
        The chart, or None when nobody has a figure.
    """
    kind = metric(result.name)
    there = [(name, result.figures[name]) for name in names if name in result.figures]
    if not there:
        return None
    top = max(max(figure.high for _, figure in there) / kind.scale, 10.0**-kind.digits)
    step = nice_step(top)
    end = math.ceil(top / step - 1e-9) * step
    per_unit = PLOT_PX / end
    bars = tuple(_bar(name, figure, kind, index, per_unit) for index, (name, figure) in enumerate(there))
    count = round(end / step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (
        1 if step * 10 ** -math.floor(math.log10(step)) == 2.5 else 0
    )
    ticks = tuple((index * step * per_unit, f"{index * step:.{digits}f}") for index in range(count + 1))
    height = TOP_PX + ROW_PX * len(bars)
    return Chart(
        title=result.title,
        axis=kind.shown_unit,
        better=result.better,
        width=NAME_PX + PLOT_PX + TEXT_PX,
        height=height + AXIS_PX,
        plot_height=height,
        bars=bars,
        ticks=ticks,
        reasons=tuple((name, result.absent[name]) for name in names if name in result.absent),
    )


def _bar(name: str, figure: Figure, kind: Metric, index: int, per_unit: float) -> Bar:
    def pixels(value: float) -> float:
        return max(0.0, value / kind.scale * per_unit)

    return Bar(
        name=name,
        y=TOP_PX + ROW_PX * (index + 0.5),
        width=pixels(figure.median),
        low=pixels(figure.low),
        high=pixels(figure.high),
        text=_text(figure, kind),
    )


def _text(figure: Figure, kind: Metric) -> str:
    text = f"{kind.show(figure.median)} {kind.shown_unit}"
    if kind.relative == "added" and figure.added is not None:
        return f"{text} ({figure.added[0] / kind.scale:+.{kind.digits}f})"
    if kind.relative == "ratio" and ROUTING in figure.ratios:
        return f"{text} ({figure.ratios[ROUTING]:.2f}x routing)"
    return text
