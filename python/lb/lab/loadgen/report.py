"""A run as one self-contained page: fetches over time, their latencies, shares, and what players saw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lb.lab.loadgen import table
from lb.lab.loadgen.document import Document
from lb.lab.loadgen.figures import natural
from lb.lab.loadgen.records import Fetch, Playback
from lb.lab.pictures import axis, bars, page, plot
from lb.lab.pictures.axis import Axis
from lb.lab.pictures.bars import BarChart, Row
from lb.lab.pictures.plot import Plot, Series, Span, Strip, StripChart

TEMPLATE = Path(__file__).with_name("report.html.j2")
# More dots than that are a blot, and a big file.
MAX_DOTS = 3000
MAX_CURVE = 200
MAX_STRIPS = 24
# From there on a linear axis would show its outliers and nothing else.
WIDE = 20
SMALLEST_MS = 0.001
LOOKS = (("startup", "waits for its first chunk"), ("r100", "100"), ("r500", "500"), ("r1000", "1000 kbit/s"))


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is drawn. None: there is nothing to draw."""

    timeline: Plot | None
    distribution: Plot | None
    shares: BarChart | None
    players: StripChart | None


def render(document: Document) -> str:
    """
    Return the page.

    Raises:
        LbError: jinja2 is not installed.
    """
    return page.render(TEMPLATE, document=document, pictures=draw(document), table=table)


def draw(document: Document) -> Pictures:
    """Lay out the pictures."""
    good = [fetch for fetch in document.fetches if fetch.ok]
    time = axis.linear(max((fetch.ended_s for fetch in document.fetches), default=0.0) or 1.0, plot.PLOT_PX, tight=True)
    return Pictures(
        timeline=timeline(document, time) if document.fetches else None,
        distribution=distribution(good) if good else None,
        shares=shares(document) if good else None,
        players=players(document) if document.playbacks else None,
    )


def timeline(document: Document, time: Axis) -> Plot:
    """Draw each fetch as a dot: when it started, and how long it took."""
    good = [fetch for fetch in document.fetches if fetch.ok]
    height = duration_axis([fetch.duration_s for fetch in good], plot.HEIGHT_PX)
    shown = thinned(good)
    series: list[Series] = []
    for index, name in enumerate(servers_of(good)):
        points = [(fetch.started_s, _ms(fetch.duration_s)) for fetch in shown if fetch.server == name]
        series.append(plot.dots(name, index, points, time, height))
    if failed := [fetch.started_s for fetch in document.fetches if not fetch.ok]:
        series.append(plot.failures(f"failed ({len(failed)})", failed[:MAX_DOTS], time, height))
    notes = (
        [f"{len(shown)} of {len(good)} fetches are drawn, the slowest among them."] if len(shown) < len(good) else []
    )
    notes += (
        [f"Dashed: {'; '.join(f'{what} at {at_s:.1f} s' for at_s, what in document.events)}."]
        if document.events
        else []
    )
    return Plot(
        "Fetches over time",
        "seconds since the start",
        f"time of a fetch, ms{' (log scale)' if height.logarithmic else ''}",
        time,
        height,
        tuple(series),
        tuple(time.at(at_s) for at_s, _ in document.events),
        " ".join(notes),
    )


def distribution(good: Sequence[Fetch]) -> Plot:
    """Draw, for each server, which share of the fetches took at most each time."""
    durations = [fetch.duration_s for fetch in good]
    responses = [fetch.response_s for fetch in good]
    width = duration_axis([*durations, *responses], plot.PLOT_PX)
    height = axis.linear(100.0, plot.HEIGHT_PX)
    series = [
        plot.line(name, index, curve([f.duration_s for f in good if f.server == name]), width, height)
        for index, name in enumerate(servers_of(good))
    ]
    series.append(plot.line("all", None, curve(durations), width, height, dash=0))
    series.append(plot.line("all, from intended start", None, curve(responses), width, height, dash=1))
    scale = " (log scale)" if width.logarithmic else ""
    return Plot(
        "Distribution",
        f"time of a fetch, ms{scale}",
        "fetches that took at most this time, %",
        width,
        height,
        tuple(series),
    )


