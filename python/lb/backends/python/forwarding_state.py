"""
The forwarding state: a snapshot compiled for lookups, with addresses as bytes and one table per question.

Built once per `publish` and never changed afterwards. `lb.model.snapshot` says what each field of a snapshot means.
"""

from __future__ import annotations

from typing import TypeAlias

from lb.model.snapshot import HASH_SELECTORS, Interface, InterfaceAddress, Plan, Server, Service, Snapshot
from lb.packet.protocols import PROTOCOLS

# (address, port, protocol) of a service or a server.
Socket: TypeAlias = tuple[bytes, int, int]


class ForwardingState:
    """
    Lookup tables over one snapshot.

    Args:
        snapshot: the compiled state of one generation.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.interfaces: tuple[Interface, ...] = snapshot.interfaces
        # By id, without removed ones. A server whose service was removed is left out too.
        self.services: dict[int, Service] = {i: each for i, each in enumerate(snapshot.services) if each is not None}
        self.servers: dict[int, Server] = {
            i: each for i, each in enumerate(snapshot.servers) if each is not None and each.service in self.services
        }
        self.services_by_socket: dict[Socket, int] = {}
        self.endpoints: dict[Socket, int] = {}
        self.services_by_endpoint: dict[int, list[int]] = {}
        # The servers that an endpoint is: one per service that has it.
        self.endpoint_servers: dict[int, list[int]] = {}
        self.servers_by_address: dict[bytes, int] = {}
        for number, service in self.services.items():
            socket = (service.address.packed, service.port, PROTOCOLS[service.protocol])
            self.services_by_socket.setdefault(socket, number)
        self.vips = {address for address, _, _ in self.services_by_socket}
        for number, server in self.servers.items():
            self.add_server(number, server)
        # Endpoints whose packets may belong to a flow that a hash selector would place.
        self.guarded_endpoints = frozenset(
            endpoint
            for endpoint, sharing in self.services_by_endpoint.items()
            if any(self.services[number].plan.selector in HASH_SELECTORS for number in sharing)
        )
        self.own_addresses = {each.packed for interface in self.interfaces for each in interface.addresses}
        self.broadcasts = [broadcasts(interface.addresses) for interface in self.interfaces]
        self.all_broadcasts = frozenset().union(*self.broadcasts)

    def add_server(self, number: int, server: Server) -> None:
        """Add a server to the tables."""
        address = server.address.packed
        protocol = PROTOCOLS[self.services[server.service].protocol]
        self.endpoints[address, server.port, protocol] = server.endpoint
        self.endpoint_servers.setdefault(server.endpoint, []).append(number)
        self.servers_by_address.setdefault(address, number)
        sharing = self.services_by_endpoint.setdefault(server.endpoint, [])
        if server.service not in sharing:
            sharing.append(server.service)
            sharing.sort()

    def is_candidate(self, service: int, server: int) -> bool:
        """Tell whether a service's plan may place flows on a server: it is one of its own."""
        return server in self.servers and self.servers[server].service == service

    def candidates(self, service: int, plan: Plan) -> list[int]:
        """Return the servers that a plan of a service names, each once, in the order of their first slots."""
        return list(dict.fromkeys(slot for slot in plan.slots if self.is_candidate(service, slot)))

    def full_name(self, server: int) -> str:
        """Return SERVICE/SERVER for a server's id."""
        return f"{self.services[self.servers[server].service].name}/{self.servers[server].name}"

    def announces(self, interface: int, address: bytes) -> bool:
        """Tell whether ARP and ND requests for an address on an interface are answered: it is a VIP announced there."""
        return self.interfaces[interface].announce and address in self.vips

    def own_address(self, interface: int, family_bytes: int) -> bytes | None:
        """Return our first address of a family: the interface's if it has one, else that of any interface."""
        for candidate in (self.interfaces[interface], *self.interfaces):
            for address in candidate.addresses:
                if len(address.packed) == family_bytes:
                    return address.packed
        return None


def broadcasts(addresses: tuple[InterfaceAddress, ...]) -> frozenset[bytes]:
    """Return the directed broadcast addresses of some IPv4 prefixes; those of 31 and 32 bits have none (RFC 3021)."""
    return frozenset(
        each.network.broadcast_address.packed
        for each in addresses
        if each.version == 4 and each.network.prefixlen <= 30
    )


def is_martian_source(address: bytes) -> bool:
    """Tell whether no packet on a wire may come from an address (RFC 1812 5.3.7, RFC 4291)."""
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224
    return is_martian_v6(address) or address[0] == 0xFF or is_link_local(address)


def is_martian_destination(address: bytes) -> bool:
    """Tell whether no packet on a wire may go to an address; multicast was sorted out before."""
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 240
    return is_martian_v6(address)


def is_martian_v6(address: bytes) -> bool:
    """Tell whether an IPv6 address is ::, ::1 or an IPv4-mapped one."""
    return (address[:15] == bytes(15) and address[15] <= 1) or address[:12] == bytes(10) + b"\xff\xff"


def is_link_local(address: bytes) -> bool:
    """Tell whether an IPv6 address is in fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_multicast(address: bytes) -> bool:
    """Tell whether an address is in 224/4 or ff00::/8, or is 255.255.255.255."""
    if len(address) == 4:
        return address[0] >> 4 == 14 or address == b"\xff" * 4
    return address[0] == 0xFF
