"""
Keep the host's own IP stack away from the packets of the services (rule 20.2, the host's kernel).

The kernel sees every frame that the balancer sees. A host that forwards would send untranslated copies on, and
redirects; an IPv6 host that does not forward answers a packet it has no route for with ICMPv6 1/0, and the connection
ends. So the kernel never gets to see those packets: an nftables table drops them before they are routed
(`lb.net.nft`), whether the host forwards or not, for forwarding may be switched on later. Packet sockets see them all
the same. Where nftables is missing and the host does not forward, a routing rule keeps it silent (`lb.net.silence`).

The guard knows what it wants, from the snapshot, and looks at what there is: again and again while the balancer runs,
and at once when the kernel tells of a change. Any difference is repaired, with any cause: `nft flush ruleset`, a
restart of the host's firewall, an `nft` that failed us. What was made is removed at stop (rule 20.1, restoring the
host), and what a killed process left at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lb.errors import PrivilegeError
from lb.model.snapshot import Snapshot
from lb.net import nft, silence
from lb.net.nft import Blocked, NftError, NftMissingError, Table
from lb.net.sockets import is_claimed

SYSCTLS = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# linux/netfilter/nfnetlink.h: the group of changes to nftables.
NFNLGRP_NFTABLES = 7
# The watch looks at least this often, also when no event told of a change.
CHECK_INTERVAL_S = 2.0
# After a look, before the next: another program that changes nftables all the time must not keep us busy. It doubles
# while looks find what was undone again, up to CHECK_INTERVAL_S, and while nft fails, up to LONGEST_DELAY_S.
GATHER_S = 0.1
LONGEST_DELAY_S = 30.0
EVENT_BYTES = 65536

# The means that keep the kernel silent.
Means = Literal["nftables", "rule"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuardState:
    """
    How the kernel is kept out.

    Args:
        means: what keeps it silent just now; None: nothing does.
        trouble: why it is not kept silent about all that is to be blocked; None: it is.
        repairs: how often what had been made was gone or changed, and was made anew.
    """

    means: Means | None = None
    trouble: str | None = None
    repairs: int = 0


NOT_GUARDED = GuardState()


class HostGuard:
    """Keeps the services' packets from the host's kernel. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._repairs = 0
        self._means: Means | None = None
        self._trouble: str | None = None
        self._lock = threading.Lock()
        # What is to be blocked: of `_snapshot`, which is the last one that was applied.
        self._blocked: Blocked | None = None
        self._snapshot: Snapshot | None = None
        self._table = ""
        # Whether the table may be there: it was asked for, and its removal was not.
        self._may_exist = False
        # What was blocked when the host was last found to block it all.
        self._agreed: Blocked | None = None
        self._was_made = False
        # The state of nftables in which the table was found to be right: of thousands of servers a listing takes a
        # while.
        self._verified: tuple[int, Blocked] | None = None
        self._is_tidy = False
        self._silenced: tuple[str, ...] = ()
        self._is_forwarding_told = False
        # Whether an installed nft fails, and how many checks in a row failed or found something undone.
        self._is_failing = False
        self._strain = 0

    def apply(self, snapshot: Snapshot) -> None:
        """
        Make what is blocked fit a snapshot.

        Raises:
            PrivilegeError: the kernel forwards and cannot be kept from it, or would forward what the balancer
            forwards too. What was blocked before still is.
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
                self._follow(nft.blocked_by(snapshot), families)
            self._snapshot = snapshot
        if families and not self._is_forwarding_told:
            self._is_forwarding_told = True
            log.warning(
                "this host forwards packets itself: nftables drops the services' packets, the kernel still forwards "
                "the rest; to end that: %s",
                _fix(families),
            )

    def state(self) -> GuardState:
        """Return the current state; never waits."""
        return GuardState(self._means, self._trouble, self._repairs)

    def _follow(self, blocked: Blocked, families: Sequence[int]) -> None:
        """Set what is to be blocked. What cannot be done at once, the watch keeps trying."""
        try:
            self._agree(blocked)
        except NftError as error:
            if families:
                self._agreed = None
                raise PrivilegeError(
                    f"this host forwards packets itself and would send untranslated copies ({error}): "
                    f"{_fix(families)}, or install nftables, which can drop them"
                ) from error
            self._note_trouble(str(error))
        except OSError as error:
            self._note_trouble(str(error))
        self._blocked = blocked

    def repair(self) -> bool:
        """
        Look whether the host blocks what it should, and make it so.

        Returns:
            Whether something had gone or was changed since it was made, and is back.
        """
        with self._lock:
            if self._blocked is None:
                return False
            before = self._means if self._agreed is self._blocked else None
            try:
                missing = self._agree(self._blocked)
            except (OSError, NftError) as error:
                self._note_trouble(str(error))
                return False
            # Otherwise it is what we had not been able to do until now.
            is_undone = missing is not None and before is not None and self._means == before
            self._repairs += is_undone
            self._strain = self._strain + 1 if is_undone or self._is_failing else 0
        if is_undone:
            log.warning("another program removed or changed %s: restored", missing)
        return is_undone

    def _agree(self, blocked: Blocked) -> str | None:
        """
        Make the host block what it should: by the table or, where it cannot be had, by routing rules.

        Returns:
            What was missing or different; None: nothing was.

        Raises:
            NftError, OSError: it cannot be done.
        """
        try:
            missing = self._agree_table(blocked)
        except NftError as error:
            self._is_failing = not isinstance(error, NftMissingError)
            return self._agree_silence(blocked, error)
        self._is_failing, self._was_made = False, True
        if self._silenced:
            with contextlib.suppress(OSError):
                silence.unsilence(self._silenced)
                self._silenced = ()
        self._note_agreed(blocked, "nftables")
        return missing

    def _agree_table(self, blocked: Blocked) -> str | None:
        """Return what was missing or different, None when nothing was. Raise NftError when that cannot be changed."""
        if not self._is_tidy:
            self._remove_others(blocked.interfaces)
        # Read before the table: what changes in between is looked at again.
        generation = nft.read_generation()
        found = self._look(generation)
        # Also what a killed balancer left, and we take over.
        self._may_exist = True
        script = None if found is None else nft.change(self._table, blocked, found)
        if script == "":
            self._verified = None if generation is None else (generation, blocked)
            return None
        try:
            nft.run_nft(nft.creation(self._table, blocked) if script is None else script)
        except NftError:
            if script is None:
                raise
            # It has changed since we looked.
            nft.run_nft(nft.creation(self._table, blocked))
        return f"nftables table inet {self._table}"

    def _look(self, generation: int | None) -> Table | None:
        """Return what there is of the table, None: nothing. Raise NftError as `run_nft`."""
        if self._verified is not None and self._verified[0] == generation:
            return nft.table_of(self._verified[1])
        listing = nft.list_table(self._table)
        return None if listing is None else nft.parse_table(listing)

    def _remove_others(self, names: Sequence[str]) -> None:
        """Remove the tables of balancers that were killed. Raise NftError as `run_nft`."""
        own = [socket.if_nametoindex(name) for name in names]
        self._table = nft.table_name(own[0])
        left = [index for index in nft.other_tables([own[0]]) if index in own or not is_claimed(index)]
        if left:
            nft.run_nft("".join(nft.removal(nft.table_name(index)) for index in left))
        self._is_tidy = True

    def _agree_silence(self, blocked: Blocked, reason: NftError) -> str | None:
        """
        Keep a host silent that does not forward.

        Returns:
            What was missing; None: nothing.

        Raises:
            NftError: it forwards. OSError: a routing rule cannot be had, and is needed: IPv4 is silent by itself.
        """
        names = blocked.interfaces
        if families := forwarding_families(names):
            if self._silenced:
                silence.unsilence(self._silenced)
                self._silenced = ()
            raise NftError(f"this host forwards now, and nftables cannot be used ({reason}): {_fix(families)}")
        try:
            missing = set(names) - set(silence.silenced())
            if missing:
                silence.silence(names)
        except OSError as error:
            if blocked.transit or blocked.elements["vips6"]:
                text = f"neither by nftables ({reason}) nor by a routing rule ({error}): install nftables"
                raise OSError(text) from error
            # In IPv4 it is silent by itself.
            self._note_agreed(blocked, None)
            return None
        if self._silenced != names:
            log.info("a routing rule keeps this host's kernel silent (%s): `ip -6 rule` shows it", reason)
        self._silenced = names
        self._note_agreed(blocked, "rule")
        return "the routing rule that keeps this host's kernel silent" if missing else None

    def _note_agreed(self, blocked: Blocked, means: Means | None) -> None:
        if self._trouble is not None:
            log.info("the host guard blocks the services' packets for the host's kernel again")
        self._agreed, self._means, self._trouble = blocked, means, None

    def _note_trouble(self, trouble: str) -> None:
        # Once, not at each look.
        if trouble != self._trouble:
            log.error("the host guard cannot block the services' packets for the host's kernel: %s", trouble)
        self._agreed, self._means, self._trouble = None, None, trouble
        self._strain += 1

    def leave(self) -> None:
        """Leave all as it is, for another process; once a repair in progress has ended, there is none any more."""
        with self._lock:
            self._snapshot = self._blocked = None

    def remove(self) -> None:
        """Undo what was made. Does nothing when nothing was. Raise PrivilegeError when it cannot be undone."""
        with self._lock:
            self._snapshot = self._blocked = None
            if self._silenced:
                names, self._silenced = self._silenced, ()
                silence.unsilence(names)
            if not self._may_exist:
                return
            self._may_exist = False
            try:
                nft.run_nft(nft.removal(self._table))
            except NftError as error:
                if not self._was_made:
                    return
                raise PrivilegeError(f"{error}: see `nft list table inet {self._table}`") from error

    def _delay_s(self) -> float:
        """Return how long to wait after a look."""
        is_failing = self._is_failing or self._trouble is not None
        longest_s = LONGEST_DELAY_S if is_failing else CHECK_INTERVAL_S
        return min(GATHER_S * 2.0 ** min(self._strain, 10), longest_s)

    async def watch(self) -> None:
        """Keep all of it blocked, within 0.5 s of the kernel's telling of a change, until cancelled."""
        with _open_events() as events:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_INTERVAL_S):
                        await self._wait_change(events)
                await asyncio.to_thread(self.repair)
                await asyncio.sleep(self._delay_s())

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
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, nft.NETLINK_NETFILTER)
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
