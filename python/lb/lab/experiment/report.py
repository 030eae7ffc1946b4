"""Experiments as one self-contained page: what each policy made of the same load, compared with the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.lab.experiment import table
from lb.lab.experiment.result import Entry, Result
from lb.lab.loadgen.report import curve, duration_axis
from lb.lab.loadgen.table import milliseconds
from lb.lab.pictures import axis, bars, page, plot
from lb.lab.pictures.bars import BarChart, Row
from lb.lab.pictures.plot import Plot, Span, Strip, StripChart

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is drawn about one load. None: there is nothing to draw. `shares`: by server, a strip per policy."""

    bars: tuple[BarChart, ...]
    distribution: Plot | None
    shares: StripChart | None


def render(results: Sequence[Result]) -> str:
    """
    Return the page.

    Raises:
        LbError: jinja2 is not installed.
    """
    pictures = {(index, load): draw(result, load) for index, result in enumerate(results) for load in result.loads}
    return page.render(TEMPLATE, results=results, pictures=pictures, table=table)


def draw(result: Result, load: str) -> Pictures:
    """Lay out the pictures of one load."""
    entries = result.of_load(load)
    charts = [
        _times(result, entries, "mean", "Mean time of a chunk"),
        _times(result, entries, "p95", "95 of 100 chunks took at most"),
        _stalls(result, entries),
    ]
    return Pictures(
        tuple(chart for chart in charts if chart is not None),
        _distribution(entries),
        _shares(result, entries),
    )


def _times(result: Result, entries: Sequence[Entry], name: str, title: str) -> BarChart | None:
    there = [(entry, value) for entry in entries if (value := entry.values[name]) is not None]
    if not there:
        return None
    rows = [
        Row(
            entry.policy,
            value * 1000,
            _text(result, entry, name, milliseconds(value)),
            low=entry.spread[name][0] * 1000,
            high=entry.spread[name][1] * 1000,
            emphasis=entry.policy != result.baseline,
        )
        for entry, value in there
    ]
    return bars.make(title, "ms (lower is better)", rows)


def _stalls(result: Result, entries: Sequence[Entry]) -> BarChart | None:
    watched = [(entry, entry.figures.players) for entry in entries if entry.figures.players is not None]
    if not watched:
        return None
    rows = [
        Row(
            entry.policy,
            players.stall_share * 100,
            f"{players.stalls} stalls, {players.stalled_s:.1f} s, {players.bitrate:.0f} kbit/s",
            emphasis=entry.policy != result.baseline,
        )
        for entry, players in watched
        if players is not None
    ]
    return bars.make("Pictures stood still", "% of the time they should have moved (lower is better)", rows)


def _text(result: Result, entry: Entry, name: str, value: str) -> str:
    if entry.policy == result.baseline:
        return f"{value}, baseline"
    return f"{value}, {entry.ratios[name]:.2f}x" if name in entry.ratios else value


def _distribution(entries: Sequence[Entry]) -> Plot | None:
    there = [entry for entry in entries if entry.durations_s]
    if not there:
        return None
    width = duration_axis([value for entry in there for value in entry.durations_s], plot.PLOT_PX)
    height = axis.linear(100.0, plot.HEIGHT_PX)
    series = tuple(
        plot.line(entry.policy, index, curve(entry.durations_s), width, height) for index, entry in enumerate(there)
    )
    scale = " (log scale)" if width.logarithmic else ""
    return Plot(
        "Distribution",
        f"time of a chunk, ms{scale}",
        "chunks that took at most this time, %",
        width,
        height,
        series,
    )


def _shares(result: Result, entries: Sequence[Entry]) -> StripChart | None:
    there = [entry for entry in entries if entry.figures.total.fetches]
    if not there:
        return None
    width = axis.linear(100.0, plot.WIDTH - plot.STRIP_NAME_PX - plot.RIGHT_PX)
    names = list(result.weights)
    looks = tuple((f"f{index % plot.COLOURS}", name) for index, name in enumerate(names))
    ideal = result.bandwidths or result.weights
    total = sum(ideal.values())
    borders, sum_so_far = [], 0.0
    for name in names[:-1]:
        sum_so_far += ideal[name]
        borders.append(width.at(100 * sum_so_far / total))
    what = "bandwidth" if result.bandwidths else "weight"
    return StripChart(
        "Share per server",
        "share of the chunks, %",
        width,
        tuple(Strip(_short(entry.policy), tuple(_spans(entry, names, width.pixels))) for entry in there),
        looks,
        tuple(borders),
        f"Dashed: shares in proportion to {what}.",
        "border",
    )


def _spans(entry: Entry, names: Sequence[str], pixels: float) -> list[Span]:
    shares = {server.name: server.share for server in entry.figures.servers}
    spans, start = [], 0.0
    for index, name in enumerate(names):
        width = shares.get(name, 0.0) * pixels
        spans.append(Span(start, width, f"f{index % plot.COLOURS}"))
        start += width
    return spans


def _short(name: str) -> str:
    return name if len(name) <= bars.MAX_NAME else name[: bars.MAX_NAME - 1] + "\u2026"
