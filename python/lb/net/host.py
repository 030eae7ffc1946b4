"""
Keep the host's own IP stack away from the packets of the services.

The kernel sees every frame that the balancer sees. With forwarding off it stays silent about them. With forwarding on
it would send un-translated copies on, and redirects: then a small nftables table drops just those packets before the
kernel routes them (packet sockets see them all the same). The table is removed at stop (behaviour 32); one that a
killed process left is replaced at the next start.
"""

from __future__ import annotations

import logging
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence

from lb.errors import PrivilegeError
from lb.snapshot import Snapshot

SYSCTLS = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
NFT_TIMEOUT_S = 10

log = logging.getLogger(__name__)


class HostGuard:
    """Blocks the services' packets for the kernel while it forwards; does nothing on a host that does not."""

    def __init__(self) -> None:
        self._table: str | None = None
        self._rules = ""

    def apply(self, snapshot: Snapshot) -> None:
        """
        Make what is blocked fit a snapshot.

        Raises:
            PrivilegeError: the kernel forwards and cannot be kept from it, or would forward what the balancer
            forwards too.
        """
        families = forwarding_families([interface.name for interface in snapshot.interfaces])
        if not families:
            self.remove()
            return
        if snapshot.transit == "forward":
            raise PrivilegeError(
                f'transit = "forward" on a host that forwards itself would send every packet twice: {_mend(families)}, '
                'or set transit = "drop"'
            )
        if self._table is None:
            log.warning(
                "this host forwards packets itself: those of the services are kept from it with nftables, others it "
                "still routes past the balancer; to end that: %s",
                _mend(families),
            )
        table = f"flowlb_if{socket.if_nametoindex(snapshot.interfaces[0].name)}"
        wanted = rules(table, snapshot)
        # Snapshots come with every weight that changes; their addresses seldom differ.
        if (self._table, self._rules) != (table, wanted):
            _run_nft(f"table inet {table}\ndelete table inet {table}\n{wanted}", families)
            self._table, self._rules = table, wanted

    def remove(self) -> None:
        """Unblock everything. Does nothing when nothing is blocked."""
        if self._table is not None:
            table, self._table = self._table, None
            _run_nft(f"delete table inet {table}\n", [])


def forwarding_families(names: Iterable[str]) -> list[int]:
    """Return the IP versions that the kernel forwards from any of the interfaces."""
    return [version for version in (4, 6) if any(_forwards(version, name) for name in names)]


def _forwards(version: int, name: str) -> bool:
    path = pathlib.Path(f"/proc/sys/net/ipv{version}/conf") / name / "forwarding"
    try:
        return path.read_text().strip() != "0"
    except OSError:
        # A kernel without this family forwards none of it.
        return False


def rules(table: str, snapshot: Snapshot) -> str:
    """
    Return the nftables script of the table: drops to the VIPs, and what servers send through this host from their
    ports.
    """
    names = ", ".join(f'"{interface.name}"' for interface in snapshot.interfaces)
    lines = []
    for version, ip in ((4, "ip"), (6, "ip6")):
        vips = {str(entry.address) for entry in snapshot.services if entry and entry.address.version == version}
        endpoints = _endpoints(snapshot, version)
        servers = {str(entry.address) for entry in snapshot.servers if entry and entry.address.version == version}
        icmp = "icmp" if version == 4 else "icmpv6"
        if vips:
            lines.append(f"{ip} daddr {_set(vips)} drop")
        if servers:
            not_for_us = "fib daddr type != local"
            lines.append(f"{ip} saddr . meta l4proto . th sport {_set(endpoints)} {not_for_us} drop")
            lines.append(f"{ip} saddr {_set(servers)} {icmp} type {{ {_ERRORS[version]} }} {not_for_us} drop")
    body = "\n".join(f"    iifname {{ {names} }} {line}" for line in lines)
    hook = "type filter hook prerouting priority raw; policy accept;"
    return f"table inet {table} {{\n  chain prerouting {{\n    {hook}\n{body}\n  }}\n}}\n"


_ERRORS = {
    4: "destination-unreachable, time-exceeded, parameter-problem",
    6: "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
}


def _endpoints(snapshot: Snapshot, version: int) -> set[str]:
    found = set()
    for server in snapshot.servers:
        service = None if server is None else snapshot.services[server.service]
        if server is not None and service is not None and server.address.version == version:
            found.add(f"{server.address} . {service.protocol} . {server.port}")
    return found


def _set(items: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(items))} }}"


def _mend(families: Sequence[int]) -> str:
    return "`" + " && ".join(f"sysctl -w {SYSCTLS[version]}=0" for version in families) + "`"


def _run_nft(script: str, families: Sequence[int]) -> None:
    if shutil.which("nft") is None:
        raise PrivilegeError(
            "this host forwards packets itself and would send un-translated copies: "
            f"{_mend(families)}, or install nftables so that just those can be blocked"
        )
    command = ["nft", "-f", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=NFT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
        raise PrivilegeError(
            f"nft could not block forwarding ({reason}): {_mend(families) if families else 'see nft list ruleset'}"
        )
