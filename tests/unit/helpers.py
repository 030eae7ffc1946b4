"""
A small topology for behaviour tests: a router with two interfaces, clients, servers, services of both families;
scapy is the oracle.

    client 198.18.1.21 -- eth0 [router 198.18.1.1] eth0 -- servers 198.18.1.31, .32, .33      VIP 198.18.1.100
                               [router 198.18.2.1] eth1 -- far away, 198.18.2.0/24
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, settings
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from lb.backends.base import DataPath, Result
from lb.model.snapshot import Interface, Neighbour, NextHops, Plan, Route, Server, Service, Snapshot
from lb.packet.offload import Offload
from snapshots import complete_snapshot, make_service

ROUTER_MAC = "aa:aa:aa:00:00:01"
ROUTER_MAC_1 = "aa:aa:aa:00:01:01"
CLIENT_MAC = "aa:aa:aa:00:00:21"
SERVER_MACS = {number: f"aa:aa:aa:00:00:{number}" for number in (31, 32, 33)}
FAR_MAC = "aa:aa:aa:00:02:09"

ROUTER, ROUTER6 = "198.18.1.1", "2001:db8:1::1"
CLIENT, CLIENT6 = "198.18.1.21", "2001:db8:1::21"
VIP, VIP6 = "198.18.1.100", "2001:db8:1::100"
SERVERS = ("198.18.1.31", "198.18.1.32", "198.18.1.33")
SERVERS6 = ("2001:db8:1::31", "2001:db8:1::32", "2001:db8:1::33")
FAR, FAR6 = "198.18.2.9", "2001:db8:2::9"

WEB_PORT, DNS_PORT = 9876, 53
CLIENT_PORT = 40000
SECOND = 10**9
START = 10**15  # an arbitrary instant

# Service ids of `make_snapshot`, and where its servers' ports begin.
WEB, DNS, WEB6, DNS6 = 0, 1, 2, 3
SERVICES = (
    ("web", VIP, WEB_PORT, "tcp"),
    ("dns", VIP, DNS_PORT, "udp"),
    ("web6", VIP6, WEB_PORT, "tcp"),
    ("dns6", VIP6, DNS_PORT, "udp"),
)
SERVER_PORT = {"tcp": 8031, "udp": 5353}


# The backend fixture is a name: it may stay the same for all examples of a property.
PROPERTY = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mac_bytes(text: str) -> bytes:
    """Return the 6 bytes of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def load_backend(name: str) -> ModuleType:
    """Import a backend by name; the error says what is missing."""
    return importlib.import_module(f"lb.backends.{name}")


def server_id(service: int, index: int) -> int:
    """Return the id of the index-th server of a service of `make_snapshot`."""
    return service * 3 + index


def make_interfaces(mtu: int) -> tuple[Interface, ...]:
    """Build the two interfaces of the small topology."""
    return (
        Interface(
            "eth0",
            mac_bytes(ROUTER_MAC),
            mtu,
            (ip_interface(f"{ROUTER}/24"), ip_interface(f"{ROUTER6}/64")),
            announce=True,
        ),
        Interface(
            "eth1", mac_bytes(ROUTER_MAC_1), mtu, (ip_interface("198.18.2.1/24"), ip_interface("2001:db8:2::1/64"))
        ),
    )


