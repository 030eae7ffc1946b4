"""
Real hosts for tests: testbeds in namespaces, a real `lb run` in their router, sockets and captures inside their hosts.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lbrun import LbRun

from lb.capture.pcap import PcapWriter
from lb.control.api.client import fetch
from lb.errors import LbError, PrivilegeError
from lb.lab.testbed import live
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP6, Topology

DEADLINE_S = 20.0
ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
ECHO_PORT, UDP_PORT, WEB_PORT, PIPE_PORT, CLOSED_PORT = 9876, 9877, 9880, 9881, 9882
# Where the tests themselves listen on servers, behind PIPE_PORT.
LISTEN_PORT = 7001

CONFIG = """
backend = "auto"
[[interface]]
name = "eth0"
{interfaces}
"""
SERVICE = """
[[service]]
name = "{name}"
address = "{vip}"
port = {port}
protocol = "{protocol}"
policy = "round-robin"
{options}
"""
SERVER = """
  [[service.server]]
  name = "{name}"
  address = "{address}"
  port = {port}
"""


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until a condition returns something true, and return that; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        # A pause between two looks, not a wait for luck: the deadline decides.
        time.sleep(0.01)
    pytest.fail(f"not within {deadline_s} s: {what}")


def configuration(topology: Topology) -> str:
    """Return a configuration with every kind of service the tests use, for IPv4 and IPv6."""
    router = topology.host(ROUTER)
    more = "".join(f'[[interface]]\nname = "{interface.name}"\n' for interface in router.interfaces[1:])
    text = CONFIG.format(interfaces=more)
    servers = topology.of_role("server")
    kinds = (
        ("echo", ECHO_PORT, "tcp", 7000, servers[:1]),
        ("udp", UDP_PORT, "udp", 7000, servers[:1]),
        ("web", WEB_PORT, "tcp", None, servers),
        ("pipe", PIPE_PORT, "tcp", LISTEN_PORT, servers[:1]),
        ("closed", CLOSED_PORT, "tcp", 1, servers[:1]),
    )
    for suffix, vip in (("", VIP), ("6", VIP6)):
        for name, port, protocol, server_port, chosen in kinds:
            text += SERVICE.format(name=name + suffix, vip=vip, port=port, protocol=protocol, options="")
            for host in chosen:
                address = host.address6 if suffix else host.address
                text += SERVER.format(name=host.name, address=address, port=server_port or host.web_port)
    return text


@dataclass
class RunningBalancer:
    """`lb run` in the router of a testbed; can be stopped and started again."""

    testbed: Testbed
    backend: str
    config: Path
    running: LbRun | None = field(default=None)
    state: str | None = None
    takeovers: int = 0
    options: Sequence[str] = ()

    def start(self) -> None:
        """Start it and wait until it forwards. Raise LbError with what it says when it ends before."""
        self.running = self._started([], f"{ROUTER}-lb.log")

    def _started(self, options: list[str], log: str) -> LbRun:
        run = LbRun(
            self.testbed.prefix + ROUTER,
            self.testbed.directory,
            ["--backend", self.backend, *self.options, *options],
            config=self.config,
            log=self.testbed.directory / log,
            state=self.state,
        )
        if not run.gets_ready():
            raise LbError(run.text().removeprefix("lb: "))
        return run

    def take_over(self) -> int:
        """
        Start another one that takes over from this one, and wait for both; return the exit status of this one. Raise
        LbError when the other one fails; then this one is still the one.
        """
        assert self.running is not None
        self.takeovers += 1
        successor = self._started(["--take-over"], f"{ROUTER}-lb-{self.takeovers % 2}.log")
        before, self.running = self.running, successor
        return before.process.wait(DEADLINE_S)

    def stop(self) -> int:
        assert self.running is not None
        running, self.running = self.running, None
        return running.end()

    def restart(self) -> None:
        self.stop()
        self.start()

    def counters(self) -> dict[str, Any]:
        """Return the counters of `docs/rules.md` rule 13, counters; those of servers by SERVICE/SERVER."""
        assert self.running is not None
        status = live.read_status(self.running.control)
        assert status is not None, self.testbed.last_log_line(ROUTER, "lb")
        servers = {
            f"{service['name']}/{server['name']}": server
            for service in status["services"]
            for server in service["servers"]
        }
        return {**status["counters"], "servers": servers}

    def flows(self) -> list[dict[str, Any]]:
        """Return the flows in the table."""
        assert self.running is not None
        rows: list[dict[str, Any]] = fetch(self.running.control, "/flows")["flows"]
        return rows

    def verdict(self, name: str) -> int:
        return int(self.counters()["verdicts"].get(name, 0))


@contextmanager
def running_testbed(prefix: str, **options: Any) -> Iterator[Testbed]:
    """Build a testbed for the block. Skip when the machine allows no namespaces at all; as root that fails the test."""
    testbed = Testbed(prefix=prefix, **options)
    try:
        testbed.start()
    except PrivilegeError as error:
        if os.geteuid() == 0:
            raise
        pytest.skip(str(error))
    try:
        yield testbed
    finally:
        testbed.stop()


@contextmanager
def running_balancer(testbed: Testbed, backend: str) -> Iterator[RunningBalancer]:
    config = testbed.directory / "tests.toml"
    config.write_text(configuration(testbed.topology))
    config.chmod(0o600)
    balancer = RunningBalancer(testbed, backend, config)
    balancer.start()
    try:
        yield balancer
    finally:
        if balancer.running is not None:
            balancer.stop()


def connect(testbed: Testbed, host: str, port: int, vip: object = VIP, timeout_s: float = DEADLINE_S) -> socket.socket:
    """Connect a TCP socket of a host to a service."""
    family = socket.AF_INET6 if ":" in str(vip) else socket.AF_INET
    client = testbed.socket(host, family)
    client.settimeout(timeout_s)
    try:
        client.connect((str(vip), port))
    except BaseException:
        client.close()
        raise
    return client


def listen(testbed: Testbed, host: str, vip: object = VIP) -> socket.socket:
    """Listen in a host where the service `pipe` sends its connections; `vip` tells the family."""
    listener = testbed.socket(host, socket.AF_INET6 if vip is VIP6 else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(DEADLINE_S)
    listener.bind(("::" if vip is VIP6 else "0.0.0.0", LISTEN_PORT))
    listener.listen()
    return listener


def connected_ports(testbed: Testbed, host: str) -> set[int]:
    """Return the peers' ports of a host's established TCP connections."""
    with testbed.inside(host):
        rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return {int(row[2].partition(":")[2], 16) for row in rows if row[3] == "01"}


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        block = connection.recv(min(1 << 20, size - len(data)))
        if not block:
            break
        data += block
    return bytes(data)


def echo_once(
    testbed: Testbed, host: str, port: int = ECHO_PORT, vip: object = VIP, timeout_s: float = DEADLINE_S
) -> bytes:
    """Send a greeting from a host to the echo service and return the answer."""
    with connect(testbed, host, port, vip, timeout_s) as client:
        client.sendall(b"greeting")
        return receive_exactly(client, 8)


class Capture:
    """Frames that come in by a host's interface, from its making to `stop`. Merged frames stay merged."""

    def __init__(self, testbed: Testbed, host: str, interface: str = "eth0") -> None:
        self._socket = testbed.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: nothing may be lost
        self._socket.setblocking(False)
        self._socket.bind((interface, ETH_P_ALL))
        self.frames: list[tuple[int, bytes]] = []

    def drain(self) -> int:
        """Take what has come in; return how many frames there are by now."""
        with suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(1 << 17)
                self.frames.append((time.time_ns(), frame))
        return len(self.frames)

    def wait_readable(self, timeout_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.select(timeout_s)

    def stop(self) -> list[bytes]:
        """End the capture and return its frames."""
        self.drain()
        self._socket.close()
        return [frame for _, frame in self.frames]

    def write(self, path: Path) -> None:
        """Write the frames to a capture file."""
        with PcapWriter(path) as writer:
            for time_ns, frame in self.frames:
                writer.write(time_ns, frame)


def spawn_lb(testbed: Testbed, label: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start an `lb` command in the router, with its output on pipes."""
    return testbed.spawn_python(ROUTER, label, "lb", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
