"""
The data path of the running balancer, with what surrounds it: claimed interfaces, sockets, host guard, packet loop.

Below the control walk: snapshots come in (`publish`), counters, measurements and flows go out. All use that the daemon
makes of a data path is here. A runtime knows no configuration file and no API. Belongs to one asyncio loop; `publish`,
`reset_flows` and the queries may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from lb.backends import Backend, sharded
from lb.backends.base import (
    AttachedInterface,
    Attachment,
    Capabilities,
    DataPath,
    Engine,
    Flow,
    FlowRecord,
    ServerIds,
)
from lb.balancer import HASH_KEY_BYTES
from lb.compiler.compile import IdKind
from lb.config import Config
from lb.control.kept import StateDirectory
from lb.control.kept_names import translations
from lb.control.predecessor import Left
from lb.control.tasks import Supervisor, call_on
from lb.errors import BackendError, LbError
from lb.model.snapshot import Address, NextHops, Snapshot
from lb.model.units import byte_count
from lb.net.frames import IoCounters, send
from lb.net.host import GuardState, HostGuard
from lb.net.shard import program
from lb.net.sockets import (
    claim_interface,
    hear_multicast,
    open_packet_socket,
    read_interface,
    require_room,
    take_drops,
)
from lb.packet.announcement import frames_for_announcement

# More flows than any table holds: the data path itself resets them some at a time, with packets in between.
ALL_FLOWS = 2**32 - 1
# How long a successor waits for resets that are under way, seconds.
FINISH_S = 5.0
# Between two looks at whether a successor has failed, seconds.
RESUME_STEP_S = 0.05
# How long the kernel may take to give back the memory of a map that was removed.
RELEASE_S, RELEASE_STEP_S = 1.0, 0.02

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Neighbours(Protocol):
    """The kernel's neighbour table: `lb.net.kernel.Kernel`."""

    def use(self, addresses: Iterable[Address]) -> None:
        """Keep the next hops of these addresses resolved from now on."""

    def resolve(self, interface: int, hop: Address) -> Coroutine[Any, Any, None]:
        """Make the kernel resolve a neighbour."""


class SocketSource(Protocol):
    """Sockets that were made while this process had all its rights: `lb.control.preparation.Prepared`."""

    def take_packet(self) -> socket.socket | None:
        """Return a packet socket, which the caller closes; None when there is none."""

    def take_direct(self, interface_name: str) -> socket.socket:
        """Return a socket for handing frames to a driver, which the caller closes."""

    def take_left(self, what: str) -> socket.socket | None:
        """Return a socket of the running balancer, which the caller closes; None when there is none."""

    @property
    def state(self) -> StateDirectory | None:
        """What keeps flows over a restart; None: they end with this process."""


