"""
A balancer under mixed load for minutes: its memory stays flat, it leaks no descriptor and breaks no flow.

    python tests/soak.py --minutes 10        # `make soak MINUTES=10`; needs root

Builds a testbed of its own and runs `lb run` in its router. Meanwhile: keep-alive HTTP on 20 connections, 100 new
connections a second, 20 000 UDP packets a second of 500 new flows each second, 60 TCP connections that live from the
beginning to the end and compare every echo, and a reload every 3 s that changes weights. Each second the resident size
and the descriptors of the balancer are read. Prints a line per minute; ends with 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.control.api.client import fetch
from lb.errors import LbError
from lb.lab.bench import web_server
from lb.lab.bench.measures.packets import frame
from lb.lab.bench.run import open_ports
from lb.lab.testbed import isolation, live
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP_PORT
from lb.net import sockets
from lb.net.frames import SOL_PACKET

PREFIX = "lb-soak-"
SERVERS = ("server1", "server2", "server3")
LOAD_HOSTS = {"keepalive": "client1", "connections": "client2", "steady": "client3"}
ECHO_PORT = 7000
STEADY, STEADY_SECONDS = 60, 1.0
UNUSED_MAC = "aa:aa:aa:00:00:fe"
UDP_FLOWS, UDP_PPS, FIRST_PORT, LAST_PORT = 500, 20_000.0, 1024, 61_000
RELOAD_S = 3
# Until then tables, caches and the heap of Python fill.
SETTLED_S = 60.0
TOLERANCE = 0.01
GRACE_S = 10.0
CONFIG = """[flows]
udp = "30s"
[[interface]]
name = "eth0"
[[service]]
name = "web"
address = "{vip}"
port = {vip_port}
server = [{{ name = "server1", address = "{server1}", port = {web_port} }}]
[[service]]
name = "udp"
address = "{vip}"
port = {vip_port}
protocol = "udp"
server = [{{ name = "server1", address = "{server1}", port = 9, mac = "{unused}" }}]
[[service]]
name = "echo"
address = "{vip}"
port = {echo_port}
server = [
  {{ name = "server1", address = "{server1}", port = {echo_port}, weight = {weights[0]} }},
  {{ name = "server2", address = "{server2}", port = {echo_port}, weight = {weights[1]} }},
  {{ name = "server3", address = "{server3}", port = {echo_port}, weight = {weights[2]} }},
]
"""


@dataclass(frozen=True)
class Sample:
    """The balancer at one instant. `at_s`: since the load began."""

    at_s: float
    rss_bytes: int
    descriptors: int


@dataclass
class Record:
    """What a run saw."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reloads: int = 0
    udp_packets: int = 0


def main() -> int:
    """Run a part of the load, or everything. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--backend", default="rust")
    parser.add_argument("--part", nargs=3, metavar=("WHAT", "ADDRESS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        what, address, seconds = options.part
        asyncio.run({"echo": serve_echo, "steady": hold_steady}[what](address, float(seconds)))
        return 0
    try:
        return soak(options.minutes * 60, options.backend)
    except LbError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1


def soak(seconds: float, backend: str) -> int:
    """Build, run, report."""
    record = Record()
    with live.stoppable(), Testbed(prefix=PREFIX, servers=False) as testbed:
        serving = web_server.start(testbed, isolation.has_capabilities())
        for name in SERVERS:
            testbed.spawn(name, "echo", part("echo", str(testbed.topology.host(name).address), seconds + 2 * GRACE_S))
            testbed.wait_listening(testbed.topology.host(name), ECHO_PORT, "echo")
        path = write_config(testbed, (1, 1, 1))
        balancer = live.start_balancer(testbed, path, backend)
        print(f"{serving}; backend {backend}; {seconds / 60:g} minutes", flush=True)
        with loads(testbed, seconds) as children:
            watch(testbed, balancer, seconds, record)
            for label, child in children.items():
                if child.wait(timeout=2 * GRACE_S) != 0:
                    record.failures.append(
                        f"{label} ended with {child.returncode}: {testbed.last_log_line(LOAD_HOSTS[label], label)}"
                    )
        if balancer.process.poll() is not None:
            record.failures.append("the balancer ended")
        else:
            show_counters(fetch(balancer.control, "/status")["counters"])
        testbed.end(ROUTER, "lb")
    return judge(record)


def part(what: str, address: str, seconds: float) -> list[str]:
    """Return the command of a part of the load."""
    return [sys.executable, __file__, "--part", what, address, str(seconds)]


def write_config(testbed: Testbed, weights: tuple[int, int, int]) -> Path:
    """Write the configuration with these weights of the echo servers; a reader never sees half of it."""
    addresses = {name: testbed.topology.host(name).address for name in SERVERS}
    text = CONFIG.format(
        vip=VIP,
        vip_port=VIP_PORT,
        web_port=testbed.topology.host(SERVERS[0]).web_port,
        echo_port=ECHO_PORT,
        unused=UNUSED_MAC,
        weights=weights,
        **addresses,
    )
    path, new = testbed.directory / "soak.toml", testbed.directory / "soak.new"
    new.write_text(text)
    new.replace(path)
    return path


@contextmanager
def loads(testbed: Testbed, seconds: float) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run the loads over TCP for the block, each in a host of its own."""
    asking = [sys.executable, "-P", "-m", "lb.lab.bench.web_client", str(VIP), str(VIP_PORT), web_server.SMALL_PATH]
    asking += ["--seconds", str(seconds)]
    commands = {
        "keepalive": [*asking, "--connections", "20"],
        "connections": [*asking, "--rate", "100"],
        "steady": part("steady", str(VIP), seconds),
    }
    children = {}
    for label, command in commands.items():
        open_ports(testbed, LOAD_HOSTS[label])
        children[label] = testbed.spawn(LOAD_HOSTS[label], label, command)
    try:
        yield children
    finally:
        for label in children:
            testbed.end(LOAD_HOSTS[label], label)


