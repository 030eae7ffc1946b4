"""
The facts that `lb doctor` reads from the machine. Nothing is changed or judged here.

Read from /proc, netlink (`pyroute2`), `nft` when it is installed, the running balancer when there is one, and, unless
told not to, from the wire (`lb.doctor.wire`). A fact that cannot be read is None, with the reason in `blind`.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any, Literal

from lb.config import Config
from lb.doctor import wire
from lb.errors import InterfaceError, LbError
from lb.model.snapshot import Address, InterfaceAddress
from lb.net.big_tcp import BigTcp, find_big_tcp
from lb.net.host import forwarding_families
from lb.net.nft import table_name
from lb.net.silence import silenced
from lb.net.sockets import claim_interface, read_interface
from lb.policies.loader import is_file
from lb.privileges.trust import Fault, find_fault, trusted_owners

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
NFT_TIMEOUT_S = 10
NUD_STATES = {0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x20: "failed",
              0x40: "noarp", 0x80: "permanent"}  # fmt: skip
# linux/sockios.h, linux/ethtool.h: the flags of an interface, of which one is large receive offload.
SIOCETHTOOL, ETHTOOL_GFLAGS, ETH_FLAG_LRO = 0x8946, 0x25, 0x8000


Guard = Literal["none", "nftables", "rule", "unknown"]


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """
    One configured interface.

    Args:
        missing: why it cannot be used, else None.
        claimed: a balancer uses it.
        guard: what keeps the host's kernel from the services' packets now.
        big_tcp: limits that allow frames larger than 64 KiB; None: there are none.
    """

    name: str
    missing: str | None = None
    up: bool = False
    mtu: int = 0
    addresses: tuple[InterfaceAddress, ...] = ()
    forwards: tuple[int, ...] = ()
    rp_filter: int = 0
    lro: bool = False
    claimed: bool = False
    guard: Guard = "none"
    big_tcp: BigTcp | None = None


@dataclass(frozen=True, slots=True)
class ServerRoute:
    """The kernel's route to a server. `interface`: None: it has no route. `neighbour`: state of the next hop."""

    interface: str | None
    gateway: str | None = None
    mtu: int | None = None
    neighbour: str = "unknown"


@dataclass(frozen=True, slots=True)
class Hook:
    """A chain of nftables that packets pass. `devices`: empty: all."""

    family: str
    table: str
    chain: str
    hook: str
    policy: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """
    The facts.

    Args:
        capabilities: the effective ones of this process, as a bit mask.
        kernel: version. file_faults: why the configuration or a policy that it names is not trusted.
        addresses: of all interfaces of this host, by interface name.
        routes: by server address. hooks: of nftables, None when it could not be asked.
        answers: what a TCP connect to (address, port) gave. owners: MACs that answered for a VIP; None: not asked.
        status: of the running balancer. blind: facts that could not be read, and why.
    """

    uid: int
    capabilities: int
    kernel: tuple[int, int]
    config_path: str
    file_faults: tuple[Fault, ...]
    links: Mapping[str, InterfaceFacts]
    addresses: Mapping[str, tuple[InterfaceAddress, ...]]
    routes: Mapping[Address, ServerRoute]
    has_nft: bool
    hooks: tuple[Hook, ...] | None
    answers: Mapping[tuple[Address, int], wire.Answer] = field(default_factory=dict)
    owners: Mapping[Address, str] | None = None
    status: Mapping[str, Any] | None = None
    blind: tuple[str, ...] = ()


def gather(config: Config, path: pathlib.Path, status: Mapping[str, Any] | None, *, probe: bool) -> Facts:
    """
    Return the facts of this host.

    Args:
        config: of the balancer for this host.
        path: of its file.
        status: of the balancer that runs here, None when none answers.
        probe: whether to ask the neighbours: connects to the servers, ARP and neighbour solicitations for the VIPs.
    """
    blind: list[str] = []
    addresses, routes = _read_kernel(config)
    answers = wire.ask_servers(config) if probe else {}
    if probe:
        # Again: the kernel has tried to resolve them by now.
        addresses, routes = _read_kernel(config)
    hooks = _read_hooks(blind)
    guards = _find_guards([entry.name for entry in config.interfaces], hooks)
    links = {entry.name: _read_facts(entry.name, addresses, guards[entry.name]) for entry in config.interfaces}
    owners = _find_owners(config, links, blind) if probe else None
    return Facts(
        uid=os.geteuid(),
        capabilities=_read_capabilities(),
        kernel=parse_kernel(os.uname().release),
        config_path=str(path),
        file_faults=tuple(_file_faults(config, path, blind)),
        links=links,
        addresses=addresses,
        routes=routes,
        has_nft=shutil.which("nft") is not None,
        hooks=hooks,
        answers=answers,
        owners=owners,
        status=status,
        blind=tuple(blind),
    )


def _find_owners(config: Config, links: Mapping[str, InterfaceFacts], blind: list[str]) -> dict[Address, str] | None:
    """Ask who has the VIPs; None, with a reason in `blind`, when that cannot be asked."""
    try:
        return wire.find_owners(config, {name: link.addresses for name, link in links.items() if link.up})
    except OSError as error:
        blind.append(f"whether another host has a VIP: {(error.strerror or str(error)).lower()}")
    except LbError as error:
        blind.append(f"whether another host has a VIP: {error}")
    return None


