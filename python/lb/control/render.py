"""The status for people and programs: a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

COLUMNS = ("service", "vip", "server", "address", "weight", "state", "active", "flows", "packets", "bytes")


def render_status(status: dict[str, Any], output: Literal["table", "json", "csv"]) -> str:
    """Return the status as text that ends with a line feed. CSV: one row per server."""
    if output == "json":
        return json.dumps(status, indent=2) + "\n"
    rows = [row for service in status["services"] for row in _rows(service)]
    if output == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        return text.getvalue()
    return "\n".join([*_head(status), "", *_table([COLUMNS, *rows]), "", *_tail(status["counters"])]) + "\n"


def _rows(service: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row per server; a service without one gets a row of its own."""
    vip = f"{_endpoint(service)}/{service['protocol']}"
    if not service["servers"]:
        return [(service["name"], vip, "-", "-", "-", "-", "0", "0", "0", "0")]
    return [
        (
            service["name"],
            vip,
            server["name"],
            _endpoint(server),
            str(server["weight"]),
            server["state"],
            *_traffic(server),
        )
        for server in service["servers"]
    ]


def _endpoint(entry: dict[str, Any]) -> str:
    address = f"[{entry['address']}]" if ":" in entry["address"] else entry["address"]
    return f"{address}:{entry['port']}"


def _traffic(entry: dict[str, Any]) -> tuple[str, ...]:
    packets = entry["packets_forward"] + entry["packets_reply"]
    total_bytes = entry["bytes_forward"] + entry["bytes_reply"]
    return tuple(str(number) for number in (entry["flows_active"], entry["flows_created"], packets, total_bytes))


def _head(status: dict[str, Any]) -> list[str]:
    uptime_s = int(status["uptime_s"])
    up = f"{uptime_s // 3600}:{uptime_s // 60 % 60:02}:{uptime_s % 60:02}"
    lines = [
        f"lb {status['version']}  pid {status['pid']}  backend {status['backend']}  up {up}",
        f"config {status['config']}  generation {status['generation']}",
    ]
    for interface in status["interfaces"]:
        addresses = " ".join(interface["addresses"]) or "no address"
        lines.append(f"interface {interface['name']}  {interface['mac']}  mtu {interface['mtu']}  {addresses}")
    if status["trouble"]:
        lines.append(f"trouble: {status['trouble']}")
    if status["last_reload_error"]:
        lines.append(f"last reload failed, the configuration before it is in use: {status['last_reload_error']}")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    numeric = COLUMNS.index("active")
    return [
        "  ".join(
            cell.rjust(width) if column >= numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _tail(counters: dict[str, Any]) -> list[str]:
    lines = [
        f"received {counters['rx_packets']} packets, {counters['rx_bytes']} bytes; "
        f"sent {counters['tx_packets']} packets, {counters['tx_bytes']} bytes"
    ]
    verdicts = sorted(counters["verdicts"].items(), key=lambda pair: (-pair[1], pair[0]))
    if verdicts:
        lines.append("verdicts: " + ", ".join(f"{name} {count}" for name, count in verdicts))
    if troubles := [f"{name} {count}" for name, count in counters.get("io", {}).items() if count]:
        lines.append("on the wire: " + ", ".join(troubles))
    return lines
