"""
The scene that all vectors play in, and the small language they are written in.

`build.py` runs the topics; each topic makes cases; a case is a sequence of frames in and frames out. Every frame, in
and expected, is made by scapy (so its checksums are scapy's), or cut from one that was. Nothing here imports the
balancer: what must happen is stated from docs/rules.md and the RFCs, never by running a backend. The
placement hash and the random draws are written down once more here for the same reason.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Any

from scapy.config import conf
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, in6_chksum
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as internet_checksum

conf.verb = 0

ROUTER_MAC = "aa:aa:aa:00:00:01"
ROUTER_MAC_1 = "aa:aa:aa:00:01:01"
CLIENT_MAC = "aa:aa:aa:00:00:21"
CLIENT2_MAC = "aa:aa:aa:00:00:22"
GATEWAY_MAC = "aa:aa:aa:00:00:fe"
STRANGER = "aa:aa:aa:00:00:77"
SERVER_MACS = ("aa:aa:aa:00:00:31", "aa:aa:aa:00:00:32", "aa:aa:aa:00:00:33")
BUILT = "built with scapy 2.8"
MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Family:
    """The addresses of one IP version in the scene."""

    version: int
    router: str
    vip: str
    client: str
    client2: str
    servers: tuple[str, ...]
    outside: str
    gateway: str
    web: str
    dns: str
    web_servers: tuple[str, ...]
    dns_server: str

    def ip(self, src: str, dst: str, ttl: int = 64, **fields: Any) -> Packet:
        """Make an IP header. `ttl` is the hop limit of IPv6."""
        if self.version == 4:
            return IP(src=src, dst=dst, ttl=ttl, **fields)
        return IPv6(src=src, dst=dst, hlim=ttl, **fields)

    @property
    def ethertype(self) -> int:
        return 0x0800 if self.version == 4 else 0x86DD

    @property
    def header_len(self) -> int:
        return 20 if self.version == 4 else 40


V4 = Family(
    4,
    "198.18.1.1",
    "198.18.1.100",
    "198.18.1.21",
    "198.18.1.22",
    ("198.18.1.31", "198.18.1.32", "198.18.1.33"),
    "198.51.100.7",
    "198.18.1.254",
    "web",
    "dns",
    ("web1", "web2", "web3"),
    "dns1",
)
V6 = Family(
    6,
    "2001:2:0:1::1",
    "2001:2:0:1::100",
    "2001:2:0:1::21",
    "2001:2:0:1::22",
    ("2001:2:0:1::31", "2001:2:0:1::32", "2001:2:0:1::33"),
    "2001:db8::7",
    "2001:2:0:1::fe",
    "web6",
    "dns6",
    ("six1", "six2", "six3"),
    "dns61",
)
BOTH = (V4, V6)

CLIENT_PORT = 40000
WEB_PORT = 9876
DNS_PORT = 53
SERVER_PORTS = {"tcp": (8031, 8032, 8033), "udp": (5353, 5353, 5353)}


def web_service(
    family: Family, selector: str = "counter", slots: tuple[int, ...] = (1, 2, 3), **fields: Any
) -> dict[str, Any]:
    """Describe the web service of a family; `slots` counts its servers from 1."""
    names = family.web_servers
    plan = {"selector": selector, "slots": [names[number - 1] for number in slots]}
    for key in ("scores", "fallback"):
        if key in fields:
            plan[key] = fields.pop(key)
    weights = fields.pop("weights", (1, 1, 1))
    macs = fields.pop("macs", (None, None, None))
    addresses = fields.pop("addresses", family.servers)
    servers = [
        {
            "name": names[i],
            "address": addresses[i],
            "port": SERVER_PORTS["tcp"][i],
            "weight": weights[i],
            "mac": macs[i],
        }
        for i in range(3)
    ]
    return {
        "name": family.web,
        "address": family.vip,
        "port": WEB_PORT,
        "protocol": "tcp",
        "plan": plan,
        "on_no_server": "reset",
        "servers": servers,
        **fields,
    }


def dns_service(family: Family, **fields: Any) -> dict[str, Any]:
    """Describe the DNS service of a family: one server."""
    address = fields.pop("server_address", family.servers[0])
    plan = fields.pop("plan", {"selector": "counter", "slots": [family.dns_server]})
    return {
        "name": family.dns,
        "address": family.vip,
        "port": DNS_PORT,
        "protocol": "udp",
        "plan": plan,
        "on_no_server": "reset",
        "servers": [{"name": family.dns_server, "address": address, "port": 5353, "weight": 1, "mac": None}],
        **fields,
    }


def neighbours(interface: str = "eth0") -> list[list[str]]:
    """List who lives on the segment."""
    hosts: list[list[str]] = []
    for family in BOTH:
        hosts += [[interface, family.client, CLIENT_MAC], [interface, family.client2, CLIENT2_MAC]]
        hosts += [[interface, address, mac] for address, mac in zip(family.servers, SERVER_MACS, strict=True)]
        hosts += [[interface, family.gateway, GATEWAY_MAC]]
    return hosts


ETH0 = {
    "name": "eth0",
    "mac": ROUTER_MAC,
    "mtu": 1500,
    "addresses": ["198.18.1.1/24", "2001:2:0:1::1/64"],
    "announce": True,
}
ETH1 = {
    "name": "eth1",
    "mac": ROUTER_MAC_1,
    "mtu": 1500,
    "addresses": ["10.0.0.1/24", "2001:2:0:2::1/64"],
    "announce": False,
}
ROUTES = [{"prefix": "198.18.1.0/24", "interface": "eth0"}, {"prefix": "2001:2:0:1::/64", "interface": "eth0"}]

# What a vector's setup overrides, key by key. Written to base.json.
BASE: dict[str, Any] = {
    "capacity": 64,
    "seed": 1,
    "hash_key": "000102030405060708090a0b0c0d0e0f",
    "interfaces": [ETH0],
    "services": [web_service(V4), dns_service(V4), web_service(V6), dns_service(V6)],
    "transit": "drop",
    "answer_echo": False,
    "any_replies": False,
    "icmp_rate": 1000,
    "timeouts_s": {"half_open": 30, "established": 7440, "closing": 120, "udp": 300, "idle_floor": 60},
    "ask": None,
    "routes": ROUTES,
    "neighbours": neighbours(),
}

# Servers behind a second interface.
FAR4 = ("10.0.0.31", "10.0.0.32", "10.0.0.33")
FAR6 = ("2001:2:0:2::31", "2001:2:0:2::32", "2001:2:0:2::33")


def two_interfaces(**fields: Any) -> dict[str, Any]:
    """Describe clients on eth0 and servers on eth1."""
    far = [["eth1", address, mac] for group in (FAR4, FAR6) for address, mac in zip(group, SERVER_MACS, strict=True)]
    return {
        "interfaces": [ETH0, ETH1],
        "services": [
            web_service(V4, addresses=FAR4),
            dns_service(V4, server_address=FAR4[0]),
            web_service(V6, addresses=FAR6),
            dns_service(V6, server_address=FAR6[0]),
        ],
        "routes": [
            *ROUTES,
            {"prefix": "10.0.0.0/24", "interface": "eth1"},
            {"prefix": "2001:2:0:2::/64", "interface": "eth1"},
        ],
        "neighbours": [*neighbours(), *far],
        **fields,
    }


def ether(
    src: str, dst: str, payload: Packet | bytes, ethertype: int | None = None, tags: tuple[Packet, ...] = ()
) -> bytes:
    """Make a frame around a packet, or around bytes of the given EtherType."""
    frame: Packet = Ether(src=src, dst=dst)
    for tag in tags:
        frame = frame / tag.copy()
    if isinstance(payload, bytes):
        assert ethertype is not None
        last = frame.lastlayer()
        last.type = ethertype
        return bytes(frame / Raw(payload))
    return bytes(frame / payload)


def tag(vlan: int) -> Packet:
    """Make an 802.1Q tag."""
    return Dot1Q(vlan=vlan, prio=3)


def service_tag(vlan: int) -> Packet:
    """Make an 802.1ad tag."""
    return Dot1AD(vlan=vlan)


def tcp(flags: str, seq: int = 0, ack: int = 0, data: bytes = b"", **fields: Any) -> Packet:
    """Make a TCP segment without ports."""
    return TCP(flags=flags, seq=seq, ack=ack, **fields) / Raw(data)


def udp(data: bytes = b"", **fields: Any) -> Packet:
    """Make a UDP datagram without ports."""
    return UDP(**fields) / Raw(data)


def with_ports(l4: Packet, sport: int, dport: int) -> Packet:
    """Copy an L4 packet and set its ports."""
    l4 = l4.copy()
    l4.sport, l4.dport = sport, dport
    return l4


def pattern(length: int) -> bytes:
    """Return bytes that differ from place to place."""
    return bytes((i * 7 + i // 256) & 0xFF for i in range(length))


class Case:
    """One vector: a name, what it proves, a setup, and steps."""

    def __init__(self, name: str, rules: list[str], origin: str = BUILT, **setup: Any) -> None:
        self.name, self.rules, self.origin, self.setup = name, rules, origin, setup
        self.steps: list[dict[str, Any]] = []
        self.now_ms = 0
        self.end: dict[str, Any] = {}

    def at(self, now_ms: int) -> Case:
        """Set the time of the next steps."""
        self.now_ms = now_ms
        return self

    def send(
        self,
        frame: bytes,
        verdict: str,
        reason: str | None = None,
        *out: Any,
        interface: str = "eth0",
        offload: list[int] | None = None,
        direction: str | None = None,
        service: str | None = None,
        server: str | None = None,
    ) -> None:
        """Put a frame in and say what must come of it. `out`: frames for eth0, or [interface, frame, offload] lists."""
        self.steps.append(
            {
                "at_ms": self.now_ms,
                "interface": interface,
                "in": frame.hex(),
                **({"offload": offload} if offload else {}),
                "verdict": verdict,
                "reason": reason,
                "direction": direction,
                "service": service,
                "server": server,
                "out": [as_out(item) for item in out],
            }
        )

    def drop(self, frame: bytes, reason: str, **fields: Any) -> None:
        """Expect a drop."""
        self.send(frame, "drop", reason, **fields)

    def passes(self, frame: bytes, **fields: Any) -> None:
        """Expect the frame to be left to the host."""
        self.send(frame, "pass", **fields)

    def reply(self, frame: bytes, reason: str, *out: Any, **fields: Any) -> None:
        """Expect an answer of our own."""
        self.send(frame, "reply", reason, *out, **fields)

    def forward(self, frame: bytes, *out: Any, **fields: Any) -> None:
        """Expect the frame to be sent on."""
        self.send(frame, "forward", None, *out, **fields)

    def tick(self, *out: Any) -> None:
        """Let time pass without a frame."""
        self.steps.append({"at_ms": self.now_ms, "tick": True, "out": [as_out(item) for item in out]})

    def publish(self, **overrides: Any) -> None:
        """Publish a changed snapshot."""
        self.steps.append({"publish": overrides})

    def next_hops(self, **overrides: Any) -> None:
        """Change routes or neighbours."""
        self.steps.append({"next_hops": overrides})

    def reset(self, server: str | None, limit: int, removed: int) -> None:
        """Reset flows of a server, None: of all, `limit` at most, and say how many that must be."""
        self.steps.append({"at_ms": self.now_ms, "reset": [server, limit], "removed": removed})

    def unresolved(self, *pairs: tuple[str, str]) -> None:
        """Expect these hops to be asked for, and no others."""
        self.steps.append({"unresolved": [list(pair) for pair in pairs]})

    def counters(self, **expected: Any) -> None:
        """Expect these counters now: events, verdicts, services, servers; others are not looked at."""
        self.steps.append({"counters": expected})

    def flows(self, *expected: dict[str, Any]) -> None:
        """Expect exactly these flows, with at least these fields."""
        self.steps.append({"at_ms": self.now_ms, "flows": list(expected)})

    def as_json(self) -> dict[str, Any]:
        """Return the vector as written to its file."""
        return {
            "name": self.name,
            "origin": self.origin,
            "rules": self.rules,
            "setup": self.setup,
            "steps": self.steps,
        }


def as_out(item: Any) -> list[Any]:
    """Return [interface, hex, offload?] for a frame or an explicit list."""
    if isinstance(item, bytes):
        return ["eth0", item.hex()]
    name, frame, *offload = item
    return [name, frame.hex(), *offload]


@dataclass
class Talk:
    """
    Start a conversation of one client with one service. `c` and `s` send a packet from the client or from the server
    and expect it translated.

    Args:
        number: of the server, from 1. mac: the client's, where replies must go.
    """

    case: Case
    family: Family
    kind: str = "tcp"
    number: int = 1
    sport: int = CLIENT_PORT
    client: str = ""
    mac: str = CLIENT_MAC
    server_address: str = ""
    server_mac: str = ""
    client_if: str = "eth0"
    server_if: str = "eth0"
    tags: tuple[Packet, ...] = ()
    service: str = ""
    server: str = ""
    vip: str = ""
    vport: int = 0
    server_port: int = 0
    reply_via: str = ""
    our_macs: dict[str, str] = field(default_factory=lambda: {"eth0": ROUTER_MAC, "eth1": ROUTER_MAC_1})

    def __post_init__(self) -> None:
        f, i = self.family, self.number - 1
        self.client = self.client or f.client
        self.vip = self.vip or f.vip
        self.server_address = self.server_address or f.servers[i]
        self.server_mac = self.server_mac or SERVER_MACS[i]
        self.server_port = self.server_port or SERVER_PORTS[self.kind][i]
        self.vport = self.vport or (WEB_PORT if self.kind == "tcp" else DNS_PORT)
        self.service = self.service or (f.web if self.kind == "tcp" else f.dns)
        self.server = self.server or (f.web_servers[i] if self.kind == "tcp" else f.dns_server)

    def c_in(self, l4: Packet, ttl: int = 64, dst_mac: str = "", **ip: Any) -> bytes:
        """Make what the client sends."""
        packet = self.family.ip(self.client, self.vip, ttl, **ip) / with_ports(l4, self.sport, self.vport)
        return ether(self.mac, dst_mac or self.our_macs[self.client_if], packet, tags=self.tags)

    def c_out(self, l4: Packet, ttl: int = 63, **ip: Any) -> bytes:
        """Make what the server must get."""
        packet = self.family.ip(self.client, self.server_address, ttl, **ip) / with_ports(
            l4, self.sport, self.server_port
        )
        return ether(self.our_macs[self.server_if], self.server_mac, packet, tags=self.tags)

    def s_in(self, l4: Packet, ttl: int = 64, **ip: Any) -> bytes:
        """Make what the server sends."""
        packet = self.family.ip(self.server_address, self.client, ttl, **ip) / with_ports(
            l4, self.server_port, self.sport
        )
        return ether(self.server_mac, self.our_macs[self.server_if], packet, tags=self.tags)

    def s_out(self, l4: Packet, ttl: int = 63, **ip: Any) -> bytes:
        """Make what the client must get."""
        packet = self.family.ip(self.vip, self.client, ttl, **ip) / with_ports(l4, self.vport, self.sport)
        return ether(self.our_macs[self.client_if], self.mac, packet, tags=self.tags)

    @property
    def names(self) -> dict[str, str]:
        """The attribution of packets from the client."""
        return {"direction": "forward", "service": self.service, "server": self.server}

    @property
    def reply_names(self) -> dict[str, str]:
        """The attribution of packets from the server."""
        return {"direction": "reply", "service": self.service, "server": self.server}

    def c(self, l4: Packet, ttl: int = 64, **ip: Any) -> None:
        """Send from the client and expect it at the server."""
        self.case.forward(
            self.c_in(l4, ttl, **ip),
            [self.server_if, self.c_out(l4, ttl - 1, **ip)],
            interface=self.client_if,
            **self.names,
        )

    def s(self, l4: Packet, ttl: int = 64, **ip: Any) -> None:
        """Send from the server and expect it at the client."""
        self.case.forward(
            self.s_in(l4, ttl, **ip),
            [self.client_if, self.s_out(l4, ttl - 1, **ip)],
            interface=self.server_if,
            **self.reply_names,
        )

    def open(self, seq: int = 1000, answer: int = 5000) -> None:
        """Shake hands: afterwards next is seq+1 and answer+1."""
        self.c(tcp("S", seq))
        self.s(tcp("SA", answer, (seq + 1) % 2**32))
        self.c(tcp("A", (seq + 1) % 2**32, (answer + 1) % 2**32))

    def close(self, seq: int = 1001, answer: int = 5001) -> None:
        """Exchange FINs."""
        self.c(tcp("FA", seq, answer))
        self.s(tcp("FA", answer, seq + 1))
        self.c(tcp("A", seq + 1, answer + 1))

    def refusal(self, ack: int) -> bytes:
        """Make the reset that the client must get for a SYN: it acknowledges `ack`."""
        fields: dict[str, Any] = {"id": 0, "flags": "DF"} if self.family.version == 4 else {}
        header = self.family.ip(self.vip, self.client, **fields)
        reset = TCP(sport=self.vport, dport=self.sport, flags="RA", seq=0, ack=ack, window=0)
        return ether(self.our_macs[self.client_if], self.mac, header / reset, tags=self.tags)

    def flow(self, state: str, **fields: Any) -> dict[str, Any]:
        """Describe the flow's row."""
        return {
            "client": self.client,
            "client_port": self.sport,
            "service": self.service,
            "server": self.server,
            "protocol": self.kind,
            "state": state,
            **fields,
        }


