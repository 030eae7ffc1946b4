"""
The checks of `lb doctor`: each says pass, warn or fail, and how to fix it. Pure: facts in, findings out.

*fail*: some or all packets do not flow until it is fixed. *warn*: it may be intended, or matters only in some networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lb.config import Config, ServerConfig, ServiceConfig
from lb.doctor.facts import CAP_NET_ADMIN, CAP_NET_RAW, Facts, InterfaceFacts
from lb.model.snapshot import Address
from lb.model.units import count
from lb.net.host import SYSCTLS

Level = Literal["pass", "warn", "fail"]
OLDEST_KERNEL = (4, 20)
# A TCP segment is this much smaller than the packet that carries it: 20 bytes of TCP, 12 of its timestamps, and IP.
TCP_BYTES, IP_BYTES = 32, {4: 20, 6: 40}
STRICT_RP_FILTER = 1
# A server that got this many packets and sent none back has no return route through here.
SILENT_PACKETS = 3
# Reasons that make up less of the received packets than this are noise.
NOTABLE_SHARE = 0.01
DROP_HINTS = {
    "no_flow": "the balancer did not see these connections begin: route both directions through this host",
    "no_service": "clients connect to a port that has no service: check it with `lb explain CLIENT:PORT VIP:PORT`",
    "transit": 'hosts use this host as a router: set transit = "forward" to route their packets',
    "no_route": "there is no route to a server or client: check `ip route`",
    "neighbour_timeout": "a host does not answer ARP or neighbour discovery: check that it is up and on that link",
    "neighbour_unresolved": "a host does not answer ARP or neighbour discovery: check that it is up and on that link",
    "table_full": "the flow table is full: raise flows.capacity and restart",
    "new_flow_limit": "sources begin more flows than new_flow_limit allows: raise it, unless this is a flood",
    "overload": "packets come faster than they are processed: set new_flow_limit, or raise workers",
    "rate_limited": "icmp_rate allows fewer errors than are due: raise it if their senders need them",
    "spoofed_server": "a server's packets come in by another interface than its route: check cabling and routes",
    "no_server": "no server takes new flows: check `lb status`",
    "too_big": "packets that must not be fragmented exceed the MTU of the next hop: let ICMP reach their senders",
    "hairpin": "a server is a client of its own service: let it connect to a server's address",
    "flow_conflict": "two services share a server and port, and a client uses one source port for both: separate them",
}
# Reasons that count also as a reply: the client got an ICMP error or a RST.
REFUSALS = frozenset(
    {"hairpin", "flow_conflict", "table_full", "no_route", "neighbour_timeout", "neighbour_unresolved"}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix`: the command or change that fixes it; None when there is nothing to fix."""

    check: str
    level: Level
    message: str
    fix: str | None = None


Check = Callable[[Config, Facts], Iterator[Finding]]


def examine(config: Config, facts: Facts) -> list[Finding]:
    """Return all findings, in the order in which a packet would meet the faults."""
    findings = [finding for check in CHECKS for finding in check(config, facts)]
    return [*findings, *(Finding("not checked", "warn", each, "run as root, on this host") for each in facts.blind)]


