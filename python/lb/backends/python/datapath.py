"""
The Python data path behind the interface `lb.backends.base.DataPath`: names instead of ids in results.

It holds the tables, takes the lock that the packet loop shares with the control thread, and turns verdicts into
results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from lb.backends.base import AttachedInterface, Flow, FlowRecord, KeepsNone, only_sockets
from lb.backends.python.entry import Entry
from lb.backends.python.exports import FlowExport
from lb.backends.python.flow_states import STATES
from lb.backends.python.loop import CallLock, PacketLoop
from lb.backends.python.pipeline import process, tick
from lb.backends.python.primitives import require_bytes, require_number
from lb.backends.python.reset import reset_flows
from lb.backends.python.tables import Tables
from lb.errors import LbError
from lb.model.poll import DEFAULT_POLL, POLLS, Poll
from lb.model.snapshot import Address, NextHops, Snapshot
from lb.model.verdict import Direction
from lb.model.verdict import Verdict as VerdictName
from lb.packet.hashing import as_16_bytes
from lb.packet.offload import Offload
from lb.packet.parse import Packet

MAX_CAPACITY = 2**28
HASH_KEY_BYTES = 16
# Flows reset, and rows made, per hold of the lock: packets wait meanwhile.
RESET_SLICE = 8
ROWS_SLICE = 128
SECOND_NS = 10**9


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The outcome of one frame; see `lb.backends.base.Result`."""

    verdict: VerdictName
    reason: str | None = None
    direction: Direction | None = None
    service: str | None = None
    server: str | None = None
    out: list[tuple[str, bytes]] = field(default_factory=list)
    offloads: list[Offload | None] = field(default_factory=list)

    def __repr__(self) -> str:
        names = ("verdict", "reason", "direction", "service", "server")
        fields = [f"{name}={getattr(self, name)!r}" for name in names]
        out = ", ".join(f"({interface}, {len(frame)} bytes)" for interface, frame in self.out)
        return f"Result({', '.join(fields)}, out=[{out}])"


class Names:
    """The names of services and servers by id, removed ones included: their flows may end later."""

    def __init__(self) -> None:
        self.services: dict[int, tuple[str, str]] = {}
        self.servers: dict[int, str] = {}

    def learn(self, snapshot: Snapshot) -> None:
        """Learn the names of a snapshot."""
        self.services |= {i: (each.name, each.protocol) for i, each in enumerate(snapshot.services) if each}
        self.servers |= {i: each.name for i, each in enumerate(snapshot.servers) if each}

    def record(self, export: FlowExport) -> FlowRecord:
        """Return an export with names."""
        entry = export.entry
        service, protocol = self.services[entry.service]
        return FlowRecord(
            client=str(ip_address(entry.client)),
            client_port=entry.client_port,
            service=service,
            server=self.servers[entry.server],
            protocol=protocol,
            ended=export.ended,
            began_ns=export.began_ns,
            last_seen_ns=entry.last_seen_ns,
            bytes_forward=entry.bytes["forward"],
            bytes_reply=entry.bytes["reply"],
        )


