"""
What the testbed consists of, as data: segments, hosts, interfaces, addresses and routes.

Nothing here touches the machine; `build.py` turns a topology into namespaces. Addresses come from the blocks reserved
for benchmarks (198.18.0.0/15, RFC 2544; 2001:2::/48, RFC 5180), so they collide with no other network. Every host but
the router has a host route to the router and sends everything else of the testbed through it; no default route leads
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["router", "client", "server"]

DEFAULT_MTU = 1500
DEFAULT_PREFIX = "lb-"
SWITCH = "switch"
ROUTER = "router"
ROUTER_NUMBER = 1
VIP_NUMBER = 100
VIP = IPv4Address("198.18.1.100")
VIP6 = IPv6Address("2001:2:0:1::100")
VIP_PORT = 9876
ECHO_PORT = 7000
CLIENT_NUMBERS = (21, 22, 23, 24, 25)
SERVER_NUMBERS = (31, 32, 33)


@dataclass(frozen=True, slots=True)
class Segment:
    """
    One Ethernet segment: a bridge.

    Args:
        number: the third octet of its IPv4 prefix and the fourth group of its IPv6 prefix.
        wire: it has two interfaces, which are the ends of one cable; there is no bridge.
    """

    number: int
    wire: bool = False

    @property
    def network(self) -> IPv4Network:
        """Its IPv4 prefix."""
        return IPv4Network(f"198.18.{self.number}.0/24")

    @property
    def network6(self) -> IPv6Network:
        """Its IPv6 prefix."""
        return IPv6Network(f"2001:2:0:{self.number}::/64")

    @property
    def bridge(self) -> str:
        """Name of the bridge in the switch's namespace."""
        return f"br{self.number}"

    def address(self, number: int) -> IPv4Address:
        """Return the IPv4 address with this last octet."""
        return self.network[number]

    def address6(self, number: int) -> IPv6Address:
        """Return the IPv6 address whose last group reads like `number` in decimal."""
        return IPv6Address(f"2001:2:0:{self.number}::{number}")


@dataclass(frozen=True, slots=True)
class Interface:
    """
    One interface of a host, plugged into a segment.

    Args:
        number: last octet of its addresses and of its MAC address, both read in decimal.
        mtu: bytes of IP packet, of the link: both its ends get it.
    """

    name: str
    segment: Segment
    number: int
    mtu: int = DEFAULT_MTU

    @property
    def mac(self) -> str:
        """Its MAC address: aa:aa:aa:00:00:NN on the first segment."""
        return f"aa:aa:aa:00:{self.segment.number - 1:02d}:{self.number:02d}"

    @property
    def address(self) -> IPv4Address:
        """Its IPv4 address."""
        return self.segment.address(self.number)

    @property
    def address6(self) -> IPv6Address:
        """Its IPv6 address."""
        return self.segment.address6(self.number)


