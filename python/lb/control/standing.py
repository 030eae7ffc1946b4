"""
What the operator and the checks have decided, from one process to the next: what a restart must not forget.

Pure: a specification in, rows for a file out, and back, for the configuration that the next process has read
(`lb.control.kept` has the file). A restart is to the specification what a reload is (`lb.compiler.edits.with_config`):
the file wins where it has changed, servers that it has no more go on as removed servers while they have flows. Only
where the file is the same as before do servers that the operator added or removed stay so.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lb.compiler.edits import with_leftovers
from lb.compiler.spec import (
    HealthStatus,
    Override,
    RemovedServer,
    ServerKey,
    Spec,
    find_server,
    present_servers,
)
from lb.config import Config, ServerConfig, ServiceConfig
from lb.control.kept_names import Names
from lb.policies.base import State

FORMAT = 1


class Row(BaseModel):
    """A row about one server: names of service and server."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    service: str
    server: str

    @property
    def key(self) -> ServerKey:
        """The names."""
        return ServerKey(self.service, self.server)


class OverrideRow(Row):
    """
    What the operator has set for a server. `state`, `weight`: None where the file's value holds; `file_state`,
    `file_weight`: what the file said, None for a server that the operator added.
    """

    state: State | None
    weight: int | None
    reason: str
    file_state: State | None
    file_weight: int | None


class DownRow(Row):
    """A server that its checks found down, why, and where it was: another machine of that name is not down."""

    address: str
    port: int
    reason: str


class AddedRow(BaseModel):
    """A server that the operator added to a service: its table in the configuration."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    service: str
    table: str


class Standing(BaseModel):
    """
    What stands beside the configuration.

    Args:
        format: of the file.
        sequence: counts what was written to the directory, by all processes.
        config: a digest of the configuration.
        overrides, down, added, withdrawn: as in `lb.compiler.spec.Spec`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    sequence: Annotated[int, Field(ge=0, lt=2**63)] = 0
    config: str
    overrides: tuple[OverrideRow, ...] = ()
    down: tuple[DownRow, ...] = ()
    added: tuple[AddedRow, ...] = ()
    withdrawn: tuple[Row, ...] = ()

    @classmethod
    def of(cls, spec: Spec, sequence: int = 0) -> Standing:
        """Return what stands beside the configuration of a spec."""
        servers = _servers(spec)
        return cls(
            sequence=sequence,
            config=digest(spec.config),
            overrides=tuple(_override_row(spec.config, key, override) for key, override in spec.overrides.items()),
            down=tuple(
                DownRow(
                    service=key.service,
                    server=key.server,
                    address=str(servers[key].address),
                    port=servers[key].port,
                    reason=status.reason,
                )
                for key, status in spec.health.items()
                if status.health == "down" and key in servers
            ),
            added=tuple(
                AddedRow(service=service, table=server.model_dump_json())
                for service, added in spec.added.items()
                for server in added
            ),
            withdrawn=tuple(Row(service=key.service, server=key.server) for key in sorted(spec.withdrawn)),
        )


def _override_row(config: Config, key: ServerKey, override: Override) -> OverrideRow:
    of_file = find_server(config, key)
    return OverrideRow(
        service=key.service,
        server=key.server,
        state=override.state,
        weight=override.weight,
        reason=override.reason,
        file_state=None if of_file is None else of_file.state,
        file_weight=None if of_file is None else of_file.weight,
    )


def _servers(spec: Spec) -> dict[ServerKey, ServerConfig]:
    """Return the present servers by their names; none where nobody asks for one."""
    if not spec.health:
        return {}
    return {
        ServerKey(service.name, server.name): server
        for service in spec.config.services
        for server in present_servers(spec, service)
    }


def signature(spec: Spec) -> object:
    """Return all that `Standing.of` reads of a spec, but for the configuration's tables: equal when the same stands."""
    down = {key: status.reason for key, status in spec.health.items() if status.health == "down"}
    return spec.config, spec.overrides, down, spec.added, spec.withdrawn


def digest(config: Config) -> str:
    """Return what tells one configuration from another; the seed is no part of it: it may be drawn."""
    text = config.model_dump_json(exclude={"seed"})
    return hashlib.sha256(text.encode()).hexdigest()


def restored(config: Config, standing: Standing | None, names: Names | None) -> Spec:
    """
    Return the spec that a process begins with.

    Args:
        config: as it was read now.
        standing: what stood beside the configuration of the process before; None: nothing is known of it.
        names: the servers that its flows may belong to; None: there are none.

    Returns:
        Without what the configuration has no place for any more, as after a reload.
    """
    spec = Spec(config)
    if standing is not None:
        is_same = standing.config == digest(config)
        spec = _with_rows(spec, standing, is_same=is_same)
    return with_leftovers(spec, _leftovers(names, config) if names is not None else ())


def _with_rows(spec: Spec, standing: Standing, *, is_same: bool) -> Spec:
    config = spec.config
    tables = {service.name: service for service in config.services}
    added: dict[str, tuple[ServerConfig, ...]] = {}
    for row in standing.added if is_same else ():
        # Written by another version, whose servers may have other keys.
        with contextlib.suppress(ValueError):
            server = ServerConfig.model_validate_json(row.table)
            if row.service in tables:
                added[row.service] = (*added.get(row.service, ()), server)
    withdrawn = frozenset(row.key for row in standing.withdrawn) if is_same else frozenset[ServerKey]()
    spec = Spec(config, added=added, withdrawn=withdrawn)
    present = {
        ServerKey(service.name, server.name): server
        for service in config.services
        for server in present_servers(spec, service)
    }
    overrides = {row.key: override for row in standing.overrides if (override := _kept(row, present.get(row.key)))}
    health = {
        row.key: HealthStatus("down", reason=row.reason)
        for row in standing.down
        if row.key in present
        and tables[row.service].health is not None
        and (str(present[row.key].address), present[row.key].port) == (row.address, row.port)
    }
    return Spec(config, overrides, health, added, withdrawn)


def _kept(row: OverrideRow, server: ServerConfig | None) -> Override | None:
    """Return what is left of an override: the file wins where it has changed. None: nothing."""
    if server is None:
        return None
    state = row.state if row.file_state in (None, server.state) else None
    weight = row.weight if row.file_weight in (None, server.weight) else None
    return Override(state, weight, row.reason) if (state, weight) != (None, None) else None


def _leftovers(names: Names, config: Config) -> Iterator[RemovedServer]:
    """Yield each server that a flow of the process before may belong to, as the removed server that it may be now."""
    services: Mapping[object, ServiceConfig] = {
        (str(service.address), service.port, service.protocol): service for service in config.services
    }
    for row in names.servers:
        meaning = row and names.services[row.service]
        if row is None or meaning is None:
            continue
        # What cannot be a service or a server is none.
        with contextlib.suppress(ValueError):
            identity = (meaning.address, meaning.port, meaning.protocol)
            yield RemovedServer(
                services.get(identity) or _service(meaning.name, *identity),
                ServerConfig.model_validate({"name": _plain(row.name), "address": row.address, "port": row.port}),
            )


def _service(name: str, address: str, port: int, protocol: str) -> ServiceConfig:
    """Return a service that the configuration has no more."""
    return ServiceConfig.model_validate({"name": _plain(name), "address": address, "port": port, "protocol": protocol})


def _plain(name: str) -> str:
    """Return a name as it was before the address of a removed one came behind it."""
    return name.partition("@")[0]
