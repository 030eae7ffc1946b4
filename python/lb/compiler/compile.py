"""
Compile a configuration into the snapshot that backends work from.

Control side of the walk: `config -> desired -> policy -> plan -> snapshot`. The compiler remembers which id it gave to
which service, server and endpoint, so that the same thing keeps its id across reloads and a flow keeps its server
(behaviour 6 and 29). Nothing here looks at the machine: what the interfaces have is an argument.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lb.compiler.spec import Desired, ServerIdentity, ServerNow, ServiceIdentity, ServiceNow, services
from lb.config import Config, InterfaceConfig
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
# Of a configuration without a seed, where none was drawn: offline, the same input gives the same output.
OFFLINE_SEED = 1

NOTHING_MEASURED: Mapping[str, Measurements] = {}

# What ids are recycled of.
IdKind: TypeAlias = Literal["server", "service"]

_ServerRow: TypeAlias = tuple[int, ServerNow]


@dataclass
class _Ids:
    """
    Gives each key a number of its own, the same one every time. Another key gets a number only after it was released;
    the smallest first, so that tables stay short. `free`: a heap of those below `size` that no key has; `fresh`: the
    keys that got a number since `settle`.
    """

    numbers: dict[Hashable, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    size: int = 0
    fresh: list[Hashable] = field(default_factory=list)

    def of(self, key: Hashable) -> int:
        number = self.numbers.get(key)
        if number is None:
            number = heapq.heappop(self.free) if self.free else self.size
            self.numbers[key] = number
            self.size = max(self.size, number + 1)
            self.fresh.append(key)
        return number

    def settle(self) -> None:
        """Leave the numbers that were given so far to their keys."""
        self.fresh.clear()

    def undo(self) -> None:
        """Release the numbers that were given since `settle`."""
        if self.fresh:
            gone = frozenset(self.fresh)
            self.keep(lambda key, _: key not in gone)
            self.fresh.clear()

    def keep(self, is_kept: Callable[[Hashable, int], bool]) -> None:
        """Release all numbers but those of the keys that are kept."""
        self.numbers = {key: number for key, number in self.numbers.items() if is_kept(key, number)}
        self.size = max(self.numbers.values(), default=-1) + 1
        self.free = sorted(set(range(self.size)) - set(self.numbers.values()))

    def __len__(self) -> int:
        return self.size


class Compiler:
    """Makes the snapshots of one process, one generation after the other."""

    def __init__(self) -> None:
        self._services = _Ids()
        self._servers = _Ids()
        self._endpoints = _Ids()
        self._generation = 0
        self._is_trial = False
        # Policies of ours are pure: the same question has the same answer. Most changes concern one service of many.
        self._plans: dict[ServiceIdentity, tuple[object, Plan]] = {}

    def compile(
        self,
        config: Config | Desired,
        interfaces: Sequence[Interface],
        seed: int | None = None,
        measurements: Mapping[str, Measurements] = NOTHING_MEASURED,
    ) -> Snapshot:
        """
        Make the next snapshot.

        Args:
            config: a validated configuration, or one with what is wanted and known beyond it.
            interfaces: what its interfaces have, in its order.
            seed: takes the place of the configuration's.
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
        """Take back the ids that were given for the last snapshot, which is not published after all."""
        if self._services.fresh:
            gone = frozenset(self._services.fresh)
            self._plans = {key: plan for key, plan in self._plans.items() if key not in gone}
        for ids in self._tables():
            ids.undo()

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Have the drafts of the block agree about ids, and take none for good."""
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
        config: Config | Desired,
        interfaces: Sequence[Interface],
        seed: int | None = None,
        measurements: Mapping[str, Measurements] = NOTHING_MEASURED,
    ) -> Snapshot:
        """Make what `compile` would make, to look at: its generation and its new ids will be another's too."""
        with self.trial():
            return self._make(config, interfaces, seed, measurements)

    def _make(
        self,
        config: Config | Desired,
        interfaces: Sequence[Interface],
        seed: int | None,
        measurements: Mapping[str, Measurements],
    ) -> Snapshot:
        desired = config if isinstance(config, Desired) else Desired(config)
        present = services(desired)
        require_distinct(present, interfaces)
        service_table: dict[int, Service] = {}
        server_table: dict[int, Server] = {}
        choosers: dict[str, AskFunction] = {}
        for entry in present:
            rows = self._rows(entry)
            service_id = self._services.of(entry.identity)
            service_table[service_id] = _service(entry, self._plan(entry, rows, measurements.get(entry.name, {})))
            server_table.update(self._compile_servers(entry, service_id, rows))
            choosers.update(_chooser(entry, rows))
        facts = desired.config
        return Snapshot(
            generation=self._generation + 1,
            seed=seed_of(facts) if seed is None else seed,
            interfaces=tuple(interfaces),
            services=tuple(service_table.get(number) for number in range(len(self._services))),
            servers=tuple(server_table.get(number) for number in range(len(self._servers))),
            transit=facts.transit,
            answer_echo=facts.answer_echo,
            icmp_rate=facts.icmp_rate,
            timeouts=facts.flows.timeouts(),
            ask=functools.partial(_ask, choosers) if choosers else None,
        )

    def would_change(self, service: ServiceNow, measurements: Measurements, snapshot: Snapshot) -> bool:
        """Tell whether a service's policy plans otherwise now than what a snapshot of this compiler has."""
        number = self._services.numbers.get(service.identity)
        published = None if number is None else snapshot.services[number]
        if published is None:
            return True
        with self.trial():
            return published.plan != self._plan(service, self._rows(service), measurements)

    def server_id(self, identity: ServerIdentity) -> int | None:
        """Return the id of a server; None: no snapshot in use has it, and no flow refers to it."""
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
        Let others have the ids of servers or services that are gone for good. Endpoints keep theirs: a direct
        connection may refer to one (`docs/datapath.md` rule 9.1), and an id is all that one costs.

        Args:
            kind: what they are of.
            ids: those that no snapshot in use has and no flow refers to; their counters have been retired.
        """
        gone = frozenset(ids)
        self._table(kind).keep(lambda _, number: number not in gone)
        if kind == "service":
            self._plans = {key: plan for key, plan in self._plans.items() if key in self._services.numbers}

    def _table(self, kind: IdKind) -> _Ids:
        return self._servers if kind == "server" else self._services

    def _tables(self) -> tuple[_Ids, ...]:
        return self._services, self._servers, self._endpoints

    def _settle(self) -> None:
        for ids in self._tables():
            ids.settle()

    def _rows(self, entry: ServiceNow) -> list[_ServerRow]:
        identity = entry.identity
        return [(self._servers.of((identity, row.config.address, row.config.port)), row) for row in entry.servers]

    def _plan(self, entry: ServiceNow, rows: Sequence[_ServerRow], measurements: Measurements) -> Plan:
        """Return a service's plan: the one of last time if nothing that the policy sees has changed."""
        policy, views = entry.config.policy.make(), entry.views(server_id for server_id, _ in rows)
        if isinstance(policy, UserPolicy):
            # It may remember things, or have changed on disk.
            return policy.plan(entry.name, views, measurements)
        question = (entry.name, entry.config.policy, views, measurements)
        known, plan = self._plans.get(entry.identity) or (None, None)
        if plan is None or known != question:
            plan = policy.plan(entry.name, views, measurements)
            self._plans[entry.identity] = (question, plan)
        return plan

    def _compile_servers(
        self, entry: ServiceNow, service_id: int, rows: Sequence[_ServerRow]
    ) -> Iterable[tuple[int, Server]]:
        for (server_id, row), weight in zip(rows, entry.weights(), strict=True):
            facts = row.config
            endpoint = self._endpoints.of((facts.address, facts.port, entry.config.protocol))
            yield (
                server_id,
                Server(row.name, service_id, endpoint, facts.address, facts.port, weight, facts.mac, row.moves_udp),
            )


