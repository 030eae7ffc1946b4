"""
A run of chaos: a balancer in a testbed, clients that speak all the while, and acts at their times; or a run without
acts, to compare with.

One thread does everything: it does what is due, and between that reads what the clients say and where flows are.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from lb.control.respawn import describe
from lb.errors import LbError, TestbedError
from lb.lab import floods, kernel_counters
from lb.lab.chaos.acts import FLOODER, SERVICES, Stage
from lb.lab.chaos.balancer import Balancer
from lb.lab.chaos.judge import GivenUp, Happened, Heard, Observed, Outcome, judge
from lb.lab.chaos.resets import Resets
from lb.lab.chaos.schedule import Act
from lb.lab.chaos.traffic import SILENCE_S
from lb.lab.testbed.isolation import inside
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ECHO_PORT, ROUTER, VIP

# Per client: long flows, short connections per second, bulk transfers at a time, UDP flows.
LONG, SHORT_PER_S, BULK, UDP = 40, 4.0, 1, 4
# Between two looks at where flows are.
LOOK_S = 0.5
STEP_S = 0.02
# Linux counts here what it gives up of a listener before it is established, and what it has no room for; the latter
# also apart.
GIVEN_UP, WITHOUT_ROOM = "TcpExt.ListenDrops", ("TcpExt.ListenOverflows", "TcpExt.TCPReqQFullDrop")
# After SIGTERM, a client says what is left to say: a connect and an exchange may each take as long as its patience.
END_S = 2 * SILENCE_S + 10
UDP_PORT = ECHO_PORT
CONFIG = """\
[[interface]]
name = "eth0"
"""
SERVICE = """
[[service]]
name = "{name}"
address = "{vip}"
port = {port}
protocol = "{protocol}"
policy = "round-robin"
on_no_flow = "reset"
{more}
"""
# Three failed checks in a row: a server is down after about 1.5 s. A UDP service is checked by the TCP side of its
# servers.
HEALTH = """\
[service.health]
check = "tcp"
interval = "500ms"
timeout = "500ms"
port = {port}
"""
SERVER = """\
[[service.server]]
name = "{name}"
address = "{address}"
port = {port}
"""
PROTOCOLS = dict(zip(SERVICES, ("tcp", "udp"), strict=True))
TCP_SERVICE = SERVICES[0]


@dataclass(frozen=True, slots=True)
class Watcher:
    """An observer of the run. `passed`: seconds, and what begins, if anything does."""

    passed: Callable[[float, str], None]


def configuration(testbed: Testbed) -> str:
    """Return the balancer's configuration."""
    text = CONFIG
    for name, protocol in PROTOCOLS.items():
        text += SERVICE.format(
            name=name, vip=VIP, port=ECHO_PORT, protocol=protocol, more=HEALTH.format(port=ECHO_PORT)
        )
        for host in testbed.topology.of_role("server"):
            text += SERVER.format(name=host.name, address=host.address, port=ECHO_PORT)
    return text


