"""
Compile a configuration into the snapshot that backends work from.

Control side of the walk: `config -> spec -> policy -> plan -> snapshot`. The compiler remembers the ids of services,
servers and endpoints, so that each keeps its id across reloads and a flow keeps its server (rule 18.2, servers that
leave or fail, and rule 18.1, reloads and changes). Nothing here reads the machine: the addresses and MACs of the
interfaces are an argument.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Literal, TypeAlias

from lb.compiler.ids import Ids
from lb.compiler.spec import EffectiveServer, EffectiveService, ServerIdentity, ServiceIdentity, Spec, services
from lb.config import Config, InterfaceConfig, ServerConfig
from lb.config.parts import part_of, shared_keys
from lb.errors import ConfigError
from lb.fields.types import format_mac
from lb.model.snapshot import (
    Address,
    AskFunction,
    Interface,
    Neighbour,
    NextHops,
    Plan,
    Route,
    Server,
    Service,
    Snapshot,
)
from lb.policies import Measurements, UserPolicy

DEFAULT_MTU_BYTES = 1500
# Seed of a configuration without one, when none was drawn: offline, the same input gives the same output.
OFFLINE_SEED = 1

# Keys of a server that are copied by their names. The others are written out below: there may be thousands of servers.
MORE_OF_SERVER = sorted({*shared_keys(Server, ServerConfig)} - {"name", "address", "port", "weight", "mac"})

NOTHING_MEASURED: Mapping[str, Measurements] = {}

# Kinds of ids that are recycled.
IdKind: TypeAlias = Literal["server", "service"]

_ServerRow: TypeAlias = tuple[int, EffectiveServer]


class Compiler:
    """Makes the snapshots of one process, one generation after the other."""

    def __init__(self) -> None:
        self._services = Ids()
        self._servers = Ids()
        self._endpoints = Ids()
        self._generation = 0
        self._is_trial = False
        # Built-in policies are pure: the same input gives the same plan. Most changes concern one service of many.
        self._plans: dict[ServiceIdentity, tuple[object, Plan]] = {}

    def compile(
        self,
        config: Config | Spec,
        interfaces: Sequence[Interface],
        seed: int | None = None,
        measurements: Mapping[str, Measurements] = NOTHING_MEASURED,
    ) -> Snapshot:
        """
        Return the next snapshot.

        Args:
            config: a validated configuration, or a spec.
            interfaces: MAC, MTU and addresses of its interfaces, in its order.
            seed: instead of that of the configuration.
            measurements: by service name, for the policies.

        Raises:
            ConfigError: a VIP or a server has an address of one of the interfaces.
        """
        self._settle()
        try:
            snapshot = self._make(config, interfaces, seed, measurements)
        except BaseException:
            self.undo()
            raise
        self._generation = snapshot.generation
        return snapshot

    def undo(self) -> None:
        """Release the ids that were given for the last snapshot, because it is not published."""
        if self._services.fresh:
            gone = frozenset(self._services.fresh)
            self._plans = {key: plan for key, plan in self._plans.items() if key not in gone}
        for ids in self._tables():
            ids.undo()

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Let the drafts of the block share their new ids, and release these at its end."""
        if self._is_trial:
            yield
            return
        self._settle()
        self._is_trial = True
        try:
            yield
        finally:
            self._is_trial = False
            self.undo()

    def draft(
        self,
        config: Config | Spec,
        interfaces: Sequence[Interface],
        seed: int | None = None,
        measurements: Mapping[str, Measurements] = NOTHING_MEASURED,
    ) -> Snapshot:
        """Return what `compile` would return, for a preview: its generation and new ids are given again later."""
        with self.trial():
            return self._make(config, interfaces, seed, measurements)

    def _make(
        self,
        config: Config | Spec,
        interfaces: Sequence[Interface],
        seed: int | None,
        measurements: Mapping[str, Measurements],
    ) -> Snapshot:
        spec = config if isinstance(config, Spec) else Spec(config)
        present = services(spec)
        require_distinct(present, interfaces)
        services_by_id, servers_by_id, pickers = self._tables_of(present, measurements)
        return part_of(
            Snapshot,
            spec.config,
            generation=self._generation + 1,
            seed=seed_of(spec.config) if seed is None else seed,
            interfaces=tuple(interfaces),
            services=tuple(services_by_id.get(number) for number in range(len(self._services))),
            servers=tuple(servers_by_id.get(number) for number in range(len(self._servers))),
            any_replies=spec.config.cluster.replies == "any",
            timeouts=spec.config.flows.timeouts(),
            ask=functools.partial(_ask, pickers) if pickers else None,
        )

    def _tables_of(
        self, present: Iterable[EffectiveService], measurements: Mapping[str, Measurements]
    ) -> tuple[dict[int, Service], dict[int, Server], dict[str, AskFunction]]:
        """Return services and servers by id, and the pickers by service name."""
        services_by_id: dict[int, Service] = {}
        servers_by_id: dict[int, Server] = {}
        pickers: dict[str, AskFunction] = {}
        for entry in present:
            rows = self._rows(entry)
            service_id = self._services.of(entry.identity)
            plan = self._plan(entry, rows, measurements.get(entry.name, {}))
            services_by_id[service_id] = part_of(Service, entry.config, name=entry.name, plan=plan)
            servers_by_id.update(self._compile_servers(entry, service_id, rows))
            pickers.update(_picker(entry, rows))
        return services_by_id, servers_by_id, pickers

    def would_change(self, service: EffectiveService, measurements: Measurements, snapshot: Snapshot) -> bool:
        """Return whether the policy of a service makes another plan now than the one in a snapshot of this compiler."""
        number = self._services.numbers.get(service.identity)
        published = None if number is None else snapshot.services[number]
        if published is None:
            return True
        with self.trial():
            return published.plan != self._plan(service, self._rows(service), measurements)

    def server_id(self, identity: ServerIdentity) -> int | None:
        """Return the id of a server; None: it has none."""
        return self._servers.numbers.get(identity)

    def server_ids(self, identities: Iterable[ServerIdentity]) -> dict[ServerIdentity, int]:
        """Return the ids of servers; those without one are left out."""
        ids = ((identity, self.server_id(identity)) for identity in identities)
        return {identity: number for identity, number in ids if number is not None}

    def ids(self, kind: IdKind) -> set[int]:
        """Return the ids that servers or services have."""
        return set(self._table(kind).numbers.values())

    def release(self, kind: IdKind, ids: Collection[int]) -> None:
        """
        Release the ids of servers or services that are gone for good. Endpoints keep their ids: a direct connection
        may refer to one (`docs/rules.md` rule 9.1, direct connections), and an id is all that an endpoint costs.

        Args:
            kind: of the ids.
            ids: those that no snapshot in use has and no flow refers to; their counters have been retired.
        """
        gone = frozenset(ids)
        self._table(kind).keep(lambda _, number: number not in gone)
        if kind == "service":
            self._plans = {key: plan for key, plan in self._plans.items() if key in self._services.numbers}

    def _table(self, kind: IdKind) -> Ids:
        return self._servers if kind == "server" else self._services

    def _tables(self) -> tuple[Ids, ...]:
        return self._services, self._servers, self._endpoints

    def _settle(self) -> None:
        for ids in self._tables():
            ids.settle()

    def _rows(self, entry: EffectiveService) -> list[_ServerRow]:
        identity = entry.identity
        return [(self._servers.of((identity, row.config.address, row.config.port)), row) for row in entry.servers]

    def _plan(self, entry: EffectiveService, rows: Sequence[_ServerRow], measurements: Measurements) -> Plan:
        """Return the plan of a service: the previous one if nothing that the policy sees has changed."""
        policy, views = entry.config.policy.make(), entry.views(server_id for server_id, _ in rows)
        if isinstance(policy, UserPolicy):
            # A user's policy may keep state, or have changed on disk.
            return policy.plan(entry.name, views, measurements)
        inputs = (entry.name, entry.config.policy, views, measurements)
        known, plan = self._plans.get(entry.identity) or (None, None)
        if plan is None or known != inputs:
            plan = policy.plan(entry.name, views, measurements)
            self._plans[entry.identity] = (inputs, plan)
        return plan

    def _compile_servers(
        self, entry: EffectiveService, service_id: int, rows: Sequence[_ServerRow]
    ) -> Iterable[tuple[int, Server]]:
        protocol = entry.config.protocol
        for (server_id, row), weight in zip(rows, entry.weights(), strict=True):
            facts = row.config
            address, port = facts.address, facts.port
            endpoint = self._endpoints.of((address, port, protocol))
            more = {key: getattr(facts, key) for key in MORE_OF_SERVER}
            yield (
                server_id,
                Server(row.name, service_id, endpoint, address, port, weight, facts.mac, row.moves_udp, **more),
            )


