"""The answer of `lb explain` as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lb.model.units import byte_count

UNKNOWN = "?"
SERVER_COLUMNS = ("", "server", "address", "weight", "state", "health", "active", "slots", "why")
HEADER_ROWS = (
    ("ethernet source", "ethernet_source"),
    ("ethernet destination", "ethernet_destination"),
    ("source", "source"),
    ("destination", "destination"),
    ("TTL", "ttl"),
    ("source port", "source_port"),
    ("destination port", "destination_port"),
)


def render(answer: Mapping[str, Any]) -> str:
    """Return an answer of `lb.explain.placement.explain` as text that ends with a line feed."""
    return "\n".join(_lines(answer)) + "\n"


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    service = answer["service"]
    yield f"service     {service['name']}  {answer['vip']}/{service['protocol']}  policy {service['policy']}"
    yield f"flow        {_flow(answer['flow'])}"
    yield f"plan        {_plan(answer['plan'])}"
    yield f"choice      {_choice(answer['choice'])}"
    yield f"because     {answer['choice']['how']}"
    if hop := answer["next_hop"]:
        mac = hop["mac"] or "MAC unknown"
        yield f"next hop    {hop['address']} ({mac}) through {hop['interface']}, MTU {hop['mtu']}"
    yield ""
    yield from _table([SERVER_COLUMNS, *(_server(server) for server in answer["servers"])])
    for direction in ("forward", "reply") if answer["headers"] else ():
        yield ""
        yield from _headers(direction, answer["headers"][direction])
    if answer["notes"]:
        yield ""
        yield from (f"note: {note}" for note in answer["notes"])


def _flow(flow: Mapping[str, Any] | None) -> str:
    if flow is None:
        return "none yet"
    return (
        f"{flow['state']} on {flow['server']}, idle for {flow['idle_s']:.1f} s, "
        f"{byte_count(flow['bytes_forward'])} forward, {byte_count(flow['bytes_reply'])} reply"
    )


def _plan(plan: Mapping[str, Any]) -> str:
    fallback = f"; fall-back: {_plan(plan['fallback'])}" if plan["fallback"] else ""
    return f"{plan['selector']}, {plan['slots']} slots{fallback}"


def _choice(choice: Mapping[str, Any]) -> str:
    if choice["server"] is not None:
        return str(choice["server"])
    if choice["reason"] is not None:
        return f"{choice['verdict']}: {choice['reason']}"
    ranked = sorted(choice["chances"].items(), key=lambda pair: -pair[1])
    shares = ", ".join(name if share == 1 else f"{name} {share:.1%}" for name, share in ranked)
    if choice["asked"]:
        return f"as the user's policy answers; without an answer: {shares or 'no server'}"
    return shares


def _server(server: Mapping[str, Any]) -> tuple[str, ...]:
    host = f"[{server['address']}]" if ":" in server["address"] else server["address"]
    numbers = (str(server["flows_active"]), str(server["slots"]))
    mark = "in" if server["candidate"] else "out"
    where = f"{host}:{server['port']}"
    return (
        mark,
        server["name"],
        where,
        str(server["weight"]),
        server["state"],
        server["health"],
        *numbers,
        server["why"],
    )


def _headers(direction: str, headers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [(direction, "before", "after", "")]
    for label, key in HEADER_ROWS:
        before, after = (
            UNKNOWN if headers[when][key] is None else str(headers[when][key]) for when in ("before", "after")
        )
        rows.append((label, before, after, "*" if before != after else ""))
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