def make_snapshot(
    selector: str = "counter",
    slots: Sequence[int] | None = None,
    *,
    scores: Sequence[int] = (),
    weights: Sequence[int] = (1, 1, 1),
    fallback: Plan | None = None,
    on_no_server: str = "reset",
    server_macs: bool = False,
    mtu: int = 1500,
    **fields: Any,
) -> Snapshot:
    """
    Build a snapshot of the small topology.

    Args:
        selector: of the plan of all four services.
        slots: server indices 0..2 within each service; None: one slot each.
        scores: of the plan. fallback: of the plan, its slots indices 0..2.
        weights: of the three servers of each service.
        on_no_server: of all services.
        server_macs: give each server its MAC in the configuration.
        mtu: of both interfaces.
        fields: any field of `Snapshot`.
    """
    slots = (0, 1, 2) if slots is None else slots
    services: list[Service | None] = []
    servers: list[Server | None] = []
    for number, (name, vip, port, protocol) in enumerate(SERVICES):
        ids = tuple(server_id(number, index) for index in slots)
        moved = (
            None if fallback is None else replace(fallback, slots=tuple(server_id(number, i) for i in fallback.slots))
        )
        plan = Plan(selector, ids, tuple(scores), moved)  # type: ignore[arg-type]
        services.append(make_service(name, ip_address(vip), port, protocol, plan, on_no_server=on_no_server))
        for index, address in enumerate(SERVERS6 if ":" in vip else SERVERS):
            mac = mac_bytes(SERVER_MACS[31 + index]) if server_macs else None
            servers.append(
                Server(
                    f"server{index + 1}",
                    number,
                    server_id(number, index),
                    ip_address(address),
                    SERVER_PORT[protocol],
                    weights[index],
                    mac,
                )
            )
    defaults: dict[str, Any] = {
        "generation": 1,
        "seed": 1,
        "interfaces": make_interfaces(mtu),
        "services": tuple(services),
        "servers": tuple(servers),
    }
    return complete_snapshot(**{**defaults, **fields})


def make_next_hops(*, mtu: int | None = None, without: Sequence[str] = ()) -> NextHops:
    """
    Build the routes and neighbours of the small topology.

    Args:
        mtu: of all routes.
        without: addresses whose neighbours are not resolved yet.
    """
    prefixes = (("198.18.1.0/24", 0), ("2001:db8:1::/64", 0), ("198.18.2.0/24", 1), ("2001:db8:2::/64", 1))
    macs = [(0, CLIENT, CLIENT_MAC), (0, CLIENT6, CLIENT_MAC), (1, FAR, FAR_MAC), (1, FAR6, FAR_MAC)]
    macs += [(0, address, SERVER_MACS[31 + i % 3]) for i, address in enumerate((*SERVERS, *SERVERS6))]
    return NextHops(
        tuple(Route(ip_network(prefix), interface, None, mtu) for prefix, interface in prefixes),
        tuple(Neighbour(i, ip_address(address), mac_bytes(mac)) for i, address, mac in macs if address not in without),
    )


def make_datapath(
    backend: str,
    snapshot: Snapshot | None = None,
    next_hops: NextHops | None = None,
    *,
    capacity: int = 1024,
    seed: int = 1,
    first_round: int = 0,
    table_fd: int | None = None,
) -> DataPath:
    """Make a data path of a backend with a snapshot and next hops published; by default those of the small topology."""
    path: DataPath = load_backend(backend).DataPath(capacity, bytes(range(16)), seed, first_round, table_fd)
    path.publish(make_snapshot() if snapshot is None else snapshot)
    path.set_next_hops(make_next_hops() if next_hops is None else next_hops)
    return path


class Box:
    """
    A data path with a clock, for tests that tell a story.

    Args:
        backend: `python` or `rust`.
        options: of `make_datapath`.
    """

    def __init__(
        self, backend: str, snapshot: Snapshot | None = None, next_hops: NextHops | None = None, **options: Any
    ) -> None:
        self.path = make_datapath(backend, snapshot, next_hops, **options)
        self.now = START

    def send(self, frame: bytes | ScapyPacket, interface: int = 0, offload: Offload | None = None) -> Result:
        """Process a frame now."""
        return self.path.process(bytes(frame), interface, self.now, offload)

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * SECOND)

    def tick(self) -> list[tuple[str, bytes, Offload | None]]:
        """Tick now."""
        return self.path.tick(self.now)

    def counters(self) -> dict[str, Any]:
        """Return the counters."""
        return self.path.counters()

    def event(self, name: str) -> int:
        """Return how often an event happened."""
        return int(self.path.counters()["events"][name])

    def states(self) -> list[str]:
        """Return the states of all flows."""
        return [flow.state for flow in self.path.flows(self.now)]


def ip_layer(source: str, destination: str, **fields: Any) -> ScapyPacket:
    """Build an IP header of the addresses' family; `ttl` stands for hop limit too."""
    if ":" in source:
        if "ttl" in fields:
            fields["hlim"] = fields.pop("ttl")
        return IPv6(src=source, dst=destination, **fields)
    return IP(src=source, dst=destination, **{"id": 1, **fields})


