"""
The probes of `lb doctor`: a few packets to the neighbours, bounded in number and time.

One TCP connect per server's address and port; per VIP in a prefix of an interface, two ARP probes (RFC 5227 2.1.1: with
sender address 0, so that no cache changes) or two neighbour solicitations for duplicate address detection (RFC 4862
5.4.2).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb.config import Config
from lb.model.snapshot import Address, InterfaceAddress
from lb.net.sockets import read_interface
from lb.packet.checksum import checksum, pseudo_header_sum

# A lost SYN is sent again after a second: long enough for one loss.
CONNECT_S = 2.5
CONNECTS_AT_ONCE = 64
PROBES = 2
PROBE_WAIT_S = 0.3
ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0806, 0x86DD
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
BROADCAST = b"\xff" * 6
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, ICMPV6 = 135, 136, 58


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The result of a connect. `failure`: why it failed. `segment_bytes`: the largest TCP segment that may be sent to the
    server, by its announced size and the kernel's route.
    """

    failure: str | None = None
    segment_bytes: int | None = None


def ask_servers(config: Config) -> dict[tuple[Address, int], Answer]:
    """Connect to every server of every TCP service, many at once, 2.5 seconds each at most."""
    targets = {
        (server.address, server.port)
        for service in config.services
        if service.protocol == "tcp"
        for server in service.servers
    }
    return asyncio.run(_ask_all(sorted(targets, key=str)))


async def _ask_all(targets: list[tuple[Address, int]]) -> dict[tuple[Address, int], Answer]:
    turn = asyncio.Semaphore(CONNECTS_AT_ONCE)

    async def ask(address: Address, port: int) -> Answer:
        async with turn:
            return await _ask(address, port)

    answers = await asyncio.gather(*(ask(address, port) for address, port in targets))
    return dict(zip(targets, answers, strict=True))


async def _ask(address: Address, port: int) -> Answer:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
            return Answer(segment_bytes=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
        except TimeoutError:
            return Answer(f"no answer within {CONNECT_S:g} s")
        except OSError as error:
            return Answer(os.strerror(error.errno).lower() if error.errno else str(error))


def find_owners(config: Config, links: Mapping[str, tuple[InterfaceAddress, ...]]) -> dict[Address, str]:
    """
    Find hosts that have a VIP, on the links where neighbours would resolve it.

    Args:
        config: names the VIPs.
        links: interfaces that are up, with their addresses.

    Returns:
        By VIP, the MAC that answered; VIPs without an answer are left out.

    Raises:
        OSError: packet sockets cannot be opened.
    """
    owners: dict[Address, str] = {}
    for name, addresses in links.items():
        vips = {service.address for service in config.services}
        here = {vip for vip in vips if any(vip in address.network for address in addresses)}
        if here:
            owners |= _probe(name, here)
    return owners


def _probe(name: str, vips: set[Address]) -> dict[Address, str]:
    mac = read_interface(name).mac
    owners: dict[Address, str] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.bind((name, ETH_P_ALL))
        for _ in range(PROBES):
            for vip in vips - owners.keys():
                sock.send(arp_probe(mac, vip) if vip.version == 4 else solicitation(mac, vip))
            end = time.monotonic() + PROBE_WAIT_S
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    frame = sock.recv(2048)
                except TimeoutError:
                    break
                answer = read_answer(frame)
                # Our own machine may answer for a VIP it announces; that is no duplicate.
                if answer is not None and answer[0] in vips and answer[1] != mac:
                    owners[answer[0]] = answer[1].hex(":")
    return owners


def arp_probe(mac: bytes, target: IPv4Address) -> bytes:
    """Return the frame that asks who has an IPv4 address, without saying who asks (RFC 5227 2.1.1)."""
    header = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    return header + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + bytes(4) + bytes(6) + target.packed


def solicitation(mac: bytes, target: IPv6Address) -> bytes:
    """Return the frame that asks who has an IPv6 address, from the unspecified one (RFC 4862 5.4.2)."""
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target.packed[13:]
    message = struct.pack("!BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target.packed
    total = checksum(message, pseudo_header_sum(bytes(16), group, ICMPV6, len(message)))
    message = message[:2] + total.to_bytes(2, "big") + message[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 255) + bytes(16) + group
    return b"\x33\x33" + group[12:] + mac + struct.pack("!H", ETH_P_IPV6) + ip + message


def read_answer(frame: bytes) -> tuple[Address, bytes] | None:
    """Return the address and MAC that an answer announces; None for other frames."""
    kind = frame[12:14]
    if kind == ETH_P_ARP.to_bytes(2, "big") and len(frame) >= 42 and any(frame[28:32]):
        return IPv4Address(frame[28:32]), frame[22:28]
    is_advertisement = len(frame) >= 78 and frame[20] == ICMPV6 and frame[54] == NEIGHBOUR_ADVERTISEMENT
    if kind == ETH_P_IPV6.to_bytes(2, "big") and is_advertisement:
        return IPv6Address(frame[62:78]), frame[6:12]
    return None
