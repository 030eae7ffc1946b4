"""
Changes of a specification: each returns another one and leaves its argument as it is.

Every edit that adds, removes or reloads servers also decides which servers are *removed servers* afterwards: those
that were present before, or removed already, and are not present any more (rule 18.2, servers that leave or fail).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from lb.compiler.spec import (
    HEALTHY,
    NO_OVERRIDE,
    HealthStatus,
    Override,
    RemovedServer,
    ServerIdentity,
    ServerKey,
    Spec,
    find_server,
    present_servers,
    server_identity,
    service_identity,
    services,
)
from lb.config import Config, ServerConfig, ServiceConfig


def with_override(spec: Spec, key: ServerKey, override: Override) -> Spec:
    """Return the spec with the operator's override of a server; an empty override removes the one there is."""
    others = {other: kept for other, kept in spec.overrides.items() if other != key}
    return replace(spec, overrides=others if _is_empty(override) else {**others, key: override})


def _is_empty(override: Override) -> bool:
    return override.state is None and override.weight is None


def with_health(spec: Spec, key: ServerKey, status: HealthStatus) -> Spec:
    """Return the spec with the health of a server."""
    return with_all_health(spec, {**spec.health, key: status})


def with_all_health(spec: Spec, health: Mapping[ServerKey, HealthStatus]) -> Spec:
    """Return the spec with the health of all servers; healthy ones may be left out."""
    return replace(spec, health={key: status for key, status in health.items() if status != HEALTHY})


def with_server(spec: Spec, service: str, server: ServerConfig) -> Spec:
    """Return the spec with a server that the operator adds. The caller has checked that it fits."""
    key = ServerKey(service, server.name)
    if key in spec.withdrawn and find_server(spec.config, key) == server:
        return _settle(spec, replace(spec, withdrawn=spec.withdrawn - {key}))
    added = {**spec.added, service: (*spec.added.get(service, ()), server)}
    return _settle(spec, replace(spec, added=added))


def without_server(spec: Spec, key: ServerKey) -> Spec:
    """Return the spec without a server, which becomes a removed server; its override and health are dropped."""
    kept = tuple(server for server in spec.added.get(key.service, ()) if server.name != key.server)
    is_of_file = find_server(spec.config, key) is not None
    after = replace(
        spec,
        added={**spec.added, key.service: kept},
        withdrawn=spec.withdrawn | {key} if is_of_file else spec.withdrawn,
        overrides={other: override for other, override in spec.overrides.items() if other != key},
        health={other: status for other, status in spec.health.items() if other != key},
    )
    return _settle(spec, after)


def without_removed(spec: Spec, gone: Collection[ServerIdentity]) -> Spec:
    """Return the spec without some of its removed servers, because they have no flows any more."""
    return replace(spec, removed_servers=tuple(each for each in spec.removed_servers if each.identity not in gone))


def with_overdue(spec: Spec, overdue: Collection[ServerIdentity]) -> Spec:
    """Return the spec in which these draining servers, and no others, are past their `drain_timeout`."""
    return replace(spec, overdue=frozenset(overdue))


def with_stopping(spec: Spec, is_stopping: bool) -> Spec:
    """Return the spec in which no server gets new flows, or in which that is over."""
    return replace(spec, is_stopping=is_stopping)


def with_config(spec: Spec, config: Config) -> Spec:
    """
    Return the spec after a reload.

    The file says which servers there are: added ones that it does not list are removed, withdrawn ones that it lists
    return. An override stays with every server that is there before and after, unless the file itself changes that
    value: the latest change wins. Health stays with a server that keeps its address.
    """
    before = {key: server for key, _, server in _rows(spec.config)} if spec.overrides else {}
    overrides: dict[ServerKey, Override] = {}
    for key, _, server in _rows(config) if spec.overrides else ():
        override = _kept(spec.overrides.get(key, NO_OVERRIDE), before.get(key), server)
        if not _is_empty(override):
            overrides[key] = override
    known = _identities(spec) if spec.health else {}
    health = {
        key: spec.health[key]
        for key, service, server in (_rows(config) if spec.health else ())
        if key in spec.health and known.get(key) == server_identity(service, server)
    }
    after = replace(spec, config=config, overrides=overrides, health=health, added={}, withdrawn=frozenset())
    return _settle(spec, after)


def _kept(override: Override, before: ServerConfig | None, after: ServerConfig) -> Override:
    """Return what is left of an override after the file's entry of the same server may have changed."""
    if before is None:
        return override
    state = override.state if before.state == after.state else None
    return Override(state, override.weight if before.weight == after.weight else None, override.reason)


def _rows(config: Config) -> Iterator[tuple[ServerKey, ServiceConfig, ServerConfig]]:
    for service in config.services:
        for server in service.servers:
            yield ServerKey(service.name, server.name), service, server


def _identities(spec: Spec) -> dict[ServerKey, ServerIdentity]:
    return {
        ServerKey(service.name, server.name): server_identity(service.config, server.config)
        for service in services(spec)
        for server in service.servers
        if not server.is_removed
    }


def with_leftovers(spec: Spec, servers: Iterable[RemovedServer]) -> Spec:
    """Return the spec of a start with the removed servers: of those that were there before, the ones it has not."""
    return _settled(spec, {server.identity: server for server in servers})


def _settle(before: Spec, after: Spec) -> Spec:
    """Return `after` with the right removed servers: those that were there before, and are not present any more."""
    removed = {removed.identity: removed for removed in before.removed_servers}
    return _settled(after, removed | dict(_present_rows(before)))


def _settled(after: Spec, candidates: Mapping[ServerIdentity, RemovedServer]) -> Spec:
    present = {identity for identity, _ in _present_rows(after)}
    vips = {service.address for service in after.config.services}
    addresses = {address for _, address, _ in present}
    removed_servers = tuple(
        removed
        for identity, removed in candidates.items()
        # An address in two roles would be no valid configuration: such flows cannot be kept.
        if identity not in present and removed.server.address not in vips and removed.service.address not in addresses
    )
    return replace(after, removed_servers=removed_servers)


def _present_rows(spec: Spec) -> Iterator[tuple[ServerIdentity, RemovedServer]]:
    """Yield each present server by its identity, as the removed server that it would become."""
    for service in spec.config.services:
        identity = service_identity(service)
        for server in present_servers(spec, service):
            yield (identity, server.address, server.port), RemovedServer(service, server)