def parse_kernel(release: str) -> tuple[int, int]:
    """Return major and minor version; (0, 0) when the text has none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _read_capabilities() -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _read_kernel(config: Config) -> tuple[dict[str, tuple[InterfaceAddress, ...]], dict[Address, ServerRoute]]:
    """Ask netlink for the addresses of this host, and for the route to each server."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        names = {row["index"]: str(row.get("ifname")) for row in netlink.get_links()}
        addresses: dict[str, tuple[InterfaceAddress, ...]] = dict.fromkeys(names.values(), ())
        for row in netlink.get_addr():
            # Point-to-point: the host's own address is the local one.
            text = row.get("local") or row.get("address")
            addresses[names[row["index"]]] += (ip_interface(f"{text}/{row['prefixlen']}"),)
        neighbours = {(row["ifindex"], str(row.get("dst"))): row["state"] for row in netlink.get_neighbours()}
        servers = {server.address for service in config.services for server in service.servers}
        return addresses, {address: _server_route(netlink, names, neighbours, address) for address in servers}


def _server_route(
    netlink: Any, names: Mapping[int, str], neighbours: Mapping[tuple[int, str], int], address: Address
) -> ServerRoute:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        row = next(iter(netlink.route("get", dst=str(address))))
    except NetlinkError:
        return ServerRoute(None)
    gateway = row.get("gateway")
    metrics = row.get("metrics")
    state = neighbours.get((row.get("oif"), str(gateway or address)))
    return ServerRoute(
        interface=names.get(row.get("oif")),
        gateway=gateway,
        mtu=metrics.get("mtu") if metrics else None,
        neighbour="unknown" if state is None else NUD_STATES.get(state, "unknown"),
    )


def _file_faults(config: Config, path: pathlib.Path, blind: list[str]) -> Iterable[Fault]:
    """Yield why files that this balancer believes should not be believed, as `lb run` judges them."""
    owners = trusted_owners() or frozenset({0, os.geteuid()})
    names = [service.policy.name for service in config.services if is_file(service.policy.name)]
    for each in dict.fromkeys([path, *(path.parent / name.rpartition(":")[0] for name in names)]):
        try:
            if (fault := find_fault(each, owners)) is not None:
                yield fault
        except OSError as error:
            blind.append(f"who can write {each}: {error.strerror}")


def _find_guards(names: list[str], hooks: tuple[Hook, ...] | None) -> dict[str, Guard]:
    """Return by interface what keeps the host's kernel from the services' packets."""
    try:
        table = table_name(socket.if_nametoindex(names[0]))
        silent = silenced()
    except OSError:
        return dict.fromkeys(names, "unknown")
    has_table = any((hook.table, hook.hook) == (table, "prerouting") for hook in hooks or ())
    without: Guard = "unknown" if hooks is None else "none"
    return {name: "nftables" if has_table else "rule" if name in silent else without for name in names}


def _read_facts(name: str, addresses: Mapping[str, tuple[InterfaceAddress, ...]], guard: Guard) -> InterfaceFacts:
    try:
        facts = read_interface(name)
    except InterfaceError as error:
        return InterfaceFacts(name, missing=str(error))
    return InterfaceFacts(
        name=name,
        up=facts.up,
        mtu=facts.mtu,
        addresses=addresses.get(name, ()),
        forwards=tuple(forwarding_families([name])),
        rp_filter=max(_read_setting(f"ipv4/conf/{scope}/rp_filter") for scope in ("all", name)),
        lro=_has_lro(name),
        claimed=_is_claimed(name),
        guard=guard,
        big_tcp=find_big_tcp(name),
    )


def _read_setting(path: str) -> int:
    try:
        return int((pathlib.Path("/proc/sys/net") / path).read_text())
    except (OSError, ValueError):
        return 0


def _has_lro(name: str) -> bool:
    """Tell whether large receive offload is on: what it merges cannot be taken apart again."""
    import ctypes

    buffer = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_GFLAGS, 0), 8)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)
        except OSError:
            return False
    return bool(struct.unpack("=II", buffer.raw)[1] & ETH_FLAG_LRO)


def _is_claimed(name: str) -> bool:
    try:
        claim_interface(name).close()
    except InterfaceError:
        return True
    return False


def _read_hooks(blind: list[str]) -> tuple[Hook, ...] | None:
    """Return the base chains of nftables; None, with a reason in `blind`, when they cannot be listed."""
    if shutil.which("nft") is None:
        return ()
    command = ["nft", "-j", "list", "chains"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NFT_TIMEOUT_S, check=False)
        if done.returncode == 0:
            return tuple(parse_hooks(json.loads(done.stdout)["nftables"]))
        reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        reason = str(error)
    blind.append(f"packet filter rules: nft: {reason}")
    return None


def parse_hooks(rows: Iterable[Mapping[str, Any]]) -> Iterable[Hook]:
    """Yield the base chains of what `nft -j list chains` prints."""
    for row in rows:
        chain = row.get("chain", {})
        if "hook" in chain:
            device = chain.get("dev", ())
            devices = (device,) if isinstance(device, str) else tuple(device)
            yield Hook(
                chain["family"], chain["table"], chain["name"], chain["hook"], chain.get("policy", "accept"), devices
            )
