"""A run of chaos as a table for a terminal, and in words what broke that should not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from lb.lab.chaos.document import Document, rows
from lb.lab.chaos.judge import Move, Outcome, Trouble
from lb.lab.loadgen.table import WIDTH, milliseconds
from lb.model.units import count

COLUMNS = ("flows of kind", "flows", "exchanges", "broken", "for its server", "moved", "stalls", "longest")
# Of what broke, so many are told; the rest is in the JSON.
MOST_LINES = 20


def show(document: Document) -> None:
    """Print it on standard output."""
    console = Console(width=WIDTH, highlight=False)
    console.print(f"\nChaos, seed {document.settings['seed']}, {document.settings['duration']}", style="bold")
    console.print(_flows(document.chaos))
    console.print(_stalls(document.chaos))
    if document.control is not None:
        console.print(f"\nThe same without acts, {document.settings['without acts']}", style="bold")
        console.print(_flows(document.control))
    for line in lines(document):
        console.print(line, markup=False)


def _flows(outcome: Outcome) -> Table:
    table = Table(box=None, header_style="dim")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for flow, *numbers, moved, stalls, longest_s in rows(outcome):
        last = ("-" if moved is None else count(moved), count(stalls), milliseconds(longest_s) if stalls else "-")
        table.add_row(flow, *map(count, numbers), *last)
    return table


def _stalls(outcome: Outcome) -> Table:
    table = Table(box=None, header_style="dim")
    for number, name in enumerate(("meanwhile", "times", "stalls", "middle", "longest")):
        table.add_column(name, justify="right" if number else "left")
    times = Counter[str](act.kind for act in outcome.acts)
    stalls = outcome.stalls_by_cause()
    for cause in sorted({*times, *stalls}):
        number, middle_s, longest_s = stalls.get(cause, (0, 0.0, 0.0))
        known = (milliseconds(middle_s), milliseconds(longest_s)) if number else ("-", "-")
        table.add_row(cause, str(times[cause] or "-"), count(number), *known)
    return table


def lines(document: Document) -> Iterator[str]:
    """Yield what should not have been, then the verdict."""
    for name, outcome in (("", document.chaos), ("without acts: ", document.control)):
        if outcome is None:
            continue
        for each in outcome.broken[:MOST_LINES]:
            yield f"{name}broken: {told(each)}"
        if len(outcome.broken) > MOST_LINES:
            yield f"{name}and {len(outcome.broken) - MOST_LINES} more broken"
        for move in outcome.moved[:MOST_LINES]:
            yield f"{name}moved: {told_move(move)}"
        if len(outcome.moved) > MOST_LINES:
            yield f"{name}and {len(outcome.moved) - MOST_LINES} more moved"
        for act in outcome.acts:
            if act.trouble:
                yield f"{name}{act.shown} at {act.began_s:.1f} s: {act.trouble}"
        for fault in outcome.faults:
            yield f"{name}fault: {fault}"
    broken = len(document.chaos.broken) + len(document.chaos.moved)
    control = 0 if document.control is None else len(document.control.broken) + len(document.control.moved)
    verdict = "good" if document.is_good else "not good"
    yield f"{verdict}: {broken} flows broken or moved that should not be, {control} without acts"


def told(trouble: Trouble) -> str:
    """Return what broke, in words."""
    where = f" at {trouble.server}" if trouble.server else ""
    by = f" by {trouble.reset_by}" if trouble.reset_by else ""
    return (
        f"{trouble.flow} {trouble.what} of {trouble.client} port {trouble.port}{where}, "
        f"{trouble.began_s:.1f} to {trouble.ended_s:.1f} s: {trouble.error}{by}; meanwhile: {_listed(trouble.causes)}"
    )


def told_move(move: Move) -> str:
    """Return what moved, in words."""
    where = " -> ".join(move.servers)
    return f"{move.client} port {move.port} at {move.at_s:.1f} s: {where}; meanwhile: {_listed(move.causes)}"


def _listed(causes: Sequence[str]) -> str:
    return ", ".join(causes) or "nothing"
