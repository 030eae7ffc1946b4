"""
Status and flows for people and programs: a table, JSON or CSV.

JSON is what the balancer said, CSV one row per server or flow, both with everything. Tables have scaled numbers unless
raw ones are asked for, and are drawn by `rich`. They leave out columns that are empty everywhere and, where the
terminal is too narrow, secondary ones; what remains is folded, never cut. Without a terminal they are plain and as
wide as they need to be.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Literal, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lb.model.units import byte_count, count

Output: TypeAlias = Literal["table", "json", "csv"]

SERVER_COLUMNS = (
    "service",
    "server",
    "address",
    "weight",
    "state",
    "health",
    "active",
    "flows",
    "packets",
    "bytes",
    "flows/s",
    "packets/s",
    "bytes/s",
    "notes",
)
FLOW_COLUMNS = (
    "client",
    "client_port",
    "service",
    "server",
    "protocol",
    "state",
    "idle_s",
    "bytes_forward",
    "bytes_reply",
)
NUMERIC = {
    "weight", "active", "flows", "packets", "bytes", "flows/s", "packets/s", "bytes/s", "idle_s", "bytes_forward",
    "bytes_reply", "client_port",
}  # fmt: skip
# Left out of tables, in this order, while the terminal is too narrow.
SECONDARY_SERVER_COLUMNS = ("bytes", "packets", "flows", "bytes/s", "packets/s", "flows/s")
SECONDARY_FLOW_COLUMNS = ("bytes_reply", "bytes_forward")
# Notes get this much room before secondary columns do, and this much before other columns are folded.
NOTES_WIDTH, LEAST_NOTES_WIDTH = 24, 10
# Never the only signal: the words are there too.
STYLES = {"up": "green", "down": "red", "draining": "yellow", "disabled": "yellow", "leaving": "yellow"}
PLAIN_WIDTH = 10_000

_Rows: TypeAlias = Sequence[Sequence[str]]


def print_status(
    status: dict[str, Any], output: Output, stream: IO[str] | None = None, *, scaled: bool = False
) -> None:
    """Print a status. CSV: one row per server. `scaled`: numbers of tables are scaled."""
    stream = stream or sys.stdout
    scaled = scaled and output == "table"
    rows = [row for service in status["services"] for row in _server_rows(service, scaled)]
    if output == "json":
        stream.write(json.dumps(status, indent=2) + "\n")
    elif output == "csv":
        _print_csv(SERVER_COLUMNS, rows, stream)
    else:
        console = console_for(stream)
        for line in [*_head(status, scaled), *_services(status, scaled), ""]:
            console.print(Text(line))
        console.print(_fitting_table(SERVER_COLUMNS, rows, SECONDARY_SERVER_COLUMNS, console))
        for line in ["", *_tail(status["counters"], scaled)]:
            console.print(Text(line))


def print_flows(answer: dict[str, Any], output: Output, stream: IO[str] | None = None, *, scaled: bool = False) -> None:
    """Print a page of flows. A table ends with the total. `scaled`: numbers of tables are scaled."""
    stream = stream or sys.stdout
    if output == "json":
        stream.write(json.dumps(answer, indent=2) + "\n")
        return
    scaled = scaled and output == "table"
    rows = [[_flow_cell(flow, column, scaled) for column in FLOW_COLUMNS] for flow in answer["flows"]]
    if output == "csv":
        _print_csv(FLOW_COLUMNS, rows, stream)
        return
    console = console_for(stream)
    console.print(_fitting_table(FLOW_COLUMNS, rows, SECONDARY_FLOW_COLUMNS, console))
    number = _number_format(scaled)
    first, last = answer["offset"] + 1, answer["offset"] + len(rows)
    shown = f"flows {first} to {last}" if rows else "no flows"
    console.print(Text(f"\n{shown} of {number(answer['total'])}"))


def console_for(stream: IO[str]) -> Console:
    """Return a console for tables on a stream; when that is no terminal, it is wide enough for any line."""
    return Console(
        file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=not stream.isatty()
    )


def _print_csv(columns: Sequence[str], rows: Iterable[Sequence[str]], stream: IO[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    stream.write(text.getvalue())


def _fitting_table(columns: Sequence[str], rows: _Rows, secondary: Sequence[str], console: Console) -> Table:
    """
    Return a table that fits the console if it can: without empty columns, and without secondary ones that have no room.

    Args:
        columns: their names.
        rows: a cell for each column.
        secondary: columns that may be left out, the first one first.
        console: where the table is printed.
    """
    shown = [column for number, column in enumerate(columns) if not rows or any(row[number] for row in rows)]
    unlimited = console.options.update(width=PLAIN_WIDTH)

    def fits(notes_width: int) -> bool:
        table = _table(columns, rows, shown, notes_width=notes_width)
        return console.measure(table, options=unlimited).maximum <= console.width

    for column in secondary:
        if fits(NOTES_WIDTH):
            break
        shown = [name for name in shown if name != column]
    return _table(columns, rows, shown, folds_notes_only=fits(LEAST_NOTES_WIDTH))


def _table(
    columns: Sequence[str],
    rows: _Rows,
    shown: Sequence[str],
    *,
    notes_width: int | None = None,
    folds_notes_only: bool = False,
) -> Table:
    """Return a table of those columns that are in `shown`. `notes_width`: at most that wide are the notes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        is_notes = column == "notes"
        table.add_column(
            column,
            justify="right" if column in NUMERIC else "left",
            overflow="fold",
            max_width=notes_width if is_notes else None,
            no_wrap=folds_notes_only and not is_notes,
        )
    for row in rows:
        cells = (cell for column, cell in zip(columns, row, strict=True) if column in shown)
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return table


