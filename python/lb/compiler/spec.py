"""
What the balancer should be like right now, as a value: the configuration, what the operator asked for on top of it,
and how the servers are.

First step of the control walk, before policies: `desired -> services -> policy -> plan -> snapshot`. Everything here is
frozen and pure: a change is a function that returns another `Desired`, so it can be computed, compared and shown
(`lb reload --dry-run`) before anything happens. `lb.control.controller` keeps the current one and publishes.

Operator state and health are two fields that never touch each other: a drained server that goes down and comes back is
drained. A server that left (removed by the operator, or by a reload) stays as *leaving*, draining, while it has flows
(behaviour 8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from lb.config import Config, ServerConfig, ServiceConfig
from lb.model.snapshot import Address
from lb.policies.base import Health, ServerView, State

# While a server ramps up, all weights of its service are multiplied by this, so that a fraction of a weight of 1 is a
# whole number.
RAMP_SCALE = 100

# Where a service listens, and what a server is of it. A thing keeps its identity, and so its flows, whatever its name.
ServiceIdentity: TypeAlias = tuple[Address, int, str]
ServerIdentity: TypeAlias = tuple[ServiceIdentity, Address, int]


class ServerKey(NamedTuple):
    """What people call a server: `video/server2`."""

    service: str
    server: str

    def __str__(self) -> str:
        return f"{self.service}/{self.server}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for about one server; None: what the configuration says. `reason`: in words."""

    state: State | None = None
    weight: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """
    How a server is. `health`: what the checks say; `ramp`: the part of its weight that it has while it starts slowly,
    in (0, 1]; `reason`: in words.
    """

    health: Health = "up"
    ramp: float = 1.0
    reason: str = ""


NO_WISH = Wish()
HEALTHY = Condition()


class Leaver(NamedTuple):
    """A server that is not wanted any more, kept while it has flows."""

    service: ServiceConfig
    server: ServerConfig

    @property
    def identity(self) -> ServerIdentity:
        """What its flows know it by."""
        return server_identity(self.service, self.server)


@dataclass(frozen=True, slots=True)
class Desired:
    """
    All that is wanted and known.

    Args:
        config: as the file says.
        wishes, conditions: by server; those that are as they are from the start are left out.
        added: servers that the operator added, by service name. removed: servers of the file that the operator removed.
        leaving: servers that are gone from both and may still have flows.
        overdue: draining servers whose `drain_timeout` is over.
    """

    config: Config
    wishes: Mapping[ServerKey, Wish] = field(default_factory=dict)
    conditions: Mapping[ServerKey, Condition] = field(default_factory=dict)
    added: Mapping[str, tuple[ServerConfig, ...]] = field(default_factory=dict)
    removed: frozenset[ServerKey] = frozenset()
    leaving: tuple[Leaver, ...] = ()
    overdue: frozenset[ServerIdentity] = frozenset()


@dataclass(frozen=True, slots=True)
class ServerNow:
    """
    One server as it is wanted now. `weight`: the operator's, else the configuration's, whatever the ramp; `name`:
    differs from `config.name` only for a leaving one whose name another has, leaving or not; `moves_udp`: its UDP flows
    move to other servers, since it was removed, or drained for its time (behaviour 8).
    """

    config: ServerConfig
    name: str
    weight: int
    state: State
    health: Health = "up"
    ramp: float = 1.0
    leaving: bool = False
    moves_udp: bool = False


@dataclass(frozen=True, slots=True)
class ServiceNow:
    """One service as it is wanted now. `leaving`: it is gone, and only kept for its servers' flows."""

    config: ServiceConfig
    name: str
    servers: tuple[ServerNow, ...]
    leaving: bool = False

    @property
    def identity(self) -> ServiceIdentity:
        """What its flows know it by."""
        return service_identity(self.config)

    def weights(self) -> list[int]:
        """Return each server's share now: its weight, scaled by the ramps while one is below 1."""
        if all(server.ramp >= 1 for server in self.servers):
            return [server.weight for server in self.servers]
        return [_ramped(server) for server in self.servers]

    def views(self, ids: Iterable[int]) -> list[ServerView]:
        """Return what a policy sees of the servers. `ids`: theirs, in order."""
        rows = zip(ids, self.servers, self.weights(), strict=True)
        return [ServerView(number, server.name, weight, server.state, server.health) for number, server, weight in rows]


def _ramped(server: ServerNow) -> int:
    return max(1, round(server.weight * RAMP_SCALE * server.ramp)) if server.weight else 0


def service_identity(service: ServiceConfig) -> ServiceIdentity:
    """Return what makes a service the same one: VIP, port, protocol."""
    return service.address, service.port, service.protocol


def server_identity(service: ServiceConfig, server: ServerConfig) -> ServerIdentity:
    """Return what makes a server the same one: its service, address and port."""
    return service_identity(service), server.address, server.port


