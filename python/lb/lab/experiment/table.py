"""The results of experiments as tables for a terminal, with a verdict in words for each policy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lb.lab.experiment.result import Entry, Result, Verdict
from lb.lab.loadgen.table import WIDTH, milliseconds
from lb.model.units import count

HOLDS = {True: "holds", False: "does not hold", None: "not judged"}


def show(results: Sequence[Result]) -> None:
    """Print the tables on standard output."""
    console = Console(width=WIDTH, highlight=False)
    for result in results:
        console.print(f"\n{result.title}", markup=False, style="bold")
        for load in result.loads:
            console.print(_table(result, load))
        for line in verdict_lines(result):
            console.print(line, markup=False)


def columns(entry: Entry) -> dict[str, str]:
    """Return what is known of a policy and a load, by the name of the column."""
    total, players = entry.figures.total, entry.figures.players
    found = {"fetches": count(total.fetches), "failures": count(total.failures)}
    for name in ("mean", "p50", "p95", "p99"):
        value = entry.values[name]
        found[name] = "-" if value is None else milliseconds(value)
    found["Jain"] = "-" if entry.fairness is None else f"{entry.fairness:.3f}"
    if players is not None:
        found["start"] = "-" if players.startup_s is None else milliseconds(players.startup_s)
        found["stalls"] = str(players.stalls)
        found["stood still"] = f"{players.stalled_s:.1f} s"
        found["kbit/s"] = f"{players.bitrate:.0f}"
    return found


def shares(result: Result, entry: Entry) -> list[str]:
    """Return the share of each server, in the order of the servers."""
    found = {server.name: server.share for server in entry.figures.servers}
    return [f"{found.get(name, 0.0):.1%}" for name in result.weights]


def verdict_lines(result: Result) -> list[str]:
    """Return, for each load and policy, how it compares with the baseline; then whether what was expected holds."""
    lines = []
    for load in result.loads:
        for entry in result.of_load(load):
            if entry.policy != result.baseline:
                lines.append(f"{load}: {entry.policy}: {comparison(entry)} of {result.baseline}")
    return lines + [expectation_line(verdict) for verdict in result.verdicts]


def comparison(entry: Entry) -> str:
    """Return the ratios of a policy in words: `mean 0.55x, p95 0.41x`."""
    names = ("mean", "p95", *(("stalled",) if entry.figures.players else ()))
    return ", ".join(f"{name} {ratio_text(entry, name)}" for name in names)


def ratio_text(entry: Entry, name: str) -> str:
    """Return a ratio, or a dash when there is none."""
    return f"{entry.ratios[name]:.2f}x" if name in entry.ratios else "-"


def expectation_line(verdict: Verdict) -> str:
    """Return whether what was expected holds, as a line."""
    measured = "" if verdict.ratio is None else f" ({verdict.ratio:.2f}x)"
    return f"expected {verdict.expectation}: {HOLDS[verdict.holds]}{measured}"


def _table(result: Result, load: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(load, min_width=12, no_wrap=True)
    entries = result.of_load(load)
    for name in (*columns(entries[0]), *result.weights):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        table.add_row(escape(entry.policy), *columns(entry).values(), *shares(result, entry))
    return table