def from_client(
    payload: ScapyPacket, source: str = CLIENT, destination: str | None = None, **fields: Any
) -> ScapyPacket:
    """Build a frame from the client, by default to the VIP of its family."""
    destination = destination or (VIP6 if ":" in source else VIP)
    return Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / ip_layer(source, destination, **fields) / payload


def from_server(payload: ScapyPacket, index: int = 0, destination: str = CLIENT, **fields: Any) -> ScapyPacket:
    """Build a frame from a server, by default to the client."""
    source = (SERVERS6 if ":" in destination else SERVERS)[index]
    return Ether(src=SERVER_MACS[31 + index], dst=ROUTER_MAC) / ip_layer(source, destination, **fields) / payload


def with_options(packet: ScapyPacket, options: bytes) -> bytes:
    """Put raw options, a multiple of 4 bytes, into the IPv4 header of an untagged frame; scapy would repair them."""
    frame = bytes(packet)
    header = bytearray(frame[14:34] + options)
    header[0] += len(options) // 4
    header[2:4] = (int.from_bytes(header[2:4], "big") + len(options)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = scapy_checksum(bytes(header)).to_bytes(2, "big")
    return frame[:14] + bytes(header) + frame[34:]


def request(flags: str = "S", seq: int = 1000, ack: int = 0, data: bytes = b"", port: int = CLIENT_PORT) -> ScapyPacket:
    """Build a TCP segment from the client to the web service."""
    return TCP(sport=port, dport=WEB_PORT, flags=flags, seq=seq, ack=ack) / Raw(data)


def response(
    flags: str = "SA", seq: int = 5000, ack: int = 1001, data: bytes = b"", port: int = CLIENT_PORT
) -> ScapyPacket:
    """Build a TCP segment from a web server to the client."""
    return TCP(sport=SERVER_PORT["tcp"], dport=port, flags=flags, seq=seq, ack=ack) / Raw(data)


def query(data: bytes = b"query", port: int = CLIENT_PORT) -> ScapyPacket:
    """Build a UDP datagram from the client to the DNS service."""
    return UDP(sport=port, dport=DNS_PORT) / Raw(data)


def answer(data: bytes = b"answer", port: int = CLIENT_PORT) -> ScapyPacket:
    """Build a UDP datagram from a DNS server to the client."""
    return UDP(sport=SERVER_PORT["udp"], dport=port) / Raw(data)


def only_frame(result: Result) -> ScapyPacket:
    """Return the one frame that a result sends, read by scapy, its checksums tested."""
    assert len(result.out) == 1, (result.verdict, result.reason, len(result.out))
    frame = result.out[0][1]
    assert_checksums(frame)
    return Ether(frame)


def inner_of(result: Result) -> bytes:
    """Return the packet that the untagged ICMP error sent by a result quotes, byte by byte: scapy would rebuild it."""
    frame = result.out[0][1]
    return frame[14 + (40 if frame[14] >> 4 == 6 else 20) + 8 :]


def assert_checksums(frame: bytes) -> None:
    """Compute every checksum of a frame anew with scapy and compare."""
    read = Ether(frame)
    again = Ether(frame)
    for layer in (IP, TCP, UDP, ICMP):
        if layer in again:
            del again[layer].chksum
    for layer in again.layers():
        if hasattr(again[layer], "cksum"):
            del again[layer].cksum
    computed = Ether(bytes(again))
    for layer in read.layers():
        for name in ("chksum", "cksum"):
            if layer.__name__ in ("IPerror", "TCPerror", "UDPerror", "IPerror6"):
                continue
            if hasattr(read[layer], name) and name in read[layer].fields:
                assert read[layer].fields[name] == computed[layer].fields[name], (layer.__name__, read.summary())


def open_flow(box: Box, source: str = CLIENT, index: int | None = None, port: int = CLIENT_PORT) -> int:
    """Let a client connect to the web service; return the index of the server that got it."""
    result = box.send(from_client(request(port=port), source))
    assert result.verdict == "forward", result
    server = int(str(result.server)[-1]) - 1
    assert index is None or server == index
    assert box.send(from_server(response(port=port), server, source)).verdict == "forward"
    assert box.send(from_client(request("A", 1001, 5001, port=port), source)).verdict == "forward"
    return server