def seed_of(config: Config) -> int:
    """Return the seed that a configuration has, or the one of offline work."""
    return OFFLINE_SEED if config.seed is None else config.seed


def _service(entry: ServiceNow, plan: Plan) -> Service:
    facts = entry.config
    answers = (facts.on_no_server, facts.on_no_flow)
    return Service(entry.name, facts.address, facts.port, facts.protocol, plan, *answers)


def _chooser(entry: ServiceNow, rows: Sequence[_ServerRow]) -> dict[str, AskFunction]:
    """Return what is asked about each new flow of a service, by its name, if its policy wants to be."""
    policy = entry.config.policy.make()
    if not (isinstance(policy, UserPolicy) and policy.asks):
        return {}
    return {entry.name: policy.chooser(entry.name, entry.views(server_id for server_id, _ in rows))}


def _ask(choosers: Mapping[str, AskFunction], service: str, client: str, port: int, names: Sequence[str]) -> str | None:
    return choosers[service](service, client, port, names)


def require_distinct(services: Iterable[ServiceNow], interfaces: Iterable[Interface]) -> None:
    """
    Raise ConfigError when a VIP or server has an address of an interface: the host would answer in the balancer's
    place.
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


def _named_addresses(service: ServiceNow) -> Iterable[tuple[str, Address]]:
    yield f"VIP of service {service.name}", service.config.address
    for server in service.servers:
        yield f"server {service.name}/{server.name}", server.config.address


def offline_interfaces(config: Config) -> tuple[Interface, ...]:
    """
    Return the interfaces as the configuration describes them, for work without sockets.

    Raises:
        ConfigError: an interface has no `mac`: offline there is no kernel to ask.
    """
    missing = [entry.name for entry in config.interfaces if entry.mac is None]
    if missing:
        keys = 'mac = "aa:bb:cc:dd:ee:ff", addresses = ["198.18.1.1/24"] and mtu = 1500'
        hint = f"add {keys} (`lb status -o json` shows them; `lb replay` takes --mac, --address, --mtu)"
        raise ConfigError([f"interface {name}: mac is not given, needed offline: {hint}" for name in missing])
    return tuple(_offline_interface(entry) for entry in config.interfaces)


def _offline_interface(entry: InterfaceConfig) -> Interface:
    mtu = DEFAULT_MTU_BYTES if entry.mtu is None else entry.mtu
    return Interface(entry.name, entry.mac or bytes(6), mtu, entry.addresses or (), entry.announce)


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
    return {
        "name": interface.name,
        "mac": format_mac(interface.mac),
        "mtu": interface.mtu,
        "addresses": [str(address) for address in interface.addresses],
        "announce": interface.announce,
    }