def check_capabilities(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check the capabilities to read packets and query the kernel."""
    names = {CAP_NET_RAW: "CAP_NET_RAW", CAP_NET_ADMIN: "CAP_NET_ADMIN"}
    missing = [name for number, name in names.items() if not facts.capabilities >> number & 1]
    if not missing:
        yield Finding("privileges", "pass", "CAP_NET_RAW and CAP_NET_ADMIN are available")
        return
    fix = "run as root: `sudo lb run -c FILE`; or run in a testbed without root: `lb run --testbed`"
    yield Finding("privileges", "fail", f"no {' and no '.join(missing)}: `lb` cannot read packets", fix)


def check_kernel(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that the kernel has the packet socket features that `lb run` needs."""
    version, oldest = (".".join(map(str, pair)) for pair in (facts.kernel, OLDEST_KERNEL))
    if facts.kernel < OLDEST_KERNEL:
        fix = f"upgrade to Linux {oldest} or newer"
        yield Finding("kernel", "fail", f"Linux {version} has no PACKET_IGNORE_OUTGOING", fix)
    else:
        yield Finding("kernel", "pass", f"Linux {version}")


def check_file(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that only root and its owner can change the configuration and its policies."""
    for fault in facts.file_faults:
        yield Finding("configuration", "fail", fault.message, fault.fix)
    if not facts.file_faults:
        message = f"{facts.config_path} is valid, and only root and its owner can change it"
        yield Finding("configuration", "pass", message)


def check_links(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that the interfaces exist, are up and have addresses."""
    for link in facts.links.values():
        if link.missing is not None:
            yield Finding(
                "interface", "fail", link.missing, "correct its name under [[interface]]; `ip link` lists them"
            )
        elif not link.up:
            yield Finding("interface", "fail", f"{link.name} is down", f"ip link set {link.name} up")
        elif not link.addresses:
            message = f"{link.name} has no address: it cannot resolve neighbours or send ICMP errors"
            yield Finding("interface", "warn", message, f"ip addr add ADDRESS/LENGTH dev {link.name}")
        else:
            where = ", ".join(map(str, link.addresses))
            yield Finding("interface", "pass", f"{link.name} is up: {where}, MTU {link.mtu}")


def check_claims(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that no other balancer uses an interface."""
    ours = {interface["name"] for interface in (facts.status or {}).get("interfaces", ())}
    for link in usable(facts):
        if link.claimed and link.name in ours:
            pid = (facts.status or {}).get("pid")
            yield Finding("one balancer", "pass", f"{link.name}: used by the running balancer (pid {pid})")
        elif link.claimed:
            message = f"{link.name}: another balancer uses it, and does not answer on this control socket"
            yield Finding("one balancer", "fail", message, "stop it, or name its socket: `lb doctor --control SOCKET`")
        else:
            yield Finding("one balancer", "pass", f"{link.name} is free")


def check_vips_not_here(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that no host has a VIP as its own address: it would answer instead of the balancer."""
    for vip in vips(config):
        owners = [name for name, rows in facts.addresses.items() if any(row.ip == vip for row in rows)]
        for name in owners:
            message = f"{vip} is an address of {name}: this host answers instead of the balancer"
            yield Finding("VIP conflict", "fail", message, f"ip addr del {vip} dev {name}")
        if facts.owners and vip in facts.owners:
            message = f"{vip} is in use by another host, {facts.owners[vip]}: clients may reach that host instead"
            yield Finding("VIP conflict", "fail", message, f"remove {vip} from that host, or choose another VIP")
        elif not owners:
            yield Finding("VIP conflict", "pass", f"none: {vip} is on no interface here" + _probed(vip, facts))


def _probed(vip: Address, facts: Facts) -> str:
    here = any(vip in address.network for link in usable(facts) for address in link.addresses)
    return ", and no other host answers for it" if here and facts.owners is not None else ""


def check_vips_found(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that clients' packets reach this host: by announcement or by route."""
    announced = {entry.name for entry in config.interfaces if entry.announce}
    for vip in vips(config):
        names = [service.name for service in config.services if service.address == vip]
        seen = sum(_traffic(facts, name).get("packets_forward", 0) for name in names)
        on_link = [link for link in usable(facts) if any(vip in each.network for each in link.addresses)]
        if seen:
            yield Finding("clients come", "pass", f"{vip}: {count(seen)} packets from clients so far")
        elif any(link.name in announced for link in on_link):
            yield Finding("clients come", "pass", f"{vip} is announced")
        elif on_link:
            asked = "ARP" if vip.version == 4 else "neighbour discovery"
            message = f"{vip}: {asked} requests of hosts on {on_link[0].name} get no answer"
            fix = f"announce = true under [[interface]] {on_link[0].name}, or on the clients: {_route(vip, facts)}"
            yield Finding("clients come", "warn", message, fix)
        else:
            message = f"{vip} is in no prefix of this host: clients need a route to it through this host"
            yield Finding("clients come", "warn", message, f"on the clients' router: {_route(vip, facts)}")


def _route(vip: Address, facts: Facts) -> str:
    return f"`ip route replace {vip} via {_own_address(vip, facts)}`"


def _own_address(near: Address, facts: Facts) -> str:
    """Return an address of this host of the same family, in the same prefix if there is one."""
    mine = [each for link in usable(facts) for each in link.addresses if each.version == near.version]
    mine.sort(key=lambda each: near not in each.network)
    return str(mine[0].ip) if mine else "THIS-HOST"


def check_forwarding(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that the kernel neither answers the services' packets nor forwards untranslated copies."""
    yield from _guard_trouble(facts)
    for link in usable(facts):
        off = " && ".join(f"sysctl -w {SYSCTLS[version]}=0" for version in link.forwards)
        if link.forwards and config.transit == "forward":
            message = f'{link.name}: the kernel forwards, and transit = "forward" too: packets would be sent twice'
            yield Finding("kernel stays out", "fail", message, f'{off}, or transit = "drop"')
        elif link.claimed and link.guard == "none":
            message = f"{link.name}: another program removed the rules that keep the kernel from the services' packets"
            fix = "see the log of `lb run`, which restores them; or restart it"
            yield Finding("kernel stays out", "fail", message, fix)
        elif not link.claimed and link.guard in ("nftables", "rule"):
            message = f"{link.name}: no balancer runs, and the kernel is kept from the services' packets all the same"
            fix = "start `lb run`, which goes on with what a killed or failed one has left, and removes it when stopped"
            yield Finding("kernel stays out", "warn", message, fix)
        elif link.forwards and not facts.has_nft:
            message = f"{link.name}: the kernel forwards untranslated copies, and nft is not installed to prevent it"
            yield Finding("kernel stays out", "fail", message, off)
        elif link.forwards:
            message = (
                f"{link.name}: the kernel forwards; nftables drops the services' packets while `lb run` runs, the "
                "kernel forwards the rest"
            )
            yield Finding("kernel stays out", "warn", message, off)
        else:
            yield Finding("kernel stays out", "pass", f"{link.name}: the kernel forwards nothing, {_silence(link)}")


def _guard_trouble(facts: Facts) -> Iterator[Finding]:
    """Yield a finding when the running balancer says that it cannot keep the kernel out."""
    guard = (facts.status or {}).get("host_guard") or {}
    if guard.get("trouble"):
        message = f"this host's kernel still sees the services' packets: {guard['trouble']}"
        yield Finding("kernel stays out", "fail", message, "see the log of `lb run`, which tries again")


def _silence(link: InterfaceFacts) -> str:
    if link.guard in ("nftables", "rule"):
        by = "nftables" if link.guard == "nftables" else "a routing rule"
        return f"and {by} keeps it silent"
    return "and `lb run` keeps it silent"


def check_big_tcp(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that no frames exceed 64 KiB, the limit of packet sockets."""
    found = False
    for link in usable(facts):
        if link.big_tcp is not None:
            found = True
            yield Finding("frame size", "fail", f"{link.name}: {link.big_tcp.message}", link.big_tcp.fix)
    counters = (facts.status or {}).get("counters", {}).get("io", {})
    if lost := counters.get("rx_truncated", 0):
        found = True
        message = f"{count(lost)} frames larger than 64 KiB (BIG TCP) were dropped"
        fix = "on the hosts that send them: `ip link set dev DEVICE gso_max_size 65536 gso_ipv4_max_size 65536`"
        yield Finding("frame size", "fail", message, fix)
    if not found:
        yield Finding("frame size", "pass", "no interface makes frames larger than 64 KiB")


def check_rp_filter(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check whether reverse-path filtering drops answers to health checks."""
    strict = [link for link in usable(facts) if link.rp_filter == STRICT_RP_FILTER]
    for link in strict if len(facts.links) > 1 else ():
        message = f"{link.name}: strict rp_filter drops answers to health checks that come in by another interface"
        yield Finding("rp_filter", "warn", message, f"sysctl -w net.ipv4.conf.{link.name}.rp_filter=2")
    if not strict or len(facts.links) == 1:
        yield Finding("rp_filter", "pass", "ok: reverse-path filtering drops nothing here")


def check_offloads(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check that no network card merges packets by large receive offload."""
    for link in usable(facts):
        if link.lro:
            message = f"{link.name}: large receive offload merges packets, which cannot be undone"
            yield Finding("offloads", "fail", message, f"ethtool -K {link.name} lro off")
        else:
            yield Finding("offloads", "pass", f"{link.name}: all its offloads are supported")


def check_server_routes(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that the kernel has a route to each server through a configured interface."""
    for address, (server, _) in by_address(config).items():
        route, name = facts.routes.get(address), f"{server.name} ({address})"
        if route is None or route.interface is None:
            fix = f"`ip route add {address} dev INTERFACE`, or via GATEWAY"
            yield Finding("server route", "fail", f"{name}: there is no route to it", fix)
        elif route.interface not in facts.links:
            message = f"{name}: its route goes through {route.interface}, which is not configured"
            fix = f'add [[interface]] name = "{route.interface}", or a route through {", ".join(facts.links)}'
            yield Finding("server route", "fail", message, fix)
        elif route.neighbour in ("failed", "incomplete") and server.mac is None:
            hop = route.gateway or address
            message = f"{name}: {hop} does not answer {'ARP' if address.version == 4 else 'neighbour discovery'}"
            fix = f"check that it is up and on the link of {route.interface}: `ip neigh show {hop}`, `ping -c1 {hop}`"
            yield Finding("server route", "fail", message, fix)
        else:
            hop = f" via {route.gateway}" if route.gateway else ""
            yield Finding("server route", "pass", f"{name}:{hop} through {route.interface}")


def check_answers(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that each TCP server accepts connections from this host."""
    for service, server in servers(config):
        answer = facts.answers.get((server.address, server.port))
        if answer is None or service.protocol != "tcp":
            continue
        name, where = f"{service.name}/{server.name}", f"{server.address} port {server.port}"
        if answer.failure is None:
            yield Finding("server answers", "pass", f"{name}: {where} accepts connections")
            continue
        fix = f"on {server.name}: `ss -ltn 'sport = :{server.port}'`; check its packet filter"
        yield Finding("server answers", "fail", f"{name}: {where}: {answer.failure}", fix)


def check_mtu(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check that packets as large as clients may send fit the path to each server."""
    largest = max((link.mtu for link in usable(facts)), default=0)
    narrow = 0
    for address, (server, services) in by_address(config).items():
        route = facts.routes.get(address)
        link = facts.links.get(route.interface) if route is not None and route.interface is not None else None
        if route is None or link is None:
            continue
        found = (facts.answers.get((address, row.port)) for service in services for row in service.servers)
        segments = [answer.segment_bytes for answer in found if answer is not None and answer.segment_bytes is not None]
        announced = [segment + TCP_BYTES + IP_BYTES[address.version] for segment in segments]
        mtu = min([link.mtu, route.mtu or link.mtu, *announced])
        if mtu < largest:
            narrow += 1
            message = f"{server.name} ({address}): packets of {largest} bytes come in, its path has an MTU of {mtu}"
            fix = f"`ip link set {link.name} mtu {mtu}` on all hosts, or let ICMP pass: path MTU discovery needs it"
            yield Finding("MTU", "warn", message, fix)
    if not narrow:
        yield Finding("MTU", "pass", f"{largest} bytes to all servers" if largest else "no interface is up")


def check_return(config: Config, facts: Facts) -> Iterator[Finding]:
    """Check by the running balancer's counters that servers send their answers back through this host."""
    for address, (server, services) in by_address(config).items():
        name = f"{server.name} ({address})"
        sent, back = _packets(address, services, facts)
        tcp_sent, _ = _packets(address, [service for service in services if service.protocol == "tcp"], facts)
        shared = _shared_network(address, services, facts)
        via = f"on {server.name}: `ip route replace {shared or 'CLIENTS'} via {_own_address(address, facts)}`"
        if back:
            yield Finding("return path", "pass", f"{name}: {count(sent)} packets sent to it, {count(back)} back")
        elif sent and not tcp_sent:
            # Syslog or flow exports are never answered.
            message = f"{name}: {count(sent)} UDP packets sent to it, none back, as in one-way services"
            yield Finding("return path", "pass", message)
        elif tcp_sent >= SILENT_PACKETS:
            message = f"{name}: {count(tcp_sent)} packets sent to it, none back: its answers bypass this host"
            yield Finding("return path", "fail", message, via)
        elif shared is not None:
            message = f"{name}: it answers clients on its own link directly, unless it has a route through this host"
            yield Finding("return path", "warn", message, via)


def _packets(address: Address, services: list[ServiceConfig], facts: Facts) -> tuple[int, int]:
    """Return how many packets the running balancer sent to the servers at an address, and got from them."""
    rows = [
        _traffic(facts, service.name, row.name)
        for service in services
        for row in service.servers
        if row.address == address
    ]
    sent, back = (sum(row.get(f"packets_{direction}", 0) for row in rows) for direction in ("forward", "reply"))
    return sent, back


def _shared_network(address: Address, services: list[ServiceConfig], facts: Facts) -> str | None:
    """Return the prefix that a server shares with its VIPs, and so probably with its clients."""
    networks = [each.network for link in usable(facts) for each in link.addresses]
    for network in networks:
        if address in network and any(service.address in network for service in services):
            return str(network)
    return None


def check_filters(_: Config, facts: Facts) -> Iterator[Finding]:
    """Check for packet filter rules that may drop packets. Packet sockets see frames before the usual hooks."""
    found = False
    for hook in facts.hooks or ():
        where = f"nftables {hook.family} {hook.table} {hook.chain}"
        show = f"nft list chain {hook.family} {hook.table} {hook.chain}"
        if hook.hook in ("ingress", "egress") and (not hook.devices or set(hook.devices) & set(facts.links)):
            found = True
            message = f"{where} sees the balancer's packets ({hook.hook}) and may drop them"
            yield Finding("packet filter", "warn", message, show)
        elif hook.hook in ("input", "output") and hook.policy == "drop":
            found = True
            message = f"{where} drops by default: it may drop health checks, but no packets of services"
            fix = f"{show}; accept this host's connections to the servers and their answers"
            yield Finding("packet filter", "warn", message, fix)
    if facts.hooks is not None and not found:
        yield Finding("packet filter", "pass", "no rule can drop the balancer's packets")


def check_running(_: Config, facts: Facts) -> Iterator[Finding]:
    """Report the running balancer's own state."""
    status = facts.status
    if status is None:
        message = "no balancer answers: checks that need traffic were skipped"
        yield Finding("running", "warn", message, "start it: `lb run -c FILE`")
        return
    trouble, error = status.get("trouble"), status.get("last_reload_error")
    if trouble:
        yield Finding("running", "fail", str(trouble), "ip link")
    if error:
        fix = f"lb check {status['config']}, then lb reload"
        yield Finding("running", "warn", f"the last reload failed: {error}", fix)
    if not trouble and not error:
        yield Finding("running", "pass", f"pid {status['pid']}, backend {status['backend']}")
    if table := status.get("table_memory"):
        where = f"{table['memory']} memory" if table["path"] is None else f"{table['memory']} {table['path']}"
        yield Finding("flow table", "pass", f"{where}: {table['why']}")
    yield from _drops(status["counters"])


def _drops(counters: dict[str, Any]) -> Iterator[Finding]:
    received = counters["rx_packets"]
    lost: Counter[tuple[str, str]] = Counter()
    for name, times in counters["verdicts"].items():
        verdict, _, reason = name.partition(".")
        if verdict == "drop" and reason in DROP_HINTS:
            lost["dropped", reason] += times
        elif verdict == "reply" and reason in REFUSALS:
            lost["refused", reason] += times
    for (what, reason), packets in lost.most_common():
        if packets >= SILENT_PACKETS and packets / received >= NOTABLE_SHARE:
            message = f"{count(packets)} of {count(received)} packets were {what} as {reason}"
            yield Finding("drops", "warn", message, DROP_HINTS[reason])
    if overflow := counters.get("io", {}).get("rx_dropped", 0):
        message = (
            f"{count(overflow)} frames did not fit the socket's queue: packets come faster than they are processed"
        )
        yield Finding("drops", "warn", message, "use --backend rust, or spread the load over more machines")


def usable(facts: Facts) -> list[InterfaceFacts]:
    """Return the configured interfaces that exist and are up."""
    return [link for link in facts.links.values() if link.missing is None and link.up]


def vips(config: Config) -> list[Address]:
    """Return each VIP once, in order."""
    return list(dict.fromkeys(service.address for service in config.services))


def servers(config: Config) -> Iterator[tuple[ServiceConfig, ServerConfig]]:
    """Yield every server with its service."""
    for service in config.services:
        for server in service.servers:
            yield service, server


def by_address(config: Config) -> dict[Address, tuple[ServerConfig, list[ServiceConfig]]]:
    """Return each server's address once, with the first server there and all services that use it."""
    found: dict[Address, tuple[ServerConfig, list[ServiceConfig]]] = {}
    for service, server in servers(config):
        found.setdefault(server.address, (server, []))[1].append(service)
    return found


def _traffic(facts: Facts, service: str, server: str | None = None) -> dict[str, Any]:
    """Return the running balancer's counters of a service or server; empty when there are none."""
    for entry in (facts.status or {}).get("services", ()):
        if entry["name"] == service:
            found = [entry] if server is None else [each for each in entry["servers"] if each["name"] == server]
            return dict(found[0]) if found else {}
    return {}


CHECKS: tuple[Check, ...] = (
    check_capabilities,
    check_kernel,
    check_file,
    check_links,
    check_claims,
    check_offloads,
    check_big_tcp,
    check_forwarding,
    check_rp_filter,
    check_filters,
    check_vips_not_here,
    check_vips_found,
    check_server_routes,
    check_answers,
    check_mtu,
    check_return,
    check_running,
)
