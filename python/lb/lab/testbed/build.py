"""
Turn a topology into network namespaces joined by veth pairs and bridges.

Each host is a namespace; the other ends of its links sit in one more namespace, the switch, where a bridge per segment
joins them. Kernel forwarding is off everywhere, so hosts reach each other only while a balancer runs in the router.
Talks netlink through pyroute2, which is imported late (it takes a third of a second).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lb.lab.testbed import ethtool, isolation
from lb.lab.testbed.topology import ROUTER_NUMBER, SWITCH, Host, Interface, RoutePlan, Topology

if TYPE_CHECKING:
    from pyroute2 import IPRoute

# Order matters: a change of forwarding resets the redirect settings.
HOST_SETTINGS: tuple[tuple[str, str], ...] = (
    ("ipv4/ip_forward", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    *(
        (f"ipv4/conf/{scope}/{name}", "0")
        for scope in ("all", "default")
        for name in ("send_redirects", "accept_redirects", "rp_filter")
    ),
    *(
        (f"ipv6/conf/{scope}/{name}", "0")
        for scope in ("all", "default")
        for name in (
            "disable_ipv6",
            "accept_dad",
            "dad_transmits",
            "accept_ra",
            "accept_redirects",
            "router_solicitations",
        )
    ),
)
# Where Docker runs, every bridge of a new namespace hands its frames to the firewall. The switch is a cable.
SWITCH_SETTINGS: tuple[tuple[str, str], ...] = tuple(
    (f"bridge/bridge-nf-call-{name}", "0") for name in ("iptables", "ip6tables", "arptables")
)
# The smallest bucket: ten full frames. And the queue behind it.
BURST_BYTES, QUEUE_BYTES = 16 * 1024, 4 * 1024 * 1024


def namespace_names(topology: Topology, prefix: str) -> tuple[str, ...]:
    """Return the names of all namespaces the topology needs, the switch first."""
    return (prefix + SWITCH, *(prefix + host.name for host in topology.hosts))


def has_ipv6() -> bool:
    """Tell whether this kernel speaks IPv6."""
    return Path("/proc/sys/net/ipv6").exists()


def connect(topology: Topology, prefix: str, offloads: bool) -> None:
    """
    Wire namespaces that exist: links, addresses, routes, kernel settings.

    Args:
        topology: what to wire.
        prefix: of the namespaces' names.
        offloads: whether the links keep their checksum and segmentation offloads.

    Raises:
        OSError: the kernel refused a step (pyroute2's NetlinkError is mapped to it).
    """
    with _netlink_errors(), ExitStack() as stack:
        with isolation.inside(prefix + SWITCH):
            _apply_settings(SWITCH_SETTINGS)
        switch = stack.enter_context(_netlink(prefix + SWITCH))
        bridges = {segment: _add_bridge(switch, segment.bridge) for segment in topology.segments if not segment.wire}
        for segment in topology.segments:
            if segment.wire:
                _add_wire(prefix, *topology.interfaces_of(segment))
        for host in topology.hosts:
            with _netlink(prefix + host.name) as netlink, isolation.inside(prefix + host.name):
                _apply_settings(HOST_SETTINGS)
                for interface in host.interfaces:
                    if not interface.segment.wire:
                        _add_link(switch, prefix, host, interface, bridges[interface.segment])
                    if not offloads:
                        ethtool.set_offloads(interface.name, False)
                _configure(netlink, topology, host)
        if not offloads:
            with isolation.inside(prefix + SWITCH):
                for host in topology.hosts:
                    for interface in host.interfaces:
                        if not interface.segment.wire:
                            ethtool.set_offloads(_switch_end(host, interface), False)


def set_kernel_forwarding(prefix: str, enabled: bool, host: str = "router") -> None:
    """Let a host's kernel forward packets, or not. Only measurements and tests want it on."""
    with isolation.inside(prefix + host):
        _write_setting("ipv4/ip_forward", str(int(enabled)))
        _write_setting("ipv6/conf/all/forwarding", str(int(enabled)))
        for scope in ("all", "default", "eth0"):
            _write_setting(f"ipv4/conf/{scope}/send_redirects", "0")


def set_extra_address(prefix: str, address: IPv4Address, present: bool, host: str = "router") -> None:
    """Give a host one more address, or take it away. Only proxies, which end connections, want the VIP."""
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        command = "add" if present else "del"
        netlink.addr(command, index=_index(netlink, "lo"), address=str(address), prefixlen=32)


def set_neighbour(prefix: str, host: str, interface: str, address: IPv4Address, mac: str) -> None:
    """Tell a host for good where an address is. Only measurements want it."""
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        netlink.neigh("replace", dst=str(address), lladdr=mac, ifindex=_index(netlink, interface), state="permanent")


def set_link(prefix: str, host: str, up: bool, interface: str = "eth0") -> None:
    """Plug a host's cable in at the switch, or out: out, frames to and from it vanish without a word."""
    with _netlink_errors(), _netlink(prefix + SWITCH) as netlink:
        netlink.link("set", index=_index(netlink, f"{host}-{interface}"), state="up" if up else "down")


def set_route_mtu(prefix: str, host: str, interface: str, address: IPv4Address, mtu: int | None) -> None:
    """Give a host a route of its own to an address, with this MTU in bytes; None: take it away."""
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        index = _index(netlink, interface)
        if mtu is None:
            netlink.route("del", dst=f"{address}/32", oif=index)
        else:
            netlink.route("replace", dst=f"{address}/32", oif=index, metrics={"mtu": mtu})


def set_mac(prefix: str, host: str, interface: str, mac: str) -> None:
    """Give a host's interface another MAC address."""
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        netlink.link("set", index=_index(netlink, interface), address=mac)


def learn_neighbour(prefix: str, host: str, interface: str, address: IPv4Address, mac: str) -> None:
    """Tell a host where an address is, as a gratuitous ARP would."""
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        netlink.neigh("replace", dst=str(address), lladdr=mac, ifindex=_index(netlink, interface), state="stale")


def add_route(prefix: str, host: Host, destination: IPv4Network) -> None:
    """Let a host send to one more network through the router. Only measurements and tests want it."""
    gateway = str(host.interfaces[0].segment.address(ROUTER_NUMBER))
    with _netlink_errors(), _netlink(prefix + host.name) as netlink:
        netlink.route("replace", dst=str(destination), gateway=gateway)


def limit_bandwidth(prefix: str, host: str, interface: str, bits_per_s: float) -> None:
    """
    Let a host send no faster, by a token bucket (tbf) on its interface.

    The bucket holds four milliseconds: frames larger than it are cut by the qdisc, not lost. The queue behind it is
    long enough that TCP, which keeps little there (TCP small queues), loses nothing either.
    """
    rate = int(bits_per_s / 8)
    burst = max(BURST_BYTES, rate // 250)
    with _netlink_errors(), _netlink(prefix + host) as netlink:
        index = _index(netlink, interface)
        netlink.tc("replace", "tbf", index=index, handle=0x10000, rate=rate, burst=burst, limit=QUEUE_BYTES)


def _switch_end(host: Host, interface: Interface) -> str:
    return f"{host.name}-{interface.name}"


@contextmanager
def _netlink(namespace: str) -> Iterator[IPRoute]:
    from pyroute2 import IPRoute

    with isolation.inside(namespace):
        netlink = IPRoute()
    try:
        yield netlink
    finally:
        netlink.close()


@contextmanager
def _netlink_errors() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, str(error.args[-1] if error.args else error)) from error


def _index(netlink: Any, name: str) -> int:
    return int(netlink.link_lookup(ifname=name)[0])


def _add_bridge(switch: Any, name: str) -> int:
    # Without forward delay a port forwards at once; without snooping, neighbour discovery needs no listener reports.
    switch.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
    index = _index(switch, name)
    switch.link("set", index=index, state="up")
    return index


def _add_link(switch: Any, prefix: str, host: Host, interface: Interface, bridge: int) -> None:
    with (isolation.NETNS_DIR / (prefix + host.name)).open("rb") as namespace:
        peer = {
            "ifname": interface.name,
            "net_ns_fd": namespace.fileno(),
            "address": interface.mac,
            "mtu": interface.mtu,
        }
        switch.link("add", ifname=_switch_end(host, interface), kind="veth", mtu=interface.mtu, peer=peer)
    switch.link("set", index=_index(switch, _switch_end(host, interface)), master=bridge, state="up")


def _add_wire(prefix: str, near: tuple[Host, Interface], far: tuple[Host, Interface]) -> None:
    (host, interface), (other, peer_interface) = near, far
    with (
        _netlink(prefix + host.name) as netlink,
        (isolation.NETNS_DIR / (prefix + other.name)).open("rb") as namespace,
    ):
        peer = {
            "ifname": peer_interface.name,
            "net_ns_fd": namespace.fileno(),
            "address": peer_interface.mac,
            "mtu": peer_interface.mtu,
        }
        netlink.link("add", ifname=interface.name, kind="veth", address=interface.mac, mtu=interface.mtu, peer=peer)


def _apply_settings(settings: Iterable[tuple[str, str]]) -> None:
    for name, value in settings:
        _write_setting(name, value)


def _write_setting(name: str, value: str) -> None:
    # A kernel without IPv6 or bridge filters lacks them; forwarding is off in a new namespace anyway.
    with suppress(FileNotFoundError):
        Path("/proc/sys/net", name).write_text(value)


def _configure(netlink: Any, topology: Topology, host: Host) -> None:
    families = (4, 6) if has_ipv6() else (4,)
    netlink.link("set", index=_index(netlink, "lo"), state="up")
    indexes = {interface.name: _index(netlink, interface.name) for interface in host.interfaces}
    for interface in host.interfaces:
        netlink.link("set", index=indexes[interface.name], state="up")
        for address in topology.interface_addresses(host, interface):
            if address.version in families:
                netlink.addr(
                    "add", index=indexes[interface.name], address=str(address.ip), prefixlen=address.network.prefixlen
                )
    for route in topology.routes(host):
        if route.destination.version in families:
            netlink.route("add", **_route_arguments(route, indexes[route.interface]))


def _route_arguments(route: RoutePlan, index: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dst": str(route.destination), "oif": index}
    if route.gateway is not None:
        arguments["gateway"] = str(route.gateway)
    elif route.destination.version == 4:
        arguments["scope"] = "link"
    metrics = {name: value for name, value in (("mtu", route.mtu), ("advmss", route.advmss)) if value is not None}
    if metrics:
        arguments["metrics"] = metrics
    return arguments
