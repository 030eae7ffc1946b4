"""
What health checks, timers and the kernel report, on a stage: health, interfaces, drains that are over, servers without
flows.

Called by `lb.control.controller`, which publishes the stage afterwards; arguments and errors are documented there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lb.compiler.edits import with_all_health, with_overdue, without_removed
from lb.compiler.spec import HEALTHY, HealthStatus, ServerIdentity, ServerKey, draining_servers, server_identity
from lb.config import ServerConfig, ServiceConfig
from lb.control.outcome import HealthUpdate
from lb.control.stage import Stage
from lb.model.snapshot import Interface


def update_health(stage: Stage, updates: Mapping[ServerKey, HealthUpdate]) -> list[ServerKey]:
    """Note health updates; return the servers that do not exist."""
    index, health = stage.index_of(stage.spec), dict(stage.spec.health)
    for key, update in updates.items():
        if key in index:
            before = health.get(key, HEALTHY)
            health[key] = _updated(before, update)
            _note_health(stage, key, index[key], before, health[key])
    stage.spec = with_all_health(stage.spec, health)
    return [key for key in updates if key not in index]


def _updated(before: HealthStatus, update: HealthUpdate) -> HealthStatus:
    health = before.health if update.health is None else update.health
    ramp = before.ramp if update.ramp is None else update.ramp
    return HealthStatus(health, ramp, before.reason if update.health is None else update.reason)


def _note_health(
    stage: Stage, key: ServerKey, row: tuple[ServiceConfig, ServerConfig], before: HealthStatus, after: HealthStatus
) -> None:
    """Stage what follows from the new health of a server. `row`: its service and itself."""
    # The reason alone does not matter to packets.
    stage.is_dirty |= (before.health, before.ramp) != (after.health, after.ramp)
    if before.health == after.health:
        return
    stage.events.append((str(key), after.health, after.reason))
    if after.health == "down" and row[0].on_server_down == "reset":
        stage.resets.append(server_identity(*row))


def reset_down(stage: Stage) -> None:
    """Stage the resets that follow from the health of all servers as it is."""
    index = stage.index_of(stage.spec)
    for key, status in stage.spec.health.items():
        if status.health == "down" and key in index and index[key][0].on_server_down == "reset":
            stage.resets.append(server_identity(*index[key]))


def set_interfaces(stage: Stage, interfaces: Sequence[Interface]) -> None:
    """Follow a change of the interfaces."""
    stage.interfaces = tuple(interfaces)
    stage.change(stage.spec, "interfaces", "changed", "by the kernel")


def end_drains(stage: Stage) -> None:
    """End the drains whose time is over."""
    before = stage.spec.overdue
    due = stage.drains.overdue(draining_servers(stage.spec), stage.monotonic_ns())
    if {each.identity for each in due} == before:
        return
    stage.change(with_overdue(stage.spec, [each.identity for each in due]))
    for each in due:
        (_, _, protocol), _, _ = each.identity
        if each.identity in before:
            continue
        stage.events.append((str(each.key), "drain timed out", "by drain_timeout"))
        if protocol == "tcp":
            stage.resets.append(each.identity)


def forget(stage: Stage, gone: Collection[ServerIdentity]) -> None:
    """Drop removed servers."""
    stage.change(without_removed(stage.spec, gone))
