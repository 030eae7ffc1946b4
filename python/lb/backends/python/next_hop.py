"""
Next hops: routes, neighbours, and the packets that wait for a neighbour.

Last stage but one of the walk (`docs/rules.md` rule 11, next hop). Routes and neighbours are the kernel's, read on the
control side. Nothing is resolved here: `take_unresolved` returns the neighbours that the control side is to resolve. A
waiting packet is complete but for its destination MAC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from lb.backends.python.forwarding_state import ForwardingState
from lb.model.snapshot import Address, NextHops, Route
from lb.packet.offload import Offload

WAITING_PER_HOP = 3
WAITING_HOPS = 256
WAITING_NS = 3 * 10**9
UNKNOWN_MAC = bytes(6)


class Output(NamedTuple):
    """A frame to send through the interface with an id."""

    interface: int
    frame: bytes
    offload: Offload | None


class Hop(NamedTuple):
    """The next hop of a packet. `address`: 4 or 16 bytes, to be resolved while `mac` is None. `mtu`: bytes of IP."""

    interface: int
    address: bytes
    mac: bytes | None
    mtu: int


class HopTable:
    """
    Routes and neighbours, ready to be looked up.

    Args:
        forwarding: tells the interfaces; routes through others are left out.
        next_hops: what the kernel knows.
    """

    def __init__(self, forwarding: ForwardingState, next_hops: NextHops) -> None:
        self.forwarding = forwarding
        self.neighbours = {(each.interface, each.address.packed): each.mac for each in next_hops.neighbours}
        # (address bytes, prefix length) -> network number -> route.
        self.prefixes: dict[tuple[int, int], dict[int, Route]] = {}
        for route in next_hops.routes:
            if route.interface < len(forwarding.interfaces):
                size, length = len(route.prefix.network_address.packed), route.prefix.prefixlen
                networks = self.prefixes.setdefault((size, length), {})
                networks.setdefault(int(route.prefix.network_address) >> (size * 8 - length), route)
        self.longest_first = sorted(self.prefixes, reverse=True)

    def route(self, address: bytes) -> Route | None:
        """Return the most specific route to an address, the first of equals."""
        number = int.from_bytes(address, "big")
        for size, length in self.longest_first:
            if size == len(address):
                found = self.prefixes[size, length].get(number >> (size * 8 - length))
                if found is not None:
                    return found
        return None

    def to_address(self, address: bytes) -> Hop | None:
        """Return the next hop to an address; None: no route."""
        route = self.route(address)
        if route is None:
            return None
        hop = address if route.gateway is None else route.gateway.packed
        return Hop(route.interface, hop, self.neighbours.get((route.interface, hop)), self.mtu(route))

    def to_server(self, number: int) -> Hop | None:
        """Return the next hop to the server with an id; the server itself when its MAC is configured."""
        server = self.forwarding.servers[number]
        if server.mac is None:
            return self.to_address(server.address.packed)
        route = self.route(server.address.packed)
        if route is None:
            return Hop(0, server.address.packed, server.mac, self.forwarding.interfaces[0].mtu)
        return Hop(route.interface, server.address.packed, server.mac, self.mtu(route))

    def reply_next_hop(self, ingress: tuple[int, bytes] | None, client: bytes) -> Hop | None:
        """
        Return the next hop to a client: its ingress neighbour (interface id, MAC) if known, else by route; where any
        balancer translates any reply, by route.
        """
        if self.forwarding.snapshot.any_replies or ingress is None or ingress[0] >= len(self.forwarding.interfaces):
            return self.to_address(client)
        interface, mac = ingress
        return Hop(interface, client, mac, self.forwarding.interfaces[interface].mtu)

    def mtu(self, route: Route) -> int:
        """Return the MTU of a route: its own or its interface's, whichever is smaller."""
        mtu = self.forwarding.interfaces[route.interface].mtu
        return mtu if route.mtu is None else min(mtu, route.mtu)


