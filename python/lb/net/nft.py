"""
The nftables table that keeps the services' packets from the host's own IP stack.

One table per balancer, `flowlb_ifN`, N being the index of its first interface. Its rules are always the same and look
addresses up in sets, so that a change of servers is a change of elements, of any number. The chain hooks into
prerouting at raw priority: before routing, and after the packet sockets, which see every frame first.

Each rule carries a digest of its text as a comment, so that what `nft` lists can be compared with what should be there,
however this version of `nft` prints the rest.

`nft` is run as a child process (`nftables` has no stable library interface); it needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from lb.errors import LbError
from lb.model.snapshot import Snapshot

TABLE = re.compile(r"table inet flowlb_if(\d+)")
NFT_TIMEOUT_S = 10
# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER, NLM_F_REQUEST, NFNL_SUBSYS_NFTABLES = 12, 1, 10
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 15, 16
NETLINK_TIMEOUT_S = 1.0

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
CHAIN = "prerouting"
# As `nft -j` describes the chain: its type, hook, priority (raw) and policy.
_CHAIN_FACTS = ("filter", "prerouting", -300, "accept")
# With transit = "forward" everything that is not for this host itself is the balancer's.
_TRANSIT_RULE = "fib daddr type != { local, broadcast, anycast, multicast } drop"


class NftError(LbError):
    """`nft` is missing, or refused what it was asked for."""


class NftMissingError(NftError):
    """`nft` is not installed."""


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


@dataclass(frozen=True, slots=True)
class Table:
    """
    What there is of a table.

    Args:
        is_sound: whether it is on, and has the one chain that it should have, and no other.
        rules: their comments, in order; None for one without.
        elements: by name of the set.
    """

    is_sound: bool
    rules: tuple[str | None, ...]
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
    """Return the nftables script that creates a table, or replaces an existing one."""
    lines = []
    for version, words in _FAMILIES.items():
        for name, kind in _SETS.items():
            members = blocked.elements[f"{name}{version}"]
            content = f" elements = {_braces(members)};" if members else ""
            lines.append(f"  set {name}{version} {{ type {kind.format(**words)};{content} }}")
    lines.append(f"  chain {CHAIN} {{\n    type filter hook prerouting priority raw; policy accept;")
    lines += [f'    {rule} comment "{_comment(rule)}"' for rule in _rules(blocked)]
    body = "\n".join(lines)
    return f"{removal(table)}table inet {table} {{\n{body}\n  }}\n}}\n"


def _rules(blocked: Blocked) -> list[str]:
    rules = [rule.format(v=version, **words) for version, words in _FAMILIES.items() for rule in _RULES]
    rules += [_TRANSIT_RULE] if blocked.transit else []
    names = _braces(f'"{name}"' for name in blocked.interfaces)
    return [f"iifname {names} {rule}" for rule in rules]


def _comment(rule: str) -> str:
    return f"flowlb {hashlib.blake2b(rule.encode(), digest_size=8).hexdigest()}"


def table_of(blocked: Blocked) -> Table:
    """Return the table that blocks something, as it would be found."""
    return Table(is_sound=True, rules=tuple(map(_comment, _rules(blocked))), elements=blocked.elements)


def change(table: str, blocked: Blocked, found: Table) -> str | None:
    """
    Return the script that makes a table that was found block what it should; empty when it does. None: it must
    be made anew.
    """
    expected = table_of(blocked)
    if not found.is_sound or found.rules != expected.rules or found.elements.keys() != expected.elements.keys():
        return None
    lines = []
    for name, members in blocked.elements.items():
        present = found.elements[name]
        if gone := present - members:
            lines.append(f"delete element inet {table} {name} {_braces(gone)}\n")
        if missing := members - present:
            lines.append(f"add element inet {table} {name} {_braces(missing)}\n")
    return "".join(lines)


def removal(table: str) -> str:
    """Return the script that removes a table, and does nothing when there is none."""
    return f"table inet {table}\ndelete table inet {table}\n"


def table_name(index: int) -> str:
    """Return the name of the table of a balancer whose first interface has this index."""
    return f"flowlb_if{index}"


# A host without /etc/protocols lists numbers.
_PROTOCOLS = {"6": "tcp", "17": "udp"}
# What a table is when nothing can be made of its listing: it must be made anew.
_UNREADABLE = Table(is_sound=False, rules=(), elements={})


def list_table(table: str) -> str | None:
    """Return a table as `nft -j` describes it; None when there is none. Raise NftError as `run_nft`."""
    try:
        return run_nft("", "-j", "list", "table", "inet", table)
    except NftError as error:
        if "No such file" in str(error):
            return None
        raise


def read_generation() -> int | None:
    """
    Return the number that the kernel gives all of this network's nftables, and changes with every change there. None:
    it does not tell.
    """
    request = struct.pack("=IHHII4x", 20, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(NETLINK_TIMEOUT_S)
            netlink.send(request)
            answer = netlink.recv(4096)
    except OSError:
        return None
    kind = struct.unpack_from("=H", answer, 4)[0] if len(answer) >= 28 else 0
    if kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN:
        return None
    # After two headers, of netlink and of netfilter, and that of the first attribute, NFTA_GEN_ID.
    return int(struct.unpack_from("!I", answer, 24)[0])


def parse_table(listing: str) -> Table:
    """Return what a listing says."""
    try:
        rows = json.loads(listing)["nftables"]
        return Table(
            is_sound=_is_on(_all(rows, "table")) and _all_chains(rows) == {CHAIN: _CHAIN_FACTS},
            rules=tuple(rule.get("comment") for rule in _all(rows, "rule")),
            elements={each["name"]: frozenset(map(_element, each.get("elem", ()))) for each in _all(rows, "set")},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return _UNREADABLE


def _all(rows: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [row[kind] for row in rows if kind in row]


def _is_on(tables: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether the table has no flags: a dormant one blocks nothing."""
    return not any("flags" in table for table in tables)


def _all_chains(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[object, ...]]:
    facts = ("type", "hook", "prio", "policy")
    return {chain["name"]: tuple(chain.get(fact) for fact in facts) for chain in _all(rows, "chain")}


def _element(value: Any) -> str:
    """Return an element as `blocked_by` writes it."""
    if not isinstance(value, dict):
        return str(ip_address(value))
    address, protocol, *port = map(str, value["concat"])
    return " . ".join([str(ip_address(address)), _PROTOCOLS.get(protocol, protocol), *port])


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
        NftMissingError: it is not installed.
        NftError: it takes longer than 10 s, or refuses.
    """
    if shutil.which("nft") is None:
        raise NftMissingError("nft is not installed")
    command = ["nft", *arguments] if arguments else ["nft", "-f", "-"]
    try:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=NFT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftError(f"nft: {error}") from error
    if done.returncode != 0:
        raise NftError("nft: " + next(iter(done.stderr.strip().splitlines()), "no reason given"))
    return done.stdout


def _braces(items: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(items))} }}"
