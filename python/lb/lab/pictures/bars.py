"""
Where the parts of a bar chart go.

One row per name: the name at the left, a bar from 0 with a line over its spread or a mark at what was wanted, its value
at the right in its own column, so that no text overlaps another for any values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lb.lab.pictures.axis import Axis, linear

NAME_PX, PLOT_PX, TEXT_PX = 130, 400, 236
ROW_PX, BAR_PX, TOP_PX, AXIS_PX = 30, 16, 8, 44
MAX_NAME = 18


@dataclass(frozen=True, slots=True)
class Row:
    """
    What one row shows, in the unit of the axis.

    Args:
        value: where the bar ends.
        text: beside it.
        low, high: ends of the line over the bar; None: there is no line.
        mark: where something else is marked; None: nowhere.
        emphasis: whether the bar has the colour of what the chart is about.
    """

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One row laid out. `y`: its middle; `width`, `low`, `high`, `mark`: from the left of the plot."""

    name: str
    y: float
    width: float
    low: float | None
    high: float | None
    mark: float | None
    text: str
    emphasis: bool


@dataclass(frozen=True, slots=True)
class BarChart:
    """A picture. `label`: what the axis measures, with its unit."""

    title: str
    label: str
    axis: Axis
    width: int
    height: int
    plot_height: int
    bars: tuple[Bar, ...]


def make(title: str, label: str, rows: Sequence[Row], top: float | None = None) -> BarChart:
    """
    Lay out a chart.

    Args:
        title: above it.
        label: what the axis measures, with its unit.
        rows: from top to bottom, at least one.
        top: the highest value of the axis; None: the highest there is.
    """
    highest = max(max(row.value, row.high or 0.0, row.mark or 0.0) for row in rows)
    axis = linear(top if top is not None else highest or 1.0, PLOT_PX)
    bars = tuple(_bar(row, index, axis) for index, row in enumerate(rows))
    height = TOP_PX + ROW_PX * len(rows)
    return BarChart(title, label, axis, NAME_PX + PLOT_PX + TEXT_PX, height + AXIS_PX, height, bars)


def _bar(row: Row, index: int, axis: Axis) -> Bar:
    def pixels(value: float | None) -> float | None:
        return None if value is None else axis.at(value)

    return Bar(
        name=row.name if len(row.name) <= MAX_NAME else row.name[: MAX_NAME - 1] + "\u2026",
        y=TOP_PX + ROW_PX * (index + 0.5),
        width=axis.at(row.value),
        low=pixels(row.low),
        high=pixels(row.high),
        mark=pixels(row.mark),
        text=row.text,
        emphasis=row.emphasis,
    )
