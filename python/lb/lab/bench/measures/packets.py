"""
60-byte packets per second on a straight path generator - router - sink, and the CPU time of each.

UDP flows differ in their source port. The sink costs next to nothing: the router sends to a MAC address that no host
has, which the sink's kernel throws away before it looks at the IP header; the interface has counted the frame by then.
The flood comes from the kernel itself (live frames of BPF_PROG_TEST_RUN, which needs CAP_BPF), else from a packet
socket, which costs more per packet; packets at a pace always come from the socket. Generator and softirq share the
cores with the contestant. The generator alone, towards a router that throws its frames away likewise, is measured in
each turn too: it is the limit of the packet rate.

The CPU time of a packet contains its sender's, because the kernel's part of the way is done in the sender's context:
taking the generator's own time off (2 of 3 us, and it varies by 20 %) left a difference of noise, 33 to 540 ns for the
same routing. What disturbs a span only adds to it, so the least of many short spans is taken.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lb.errors import LbError
from lb.lab.bench import cpu
from lb.lab.bench.contestants.base import Working
from lb.lab.bench.load import Measured
from lb.lab.bench.settings import Settings
from lb.lab.testbed import build, ethtool
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER
from lb.net import sockets
from lb.net.frames import SOL_PACKET

GENERATOR, SINK = "client1", "server1"
UNUSED_MAC = "aa:aa:aa:00:00:fe"
FRAME_BYTES = 60
FIRST_PORT = 1024
MAX_PACKETS = 100_000_000
RAMP_S = 0.25
WARM_PPS = 2000.0
WARM_PACKETS = 200
ARRIVE_DEADLINE_S = 5.0
QUIET_S, QUIET_DEADLINE_S = 0.05, 3.0
# Spans that `paced_s` is divided into.
SPANS = 10
LIVE, SOCKET = "kernel, live frames", "packet socket"


@dataclass(frozen=True, slots=True)
class Alone:
    """The generator alone: frames per second, and CPU seconds per frame at the settings' pace."""

    rate: float
    cpu_per_packet: float


def prepare(testbed: Testbed) -> str:
    """
    Make the sink throw away what comes to it, and find out which generator there is.

    Returns:
        What generates the flood.
    """
    sink = testbed.topology.host(SINK)
    build.set_neighbour(testbed.prefix, ROUTER, "eth1", sink.address, UNUSED_MAC)
    # Live frames enter a veth by its NAPI, which GRO switches on.
    with testbed.inside(ROUTER):
        ethtool.set_offload("eth0", "gro", True)
    try:
        _flood(testbed, frame(testbed, sink.address, 9, UNUSED_MAC), 1, 1, 1.0)
    except LbError as error:
        return f"{SOCKET} (live frames: {error})"
    return LIVE


def measure_alone(testbed: Testbed, settings: Settings, generator: str) -> Alone:
    """Measure the generator towards a router that throws everything away."""
    run = Run(
        testbed, settings, frame(testbed, testbed.topology.host(SINK).address, 9, UNUSED_MAC), ROUTER, None, generator
    )
    with run:
        return Alone(run.flood(), run.cpu_per_packet(settings.paced_pps)[0])


def measure(testbed: Testbed, settings: Settings, working: Working, generator: str) -> Measured:
    """
    Return `packets`, arrived at the sink per second, and `cpu_per_packet`, seconds, the sender's included.

    The pace is the settings', or half of the rate when that is less: a contestant that drops packets would have their
    cost on those that arrive. Packets that were lost at the pace are `failed`.
    """
    router = testbed.topology.host(ROUTER)
    template = frame(testbed, working.address, working.port, router.interfaces[0].mac)
    with Run(testbed, settings, template, SINK, working.pid, generator) as run:
        run.warm()
        rate = run.flood()
        cpu_s, lost = run.cpu_per_packet(min(settings.paced_pps, rate / 2))
        return Measured({"packets": rate, "cpu_per_packet": cpu_s}, failed=lost)


