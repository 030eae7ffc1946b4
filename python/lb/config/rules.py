"""
What the fields of a configuration must be to each other: no duplicates, no address in two roles, policies that exist.

Control side, used by `lb.config`. The checks read the raw TOML values and skip whatever a field's own type refuses,
so that one wrong field hides no other problem. They are deterministic and look at no machine.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from lb.config.model import HealthConfig, ServiceConfig
from lb.config.toml.locator import Path
from lb.config.toml.problem import Problem, dotted
from lb.fields.key import default_of
from lb.fields.types import (
    CheckTime,
    FlowTimeout,
    format_endpoint,
    parse_address,
    parse_interface_address,
    parse_listen_address,
    show,
)
from lb.model.limits import MOST_VIPS
from lb.model.snapshot import Address, InterfaceAddress, Network
from lb.policies import problems
from lb.policies.registry import is_users

# RFC 4787 REQ-5: a NAT's UDP timeout must not be shorter.
MIN_UDP_TIMEOUT_NS = 120 * 10**9
HERE = pathlib.Path()
CHECK_TIMES = ("interval", "timeout")
_check_time = TypeAdapter[int](CheckTime).validate_python
_flow_timeout = TypeAdapter[int](FlowTimeout).validate_python


@dataclass(frozen=True, slots=True)
class _Assigned:
    """A valid address in the configuration, and who has it."""

    path: Path
    address: Address
    owner: str


def check(document: Mapping[str, Any], base: pathlib.Path = HERE, *, runs_policies: bool = True) -> Iterator[Problem]:
    """
    Yield every problem between fields.

    Args:
        document: the raw TOML document.
        base: the folder that its relative paths start from.
        runs_policies: whether policies of users' own are loaded, which runs their code; False: they pass unseen.
    """
    yield from (missing_array(key) for key in ("interface", "service") if document.get(key) == [])
    yield from _check_names(document)
    yield from _check_addresses(document)
    yield from _check_timeouts(document)
    yield from _check_metrics(document)
    yield from _check_workers(document)
    yield from _check_replies(document)
    for path, service in _tables(document, "service"):
        yield from _check_service(path, service)
        yield from _check_health((*path, "health"), service)
        yield from _check_policy((*path, "policy"), service, base, runs_policies)


def missing_array(key: str) -> Problem:
    """Return the problem of an array of tables that is not there or empty."""
    return Problem((key,), f"no [[{key}]]: at least one is needed", "`lb init` writes a template")


def _tables(parent: Mapping[str, Any], key: str, path: Path = ()) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the tables of an array with their paths; nothing when it is not an array of tables."""
    items = parent.get(key)
    if not isinstance(items, list):
        return []
    return [((*path, key, number), item) for number, item in enumerate(items) if isinstance(item, dict)]


def _valid(parse: Callable[[object], Any], value: object) -> Any:
    """Return the parsed value, or None when its own field refuses it."""
    try:
        return parse(value)
    except ValueError:
        return None


def _duplicates(entries: Iterable[tuple[Path, object, str]]) -> Iterator[Problem]:
    """Yield a problem for every entry whose value an earlier one has. Entries: (path, value or None, what it is)."""
    seen: dict[object, Path] = {}
    for path, value, what in entries:
        if value is None:
            continue
        if value in seen:
            yield Problem(path, f"duplicate {what}", first=seen[value])
        seen.setdefault(value, path)


def _check_names(document: Mapping[str, Any]) -> Iterator[Problem]:
    interfaces, services = _tables(document, "interface"), _tables(document, "service")
    yield from _duplicates(_named(interfaces, "interface"))
    yield from _duplicates(_named(services, "service name"))
    yield from _duplicates(_listening(services))
    for path, service in services:
        servers = _tables(service, "server", path)
        yield from _duplicates(_named(servers, "server name"))
        yield from _duplicates(
            ((*server_path, "address"), _endpoint(server), f"server {_shown_endpoint(server)}")
            for server_path, server in servers
        )


def _named(tables: Iterable[tuple[Path, Mapping[str, Any]]], what: str) -> Iterator[tuple[Path, object, str]]:
    for path, table in tables:
        name = table.get("name")
        yield (*path, "name"), name if isinstance(name, str) else None, f"{what} {show(name)}"


def _listening(services: Iterable[tuple[Path, Mapping[str, Any]]]) -> Iterator[tuple[Path, object, str]]:
    for path, service in services:
        endpoint, protocol = _endpoint(service), service.get("protocol", default_of(ServiceConfig, "protocol"))
        value = None if endpoint is None else (*endpoint, str(protocol))
        yield (*path, "address"), value, f"listener {_shown_endpoint(service)}/{protocol}"


def _shown_endpoint(table: Mapping[str, Any]) -> str:
    return format_endpoint(table.get("address"), table.get("port"))


