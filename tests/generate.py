"""
Sequences of frames and events for the differential driver: valid, mutated and random, about flows that it remembers.

A `Generator` is seeded and learns from outcomes only which server a flow got. A step is a tuple that can be written
down and played again: `("frame", dt_ns, interface, frame, offload)`, `("tick", dt_ns)`, `("publish", overrides)`,
`("next_hops", overrides)`, `("unresolved",)`, `("check",)`. Behind the choices stand docs/rules.md's rules: each
should be reached often, alone and combined.
"""

from __future__ import annotations

import copy
import random
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import packets as p
from vectors.load import BASE, mac

Step = tuple[Any, ...]

SECOND = 10**9
ROUTER = mac("aa:aa:aa:00:00:01") or b""
ROUTER_1 = mac("aa:aa:aa:00:01:01") or b""
CLIENT_MACS = [mac(f"aa:aa:aa:00:00:{number}") or b"" for number in (21, 22, "fe")]
SERVER_MACS = {number: mac(f"aa:aa:aa:00:00:{number}") or b"" for number in (31, 32, 33)}
NET = {4: "198.18.1.", 6: "2001:2:0:1::"}
FAR_NET = {4: "10.0.0.", 6: "2001:2:0:2::"}
CLIENTS = {
    version: [ip_address(text).packed for text in texts]
    for version, texts in {
        4: ("198.18.1.21", "198.18.1.22", "198.51.100.7", "198.51.100.8", "198.18.1.31"),
        6: ("2001:2:0:1::21", "2001:2:0:1::22", "2001:db8::7", "2001:db8::8", "2001:2:0:1::31"),
    }.items()
}
VIPS = {4: ip_address("198.18.1.100").packed, 6: ip_address("2001:2:0:1::100").packed}
OURS = {4: ip_address("198.18.1.1").packed, 6: ip_address("2001:2:0:1::1").packed}
ODD = {
    version: [ip_address(text).packed for text in texts]
    for version, texts in {
        4: (
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.5",
            "255.255.255.255",
            "198.18.1.255",
            "240.0.0.1",
            "198.18.1.1",
            "10.9.9.9",
            "198.18.1.100",
        ),
        6: ("::", "::1", "ff02::1", "fe80::1", "::ffff:1.2.3.4", "2001:2:0:1::1", "2001:db8:9::9", "2001:2:0:1::100"),
    }.items()
}
SELECTORS = ("counter", "random", "hash-source", "hash-flow", "least", "two-choices", "ask")
# About every limit there is: timeouts, fragments' and neighbours' patience, and the instants beside them.
PAUSES = (
    10**6,
    10**8,
    SECOND,
    SECOND - 1,
    3 * SECOND,
    3 * SECOND - 1,
    10 * SECOND,
    30 * SECOND,
    30 * SECOND - 1,
    60 * SECOND,
    60 * SECOND + 1,
    120 * SECOND,
    300 * SECOND,
    300 * SECOND - 1,
    7200 * SECOND,
    7440 * SECOND,
)
OPTIONS4 = (
    b"\x01\x01\x01\x00",
    b"\x07\x07\x04\x00\x00\x00\x00\x00",
    b"\x94\x04\x00\x00",
    b"\x07\x07\x04\0\0\0\0\x94\x04\0\0\0",
    b"\x01" * 40,
    b"\x83\x07\x04\x01\x02\x03\x04\x00",
    b"\x07\x00\x00\x00",
    b"\x07\x09\x00\x00",
    b"\x00\x83\x01\x01",
    b"\x88\x04\0\0\x07\x04\x04\0",
)
EMPTY_OPTIONS = b"\x00\x01\x04\x00\x00\x00\x00"
EXTENSIONS = (
    (p.HOP, EMPTY_OPTIONS),
    (p.DESTINATION, EMPTY_OPTIONS),
    (p.DESTINATION, b"\x01\x01\x0c" + bytes(12)),
    (p.ROUTING, b"\x00\x04\x00\0\0\0\0"),
    (p.ROUTING, b"\x00\x00\x00\0\0\0\0"),
    (p.FRAGMENT, b"\x00\x00\x00\0\0\0\x07"),
    (p.DESTINATION, b"\x09" + EMPTY_OPTIONS[1:]),
)


# Where windows of 8 192 and 65 535 bytes, scaled by 0, 3 and an unknown shift, and that of 2^30 end, and beyond.
EDGES = tuple(
    sign * (window + more)
    for window in (8192, 65535, 8192 << 3, 65528 << 3, 1 << 14, 8192 << 14, 2**30)
    for more in (0, 1, 2)
    for sign in (1, -1)
)
# Window scale options: 3, the largest, beyond it, cut short.
SCALES = (b"\x03\x03\x03\x00", b"\x01\x03\x03\x0e", b"\x03\x03\xff\x00", b"\x01\x01\x03\x03")


