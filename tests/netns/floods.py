"""
Floods from random sources while flows go on: long echo flows speak at a pace, and clients connect anew, before and
during a flood of each kind. No flow may break (rule 8.17, full table; rule 6, fragments; rule 12.4, packets that we
send), and memory stays flat.

    python tests/netns/floods.py --rate 300000 --seconds 5 [--kind syn ...]        # `make soak-floods`

Generator, hosts and balancer share the machine's cores: a flood comes slower than asked for where they are full, and
the table shows how fast it came.
"""

from __future__ import annotations

import argparse
import errno
import resource
import selectors
import socket
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from churn import ECHO_SERVER_PORT, SERVER, balancing, configuration, control_of, echo, open_flows, placements
from realhosts import ECHO_PORT, UDP_PORT, RunningBalancer, running_testbed

from lb.control.api.client import fetch
from lb.lab.bench import cpu
from lb.lab.floods import KINDS, Flood, Target, prepare
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP

FLOODER = "client5"
CLIENTS = ("client1", "client2", "client3", "client4")
# What a client waits for a connection.
CONNECT_S = 3.0
TARGET = Target(VIP, ECHO_PORT, UDP_PORT)
UDP_SERVICE = """
[[service]]
name = "udp"
address = "{vip}"
port = {port}
protocol = "udp"
policy = "round-robin"
"""


def flood_configuration(testbed: Testbed, policy: str = "round-robin", capacity: int = 262_144, more: str = "") -> str:
    """Return a configuration with an echo service over TCP and one over UDP. `more`: keys of both services."""
    text = f"[flows]\ncapacity = {capacity}\n" + configuration(testbed, policy)
    text += UDP_SERVICE.format(vip=VIP, port=UDP_PORT)
    for host in testbed.topology.of_role("server"):
        text += SERVER.format(name=host.name, address=host.address, port=ECHO_SERVER_PORT, weight=1)
    return text.replace(f'policy = "{policy}"\n', f'policy = "{policy}"\n{more}')


@dataclass
class Figures:
    """What clients saw. `waits_s`: how long connects took that came in time."""

    asked: int = 0
    answered: int = 0
    connects: int = 0
    refused: int = 0
    late: int = 0
    waits_s: list[float] = field(default_factory=list)