def seed_of(config: Config) -> int:
    """Return the seed of a configuration, or that of offline work."""
    return OFFLINE_SEED if config.seed is None else config.seed


def _picker(entry: EffectiveService, rows: Sequence[_ServerRow]) -> dict[str, AskFunction]:
    """Return the picker of a service by its name, if its policy picks the server of each new flow itself."""
    policy = entry.config.policy.make()
    if not (isinstance(policy, UserPolicy) and policy.asks):
        return {}
    return {entry.name: policy.picker(entry.name, entry.views(server_id for server_id, _ in rows))}


def _ask(pickers: Mapping[str, AskFunction], service: str, client: str, port: int, names: Sequence[str]) -> str | None:
    return pickers[service](service, client, port, names)


def require_distinct(services: Iterable[EffectiveService], interfaces: Iterable[Interface]) -> None:
    """
    Raise ConfigError when a VIP or server has an address of an interface: the host would answer instead of the
    balancer.
    """
    owners = {address.ip: interface.name for interface in interfaces for address in interface.addresses}
    problems = [
        f"{what}: {address} is an address of {owners[address]}: the host itself would answer"
        for service in services
        for what, address in _named_addresses(service)
        if address in owners
    ]
    if problems:
        raise ConfigError(problems)


def _named_addresses(service: EffectiveService) -> Iterable[tuple[str, Address]]:
    yield f"VIP of service {service.name}", service.config.address
    for server in service.servers:
        yield f"server {service.name}/{server.name}", server.config.address


