"""
Compile a configuration into the snapshot that backends work from.

Control side of the walk: `config -> policy -> plan -> snapshot`. The compiler remembers which id it gave to which
service, server and endpoint, so that the same thing keeps its id across reloads and a flow keeps its server
(behaviour 6 and 29). Nothing here looks at the machine: what the interfaces have is an argument.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lb.config import Config, InterfaceConfig, ServerConfig, ServiceConfig
from lb.config_fields import format_mac
from lb.errors import ConfigError
from lb.policies import ServerView
from lb.snapshot import Address, Interface, Neighbour, NextHops, Plan, Route, Server, Service, Snapshot

DEFAULT_MTU_BYTES = 1500

_ServerRow: TypeAlias = tuple[int, ServerConfig]


@dataclass
class _Ids:
    """Gives each key a number of its own, the same one every time. Numbers are never given to another key."""

    numbers: dict[Hashable, int] = field(default_factory=dict)

    def of(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)


class Compiler:
    """Makes the snapshots of one process, one generation after the other."""

    def __init__(self) -> None:
        self._services = _Ids()
        self._servers = _Ids()
        self._endpoints = _Ids()
        self._generation = 0

    def compile(self, config: Config, interfaces: Sequence[Interface], seed: int | None = None) -> Snapshot:
        """
        Make the next snapshot.

        Args:
            config: a validated configuration.
            interfaces: what its interfaces have, in its order.
            seed: takes the place of the configuration's.

        Raises:
            ConfigError: a VIP or a server has an address of one of the interfaces.
        """
        require_distinct(config, interfaces)
        services: dict[int, Service] = {}
        servers: dict[int, Server] = {}
        for entry in config.services:
            service_id = self._services.of((entry.address, entry.port, entry.protocol))
            rows = [(self._servers.of((service_id, row.address, row.port)), row) for row in entry.servers]
            services[service_id] = _service(entry, rows)
            servers.update(self._compile_servers(entry, service_id, rows))
        self._generation += 1
        return Snapshot(
            generation=self._generation,
            seed=config.seed if seed is None else seed,
            interfaces=tuple(interfaces),
            services=tuple(services.get(number) for number in range(len(self._services))),
            servers=tuple(servers.get(number) for number in range(len(self._servers))),
            transit=config.transit,
            answer_echo=config.answer_echo,
            icmp_rate=config.icmp_rate,
            timeouts=config.flows.timeouts(),
        )

    def _compile_servers(
        self, entry: ServiceConfig, service_id: int, rows: Iterable[_ServerRow]
    ) -> Iterable[tuple[int, Server]]:
        for server_id, row in rows:
            endpoint = self._endpoints.of((row.address, row.port, entry.protocol))
            yield server_id, Server(row.name, service_id, endpoint, row.address, row.port, row.weight, row.mac)


def _service(entry: ServiceConfig, rows: Sequence[_ServerRow]) -> Service:
    return Service(entry.name, entry.address, entry.port, entry.protocol, _plan(entry, rows), entry.on_no_server)


def _plan(entry: ServiceConfig, rows: Sequence[_ServerRow]) -> Plan:
    views = [ServerView(server_id, row.name, row.weight, row.state) for server_id, row in rows]
    return entry.policy.make().plan(entry.name, views, {})


def require_distinct(config: Config, interfaces: Iterable[Interface]) -> None:
    """
    Raise ConfigError when a VIP or server has an address of an interface: the host would answer in the balancer's
    place.
    """
    owners = {address.ip: interface.name for interface in interfaces for address in interface.addresses}
    problems = []
    for service in config.services:
        for what, address in ((f"VIP of service {service.name}", service.address), *_server_names(service)):
            if address in owners:
                problems.append(f"{what}: {address} is an address of {owners[address]}: the host itself would answer")
    if problems:
        raise ConfigError(problems)


def _server_names(service: ServiceConfig) -> Iterable[tuple[str, Address]]:
    return ((f"server {service.name}/{server.name}", server.address) for server in service.servers)


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
