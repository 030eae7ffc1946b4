"""
Where the parts of a plot with two axes go: dots, lines, and strips over time.

Series are told apart by colour and, lines, by their dashes; their names stand above the plot, so that no text lies in
it. What happened at a moment is a vertical line, explained below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lb.lab.pictures.axis import Axis

WIDTH, LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 772, 62, 22, 12, 46
PLOT_PX = WIDTH - LEFT_PX - RIGHT_PX
HEIGHT_PX = 220
STRIP_PX, STRIP_NAME_PX = 18, 120
# Number of colours; further series reuse them with other dashes.
COLOURS = 8

Kind = Literal["dots", "line", "failures"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """
    One series, drawn as one SVG path.

    Args:
        name: in the legend.
        kind: how it is drawn.
        colour: 0..COLOURS-1, or None for the colour of text.
        dash: 0: a whole line.
        path: relative to the plot's corner at the low end of both axes, y growing downwards.
    """

    name: str
    kind: Kind
    colour: int | None
    dash: int
    path: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture. `x_label`, `y_label`: what the axes measure, with units. `marks`: pixels of vertical lines."""

    title: str
    x_label: str
    y_label: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a strip: from where to where, in pixels, and the class that colours it."""

    start: float
    width: float
    look: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of strips."""

    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class StripChart:
    """Rows over time. `looks`: (class, what it means). `mark_look`: the class of the vertical lines."""

    title: str
    x_label: str
    x: Axis
    strips: tuple[Strip, ...]
    looks: tuple[tuple[str, str], ...]
    marks: tuple[float, ...] = ()
    note: str = ""
    mark_look: Literal["event", "border"] = "event"

    @property
    def height(self) -> int:
        """Of the rows, in pixels."""
        return STRIP_PX * len(self.strips)


def dots(name: str, colour: int, points: Sequence[Point], x: Axis, y: Axis) -> Series:
    """Draw points, given in the units of the axes, as dots."""
    path = "".join(f"M{x.at(px):.1f} {-y.at(py):.1f}h0" for px, py in points)
    return Series(name, "dots", colour % COLOURS, 0, path)


def line(name: str, colour: int | None, points: Sequence[Point], x: Axis, y: Axis, dash: int | None = None) -> Series:
    """Join points, given in the units of the axes, to a line."""
    path = "M" + "L".join(f"{x.at(px):.1f} {-y.at(py):.1f}" for px, py in points)
    dashes = (colour or 0) // COLOURS if dash is None else dash
    return Series(name, "line", None if colour is None else colour % COLOURS, dashes, path)


def failures(name: str, times: Sequence[float], x: Axis, y: Axis) -> Series:
    """Draw a cross at the upper edge for each moment."""
    top = y.pixels - 6
    path = "".join(f"M{x.at(at) - 3:.1f} {-top - 3:.1f}l6 6m0 -6l-6 6" for at in times)
    return Series(name, "failures", None, 0, path)