def offline_interfaces(config: Config) -> tuple[Interface, ...]:
    """
    Return the interfaces as the configuration describes them, for use without sockets.

    Raises:
        ConfigError: an interface has no `mac`, which offline no kernel can tell.
    """
    missing = [entry.name for entry in config.interfaces if entry.mac is None]
    if missing:
        keys = 'mac = "aa:bb:cc:dd:ee:ff", addresses = ["198.18.1.1/24"] and mtu = 1500'
        hint = f"add {keys} (`lb status -o json` shows them; `lb replay` takes --mac, --address, --mtu)"
        raise ConfigError([f"interface {name}: mac is not given, needed offline: {hint}" for name in missing])
    return tuple(offline_interface(entry) for entry in config.interfaces)


def offline_interface(entry: InterfaceConfig) -> Interface:
    """Return an interface as the configuration describes it; its MAC is zero where that is not given."""
    mtu = DEFAULT_MTU_BYTES if entry.mtu is None else entry.mtu
    return part_of(Interface, entry, mac=entry.mac or bytes(6), mtu=mtu, addresses=entry.addresses or ())


def connected_routes(interfaces: Sequence[Interface]) -> tuple[Route, ...]:
    """Return the routes that the addresses of interfaces imply: each prefix is on-link."""
    return tuple(
        Route(address.network, number) for number, interface in enumerate(interfaces) for address in interface.addresses
    )


def offline_next_hops(interfaces: Sequence[Interface], neighbours: Iterable[Neighbour] = ()) -> NextHops:
    """Return next hops without a kernel: connected routes and the given neighbours."""
    return NextHops(connected_routes(interfaces), tuple(neighbours))


def describe_interface(interface: Interface) -> dict[str, object]:
    """Return an interface with the keys that `[[interface]]` has in a configuration."""
    described = {field.name: getattr(interface, field.name) for field in fields(interface)}
    addresses = [str(address) for address in interface.addresses]
    return described | {"mac": format_mac(interface.mac), "addresses": addresses}