class Run:
    """
    One run.

    Args:
        testbed: up, with its servers.
        backend: as `lb run --backend`.
        keeps: whether flows outlive the balancer's process.
        seed: of what the clients say.
        watcher: of its progress.
    """

    def __init__(self, testbed: Testbed, backend: str, keeps: bool, seed: int, watcher: Watcher) -> None:
        self._testbed, self._backend, self._keeps, self._seed = testbed, backend, keeps, seed
        self._watcher = watcher
        self._observed = Observed()
        self._selector = selectors.DefaultSelector()
        self._said: dict[str, bytes] = {}
        self._names = {str(host.address): host.name for host in testbed.topology.hosts}
        self._servers = {host.name for host in testbed.topology.of_role("server")}
        self._resets: Resets
        # By server, when its kernel was asked, and what it had given up.
        self._counted: dict[str, tuple[float, int]] = {}
        self._start_s = 0.0
        self._ready = 0

    def run(self, acts: Sequence[Act], duration_s: float) -> Outcome:
        """
        Run, and return what became of the flows.

        Raises:
            LbError: balancer or clients do not start.
        """
        if any(act.kind == "flood" for act in acts):
            floods.prepare(self._testbed, FLOODER)
        config = self._testbed.directory / "chaos.toml"
        config.write_text(configuration(self._testbed))
        config.chmod(0o600)
        with (
            self._hearing(),
            Balancer(self._testbed, config, self._backend, self._keeps) as balancer,
            self._clients() as clients,
        ):
            self._start_s = time.monotonic()
            self._play(Stage(self._testbed, balancer, config), balancer, acts, duration_s)
            self._end(clients)
            self._note_clients(clients)
            self._note_log(balancer)
        return judge(self._observed, self._start_s)

    # The router.

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Hear RSTs for the block."""
        hosts = self._testbed.topology.of_role
        clients, servers = ([host.address for host in hosts(role)] for role in ("client", "server"))
        with inside(f"{self._testbed.prefix}{ROUTER}"):
            self._resets = Resets("eth0", clients, servers, IPv4Address(VIP))
        try:
            yield
        finally:
            self._resets.close()

    def _hear(self) -> None:
        """Note the RSTs since the last call. What has a client's address and goes to a server comes from here."""
        for reset in self._resets.read(self._now_s()):
            source, target = (self._names.get(address, "balancer") for address, _ in (reset.source, reset.target))
            is_forward = target in self._servers or target == "balancer"
            client, port = (source, reset.source[1]) if is_forward else (target, reset.target[1])
            sender = "balancer" if target in self._servers else source
            heard = Heard(reset.at_s, sender, target, reset.gives_up)
            self._observed.resets.setdefault((client, port), []).append(heard)

    # Servers.

    def _count(self) -> None:
        """Note how many half-open connections the servers' kernels have given up since the last call."""
        for server in sorted(self._servers):
            now_s = self._now_s()
            counters = kernel_counters.read(self._testbed, [server])
            count = counters.get(GIVEN_UP, 0) - sum(counters.get(name, 0) for name in WITHOUT_ROOM)
            since_s, before = self._counted.get(server, (now_s, count))
            if count > before:
                self._observed.given_up.append(GivenUp(server, since_s, self._now_s(), count - before))
            self._counted[server] = now_s, count

    # Clients.

    @contextmanager
    def _clients(self) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        hosts = self._testbed.topology.of_role("client")
        clients = {host.name: self._speak(host.name, number) for number, host in enumerate(hosts)}
        try:
            end = time.monotonic() + END_S
            while self._ready < len(clients):
                self._listen(STEP_S)
                if time.monotonic() > end or any(client.poll() is not None for client in clients.values()):
                    raise TestbedError("the clients do not start: see their logs in the testbed's directory")
            yield clients
        finally:
            for name, client in clients.items():
                if client.poll() is None:
                    self._testbed.end(name, "chaos")
                if client.stdout is not None:
                    client.stdout.close()
            self._selector.close()

    def _speak(self, host: str, number: int) -> subprocess.Popen[bytes]:
        amounts = {"long": LONG, "short": SHORT_PER_S, "bulk": BULK, "udp": UDP}
        ports = {"tcp-port": ECHO_PORT, "udp-port": UDP_PORT, "seed": self._seed * 100 + number}
        options = [f"--{name}={value}" for name, value in {**amounts, **ports, "vip": VIP}.items()]
        client = self._testbed.spawn_python(
            host, "chaos", "lb.lab.chaos.traffic", *options, stdout=subprocess.PIPE, bufsize=0
        )
        assert client.stdout is not None
        os.set_blocking(client.stdout.fileno(), False)
        self._selector.register(client.stdout, selectors.EVENT_READ, host)
        self._said[host] = b""
        return client

    def _listen(self, wait_s: float) -> None:
        """Read what clients say, for up to so long."""
        for key, _ in self._selector.select(wait_s):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            *lines, self._said[key.data] = (self._said[key.data] + data).split(b"\n")
            for line in lines:
                self._take(key.data, json.loads(line))

    def _take(self, client: str, words: dict[str, Any]) -> None:
        if "ready" in words:
            self._ready += 1
        else:
            self._observed.statements.append((client, words))

    def _end(self, clients: dict[str, subprocess.Popen[bytes]]) -> None:
        """Let the clients finish what they are saying."""
        for client in clients.values():
            client.send_signal(signal.SIGTERM)
        end = time.monotonic() + END_S
        while time.monotonic() < end and self._selector.get_map():
            self._listen(STEP_S)
            self._hear()
        self._count()
        if lost := self._resets.take_lost():
            self._observed.faults.append(f"{lost} RSTs were not heard: there was no room for them")

    def _note_clients(self, clients: Iterable[str]) -> None:
        """Note which clients did not come to their end: nobody knows what became of their flows."""
        ended = {client for client, words in self._observed.statements if "totals" in words}
        for client in sorted(set(clients) - ended):
            why = self._testbed.last_log_line(client, "chaos") or "no message"
            self._observed.faults.append(f"{client} did not say how much it said: {why}")

    # Acts.

    def _play(self, stage: Stage, balancer: Balancer, acts: Sequence[Act], duration_s: float) -> None:
        due: list[tuple[float, Callable[[], None]]] = []
        for act in acts:
            due.append((act.at_s, lambda act=act: self._begin(stage, act, due)))  # type: ignore[misc]
        look_s = 0.0
        while (now_s := self._now_s()) < duration_s or due:
            due.sort(key=lambda each: each[0])
            if due and due[0][0] <= now_s:
                due.pop(0)[1]()
            elif now_s >= look_s:
                look_s = now_s + LOOK_S
                # What was reset before the look is heard before it.
                self._hear()
                self._look(balancer)
                self._count()
                self._watcher.passed(now_s, "")
            else:
                self._listen(STEP_S)
                self._hear()

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    def _begin(self, stage: Stage, act: Act, due: list[tuple[float, Callable[[], None]]]) -> None:
        """Begin an act, and plan its end."""
        self._watcher.passed(self._now_s(), act.shown())
        happened = Happened(act.kind, act.shown(), act.server, self._now_s(), float("inf"))
        number = len(self._observed.acts)
        self._observed.acts.append(happened)
        undo = self._tried(number, lambda: stage.begin(act))
        due.append((act.end_s, lambda: self._finish(number, undo)))

    def _finish(self, number: int, undo: Callable[[], None] | None) -> None:
        if undo is not None:
            self._tried(number, undo)
        acts = self._observed.acts
        acts[number] = replace(acts[number], ended_s=self._now_s())

    def _tried(self, number: int, call: Callable[[], Any]) -> Any:
        """Do a part of an act; what goes wrong is noted with it."""
        try:
            return call()
        except (LbError, OSError) as error:
            acts = self._observed.acts
            acts[number] = replace(acts[number], trouble=f"{acts[number].trouble} {error}".strip())
        return None

    # The balancer.

    def _look(self, balancer: Balancer) -> None:
        """Note where TCP flows of clients are."""
        for host in self._testbed.topology.of_role("client"):
            asked_s, rows = self._now_s(), balancer.flows(str(host.address), TCP_SERVICE)
            flows = ((host.name, row["client_port"], row["server"]) for row in rows)
            self._observed.place(asked_s, self._now_s(), flows)

    def _note_log(self, balancer: Balancer) -> None:
        """
        Note when checks took servers out, which tasks failed and how processes ended: from the log, for a server may
        be back before the status is asked for, and a process has ended with what it would answer.
        """
        if balancer.status() is None:
            self._observed.faults.append("the balancer does not answer at the end")
        ends: list[str] = []
        for at_s, facts in balancer.logged_facts():
            if at_s < self._start_s:
                continue
            if facts.get("service") == TCP_SERVICE and "health" in facts:
                is_up = facts["health"] == "up"
                self._observed.change_health(at_s - self._start_s, facts["server"], is_up, facts["why"])
            if "task" in facts:
                self._observed.faults.append(f"task {facts['task']} failed: {facts['error']}")
            if "ended" in facts:
                ends.append(facts["ended"])
        self._observed.faults += unwanted(ends, sum(act.kind == "kill" for act in self._observed.acts))


def unwanted(ends: Sequence[str], kills: int) -> Iterator[str]:
    """Yield how the balancer ended by itself, of all its ends that were not wished for. `kills`: acts that end it."""
    killed = describe(-signal.SIGKILL)
    for end in ends:
        if end != killed:
            yield f"the balancer {end} by itself"
    if (more := ends.count(killed) - kills) > 0:
        yield f"the balancer {killed} {more} times more than it was killed"