@dataclass
class Conversation:
    """What the generator remembers of a flow it started."""

    version: int
    service: str
    protocol: int
    client: bytes
    sport: int
    vport: int
    mac: bytes
    interface: int
    server: str | None = None
    tags: bytes = b""
    seq: list[int] = field(default_factory=lambda: [0, 0])
    last: list[bytes] = field(default_factory=lambda: [b"", b""])


def setup(rng: random.Random) -> dict[str, Any]:
    """Draw a scene: the setup of a vector, complete where it differs from the base."""
    two = rng.random() < 0.4
    far = two and rng.random() < 0.8
    interfaces = copy.deepcopy(BASE["interfaces"])
    if two:
        interfaces.append(
            {
                "name": "eth1",
                "mac": "aa:aa:aa:00:01:01",
                "mtu": 1500,
                "addresses": ["10.0.0.1/24", "2001:2:0:2::1/64"],
                "announce": False,
            }
        )
    for interface in interfaces:
        interface["mtu"] = rng.choice((1500, 1500, 1500, 1300, 600, 80, 40))
        interface["announce"] = rng.random() < 0.7
        if rng.random() < 0.1:
            interface["addresses"] = interface["addresses"][: rng.randrange(2)]
    short = rng.random() < 0.3
    timeouts = (
        {"half_open": 2, "established": 10, "closing": 1, "udp": 3, "idle_floor": 1} if short else BASE["timeouts_s"]
    )
    drawn: dict[str, Any] = {
        "capacity": rng.choice((1, 4, 4, 5, 8, 8, 16, 64)),
        "seed": rng.choice((0, 1, 2**64 - 1, rng.getrandbits(64))),
        "hash_key": rng.randbytes(16).hex(),
        "interfaces": interfaces,
        "transit": rng.choice(("drop", "forward")),
        "answer_echo": rng.random() < 0.5,
        "any_replies": rng.random() < 0.3,
        "icmp_rate": rng.choice((0, 1, 3, 1000, 1000)),
        "timeouts_s": timeouts,
        "ask": rng.choice(
            (None, {"raises": "no"}, {"by_remainder": ["web1", None, "six2", "web3", "six1", "nobody", "dns1"]})
        ),
        "services": services(rng, far),
    }
    return {**drawn, **next_hops(rng, two)}


def services(rng: random.Random, far: bool) -> list[dict[str, Any]]:
    """Draw the services: web and dns in both versions, and sometimes a second service on web's servers."""
    made = []
    net = FAR_NET if far else NET
    for version, name, prefix in ((4, "web", "web"), (6, "web6", "six")):
        hosts = [
            {
                "name": f"{prefix}{i}",
                "address": f"{net[version]}{30 + i}",
                "port": 8030 + i,
                "weight": rng.randrange(4),
                "mac": _some_mac(rng),
            }
            for i in (1, 2, 3)
        ]
        names = [host["name"] for host in hosts]
        made.append(_service(rng, name, version, 9876, "tcp", names, hosts))
        if rng.random() < 0.5:
            shared = [{**host, "name": f"alt{host['name']}"} for host in hosts]
            made.append(_service(rng, f"alt{name}", version, 443, "tcp", [host["name"] for host in shared], shared))
    for version, name in ((4, "dns"), (6, "dns6")):
        host = {"name": f"{name}1", "address": f"{net[version]}31", "port": 5353, "weight": 1, "mac": None}
        other = {"name": f"{name}2", "address": f"{net[version]}32", "port": 5353, "weight": 1, "mac": None}
        host["moves_udp"], other["moves_udp"] = rng.random() < 0.15, rng.random() < 0.15
        made.append(_service(rng, name, version, 53, "udp", [f"{name}1", f"{name}2"], [host, other]))
    return [service for service in made if rng.random() < 0.95]


def _some_mac(rng: random.Random) -> str | None:
    return "aa:aa:aa:00:00:3a" if rng.random() < 0.1 else None


def _plan(rng: random.Random, names: list[str], depth: int = 0) -> dict[str, Any]:
    selector = rng.choice(SELECTORS)
    slots = [] if rng.random() < 0.06 else rng.choices(names, k=rng.randrange(1, 7))
    plan: dict[str, Any] = {"selector": selector, "slots": slots}
    if selector == "two-choices" and rng.random() < 0.5:
        plan["scores"] = [rng.randrange(1, 2 ** rng.choice((2, 40, 64))) for _ in slots]
    if selector == "ask" and depth == 0 and rng.random() < 0.8:
        plan["fallback"] = _plan(rng, names, 1)
    return plan