def _endpoint(table: Mapping[str, Any]) -> tuple[Address, int] | None:
    address, port = _valid(parse_address, table.get("address")), table.get("port")
    return (address, port) if address is not None and isinstance(port, int) else None


def _check_addresses(document: Mapping[str, Any]) -> Iterator[Problem]:
    services = _tables(document, "service")
    vips = list(_assigned(services, "service"))
    servers = [
        entry
        for path, service in services
        for entry in _assigned(_tables(service, "server", path), f"service {show(service.get('name'))}: server")
    ]
    own = dict(_interface_addresses(document))
    own_addresses = {interface.ip: path for path, interface in own.items()}
    vip_owners = {entry.address: entry.owner for entry in vips}
    for entry in vips + servers:
        if entry.address in own_addresses:
            yield Problem(
                entry.path,
                f"{entry.address} is an address of the balancer itself",
                f"see {dotted(own_addresses[entry.address])}; VIPs and servers need addresses of their own",
            )
        yield from _check_subnet(entry, own.values())
    for entry in servers:
        if entry.address in vip_owners:
            owner = vip_owners[entry.address]
            yield Problem(entry.path, f"{entry.address} is the VIP of {owner}", "a server has a real address")
    yield from _check_announce(document, [entry.address for entry in vips])


def _assigned(tables: Iterable[tuple[Path, Mapping[str, Any]]], what: str) -> Iterator[_Assigned]:
    for path, table in tables:
        if (address := _valid(parse_address, table.get("address"))) is not None:
            yield _Assigned((*path, "address"), address, f"{what} {show(table.get('name'))}")


def _interface_addresses(document: Mapping[str, Any]) -> Iterator[tuple[Path, InterfaceAddress]]:
    for path, interface in _tables(document, "interface"):
        addresses = interface.get("addresses")
        for number, text in enumerate(addresses if isinstance(addresses, list) else []):
            if (address := _valid(parse_interface_address, text)) is not None:
                yield (*path, "addresses", number), address


def _check_subnet(entry: _Assigned, interfaces: Iterable[InterfaceAddress]) -> Iterator[Problem]:
    """Yield a problem when an address is the broadcast or network address of a prefix: such packets never arrive."""
    if (why := unusable_in(entry.address, [interface.network for interface in interfaces])) is not None:
        yield Problem(entry.path, f"{entry.address} is {why}", "a host's address")


def unusable_in(address: Address, prefixes: Iterable[Network]) -> str | None:
    """Return why no host on one of the prefixes can have an address, such as `the broadcast address of ...`."""
    for network in prefixes:
        if network.version != 4 or network.prefixlen > 30:
            continue
        if address in (network.broadcast_address, network.network_address):
            what = "broadcast" if address == network.broadcast_address else "network"
            return f"the {what} address of {network}"
    return None


def _check_announce(document: Mapping[str, Any], vips: list[Address]) -> Iterator[Problem]:
    """Yield a warning for an interface that announces, though no neighbour would ask for a VIP there."""
    for path, interface in _tables(document, "interface"):
        given = interface.get("addresses")
        texts = given if isinstance(given, list) else []
        networks = [address.network for text in texts if (address := _valid(parse_interface_address, text))]
        if interface.get("announce") is not True or not networks or not vips:
            continue
        if not any(vip in network for vip in vips for network in networks):
            yield Problem(
                (*path, "announce"),
                "no VIP lies in a prefix of this interface, so no neighbour asks for one",
                "leave announce out, and route the VIPs to this host",
                at="key",
                severity="warning",
            )


def _check_timeouts(document: Mapping[str, Any]) -> Iterator[Problem]:
    flows = document.get("flows")
    udp_ns = _valid(_flow_timeout, flows.get("udp")) if isinstance(flows, dict) else None
    if udp_ns is not None and udp_ns < MIN_UDP_TIMEOUT_NS:
        hint = "hosts expect at least 120s of a NAT (RFC 4787 REQ-5)"
        yield Problem(("flows", "udp"), "UDP flows will be forgotten early", hint, severity="warning")


