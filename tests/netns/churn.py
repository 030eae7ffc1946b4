"""
Changes under load: long echo flows stay open while servers are drained, added, removed and re-weighted and the
configuration is reloaded, again and again. Nothing may break, nothing may move (rule 18.2, servers that leave or fail,
and rule 18.1, reloads and changes).

    python tests/netns/churn.py --flows 2000 --rounds 1000        # `make soak-control`

`test_control.py` plays a short form of it on both backends and in both link modes.
"""

from __future__ import annotations

import argparse
import errno
import random
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from realhosts import DEADLINE_S, ECHO_PORT, RunningBalancer, connect, receive_exactly, running_testbed, wait_until

from lb.control.api.client import change, fetch
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP

ECHO_SERVER_PORT = 7000
CLIENTS = ("client1", "client2", "client3", "client4", "client5")
POLICIES = ("round-robin", "maglev", "least-connections")
# Flows that speak in each round; all of them do at the end.
SPEAKERS = 10
CONFIG = """
[[interface]]
name = "eth0"
[[service]]
name = "echo"
address = "{vip}"
port = {port}
policy = "{policy}"
"""
SERVER = """
  [[service.server]]
  name = "{name}"
  address = "{address}"
  port = {port}
  weight = {weight}
"""


def configuration(testbed: Testbed, policy: str = "round-robin", weights: dict[str, int] | None = None) -> str:
    """Return a configuration of the echo service with some of the servers; default: all, of weight 1."""
    text = CONFIG.format(vip=VIP, port=ECHO_PORT, policy=policy)
    for host in testbed.topology.of_role("server"):
        weight = 1 if weights is None else weights.get(host.name)
        if weight is not None:
            text += SERVER.format(name=host.name, address=host.address, port=ECHO_SERVER_PORT, weight=weight)
    return text


@contextmanager
def balancing(
    testbed: Testbed, backend: str, text: str, state: str | None = None, options: Sequence[str] = ()
) -> Iterator[RunningBalancer]:
    """
    Run a balancer in the testbed's router. `state`: its state directory; None: its flows end with it. `options`: more
    of `lb run`.
    """
    config = testbed.directory / "control.toml"
    config.write_text(text)
    config.chmod(0o600)
    running = RunningBalancer(testbed, backend, config, state=state, options=options)
    running.start()
    try:
        yield running
    finally:
        if running.running is not None:
            running.stop()


def control_of(balancer: RunningBalancer) -> Path:
    """Return where the running balancer listens."""
    assert balancer.running is not None
    return balancer.running.control


def placements(balancer: RunningBalancer) -> dict[tuple[str, int], str]:
    """Return the server of each established flow, by client address and port."""
    answer = fetch(control_of(balancer), "/flows", state="established", limit=100_000)
    return {(flow["client"], flow["client_port"]): flow["server"] for flow in answer["flows"]}


def echo(flow: socket.socket, text: bytes) -> bool:
    """Tell whether a flow gives back what is sent."""
    try:
        flow.sendall(text)
        return receive_exactly(flow, len(text)) == text
    except OSError:
        return False


@dataclass
class Report:
    """What became of the flows. `reload_s`: how long each reload took, by the clock of who asked for it."""

    flows: int
    rounds: int = 0
    reloads: int = 0
    commands: int = 0
    broken: int = 0
    moved: int = 0
    seconds: float = 0.0
    reload_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Return it for people."""
        middle = sorted(self.reload_s)[len(self.reload_s) // 2] * 1000
        return (
            f"{self.flows} flows, {self.reloads} reloads and {self.commands} commands in {self.seconds:.0f} s "
            f"(a reload: {middle:.0f} ms, longest {max(self.reload_s) * 1000:.0f} ms): "
            f"{self.broken} flows broken, {self.moved} moved"
        )


class Churn:
    """
    Everything an operator can do, in a drawn order.

    Args:
        testbed: the testbed.
        balancer: the running balancer.
        seed: of the order.
    """

    def __init__(self, testbed: Testbed, balancer: RunningBalancer, seed: int) -> None:
        self.testbed, self.balancer = testbed, balancer
        self.control, self.draw = control_of(balancer), random.Random(seed)
        self.hosts = {host.name: str(host.address) for host in testbed.topology.of_role("server")}
        self.present = set(self.hosts)
        self.report = Report(0)

    def round(self) -> None:
        """Give one command, then reload another file."""
        self.command()
        self.reload()
        self.report.rounds += 1

    def command(self) -> None:
        """Do something to one server, whatever state it is in."""
        name = self.draw.choice(sorted(self.hosts))
        about = {"service": "echo", "server": name}
        if name not in self.present:
            described = {"name": name, "address": self.hosts[name], "port": ECHO_SERVER_PORT}
            change(self.control, "/add", {"service": "echo", "server": described})
            self.present.add(name)
        else:
            resource_name = self.draw.choice(("/drain", "/disable", "/enable", "/weight", "/remove"))
            more = {"weight": self.draw.randrange(6)} if resource_name == "/weight" else {}
            change(self.control, resource_name, about | more)
            self.present -= {name} if resource_name == "/remove" else set()
        self.report.commands += 1

    def reload(self) -> None:
        """Write a file with other servers, weights and policy, and have it read."""
        chosen = self.draw.sample(sorted(self.hosts), self.draw.randint(1, len(self.hosts)))
        weights = {name: self.draw.randint(1, 5) for name in chosen}
        self.balancer.config.write_text(configuration(self.testbed, self.draw.choice(POLICIES), weights))
        began = time.monotonic()
        change(self.control, "/reload", {})
        self.present = set(chosen)
        self.report.reload_s.append(time.monotonic() - began)
        self.report.reloads += 1


def open_flows(testbed: Testbed, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open echo flows from all clients in turn."""
    return [stack.enter_context(connect(testbed, CLIENTS[number % len(CLIENTS)], ECHO_PORT)) for number in range(count)]