def _server_rows(service: dict[str, Any], scaled: bool) -> list[list[str]]:
    """Return a row per server; a service without one gets a row of its own."""
    if not service["servers"]:
        return [[service["name"], "-", "-", "-", "-", "-", "0", "0", "0", "0", "0", "0", "0", "no server"]]
    return [
        [
            service["name"],
            server["name"],
            _endpoint(server),
            str(server["weight"]),
            "leaving" if server["leaving"] else server["state"],
            server["health"],
            *_traffic(server, scaled),
            "; ".join(server["notes"]),
        ]
        for server in service["servers"]
    ]


def _endpoint(entry: dict[str, Any]) -> str:
    address = f"[{entry['address']}]" if ":" in entry["address"] else entry["address"]
    return f"{address}:{entry['port']}"


def _traffic(entry: dict[str, Any], scaled: bool) -> list[str]:
    packets = entry["packets_forward"] + entry["packets_reply"]
    total_bytes = entry["bytes_forward"] + entry["bytes_reply"]
    counts = (entry["flows_active"], entry["flows_created"], packets, total_bytes)
    rates = tuple(round(entry[name]) for name in ("flows_per_s", "packets_per_s", "bytes_per_s"))
    if not scaled:
        return [str(number) for number in (*counts, *rates)]
    return [*map(count, counts[:3]), byte_count(counts[3]), *map(count, rates[:2]), byte_count(rates[2])]


def _flow_cell(flow: dict[str, Any], column: str, scaled: bool) -> str:
    if column == "idle_s":
        return f"{flow[column]:.1f}"
    return byte_count(flow[column]) if scaled and column.startswith("bytes_") else str(flow[column])


def _number_format(scaled: bool) -> Callable[[int], str]:
    return count if scaled else str


def _head(status: dict[str, Any], scaled: bool) -> list[str]:
    uptime_s = int(status["uptime_s"])
    up = f"{uptime_s // 3600}:{uptime_s // 60 % 60:02}:{uptime_s % 60:02}"
    table, number = status["table"], _number_format(scaled)
    lines = [
        f"lb {status['version']}  pid {status['pid']}  backend {status['backend']}  up {up}",
        f"config {status['config']}  generation {status['generation']}",
        f"flow table {number(table['entries'])} of {number(table['capacity'])} "
        f"({table['entries'] / table['capacity']:.1%})",
    ]
    for interface in status["interfaces"]:
        addresses = " ".join(interface["addresses"]) or "no address"
        lines.append(f"interface {interface['name']}  {interface['mac']}  mtu {interface['mtu']}  {addresses}")
    if (within_s := status.get("stops_within_s")) is not None:
        lines.append(f"stopping: no new flows; stops when no flow is active, in {within_s:.0f} s at the latest")
    if status["trouble"]:
        lines.append(f"trouble: {status['trouble']}")
    if trouble := status.get("host_guard", {}).get("trouble"):
        lines.append(f"trouble: the host guard does not block the services' packets for the host's kernel: {trouble}")
    if status["last_reload_error"]:
        lines.append(f"last reload failed, the configuration before it is in use: {status['last_reload_error']}")
    for name, task in status.get("tasks", {}).items():
        if task["recent"]:
            times = f"{task['failures']} time{'' if task['failures'] == 1 else 's'}"
            lines.append(f"background task {name} failed {times}, see the log; the last: {task['last_error']}")
    return lines


def _services(status: dict[str, Any], scaled: bool) -> list[str]:
    number = _number_format(scaled)
    return [
        f"service {service['name']}  {_endpoint(service)}/{service['protocol']}  policy {service['policy']}  "
        f"active {number(service['flows_active'])}" + ("  leaving" if service["leaving"] else "")
        for service in status["services"]
    ]


def _tail(counters: dict[str, Any], scaled: bool) -> list[str]:
    number = _number_format(scaled)
    total = byte_count if scaled else "{} bytes".format
    lines = [
        f"received {number(counters['rx_packets'])} packets, {total(counters['rx_bytes'])}; "
        f"sent {number(counters['tx_packets'])} packets, {total(counters['tx_bytes'])}"
    ]
    verdicts = sorted(counters["verdicts"].items(), key=lambda pair: (-pair[1], pair[0]))
    if verdicts:
        lines.append("verdicts: " + ", ".join(f"{name} {number(times)}" for name, times in verdicts))
    if troubles := [f"{name} {number(times)}" for name, times in counters.get("io", {}).items() if times]:
        lines.append("on the wire: " + ", ".join(troubles))
    return lines