def _check_metrics(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield an error when the metrics would be served at a VIP, a warning when others than this machine read them."""
    metrics = document.get("metrics")
    address = _valid(parse_listen_address, metrics.get("address")) if isinstance(metrics, dict) else None
    # A socket on ::ffff:a.b.c.d is one on a.b.c.d.
    address = getattr(address, "ipv4_mapped", None) or address
    vips = {entry.address: entry.owner for entry in _assigned(_tables(document, "service"), "service")}
    if address in vips:
        hint = "packets to a VIP never reach this host's own sockets: an address of an interface, or 127.0.0.1"
        yield Problem(("metrics", "address"), f"{address} is the VIP of {vips[address]}", hint)
        return
    if address is not None and not address.is_loopback:
        hint = "other hosts can read the metrics there, with the names of services and servers"
        yield Problem(("metrics", "address"), f"{address} is not a loopback address", hint, severity="warning")


def _check_workers(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what goes with one worker only."""
    workers = document.get("workers")
    if not isinstance(workers, int) or workers < 2:
        return
    for path, interface in _tables(document, "interface"):
        if interface.get("transmit") == "direct":
            hint = 'transmit = "queue", or workers = 1'
            yield Problem((*path, "transmit"), "frames go straight to the driver from one worker only", hint)
    if len({entry.address for entry in _assigned(_tables(document, "service"), "service")}) > MOST_VIPS:
        yield Problem(("workers",), f"several workers serve at most {MOST_VIPS} VIPs", "workers = 1")


def _check_replies(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield warnings for what goes badly with `replies = "any"` (rule 8.23, replies through any balancer)."""
    cluster = document.get("cluster")
    if not isinstance(cluster, dict) or cluster.get("replies") != "any":
        return
    if document.get("transit") == "forward":
        hint = "what a server sends from a service's port is always a reply of that service"
        text = "clients cannot speak to servers directly at a service's port"
        yield Problem(("transit",), text, hint, severity="warning")
    owners: dict[object, object] = {}
    for path, service in _tables(document, "service"):
        name, policy = service.get("name"), (_policy_table(service) or {}).get("name")
        if policy == "adaptive":
            hint = "least-connections or two-choices: they need no measurements"
            yield Problem((*path, "policy"), "adaptive measures nothing here", hint, severity="warning")
        protocol = str(service.get("protocol", default_of(ServiceConfig, "protocol")))
        for server_path, server in _tables(service, "server", path):
            owner = owners.setdefault((_endpoint(server), protocol), name)
            if owner != name:
                text = f"whether a reply of {_shown_endpoint(server)} is of {owner} or of {name} often nobody can tell"
                hint = "give each service ports of its own at its servers: such replies are dropped"
                yield Problem((*server_path, "address"), text, hint, severity="warning")


def _check_service(path: Path, service: Mapping[str, Any]) -> Iterator[Problem]:
    vip = _valid(parse_address, service.get("address"))
    servers = _tables(service, "server", path)
    if not servers and "server" not in service:
        hint = "add [[service.server]]"
        yield Problem(path, "no server: every new flow is refused", hint, severity="warning")
    for server_path, server in servers:
        address = _valid(parse_address, server.get("address"))
        if vip is not None and address is not None and address.version != vip.version:
            yield Problem(
                (*server_path, "address"),
                f"{address} is IPv{address.version}, the VIP {vip} is IPv{vip.version}",
                "packets are not translated between the two",
            )


def _check_health(path: Path, service: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong between the keys of `health`. A check must end before the next one begins."""
    health = service.get("health")
    if not isinstance(health, dict):
        return
    interval_ns, timeout_ns = (
        _valid(_check_time, health.get(key, default_of(HealthConfig, key))) for key in CHECK_TIMES
    )
    if interval_ns is not None and timeout_ns is not None and timeout_ns > interval_ns:
        hint = "a check must be over when the next one is due"
        key = "timeout" if "timeout" in health else "interval"
        yield Problem((*path, key), "the timeout is longer than the interval", hint)
    if health.get("check") == "tcp":
        for key in [key for key in ("path", "expect") if key in health]:
            yield Problem((*path, key), "a check by TCP asks for nothing", f'check = "http", or no {key}', at="key")
    if service.get("protocol") == "udp" and "port" not in health:
        yield Problem(path, "checks are TCP connections: a UDP service has to say to which port", "port = 8080")


def policy_names(document: Mapping[str, Any]) -> list[str]:
    """Return the names of all policies in a raw document."""
    tables = (_policy_table(service) for _, service in _tables(document, "service"))
    return [table["name"] for table in tables if table is not None]


def _policy_table(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a service says about its policy; None when it says nothing that can be used."""
    policy = service.get("policy")
    table = {"name": policy} if isinstance(policy, str) else policy
    return table if isinstance(table, dict) and isinstance(table.get("name"), str) else None


def _check_policy(path: Path, service: Mapping[str, Any], base: pathlib.Path, runs_policies: bool) -> Iterator[Problem]:
    policy, table = service.get("policy"), _policy_table(service)
    if table is None:
        return
    name = table["name"]
    if not runs_policies and is_users(name):
        return
    options = {key: value for key, value in table.items() if key != "name"}
    names = [str(server.get("name")) for _, server in _tables(service, "server")]
    name_path = path if isinstance(policy, str) else (*path, "name")
    for problem in problems(name, options, names, base):
        where = (*path, problem.option) if problem.option in options else name_path
        yield Problem(where, problem.message, problem.hint, problem.at)