class Runtime:
    """
    Runs the data path. The context managers nest: `claimed`, `opened`, then `running`.

    Args:
        config: of the start; what it says about interfaces, workers, flow table and polling holds until a restart.
        backend: makes the data path.
        made: sockets that are open already.
        neighbours: keeps the next hops of servers resolved.
        supervisor: runs resolutions and resets.
        fail: ends the balancer with an error; called from any thread.

    Raises:
        LbError: there is a state directory, and backend or workers keep no flows over a restart.
    """

    def __init__(
        self,
        config: Config,
        backend: Backend,
        made: SocketSource,
        neighbours: Neighbours,
        supervisor: Supervisor,
        fail: Callable[[Exception], None],
    ) -> None:
        self._config = config
        self._backend = backend
        self._made = made
        self._neighbours = neighbours
        self._supervisor = supervisor
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._engine: Engine
        self._attachment: Attachment
        self._sockets: list[socket.socket] = []
        self._claims: dict[str, socket.socket] = {}
        # By position of their packet socket: sockets for handing frames to drivers.
        self._direct: dict[int, socket.socket] = {}
        # By position of their packet socket: where to go on reading those that another process has left.
        self._rings: dict[int, int | None] = {}
        self._notify_fd = -1
        # Whether the packet loop has stopped for a successor; what the kernel tells meanwhile waits.
        self._has_left = False
        self._later_hops: NextHops | None = None
        # Held while flows are reset: the table that was left is not to lose any, for nobody would hear of it.
        self._leaving = threading.Lock()
        # Servers whose flows are to be reset, by id, and the task that does.
        self._to_reset: set[int] = set()
        self._resets: asyncio.Task[None] | None = None
        self._guard = HostGuard()
        # Held while the guard is applied: after the end it must not be.
        self._host_lock = threading.Lock()
        self._is_over = False
        # Whether the guard is another process's: one that this one takes over from, or one that takes over from it.
        self._leaves_host = made.state is not None and made.state.is_beside
        self._announced: object = None
        # What keeps flows over a restart; None: they end with this process.
        self._state = made.state
        if self._state is not None:
            require_kept_flows(config, backend, "--state")
        if config.flows.snapshot is not None:
            require_kept_flows(config, backend, "flows.snapshot")
        self._rx_dropped = 0
        # Counters are read by several threads, and the kernel's count starts anew with each reading.
        self._drops_lock = threading.Lock()
        self.started_at_s = time.monotonic()

    # Start and stop.

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other balancers off the interfaces. Raise InterfaceError when one is claimed already."""
        with ExitStack() as stack:
            for entry in self._config.interfaces:
                claim = self._made.take_left(f"claim {entry.name}") or claim_interface(entry.name)
                self._claims[entry.name] = stack.enter_context(claim)
            yield

    @contextmanager
    def opened(self, first: Snapshot) -> Iterator[None]:
        """
        Open the sockets and make the data path; at the end, free the host's kernel and close the sockets.

        Args:
            first: the snapshot that will be published first.

        Raises:
            LbError: a socket cannot be opened, or the data path cannot be made.
        """
        with ExitStack() as stack:
            # All sockets of the first worker, then all of the next.
            for _ in range(self._config.workers):
                self._open_sockets(first, stack)
            stack.callback(self.release_host)
            self._engine = self._attachment = self._make_data_path(first)
            yield

    def _open_sockets(self, first: Snapshot, stack: ExitStack) -> None:
        """Open the sockets of one worker, one per interface."""
        for entry, interface in zip(self._config.interfaces, first.interfaces, strict=True):
            # A MAC of our own choice is not the card's: it would filter our frames out.
            foreign_mac = entry.mac is not None and entry.mac != read_interface(entry.name).mac
            direct = entry.transmit == "direct"
            muted = self._config.workers > 1
            sock = self._made.take_left(f"packet {interface.name}") or open_packet_socket(
                interface.name, promiscuous=foreign_mac, direct=direct, muted=muted, made=self._made.take_packet()
            )
            if direct:
                by = stack.enter_context(contextlib.closing(self._made.take_direct(interface.name)))
                self._direct[len(self._sockets)] = by
            self._sockets.append(stack.enter_context(contextlib.closing(sock)))

    def _make_data_path(self, first: Snapshot) -> DataPath:
        workers, capacity, key = self._config.workers, self._config.flows.capacity, secrets.token_bytes(HASH_KEY_BYTES)
        make = self._backend.DataPath
        if workers > 1:
            return sharded.Sharded(make, workers, capacity, key, first.seed)
        if (state := self._state) is None:
            return make(capacity, key, first.seed)
        ids = len(first.services) + len(first.servers)
        try:
            return make(capacity, key, first.seed, 0, state.new_table(capacity, ids))
        except BackendError as error:
            # The table that was left has memory that this one needs.
            if not state.give_up(f"{error}; a table was left there"):
                raise
            table = state.new_table(capacity, ids)
            return _with_memory(lambda: make(capacity, key, first.seed, 0, table))

    def keep_flows(self, snapshot: Snapshot, drawn_seed: int | None, left: Left | None = None) -> bool:
        """
        Take over the flows that the process before left, once the first snapshot is published, and log what became of
        them. `left`: what it left beside them. Errors and `drawn_seed`: as `lb.control.kept.StateDirectory.keep`.

        Returns:
            Whether it had left any table that can be used.
        """
        if self._state is None:
            return False
        path, names = self._state.path, self._state.left
        kept = self._state.keep(self._engine, snapshot, time.monotonic_ns(), drawn_seed)
        if left is not None and kept.trouble is not None:
            raise LbError(f"take-over: {kept.trouble}")
        if left is not None and names is not None:
            ids = translations(names, snapshot)
            self._engine.carry(left.carried, ids.services, ids.servers)
            entries = enumerate(self._config.interfaces)
            self._rings = {number: left.rings.get(entry.name) for number, entry in entries}
        where = self._state.where
        kind = "a map of the kernel" if where.memory == "map" else "a file"
        log.info("the flow table is %s, %s: %s", kind, where.path, where.why)
        if kept.trouble is not None:
            log.warning("%s: %s", path, kept.trouble)
            return False
        log.info("%s keeps flows over a restart: %d taken over, %d dropped", path, kept.flows, kept.dropped)
        return names is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the packet loop until the end of the block. Raise LbError when it cannot start."""
        with ExitStack() as stack:
            self._notify_fd = notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, notify_fd)
            self._attach()
            self.started_at_s = time.monotonic()
            stack.callback(self._stop)
            self._loop.add_reader(notify_fd, self._on_notify, notify_fd)
            stack.callback(self._loop.remove_reader, notify_fd)
            yield

    def _attach(self) -> None:
        self._attachment.attach(self._interfaces(), self._notify_fd, self._config.poll)

    # Taking over, and being taken over from.

    def descriptors(self) -> dict[str, int]:
        """Return what a successor goes on with, by what it is."""
        packet = {f"packet {name}": sock.fileno() for name, sock in zip(self._claims, self._sockets, strict=True)}
        claims = {f"claim {name}": claim.fileno() for name, claim in self._claims.items()}
        return {**packet, **claims, **(self._state.descriptors() if self._state else {})}

    def leave(self) -> dict[str, Any]:
        """Stop the packet loop; return what goes on beside the flows, for `lb.control.predecessor.Left`."""
        with self._leaving:
            self._has_left = True
        try:
            left = self._attachment.leave()
        except BaseException as error:
            self._has_left = False
            if isinstance(error, LbError):
                # The loop has ended, and there is nothing to go on with.
                self._fail(error)
            raise
        for by in self._direct.values():
            # A driver takes frames from one process.
            by.close()
        self._direct.clear()
        self._rings = dict(enumerate(left))
        rings = dict(zip(self._claims, left, strict=True))
        carried = self._engine.carried()
        carried["io"]["rx_dropped"] = self.counters()["io"]["rx_dropped"]
        return {"carried": carried, "rings": rings}

    def resume(self) -> None:
        """Go on after `leave`; nobody has read the sockets meanwhile. Does nothing where nothing was left."""
        if not self._has_left:
            return
        self._attach()
        self._has_left = False
        if (hops := self._later_hops) is not None:
            self._later_hops = None
            self.set_next_hops(hops)

    def keep_host(self) -> None:
        """Leave the host guard at the end: it is another process's now."""
        with self._host_lock:
            self._is_over = True
            self._leaves_host = True
            self._guard.leave()

    def guard_host(self, snapshot: Snapshot) -> None:
        """
        Make the host guard of the running balancer fit this process's snapshot, just before it takes over: should that
        fail, the running one puts back what it needs. Errors: as `HostGuard.apply`.
        """
        with self._host_lock:
            self._guard.apply(snapshot)

    def take_host(self, snapshot: Snapshot) -> None:
        """Have the host guard from now on, as what changed meanwhile needs it: the process before has left it."""
        with self._host_lock:
            self._leaves_host = False
            try:
                self._guard.apply(snapshot)
            except LbError as error:
                # Nobody else forwards any more; the guard's watch tries again.
                log.error("%s", error)
            # Until it left, the process before put its own back.
            self._guard.repair()

    def _interfaces(self) -> list[AttachedInterface]:
        """Return the interfaces with their sockets, one for each worker."""
        descriptors = [sock.fileno() for sock in self._sockets]
        count = len(self._config.interfaces)
        return [
            AttachedInterface(
                entry.name,
                tuple(descriptors[number::count]),
                self._direct[number].fileno() if number in self._direct else None,
                self._rings.get(number),
            )
            for number, entry in enumerate(self._config.interfaces)
        ]

    def _stop(self) -> None:
        self._guarded(self._attachment.detach)

    def release_host(self) -> None:
        """Remove the host guard; a change that is still in progress does not put it back."""
        with self._host_lock:
            self._is_over = True
        if not self._leaves_host:
            self._guard.remove()

    async def watch_guard(self) -> None:
        """Put the host guard back whenever another program removes it."""
        await self._guard.watch()

    def _on_notify(self, notify_fd: int) -> None:
        """Resolve the neighbours that packets wait for; notice a failure of the data path."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(notify_fd)
        if self._has_left:
            return
        try:
            unresolved = self._engine.take_unresolved()
        except LbError as error:
            self._fail(error)
            return
        for interface, hop in unresolved:
            self._supervisor.spawn("neighbours", self._neighbours.resolve(interface, hop))

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call the data path or a socket; a failure of these ends the balancer."""
        try:
            call()
        except LbError as error:
            self._fail(error)

    # What goes in.

    def publish(self, snapshot: Snapshot) -> None:
        """
        Swap to a snapshot: `lb.control.transactions.Publisher`.

        Raises:
            LbError: the host guard cannot be applied, there are more VIPs than the kernel can tell apart, or the
                balancer is stopping; nothing has changed then.
        """
        if (workers := self._config.workers) > 1:
            require_room(program(snapshot.vips(), workers, 0))
        with self._host_lock:
            if self._is_over:
                raise LbError("the balancer is stopping")
            if not self._leaves_host:
                self._guard.apply(snapshot)
        if self._state is not None:
            self._state.note(snapshot)
        self._guarded(functools.partial(self._engine.publish, snapshot))
        # The MACs of the other servers are in the configuration.
        servers = (server for server in snapshot.servers if server is not None and server.mac is None)
        self._neighbours.use(server.address for server in servers)
        # Not for every new weight: only where there is news for the neighbours.
        if self._announced is not None and self._announced != _announced(snapshot):
            self.announce(snapshot)

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap to other routes and neighbours."""
        if self._has_left:
            self._later_hops = next_hops
            return
        self._guarded(functools.partial(self._engine.set_next_hops, next_hops))

    def announce(self, snapshot: Snapshot) -> None:
        """Announce the VIPs to the neighbours, on interfaces with `announce`, and receive their questions there."""
        # The first worker's sockets: a membership of a socket is one of its interface, for all workers.
        for sock, interface in zip(self._sockets[: len(snapshot.interfaces)], snapshot.interfaces, strict=True):
            if interface.announce:
                self._guarded(functools.partial(hear_multicast, sock, interface.name))
        self._announced = _announced(snapshot)
        counters = IoCounters()
        for number, frame in frames_for_announcement(snapshot):
            send(self._sockets[number], frame, None, counters)

    def reset_flows(self, server: int) -> None:
        """Begin to reset every flow of the server with this id, a part at a time: packets pass in between."""
        call_on(self._loop, functools.partial(self._begin_reset, server))

    def _begin_reset(self, server: int) -> None:
        self._to_reset.add(server)
        if self._resets is None or self._resets.done():
            self._resets = self._supervisor.run("reset of flows", self._reset_all)

    async def finish_resets(self) -> None:
        """Return when no reset of flows is under way, or after FINISH_S: a successor knows nothing of them."""
        if self._resets is not None:
            await asyncio.wait({self._resets}, timeout=FINISH_S)

    async def _reset_all(self) -> None:
        while self._to_reset:
            # Unless the successor fails, and this process goes on.
            while self._has_left:
                await asyncio.sleep(RESUME_STEP_S)
            servers, self._to_reset = self._to_reset, set()
            try:
                await asyncio.to_thread(self._reset_servers, sorted(servers))
            except Exception as error:
                self._to_reset |= servers
                if not (isinstance(error, LbError) and self._has_left):
                    raise

    def _reset_servers(self, servers: Sequence[int]) -> None:
        """Reset all flows of servers: many, at the start of a balancer, most of them without a flow."""
        counts = self._engine.active_flows(servers)
        for server, count in zip(servers, counts, strict=True):
            if count:
                self._reset_server(server)
        self._reset_idle([server for server, count in zip(servers, counts, strict=True) if not count])

    def _reset_idle(self, servers: Sequence[int]) -> None:
        """Reset the flows of servers that have no active one: one walk over the table tells that none has any."""
        if len(servers) == 1:
            self._reset_server(servers[0])
        elif servers and self._while_here(lambda: self._engine.find_flows(time.monotonic_ns(), 0, 0, None, servers))[0]:
            half = len(servers) // 2
            self._reset_idle(servers[:half])
            self._reset_idle(servers[half:])

    def _reset_server(self, server: int) -> None:
        self._while_here(lambda: self._engine.reset_flows(server, ALL_FLOWS, time.monotonic_ns()))

    def _while_here(self, call: Callable[[], Result]) -> Result:
        """Call what must not meet a table that is left to a successor. Raise LbError when it is."""
        with self._leaving:
            if self._has_left:
                raise LbError("the flow table is left to another process")
            return call()

    def reset_some(self, limit: int) -> int:
        """Reset flows of any server, `limit` at most; return how many, fewer when there are none left."""
        return self._engine.reset_flows(None, limit, time.monotonic_ns())

    def flow_layout(self) -> str:
        """Return the layout of the rows of the flow table. Raise LbError when the backend has none."""
        return self._engine.flow_layout()

    def copy_flows(self, place: int) -> tuple[bytes, int | None]:
        """Return rows of the flow table, and where the next ones are."""
        return self._engine.copy_flows(place, time.monotonic_ns())

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None]
    ) -> tuple[int, int]:
        """Take over the flows of rows; return how many were, and how many were not."""
        return self._engine.load_flows(rows, servers, interfaces, time.monotonic_ns())

    def retire(self, kind: IdKind, ids: Sequence[int]) -> list[int]:
        """Return the ids of servers or services that no flow refers to, and forget their counters."""
        path = self._engine
        return path.retire_servers(ids) if kind == "server" else path.retire_services(ids)

    def keep_flow_exports(self, most: int) -> None:
        """Keep up to `most` flow exports from now on; 0: none."""
        self._engine.keep_flow_exports(most)

    # What goes out.

    def take_flow_exports(self) -> tuple[list[FlowRecord], int]:
        """Return the flow exports since the last call, and how many found no room."""
        return self._engine.take_flow_exports()

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """Return the number of active flows of each server. `servers`: their ids."""
        return self._engine.active_flows(servers)

    def find_flows(
        self, offset: int, limit: int, client: Address | None, servers: Sequence[int] | None, state: str | None
    ) -> tuple[int, list[Flow]]:
        """Return how many flows match, and `limit` of them from `offset` on. None matches any value."""
        return self._engine.find_flows(time.monotonic_ns(), offset, limit, client, servers, state)

    def peek(self, service: int, client: Address, port: int) -> tuple[Flow | None, int]:
        """Return the flow of a client if it has one, and the round-robin position of the service (by id)."""
        return self._engine.peek(service, client, port, time.monotonic_ns())

    def measurements(self, now_ns: int | None = None) -> dict[str, dict[str, dict[str, int]]]:
        """Return what was measured about each server, by service and server name. `now_ns`: default: now."""
        return self._engine.measurements(time.monotonic_ns() if now_ns is None else now_ns)

    def counters(self) -> dict[str, Any]:
        """Return all counters; `io.rx_dropped` includes what the kernel dropped before the data path could see it."""
        with self._drops_lock:
            self._rx_dropped += sum(take_drops(sock) for sock in self._sockets)
            dropped = self._rx_dropped
        counters = self._engine.counters()
        dropped += counters["io"]["rx_dropped"]
        return {**counters, "io": {**counters["io"], "rx_dropped": dropped}}

    def guard_state(self) -> GuardState:
        """Return how the services' packets are kept from the host's kernel."""
        return self._guard.state()

    def describe(self) -> str:
        """Return the backend and the number of workers, for a log line."""
        workers = self._config.workers
        return self._backend.NAME if workers == 1 else f"{self._backend.NAME} with {workers} workers"

    def capabilities(self) -> Capabilities:
        """Return what the data path does as the rules say; several workers can less than one."""
        return capabilities_of(self._config, self._backend)

    def ignored_settings(self) -> list[str]:
        """Return a line for each setting that the backend does not follow, with what it does instead."""
        return ignored_settings(self._config, self._backend)

    def table_memory(self) -> dict[str, str | None]:
        """Return what the flow table's memory is, where, and why it is that."""
        if self._state is None:
            return {"memory": "private", "path": None, "why": "without --state it ends with the process"}
        memory, path, why = self._state.where
        return {"memory": memory, "path": str(path), "why": why}

    def describe_memory(self) -> str | None:
        """Return the size of the flow table, for a log line; None where the backend has no fixed size."""
        memory = self._engine.memory()
        if memory is None:
            return None
        promised, resident = memory
        capacity = self._config.flows.capacity
        size = f"{byte_count(promised)} promised, {byte_count(resident)} resident"
        return f"flow table: {capacity} flows of {promised / capacity:.1f} bytes, {size}"