def _service(
    rng: random.Random, name: str, version: int, port: int, protocol: str, names: list[str], hosts: list[Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "address": str(ip_address(VIPS[version])),
        "port": port,
        "protocol": protocol,
        "plan": _plan(rng, names),
        "on_no_server": rng.choice(("reset", "drop")),
        "on_no_flow": rng.choice(("reset", "drop")),
        "new_flow_limit": _new_flow_limit(rng),
        "servers": hosts,
    }


def _new_flow_limit(rng: random.Random) -> dict[str, int] | None:
    """Draw a limit of new flows: most services have none."""
    if rng.random() < 0.8:
        return None
    prefixes = {"prefix_ipv4": rng.choice((0, 8, 24, 31, 32)), "prefix_ipv6": rng.choice((0, 56, 127, 128))}
    return {"rate": rng.choice((1, 3, 1000)), "burst": rng.choice((1, 2, 20)), **prefixes}


def next_hops(rng: random.Random, two: bool) -> dict[str, Any]:
    """Draw routes and neighbours."""
    routes = [
        {"prefix": "198.18.1.0/24", "interface": "eth0"},
        {"prefix": "2001:2:0:1::/64", "interface": "eth0"},
        {"prefix": "0.0.0.0/0", "interface": "eth0", "gateway": "198.18.1.254"},
        {"prefix": "::/0", "interface": "eth0", "gateway": "2001:2:0:1::fe"},
        {"prefix": "198.18.1.32/32", "interface": "eth0", "gateway": "198.18.1.254"},
    ]
    if two:
        routes += [{"prefix": "10.0.0.0/24", "interface": "eth1"}, {"prefix": "2001:2:0:2::/64", "interface": "eth1"}]
    for route in routes:
        if rng.random() < 0.15:
            route["mtu"] = rng.choice((1400, 1280, 576, 100, 68, 24))  # type: ignore[assignment]
    known = [list(entry) for entry in BASE["neighbours"]]
    if two:
        known += [
            ["eth1", f"{FAR_NET[version]}{number}", f"aa:aa:aa:00:00:{number}"]
            for version in (4, 6)
            for number in (31, 32, 33)
        ]
    missing = rng.choice((0, 0, 0, 0.3, 1))
    return {
        "routes": [route for route in routes if rng.random() < 0.95],
        "neighbours": [_moved(rng, entry) for entry in known if rng.random() >= missing],
    }


def _moved(rng: random.Random, entry: list[str]) -> list[str]:
    return [*entry[:2], "aa:aa:aa:00:00:3b"] if rng.random() < 0.05 else entry


class Generator:
    """Draws the steps of one sequence. `observe` tells it what came of the last frame."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.setup = setup(rng)
        self.flows: list[Conversation] = []
        self.pending: list[tuple[int, bytes]] = []
        self.current: Conversation | None = None
        self.by_name: dict[str, dict[str, Any]] = {}
        self._index()
        kinds = {
            self._tcp_step: 34,
            self._udp_step: 14,
            self._reply_step: 22,
            self._icmp_error: 9,
            self._icmp_other: 3,
            self._arp: 2,
            self._solicit: 2,
            self._fragments: 7,
            self._transit: 5,
            self._direct: 6,
            self._noise: 3,
        }
        self.kinds, self.weights = list(kinds), list(kinds.values())

    def _index(self) -> None:
        self.by_name = {server["name"]: server for service in self.setup["services"] for server in service["servers"]}

    def step(self) -> Step:
        """Draw the next step."""
        rng = self.rng
        draw = rng.random()
        self.current = None
        if draw < 0.02:
            return ("tick", self._pause())
        if draw < 0.035:
            return ("publish", self._changed())
        if draw < 0.045:
            changed = next_hops(rng, len(self.setup["interfaces"]) == 2)
            self.setup.update(changed)
            return ("next_hops", changed)
        if draw < 0.055:
            return ("unresolved",)
        if draw < 0.075:
            return ("check",)
        if draw < 0.08:
            return ("reset", rng.choice((*range(12), None)), rng.choice((1, 2, 100)))
        if self.pending and rng.random() < 0.4:
            interface, frame = self.pending.pop(0 if rng.random() < 0.8 else rng.randrange(len(self.pending)))
            return ("frame", self._pause(0.03), interface, self._mutated(frame, 0.03), None)
        interface, frame, offload = rng.choices(self.kinds, self.weights)[0]()
        return ("frame", self._pause(0.08), interface, self._mutated(frame, 0.12), offload)

    def observe(self, server: str | None) -> None:
        """Learn which server the last frame's flow has."""
        if self.current is not None and server is not None and server in self.by_name:
            self.current.server = server

    def _pause(self, chance: float = 1.0) -> int:
        """Draw a pause: half of them short, so that flows live to see more."""
        if self.rng.random() >= chance:
            return 0
        return self.rng.choice(PAUSES if self.rng.random() < 0.5 else PAUSES[:4])

    def _changed(self) -> dict[str, Any]:
        """Draw a changed snapshot: the same names, so the same ids."""
        rng = self.rng
        changed: dict[str, Any] = {}
        kind = rng.randrange(6)
        if kind < 2:
            drawn = services(
                rng,
                self.setup["services"][0]["servers"][0]["address"].startswith(("10.", "2001:2:0:2"))
                if self.setup["services"]
                else False,
            )
            gone = rng.choice(("web1", "six2", "dns2", "nobody"))
            for service in drawn:
                service["servers"] = [server for server in service["servers"] if server["name"] != gone]
                service["plan"] = _plan(rng, [server["name"] for server in service["servers"]])
            changed["services"] = drawn
        elif kind == 2:
            changed["icmp_rate"], changed["any_replies"] = rng.choice((0, 1, 1000)), rng.random() < 0.5
        elif kind == 3:
            changed["transit"], changed["answer_echo"] = rng.choice(("drop", "forward")), rng.random() < 0.5
        elif kind == 4:
            interfaces = copy.deepcopy(self.setup["interfaces"])
            rng.choice(interfaces)["mtu"] = rng.choice((1500, 1280, 576, 60))
            changed["interfaces"] = interfaces
        else:
            changed["seed"] = rng.getrandbits(64)
        self.setup.update(changed)
        self._index()
        return changed

    # Frames of flows.

    def _start(self, protocol: int) -> Conversation:
        rng = self.rng
        version = rng.choice((4, 6))
        name = ("web" if protocol == p.TCP else "dns") + ("" if version == 4 else "6")
        vport = 9876 if protocol == p.TCP else 53
        if protocol == p.TCP and rng.random() < 0.15:
            name, vport = f"alt{name}", 443
        if rng.random() < 0.02:
            vport = rng.choice((0, 81))
        flow = Conversation(
            version,
            name,
            protocol,
            rng.choice(CLIENTS[version]),
            rng.choice((0, 1, 1025, 40000, 40000, 40001, 40002, 65535))
            if rng.random() < 0.2
            else rng.randrange(1024, 65536),
            vport,
            rng.choice(CLIENT_MACS),
            0 if rng.random() < 0.9 else rng.randrange(len(self.setup["interfaces"])),
        )
        twins = [one for one in self.flows if one.version == version]
        if twins and rng.random() < 0.12:
            # The same client port again, for another service or past them: the servers may be the same.
            twin = rng.choice(twins)
            flow.client, flow.sport, flow.server = twin.client, twin.sport, rng.choice((None, twin.server))
        flow.seq = [rng.choice((rng.getrandbits(32), 0xFFFFFFF0, 0)), rng.getrandbits(32)]
        if rng.random() < 0.06:
            flow.tags = rng.choice(
                (b"\x81\x00\x00\x2a", b"\x88\xa8\x00\x64\x81\x00\x20\x2a", b"\x81\x00\0\1" * rng.choice((1, 2, 3)))
            )
        self.flows.append(flow)
        del self.flows[:-14]
        return flow

    def _pick(self, protocol: int | None = None, fresh: float = 0.3) -> Conversation:
        known = [flow for flow in self.flows if protocol in (None, flow.protocol)]
        if not known or self.rng.random() < fresh:
            return self._start(protocol or self.rng.choice((p.TCP, p.UDP)))
        return self.rng.choice(known)

    def _payload(self) -> bytes:
        rng = self.rng
        size = rng.choice((0, 0, 0, 1, 2, 7, 60, 500, 537, 1200, 1460)) if rng.random() < 0.97 else rng.randrange(3000)
        return bytes(size) if rng.random() < 0.05 else rng.randbytes(size)

    def _tcp_step(self) -> tuple[int, bytes, Any]:
        flow = self._pick(p.TCP)
        return self._finish(flow, 0, self._segment(flow, 0))

    def _udp_step(self) -> tuple[int, bytes, Any]:
        flow = self._pick(p.UDP)
        return self._finish(flow, 0, self._datagram(flow, 0))

    def _reply_step(self) -> tuple[int, bytes, Any]:
        known = [flow for flow in self.flows if flow.server is not None]
        flow = self.rng.choice(known) if known and self.rng.random() < 0.93 else self._pick(fresh=0.03)
        l4 = self._segment(flow, 1) if flow.protocol == p.TCP else self._datagram(flow, 1)
        return self._finish(flow, 1, l4)

    def _server(self, flow: Conversation) -> dict[str, Any]:
        host = self.by_name.get(flow.server or "")
        if host is None or host["address"].count(":") != (0 if flow.version == 4 else host["address"].count(":")):
            names = [name for name, one in self.by_name.items() if (":" in one["address"]) == (flow.version == 6)]
            host = self.by_name[self.rng.choice(names)] if names else None
        return host or {"address": f"{NET[flow.version]}31", "port": 8031}

    def ends(self, flow: Conversation, way: int, translated: bool = False) -> tuple[bytes, bytes, int, int]:
        """Return (source, destination, source port, destination port) on the way in, or after translation."""
        host = self._server(flow)
        server = ip_address(host["address"]).packed
        vip = VIPS[flow.version]
        if way == 0:
            return (
                (flow.client, server, flow.sport, host["port"])
                if translated
                else (flow.client, vip, flow.sport, flow.vport)
            )
        return (
            (vip, flow.client, flow.vport, flow.sport)
            if translated
            else (server, flow.client, host["port"], flow.sport)
        )

    def _segment(self, flow: Conversation, way: int) -> bytes:
        rng = self.rng
        flags = rng.choices(
            (p.SYN, p.SYN | p.ACK, p.ACK, p.ACK | p.PSH, p.ACK | p.FIN, p.RST, p.RST | p.ACK, rng.getrandbits(8)),
            (24, 4, 22, 18, 12, 5, 5, 2) if way == 0 else (2, 24, 22, 18, 12, 5, 6, 2),
        )[0]
        if way == 0 and flow.server is None and rng.random() < 0.8:
            flags = p.SYN
        data = self._payload() if not flags & (p.SYN | p.RST) or rng.random() < 0.1 else b""
        seq, ack = flow.seq[way], flow.seq[1 - way]
        if rng.random() < 0.15:
            seq = (seq + rng.choice((-1, 1, -1000, 1000, *EDGES, 2**31, rng.getrandbits(32)))) % 2**32
        if rng.random() < 0.12:
            ack = (ack + rng.choice((-1, 1, 1000, *EDGES, rng.getrandbits(32)))) % 2**32
        options = rng.choice((b"", b"", b"\x02\x04\x05\xb4", b"\x01\x01\x08\x0a" + bytes(8), *SCALES))
        flow.seq[way] = (seq + len(data) + bool(flags & p.SYN) + bool(flags & p.FIN)) % 2**32
        src, dst, sport, dport = self.ends(flow, way)
        window = rng.choice((0, 1, 8192, 8192, 65535))
        return p.tcp(src, dst, sport, dport, seq, ack, flags, data, options, window)

    def _datagram(self, flow: Conversation, way: int) -> bytes:
        rng = self.rng
        src, dst, sport, dport = self.ends(flow, way)
        made = p.udp(src, dst, sport, dport, self._payload(), rng.random() > 0.08)
        if rng.random() < 0.02:
            made = made[:4] + rng.choice((0, 7, 8, len(made) + 1, 65535)).to_bytes(2, "big") + made[6:]
        return made

    def _packet(self, src: bytes, dst: bytes, protocol: int, l4: bytes) -> bytes:
        """Wrap L4 bytes in an IP header: mostly plain, sometimes with everything there is."""
        rng = self.rng
        ttl = 64 if rng.random() < 0.94 else rng.choice((0, 1, 2, 255))
        if len(src) == 4:
            fragment = p.DF if rng.random() < 0.4 else rng.choice((0, 0, 0, 0x8000))
            options = rng.choice(OPTIONS4) if rng.random() < 0.07 else b""
            return p.ip4(src, dst, protocol, l4, ttl, rng.getrandbits(16), fragment, rng.choice((0, 0, 0xB8)), options)
        if rng.random() < 0.08:
            chain = rng.choices(EXTENSIONS, k=rng.choice((1, 1, 2, 3, 8, 9)))
            if rng.random() < 0.5:
                chain.sort(key=lambda one: one[0])
            numbers = [number for number, _ in chain] + [protocol]
            heads = b"".join(bytes([following]) + body for following, (_, body) in zip(numbers[1:], chain, strict=True))
            return p.ip6(src, dst, numbers[0], heads + l4, ttl)
        return p.ip6(src, dst, protocol, l4, ttl, rng.choice((0, 0, 0x0B812345)))

    def _macs(self, flow: Conversation, way: int) -> tuple[int, bytes, bytes]:
        """Return (interface, destination MAC, source MAC) of a frame on its way in."""
        interface, src = flow.interface, flow.mac
        if way == 1:
            address = self._server(flow)["address"]
            interface = 1 if address.startswith(("10.", "2001:2:0:2")) and len(self.setup["interfaces"]) > 1 else 0
            src = SERVER_MACS[31]
        if self.rng.random() < 0.02:
            interface = self.rng.randrange(len(self.setup["interfaces"]))
        dst = ROUTER_1 if interface == 1 else ROUTER
        if self.rng.random() < 0.02:
            dst = self.rng.choice((b"\xff" * 6, b"\x01\x00\x5e\0\0\1", SERVER_MACS[32], ROUTER_1))
        if self.rng.random() < 0.01:
            src = self.rng.choice((dst, b"\x01\0\0\0\0\1", SERVER_MACS[33]))
        return interface, dst, src

    def _finish(self, flow: Conversation, way: int, l4: bytes) -> tuple[int, bytes, Any]:
        """Frame the L4 bytes of a flow, now and then again as before, padded, or with offload work."""
        rng = self.rng
        self.current = flow
        interface, dst_mac, src_mac = self._macs(flow, way)
        if flow.last[way] and rng.random() < 0.06:
            return interface, flow.last[way], None
        src, dst, _, _ = self.ends(flow, way)
        if rng.random() < 0.015:
            src = rng.choice(ODD[flow.version])
        packet = self._packet(src, dst, flow.protocol, l4)
        offload = None
        if rng.random() < 0.12:
            packet, offload = self._offload(flow, packet, l4, 14 + len(flow.tags))
        frame = p.ether(dst_mac, src_mac, packet, flow.tags)
        if rng.random() < 0.15:
            frame += rng.randbytes(rng.choice((1, 6, 18)))
        if offload is None:
            flow.last[way] = frame
        return interface, frame, offload

    def _offload(self, flow: Conversation, packet: bytes, l4: bytes, l3: int) -> tuple[bytes, list[int]]:
        """Leave work to the card: the checksum, perhaps the cutting; sometimes nonsense."""
        rng = self.rng
        start = len(packet) - len(l4)
        where = start + (16 if flow.protocol == p.TCP else 6)
        addresses = (packet[12:16], packet[16:20]) if flow.version == 4 else (packet[8:24], packet[24:40])
        total = p.partial_sum(*addresses, flow.protocol, len(l4))
        packet = packet[:where] + total.to_bytes(2, "big") + packet[where + 2 :]
        kind, size = 0, 0
        if rng.random() < 0.5 and len(l4) > 100:
            kind = (1 if flow.version == 4 else 4) if flow.protocol == p.TCP else 5
            size = rng.choice((100, 536, 1400, 1460, 60000))
            kind |= rng.choice((0, 0, 0x80))
        work = [1, kind, l3 + start + 20, size, l3 + start, where - start]
        if rng.random() < 0.15:
            work[rng.randrange(6)] = rng.choice((0, 1, 2, 3, 4, 5, 7, 16, 34, 54, 255))
        return packet, work

    # Everything else.

    def _icmp_error(self) -> tuple[int, bytes, Any]:
        """An error about a flow, from either side, or about nothing."""
        rng = self.rng
        known = [flow for flow in self.flows if flow.server is not None]
        flow = rng.choice(known) if known and rng.random() < 0.9 else self._pick(fresh=0.05)
        self.current = flow
        way = rng.randrange(2)
        # From the client's side (way 0) it quotes a translated reply, from the server's a translated forward packet.
        src, dst, sport, dport = self.ends(flow, 1 - way, translated=True)
        if flow.protocol == p.TCP:
            l4 = p.tcp(
                src, dst, sport, dport, flow.seq[1 - way], flow.seq[way], p.ACK, rng.randbytes(rng.choice((0, 10, 700)))
            )
        else:
            l4 = p.udp(src, dst, sport, dport, rng.randbytes(rng.choice((0, 10, 700))), rng.random() > 0.2)
        inner = self._packet(src, dst, flow.protocol, l4)
        if rng.random() < 0.7:
            inner = inner[: len(inner) - len(l4) + rng.choice((8, 8, 8, 12, 17, 18, 20, 28, 1000))]
        elif rng.random() < 0.2:
            inner = inner[: rng.randrange(60)]
        if rng.random() < 0.08:
            inner = self._flipped(inner)
        kinds = (
            ((3, 1), (3, 4), (11, 0), (12, 0), (5, 0), (4, 0))
            if flow.version == 4
            else ((1, 0), (2, 0), (3, 0), (4, 1), (137, 0), (100, 0))
        )
        kind, code = rng.choices(kinds, (5, 5, 5, 3, 1, 1))[0]
        sender = src_out = dst if rng.random() < 0.8 else rng.choice(CLIENTS[flow.version])
        if rng.random() < 0.03:
            src = rng.choice(CLIENTS[flow.version])
        message = p.icmp(src_out, src, kind, code, rng.randbytes(4) + inner)
        if rng.random() < 0.06:
            message = self._flipped(message)
        interface, dst_mac, src_mac = self._macs(flow, way)
        packet = self._packet(sender, src, p.ICMP if flow.version == 4 else p.ICMP6, message)
        return interface, p.ether(dst_mac, src_mac, packet, flow.tags), None

    def _icmp_other(self) -> tuple[int, bytes, Any]:
        rng = self.rng
        version = rng.choice((4, 6))
        src, dst = (
            rng.choice(CLIENTS[version]),
            rng.choice((VIPS[version], VIPS[version], CLIENTS[version][4], CLIENTS[version][1])),
        )
        kind = rng.choice((8, 8, 8, 0, 13)) if version == 4 else rng.choice((128, 128, 128, 129, 133))
        message = p.icmp(src, dst, kind, 0, rng.randbytes(rng.choice((0, 3, 4, 5, 60, 1400))))
        if rng.random() < 0.1:
            message = self._flipped(message)
        return (
            0,
            p.ether(ROUTER, CLIENT_MACS[0], self._packet(src, dst, p.ICMP if version == 4 else p.ICMP6, message)),
            None,
        )

    def _arp(self) -> tuple[int, bytes, Any]:
        rng = self.rng
        target = rng.choice((VIPS[4], VIPS[4], OURS[4], CLIENTS[4][1]))
        body = (
            struct.pack("!HHBBH", 1, 0x0800, 6, 4, rng.choice((1, 1, 1, 2)))
            + CLIENT_MACS[0]
            + CLIENTS[4][0]
            + bytes(6)
            + target
        )
        interface = rng.randrange(len(self.setup["interfaces"]))
        tags = b"" if rng.random() < 0.8 else b"\x81\x00\x00\x07"
        return interface, p.ether(b"\xff" * 6, CLIENT_MACS[0], body + bytes(rng.choice((0, 18))), tags, 0x0806), None

    def _solicit(self) -> tuple[int, bytes, Any]:
        rng = self.rng
        src = rng.choice((CLIENTS[6][0], bytes(16), ip_address("fe80::21").packed))
        target = rng.choice((VIPS[6], VIPS[6], OURS[6]))
        dst = rng.choice((ip_address("ff02::1:ff00:0").packed[:13] + target[13:], target))
        message = p.icmp(src, dst, 135, 0, bytes(4) + target + b"\x01\x01" + CLIENT_MACS[0])
        if rng.random() < 0.1:
            message = self._flipped(message)
        packet = p.ip6(src, dst, p.ICMP6, message, 255 if rng.random() < 0.9 else 254)
        dst_mac = b"\x33\x33" + dst[12:] if dst[0] == 0xFF else ROUTER
        return rng.randrange(len(self.setup["interfaces"])), p.ether(dst_mac, CLIENT_MACS[0], packet), None

    def _fragments(self) -> tuple[int, bytes, Any]:
        """Cut a packet of a flow into fragments; one goes now, the others wait their turn among other frames."""
        rng = self.rng
        flow = self._pick()
        way = rng.choice((0, 0, 1))
        self.current = flow
        src, dst, sport, dport = self.ends(flow, way)
        data = rng.randbytes(rng.choice((8, 24, 100, 1000, 2900)))
        if flow.protocol == p.TCP:
            flags = p.SYN if rng.random() < 0.4 else p.ACK
            l4 = p.tcp(src, dst, sport, dport, flow.seq[way], flow.seq[1 - way], flags, data)
        else:
            l4 = p.udp(src, dst, sport, dport, data)
        cuts = self._cuts(len(l4))
        ident = rng.choice((1, 2, rng.getrandbits(16)))
        protocol = flow.protocol if rng.random() < 0.97 else rng.choice((1, 58, 47))
        made = [self._fragment(src, dst, protocol, l4, cut, ident) for cut in cuts]
        interface, dst_mac, src_mac = self._macs(flow, way)
        frames = [(interface, p.ether(dst_mac, src_mac, packet, flow.tags)) for packet in made]
        order = rng.random()
        if order < 0.3:
            frames.reverse()
        elif order < 0.5:
            rng.shuffle(frames)
        if len(frames) > 1 and rng.random() < 0.15:
            frames.append(rng.choice(frames))
        if len(frames) > 1 and rng.random() < 0.1:
            frames.pop(rng.randrange(len(frames)))
        self.pending += frames[1:]
        del self.pending[:-20]
        return *frames[0], None

    def _cuts(self, length: int) -> list[tuple[int, int, bool]]:
        """Return (offset, length, more) of the pieces: mostly a clean cut, sometimes overlapping or of odd length."""
        rng = self.rng
        size = rng.choice((8, 16, 24, 400, 1000, 1480)) if length < 300 else rng.choice((24, 400, 1000, 1480))
        cuts = [(at, min(size, length - at), at + size < length) for at in range(0, length, size)]
        if rng.random() < 0.12:
            number = rng.randrange(len(cuts))
            at, count, more = cuts[number]
            cuts[number] = rng.choice(
                ((max(0, at - 8), count, more), (at, max(0, count - 3), more), (at, count, not more), (65528, 8, more))
            )
        return cuts[:70]

    def _fragment(
        self, src: bytes, dst: bytes, protocol: int, l4: bytes, cut: tuple[int, int, bool], ident: int
    ) -> bytes:
        at, count, more = cut
        part = l4[at : at + count] if at < 65000 else bytes(count)
        ttl = 64 if self.rng.random() < 0.97 else 1
        if len(src) == 4:
            return p.ip4(src, dst, protocol, part, ttl, ident, at // 8 | (p.MF if more else 0))
        return p.ip6(src, dst, p.FRAGMENT, struct.pack("!BBHI", protocol, 0, at | more, ident) + part, ttl)

    def _transit(self) -> tuple[int, bytes, Any]:
        rng = self.rng
        version = rng.choice((4, 6))
        src = rng.choice(CLIENTS[version])
        dst = rng.choice((*CLIENTS[version], *ODD[version]))
        protocol = rng.choice((p.TCP, p.UDP, p.UDP, 47))
        l4 = {
            p.TCP: p.tcp(src, dst, 1, 2, 3, 4, p.ACK, self._payload()),
            p.UDP: p.udp(src, dst, 1, 2, self._payload()),
            47: rng.randbytes(20),
        }[protocol]
        interface = rng.randrange(len(self.setup["interfaces"]))
        dst_mac = ROUTER_1 if interface else ROUTER
        return interface, p.ether(dst_mac, rng.choice(CLIENT_MACS), self._packet(src, dst, protocol, l4)), None

    def _direct(self) -> tuple[int, bytes, Any]:
        """A client's packet straight to a server's endpoint, or to the port beside it; its answer may follow."""
        rng = self.rng
        flow = self._pick(fresh=0.2)
        src, dst, sport, dport = self.ends(flow, 0, translated=True)
        dport = (dport + (rng.random() < 0.05)) % 65536
        if flow.protocol == p.TCP:
            flags = rng.choices((p.SYN, p.ACK, p.ACK | p.FIN, p.RST), (6, 6, 2, 1))[0]
            answer = rng.choices((p.SYN | p.ACK, p.ACK, p.ACK | p.FIN, p.RST), (4, 4, 4, 1))[0]
            asks = p.tcp(src, dst, sport, dport, 1, 2, flags, self._payload())
            answers = p.tcp(dst, src, dport, sport, 2, 3, answer, self._payload())
        else:
            asks = p.udp(src, dst, sport, dport, self._payload())
            answers = p.udp(dst, src, dport, sport, self._payload())
        interface = rng.randrange(len(self.setup["interfaces"]))
        back = rng.randrange(len(self.setup["interfaces"]))
        macs = (ROUTER, ROUTER_1)
        if rng.random() < 0.7:
            frame = p.ether(macs[back], rng.choice(CLIENT_MACS), self._packet(dst, src, flow.protocol, answers))
            self.pending.append((back, frame))
        return interface, p.ether(macs[interface], flow.mac, self._packet(src, dst, flow.protocol, asks)), None

    def _noise(self) -> tuple[int, bytes, Any]:
        """Random bytes, mostly behind a header that lets them in."""
        rng = self.rng
        body = rng.randbytes(rng.choice((0, 1, 13, 14, 20, 40, 60, 100, 1500)))
        if rng.random() < 0.8:
            kind = rng.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", rng.randbytes(2)))
            first = {b"\x08\x00": b"\x45", b"\x86\xdd": b"\x60"}.get(kind, b"")
            body = ROUTER + CLIENT_MACS[0] + kind + first + body
        return 0, body, None

    def _flipped(self, data: bytes) -> bytes:
        if not data:
            return data
        raw = bytearray(data)
        for _ in range(self.rng.randrange(1, 4)):
            raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
        return bytes(raw)

    def _mutated(self, frame: bytes, chance: float) -> bytes:
        """Spoil a frame, sometimes with a header checksum made right again so that the spoilt field is looked at."""
        rng = self.rng
        if rng.random() >= chance or len(frame) < 15:
            return frame
        kind = rng.random()
        if kind < 0.2:
            return frame[: rng.randrange(len(frame))]
        if kind < 0.3:
            return frame + rng.randbytes(rng.randrange(1, 30))
        head, rest = (frame[:14], frame[14:]) if rng.random() < 0.9 else (b"", frame)
        spoilt = head + self._flipped(rest[:60]) + rest[60:]
        if frame[12:14] == b"\x08\x00" and len(spoilt) >= 34 and kind < 0.8:
            end = 14 + max(20, (spoilt[14] & 15) * 4)
            cleared = spoilt[14:24] + b"\0\0" + spoilt[26:end]
            spoilt = spoilt[:24] + p.checksum(cleared).to_bytes(2, "big") + spoilt[26:]
        return spoilt
