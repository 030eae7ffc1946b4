"""
Floods from random sources while flows go on: long echo flows speak at a pace, and clients connect anew, before and
during a flood of each kind. No flow may break or move (rule 8.17, full table; rule 6, fragments; rule 12.4, packets
that we send), and memory stays flat.

    python tests/netns/floods.py --rate 300000 --seconds 5 [--kind syn ...]        # `make soak-floods`

Generator, hosts and balancer share the machine's cores: a flood comes slower than asked for where they are full, and
the table shows how fast it came. `test_floods.py` plays a short form of it in both link modes.
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from churn import ECHO_SERVER_PORT, SERVER, balancing, configuration, control_of, echo, open_flows, placements
from realhosts import DEADLINE_S, ECHO_PORT, UDP_PORT, RunningBalancer, running_testbed

from lb.control.api.client import fetch
from lb.lab.bench import cpu
from lb.lab.floods import KINDS, Flood, Target, prepare
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP

FLOODER = "client5"
CLIENTS = ("client1", "client2", "client3", "client4")
# What a client of the soak waits for a connection.
CONNECT_S = 3.0
QUIET_S = 3.0
TARGET = Target(VIP, ECHO_PORT, UDP_PORT)
UDP_SERVICE = """
[[service]]
name = "udp"
address = "{vip}"
port = {port}
protocol = "udp"
policy = "{policy}"
"""


def flood_configuration(testbed: Testbed, policy: str, capacity: int, more: str = "") -> str:
    """Return a configuration with an echo service over TCP and one over UDP. `more`: a line for each service."""
    text = configuration(testbed, policy) + UDP_SERVICE.format(vip=VIP, port=UDP_PORT, policy=policy)
    for host in testbed.topology.of_role("server"):
        text += SERVER.format(name=host.name, address=host.address, port=ECHO_SERVER_PORT, weight=1)
    policy_line = f'policy = "{policy}"\n'
    return f"[flows]\ncapacity = {capacity}\n" + text.replace(policy_line, f"{policy_line}{more}\n")


@dataclass
class Figures:
    """What clients saw. `waits_s`: how long the connects took that came in time."""

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
        connect_s: what a client waits for one.
    """

    def __init__(
        self,
        testbed: Testbed,
        flows: list[socket.socket],
        asks_per_s: float,
        connects_per_s: float,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._testbed, self._idle, self._connect_s = testbed, deque(flows), connect_s
        self._ask_every, self._connect_every = 1 / asks_per_s, 1 / connects_per_s
        # What is still to come from a flow.
        self._due: dict[socket.socket, bytes] = {}
        self._opening: dict[socket.socket, float] = {}
        self._figures, self._turn = Figures(), 0
        self.broken: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        for flow in flows:
            flow.setblocking(False)
            self._selector.register(flow, selectors.EVENT_READ, self._read)

    def run(self, seconds: float, has_ended: Callable[[], bool] = lambda: True) -> Figures:
        """
        Have flows speak and clients connect for a time, and until something has ended; then the last clients wait.
        Return what they saw.
        """
        self._figures = figures = Figures()
        began, connects = time.monotonic(), 0
        while (now := time.monotonic() - began) < seconds or not has_ended():
            while figures.asked * self._ask_every <= now:
                self._ask()
            while connects * self._connect_every <= now:
                self._connect()
                connects += 1
            due = min(figures.asked * self._ask_every, connects * self._connect_every)
            self._wait(due - now)
        while self._opening:
            self._wait(self._connect_every)
        return figures

    def settle(self) -> set[socket.socket]:
        """Wait for what is still to come, then have each flow speak once more; return those that are broken."""
        deadline = time.monotonic() + DEADLINE_S
        while self._due and time.monotonic() < deadline:
            self._wait(self._connect_every)
        self._selector.close()
        self.broken |= self._due.keys()
        for flow in self._idle:
            flow.settimeout(DEADLINE_S)
            if not echo(flow, b"after"):
                self.broken.add(flow)
        return self.broken

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            key.data(key.fileobj)
        now = time.monotonic()
        for client in [client for client, began in self._opening.items() if now - began > self._connect_s]:
            self._figures.late += 1
            self._close(client)

    def _ask(self) -> None:
        self._figures.asked += 1
        if not self._idle:
            return
        flow = self._idle.popleft()
        self._turn += 1
        self._due[flow] = b"%16d" % self._turn
        try:
            flow.send(self._due[flow])
        except OSError:
            self._break(flow)

    def _read(self, flow: socket.socket) -> None:
        try:
            data = flow.recv(64)
        except OSError:
            data = b""
        due = self._due.pop(flow, b"")
        if not data or not due.startswith(data):
            self._break(flow)
        elif data == due:
            self._figures.answered += 1
            self._idle.append(flow)
        else:
            self._due[flow] = due[len(data) :]

    def _break(self, flow: socket.socket) -> None:
        self._selector.unregister(flow)
        self._due.pop(flow, None)
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


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Return the verdicts, events and socket counters that have grown, by name."""
    parts = ("verdicts", "events", "io")
    changes = {name: value - before[part].get(name, 0) for part in parts for name, value in after[part].items()}
    return {name: change for name, change in changes.items() if change}


@dataclass
class Report:
    """What one flood did. `lasted_s`: the flood; `watched_s`: what `cpu_s` and `during` are of."""

    kind: str
    sent: int
    lasted_s: float
    watched_s: float
    before: Figures
    during: Figures
    flows: int
    broken: int
    moved: int
    resident_bytes: tuple[int, int]
    cpu_s: float
    counters: dict[str, int]

    @property
    def speaking(self) -> float:
        """The rate at which flows were answered during the flood, as a part of that before it."""
        return (self.during.answered / self.during.asked) / (self.before.answered / self.before.asked)

    def row(self) -> str:
        """Return it as a row of the table."""
        during, waits = self.during, sorted(self.during.waits_s)
        slow = f"{waits[len(waits) * 99 // 100] * 1000:.0f}" if waits else "-"
        most = sorted(self.counters, key=lambda name: -self.counters[name])[:5]
        memory = " -> ".join(f"{size / 2**20:.1f}" for size in self.resident_bytes)
        cells = (
            self.kind,
            f"{self.sent / self.lasted_s / 1000:.0f}",
            f"{self.broken} and {self.moved} of {self.flows}",
            f"{self.speaking:.0%}",
            f"{len(waits)} of {during.connects}",
            slow,
            memory,
            f"{self.cpu_s / self.watched_s:.2f}",
            str(self.counters.get("rx_dropped", 0)),
            ", ".join(f"{name} {self.counters[name]}" for name in most),
        )
        return f"| {' | '.join(cells)} |"


HEADER = """\
| flood | 1000/s | broken, moved | their rate | connects | p99, ms | memory, MiB | cores | no room | counters |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"""


def flood_once(
    testbed: Testbed,
    balancer: RunningBalancer,
    flows: list[socket.socket],
    load: Load,
    flood: tuple[str, float, float],
    packets: int = 0,
) -> Report:
    """
    Have flows speak and clients connect, before and during a flood: its kind, packets per second and seconds, and
    packets at least.
    """
    kind, rate_pps, seconds = flood
    pid = fetch(control_of(balancer), "/status")["pid"]
    where = {flow.getsockname(): placements(balancer).get(flow.getsockname()) for flow in flows}
    quiet = load.run(min(seconds, QUIET_S))
    memory, cpu_ns, counters = resident_bytes(pid), cpu.process_ns(pid), balancer.counters()
    with Flood(testbed, FLOODER, kind, TARGET, rate_pps, seconds, packets) as running:
        began = time.monotonic()
        loud = load.run(seconds, lambda: running.has_ended)
        watched_s = time.monotonic() - began
        cpu_s, memory_after = (cpu.process_ns(pid) - cpu_ns) / 1e9, resident_bytes(pid)
    grown = difference(counters, balancer.counters())
    broken = load.settle()
    found = placements(balancer)
    moved = sum(found.get(flow) not in (None, server) for flow, server in where.items())
    return Report(
        kind,
        running.sent,
        running.seconds,
        watched_s,
        quiet,
        loud,
        len(flows),
        len(broken),
        moved,
        (memory, memory_after),
        cpu_s,
        grown,
    )


def main() -> int:
    """Run from the command line. Exit with 1 when a flow broke or moved."""
    parser = argparse.ArgumentParser(description="Keep flows open through floods.")
    parser.add_argument("--flows", type=int, default=200)
    parser.add_argument("--asks", type=float, default=1000, help="questions of all flows, per second")
    parser.add_argument("--connects", type=float, default=50, help="new connections per second")
    parser.add_argument("--rate", type=float, default=300_000, help="packets of a flood per second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--policy", default="round-robin")
    parser.add_argument("--backend", default="rust")
    parser.add_argument("--capacity", type=int, default=262_144)
    parser.add_argument("--limit", type=int, help="a new_flow_limit for all clients together, per second")
    parser.add_argument("--kind", choices=tuple(KINDS), action="append", help="default: all, one after the other")
    parser.add_argument("--no-offloads", action="store_true", help="links without offloads")
    arguments = parser.parse_args()
    # Both ends of a flow need a descriptor, one here and one in a server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    more = "" if arguments.limit is None else f"new_flow_limit = {{ rate = {arguments.limit}, prefix_ipv4 = 0 }}"
    failed = 0
    print(HEADER, flush=True)
    with running_testbed("floods-", use_apache=False, offloads=not arguments.no_offloads) as testbed:
        prepare(testbed, FLOODER)
        for kind in arguments.kind or tuple(KINDS):
            text = flood_configuration(testbed, arguments.policy, arguments.capacity, more)
            with balancing(testbed, arguments.backend, text) as balancer, ExitStack() as stack:
                flows = open_flows(testbed, arguments.flows, stack)
                assert all(echo(flow, b"first") for flow in flows)
                load = Load(testbed, flows, arguments.asks, arguments.connects)
                report = flood_once(testbed, balancer, flows, load, (kind, arguments.rate, arguments.seconds))
            print(report.row(), flush=True)
            failed += report.broken + report.moved
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
