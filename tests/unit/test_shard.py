"""Which worker a frame belongs to: the program for the kernel against the hash of the client's address."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb.errors import ConfigError
from lb.model.limits import MOST_VIPS
from lb.model.snapshot import Address
from lb.net import shard, sockets

VIPS = [ip_address(text) for text in ("198.18.1.100", "203.0.113.7", "fd00:1::100", "2001:db8::7")]
SERVER4, SERVER6 = "198.18.1.31", "fd00:1::31"
ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8:ffff::1"
WORKERS = (1, 2, 3, 8, 64)
DRAWN = random.Random(7)
CLIENTS4 = [str(IPv4Address(DRAWN.getrandbits(32))) for _ in range(8)]
CLIENTS6 = [str(IPv6Address(DRAWN.getrandbits(128))) for _ in range(8)]


def hears(program: shard.Block, frame: bytes) -> bool:
    """Run a program as the kernel would (linux/filter.h): a load beyond the end is a verdict of 0."""
    a = x = at = 0
    memory: dict[int, int] = {}
    while True:
        code, jt, jf, k = program[at]
        at += 1
        match code:
            case 0x40 | 0x50 | 0x28:
                start, size = (k if code == 0x28 else x + k), {0x40: 4, 0x50: 1, 0x28: 2}[code]
                if start + size > len(frame):
                    return False
                a = int.from_bytes(frame[start : start + size])
            case 0x80:
                a = len(frame)
            case 0x01:
                x = k
            case 0x61:
                x = memory[k]
            case 0x02:
                memory[k] = a
            case 0x03:
                memory[k] = x
            case 0x07:
                x = a
            case 0x24:
                a = a * k % 2**32
            case 0x54:
                a &= k
            case 0x64:
                a = (a << k) % 2**32
            case 0x74:
                a >>= k
            case 0x0C:
                a = (a + x) % 2**32
            case 0x1C:
                a = (a - x) % 2**32
            case 0xAC:
                a ^= x
            case 0x05:
                at += k
            case 0x15:
                at += jt if a == k else jf
            case 0x35:
                at += jt if a >= k else jf
            case 0x06:
                return k != 0
            case _:
                pytest.fail(f"operation {code:#x}")


def worker_that_hears(frame: bytes, workers: int, vips: list[Address] = VIPS) -> int:
    """Return the one worker whose program lets a frame through."""
    heard = [number for number in range(workers) if hears(shard.program(vips, workers, number), frame)]
    assert len(heard) == 1, f"{frame.hex()} is heard by {heard}"
    return heard[0]


def four(client: str, vip: str) -> list[Packet]:
    """Return packets that all belong to an IPv4 client's flows."""
    segment = TCP(sport=40000, dport=80)
    back = IP(src=SERVER4, dst=client) / TCP(sport=8031, dport=40000)
    to_client = IP(src=vip, dst=client) / TCP(sport=80, dport=40000)
    to_server = IP(src=client, dst=SERVER4) / segment
    options = b"\x94\x04\x00\x00"
    return [
        IP(src=client, dst=vip) / segment,
        IP(src=client, dst=vip, options=options) / segment,
        back,
        IP(src=client, dst=vip) / UDP(sport=40000, dport=53) / Raw(bytes(100)),
        IP(src=client, dst=vip, proto=17, flags="MF", frag=0) / Raw(bytes(1200)),
        IP(src=client, dst=vip, proto=17, frag=150) / Raw(bytes(100)),
        IP(src=SERVER4, dst=client, proto=17, frag=150) / Raw(bytes(100)),
        IP(src=client, dst=vip) / ICMP(type=8) / Raw(bytes(60)),
        IP(src=ROUTER4, dst=vip) / ICMP(type=3, code=4) / to_client,
        IP(src=ROUTER4, dst=vip, options=options) / ICMP(type=3, code=4) / to_client,
        IP(src=ROUTER4, dst=vip) / ICMP(type=11) / Raw(bytes(to_client)[:28]),
        IP(src=client, dst=vip) / ICMP(type=12) / to_client,
        IP(src=ROUTER4, dst=client) / ICMP(type=3, code=4) / to_server,
        IP(src=SERVER4, dst=client) / ICMP(type=3, code=3) / to_server,
    ]