class Waited(NamedTuple):
    """A packet that waits: one frame or several fragments, and the ICMP error sent if the neighbour does not answer."""

    frames: list[Output]
    notice: Output | None


@dataclass(slots=True)
class WaitingHop:
    """
    A neighbour that is not known yet, and the packets that wait for it. `failed`: it did not answer in time, and
    nothing waits; `asked_again`: it is being resolved once more. `since_ns`: when resolution began, or failed.
    """

    since_ns: int
    packets: list[Waited] = field(default_factory=list)
    failed: bool = False
    asked_again: bool = False


class Waiting:
    """
    Packets whose next hop has no known MAC yet, by (interface id, address), in order of the first one's arrival or of
    their failure. `asked` counts hops.
    """

    def __init__(self) -> None:
        self.hops: dict[tuple[int, bytes], WaitingHop] = {}
        self.unresolved: dict[tuple[int, bytes], None] = {}  # in order; a set that keeps it
        self.asked = 0

    def hold(self, hop: Hop, frames: list[Output], notice: Output | None, now_ns: int) -> bool:
        """
        Let the frames of one packet wait.

        Args:
            hop: the next hop.
            frames: of the packet.
            notice: an ICMP error for the packet's sender, sent if the neighbour does not answer; None: nothing.
            now_ns: monotonic nanoseconds.

        Returns:
            Whether there was room and the neighbour has not failed.
        """
        key = (hop.interface, hop.address)
        waiting = self.hops.get(key)
        if waiting is not None and waiting.failed:
            if not waiting.asked_again:
                waiting.asked_again = True
                self.ask(key)
            return False
        if waiting is None:
            if len(self.hops) >= WAITING_HOPS and not self.forget_failed():
                return False
            waiting = self.hops[key] = WaitingHop(now_ns)
            self.ask(key)
        if len(waiting.packets) >= WAITING_PER_HOP:
            return False
        waiting.packets.append(Waited(frames, notice))
        return True

    def ask(self, key: tuple[int, bytes]) -> None:
        """Add a hop to those to be resolved."""
        self.unresolved[key] = None
        self.asked += 1

    def has_failed(self, hop: Hop) -> bool:
        """Tell whether a neighbour did not answer in time."""
        waiting = self.hops.get((hop.interface, hop.address))
        return waiting is not None and waiting.failed

    def forget_failed(self) -> bool:
        """Forget the neighbour that failed first, to make room; tell whether there was one."""
        failed = next((key for key, waiting in self.hops.items() if waiting.failed), None)
        if failed is None:
            return False
        self.remove(failed)
        return True

    def remove(self, key: tuple[int, bytes]) -> WaitingHop:
        """Take out a hop; it is not to be resolved any more."""
        self.unresolved.pop(key, None)
        return self.hops.pop(key)

    def expire(self, now_ns: int) -> list[Waited]:
        """Return the packets that waited too long; their neighbours count as failed, for as long again."""
        given_up: list[Waited] = []
        for key, waiting in list(self.hops.items()):
            if now_ns - waiting.since_ns < WAITING_NS:
                break
            given_up += self.remove(key).packets
            if not waiting.failed:
                self.hops[key] = WaitingHop(now_ns, failed=True)
        return given_up

    def release(self, neighbours: dict[tuple[int, bytes], bytes]) -> list[list[Output]]:
        """Take out the packets whose neighbour is known now, addressed to it, in order."""
        packets = []
        for key in [key for key in self.hops if key in neighbours]:
            for waited in self.remove(key).packets:
                packets.append([each._replace(frame=neighbours[key] + each.frame[6:]) for each in waited.frames])
        return packets

    def take_unresolved(self) -> list[tuple[int, Address]]:
        """Return the hops to resolve that were not returned before."""
        taken, self.unresolved = self.unresolved, {}
        return [(interface, ip_address(address)) for interface, address in taken]