class Watch:
    """
    Drive an open conversation, a second a segment, and say of each whether it must be believed.

    One that is believed refreshes the flow, and from the client it tells where replies go. Any other is sent on and
    changes nothing. After each segment of the client a probe of the server, which is believed by no rule (it has no
    ACK), shows where replies go.

    Args:
        talk: the conversation, whose flow stands in `state` and was refreshed now.
        moves: whether replies go where the client's believed segments come from; else by route.
    """

    def __init__(self, talk: Talk, state: str = "established", *, moves: bool = True) -> None:
        self.talk, self.state, self.seen_ms, self.moves = talk, state, talk.case.now_ms, moves

    def _wait(self) -> None:
        self.talk.case.at(self.talk.case.now_ms + 1000)

    def stands(self) -> None:
        """Expect the one flow in its state, idle since it was refreshed."""
        case = self.talk.case
        case.flows(self.talk.flow(self.state, idle_s=(case.now_ms - self.seen_ms) / 1000))

    def _after(self, state: str | None, refreshes: bool) -> None:
        self.state = state or self.state
        if refreshes:
            self.seen_ms = self.talk.case.now_ms
        self.stands()

    def _probe(self) -> None:
        self.talk.s(tcp("P", 77))

    def client(self, l4: Packet, state: str | None = None, *, refreshes: bool = True) -> None:
        """Send from the client, who has another MAC now: believed, and `state` is where the flow stands then."""
        self._wait()
        if self.moves:
            self.talk.mac = CLIENT2_MAC if self.talk.mac == CLIENT_MAC else CLIENT_MAC
        self.talk.c(l4)
        self._probe()
        self._after(state, refreshes)

    def server(self, l4: Packet, state: str | None = None) -> None:
        """Send from the server: believed."""
        self._wait()
        self.talk.s(l4)
        self._after(state, refreshes=True)

    def forged_client(self, l4: Packet) -> None:
        """Send in the client's name from a stranger's MAC: sent on, and nothing changes."""
        self._wait()
        replace(self.talk, mac=STRANGER).c(l4)
        self._probe()
        self.stands()

    def kept_client(self, l4: Packet) -> None:
        """Send in the client's name from a stranger's MAC: it refreshes the flow, and nothing else changes."""
        self._wait()
        replace(self.talk, mac=STRANGER).c(l4)
        self._probe()
        self._after(None, refreshes=True)

    def forged_server(self, l4: Packet) -> None:
        """Send in the server's name: sent on, and nothing changes."""
        self._wait()
        self.talk.s(l4)
        self.stands()

    def dropped_client(self, l4: Packet) -> None:
        """Send a RST in the client's name: dropped, and nothing changes."""
        self._wait()
        stranger = replace(self.talk, mac=STRANGER)
        self.talk.case.drop(stranger.c_in(l4), "rst_window", **self.talk.names)
        self._probe()
        self.stands()

    def dropped_server(self, l4: Packet) -> None:
        """Send a RST in the server's name: dropped, and nothing changes."""
        self._wait()
        self.talk.case.drop(self.talk.s_in(l4), "rst_window", **self.talk.reply_names)
        self.stands()