def services(desired: Desired) -> tuple[ServiceNow, ...]:
    """Return every service with its servers, as they are wanted now; what is leaving comes last."""
    if not desired.leaving:
        return tuple(_service(desired, service, ()) for service in desired.config.services)
    leaving: dict[ServiceIdentity, list[Leaver]] = {}
    for leaver in desired.leaving:
        leaving.setdefault(service_identity(leaver.service), []).append(leaver)
    present = [
        _service(desired, service, leaving.pop(service_identity(service), ())) for service in desired.config.services
    ]
    names = {service.name for service in present}
    return (*present, *(_leaving_service(desired, leavers, names) for leavers in leaving.values()))


def _service(desired: Desired, service: ServiceConfig, leavers: Iterable[Leaver]) -> ServiceNow:
    servers = [_server(desired, service, server) for server in wanted(desired, service)]
    names = {server.name for server in servers}
    return ServiceNow(service, service.name, (*servers, *(_leaving_server(leaver, names, True) for leaver in leavers)))


def wanted(desired: Desired, service: ServiceConfig) -> Iterator[ServerConfig]:
    """Yield the servers a service should have: those of the file but the removed ones, then the added ones."""
    for server in service.servers:
        if not desired.removed or ServerKey(service.name, server.name) not in desired.removed:
            yield server
    yield from desired.added.get(service.name, ())


def _server(desired: Desired, service: ServiceConfig, server: ServerConfig) -> ServerNow:
    key = ServerKey(service.name, server.name)
    wish, condition = desired.wishes.get(key, NO_WISH), desired.conditions.get(key, HEALTHY)
    is_overdue = bool(desired.overdue) and server_identity(service, server) in desired.overdue
    return ServerNow(
        config=server,
        name=server.name,
        weight=server.weight if wish.weight is None else wish.weight,
        state=wish.state or server.state,
        health=condition.health,
        ramp=condition.ramp,
        moves_udp=is_overdue and service.protocol == "udp",
    )


def _leaving_server(leaver: Leaver, taken: set[str], is_over: bool) -> ServerNow:
    server = leaver.server
    name = _free_name(taken, server.name, f"{server.name}@{server.address}:{server.port}")
    moves_udp = is_over and leaver.service.protocol == "udp"
    return ServerNow(server, name, server.weight, "draining", leaving=True, moves_udp=moves_udp)


def _leaving_service(desired: Desired, leavers: list[Leaver], taken: set[str]) -> ServiceNow:
    service = leavers[0].service
    where = f"{service.name}@{service.address}:{service.port}"
    name = _free_name(taken, service.name, where, f"{where}/{service.protocol}")
    # No other server could have its flows: they go on for a while.
    names: set[str] = set()
    servers = tuple(_leaving_server(leaver, names, leaver.identity in desired.overdue) for leaver in leavers)
    return ServiceNow(service, name, servers, leaving=True)


def _free_name(taken: set[str], *names: str) -> str:
    """Return the first of the names that is not taken, and take it. The last is nobody else's."""
    name = next((name for name in names if name not in taken), names[-1])
    taken.add(name)
    return name


def with_wish(desired: Desired, key: ServerKey, wish: Wish) -> Desired:
    """Return what is wanted when the operator asks this about a server; a wish of nothing is none."""
    others = {other: kept for other, kept in desired.wishes.items() if other != key}
    is_nothing = wish.state is None and wish.weight is None
    return replace(desired, wishes=others if is_nothing else {**others, key: wish})


def with_condition(desired: Desired, key: ServerKey, condition: Condition) -> Desired:
    """Return what is wanted when a server is like this."""
    return with_conditions(desired, {**desired.conditions, key: condition})


def with_conditions(desired: Desired, conditions: Mapping[ServerKey, Condition]) -> Desired:
    """Return what is wanted when the servers are like this; one that is as from the start is left out."""
    return replace(desired, conditions={key: each for key, each in conditions.items() if each != HEALTHY})


def with_server(desired: Desired, service: str, server: ServerConfig) -> Desired:
    """Return what is wanted when the operator adds a server. The caller has checked that it fits."""
    key = ServerKey(service, server.name)
    if key in desired.removed and find_server(desired.config, key) == server:
        return _settle(desired, replace(desired, removed=desired.removed - {key}))
    added = {**desired.added, service: (*desired.added.get(service, ()), server)}
    return _settle(desired, replace(desired, added=added))


def without_server(desired: Desired, key: ServerKey) -> Desired:
    """Return what is wanted when the operator removes a server: it is leaving then, and nothing else is known of it."""
    kept = tuple(server for server in desired.added.get(key.service, ()) if server.name != key.server)
    is_of_file = find_server(desired.config, key) is not None
    after = replace(
        desired,
        added={**desired.added, key.service: kept},
        removed=desired.removed | {key} if is_of_file else desired.removed,
        wishes={other: wish for other, wish in desired.wishes.items() if other != key},
        conditions={other: condition for other, condition in desired.conditions.items() if other != key},
    )
    return _settle(desired, after)