class Load:
    """
    Flows that speak in turns at a pace, and clients that connect, all from this thread.

    Args:
        testbed: the testbed.
        flows: they are open, and nothing is on its way.
        asks_per_s: questions of all flows together.
        connects_per_s: new connections.
    """

    def __init__(self, testbed: Testbed, flows: list[socket.socket], asks_per_s: float, connects_per_s: float) -> None:
        self._testbed, self._idle = testbed, deque(flows)
        self._ask_every, self._connect_every = 1 / asks_per_s, 1 / connects_per_s
        self._asked: dict[socket.socket, bytes] = {}
        self._opening: dict[socket.socket, float] = {}
        self._figures = Figures()
        self._turn = 0
        self.broken: set[socket.socket] = set()

    def run(self, seconds: float) -> Figures:
        """Have them speak and connect for a time; return what they saw in it."""
        self._figures = figures = Figures()
        with selectors.DefaultSelector() as self._selector:
            for flow in (*self._idle, *self._asked):
                flow.setblocking(False)
                self._selector.register(flow, selectors.EVENT_READ, self._read)
            began = time.monotonic()
            asks, connects = 0, 0
            while (now := time.monotonic() - began) < seconds:
                while asks * self._ask_every <= now:
                    self._ask()
                    asks += 1
                while connects * self._connect_every <= now:
                    self._connect()
                    connects += 1
                self._wait(min(asks * self._ask_every, connects * self._connect_every) - now)
            figures.asked = asks
            # Those that are opening have their time.
            while self._opening:
                self._wait(0.05)
        return figures

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            key.data(key.fileobj)
        now = time.monotonic()
        for client in [client for client, began in self._opening.items() if now - began > CONNECT_S]:
            self._figures.late += 1
            self._close(client)

    def _ask(self) -> None:
        if not self._idle:
            return
        flow = self._idle.popleft()
        self._turn += 1
        self._asked[flow] = b"%16d" % self._turn
        try:
            flow.send(self._asked[flow])
        except OSError:
            self._break(flow)

    def _read(self, flow: socket.socket) -> None:
        try:
            data = flow.recv(64)
        except OSError:
            data = b""
        if flow not in self._asked or not self._asked[flow].startswith(data) or not data:
            self._break(flow)
        elif self._asked[flow] == data:
            del self._asked[flow]
            self._figures.answered += 1
            self._idle.append(flow)
        else:
            self._asked[flow] = self._asked[flow][len(data) :]

    def _break(self, flow: socket.socket) -> None:
        self._selector.unregister(flow)
        self._asked.pop(flow, None)
        self.broken.add(flow)

    def _connect(self) -> None:
        figures = self._figures
        client = self._testbed.socket(CLIENTS[figures.connects % len(CLIENTS)])
        figures.connects += 1
        client.setblocking(False)
        if client.connect_ex((str(VIP), ECHO_PORT)) != errno.EINPROGRESS:
            figures.refused += 1
            client.close()
            return
        self._opening[client] = time.monotonic()
        self._selector.register(client, selectors.EVENT_WRITE, self._opened)

    def _opened(self, client: socket.socket) -> None:
        waited = time.monotonic() - self._opening[client]
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._figures.refused += 1
        else:
            self._figures.waits_s.append(waited)
        self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._opening[client]
        self._selector.unregister(client)
        client.close()


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Return the verdicts, events and socket counters that moved, by name."""
    moved = {}
    for part in ("verdicts", "events", "io"):
        for name, value in after[part].items():
            change = value - before[part].get(name, 0)
            if change:
                moved[name] = change
    moved["rx_packets"] = after["rx_packets"] - before["rx_packets"]
    return moved


@dataclass
class Report:
    """What one flood did."""

    kind: str
    sent: int
    seconds: float
    asked_s: float
    before: Figures
    during: Figures
    flows: int
    broken: int
    moved: int
    rss_kib: tuple[int, int]
    cpu_s: float
    counters: dict[str, int]

    @property
    def rate_share(self) -> float:
        """The rate of the flows during the flood, before it: 1."""
        return (self.during.answered / self.during.asked) / (self.before.answered / self.before.asked)

    def line(self) -> str:
        """Return it as a row of the table."""
        during, waits = self.during, sorted(self.during.waits_s)
        slow = f"{waits[len(waits) * 99 // 100] * 1000:.0f} ms" if waits else "-"
        names = sorted((name for name in self.counters if name != "rx_packets"), key=lambda name: -self.counters[name])
        most = ", ".join(f"{name} {self.counters[name]}" for name in names[:7])
        return (
            f"| {self.kind} | {self.sent / self.seconds / 1000:.0f} | {self.broken} of {self.flows}, {self.moved} moved "
            f"| {self.rate_share:.1%} | {len(waits)} of {during.connects} ({during.refused} refused, "
            f"{during.late} late), p99 {slow} | {self.rss_kib[0] / 1024:.1f} -> {self.rss_kib[1] / 1024:.1f} "
            f"| {self.cpu_s / self.asked_s:.2f} | {self.counters['io_lost']} | {most} |"
        )


HEADER = """\
| kind | 1000/s | flows broken | rate of flows | connects within 3 s | RSS, MiB | cores | no room | counters |
|---|--:|---|--:|---|---|--:|--:|---|"""


def flood_once(
    testbed: Testbed, balancer: RunningBalancer, flows: list[socket.socket], kind: str, rate: float, seconds: float
) -> Report:
    """Have flows speak and clients connect, before and during a flood."""
    status = fetch(control_of(balancer), "/status")
    pid = status["pid"]
    load = Load(testbed, flows, ASKS_PER_S, CONNECTS_PER_S)
    where = placements(balancer)
    own = {flow.getsockname() for flow in flows}
    quiet = load.run(min(seconds, 3.0))
    memory, cpu_ns = resident_kib(pid), cpu.process_ns(pid)
    counters = balancer.counters()
    with Flood(testbed, FLOODER, kind, TARGET, rate, seconds) as flood:
        loud = load.run(seconds)
        cpu_ns = cpu.process_ns(pid) - cpu_ns
        memory_after = resident_kib(pid)
    moved = difference(counters, balancer.counters())
    moved["io_lost"] = moved.get("rx_dropped", 0)
    broken = load.broken
    for flow in set(flows) - broken:
        flow.settimeout(10)
        pending = load._asked.pop(flow, b"")
        try:
            if pending:
                assert flow.recv(64) == pending
            assert echo(flow, b"after")
        except (OSError, AssertionError):
            broken.add(flow)
    found = placements(balancer)
    elsewhere = sum(found.get(key) not in (None, server) for key, server in where.items() if key in own)
    return Report(
        kind,
        flood.sent,
        flood.seconds,
        seconds,
        quiet,
        loud,
        len(flows),
        len(broken),
        elsewhere,
        (memory, memory_after),
        cpu_ns / 1e9,
        moved,
    )


ASKS_PER_S, CONNECTS_PER_S = 1000.0, 50.0


def main() -> int:
    """Run from the command line. Exit with 1 when a flow broke or moved."""
    parser = argparse.ArgumentParser(description="Keep flows open through floods.")
    parser.add_argument("--flows", type=int, default=200)
    parser.add_argument("--rate", type=float, default=300_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--policy", default="round-robin")
    parser.add_argument("--backend", default="rust")
    parser.add_argument("--capacity", type=int, default=262_144)
    parser.add_argument("--more", default="")
    parser.add_argument("--kind", choices=tuple(KINDS), action="append", help="default: all, one after the other")
    arguments = parser.parse_args()
    # Both ends of a flow need a descriptor, one here and one in a server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    failed = 0
    print(HEADER, flush=True)
    with running_testbed("floods-", use_apache=False) as testbed:
        prepare(testbed, FLOODER)
        for kind in arguments.kind or tuple(KINDS):
            text = flood_configuration(testbed, arguments.policy, arguments.capacity, arguments.more)
            with balancing(testbed, arguments.backend, text) as balancer, ExitStack() as stack:
                flows = open_flows(testbed, arguments.flows, stack)
                assert all(echo(flow, b"first") for flow in flows)
                report = flood_once(testbed, balancer, flows, kind, arguments.rate, arguments.seconds)
                for flow in flows:
                    flow.setblocking(True)
            print(report.line(), flush=True)
            failed += report.broken + report.moved
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
