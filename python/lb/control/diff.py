"""
What changes between two states, in lines for people: what SIGHUP and `lb reload` print (rule 18.1, reloads and
changes).

Pure. Here are services and servers as they are now, with what the operator asked for; settings, and the keys of both
that the file alone decides, are compared by `lb.config.diff`. A line begins with `+` (new), `-` (gone), `~` (changed)
or `=` (kept although the file says otherwise).
"""

from __future__ import annotations

from collections.abc import Iterator

from lb.compiler.spec import NO_OVERRIDE, EffectiveServer, EffectiveService, ServerKey, Spec, services
from lb.config import Config
from lb.config.diff import Change, of_server, of_service, settings
from lb.fields.types import format_endpoint
from lb.policies import UserPolicy


def diff(before: Spec, after: Spec, running: Config | None = None) -> list[str]:
    """
    Return what is different, in the order of the configuration; nothing when nothing is.

    Args:
        before: the spec until now.
        after: the spec from now on.
        running: the configuration of the start, which keys that wait for a restart are compared with; None: that of
            `before`.
    """
    old = {service.name: service for service in services(before) if not service.is_removed}
    new = {service.name: service for service in services(after) if not service.is_removed}
    lines = list(settings(before.config, after.config, before.config if running is None else running))
    for name, service in new.items():
        if name in old:
            lines += _service(old[name], service, after)
        else:
            lines += [f"+ service {name}  {_where(service)}", *(_added(name, server) for server in service.servers)]
    return lines + [
        f"- service {name}  {_where(service)}: its flows go on" for name, service in old.items() if name not in new
    ]


def _service(before: EffectiveService, after: EffectiveService, spec: Spec) -> Iterator[str]:
    name = after.name
    if before.identity != after.identity:
        yield f"~ service {name}: {_where(before)} -> {_where(after)}: old flows go on"
    yield from (_property(f"service {name}", change) for change in of_service(before.config, after.config))
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


def _property(whose: str, change: Change) -> str:
    note = f": {change.note}" if change.note else ""
    return f"~ {whose}: {change.key} {change.before} -> {change.after}{note}"


def _digest(service: EffectiveService) -> str:
    """Return what stands for the text of the policy's file; empty where there is none."""
    policy = service.config.policy.policy
    return policy.digest if isinstance(policy, UserPolicy) else ""


def _server(service: str, before: EffectiveServer, after: EffectiveServer, spec: Spec) -> Iterator[str]:
    name = f"{service}/{after.name}"
    if _address(before) != _address(after):
        yield f"~ {name}: {_address(before)} -> {_address(after)}: old flows go on"
    yield from (_property(name, change) for change in of_server(before.config, after.config))
    if before.weight != after.weight:
        yield f"~ {name}: weight {before.weight} -> {after.weight}"
    if before.state != after.state:
        yield f"~ {name}: {before.state} -> {after.state}"
    override = spec.overrides.get(ServerKey(service, after.name), NO_OVERRIDE)
    if override.weight is not None and override.weight != after.config.weight:
        yield f"= {name}: weight {override.weight} stays, set by operator (the file says {after.config.weight})"
    if override.state is not None and override.state != after.config.state:
        yield f"= {name}: {override.state} stays, {override.reason} (the file says {after.config.state})"


def _added(service: str, server: EffectiveServer) -> str:
    state = "" if server.state == "active" else f", {server.state}"
    return f"+ {service}/{server.name}  {_address(server)}, weight {server.weight}{state}"


def _address(server: EffectiveServer) -> str:
    return format_endpoint(server.config.address, server.config.port)


def _where(service: EffectiveService) -> str:
    return f"{format_endpoint(service.config.address, service.config.port)}/{service.config.protocol}"