def watch(testbed: Testbed, balancer: live.Balancer, seconds: float, record: Record) -> None:
    """Send UDP, reload, and read the balancer's size each second, until the time is over."""
    with udp_socket(testbed) as sock:
        started, turn = time.monotonic(), 0
        while (at_s := time.monotonic() - started) < seconds and balancer.process.poll() is None:
            record.samples.append(sample(balancer.process.pid, at_s))
            if turn and turn % 60 == 0:
                show(record)
            record.udp_packets += send_udp(testbed, sock, turn)
            turn += 1
            if turn % RELOAD_S == 0:
                write_config(testbed, (1 + turn % 5, 1 + turn % 3, 1))
                balancer.process.send_signal(signal.SIGHUP)
                record.reloads += 1
        show(record)


@contextmanager
def udp_socket(testbed: Testbed) -> Iterator[socket.socket]:
    """Open the generator's socket in client4."""
    with testbed.inside("client4"):
        sock = sockets.new_socket("eth0")
        sockets.set_option(sock, SOL_PACKET, sockets.PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")
        sock.bind(("eth0", 0))
    with sock:
        yield sock


def send_udp(testbed: Testbed, sock: socket.socket, turn: int) -> int:
    """Send for a second, from source ports that the last seconds did not use. Returns the packets."""
    from lb import _core

    router_mac = testbed.topology.host(ROUTER).interfaces[0].mac
    template = bytearray(frame(testbed, VIP, VIP_PORT, router_mac))
    span = LAST_PORT - FIRST_PORT
    template[34:36] = (FIRST_PORT + turn * UDP_FLOWS % span).to_bytes(2, "big")
    packets, _ = _core.generate(sock.fileno(), bytes(template), UDP_FLOWS, int(UDP_PPS), 1.0, UDP_PPS)
    return packets


def sample(pid: int, at_s: float) -> Sample:
    """Read the balancer's resident size and count its descriptors."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(at_s, pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir())))


def show(record: Record) -> None:
    """Print a line about the newest sample."""
    now = record.samples[-1]
    print(
        f"{now.at_s:6.0f} s  {now.rss_bytes / 2**20:8.2f} MiB  {now.descriptors:3} descriptors  "
        f"{record.reloads:4} reloads  {record.udp_packets / 1e6:6.2f} M UDP packets",
        flush=True,
    )


def show_counters(counters: dict[str, Any]) -> None:
    """Print what the balancer counted."""
    print(f"verdicts: {counters['verdicts']}\nevents: {counters['events']}\nio: {counters['io']}", flush=True)


def judge(record: Record) -> int:
    """Say what held and what did not. Returns the exit status."""
    # A run shorter than two minutes is for trying the script: its second half is judged.
    settled = min(SETTLED_S, record.samples[-1].at_s / 2)
    later = [each for each in record.samples if each.at_s >= settled]
    sizes, descriptors = [each.rss_bytes for each in later], [each.descriptors for each in later]
    middle = (max(sizes) + min(sizes)) / 2
    spread = (max(sizes) - middle) / middle
    print(f"after {settled:.0f} s: memory {middle / 2**20:.2f} MiB +-{spread:.2%}")
    print(f"descriptors {min(descriptors)} to {max(descriptors)}")
    if spread > TOLERANCE:
        record.failures.append(f"memory is not flat: +-{spread:.2%} is more than {TOLERANCE:.0%}")
    # The control socket's connections, ours too, come and go: what stays open is the least of a while.
    third = max(1, len(descriptors) // 3)
    at_first, at_last = min(descriptors[:third]), min(descriptors[-third:])
    if at_last > at_first:
        record.failures.append(f"descriptors leak: at least {at_first} at first, {at_last} at last")
    for failure in record.failures:
        print(f"FAILED: {failure}")
    print("soak: failed" if record.failures else "soak: everything holds")
    return 1 if record.failures else 0


async def serve_echo(address: str, seconds: float) -> None:
    """Echo on a server until the time is over."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(echo, address, ECHO_PORT, backlog=256):
        await asyncio.sleep(seconds)


async def hold_steady(address: str, seconds: float) -> None:
    """Open connections and compare an echo on each of them every second, to the end. Raises at the first difference."""
    deadline = time.monotonic() + seconds

    async def one(number: int) -> None:
        dice = random.Random(number)
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, ECHO_PORT), GRACE_S)
        while time.monotonic() < deadline:
            data = dice.randbytes(dice.randrange(1, 20_000))
            writer.write(data)
            if await asyncio.wait_for(reader.readexactly(len(data)), GRACE_S) != data:
                raise ValueError(f"connection {number}: other bytes came back")
            await asyncio.sleep(STEADY_SECONDS)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(STEADY)))


if __name__ == "__main__":
    sys.exit(main())