def shares(document: Document) -> BarChart:
    """Draw the share of each server, with a mark where the policy wants it."""
    targets = table.shares(document.target_weights)
    rows = []
    for group in document.figures.servers:
        if not group.fetches and (targets is None or group.name not in targets):
            continue
        target = None if targets is None else targets.get(group.name, 0.0) * 100
        text = f"{group.share:.1%}" + ("" if target is None else f", wanted {target:.1f}%")
        rows.append(Row(group.name, group.share * 100, text, mark=target, emphasis=True))
    return bars.make("Share per server", "fetches that succeeded, %", rows)


def players(document: Document) -> StripChart:
    """Draw a strip for each player: the bitrate it showed, and where its picture stood still."""
    order = sorted(document.playbacks, key=lambda playback: (-playback.stalled_s, natural(playback.client)))
    chosen = sorted(order[:MAX_STRIPS], key=lambda each: (natural(each.client), each.line, each.round))
    end_s = max(playback.end_s for playback in document.playbacks)
    time = axis.linear(end_s or 1.0, plot.WIDTH - plot.STRIP_NAME_PX - plot.RIGHT_PX, tight=True)
    note = f"{len(chosen)} of {len(order)} players, those that stood still longest." if len(chosen) < len(order) else ""
    strips = tuple(Strip(_name(each, document), tuple(_spans(each, time))) for each in chosen)
    marks = tuple(time.at(at_s) for at_s, _ in document.events)
    looks = (*LOOKS, ("stall", "stands still"))
    return StripChart("Players", "seconds since the start", time, strips, looks, marks, note)


def _name(playback: Playback, document: Document) -> str:
    several = len({(each.client, each.round) for each in document.playbacks}) < len(document.playbacks)
    name = playback.client if len(playback.client) < 11 else playback.client[:10] + "\u2026"
    return f"{name}, line {playback.line + 1}" if several else name


def _spans(playback: Playback, time: Axis) -> list[Span]:
    def span(begin_s: float, end_s: float, look: str) -> Span:
        return Span(time.at(begin_s), max(0.0, time.at(end_s) - time.at(begin_s)), look)

    first_s = playback.end_s if playback.startup_s is None else playback.start_s + playback.startup_s
    spans = [span(playback.start_s, first_s, "startup")]
    # Chunks of one bitrate in a row are one span: borders between them would say nothing.
    runs = [
        (bitrate, next(iter(points))[0]) for bitrate, points in groupby(playback.points, key=lambda point: point[1])
    ]
    ends = [*(at_s for _, at_s in runs[1:]), playback.end_s]
    spans += [span(at_s, until_s, f"r{bitrate}") for (bitrate, at_s), until_s in zip(runs, ends, strict=False)]
    return spans + [span(begin_s, end_s, "stall") for begin_s, end_s in playback.stalls]


def duration_axis(durations_s: Sequence[float], pixels: float) -> Axis:
    """Return an axis in milliseconds for durations in seconds; logarithmic when they are far apart."""
    ordered = sorted(_ms(value) for value in durations_s) or [1.0]
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    if high > WIDE * middle or middle > WIDE * low:
        return axis.logarithmic(low, high, pixels)
    return axis.linear(high, pixels)


def curve(durations_s: Sequence[float]) -> list[tuple[float, float]]:
    """Return (milliseconds, percent of the durations that are not longer), in not too many points."""
    ordered = sorted(_ms(value) for value in durations_s)
    count = len(ordered)
    ranks = (
        range(count)
        if count <= MAX_CURVE
        else sorted({round(i * (count - 1) / MAX_CURVE) for i in range(MAX_CURVE + 1)})
    )
    return [(ordered[0], 0.0), *((ordered[rank], 100.0 * (rank + 1) / count) for rank in ranks)]


def thinned(fetches: Sequence[Fetch]) -> Sequence[Fetch]:
    """Return not too many of the fetches: the slowest tenth of what may be drawn, and others by lot."""
    if len(fetches) <= MAX_DOTS:
        return fetches
    slowest = sorted(range(len(fetches)), key=lambda index: -fetches[index].duration_s)
    kept = slowest[: MAX_DOTS // 10]
    kept += random.Random(0).sample(slowest[MAX_DOTS // 10 :], MAX_DOTS - len(kept))
    return [fetches[index] for index in sorted(kept)]


def servers_of(fetches: Sequence[Fetch]) -> list[str]:
    """Return the names of those who sent, in the order of colours."""
    return sorted({fetch.server for fetch in fetches}, key=natural)


def _ms(seconds: float) -> float:
    return max(seconds * 1000, SMALLEST_MS)
