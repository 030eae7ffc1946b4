"""
The specification: what the balancer should be like now, as one value.

It is the configuration, the operator's overrides and the health of the servers. First step of the control walk, before
policies: `spec -> effective services -> policy -> plan -> snapshot`. Everything here is frozen and pure. A change is a
function that returns another `Spec` (`lb.compiler.edits`), so it can be computed, compared and shown (`lb reload
--dry-run`) before it is made. `lb.control.controller` keeps the current one and publishes.

Operator state and health are two fields that never affect each other: a drained server that goes down and comes back
is still drained. A server that was removed, by the operator or by a reload, stays as a *removed server*, draining,
while it has flows (rule 18.2, servers that leave or fail).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from lb.config import Config, ServerConfig, ServiceConfig
from lb.model.snapshot import Address
from lb.policies.base import Health, ServerView, State

# While a server ramps up, all weights of its service are multiplied by this, so that a fraction of a weight of 1 is a
# whole number.
RAMP_SCALE = 100

# Address, port and protocol of a service; of a server its service, address and port. Flows belong to an identity, so
# they survive a change of name.
ServiceIdentity: TypeAlias = tuple[Address, int, str]
ServerIdentity: TypeAlias = tuple[ServiceIdentity, Address, int]


class ServerKey(NamedTuple):
    """The names of a service and of one of its servers: `video/server2`."""

    service: str
    server: str

    def __str__(self) -> str:
        return f"{self.service}/{self.server}"


@dataclass(frozen=True, slots=True)
class Override:
    """
    What the operator has set for one server. `state`, `weight`: None where the configuration's value holds; `reason`:
    in words, for the status.
    """

    state: State | None = None
    weight: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """
    The health of one server. `health`: the verdict of the checks; `ramp`: the part of its weight that it has during its
    slow start, in (0, 1]; `reason`: of the verdict, in words.
    """

    health: Health = "up"
    ramp: float = 1.0
    reason: str = ""


NO_OVERRIDE = Override()
HEALTHY = HealthStatus()


class RemovedServer(NamedTuple):
    """A server that is no longer in the configuration, kept while it has flows."""

    service: ServiceConfig
    server: ServerConfig

    @property
    def identity(self) -> ServerIdentity:
        """The identity that its flows belong to."""
        return server_identity(self.service, self.server)


@dataclass(frozen=True, slots=True)
class Spec:
    """
    The configuration, and all that differs from it.

    Args:
        config: as read from the file.
        overrides: by server, without empty ones.
        health: by server, without those that are `HEALTHY`.
        added: servers that the operator added, by service name.
        withdrawn: servers of the file that the operator removed.
        removed_servers: servers that are in neither and may still have flows.
        overdue: draining servers whose `drain_timeout` is over.
        is_stopping: no server gets new flows; those that the operator did not drain have no `drain_timeout`.
    """

    config: Config
    overrides: Mapping[ServerKey, Override] = field(default_factory=dict)
    health: Mapping[ServerKey, HealthStatus] = field(default_factory=dict)
    added: Mapping[str, tuple[ServerConfig, ...]] = field(default_factory=dict)
    withdrawn: frozenset[ServerKey] = frozenset()
    removed_servers: tuple[RemovedServer, ...] = ()
    overdue: frozenset[ServerIdentity] = frozenset()
    is_stopping: bool = False


@dataclass(frozen=True, slots=True)
class EffectiveServer:
    """
    One server with everything applied to it: configuration, override, health.

    `weight`: the operator's, else the configuration's, without the ramp; `name`: differs from `config.name` only for a
    removed server whose name another one has; `moves_udp`: its UDP flows move to other servers, because it was
    removed, or has drained for its time (rule 18.2, servers that leave or fail).
    """

    config: ServerConfig
    name: str
    weight: int
    state: State
    health: Health = "up"
    ramp: float = 1.0
    is_removed: bool = False
    moves_udp: bool = False


@dataclass(frozen=True, slots=True)
class EffectiveService:
    """One service with its effective servers. `is_removed`: it is kept for the flows of its servers alone."""

    config: ServiceConfig
    name: str
    servers: tuple[EffectiveServer, ...]
    is_removed: bool = False

    @property
    def identity(self) -> ServiceIdentity:
        """The identity that its flows belong to."""
        return service_identity(self.config)

    def weights(self) -> list[int]:
        """Return the weight of each server, scaled by the ramps while one of them is below 1."""
        if all(server.ramp >= 1 for server in self.servers):
            return [server.weight for server in self.servers]
        return [_ramped(server) for server in self.servers]

    def views(self, ids: Iterable[int]) -> list[ServerView]:
        """Return what a policy sees of the servers. `ids`: of the servers, in order."""
        rows = zip(ids, self.servers, self.weights(), strict=True)
        return [ServerView(number, server.name, weight, server.state, server.health) for number, server, weight in rows]


def _ramped(server: EffectiveServer) -> int:
    return max(1, round(server.weight * RAMP_SCALE * server.ramp)) if server.weight else 0


def service_identity(service: ServiceConfig) -> ServiceIdentity:
    """Return the identity of a service: VIP, port, protocol."""
    return service.address, service.port, service.protocol


def server_identity(service: ServiceConfig, server: ServerConfig) -> ServerIdentity:
    """Return the identity of a server: its service, address and port."""
    return service_identity(service), server.address, server.port


def services(spec: Spec) -> tuple[EffectiveService, ...]:
    """Return every service with its effective servers; removed servers and services come last."""
    if not spec.removed_servers:
        return tuple(_service(spec, service, ()) for service in spec.config.services)
    removed: dict[ServiceIdentity, list[RemovedServer]] = {}
    for server in spec.removed_servers:
        removed.setdefault(service_identity(server.service), []).append(server)
    present = [_service(spec, service, removed.pop(service_identity(service), ())) for service in spec.config.services]
    names = {service.name for service in present}
    return (*present, *(_removed_service(spec, servers, names) for servers in removed.values()))


def _service(spec: Spec, service: ServiceConfig, removed: Iterable[RemovedServer]) -> EffectiveService:
    servers = [_server(spec, service, server) for server in present_servers(spec, service)]
    names = {server.name for server in servers}
    kept = (_removed_server(server, names, True) for server in removed)
    return EffectiveService(service, service.name, (*servers, *kept))


def present_servers(spec: Spec, service: ServiceConfig) -> Iterator[ServerConfig]:
    """Yield the servers of a service that are not removed: those of the file, then those that the operator added."""
    for server in service.servers:
        if not spec.withdrawn or ServerKey(service.name, server.name) not in spec.withdrawn:
            yield server
    yield from spec.added.get(service.name, ())


def _server(spec: Spec, service: ServiceConfig, server: ServerConfig) -> EffectiveServer:
    key = ServerKey(service.name, server.name)
    override, status = spec.overrides.get(key, NO_OVERRIDE), spec.health.get(key, HEALTHY)
    is_overdue = bool(spec.overdue) and server_identity(service, server) in spec.overdue
    state = override.state or server.state
    return EffectiveServer(
        config=server,
        name=server.name,
        weight=server.weight if override.weight is None else override.weight,
        state="draining" if spec.is_stopping and state == "active" else state,
        health=status.health,
        ramp=status.ramp,
        moves_udp=is_overdue and service.protocol == "udp",
    )


def _removed_server(removed: RemovedServer, taken: set[str], moves_flows: bool) -> EffectiveServer:
    server = removed.server
    name = _free_name(taken, server.name, f"{server.name}@{server.address}:{server.port}")
    moves_udp = moves_flows and removed.service.protocol == "udp"
    return EffectiveServer(server, name, server.weight, "draining", is_removed=True, moves_udp=moves_udp)


def _removed_service(spec: Spec, removed: list[RemovedServer], taken: set[str]) -> EffectiveService:
    service = removed[0].service
    where = f"{service.name}@{service.address}:{service.port}"
    name = _free_name(taken, service.name, where, f"{where}/{service.protocol}")
    # No other server could have its flows: they go on until the drain timeout.
    names: set[str] = set()
    servers = tuple(_removed_server(server, names, server.identity in spec.overdue) for server in removed)
    return EffectiveService(service, name, servers, is_removed=True)


def _free_name(taken: set[str], *names: str) -> str:
    """Return the first name that is not taken, and take it. The last one must be unique."""
    name = next((name for name in names if name not in taken), names[-1])
    taken.add(name)
    return name


class Draining(NamedTuple):
    """A server that takes no new flows. `timeout_ns`: how long it may keep its flows; None: until they end."""

    key: ServerKey
    identity: ServerIdentity
    timeout_ns: int | None


def draining_servers(spec: Spec) -> Iterator[Draining]:
    """
    Yield the servers that are draining, disabled or removed, but not the removed ones of UDP services: their flows move
    at once.
    """
    for service in spec.config.services:
        for server in present_servers(spec, service):
            key = ServerKey(service.name, server.name)
            if (spec.overrides.get(key, NO_OVERRIDE).state or server.state) != "active":
                yield Draining(key, server_identity(service, server), service.drain_timeout_ns)
    present = {service_identity(service) for service in spec.config.services} if spec.removed_servers else set()
    for removed in spec.removed_servers:
        moves_at_once = removed.service.protocol == "udp" and service_identity(removed.service) in present
        if not moves_at_once:
            key = ServerKey(removed.service.name, removed.server.name)
            yield Draining(key, removed.identity, removed.service.drain_timeout_ns)


def find_server(config: Config, key: ServerKey) -> ServerConfig | None:
    """Return a server of a configuration, or None."""
    named = (service.servers for service in config.services if service.name == key.service)
    return next((server for servers in named for server in servers if server.name == key.server), None)
