"""
The kernel's interfaces, routes and neighbours, read and watched over netlink (`pyroute2`).

Control side of the walk: it feeds `snapshot.interfaces` and the data path's `NextHops`. After any change that the
kernel tells of, everything is read anew and handed on when it differs, 1 s after the change at the latest (rule 11,
next hop); a burst of events is one reading. The kernel resolves neighbours in our stead: asked with NTF_USE it sends
the ARP requests or neighbour solicitations itself, and keeps the entry fresh. Rules that choose between routing tables
are left out: only the main table is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lb.config import Config, InterfaceConfig
from lb.config.parts import part_of
from lb.errors import InterfaceError, LbError, PrivilegeError
from lb.model.snapshot import Address, Interface, InterfaceAddress, Neighbour, NextHops, Route
from lb.net.big_tcp import find_big_tcp

MAIN_TABLE = 254
UNICAST_ROUTE = 1
ARPHRD_ETHER = 1
# linux/neighbour.h: states whose MAC may be used (REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT), those of entries
# that are never verified (NOARP, PERMANENT), and the flag that asks.
USABLE_STATES = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
FIXED_STATES = 0x40 | 0x80
NTF_USE = 1
# linux/rtnetlink.h: RTNH_F_DEAD, which the kernel does not use, and RTNH_F_LINKDOWN: its cable is out. That one the
# kernel uses all the same, unless it is told to ignore such ways (then it is dead, too).
DEAD_WAY, WAY_WITHOUT_CARRIER = 0x01, 0x10
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000

# Events gather for this long before the tables are read: a burst of a thousand is one reading.
GATHER_S = 0.05
# After a reading: of thousands of neighbours some change at any time, and to read all takes a while.
REST_S = 0.2
# Hops in use are shown to the kernel this often, well within its 30 s or so of believing an entry (RFC 4861 reachable
# time).
REFRESH_S = 15.0
# While servers are resolved at start: between two looks.
SETTLE_STEP_S = 0.01
# After a broken event stream: before it is opened again.
REOPEN_S = 0.2

log = logging.getLogger(__name__)


class Tasks(Protocol):
    """Keeps background tasks running: `lb.control.tasks.Supervisor`."""

    def run(self, name: str, job: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run a job until it returns, and start it again whenever it raises."""


