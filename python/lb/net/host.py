"""
Keep the host's own IP stack away from the packets of the services (behaviour 41).

The kernel sees every frame that the balancer sees. A host that forwards would send un-translated copies on, and
redirects; an IPv6 host that does not forward answers a packet it has no route for with ICMPv6 1/0, and the connection
ends. So the kernel never gets to see those packets: an nftables table drops them before they are routed (`lb.net.nft`),
whether the host forwards or not, for forwarding may be switched on later. Packet sockets see them all the same. Where
nftables is missing and the host does not forward, a routing rule keeps it silent (`lb.net.silence`).

What was made is removed at stop (behaviour 32), and put back when it disappears while the balancer runs: `nft flush
ruleset` and a restart of the host's firewall do that. What a killed process left is replaced at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import socket
import threading
from collections.abc import Iterable, Sequence

from lb.errors import PrivilegeError
from lb.net import nft, silence
from lb.net.nft import Blocked, NftError
from lb.net.sockets import is_claimed
from lb.snapshot import Snapshot

SYSCTLS = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# linux/netlink.h, linux/netfilter/nfnetlink.h: NETLINK_NETFILTER, and its group of changes to nftables.
NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7
# The watch looks at least this often, also when no event told of a change.
CHECK_INTERVAL_S = 2.0
# After a look, before the next: another program that changes nftables all the time must not keep us busy.
GATHER_S = 0.1
EVENT_BYTES = 65536

log = logging.getLogger(__name__)


class HostGuard:
    """
    Keeps the services' packets from the host's kernel. Its methods may be called from several threads.

    `repairs`: how often what it had made was gone or changed, and was made anew.
    """

    def __init__(self) -> None:
        self.repairs = 0
        self._lock = threading.Lock()
        self._table = ""
        self._blocked: Blocked | None = None
        # The table as nft lists it, right after it was made. None: routing rules keep the kernel silent.
        self._listing: str | None = None
        self._silenced: tuple[str, ...] = ()
        self._snapshot: Snapshot | None = None
        self._is_forwarding_told = False
        self._last_failure = ""

    def apply(self, snapshot: Snapshot) -> None:
        """
        Make what is blocked fit a snapshot.

        Raises:
            PrivilegeError: the kernel forwards and cannot be kept from it, or would forward what the balancer
            forwards too.
        """
        names = [interface.name for interface in snapshot.interfaces]
        families = forwarding_families(names)
        if families and snapshot.transit == "forward":
            raise PrivilegeError(
                f'transit = "forward" on a host that forwards itself would send every packet twice: {_fix(families)}, '
                'or set transit = "drop"'
            )
        with self._lock:
            # Snapshots come with every weight that changes; their addresses seldom differ.
            if self._snapshot is None or not _blocks_the_same(self._snapshot, snapshot):
                self._install(snapshot, names, families)
            self._snapshot = snapshot
        if families and not self._is_forwarding_told:
            self._is_forwarding_told = True
            log.warning(
                "this host forwards packets itself: nftables drops the services' packets, the kernel still forwards "
                "the rest; to end that: %s",
                _fix(families),
            )

    def _install(self, snapshot: Snapshot, names: Sequence[str], families: Sequence[int]) -> None:
        try:
            self._install_table(nft.blocked_by(snapshot))
        except NftError as error:
            if families:
                raise PrivilegeError(
                    f"this host forwards packets itself and would send un-translated copies ({error}): "
                    f"{_fix(families)}, or install nftables so that just those can be blocked"
                ) from error
            self._install_silence(names, error)

    def _install_table(self, blocked: Blocked) -> None:
        if self._listing is not None and self._blocked is not None:
            script = nft.change(self._table, self._blocked, blocked)
            if script is not None:
                # Refused when the table is not what we made: then it is made anew.
                with contextlib.suppress(NftError):
                    self._run(script, blocked)
                    return
        own = [socket.if_nametoindex(name) for name in blocked.interfaces]
        left = [index for index in nft.other_tables([own[0]]) if index in own or not is_claimed(index)]
        self._table = nft.table_name(own[0])
        removals = "".join(nft.removal(nft.table_name(index)) for index in left)
        self._run(removals + nft.creation(self._table, blocked), blocked)
        with contextlib.suppress(OSError):
            silence.unsilence(blocked.interfaces)
        self._silenced = ()

    def _run(self, script: str, blocked: Blocked) -> None:
        if script:
            nft.run_nft(script)
        self._blocked = blocked
        self._listing = nft.list_table(self._table)

    def _install_silence(self, names: Sequence[str], reason: NftError) -> None:
        """Keep a host silent that does not forward. When even that fails, say so: IPv4 is silent by itself."""
        if self._silenced == tuple(names):
            return
        try:
            silence.silence(names)
        except OSError as error:
            log.warning(
                "this host's kernel may answer IPv6 packets of the services, for which it has no route: neither "
                "nftables (%s) nor a routing rule (%s) keeps it from that; install nftables",
                reason,
                error,
            )
            return
        self._silenced = tuple(names)
        log.info("a routing rule keeps this host's kernel silent (%s): `ip -6 rule` shows it", reason)

    def remove(self) -> None:
        """Undo what was made. Does nothing when nothing was. Raise PrivilegeError when it cannot be undone."""
        with self._lock:
            self._snapshot = None
            if self._silenced:
                names, self._silenced = self._silenced, ()
                silence.unsilence(names)
            if self._listing is not None:
                self._listing = self._blocked = None
                try:
                    nft.run_nft(nft.removal(self._table))
                except NftError as error:
                    raise PrivilegeError(f"{error}: see `nft list table inet {self._table}`") from error

    def repair(self) -> bool:
        """
        Put back what has gone or was changed since it was made.

        Returns:
            Whether there was something to put back.
        """
        with self._lock:
            try:
                missing = self._put_back()
                self._last_failure = ""
            except (OSError, NftError) as error:
                # Once, not at each look.
                if str(error) != self._last_failure:
                    log.error("the services' packets cannot be kept from this host's kernel: %s", error)
                self._last_failure = str(error)
                return False
            self.repairs += missing is not None
        if missing is not None:
            log.warning("%s was removed or changed by another program: put back", missing)
        return missing is not None

    def _put_back(self) -> str | None:
        """Return what was missing, once it is back; None when nothing was."""
        if self._silenced and forwarding_families(self._silenced):
            names, self._silenced = self._silenced, ()
            silence.unsilence(names)
            raise NftError(f"it forwards now, and nftables is missing: {_fix(forwarding_families(names))}")
        if self._silenced and set(self._silenced) - set(silence.silenced()):
            silence.silence(self._silenced)
            return "the routing rule that keeps this host's kernel silent"
        if self._listing is None or self._blocked is None or nft.list_table(self._table) == self._listing:
            return None
        self._run(nft.creation(self._table, self._blocked), self._blocked)
        return f"nftables table inet {self._table}"

    async def watch(self) -> None:
        """Put back what disappears, within 0.5 s of the kernel's telling of it, until cancelled."""
        with _open_events() as events:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_INTERVAL_S):
                        await self._wait_change(events)
                await asyncio.to_thread(self.repair)
                await asyncio.sleep(GATHER_S)

    async def _wait_change(self, events: socket.socket) -> None:
        """Return when the kernel tells of a change to our table; or that it had more to tell than the socket holds."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                event = await loop.sock_recv(events, EVENT_BYTES)
            except OSError:
                return
            if self._table.encode() in event:
                return


def _open_events() -> socket.socket:
    """Return a socket that tells of changes to nftables, or of nothing where the kernel does not let us."""
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
    except OSError:
        # A kernel without netfilter: nothing is ever told.
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with contextlib.suppress(OSError):
        events.bind((0, 1 << NFNLGRP_NFTABLES - 1))
    return events


def forwarding_families(names: Iterable[str]) -> list[int]:
    """Return the IP versions that the kernel forwards from any of the interfaces."""
    names = list(names)
    return [version for version in (4, 6) if any(_forwards(version, name) for name in names)]


def _forwards(version: int, name: str) -> bool:
    path = pathlib.Path(f"/proc/sys/net/ipv{version}/conf") / name / "forwarding"
    try:
        return path.read_text().strip() != "0"
    except OSError:
        # A kernel without this family forwards none of it.
        return False


def _blocks_the_same(old: Snapshot, new: Snapshot) -> bool:
    """Tell whether two snapshots need the same packets blocked: cheap, for most changes are not about addresses."""
    if (len(old.services), len(old.servers), old.transit) != (len(new.services), len(new.servers), new.transit):
        return False
    if [interface.name for interface in old.interfaces] != [interface.name for interface in new.interfaces]:
        return False
    services = all(
        (a and (a.address, a.port, a.protocol)) == (b and (b.address, b.port, b.protocol))
        for a, b in zip(old.services, new.services, strict=True)
        if a is not b
    )
    return services and all(
        (a and (a.address, a.port, a.service)) == (b and (b.address, b.port, b.service))
        for a, b in zip(old.servers, new.servers, strict=True)
        if a is not b
    )


def _fix(families: Sequence[int]) -> str:
    return "`" + " && ".join(f"sysctl -w {SYSCTLS[version]}=0" for version in families) + "`"