@dataclass(frozen=True, slots=True)
class Host:
    """
    One machine of the testbed.

    Args:
        interfaces: the router may have several, other hosts have one.
        advmss: bytes, the segment size its TCP announces with any MTU of its link; None: by the MTU.
    """

    name: str
    role: Role
    interfaces: tuple[Interface, ...]
    advmss: int | None = None

    @property
    def address(self) -> IPv4Address:
        """The IPv4 address of its first interface."""
        return self.interfaces[0].address

    @property
    def address6(self) -> IPv6Address:
        """The IPv6 address of its first interface."""
        return self.interfaces[0].address6

    @property
    def web_port(self) -> int:
        """TCP port of its web server, when it is a server: 8000 + last octet."""
        return 8000 + self.interfaces[0].number


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route of a host. `gateway`: None when on-link. `mtu`, `advmss`: bytes, None when the link decides."""

    destination: IPv4Network | IPv6Network
    interface: str
    gateway: IPv4Address | IPv6Address | None = None
    mtu: int | None = None
    advmss: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Segments and hosts. `router_mtus`: (server, MTU) pairs for which the router has a host route with that MTU."""

    segments: tuple[Segment, ...]
    hosts: tuple[Host, ...]
    router_mtus: tuple[tuple[str, int], ...] = ()

    def host(self, name: str) -> Host:
        """Return the host of this name. Raise KeyError when there is none."""
        return {host.name: host for host in self.hosts}[name]

    def of_role(self, role: Role) -> tuple[Host, ...]:
        """Return the hosts of this role, in order."""
        return tuple(host for host in self.hosts if host.role == role)

    def interfaces_of(self, segment: Segment) -> tuple[tuple[Host, Interface], ...]:
        """Return the interfaces plugged into a segment, with their hosts."""
        return tuple(
            (host, interface) for host in self.hosts for interface in host.interfaces if interface.segment == segment
        )

    def interface_addresses(self, host: Host, interface: Interface) -> tuple[IPv4Interface, IPv6Interface]:
        """
        Return an interface's addresses. The router's are on-link prefixes; a host's have no prefix, so that no route
        bypasses the router.
        """
        length, length6 = (24, 64) if host.role == "router" else (32, 128)
        return IPv4Interface((interface.address, length)), IPv6Interface((interface.address6, length6))

    def routes(self, host: Host) -> tuple[RoutePlan, ...]:
        """Return the routes a host needs beside those its addresses bring, in an order in which they can be added."""
        if host.role == "router":
            return self._router_routes(host)
        interface = host.interfaces[0]
        gateways = (interface.segment.address(ROUTER_NUMBER), interface.segment.address6(ROUTER_NUMBER))
        on_link: list[RoutePlan] = [
            RoutePlan(IPv4Network(gateways[0]), interface.name),
            RoutePlan(IPv6Network(gateways[1]), interface.name),
        ]
        for segment in self.segments:
            on_link.append(RoutePlan(segment.network, interface.name, gateways[0], advmss=host.advmss))
            on_link.append(RoutePlan(segment.network6, interface.name, gateways[1], advmss=host.advmss))
        return tuple(on_link)

    def _router_routes(self, router: Host) -> tuple[RoutePlan, ...]:
        interface_of = {interface.segment: interface.name for interface in router.interfaces}
        routes: list[RoutePlan] = []
        for name, mtu in self.router_mtus:
            server = self.host(name)
            interface = interface_of[server.interfaces[0].segment]
            routes.append(RoutePlan(IPv4Network(server.address), interface, mtu=mtu))
            routes.append(RoutePlan(IPv6Network(server.address6), interface, mtu=mtu))
        return tuple(routes)


def one_segment(server_mtu: int | None = None, server_advmss: int | None = None) -> Topology:
    """
    Return the course's testbed: everything on one segment, a router with one arm.

    Args:
        server_mtu: bytes, of the servers' links; the router then has a route with this MTU to each. None: 1500.
        server_advmss: bytes, the TCP segment size that servers announce; None: what their MTU gives.
    """
    segment = Segment(1)
    router = Host(ROUTER, "router", (Interface("eth0", segment, ROUTER_NUMBER),))
    servers = _servers(segment, server_mtu or DEFAULT_MTU, server_advmss)
    mtus = () if server_mtu is None else tuple((server.name, server_mtu) for server in servers)
    return Topology((segment,), (router, *_clients(segment), *servers), mtus)


def two_segments(server_mtu: int | None = None, server_advmss: int | None = None) -> Topology:
    """
    Return a testbed whose router has two arms: clients behind eth0 (198.18.1.0/24), servers behind eth1
    (198.18.2.0/24).

    Args:
        server_mtu: bytes, of the whole second segment, the router's eth1 included. None: 1500.
        server_advmss: bytes, the TCP segment size that servers announce; None: what their MTU gives.
    """
    front, back = Segment(1), Segment(2)
    mtu = server_mtu or DEFAULT_MTU
    arms = (Interface("eth0", front, ROUTER_NUMBER), Interface("eth1", back, ROUTER_NUMBER, mtu))
    hosts = (Host(ROUTER, "router", arms), *_clients(front), *_servers(back, mtu, server_advmss))
    return Topology((front, back), hosts)


def straight_path() -> Topology:
    """Return one client and one server with the router between them, joined by cables: for packet rates."""
    front, back = Segment(1, wire=True), Segment(2, wire=True)
    arms = (Interface("eth0", front, ROUTER_NUMBER), Interface("eth1", back, ROUTER_NUMBER))
    client, server = _clients(front)[0], _servers(back, DEFAULT_MTU, None)[0]
    return Topology((front, back), (Host(ROUTER, "router", arms), client, server))


def _clients(segment: Segment) -> tuple[Host, ...]:
    return tuple(
        Host(f"client{number - 20}", "client", (Interface("eth0", segment, number),)) for number in CLIENT_NUMBERS
    )


def _servers(segment: Segment, mtu: int, advmss: int | None) -> tuple[Host, ...]:
    return tuple(
        Host(f"server{number - 30}", "server", (Interface("eth0", segment, number, mtu),), advmss)
        for number in SERVER_NUMBERS
    )