class Run:
    """
    Sends from the generator and counts at a sink.

    Args:
        testbed: prepared.
        settings: how long.
        template: the frame to send.
        sink: the host that counts.
        pid: whose CPU time counts beside our own and the kernel's.
        generator: what `prepare` said.
    """

    def __init__(
        self, testbed: Testbed, settings: Settings, template: bytes, sink: str, pid: int | None, generator: str
    ) -> None:
        self._live = generator == LIVE
        self._testbed, self._settings, self._template = testbed, settings, template
        self._sink, self._pid = sink, pid
        self._softirq = cpu.softirq_threads()
        self._socket: socket.socket

    def __enter__(self) -> Run:
        with self._testbed.inside(GENERATOR):
            self._socket = sockets.new_socket("eth0")
            sockets.set_option(self._socket, SOL_PACKET, sockets.PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")
            sockets.set_option(self._socket, SOL_PACKET, sockets.PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS")
            # No protocol: it sends and hears nothing.
            self._socket.bind(("eth0", 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def warm(self) -> None:
        """Send some packets until one arrives: flows and neighbours are found then. Raise LbError when none does."""
        before, deadline = self._arrived(), time.monotonic() + ARRIVE_DEADLINE_S
        while self._arrived() == before:
            if time.monotonic() > deadline:
                raise LbError("no packet arrives at the receiver")
            self._generate(1.0, WARM_PPS, WARM_PACKETS)
        self._wait_quiet()

    def flood(self) -> float:
        """Send as fast as possible; return the packets that arrived per second while it went on."""
        seconds = RAMP_S + self._settings.flood_s + RAMP_S
        send = self._flood if self._live else self._generate
        with ThreadPoolExecutor(max_workers=1) as pool:
            sending = pool.submit(send, seconds)
            # The kernel prepares a flood, and ends it, with waits that are no sending: what counts is the time between.
            time.sleep(RAMP_S)
            before, start_ns = self._arrived(), time.monotonic_ns()
            time.sleep(self._settings.flood_s)
            rate = (self._arrived() - before) * 1e9 / (time.monotonic_ns() - start_ns)
            sending.result()
        self._wait_quiet()
        return rate

    def cpu_per_packet(self, rate_pps: float) -> tuple[float, int]:
        """Send at a pace. Returns CPU seconds per packet that arrived, the least of several spans, and those lost."""
        spans = [self._cpu_of_span(rate_pps) for _ in range(SPANS)]
        return min(cost for cost, _ in spans), sum(lost for _, lost in spans)

    def _cpu_of_span(self, rate_pps: float) -> tuple[float, int]:
        packets = max(1, int(self._settings.paced_s / SPANS * rate_pps))
        packets_before, cpu_before = self._arrived(), self._cpu_ns()
        sent, _ = self._generate(self._settings.paced_s, rate_pps, packets)
        self._wait_quiet()
        arrived = self._arrived() - packets_before
        if arrived == 0:
            raise LbError("no packet arrives at the receiver")
        # A neighbour's question may arrive beside them: that is no packet more.
        return (self._cpu_ns() - cpu_before) / 1e9 / arrived, max(0, sent - arrived)

    def _flood(self, seconds: float) -> tuple[int, float]:
        return _flood(self._testbed, self._template, self._settings.flows, MAX_PACKETS, seconds)

    def _generate(self, seconds: float, rate_pps: float | None = None, packets: int = MAX_PACKETS) -> tuple[int, float]:
        from lb import _core

        return _core.generate(self._socket.fileno(), self._template, self._settings.flows, packets, seconds, rate_pps)

    def _cpu_ns(self) -> int:
        other = 0 if self._pid is None else cpu.process_ns(self._pid)
        return time.process_time_ns() + other + cpu.threads_ns(self._softirq)

    def _arrived(self) -> int:
        with self._testbed.inside(self._sink):
            return received_packets("eth0")

    def _wait_quiet(self) -> None:
        """Wait until nothing arrives any more: what was queued belongs to this measurement, not to the next."""
        deadline, last = time.monotonic() + QUIET_DEADLINE_S, -1
        while (now := self._arrived()) != last and time.monotonic() < deadline:
            last = now
            time.sleep(QUIET_S)


def _flood(testbed: Testbed, template: bytes, flows: int, packets: int, seconds: float) -> tuple[int, float]:
    from lb import _core

    with testbed.inside(GENERATOR):
        return _core.flood(socket.if_nametoindex("eth0"), template, flows, packets, seconds)


def received_packets(interface: str) -> int:
    """Return how many packets an interface of the calling thread's namespace has received."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[1])
    raise LbError(f"there is no interface {interface}")


def frame(testbed: Testbed, address: IPv4Address, port: int, mac: str) -> bytes:
    """Return a UDP frame of 60 bytes from the generator; the generator's Rust side makes the UDP checksum."""
    from lb.packet.checksum import checksum

    source = testbed.topology.host(GENERATOR)
    length = FRAME_BYTES - 14
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, source.address.packed, address.packed)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    link: bytes = bytes.fromhex((mac + source.interfaces[0].mac).replace(":", "")) + b"\x08\x00"
    datagram = struct.pack("!HHHH", FIRST_PORT, port, length - 20, 0)
    return link + header + datagram + bytes(length - 28)


def pin_generator() -> set[int]:
    """Keep this thread, which generates, on the last core; return the cores it had."""
    had = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(had)})
    return had
