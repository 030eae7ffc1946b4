"""The figures of a run as tables for a terminal, and what they say in words. `rich` draws, and honours NO_COLOR."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lb.lab.loadgen.figures import Figures, Group, Latency, Players
from lb.lab.loadgen.records import NO_SERVER
from lb.model.units import count

# Tables keep their columns whole on any terminal; this one fits 80 columns.
WIDTH = 180
NO_ANSWER = "no answer"
LATENCIES = ("mean", "p50", "p95", "p99", "max")
_HEAD = ("fetches", "failed", "share")
_TAIL = ("mean", "p50", "p95", "p99 ms", "bit/s")


def show(figures: Figures, target_weights: Mapping[str, float] | None = None) -> None:
    """Print the tables on standard output. `target_weights`: of the servers, by name."""
    console = Console(width=WIDTH, highlight=False)
    console.print(_table(figures, shares(target_weights)))
    for line in remarks(figures):
        console.print(line, markup=False)


def shares(weights: Mapping[str, float] | None) -> dict[str, float] | None:
    """Turn weights into shares of 1. None: they are not known, or all 0."""
    total = sum(weights.values()) if weights else 0.0
    return {name: weight / total for name, weight in weights.items()} if weights and total else None


def _table(figures: Figures, targets: Mapping[str, float] | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", min_width=9)
    for name in (*_HEAD, *(["wanted"] if targets else []), *_TAIL):
        table.add_column(name, justify="right", no_wrap=True)

    def add(group: Group, target: str) -> None:
        name = escape(group.name) if group.name != NO_SERVER else NO_ANSWER
        counts = (count(group.fetches), count(group.failures), f"{group.share:.1%}", *([target] if targets else []))
        latency = group.latency
        times = () if latency is None else (latency.mean_s, latency.p50_s, latency.p95_s, latency.p99_s)
        cells = [three_digits(value * 1000) for value in times] or ["-"] * 4
        table.add_row(name, *counts, *cells, count(group.bits_per_s))

    add(figures.total, "")
    for server in figures.servers:
        add(server, f"{targets.get(server.name, 0.0):.1%}" if targets else "")
    for client in figures.clients if len(figures.clients) > 1 else ():
        add(client, "")
    return table


def latency_cells(latency: Latency | None) -> tuple[str, ...]:
    """Return mean, p50, p95, p99 and maximum as text."""
    if latency is None:
        return ("-",) * len(LATENCIES)
    values = (latency.mean_s, latency.p50_s, latency.p95_s, latency.p99_s, latency.max_s)
    return tuple(milliseconds(value) for value in values)


def remarks(figures: Figures) -> list[str]:
    """Return what the tables do not hold, a line each."""
    total = figures.total
    lines = [f"{count(total.fetches)} fetches, {count(total.failures)} failures in {figures.duration_s:.2f} s:"]
    lines[0] += f" {count(figures.rate_hz, ' fetches/s')}, {bit_rate(total.bits_per_s)}"
    if figures.fairness is not None:
        lines[0] += f", fairness {figures.fairness:.3f}"
    if figures.total.response is not None:
        lines.append("from intended start: " + _named(figures.total.response))
    if figures.lag is not None:
        lines.append("started late by:     " + _named(figures.lag))
    if figures.players is not None:
        lines.append(players_line(figures.players))
    lines += [f"failed {count} times: {reason}" for reason, count in figures.errors.items()]
    return lines


def players_line(players: Players) -> str:
    """Return what those who watched saw, as one line."""
    startup = "-" if players.startup_s is None else milliseconds(players.startup_s)
    unseen = f", {players.unseen} of them saw nothing" if players.unseen else ""
    return (
        f"{players.players} players{unseen}: start after {startup}, {players.stalls} stalls, {players.stalled_s:.1f} s "
        f"together ({players.stall_share:.1%}), {players.bitrate:.0f} kbit/s, {players.switches} switches"
    )


def _named(latency: Latency) -> str:
    return ", ".join(f"{name} {text}" for name, text in zip(LATENCIES, latency_cells(latency), strict=True))


def milliseconds(seconds: float) -> str:
    """Return a duration with its unit, in three digits or more."""
    return f"{three_digits(seconds * 1000)} ms"


def three_digits(value: float) -> str:
    """Return a number in three digits or more."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def bit_rate(bits_per_s: float) -> str:
    """Return a bit rate, scaled: `1.2 Gbit/s`."""
    return count(bits_per_s, "bit/s")