def without_leavers(desired: Desired, gone: Collection[ServerIdentity]) -> Desired:
    """Return what is wanted when some of the leaving servers have no flow any more."""
    return replace(desired, leaving=tuple(leaver for leaver in desired.leaving if leaver.identity not in gone))


class Draining(NamedTuple):
    """A server that takes no new flows, and how long it may keep those it has: None: until they end."""

    key: ServerKey
    identity: ServerIdentity
    timeout_ns: int | None


def draining_servers(desired: Desired) -> Iterator[Draining]:
    """Yield the servers that are draining, disabled or removed; but removed ones over UDP: their flows move at once."""
    for service in desired.config.services:
        for server in wanted(desired, service):
            key = ServerKey(service.name, server.name)
            if (desired.wishes.get(key, NO_WISH).state or server.state) != "active":
                yield Draining(key, server_identity(service, server), service.drain_timeout_ns)
    present = {service_identity(service) for service in desired.config.services} if desired.leaving else set()
    for leaver in desired.leaving:
        moves_at_once = leaver.service.protocol == "udp" and service_identity(leaver.service) in present
        if not moves_at_once:
            key = ServerKey(leaver.service.name, leaver.server.name)
            yield Draining(key, leaver.identity, leaver.service.drain_timeout_ns)


def with_overdue(desired: Desired, overdue: Collection[ServerIdentity]) -> Desired:
    """Return what is wanted when the time of these draining servers is over, and of no others."""
    return replace(desired, overdue=frozenset(overdue))


def with_config(desired: Desired, config: Config) -> Desired:
    """
    Return what is wanted after a reload.

    The file says which servers there are: added ones that it does not list leave, removed ones that it lists return.
    The operator's state and weight stay with every server that is there before and after, unless the file itself
    changes that value: whoever spoke last is heard. What the checks know stays with a server that keeps its address.
    """
    before = {key: server for key, _, server in _rows(desired.config)} if desired.wishes else {}
    wishes: dict[ServerKey, Wish] = {}
    for key, _, server in _rows(config) if desired.wishes else ():
        wish = _kept(desired.wishes.get(key, NO_WISH), before.get(key), server)
        if wish.state is not None or wish.weight is not None:
            wishes[key] = wish
    known = {} if not desired.conditions else _identities(services(desired))
    conditions = {
        key: desired.conditions[key]
        for key, service, server in (_rows(config) if desired.conditions else ())
        if key in desired.conditions and known.get(key) == server_identity(service, server)
    }
    return _settle(desired, Desired(config, wishes, conditions, leaving=desired.leaving, overdue=desired.overdue))


def _kept(wish: Wish, before: ServerConfig | None, after: ServerConfig) -> Wish:
    """Return what remains of a wish when the file says something about the same server."""
    if before is None:
        return wish
    state = wish.state if before.state == after.state else None
    return Wish(state, wish.weight if before.weight == after.weight else None, wish.reason)


def _rows(config: Config) -> Iterator[tuple[ServerKey, ServiceConfig, ServerConfig]]:
    for service in config.services:
        for server in service.servers:
            yield ServerKey(service.name, server.name), service, server


def _identities(present: Iterable[ServiceNow]) -> dict[ServerKey, ServerIdentity]:
    return {
        ServerKey(service.name, server.name): server_identity(service.config, server.config)
        for service in present
        for server in service.servers
        if not server.leaving
    }


def find_server(config: Config, key: ServerKey) -> ServerConfig | None:
    """Return a server of a configuration, or None."""
    named = (service.servers for service in config.services if service.name == key.service)
    return next((server for servers in named for server in servers if server.name == key.server), None)


def _settle(before: Desired, after: Desired) -> Desired:
    """Return `after` with the right servers leaving: those that were there, and are no more."""
    present = {identity for identity, _ in _wanted_rows(after)}
    candidates = {leaver.identity: leaver for leaver in before.leaving} | dict(_wanted_rows(before))
    vips = {service.address for service in after.config.services}
    addresses = {address for _, address, _ in present}
    leaving = tuple(
        leaver
        for identity, leaver in candidates.items()
        # An address in two roles would be no valid configuration: such flows cannot be kept.
        if identity not in present and leaver.server.address not in vips and leaver.service.address not in addresses
    )
    return replace(after, leaving=leaving)


def _wanted_rows(desired: Desired) -> Iterator[tuple[ServerIdentity, Leaver]]:
    """Yield every wanted server by its identity, as what it would be once it leaves."""
    for service in desired.config.services:
        identity = service_identity(service)
        for server in wanted(desired, service):
            yield (identity, server.address, server.port), Leaver(service, server)
