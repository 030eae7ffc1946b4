"""
What changes between two states, in lines for people: what SIGHUP and `lb reload` print (behaviour 29).

Pure. A line begins with `+` (new), `-` (gone), `~` (changed) or `=` (kept although the file says otherwise).
"""

from __future__ import annotations

from collections.abc import Iterator

from lb.config import Config, ServiceConfig
from lb.config_fields import format_duration
from lb.control.state import NO_WISH, Desired, ServerKey, ServerNow, ServiceNow, services

# Settings that a reload changes; `backend`, the capacity of the table and the seed of the draws wait for a restart.
SETTINGS = ("transit", "seed", "answer_echo", "icmp_rate")
WAIT_FOR_RESTART = "waits for a restart"


def diff(before: Desired, after: Desired) -> list[str]:
    """Return what is different, in the order of the configuration; nothing when nothing is."""
    old = {service.name: service for service in services(before) if not service.leaving}
    new = {service.name: service for service in services(after) if not service.leaving}
    lines = list(_settings(before.config, after.config))
    for name, service in new.items():
        if name in old:
            lines += _service(old[name], service, after)
        else:
            lines += [f"+ service {name}  {_where(service)}", *(_added(name, server) for server in service.servers)]
    return lines + [
        f"- service {name}  {_where(service)}: its flows go on" for name, service in old.items() if name not in new
    ]


def _settings(before: Config, after: Config) -> Iterator[str]:
    for name in SETTINGS:
        one, two = getattr(before, name), getattr(after, name)
        if one != two:
            yield f"~ {name}: {one} -> {two}"
    if before.flows.timeouts() != after.flows.timeouts():
        yield "~ flows: timeouts"
    if before.flows.capacity != after.flows.capacity:
        yield f"~ flows.capacity: {before.flows.capacity} -> {after.flows.capacity}: {WAIT_FOR_RESTART}"
    if before.backend != after.backend:
        yield f"~ backend: {before.backend} -> {after.backend}: {WAIT_FOR_RESTART}"
    if before.interfaces != after.interfaces:
        yield "~ interface"


def _service(before: ServiceNow, after: ServiceNow, desired: Desired) -> Iterator[str]:
    name = after.name
    if before.identity != after.identity:
        yield f"~ service {name}: {_where(before)} -> {_where(after)}: old flows go on"
    for what, one, two in _properties(before.config, after.config):
        if one != two:
            yield f"~ service {name}: {what} {one} -> {two}"
    old = {server.name: server for server in before.servers if not server.leaving}
    new = {server.name: server for server in after.servers if not server.leaving}
    for server in new.values():
        if server.name in old:
            yield from _server(name, old[server.name], server, desired)
        else:
            yield _added(name, server)
    for server in old.values():
        if server.name not in new:
            yield f"- {name}/{server.name}  {_address(server)}: its flows go on"


def _properties(before: ServiceConfig, after: ServiceConfig) -> Iterator[tuple[str, object, object]]:
    yield "policy", _policy(before), _policy(after)
    yield "on_no_server", before.on_no_server, after.on_no_server
    yield "on_server_down", before.on_server_down, after.on_server_down
    yield "drain_timeout", _drain_timeout(before), _drain_timeout(after)
    if before.health != after.health:
        yield "health", _check(before), _check(after)


def _drain_timeout(service: ServiceConfig) -> str:
    timeout_ns = service.drain_timeout_ns
    return "none" if timeout_ns is None else format_duration(timeout_ns)


def _check(service: ServiceConfig) -> str:
    return "unchecked" if service.health is None else f"checked ({service.health.check})"


def _policy(service: ServiceConfig) -> str:
    options = " ".join(f"{key}={value}" for key, value in service.policy.options.items())
    return f"{service.policy.name}{f' ({options})' if options else ''}"


def _server(service: str, before: ServerNow, after: ServerNow, desired: Desired) -> Iterator[str]:
    name = f"{service}/{after.name}"
    if _address(before) != _address(after):
        yield f"~ {name}: {_address(before)} -> {_address(after)}: old flows go on"
    if before.config.mac != after.config.mac:
        yield f"~ {name}: mac"
    if before.weight != after.weight:
        yield f"~ {name}: weight {before.weight} -> {after.weight}"
    if before.state != after.state:
        yield f"~ {name}: {before.state} -> {after.state}"
    wish = desired.wishes.get(ServerKey(service, after.name), NO_WISH)
    if wish.weight is not None and wish.weight != after.config.weight:
        yield f"= {name}: weight {wish.weight} stays, set by operator (the file says {after.config.weight})"
    if wish.state is not None and wish.state != after.config.state:
        yield f"= {name}: {wish.state} stays, {wish.reason} (the file says {after.config.state})"


def _added(service: str, server: ServerNow) -> str:
    state = "" if server.state == "active" else f", {server.state}"
    return f"+ {service}/{server.name}  {_address(server)}, weight {server.weight}{state}"


def _address(server: ServerNow) -> str:
    return _socket(str(server.config.address), server.config.port)


def _where(service: ServiceNow) -> str:
    return f"{_socket(str(service.config.address), service.config.port)}/{service.config.protocol}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
