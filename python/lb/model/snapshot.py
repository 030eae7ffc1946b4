"""
What a backend is given: the immutable, compiled state it works from.

Control side of the walk: `config -> policy -> plan -> snapshot -> publish`. A snapshot is deterministic data: no
socket, file or clock is behind it. Ids are positions in its tuples; the same thing keeps its id in every later
snapshot of one process, a removed one leaves `None`. Next hops change with the kernel's neighbour table, far more
often than the configuration: they are published apart, as `NextHops`. What a configuration says has no default here:
`lb.config.model` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal, TypeAlias, get_args

Address: TypeAlias = IPv4Address | IPv6Address
InterfaceAddress: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network
Selector: TypeAlias = Literal["counter", "random", "hash-source", "hash-flow", "least", "two-choices", "ask"]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
HASH_SELECTORS: frozenset[Selector] = frozenset({"hash-source", "hash-flow"})
Protocol: TypeAlias = Literal["tcp", "udp"]
# What a client gets when its packet is refused, and what becomes of packets of no service.
Refusal: TypeAlias = Literal["reset", "drop"]
Transit: TypeAlias = Literal["drop", "forward"]

DEFAULT_WEIGHT = 1

ASK_DEADLINE_NS = 5_000_000
# (service name, client address, client port, candidate server names) -> server name
AskFunction: TypeAlias = Callable[[str, str, int, Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    All that a backend needs to place a new flow.

    Args:
        selector: how a slot is picked; see `docs/rules.md` rule 8, flows.
        slots: server ids, repeated as weights demand. Empty: no server is available.
        scores: one positive integer per slot, lower is better; only `two-choices` reads it. Empty: all 1.
        fallback: decides when an `ask` fails.
        deadline_ns: what an `ask` has to answer in, while packets come from sockets; offline there is no clock to hold
            against it.
    """

    selector: Selector
    slots: tuple[int, ...]
    scores: tuple[int, ...] = ()
    fallback: Plan | None = None
    deadline_ns: int = ASK_DEADLINE_NS


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface. `mac`: 6 bytes; `mtu`: bytes of IP packet; `addresses`: with their prefix length."""

    name: str
    mac: bytes
    mtu: int
    addresses: tuple[InterfaceAddress, ...] = ()
    announce: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """
    A real machine behind a service. `mac`: 6 bytes, or None when the neighbour table is asked. `endpoint`: id of
    (address, port, protocol). `moves_udp`: it was removed, or drained for its time: UDP flows leave it with the next
    packet of their client.
    """

    name: str
    service: int
    endpoint: int
    address: Address
    port: int
    weight: int = DEFAULT_WEIGHT
    mac: bytes | None = None
    moves_udp: bool = False


@dataclass(frozen=True, slots=True)
class NewFlowLimit:
    """
    How many new flows clients of one prefix may begin (`docs/rules.md` rule 8.22, limits of new flows). `rate`: per
    second; `burst`: at once, after a pause; both at least 1. `prefix_ipv4`, `prefix_ipv6`: bits.
    """

    rate: int
    burst: int
    prefix_ipv4: int
    prefix_ipv6: int


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP, port and protocol, with the plan that places its flows."""

    name: str
    address: Address
    port: int
    protocol: Protocol
    plan: Plan
    on_no_server: Refusal
    on_no_flow: Refusal
    new_flow_limit: NewFlowLimit | None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Idle timeouts and the eviction floor of flows, in nanoseconds (`docs/rules.md` rule 8, flows)."""

    half_open_ns: int
    established_ns: int
    closing_ns: int
    udp_ns: int
    idle_floor_ns: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The compiled state of one generation. `services` and `servers` are indexed by id; None marks a removed one."""

    generation: int
    seed: int
    interfaces: tuple[Interface, ...]
    services: tuple[Service | None, ...]
    servers: tuple[Server | None, ...]
    transit: Transit
    answer_echo: bool
    any_replies: bool
    icmp_rate: int
    timeouts: Timeouts
    ask: AskFunction | None = None

    def vips(self) -> frozenset[Address]:
        """Return the addresses of all services."""
        return frozenset(service.address for service in self.services if service is not None)


# What a data path has before anything was published: no interface, so no frame is for it.
EMPTY = Snapshot(
    generation=0,
    seed=0,
    interfaces=(),
    services=(),
    servers=(),
    transit="drop",
    answer_echo=False,
    any_replies=False,
    icmp_rate=0,
    timeouts=Timeouts(*(0 for _ in fields(Timeouts))),
)


@dataclass(frozen=True, slots=True)
class Route:
    """A route to a prefix. `interface`: id; `gateway`: None when on-link; `mtu`: bytes, None for the interface's."""

    prefix: Network
    interface: int
    gateway: Address | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A resolved link-layer address. `interface`: id; `mac`: 6 bytes."""

    interface: int
    address: Address
    mac: bytes


@dataclass(frozen=True, slots=True)
class NextHops:
    """Where packets go next: routes, in order of preference among equal prefix lengths, and resolved neighbours."""

    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