def _with_memory(make: Callable[[], DataPath]) -> DataPath:
    """Return what is made, once the kernel has the memory for it that was given back just now."""
    end = time.monotonic() + RELEASE_S
    while True:
        try:
            return make()
        except BackendError:
            if time.monotonic() >= end:
                raise
        time.sleep(RELEASE_STEP_S)


def capabilities_of(config: Config, backend: Backend) -> Capabilities:
    """Return the capabilities of a backend with as many workers as a configuration has."""
    one = backend.capabilities()
    return one if config.workers == 1 else sharded.capabilities(one)


def require_kept_flows(config: Config, backend: Backend, asked: str) -> None:
    """
    Raise LbError unless a backend, with as many workers as a configuration has, keeps flows over a restart. `asked`:
    the option or key that asks for it.
    """
    if not backend.capabilities().keeps_flows:
        raise LbError(f"backend {backend.NAME} keeps no flows over a restart: leave out {asked}, or use backend rust")
    if not capabilities_of(config, backend).keeps_flows:
        raise LbError(f"several workers keep no flows over a restart: leave out {asked}, or use workers = 1")


def ignored_settings(config: Config, backend: Backend) -> list[str]:
    """Return a line for each setting that a backend's capabilities leave out, with what it does instead."""
    can = capabilities_of(config, backend)
    lines = []
    # "adaptive" leaves the choice to the backend.
    if config.poll != "adaptive" and config.poll not in can.polls:
        lines.append(f'backend {backend.NAME} has no poll = "{config.poll}": it waits as with "{can.polls[-1]}"')
    direct = [entry.name for entry in config.interfaces if entry.transmit == "direct"]
    if direct and not can.sends_directly:
        names = ", ".join(direct)
        lines.append(f'backend {backend.NAME} has no transmit = "direct": {names} sends as with "queue"')
    return lines


def _announced(snapshot: Snapshot) -> object:
    """Return all that neighbours are told: equal when there is no news for them."""
    return snapshot.interfaces, snapshot.vips()