class Kernel:
    """
    Reads the kernel's tables for a set of interfaces, and tells of changes. Belongs to one asyncio loop.

    Args:
        config: names the interfaces; what it says about them (mac, addresses, mtu) wins over what the kernel says.
    """

    def __init__(self, config: Config) -> None:
        self._entries = config.interfaces
        self._netlink = AsyncIPRoute()
        # The kernel gives a socket one table at a time: EBUSY for a second (netlink(7), a dump in progress).
        self._dumping = asyncio.Lock()
        self._indices: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._next_hops = NextHops()
        self._interfaces: tuple[Interface, ...] = ()
        self._in_use: tuple[Address, ...] = ()
        self._fixed: set[tuple[int, Address]] = set()
        # Indices of links: those without a carrier when they were read last; those that were without one before, or
        # since; those that are back; and of these, those whose neighbours were read since: their hops are to be asked
        # for.
        self._out: set[int] = set()
        self._were_out: set[int] = set()
        self._returned: set[int] = set()
        self._back: set[int] = set()
        self._is_back = asyncio.Event()
        self._looked_at: set[str] = set()

    async def read_interfaces(self) -> tuple[Interface, ...]:
        """
        Return the configured interfaces as they are now, in the configuration's order.

        Raises:
            InterfaceError: one does not exist, is down or is not of Ethernet.
            LbError: one is not the same as at the last call, though it has the same name.
        """
        links = {link.get("ifname"): link for link in await self._dump("get_links")}
        addresses = await self._dump("get_addr")
        found = [self._interface(entry, links, addresses) for entry in self._entries]
        indices = {links[entry.name]["index"]: number for number, entry in enumerate(self._entries)}
        if self._indices and indices != self._indices:
            raise LbError("an interface was removed and created again, so its sockets are dead: restart the balancer")
        self._indices = indices
        self._interfaces = tuple(found)
        self._out = {links[entry.name]["index"] for entry in self._entries if not _has_carrier(links[entry.name])}
        return self._interfaces

    def _interface(self, entry: InterfaceConfig, links: dict[str, Any], addresses: list[Any]) -> Interface:
        link = links.get(entry.name)
        if link is None:
            names = ", ".join(sorted(links))
            raise InterfaceError(f"there is no interface {entry.name!r} here; there are: {names}")
        if link["ifi_type"] != ARPHRD_ETHER:
            raise InterfaceError(f"{entry.name} is not an Ethernet interface")
        if not link["flags"] & IFF_UP:
            raise InterfaceError(f"{entry.name} is down: `ip link set {entry.name} up`")
        if entry.name not in self._looked_at:
            self._looked_at.add(entry.name)
            if (big := find_big_tcp(entry.name)) is not None:
                log.warning("%s: %s: `%s`", entry.name, big.message, big.fix)
        own = [_interface_address(row) for row in addresses if row["index"] == link["index"]]
        # What we answer comes from the first address of its family: never from a link-local one while there is another.
        own.sort(key=lambda address: address.is_link_local)
        return part_of(
            Interface,
            entry,
            mac=entry.mac or _mac(link.get("address")) or bytes(6),
            mtu=entry.mtu or link.get("mtu"),
            addresses=tuple(own) if entry.addresses is None else entry.addresses,
        )

    @property
    def next_hops(self) -> NextHops:
        """The routes and neighbours as they were read last."""
        return self._next_hops

    async def read_next_hops(self) -> NextHops:
        """Return the routes and neighbours of the interfaces as they are now. Call `read_interfaces` first."""
        rows = [
            row for family in (4, 6) for row in await self._dump("get_routes", family=_family(family), table=MAIN_TABLE)
        ]
        routes = [(row.get("priority") or 0, route) for row in rows if (route := self._route(row)) is not None]
        routes.sort(key=lambda pair: pair[0])
        rows = await self._dump("get_neighbours")
        neighbours = [self._neighbour(row) for row in rows]
        fixed = [entry for row, entry in zip(rows, neighbours, strict=True) if entry and row["state"] & FIXED_STATES]
        self._fixed = {(entry.interface, entry.address) for entry in fixed}
        self._next_hops = NextHops(
            tuple(route for _, route in routes), tuple(entry for entry in neighbours if entry is not None)
        )
        return self._next_hops

    def _route(self, row: Any) -> Route | None:
        """
        Return a route of the main table, or None when it is not usable here. Of a multipath route, the first next hop
        counts.
        """
        if row["type"] != UNICAST_ROUTE or row.get("table") != MAIN_TABLE:
            return None
        ways = row.get("multipath") or [row]
        usable = sorted(
            (way for way in ways if not way["flags"] & DEAD_WAY), key=lambda way: way["flags"] & WAY_WITHOUT_CARRIER
        )
        hop = usable[0] if usable else None
        number = None if hop is None else self._indices.get(hop.get("oif"))
        # RTA_VIA: a gateway of the other family, which the data path has no use for.
        if hop is None or number is None or hop.get("via") is not None:
            return None
        gateway = hop.get("gateway")
        metrics = row.get("metrics")
        mtu = metrics.get("mtu") if metrics else None
        default = "0.0.0.0" if row["family"] == _family(4) else "::"
        prefix = ip_network((row.get("dst") or default, row["dst_len"]))
        return Route(prefix, number, ip_address(gateway) if gateway else None, mtu)

    def _neighbour(self, row: Any) -> Neighbour | None:
        number, mac, address = self._indices.get(row["ifindex"]), _mac(row.get("lladdr")), row.get("dst")
        if number is None or mac is None or address is None or not row["state"] & USABLE_STATES:
            return None
        # Multicast entries are of no use to a unicast packet; a zero or group MAC is none of a host.
        if mac[0] & 1 or not any(mac):
            return None
        return Neighbour(number, ip_address(address), mac)

    async def _dump(self, what: str, **arguments: Any) -> list[Any]:
        async with self._dumping:
            return [row async for row in await getattr(self._netlink, what)(**arguments)]

    def configure(self, config: Config) -> None:
        """Use another configuration of the same interfaces from the next `read_interfaces` on."""
        self._entries = config.interfaces

    def use(self, addresses: Iterable[Address]) -> None:
        """Keep the next hops to these addresses resolved from now on, instead of those given before."""
        self._in_use = tuple(dict.fromkeys(addresses))

    async def refresh(self) -> None:
        """Show the kernel every hop in use, so that it resolves and verifies them. Errors: as `resolve`."""
        for number, hop in {found for address in self._in_use if (found := find_hop(self._next_hops, address))}:
            await self.resolve(number, hop)

    async def settle(self, longest_s: float) -> NextHops:
        """
        Have the hops in use resolved, and wait for it: but not longer than `longest_s` for hosts that do not answer.

        Returns:
            The next hops as they are then. Errors: as `resolve`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + longest_s
        await self.read_next_hops()
        await self.refresh()
        while self._unresolved() and loop.time() < deadline:
            await asyncio.sleep(SETTLE_STEP_S)
            await self.read_next_hops()
        return self._next_hops

    def _unresolved(self) -> set[tuple[int, Address]]:
        """Return the hops in use that have no neighbour entry."""
        hops = {found for address in self._in_use if (found := find_hop(self._next_hops, address))}
        return hops - {(entry.interface, entry.address) for entry in self._next_hops.neighbours}

    async def resolve(self, interface: int, hop: Address) -> None:
        """
        Ask the kernel to resolve a neighbour, or to verify what it knows of it.

        Args:
            interface: its id.
            hop: an address on the link.

        Raises:
            PrivilegeError: this process may not ask.
        """
        # Asked about an entry that was set by hand, the kernel makes it an ordinary one (Linux 5.16 and later).
        if (interface, hop) in self._fixed:
            return
        for index, number in self._indices.items():
            if number == interface:
                await self._ask(index, hop)

    async def _renew(self) -> None:
        """
        Have the hops in use resolved at once that are behind links which are back.

        The kernel forgets its neighbours with the carrier, and one that it then asks for in vain it asks for again a
        second later only (`retrans_time_ms`), though the link may be back by then.
        """
        self._is_back.clear()
        back, self._back = self._back, set()
        numbers = {number: index for index, number in self._indices.items() if index in back}
        for number, hop in self._unresolved() if numbers else ():
            if number in numbers:
                # Asked for anew, not once more: packets that wait for it in the kernel are kept.
                await self._ask(numbers[number], hop, flags=0)
                await self._ask(numbers[number], hop)

    async def _ask(self, index: int, hop: Address, flags: int = NTF_USE) -> None:
        try:
            await self._netlink.neigh(
                "replace", family=_family(hop.version), dst=str(hop), ifindex=index, flags=flags, state=0
            )
        except (OSError, NetlinkError) as error:
            if getattr(error, "code", None) == errno.EPERM:
                raise PrivilegeError(
                    "asking the kernel for neighbours needs CAP_NET_ADMIN: run as root, or give each server a mac"
                ) from error
            # A full table or an interface that went down shows elsewhere.
            log.debug("neighbour %s was not asked for: %s", hop, error)

    def watch(
        self,
        on_next_hops: Callable[[NextHops], None],
        on_interfaces: Callable[[tuple[Interface, ...]], None],
        on_trouble: Callable[[Exception | None], None],
        tasks: Tasks | None = None,
    ) -> None:
        """
        Start to tell of changes.

        Args:
            on_next_hops: called with the new routes and neighbours.
            on_interfaces: called with the interfaces when one of their facts changed, before `on_next_hops`.
            on_trouble: called with an InterfaceError while an interface is down or gone, with None when all are
            available, and with any other error when watching has failed for good.
            tasks: starts what watches, again when it fails; None: a failure is for good.
        """

        def ends_with(job: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                try:
                    await job()
                except LbError as error:
                    on_trouble(error)
                except Exception as error:
                    if tasks is not None:
                        raise
                    on_trouble(error)

            return run

        starts = itertools.count()

        def publish() -> Awaitable[None]:
            if next(starts):
                # What was missed while this did not run.
                self._changed.set()
            return self._publish_changes(on_next_hops, on_interfaces, on_trouble)

        jobs = {"kernel events": self._listen, "kernel tables": publish, "neighbours": self._keep_fresh}
        for name, job in jobs.items():
            guarded = ends_with(job)
            if tasks is None:
                self._tasks.append(asyncio.ensure_future(guarded()))
            else:
                self._tasks.append(tasks.run(name, guarded))

    async def _listen(self) -> None:
        """Note that something changed. After a lost or broken stream, everything may have."""
        while True:
            try:
                async with AsyncIPRoute() as events:
                    await events.bind()
                    self._changed.set()
                    # It yields what has come together, and ends: a stream opened anew would miss what comes meanwhile.
                    while True:
                        async for event in events.get():
                            self._note(event)
            except (OSError, NetlinkError) as error:
                # ENOBUFS: more events than the socket holds. The next reading makes up for all of them.
                if getattr(error, "errno", None) != errno.ENOBUFS and getattr(error, "code", None) != errno.ENOBUFS:
                    log.warning("the kernel's event stream broke and is opened again: %s", error)
            await asyncio.sleep(REOPEN_S)

    def _note(self, event: Any) -> None:
        """Note that something changed, and a link that was out: it may be back when the tables are read."""
        if event["event"] == "RTM_NEWLINK" and event["index"] in self._indices and not _has_carrier(event):
            self._were_out.add(event["index"])
        self._changed.set()

    async def _publish_changes(
        self,
        on_next_hops: Callable[[NextHops], None],
        on_interfaces: Callable[[tuple[Interface, ...]], None],
        on_trouble: Callable[[Exception | None], None],
    ) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            interfaces, next_hops = self._interfaces, self._next_hops
            try:
                await self._follow_carriers()
                on_trouble(None)
                if self._interfaces != interfaces:
                    on_interfaces(self._interfaces)
                if await self.read_next_hops() != next_hops:
                    on_next_hops(self._next_hops)
                self._back |= self._returned
                self._returned.clear()
                if self._back:
                    self._is_back.set()
            except InterfaceError as error:
                on_trouble(error)
            except (OSError, NetlinkError) as error:
                log.warning("the kernel's tables could not be read, trying again: %s", error)
                self._changed.set()
            await asyncio.sleep(REST_S)

    async def _follow_carriers(self) -> None:
        """Read the interfaces, and note which links are back. Errors: as `read_interfaces`."""
        # Empty from now on: a link that goes out while the tables are read was not back when it had been read before.
        were_out, self._were_out = self._were_out, set()
        try:
            await self.read_interfaces()
        except BaseException:
            self._were_out |= were_out
            raise
        self._were_out |= self._out
        self._returned |= were_out - self._out

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            # Not `asyncio.wait_for`: it loses a cancellation that comes with what it waits for (Python 3.11).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._is_back.wait()
            await self._renew()

    async def open(self) -> None:
        """Open the netlink socket."""
        await self._netlink.setup_endpoint()

    async def close(self) -> None:
        """Stop watching and close the netlink socket."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._netlink.close()


def find_hop(next_hops: NextHops, address: Address) -> tuple[int, Address] | None:
    """
    Return the (interface id, hop) on the way to an address by the most specific route, or None when no route leads
    there.

    The same choice as the data path's (`docs/rules.md` rule 11.2, choosing the hop).
    """
    fitting = [route for route in next_hops.routes if address in route.prefix]
    if not fitting:
        return None
    best = max(fitting, key=lambda route: route.prefix.prefixlen)
    return best.interface, best.gateway or address


def _has_carrier(link: Any) -> bool:
    """Return whether the link of a row or an event has its carrier."""
    return bool(link["flags"] & IFF_LOWER_UP)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _mac(text: str | None) -> bytes | None:
    """Return the 6 bytes of a link-layer address, None when it is not one of Ethernet."""
    raw = bytes.fromhex(text.replace(":", "")) if text else b""
    return raw if len(raw) == 6 else None


def _interface_address(row: Any) -> InterfaceAddress:
    """Return an address of an interface. IPv4 point-to-point addresses have the local one in `local`."""
    return ip_interface((row.get("local") or row.get("address"), row["prefixlen"]))