def churn(testbed: Testbed, balancer: RunningBalancer, flows: int, rounds: int, seed: int = 1) -> Report:
    """Keep flows open through `rounds` rounds of commands and reloads; return their outcomes."""
    play = Churn(testbed, balancer, seed)
    play.report.flows = flows
    with ExitStack() as stack:
        opened = open_flows(testbed, flows, stack)
        broken = {number for number, flow in enumerate(opened) if not echo(flow, b"first %d" % number)}
        before = wait_until(lambda: len(found := placements(balancer)) == flows and found, "all flows are established")
        began = time.monotonic()
        for turn in range(rounds):
            play.round()
            for number in play.draw.sample(range(flows), min(SPEAKERS, flows)):
                if not echo(opened[number], b"turn %d flow %d" % (turn, number)):
                    broken.add(number)
        play.report.seconds = time.monotonic() - began
        broken |= {number for number, flow in enumerate(opened) if not echo(flow, b"last %d" % number)}
        after = placements(balancer)
    play.report.broken = len(broken)
    play.report.moved = sum(after.get(flow) != server for flow, server in before.items())
    return play.report


def refusals(testbed: Testbed, balancer: RunningBalancer, count: int) -> list[float]:
    """Return how long clients wait for their refusal while every server is disabled, in seconds."""
    for host in testbed.topology.of_role("server"):
        change(control_of(balancer), "/disable", {"service": "echo", "server": host.name})
    waited = []
    for number in range(count):
        with testbed.socket(CLIENTS[number % len(CLIENTS)]) as client:
            client.settimeout(DEADLINE_S)
            began = time.monotonic()
            refused = client.connect_ex((str(VIP), ECHO_PORT))
            waited.append(time.monotonic() - began)
            assert refused == errno.ECONNREFUSED, refused
    for host in testbed.topology.of_role("server"):
        change(control_of(balancer), "/enable", {"service": "echo", "server": host.name})
    return sorted(waited)


def resets(testbed: Testbed, balancer: RunningBalancer, count: int) -> list[float]:
    """Return how long after the command `disable --reset` clients of the server have their reset, in seconds."""
    waited = []
    for _ in range(count):
        with connect(testbed, CLIENTS[0], ECHO_PORT) as flow:
            assert echo(flow, b"here")
            server = placements(balancer)[flow.getsockname()]
            began = time.monotonic()
            change(control_of(balancer), "/disable", {"service": "echo", "server": server, "reset": True})
            try:
                flow.recv(1)
            except ConnectionResetError:
                waited.append(time.monotonic() - began)
            change(control_of(balancer), "/enable", {"service": "echo", "server": server})
    assert len(waited) == count
    return sorted(waited)


def spread(seconds: list[float]) -> str:
    """Return middle, 99 of 100 and longest, in milliseconds."""
    places = (len(seconds) // 2, len(seconds) * 99 // 100, -1)
    return " / ".join(f"{seconds[place] * 1000:.1f}" for place in places) + " ms"


def main() -> int:
    """Run from the command line: both backends, one after the other."""
    parser = argparse.ArgumentParser(description="Keep flows open while everything else changes.")
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--backends", default="rust,python")
    parser.add_argument(
        "--answers", type=int, default=0, help="instead: time this number of refusals, and a tenth as many resets"
    )
    arguments = parser.parse_args()
    # Both ends of a flow need a descriptor, one here and one in a server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    failed = 0
    with running_testbed("soak-", use_apache=False) as testbed:
        for backend in arguments.backends.split(","):
            with balancing(testbed, backend, configuration(testbed)) as balancer:
                if arguments.answers:
                    times = (
                        refusals(testbed, balancer, arguments.answers),
                        resets(testbed, balancer, arguments.answers // 10),
                    )
                    print(f"{backend}: refused after {spread(times[0])}, reset after {spread(times[1])}", flush=True)
                    continue
                report = churn(testbed, balancer, arguments.flows, arguments.rounds)
            print(f"{backend}: {report.line()}", flush=True)
            failed += report.broken + report.moved
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
