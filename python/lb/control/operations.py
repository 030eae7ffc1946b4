"""
What the operator changes, on a stage: states, weights, servers, the configuration.

Called by `lb.control.controller`, which publishes the stage afterwards; arguments and errors are documented there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lb.compiler.edits import with_config, with_override, with_server, with_stopping, without_server
from lb.compiler.spec import NO_OVERRIDE, EffectiveService, ServerKey
from lb.config import Config, ServerConfig
from lb.config.rules import unusable_in
from lb.control.diff import diff
from lb.control.stage import Stage
from lb.errors import RefusedError
from lb.model.snapshot import Interface
from lb.policies.base import State

STATE_WORDS: Mapping[State, str] = {"active": "enabled", "draining": "drained", "disabled": "disabled"}
BY_OPERATOR = "by operator"


def set_state(stage: Stage, service: str, server: str, state: State, reset: bool) -> None:
    """Set the operator state of a server."""
    key, owner, found = stage.server(service, server)
    before = stage.spec.overrides.get(key, NO_OVERRIDE)
    # A state that the file has too is no override: a reload can change it then.
    kept = None if state == found.config.state else state
    override = replace(before, state=kept, reason=f"{STATE_WORDS[state]} by operator")
    # Not the effective one: while the balancer is stopping, that is draining for all.
    if state != (before.state or found.config.state):
        stage.change(with_override(stage.spec, key, override), str(key), state, BY_OPERATOR)
    if reset:
        stage.reset(owner, found)


def set_weight(stage: Stage, service: str, server: str, weight: int) -> None:
    """Set the weight of a server."""
    key, _, found = stage.server(service, server)
    override = stage.spec.overrides.get(key, NO_OVERRIDE)
    kept = None if weight == found.config.weight else weight
    if weight != found.weight:
        after = with_override(stage.spec, key, replace(override, weight=kept))
        stage.change(after, str(key), f"weight {found.weight} -> {weight}", BY_OPERATOR)


def add(stage: Stage, service: str, server: ServerConfig) -> None:
    """Add a server to a service."""
    owner = stage.service(service)
    _require_fitting(stage, owner, server)
    _require_free(owner, server)
    key = ServerKey(service, server.name)
    stage.change(with_server(stage.spec, service, server), str(key), "added", BY_OPERATOR)


def remove(stage: Stage, service: str, server: str, reset: bool) -> None:
    """Remove a server."""
    key, owner, found = stage.server(service, server)
    stage.change(without_server(stage.spec, key), str(key), "removed", BY_OPERATOR)
    if reset:
        stage.reset(owner, found)


def reload(stage: Stage, config: Config, interfaces: Sequence[Interface] | None, running: Config) -> list[str]:
    """Swap to another configuration; return what is different. `running`: the configuration of the start."""
    if interfaces is not None:
        stage.interfaces = tuple(interfaces)
    names = {service.name for service in config.services}
    stage.measurements = {name: row for name, row in stage.measurements.items() if name in names}
    before, after = stage.spec, with_config(stage.spec, config)
    stage.change(after, "configuration", "reloaded", BY_OPERATOR)
    return diff(before, after, running)


def set_stopping(stage: Stage, is_stopping: bool) -> None:
    """Drain all servers because the balancer is stopping, or let them take new flows again."""
    if is_stopping != stage.spec.is_stopping:
        change = "stopping" if is_stopping else "stop cancelled"
        stage.change(with_stopping(stage.spec, is_stopping), "balancer", change, BY_OPERATOR)


def _require_fitting(stage: Stage, owner: EffectiveService, server: ServerConfig) -> None:
    """Raise RefusedError when an address cannot be that of a server: what `lb.config.rules` checks in a file."""
    vip, address = owner.config.address, server.address
    if address.version != vip.version:
        raise RefusedError(f"{address} is IPv{address.version}, the VIP {vip} is IPv{vip.version}")
    taken = next((service.name for service in stage.services() if service.config.address == address), None)
    if taken is not None:
        raise RefusedError(f"{address} is the VIP of service {taken}: a server has a real address")
    prefixes = [own.network for interface in stage.interfaces for own in interface.addresses]
    if (why := unusable_in(address, prefixes)) is not None:
        raise RefusedError(f"{address} is {why}: a server has a host's address")


def _require_free(owner: EffectiveService, server: ServerConfig) -> None:
    """Raise RefusedError when the name or the endpoint of a server is taken in its service."""
    for other in owner.servers:
        if not other.is_removed and other.name == server.name:
            raise RefusedError(f"{owner.name}/{server.name} already exists")
        if not other.is_removed and (other.config.address, other.config.port) == (server.address, server.port):
            raise RefusedError(f"{server.address} port {server.port} is {owner.name}/{other.name} already")