def pieces(
    f: Family,
    src: str,
    dst: str,
    l4: Packet,
    cuts: list[tuple[int, int]],
    ttl: int = 64,
    ident: int = 0x1234,
    **ip: Any,
) -> list[Packet]:
    """Cut a datagram into IP fragments: `cuts` are (offset, length) within the L4 bytes."""
    data = bytes(f.ip(src, dst) / l4)[f.header_len :]
    protocol = 6 if isinstance(l4, TCP) else 17 if isinstance(l4, UDP) else (1 if f.version == 4 else 58)
    made = []
    for offset, length in cuts:
        more = offset + length < len(data)
        part = Raw(data[offset : offset + length])
        if f.version == 4:
            header = IP(
                src=src, dst=dst, ttl=ttl, id=ident, proto=protocol, frag=offset // 8, flags="MF" if more else 0, **ip
            )
            made.append(header / part)
        else:
            fragment = IPv6ExtHdrFragment(nh=protocol, offset=offset // 8, m=int(more), id=ident)
            made.append(IPv6(src=src, dst=dst, hlim=ttl, nh=44, **ip) / fragment / part)
    return made


def siphash24(key: bytes, message: bytes) -> int:
    """Return SipHash-2-4 (Aumasson and Bernstein, 2012) as an integer."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & MASK64

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & MASK64
            v[2] = (v[2] + v[3]) & MASK64
            v[1] = rotate(v[1], 13) ^ v[0]
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[1]) & MASK64
            v[0] = (v[0] + v[3]) & MASK64
            v[1] = rotate(v[1], 17) ^ v[2]
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def sixteen(address: str) -> bytes:
    """Return an address as 16 bytes, IPv4 mapped into IPv6."""
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def placement_key(seed: int) -> bytes:
    """Return the key of the placement hash (docs/rules.md rule 8, flows)."""
    return seed.to_bytes(8, "little") + (0x666C6F776C622D31).to_bytes(8, "little")


def hash_source(seed: int, client: str) -> int:
    """Hash a client address as `hash-source` does."""
    return siphash24(placement_key(seed), sixteen(client))


def flow_tuple(client: str, vip: str, sport: int, vport: int, protocol: int) -> bytes:
    """Return the 37 bytes that `hash-flow` hashes."""
    return sixteen(client) + sixteen(vip) + sport.to_bytes(2, "big") + vport.to_bytes(2, "big") + bytes([protocol])


def hash_flow(seed: int, client: str, vip: str, sport: int, vport: int, protocol: int) -> int:
    """Hash a flow as `hash-flow` does."""
    return siphash24(placement_key(seed), flow_tuple(client, vip, sport, vport, protocol))


class SplitMix64:
    """Steele, Lea and Flood, 2014: the random draws."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def draw(self) -> int:
        """Return the next 64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return z ^ (z >> 31)


def icmp_error(
    f: Family,
    frame: bytes,
    kind: tuple[int, int],
    src: str,
    dst: str,
    word: int = 0,
    dst_mac: str = CLIENT_MAC,
    l3: int = 14,
    length: int | None = None,
    tags: tuple[Packet, ...] = (),
    our_mac: str = ROUTER_MAC,
) -> bytes:
    """Make the ICMP error we must answer `frame` with: quoting its packet, whole or up to 576 / 1280 bytes of ours."""
    inner = frame[l3 : l3 + length if length is not None else None]
    inner = inner[: 576 - 28 if f.version == 4 else 1280 - 48]
    marks = {"tos": 0xC0, "id": 0, "flags": "DF"} if f.version == 4 else {}
    return ether(our_mac, dst_mac, icmp(f, src, dst, *kind, word.to_bytes(4, "big") + inner, **marks), tags=tags)


def icmp4(kind: int, code: int, body: bytes, checksum: int | None = None) -> bytes:
    """Make an ICMP message: `body` is everything after the checksum."""
    if checksum is None:
        checksum = internet_checksum(bytes([kind, code, 0, 0]) + body)
    return bytes([kind, code]) + checksum.to_bytes(2, "big") + body


def icmp6(header: Packet, kind: int, code: int, body: bytes, checksum: int | None = None) -> Packet:
    """Make an ICMPv6 packet: `body` is everything after the checksum."""
    header = header.copy()
    header.nh = 58
    message = bytes([kind, code, 0, 0]) + body
    if checksum is None:
        checksum = in6_chksum(58, header, message)
    return header / Raw(bytes([kind, code]) + checksum.to_bytes(2, "big") + body)


def icmp(
    f: Family,
    src: str,
    dst: str,
    kind: int,
    code: int,
    body: bytes,
    ttl: int = 64,
    checksum: int | None = None,
    **ip: Any,
) -> Packet:
    """Make an ICMP packet of a family: `body` is everything after the checksum."""
    if f.version == 4:
        return IP(src=src, dst=dst, ttl=ttl, proto=1, **ip) / Raw(icmp4(kind, code, body, checksum))
    return icmp6(IPv6(src=src, dst=dst, hlim=ttl, **ip), kind, code, body, checksum)
