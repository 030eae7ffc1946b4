"""
The nftables table that keeps the services' packets from the host's own IP stack.

One table per balancer, `flowlb_ifN`, N being the index of its first interface. Its rules are always the same and look
addresses up in sets, so that a change of servers is a change of elements, whatever their number. The chain hooks into
prerouting at raw priority: before routing, and after the packet sockets, which see every frame first.

`nft` is run as a child process (`nftables` has no stable library interface); it needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lb.errors import LbError
from lb.snapshot import Snapshot

TABLE = re.compile(r"table inet flowlb_if(\d+)")
NFT_TIMEOUT_S = 10

Elements = Mapping[str, frozenset[str]]

# By set: the type of its elements. `th` is the transport header.
_ENDPOINT = "{address} . inet_proto . inet_service"
_SETS = {
    "vips": "{address}",
    "listeners": _ENDPOINT,
    "endpoints": _ENDPOINT,
    "servers": "{address}",
    "fragmenters": "{address} . inet_proto",
}
# A VIP that is also an address of this host keeps what is not a service's: the host's own ssh, say. Later fragments
# have no ports: they go by the server's address and the protocol of its services.
_RULES = (
    "{ip} daddr @vips{v} fib daddr type != local drop",
    "{ip} daddr . meta l4proto . th dport @listeners{v} drop",
    "{ip} saddr . meta l4proto . th sport @endpoints{v} fib daddr type != local drop",
    "{ip} saddr . {fragment_protocol} @fragmenters{v} {is_later_fragment} fib daddr type != local drop",
    "{ip} saddr @servers{v} {icmp} type {{ {errors} }} fib daddr type != local drop",
)
_FAMILIES = {
    4: {
        "ip": "ip",
        "address": "ipv4_addr",
        "fragment_protocol": "ip protocol",
        "is_later_fragment": "ip frag-off & 0x1fff != 0",
        "icmp": "icmp",
        "errors": "destination-unreachable, time-exceeded, parameter-problem",
    },
    6: {
        "ip": "ip6",
        "address": "ipv6_addr",
        "fragment_protocol": "frag nexthdr",
        "is_later_fragment": "frag frag-off != 0",
        "icmp": "icmpv6",
        "errors": "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
    },
}
# With transit = "forward" everything that is not for this host itself is the balancer's.
_TRANSIT_RULE = "fib daddr type != { local, broadcast, anycast, multicast } drop"


class NftError(LbError):
    """`nft` is missing, or refused what it was asked for."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """
    What a table blocks.

    Args:
        interfaces: names of those whose packets are looked at.
        transit: whether everything that is not for this host is blocked.
        elements: by name of the set.
    """

    interfaces: tuple[str, ...]
    transit: bool
    elements: Elements


def blocked_by(snapshot: Snapshot) -> Blocked:
    """Return what a snapshot needs to have blocked."""
    elements: dict[str, set[str]] = {f"{name}{version}": set() for name in _SETS for version in _FAMILIES}
    for service in snapshot.services:
        if service is not None:
            version, where = service.address.version, str(service.address)
            elements[f"vips{version}"].add(where)
            elements[f"listeners{version}"].add(f"{where} . {service.protocol} . {service.port}")
    for server in snapshot.servers:
        owner = None if server is None else snapshot.services[server.service]
        if server is not None and owner is not None:
            version, where = server.address.version, str(server.address)
            elements[f"servers{version}"].add(where)
            elements[f"endpoints{version}"].add(f"{where} . {owner.protocol} . {server.port}")
            elements[f"fragmenters{version}"].add(f"{where} . {owner.protocol}")
    names = tuple(interface.name for interface in snapshot.interfaces)
    frozen = {name: frozenset(members) for name, members in elements.items()}
    return Blocked(names, snapshot.transit == "forward", frozen)


def creation(table: str, blocked: Blocked) -> str:
    """Return the nftables script that makes a table, in the place of one that is there already."""
    lines = []
    for version, words in _FAMILIES.items():
        for name, kind in _SETS.items():
            members = blocked.elements[f"{name}{version}"]
            content = f" elements = {_braces(members)};" if members else ""
            lines.append(f"  set {name}{version} {{ type {kind.format(**words)};{content} }}")
    rules = [rule.format(v=version, **words) for version, words in _FAMILIES.items() for rule in _RULES]
    rules += [_TRANSIT_RULE] if blocked.transit else []
    names = _braces(f'"{name}"' for name in blocked.interfaces)
    lines.append("  chain prerouting {\n    type filter hook prerouting priority raw; policy accept;")
    lines += [f"    iifname {names} {rule}" for rule in rules]
    body = "\n".join(lines)
    return f"{removal(table)}table inet {table} {{\n{body}\n  }}\n}}\n"


def change(table: str, old: Blocked, new: Blocked) -> str | None:
    """Return the script that makes a table block something else; None when it must be made anew. Empty: no change."""
    if (old.interfaces, old.transit) != (new.interfaces, new.transit):
        return None
    lines = []
    for name, members in new.elements.items():
        before = old.elements[name]
        if gone := before - members:
            lines.append(f"delete element inet {table} {name} {_braces(gone)}\n")
        if added := members - before:
            lines.append(f"add element inet {table} {name} {_braces(added)}\n")
    return "".join(lines)


def removal(table: str) -> str:
    """Return the script that removes a table, and does nothing when there is none."""
    return f"table inet {table}\ndelete table inet {table}\n"


def table_name(index: int) -> str:
    """Return the name of the table of a balancer whose first interface has this index."""
    return f"flowlb_if{index}"


def list_table(table: str) -> str | None:
    """Return a table as text, equal for equal content; None when there is none. Raise NftError as `run_nft`."""
    try:
        return run_nft("", "list", "table", "inet", table)
    except NftError as error:
        if "No such file" in str(error):
            return None
        raise


def other_tables(kept: Collection[int]) -> list[int]:
    """Return the indices in the names of all tables of balancers but the kept ones. Raise NftError as `run_nft`."""
    found = [int(match[1]) for match in TABLE.finditer(run_nft("", "list", "tables", "inet"))]
    return [index for index in found if index not in kept]


def run_nft(script: str, *arguments: str) -> str:
    """
    Run `nft` and return what it prints.

    Args:
        script: what it reads from its standard input when there are no arguments.
        arguments: of the command line.

    Raises:
        NftError: it is not installed, takes longer than 10 s, or refuses.
    """
    if shutil.which("nft") is None:
        raise NftError("nft is not installed")
    command = ["nft", *arguments] if arguments else ["nft", "-f", "-"]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=NFT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftError(f"nft: {error}") from error
    if done.returncode != 0:
        raise NftError("nft: " + next(iter(done.stderr.strip().splitlines()), "no reason given"))
    return done.stdout


def _braces(items: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(items))} }}"