def six(client: str, vip: str) -> list[Packet]:
    """Return packets that all belong to an IPv6 client's flows."""
    segment = TCP(sport=40000, dport=80)
    to_client = IPv6(src=vip, dst=client) / TCP(sport=80, dport=40000)
    to_server = IPv6(src=client, dst=SERVER6) / segment
    return [
        IPv6(src=client, dst=vip) / segment,
        IPv6(src=SERVER6, dst=client) / TCP(sport=8031, dport=40000),
        IPv6(src=client, dst=vip) / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / Raw(bytes(800)),
        IPv6(src=client, dst=vip) / IPv6ExtHdrFragment(offset=100, m=0, nh=17) / Raw(bytes(80)),
        IPv6(src=client, dst=vip) / ICMPv6EchoRequest(data=bytes(100)),
        IPv6(src=ROUTER6, dst=vip) / ICMPv6PacketTooBig(mtu=1280) / to_client,
        IPv6(src=ROUTER6, dst=vip) / ICMPv6DestUnreach() / to_client,
        IPv6(src=ROUTER6, dst=client) / ICMPv6PacketTooBig(mtu=1280) / to_server,
    ]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "second tag"])
@pytest.mark.parametrize("family", [4, 6])
def test_program_all_of_a_clients_packets_are_heard_by_its_worker(workers: int, tagged: bool, family: int) -> None:
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    link = ether / Dot1Q(vlan=7) if tagged else ether
    for client in CLIENTS4 if family == 4 else CLIENTS6:
        for vip in (str(vip) for vip in VIPS if vip.version == family):
            for packet in four(client, vip) if family == 4 else six(client, vip):
                wanted = shard.worker_of(ip_address(client), workers)
                assert worker_that_hears(bytes(link / packet), workers) == wanted, packet.summary()


@pytest.mark.parametrize("workers", WORKERS)
def test_program_what_belongs_to_no_client_is_heard_once(workers: int) -> None:
    """ARP, other protocols, and every frame that is cut short: one worker counts it."""
    ether = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    assert worker_that_hears(bytes(ether / ARP(pdst="198.18.1.100")), workers) == 0
    assert worker_that_hears(bytes(ether) + b"\x88\xcc" + bytes(40), workers) == 0
    whole = [bytes(ether / packet) for packet in (*four(CLIENTS4[0], str(VIPS[0])), *six(CLIENTS6[0], str(VIPS[2])))]
    whole.append(bytes(ether / Dot1Q(vlan=7) / four(CLIENTS4[0], str(VIPS[0]))[0]))
    for frame in whole if workers < 8 else whole[:1]:
        for size in range(14, min(len(frame), 120)):
            worker_that_hears(frame[:size], workers)


def test_program_as_many_vips_as_allowed_fits_the_kernel() -> None:
    vips: list[Address] = [IPv6Address(2**125 + number) for number in range(MOST_VIPS)]
    program = shard.program(vips, 64, 63)
    assert len(program) <= 4096
    assert all(0 <= jump <= 255 for each in program for jump in (each.jt, each.jf))
    assert len(b"".join(struct.pack("=HBBI", *each) for each in program)) == 8 * len(program)
    for vip in (vips[0], vips[200], vips[-1]):
        frame = bytes(Ether() / IPv6(src=CLIENTS6[0], dst=str(vip)) / TCP())
        assert worker_that_hears(frame, 2, vips) == shard.worker_of(ip_address(CLIENTS6[0]), 2)


def test_require_room_few_vips_have_room_and_far_too_many_are_refused() -> None:
    """The kernel itself is asked."""
    sockets.require_room(shard.program(VIPS, 64, 63))
    vips = [IPv6Address(2**125 + number) for number in range(2 * MOST_VIPS)]
    with pytest.raises(
        ConfigError, match=r"too many VIPs for several workers here .*: use workers = 1, or try `sysctl"
    ):
        sockets.require_room(shard.program(vips, 2, 0))


@pytest.mark.parametrize("workers", [2, 4, 7])
def test_worker_of_neighbouring_clients_spread_evenly(workers: int) -> None:
    """A client network of 250 hosts: no worker has more than a tenth above its part."""
    counts = [0] * workers
    for number in range(1, 251):
        counts[shard.worker_of(IPv4Address("198.18.1.0") + number, workers)] += 1
    assert max(counts) <= 1.1 * 250 / workers + 1
    assert min(counts) >= 0.9 * 250 / workers - 1