class DataPath(KeepsNone):
    """
    The data path in Python. Everything drops as `not_for_us` until a snapshot is published.

    Args:
        capacity: flows the table can hold, 1..268435456.
        hash_key: 16 secret bytes, of the limits of new flows: Python keys its dicts itself.
        seed: 64 bits that start the random draws.
        first_round: 64 bits: the number at which the rounds of `counter` and `least` start; each worker has another.
        table_fd: None: this backend keeps no flows.

    Raises:
        LbError: the capacity is out of range, or there is a file.
        TypeError: an argument is of another type.
        ValueError: a number is negative or has more than 64 bits, or the key has not 16 bytes.
    """

    # Flows are Python's own objects here, which end with the process.
    WHY_KEEPS_NONE = "backend python keeps no flows over a restart: use backend rust"

    def __init__(
        self, capacity: int, hash_key: bytes, seed: int, first_round: int = 0, table_fd: int | None = None
    ) -> None:
        capacity, seed = require_number(capacity, 64), require_number(seed, 64)
        if len(require_bytes(hash_key)) != HASH_KEY_BYTES:
            raise ValueError(f"hash_key: {len(hash_key)} bytes, {HASH_KEY_BYTES} are needed")
        if not 1 <= capacity <= MAX_CAPACITY:
            raise LbError(f"flow table capacity {capacity} is not in 1..={MAX_CAPACITY}")
        if table_fd is not None:
            raise LbError(self.WHY_KEEPS_NONE)
        self._tables = Tables(capacity, hash_key, seed, require_number(first_round, 64))
        self._names = Names()
        self._lock = CallLock()
        # Held while a forwarding state is compiled: its inputs must not change meanwhile. Packets still pass.
        self._publishing = threading.RLock()
        self._loop = PacketLoop(self._tables, self._lock)

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a new snapshot. Flows stay."""
        with self._publishing:
            prepared = self._tables.prepare(snapshot, self._tables.next_hops)
            self._names.learn(snapshot)
            with self._lock:
                self._tables.swap(prepared)

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap routes and neighbours. Waiting packets leave at the next `tick`."""
        with self._publishing:
            prepared = self._tables.prepare(self._tables.forwarding.snapshot, next_hops)
            with self._lock:
                self._tables.swap(prepared)

    def process(self, frame: bytes, interface: int, now_ns: int, offload: Offload | None = None) -> Result:
        """Process one frame that came in by the interface with this id."""
        with self._lock:
            return self._process(frame, interface, now_ns, offload)

    def process_many(self, frames: Sequence[bytes], interface: int, now_ns: int) -> list[Result]:
        """Process frames in order at one instant."""
        with self._lock:
            return [self._process(frame, interface, now_ns, None) for frame in frames]

    def tick(self, now_ns: int) -> list[tuple[str, bytes, Offload | None]]:
        """Expire and release what is due; return frames to send."""
        with self._lock:
            tick(self._tables, now_ns)
            interfaces = self._tables.forwarding.interfaces
            return [(interfaces[each.interface].name, each.frame, each.offload) for each in self._tables.out]

    def reset_flows(self, server: int | None, limit: int, now_ns: int) -> int:
        """Remove flows of a server (None: any), `limit` at most; both ends learn at the next `tick`. Return a count."""
        server = None if server is None else require_number(server, 32)
        limit = require_number(limit, 64)
        found = self._living(now_ns, lambda entry: server in (None, entry.server))[:limit]
        removed = 0
        for start in range(0, len(found), RESET_SLICE):
            with self._lock:
                removed += reset_flows(self._tables, server, found[start : start + RESET_SLICE], now_ns)
        return removed

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """Return how many active flows each of the servers with these ids has."""
        with self._lock:
            return [self._tables.counters.active(number) for number in servers]

    def retire_servers(self, servers: Sequence[int]) -> list[int]:
        """Forget the servers that the snapshot lacks and no entry refers to; return their ids."""
        with self._lock:
            gone = [number for number in servers if number not in self._tables.forwarding.servers]
            retired = [number for number in gone if self._tables.counters.retire_server(number)]
            for number in retired:
                self._tables.picker.server_rounds.pop(number, None)
            return retired

    def retire_services(self, services: Sequence[int]) -> list[int]:
        """Forget the services that the snapshot lacks and no entry refers to; return their ids."""
        with self._lock:
            gone = [number for number in services if number not in self._tables.forwarding.services]
            retired = [number for number in gone if self._tables.counters.retire_service(number)]
            for number in retired:
                self._tables.picker.rounds.pop(number, None)
                self._tables.picker.clocks.pop(number, None)
            return retired

    def flows(self, now_ns: int) -> list[Flow]:
        """Return the unexpired entries, sorted by (client, client_port, service)."""
        return self.find_flows(now_ns, 0, self._tables.flows.capacity)[1]

    def find_flows(
        self,
        now_ns: int,
        offset: int,
        limit: int,
        client: Address | None = None,
        servers: Sequence[int] | None = None,
        state: str | None = None,
    ) -> tuple[int, list[Flow]]:
        """Return how many unexpired entries fit, and `limit` of them from `offset` on, in the order of `flows`."""
        offset, limit = require_number(offset, 64), require_number(limit, 64)
        if state is not None and state not in STATES:
            raise ValueError(f"state: {state!r} is none of a flow")
        wanted = None if servers is None else frozenset(servers)
        entries = self._living(
            now_ns,
            lambda entry: (
                (client is None or entry.client == client.packed)
                and (wanted is None or entry.server in wanted)
                and state in (None, entry.state)
            ),
        )
        return len(entries), self._rows(entries[offset : offset + limit], now_ns)

    def _living(self, now_ns: int, fits: Callable[[Entry], bool]) -> list[Entry]:
        """
        Return the living entries that fit, in order. Packets wait while the list of all is copied, and pass while it
        is filtered.
        """
        with self._lock:
            table, forwarding = self._tables.flows, self._tables.forwarding
            everything = list(table.by_forward.values())
        found = [entry for entry in everything if fits(entry) and table.why_dead(entry, forwarding, now_ns) is None]
        found.sort(key=lambda entry: (as_16_bytes(entry.client), entry.client_port, entry.service))
        return found

    def _rows(self, entries: Sequence[Entry], now_ns: int) -> list[Flow]:
        """Describe those of the entries that are still in the table, some at a time: packets pass in between."""
        rows: list[Flow] = []
        for start in range(0, len(entries), ROWS_SLICE):
            with self._lock:
                table, forwarding = self._tables.flows, self._tables.forwarding
                there = (entry for entry in entries[start : start + ROWS_SLICE] if table.has(entry))
                rows += [
                    self._flow(entry, now_ns) for entry in there if table.why_dead(entry, forwarding, now_ns) is None
                ]
        return rows

    def counters(self) -> dict[str, Any]:
        """
        Return all counters by name: `docs/rules.md` rule 13, counters; `io` counts socket failures, `loop` the time
        between polls.
        """
        with self._lock:
            table = {"entries": len(self._tables.flows), "capacity": self._tables.flows.capacity}
            report = self._tables.counters.report(self._tables.forwarding)
            pauses = {"pauses": self._loop.pauses.as_dict(), "control": self._loop.control.as_dict()}
            return {**report, "table": table, "io": self._loop.io.as_dict(), "loop": pauses}

    def peek(self, service: int, client: Address, client_port: int, now_ns: int) -> tuple[Flow | None, int]:
        """
        Return a client's flow with the service of this id, None when there is none, and the service's next number of
        `counter`, or with `least` the slot of the next server. Changes and counts nothing.
        """
        with self._lock:
            table, forwarding = self._tables.flows, self._tables.forwarding
            entry = table.by_forward.get((client.packed, client_port, service))
            if entry is not None and table.why_dead(entry, forwarding, now_ns) is not None:
                entry = None
            next_round = self._tables.picker.next_round(forwarding, service)
            return (None if entry is None else self._flow(entry, now_ns)), next_round

    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """Return what is known of each server, by service and server name: `docs/rules.md` rule 16, measurements."""
        with self._lock:
            return self._tables.counters.measurements(self._tables.forwarding, now_ns)

    def keep_flow_exports(self, most: int) -> None:
        """Export the flows that end from now on, up to `most` between two calls of `take_flow_exports`. 0: none."""
        most = require_number(most, 64)
        with self._lock:
            self._tables.flows.exports.keep(most)

    def take_flow_exports(self) -> tuple[list[FlowRecord], int]:
        """Return the flows that ended since the last call, in order, and the number without room."""
        with self._lock:
            exports, missed = self._tables.flows.exports.take()
            return [self._names.record(export) for export in exports], missed

    def memory(self) -> None:
        """Return None: the table grows as flows come."""

    def take_unresolved(self) -> list[tuple[int, Address]]:
        """
        Return the (interface id, address) pairs to resolve that were not returned before.

        Raises:
            LbError: the packet loop has failed.
        """
        self._loop.raise_failure()
        with self._lock:
            return self._tables.waiting.take_unresolved()

    def attach(self, interfaces: Sequence[AttachedInterface], notify_fd: int, poll: Poll = DEFAULT_POLL) -> None:
        """
        Start the packet loop on its own thread. Frames leave by the sockets alone.

        Args:
            interfaces: in order of interface id; the caller keeps ownership of their descriptors.
            notify_fd: an eventfd that gets 1 added when `take_unresolved` has news, and when the loop has failed.
            poll: checked, not used: the loop sleeps at once. Looking on would keep the other threads from the GIL.

        Raises:
            LbError: the loop runs already.
            OSError: a descriptor is not open, or one of the sockets is no socket.
            ValueError: `poll` is another word, or an interface has not one socket.
        """
        if poll not in POLLS:
            raise ValueError(f"poll: {poll!r} is none of {', '.join(POLLS)}")
        self._loop.start(only_sockets(interfaces), notify_fd)

    def detach(self) -> None:
        """
        Stop the packet loop and join its thread. Does nothing when it does not run.

        Raises:
            LbError: the loop had failed.
        """
        self._loop.stop()

    def _process(self, frame: bytes, interface: int, now_ns: int, offload: Offload | None) -> Result:
        """Process one frame and name what was found."""
        packet = Packet(require_bytes(frame), interface, offload)
        verdict = process(self._tables, packet, now_ns)
        forwarding, out = self._tables.forwarding, self._tables.out
        return Result(
            verdict=verdict.name,
            reason=verdict.reason,
            direction=packet.direction,
            service=None if packet.service is None else forwarding.services[packet.service].name,
            server=None if packet.server is None else forwarding.servers[packet.server].name,
            out=[(forwarding.interfaces[each.interface].name, each.frame) for each in out],
            offloads=[each.offload for each in out],
        )

    def _flow(self, entry: Entry, now_ns: int) -> Flow:
        """Describe an entry."""
        service = self._tables.forwarding.services[entry.service]
        return Flow(
            client=str(ip_address(entry.client)),
            client_port=entry.client_port,
            service=service.name,
            server=self._tables.forwarding.servers[entry.server].name,
            protocol=service.protocol,
            state=entry.state,
            idle_s=(now_ns - entry.last_seen_ns) / SECOND_NS,
            bytes_forward=entry.bytes["forward"],
            bytes_reply=entry.bytes["reply"],
        )
