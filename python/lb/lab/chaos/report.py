"""A run of chaos as a page: the table, and a timeline of what happened and what clients noticed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lb.lab.chaos import table
from lb.lab.chaos.document import Document, rows
from lb.lab.chaos.judge import FLOWS, Outcome
from lb.lab.chaos.schedule import LANES
from lb.lab.pictures import axis, page, plot
from lb.lab.pictures.axis import Axis
from lb.lab.pictures.plot import Span, Strip, StripChart

TEMPLATE = Path(__file__).with_name("report.html.j2")
# What is shorter would not be seen.
LEAST_PX = 1.5
LOOKS = (
    ("f0", "happens to the network"),
    ("f3", "happens to the balancer"),
    ("startup", "a flow waits"),
    ("stall", "a flow breaks or moves"),
)


def render(document: Document) -> str:
    """Return the page. Raise LbError when jinja2 is not installed."""
    pictures = [("Timeline", timeline(document.chaos, document.duration_s))]
    return page.render(
        TEMPLATE, document=document, rows=rows, table=table, pictures=pictures, lines=[*table.lines(document)]
    )


def timeline(outcome: Outcome, duration_s: float) -> StripChart:
    """Draw a row for each kind of act, and one for each kind of flow."""
    end_s = max(duration_s, *(act.began_s for act in outcome.acts), 1.0)
    time = axis.linear(end_s, plot.WIDTH - plot.STRIP_NAME_PX - plot.RIGHT_PX, tight=True)
    strips = [
        Strip(kind, tuple(_span(time, act.began_s, act.ended_s, look) for act in outcome.acts if act.kind == kind))
        for look, lane in zip(("f0", "f3"), LANES.values(), strict=True)
        for kind in lane
        if any(act.kind == kind for act in outcome.acts)
    ]
    strips += [Strip(f"{flow} flows", tuple(_noticed(outcome, flow, time))) for flow in FLOWS]
    return StripChart("What happened, and what clients noticed", "seconds since the start", time, tuple(strips), LOOKS)


def _noticed(outcome: Outcome, flow: str, time: Axis) -> Iterable[Span]:
    for each in outcome.stalls:
        if each.flow == flow:
            yield _span(time, each.ended_s - each.stalled_s, each.ended_s, "startup")
    # What broke is on top of what only waited.
    for each in (*outcome.excused, *outcome.broken):
        if each.flow == flow:
            yield _span(time, each.ended_s, each.ended_s, "stall")
    for move in outcome.moved if flow == "long" else ():
        yield _span(time, move.at_s, move.at_s, "stall")


def _span(time: Axis, began_s: float, ended_s: float, look: str) -> Span:
    start = time.at(began_s)
    return Span(start, max(time.at(ended_s) - start, LEAST_PX), look)
