"""
The running balancer: `lb run`.

It strings everything together: reads the configuration, claims the interfaces, opens the sockets, hands both to a
backend's data path, and then only listens: to the kernel (next hops, interfaces), to the data path (neighbours to
resolve, failure), to signals (stop, reload) and to the control socket. Packets never come by here. What starting
changed is undone in reverse order at the end, however it ends (behaviour 32).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import lb
import lb.backends
from lb.backends.base import DataPath
from lb.backends.python.reply import frames_for_announcement
from lb.backends.sharded import Sharded
from lb.balancer import HASH_KEY_BYTES, choose_backend, require_same_interfaces
from lb.compiler.compile import IdKind
from lb.config import Config, read
from lb.config.unprivileged import require_trusted
from lb.control.api.handlers import Api
from lb.control.api.listener import Admin
from lb.control.api.paths import default_control_path
from lb.control.api.status import Facts
from lb.control.changes import Changes, SerialThread
from lb.control.controller import Preview, Steering, close_policies
from lb.control.health.checks import Checks
from lb.control.preparation import Prepared, prepared
from lb.control.recycle import Recycler
from lb.control.removed import Leavers
from lb.control.replanning import Replanner
from lb.control.seed import describe_drawn, draw_seed, with_seed
from lb.control.serial import Turns
from lb.control.tasks import Supervisor
from lb.control.telemetry.flow_log import FlowLog
from lb.control.telemetry.logs import LogFormat, start_logging
from lb.control.telemetry.metrics import Sample
from lb.control.telemetry.metrics_server import MetricsServer
from lb.errors import ConfigError, InterfaceError, LbError
from lb.model.snapshot import Interface, NextHops, Snapshot
from lb.net.frames import IoCounters, send
from lb.net.host import HostGuard
from lb.net.kernel import Kernel
from lb.net.shard import program
from lb.net.sockets import (
    claim_interface,
    hear_multicast,
    open_packet_socket,
    read_interface,
    require_room,
    take_drops,
)
from lb.policies.base import Measurements
from lb.policies.executor import stuck_threads
from lb.privileges import broker

# How long the start waits for the servers' MACs, so that a burst of first packets is not lost: only three wait per hop.
SETTLE_S = 0.5
# More flows than any table holds: the data path itself resets them some at a time, with packets in between.
ALL_FLOWS = 2**32 - 1
# Lines of a reload's diff that go to the log; `lb reload` prints all.
LOGGED_CHANGES = 100
# How often to look whether servers that left still have flows, and whether a drain has timed out.
SWEEP_S = 1.0
# How long reading the configuration may take: it runs the files of users' policies.
READ_DEADLINE_S = 20.0
# How long a thread of this process may keep the others from running Python: a tenth of what is usual.
SWITCH_S = 0.0005
# Readings that hang and get no answer; beyond these, readings wait for the last one.
MAX_HUNG_READERS = 4

MIB = 1 << 20

log = logging.getLogger(__name__)


class Daemon:
    """
    A running balancer. `start`, then `wait`, then `stop`, all on one asyncio loop.

    Args:
        config_path: of the configuration; read again at each reload.
        backend: `rust`, `python`, or `auto`: what the configuration says.
        control_path: where to put the control socket. None: `lb.control.api.paths.default_control_path()`.
        made: what was made while this process had all its rights; None: nothing, this process has them still.
    """

    def __init__(
        self,
        config_path: Path,
        backend: str = "auto",
        control_path: Path | None = None,
        made: Prepared | None = None,
    ) -> None:
        self.config_path = config_path
        loaded = load_config(config_path)
        config = with_seed(loaded, draw_seed())
        self.start_config = config
        self._seed_drawn = loaded.seed is None
        self.implementation = lb.backends.load(choose_backend(backend, config))
        self._made = made or Prepared()
        self.control_path = control_path or default_control_path()
        self.last_reload_error: str | None = None
        self.supervisor = Supervisor()
        self.steering: Steering
        self.changes: Changes
        self.checks: Checks
        self.flow_log: FlowLog
        self.metrics: MetricsServer
        self.data_path: DataPath
        self._guard = HostGuard()
        # Held while the guard is made to fit: after the end nothing may.
        self._host_lock = threading.Lock()
        self._is_over = False
        self._kernel = Kernel(config)
        self._sockets: list[socket.socket] = []
        self._direct: dict[int, int] = {}
        self._cleanup = AsyncExitStack()
        self._stopped = asyncio.Event()
        self._turns = Turns(self.supervisor, "reload")
        self._reader = SerialThread("lb-config")
        self._hung_readers = 0
        self._loop: asyncio.AbstractEventLoop
        self._failure: Exception | None = None
        self._trouble: str | None = None
        self._broker_trouble: str | None = None
        self._announced: object = None
        self._rx_dropped = 0
        # Counters are read by several threads, and the kernel's count starts anew with each look.
        self._drops_lock = threading.Lock()
        self._started_at = time.monotonic()
        self._reloaded_at = time.time()
        self.reloads: Counter[str] = Counter()

    @property
    def config(self) -> Config:
        """The configuration, as the file said last."""
        return self.steering.config

    @property
    def next_hops(self) -> NextHops:
        """Where packets go next."""
        return self._kernel.next_hops

    @property
    def snapshot(self) -> Snapshot:
        """What is published."""
        return self.steering.snapshot

    async def start(self) -> None:
        """
        Let packets flow. When it raises, everything is undone.

        Raises:
            LbError: see the tree in `lb.errors`; the message says how to mend it.
        """
        try:
            await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise

    async def _start(self) -> None:
        config, self._loop = self.start_config, asyncio.get_running_loop()
        self.supervisor.watch_loop(self._loop)
        self._cleanup.push_async_callback(self.supervisor.stop)
        for entry in config.interfaces:
            self._cleanup.enter_context(claim_interface(entry.name))
        await self._kernel.open()
        self._cleanup.push_async_callback(self._kernel.close)
        self.steering = Steering(config, await self._kernel.read_interfaces(), self)
        self.changes = Changes(self.steering, self.supervisor)
        self.checks = Checks(self.steering, self.changes, self.supervisor, measure=self.measurements)
        self._open_sockets()
        self._cleanup.callback(self._release_host)
        self.data_path = self._make_data_path()
        self.steering.start()
        self.data_path.set_next_hops(await self._kernel.settle(SETTLE_S))
        self._use_servers(self.snapshot)
        await self._kernel.refresh()
        self.flow_log = FlowLog(self.data_path, self.supervisor)
        self._cleanup.push_async_callback(self.flow_log.stop)
        self.metrics = MetricsServer(self.sample)
        self._cleanup.push_async_callback(self.metrics.stop)
        await self._observe()
        admin = Admin(self.control_path, Api(self).answers(), bind=self._made.take_control)
        self._cleanup.push_async_callback(admin.stop)
        await admin.start()
        self._start_loop()
        self._cleanup.push_async_callback(self.changes.close)
        self.changes.start()
        self.supervisor.run("sweep", self._sweep)
        self.supervisor.run("replan", self._replan)
        self.supervisor.run("host guard", self._guard.watch)
        self._cleanup.push_async_callback(self.checks.stop)
        self.steering.listen(lambda: self._on_loop(self.checks.follow))
        self.checks.start()
        self._watch_broker()
        self._kernel.watch(self._on_next_hops, self._on_interfaces, self._on_trouble, self.supervisor)
        self._announce(self.snapshot)
        if notice := self._made.notice:
            log.log(notice.level, "%s", notice.text)
        if line := self._memory_line():
            log.info("%s", line)
        if self._seed_drawn:
            log.info("%s", describe_drawn(self.start_config, self.snapshot.seed))
        log.info("%s", self._ready_line())

    def _watch_broker(self) -> None:
        """Learn at once when the process has ended that opens files for this one: reloads fail from then on."""
        if self._made.broker is None or (end_fd := self._made.broker.end_fd) is None:
            return
        loop = asyncio.get_running_loop()
        self._cleanup.callback(loop.remove_reader, end_fd)

        def note() -> None:
            loop.remove_reader(end_fd)
            self._broker_trouble = f"no reload is possible: {broker.ENDED}"
            self.supervisor.note("broker", LbError(self._broker_trouble))

        loop.add_reader(end_fd, note)

    def _make_data_path(self) -> DataPath:
        config, key = self.start_config, secrets.token_bytes(HASH_KEY_BYTES)
        make = self.implementation.DataPath
        if config.workers == 1:
            return make(config.flows.capacity, key, self.snapshot.seed)
        return Sharded(make, config.workers, config.flows.capacity, key, self.snapshot.seed)

    def _open_sockets(self) -> None:
        """Open one per worker and interface: all of the first worker, then all of the next."""
        for _ in range(self.start_config.workers):
            self._open_worker_sockets()

    def _open_worker_sockets(self) -> None:
        for entry, interface in zip(self.config.interfaces, self.snapshot.interfaces, strict=True):
            # A MAC of our own choice is not the card's: it would filter our frames out.
            foreign_mac = entry.mac is not None and entry.mac != read_interface(entry.name).mac
            direct = entry.transmit == "direct"
            muted = self.start_config.workers > 1
            sock = open_packet_socket(
                interface.name, promiscuous=foreign_mac, direct=direct, muted=muted, made=self._made.take_packet()
            )
            if direct:
                by = self._cleanup.enter_context(contextlib.closing(self._made.take_direct(interface.name)))
                self._direct[len(self._sockets)] = by.fileno()
            self._sockets.append(self._cleanup.enter_context(contextlib.closing(sock)))

    def _start_loop(self) -> None:
        notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._cleanup.callback(os.close, notify_fd)
        self.data_path.start([sock.fileno() for sock in self._sockets], notify_fd, self.config.poll, self._direct)
        self._started_at = time.monotonic()
        self._cleanup.callback(self._stop_loop)
        loop = asyncio.get_running_loop()
        loop.add_reader(notify_fd, self._on_notify, notify_fd)
        self._cleanup.callback(loop.remove_reader, notify_fd)

    def _stop_loop(self) -> None:
        try:
            self.data_path.stop()
        except LbError as error:
            self._fail(error)

    def _on_notify(self, notify_fd: int) -> None:
        """Have neighbours resolved that packets wait for; learn of the data path's failure."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(notify_fd)
        try:
            unresolved = self.data_path.take_unresolved()
        except LbError as error:
            self._fail(error)
            return
        for interface, hop in unresolved:
            self.supervisor.spawn("neighbours", self._kernel.resolve(interface, hop))

    def _on_loop(self, call: Callable[[], object]) -> None:
        """Have something done by the loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is to be done any more
            self._loop.call_soon_threadsafe(call)

    async def _observe(self) -> None:
        """Log flows and serve metrics as the configuration says. Raise LbError when that cannot be done."""
        self.flow_log.follow(self.config.flow_log)
        await self.metrics.follow(self.config.metrics)

    async def _replan(self) -> None:
        """Let policies that look at measurements plan anew, each at its interval."""
        replanner = Replanner(self.steering)
        while True:
            if due := replanner.due(now_ns := time.monotonic_ns()):
                measured = await asyncio.to_thread(self._measured, replanner, due, now_ns)
                outcome = await self.changes.make(functools.partial(self.steering.replan_all, measured))
                outcome.result()
            await asyncio.sleep(replanner.wait_s(time.monotonic_ns()))

    def _measured(self, replanner: Replanner, due: list[str], now_ns: int) -> dict[str, Measurements]:
        return replanner.measured(due, now_ns, self.data_path.measurements(now_ns))

    async def _sweep(self) -> None:
        """End drains whose time is over, and forget servers that left, once they have no flows."""
        leavers = Leavers()
        recyclers: dict[IdKind, Recycler] = {"server": Recycler(), "service": Recycler()}
        while True:
            await asyncio.sleep(SWEEP_S)
            (await self.changes.make(self.steering.end_drains)).result()
            for kind, recycler in recyclers.items():
                await self._recycle(kind, recycler)
            if leaving := self.steering.leaving():
                active = await asyncio.to_thread(self.data_path.active_flows, list(leaving.values()))
                flows = dict(zip(leaving, active, strict=True))
                if gone := leavers.gone(flows, self.config.flows.closing, time.monotonic_ns()):
                    (await self.changes.make(functools.partial(self.steering.forget, gone))).result()

    async def _recycle(self, kind: IdKind, recycler: Recycler) -> None:
        """Let new servers or services have the ids of those that are gone for good."""
        if due := recycler.due(self.steering.absent(kind), time.monotonic_ns()):
            path = self.data_path
            retire = path.retire_servers if kind == "server" else path.retire_services
            retired = await asyncio.to_thread(retire, list(due))
            free = {number: due[number] for number in retired}
            (await self.changes.make(functools.partial(self.steering.release, kind, free))).result()

    def _use_servers(self, snapshot: Snapshot) -> None:
        """Keep the way to every server fresh whose MAC the configuration does not give."""
        servers = (server for server in snapshot.servers if server is not None and server.mac is None)
        self._kernel.use(server.address for server in servers)

    def _on_next_hops(self, next_hops: NextHops) -> None:
        self._guarded(functools.partial(self.data_path.set_next_hops, next_hops))

    def _on_interfaces(self, interfaces: tuple[Interface, ...]) -> None:
        """Publish what changed about the interfaces."""
        log.info("the interfaces changed: %s", describe_interfaces(interfaces))
        self.supervisor.spawn("interfaces", self._follow_interfaces(interfaces))

    async def _follow_interfaces(self, interfaces: tuple[Interface, ...]) -> None:
        outcome = await self.changes.make(functools.partial(self.steering.set_interfaces, interfaces))
        if isinstance(outcome.error, LbError):
            log.error("the change cannot be followed: %s", outcome.error)
            return
        outcome.result()

    def _on_trouble(self, error: Exception | None) -> None:
        """Note that an interface is down or gone, once, and that none is; give up when watching itself has failed."""
        if error is None:
            if self._trouble is not None:
                log.info("the interfaces are back")
            self._trouble = None
        elif not isinstance(error, InterfaceError):
            self._fail(error)
        elif self._trouble != str(error):
            self._trouble = str(error)
            log.warning("%s", error)

    def publish(self, snapshot: Snapshot) -> None:
        """
        Swap to a snapshot: for `lb.control.controller`, through which every change goes.

        Raises:
            LbError: the host cannot be kept out of the way, the kernel cannot tell so many VIPs apart, or this is the
                end; nothing has changed then.
        """
        if (workers := self.start_config.workers) > 1:
            require_room(program(snapshot.vips(), workers, 0))
        with self._host_lock:
            if self._is_over:
                raise LbError("the balancer is stopping")
            self._guard.apply(snapshot)
        self._guarded(functools.partial(self.data_path.publish, snapshot))
        self._use_servers(snapshot)
        # Not for every new weight: only where there is news for the neighbours.
        if self._announced is not None and self._announced != announced(snapshot):
            self._announce(snapshot)

    def _release_host(self) -> None:
        """Let the host's kernel be as it was; a change that is still under way makes nothing there any more."""
        with self._host_lock:
            self._is_over = True
        self._guard.remove()

    def reset_flows(self, server: int) -> None:
        """Begin to reset every flow of the server with this id, a part at a time: packets pass in between."""
        job = functools.partial(self._reset_flows, server)
        self._on_loop(lambda: self.supervisor.run("reset of flows", job))

    async def _reset_flows(self, server: int) -> None:
        await asyncio.to_thread(lambda: self.data_path.reset_flows(server, ALL_FLOWS, time.monotonic_ns()))

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call the data path or a socket; its failure is ours."""
        try:
            call()
        except LbError as error:
            self._fail(error)

    def _announce(self, snapshot: Snapshot) -> None:
        """Tell the neighbours where the VIPs are, on interfaces with `announce`, and hear what they ask there."""
        # The first worker's: what a socket joins, its interface joins, for all of them.
        for sock, about in zip(self._sockets[: len(snapshot.interfaces)], snapshot.interfaces, strict=True):
            if about.announce:
                self._guarded(functools.partial(hear_multicast, sock, about.name))
        self._announced = announced(snapshot)
        counters = IoCounters()
        for interface, frame in frames_for_announcement(snapshot):
            send(self._sockets[interface], frame, None, counters)

    def _fail(self, error: Exception) -> None:
        """End the run with an error; the first one counts."""
        self._failure = self._failure or error
        self._on_loop(self._stopped.set)

    def request_stop(self) -> None:
        """Let `wait` return."""
        self._stopped.set()

    async def wait(self) -> None:
        """Wait until a stop is requested or the data path fails."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """
        Undo everything that `start` did.

        Raises:
            LbError: the balancer had failed; says why.
        """
        await self.supervisor.stop()
        await self._cleanup.aclose()
        if isinstance(self._failure, LbError):
            raise self._failure
        if self._failure is not None:
            raise LbError(f"the balancer failed: {self._failure!r}") from self._failure

    def request_reload(self) -> None:
        """Start a reload; how it went shows in the log and in the status."""
        self.supervisor.spawn("reload", self._reload_quietly())

    async def _reload_quietly(self) -> None:
        with contextlib.suppress(LbError):
            await self.reload()

    async def reload(self, deadline_s: float | None = None) -> list[str]:
        """
        Read the configuration again and swap to it (behaviour 29).

        Args:
            deadline_s: how long to wait; None: until it is done.

        Returns:
            What is different, in lines for people.

        Raises:
            LbError: it cannot be used. Nothing has changed then; the reason is in the log and in the status.
            UnderWayError: it takes longer; it is carried through, or has changed nothing.
        """
        return await self._turns.take(self._reload_and_tell, deadline_s)

    async def _reload_and_tell(self) -> list[str]:
        try:
            changes = await self._reload()
        except Exception as error:
            self.last_reload_error = first_lines(error)
            self.reloads["failure"] += 1
            self._kernel.configure(as_it_runs(self.config, self.start_config))
            log.error("reload failed, the configuration before it stays in use:\n%s", error)
            raise
        self.last_reload_error = None
        self.reloads["success"] += 1
        self._reloaded_at = time.time()
        log.info("reloaded %s: generation %d", self.config_path, self.snapshot.generation)
        for line in changes[:LOGGED_CHANGES]:
            log.info("  %s", line)
        if len(changes) > LOGGED_CHANGES:
            log.info("  and %d more", len(changes) - LOGGED_CHANGES)
        return changes

    async def _reload(self) -> list[str]:
        config = await self._read_config()
        try:
            self._kernel.configure(as_it_runs(config, self.start_config))
            interfaces = await self._kernel.read_interfaces()
            # What can fail comes before what cannot be taken back.
            async with self.metrics.moving(config.metrics):
                outcome = await self.changes.make(lambda: self.steering.reload(config, interfaces))
                changes: list[str] = outcome.result()
        except BaseException:
            close_policies(config, self.config)
            raise
        with self.supervisor.guard("flow log"):
            self.flow_log.follow(config.flow_log)
        self.supervisor.spawn("neighbours", self._kernel.refresh())
        return changes

    async def _read_config(self) -> Config:
        """Read the file as it is now; on a thread, for a large one takes a while, and runs users' policies."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                config = await self._reader.run(lambda: load_config(self.config_path))
        except TimeoutError:
            # The thread is left alone: it hangs in a policy's file. The next reading gets another, if not too many do.
            if self._hung_readers < MAX_HUNG_READERS:
                self._hung_readers += 1
                self._reader = SerialThread("lb-config")
            raise ConfigError(
                [f"{self.config_path}: not read within {READ_DEADLINE_S:g} s; does a policy's file hang?"]
            ) from None
        # A file without a seed keeps the one that runs.
        config = with_seed(config, self.snapshot.seed)
        try:
            require_same_interfaces(self.config, config)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        return config

    async def preview(self, deadline_s: float | None = None) -> Preview:
        """
        Tell what a reload would do, and change nothing.

        Args:
            deadline_s: how long to wait; None: until it is done.

        Raises:
            LbError: the file cannot be used, or it takes longer.
        """
        return await self._turns.take(self._preview, deadline_s)

    async def _preview(self) -> Preview:
        config = await self._read_config()
        preview: Preview = (await self.changes.make(lambda: self.steering.preview(config))).result()
        return preview

    def facts(self) -> Facts:
        """Return what the status begins with."""
        return Facts(
            version=lb.__version__,
            pid=os.getpid(),
            backend=self.implementation.NAME,
            config_path=str(self.config_path.absolute()),
            uptime_s=time.monotonic() - self._started_at,
            last_reload_error=self.last_reload_error,
            trouble="; ".join(filter(None, (self._trouble, self._broker_trouble))) or None,
            reloads=self.reloads.total(),
            reload_failures=self.reloads["failure"],
            tasks=self.supervisor.states(),
            host_guard=self._guard.state(),
        )

    def measurements(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what the data path measured about each server, by service and server name."""
        return self.data_path.measurements(time.monotonic_ns())

    def sample(self) -> Sample:
        """Return what the metrics are made of."""
        return Sample(
            version=lb.__version__,
            backend=self.implementation.NAME,
            started_at=time.time() - (time.monotonic() - self._started_at),
            reloaded_at=self._reloaded_at,
            generation=self.snapshot.generation,
            reloads=self.reloads,
            last_reload_ok=self.last_reload_error is None,
            services=self.steering.services(),
            counters=self.counters(),
            measured=self.measurements(),
            checks=dict(self.checks.results),
            changes=dict(self.checks.changes),
            flow_log_missed=self.flow_log.missed,
            host_guard=self._guard.state(),
            tasks=self.supervisor.states(),
            checks_late=self.checks.late,
            publications=self.steering.publications,
            stuck_threads=stuck_threads(),
        )

    def counters(self) -> dict[str, Any]:
        """Return the data path's counters, and in `io` what the kernel dropped before the data path could see it."""
        with self._drops_lock:
            self._rx_dropped += sum(take_drops(sock) for sock in self._sockets)
            dropped = self._rx_dropped
        counters = self.data_path.counters()
        dropped += counters["io"]["rx_dropped"]
        return {**counters, "io": {**counters["io"], "rx_dropped": dropped}}

    def _memory_line(self) -> str | None:
        memory = self.data_path.memory()
        if memory is None:
            return None
        promised, resident = memory
        capacity = self.config.flows.capacity
        size = f"{promised / MIB:.1f} MiB promised, {resident / MIB:.1f} MiB resident"
        return f"flow table: {capacity} flows of {promised / capacity:.1f} bytes, {size}"

    def _ready_line(self) -> str:
        services = ", ".join(
            f"{entry.name} {entry.address} port {entry.port}/{entry.protocol}" for entry in self.config.services
        )
        where = describe_interfaces(self.snapshot.interfaces)
        workers = self.start_config.workers
        how = self.implementation.NAME if workers == 1 else f"{self.implementation.NAME} with {workers} workers"
        return f"ready: {services} on {where}, backend {how}, control {self.control_path}"


def load_config(path: Path) -> Config:
    """Return a valid configuration and log its warnings, or raise ConfigError."""
    require_trusted(path)
    report = read(path)
    for warning in report.warnings:
        log.warning("%s", warning.partition("\n")[0])
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def as_it_runs(config: Config, running: Config) -> Config:
    """Return a configuration with the MACs that the interfaces have had since the start: others wait for a restart."""
    macs = {entry.name: entry.mac for entry in running.interfaces}
    entries = tuple(entry.model_copy(update={"mac": macs[entry.name]}) for entry in config.interfaces)
    return config.model_copy(update={"interfaces": entries})


def first_lines(error: Exception) -> str:
    """Return an error as one line: of a ConfigError, the first line of each problem; of a fault of ours, its kind."""
    if isinstance(error, ConfigError):
        return "; ".join(problem.partition("\n")[0] for problem in error.problems)
    return str(error) if isinstance(error, LbError) else repr(error)


def announced(snapshot: Snapshot) -> object:
    """Return all that neighbours are told: equal when there is no news for them."""
    return snapshot.interfaces, snapshot.vips()


def describe_interfaces(interfaces: tuple[Interface, ...]) -> str:
    """Return interfaces for a log line."""
    return ", ".join(f"{entry.name} ({entry.mac.hex(':')}, mtu {entry.mtu})" for entry in interfaces)


async def serve(config_path: Path, backend: str, control_path: Path, made: Prepared) -> None:
    """
    Run a balancer until SIGTERM or SIGINT; SIGHUP reloads it.

    Raises:
        LbError: it could not start, or failed.
    """
    daemon = Daemon(config_path, backend, control_path, made)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.request_stop)
    # Until packets flow there is nothing to reload; unheard, the signal would end the process.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    await daemon.start()
    # What there is now is here to stay: a collector that looks through 10 000 servers each time holds up every thread.
    gc.freeze()
    # While a change computes, the loop gets its turn this soon after each system call, of which a check makes several.
    sys.setswitchinterval(SWITCH_S)
    loop.add_signal_handler(signal.SIGHUP, daemon.request_reload)
    try:
        await daemon.wait()
    finally:
        log.info("stopping")
        await daemon.stop()


def run(
    config_path: Path,
    backend: str = "auto",
    control_path: Path | None = None,
    log_format: LogFormat = "text",
    user: str | None = None,
) -> None:
    """
    Run a balancer in the foreground, with its log on stderr, as an unprivileged user where that is possible.

    Raises:
        LbError: it could not start, or failed.
    """
    start_logging(log_format)
    control_path = control_path or default_control_path()
    with prepared(config_path, control_path, user) as made:
        asyncio.run(serve(config_path, backend, control_path, made))
