"""
What changes between two states, in lines for people: what SIGHUP and `lb reload` print (behaviour 29).

Pure. A line begins with `+` (new), `-` (gone), `~` (changed) or `=` (kept although the file says otherwise).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lb.compiler.spec import NO_OVERRIDE, EffectiveServer, EffectiveService, ServerKey, Spec, services
from lb.config import Config, MetricsConfig, ServiceConfig
from lb.fields.types import format_duration, format_mac
from lb.policies import UserPolicy

RESTART = "takes effect after a restart"
# Keys that a start alone applies: by table ("" is the top). What runs has the values of the start's configuration.
RESTART_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset({"backend", "poll", "workers"}),
    "flows": frozenset({"capacity"}),
    "interface": frozenset({"mac", "transmit"}),
}
# Keys of the top that have lines of their own.
TABLES = frozenset({"interface", "service", "flows", "metrics"})
OFF = "off"
SEED_NOTE = "random draws keep theirs until a restart"


def diff(before: Spec, after: Spec, running: Config | None = None) -> list[str]:
    """
    Return what is different, in the order of the configuration; nothing when nothing is.

    Args:
        before: what was wanted.
        after: what is wanted now.
        running: the configuration of the start, which keys that wait for a restart are compared with; None: that of
            `before`.
    """
    old = {service.name: service for service in services(before) if not service.is_removed}
    new = {service.name: service for service in services(after) if not service.is_removed}
    lines = list(_settings(before.config, after.config, before.config if running is None else running))
    for name, service in new.items():
        if name in old:
            lines += _service(old[name], service, after)
        else:
            lines += [f"+ service {name}  {_where(service)}", *(_added(name, server) for server in service.servers)]
    return lines + [
        f"- service {name}  {_where(service)}: its flows go on" for name, service in old.items() if name not in new
    ]


def _settings(before: Config, after: Config, running: Config) -> Iterator[str]:
    old, new, start = _tables(before), _tables(after), _tables(running)
    for line in _table("", "", old, new, start):
        yield f"{line}: {SEED_NOTE}" if line.startswith("~ seed: ") else line
    yield from _table("flows", "flows.", old["flows"], new["flows"], start["flows"])
    yield from _metrics(before.metrics, after.metrics)
    started = {interface["name"]: interface for interface in start["interface"]}
    for one, two in zip(old["interface"], new["interface"], strict=False):
        yield from _table("interface", f"interface {two['name']}: ", one, two, started.get(two["name"], one))


def _tables(config: Config) -> dict[str, Any]:
    """Return a configuration without its services as its file would have it."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"services"})


def _table(
    table: str, prefix: str, before: Mapping[str, Any], after: Mapping[str, Any], running: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line for each key of a table that differs."""
    fixed = RESTART_KEYS.get(table, frozenset())
    for key in dict.fromkeys((*before, *after, *running)):
        if not table and key in TABLES:
            continue
        one, two = (running if key in fixed else before).get(key), after.get(key)
        if one != two:
            yield f"~ {prefix}{key}: {_show(one)} -> {_show(two)}" + (f": {RESTART}" if key in fixed else "")


def _show(value: Any) -> str:
    """Return a value of a configuration for a line: as JSON has it, strings without quotes."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _metrics(before: MetricsConfig | None, after: MetricsConfig | None) -> Iterator[str]:
    one, two = (OFF if where is None else _socket(str(where.address), where.port) for where in (before, after))
    if one != two:
        yield f"~ metrics: {one} -> {two}"


def _service(before: EffectiveService, after: EffectiveService, spec: Spec) -> Iterator[str]:
    name = after.name
    if before.identity != after.identity:
        yield f"~ service {name}: {_where(before)} -> {_where(after)}: old flows go on"
    for what, one, two in _properties(before.config, after.config):
        if one != two:
            yield f"~ service {name}: {what} {one} -> {two}"
    if before.config.policy.name == after.config.policy.name and _digest(before) != _digest(after):
        yield f"~ service {name}: policy {after.config.policy.name}: its file has changed"
    old = {server.name: server for server in before.servers if not server.is_removed}
    new = {server.name: server for server in after.servers if not server.is_removed}
    for server in new.values():
        if server.name in old:
            yield from _server(name, old[server.name], server, spec)
        else:
            yield _added(name, server)
    for server in old.values():
        if server.name not in new:
            yield f"- {name}/{server.name}  {_address(server)}: its flows go on"


def _properties(before: ServiceConfig, after: ServiceConfig) -> Iterator[tuple[str, object, object]]:
    yield "policy", _policy(before), _policy(after)
    yield "on_no_server", before.on_no_server, after.on_no_server
    yield "on_no_flow", before.on_no_flow, after.on_no_flow
    yield "on_server_down", before.on_server_down, after.on_server_down
    yield "drain_timeout", _drain_timeout(before), _drain_timeout(after)
    one, two = _health(before), _health(after)
    if one is None or two is None:
        yield "health", _check(before), _check(after)
        return
    for key in dict.fromkeys((*one, *two)):
        yield f"health.{key}", _show(one.get(key)), _show(two.get(key))


def _health(service: ServiceConfig) -> dict[str, Any] | None:
    return None if service.health is None else service.health.model_dump(mode="json", by_alias=True)


def _drain_timeout(service: ServiceConfig) -> str:
    timeout_ns = service.drain_timeout_ns
    return "none" if timeout_ns is None else format_duration(timeout_ns)


def _check(service: ServiceConfig) -> str:
    return "unchecked" if service.health is None else f"checked ({service.health.check})"


def _policy(service: ServiceConfig) -> str:
    options = " ".join(f"{key}={value}" for key, value in service.policy.options.items())
    return f"{service.policy.name}{f' ({options})' if options else ''}"


def _digest(service: EffectiveService) -> str:
    """Return what stands for the text of the policy's file; empty where there is none."""
    policy = service.config.policy.policy
    return policy.digest if isinstance(policy, UserPolicy) else ""


def _server(service: str, before: EffectiveServer, after: EffectiveServer, spec: Spec) -> Iterator[str]:
    name = f"{service}/{after.name}"
    if _address(before) != _address(after):
        yield f"~ {name}: {_address(before)} -> {_address(after)}: old flows go on"
    if before.config.mac != after.config.mac:
        yield f"~ {name}: mac {_mac(before)} -> {_mac(after)}"
    if before.weight != after.weight:
        yield f"~ {name}: weight {before.weight} -> {after.weight}"
    if before.state != after.state:
        yield f"~ {name}: {before.state} -> {after.state}"
    override = spec.overrides.get(ServerKey(service, after.name), NO_OVERRIDE)
    if override.weight is not None and override.weight != after.config.weight:
        yield f"= {name}: weight {override.weight} stays, set by operator (the file says {after.config.weight})"
    if override.state is not None and override.state != after.config.state:
        yield f"= {name}: {override.state} stays, {override.reason} (the file says {after.config.state})"


def _mac(server: EffectiveServer) -> str:
    return "unset" if server.config.mac is None else format_mac(server.config.mac)


def _added(service: str, server: EffectiveServer) -> str:
    state = "" if server.state == "active" else f", {server.state}"
    return f"+ {service}/{server.name}  {_address(server)}, weight {server.weight}{state}"


def _address(server: EffectiveServer) -> str:
    return _socket(str(server.config.address), server.config.port)


def _where(service: EffectiveService) -> str:
    return f"{_socket(str(service.config.address), service.config.port)}/{service.config.protocol}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
