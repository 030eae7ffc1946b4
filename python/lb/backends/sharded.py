"""
Several data paths as one: each worker has the flows of its share of the clients (`lb.net.shard`).

The control side sees one data path. Each worker has its own packet loop, sockets and flow table, and gets all frames of
its clients, in both directions, and no others. So each worker has its own rounds, active flows, waiting packets and
fragments; this module adds them up.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from lb.backends.base import (
    AttachedInterface,
    Capabilities,
    DataPath,
    Flow,
    FlowRecord,
    KeepsNone,
    Result,
    only_sockets,
)
from lb.errors import LbError
from lb.model.poll import DEFAULT_POLL, Poll
from lb.model.snapshot import Address, AskFunction, NextHops, Service, Snapshot
from lb.net.shard import program, worker_of
from lb.net.sockets import set_program
from lb.packet.hashing import as_16_bytes
from lb.packet.offload import Offload

SEED_RANGE = 2**64


class Sharded(KeepsNone):
    """
    A `DataPath` over several workers, for packets from sockets only.

    Args:
        make: a backend's `DataPath`.
        workers: how many.
        capacity: flows of all together; each takes its part, rounded up.
        hash_key: 16 secret bytes, the same for all.
        seed: of the random draws: worker n gets `seed` + n; its rounds start at n.

    Raises:
        LbError, BackendError, TypeError, ValueError: as `make`.
    """

    # Each worker has a table of its own, and there may be more or fewer of them the next time.
    WHY_KEEPS_NONE = "several workers keep no flows over a restart: use one worker"

    def __init__(
        self, make: Callable[[int, bytes, int, int], DataPath], workers: int, capacity: int, hash_key: bytes, seed: int
    ) -> None:
        share = -(-capacity // workers)
        self._shards = [make(share, hash_key, (seed + number) % SEED_RANGE, number) for number in range(workers)]
        self._sockets: list[Sequence[int]] = []
        self._snapshot: Snapshot | None = None
        self._service_ids: dict[str, int] = {}

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a new snapshot, one worker after the other. Flows stay."""
        has_new_vips = self._snapshot is None or self._snapshot.vips() != snapshot.vips()
        self._snapshot = snapshot
        self._service_ids = {service.name: number for number, service in enumerate(snapshot.services) if service}
        ask = None if snapshot.ask is None else one_at_a_time(snapshot.ask)
        for number, shard in enumerate(self._shards):
            icmp_rate = part(snapshot.icmp_rate, number, len(self._shards))
            services = tuple(each and with_part_of_limit(each, len(self._shards)) for each in snapshot.services)
            shard.publish(dataclasses.replace(snapshot, icmp_rate=icmp_rate, services=services, ask=ask))
        if has_new_vips:
            self._deal(snapshot)

    def _deal(self, snapshot: Snapshot) -> None:
        """Set each worker's socket filters to the frames of its clients."""
        for number, descriptors in enumerate(self._sockets):
            mine = program(snapshot.vips(), len(self._shards), number)
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                try:
                    set_program(sock, mine)
                finally:
                    sock.detach()

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap routes and neighbours."""
        for shard in self._shards:
            shard.set_next_hops(next_hops)

    def process(self, *_: object, **__: object) -> Result:
        """Raise LbError: the kernel distributes frames to the workers."""
        raise LbError("several workers take packets from sockets only: use one worker")

    def process_many(self, *_: object, **__: object) -> list[Result]:
        """Raise LbError: the kernel distributes frames to the workers."""
        raise LbError("several workers take packets from sockets only: use one worker")

    def tick(self, now_ns: int) -> list[tuple[str, bytes, Offload | None]]:
        """Expire and release what is due; return frames to send."""
        return [frame for shard in self._shards for frame in shard.tick(now_ns)]

    def reset_flows(self, server: int | None, limit: int, now_ns: int) -> int:
        """Remove flows of a server (None: any), `limit` at most; both ends learn at the next `tick`. Return a count."""
        removed = 0
        for shard in self._shards:
            removed += shard.reset_flows(server, limit - removed, now_ns)
        return removed

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """Return how many active flows each of the servers with these ids has, of all workers."""
        counts = [shard.active_flows(servers) for shard in self._shards]
        return [sum(each) for each in zip(*counts, strict=True)]

    def retire_servers(self, servers: Sequence[int]) -> list[int]:
        """Forget the servers that no worker's entry refers to; return their ids."""
        return in_all(servers, [shard.retire_servers(servers) for shard in self._shards])

    def retire_services(self, services: Sequence[int]) -> list[int]:
        """Forget the services that no worker's entry refers to; return their ids."""
        return in_all(services, [shard.retire_services(services) for shard in self._shards])

    def flows(self, now_ns: int) -> list[Flow]:
        """Return the unexpired entries, sorted by (client, client_port, service)."""
        return list(heapq.merge(*(shard.flows(now_ns) for shard in self._shards), key=self._order))

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
        found = [shard.find_flows(now_ns, 0, offset + limit, client, servers, state) for shard in self._shards]
        rows = list(heapq.merge(*(flows for _, flows in found), key=self._order))
        return sum(count for count, _ in found), rows[offset : offset + limit]

    def _order(self, flow: Flow) -> tuple[bytes, int, int]:
        return as_16_bytes(ip_address(flow.client).packed), flow.client_port, self._service_ids.get(flow.service, -1)

    def counters(self) -> dict[str, Any]:
        """Return all counters by name, added up: `docs/rules.md` rule 13, counters."""
        return functools.reduce(added, (shard.counters() for shard in self._shards))

    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """Return what is known of each server, of all workers together: `docs/rules.md` rule 16, measurements."""
        # While a snapshot is being published, only some workers have its servers: those of any worker are included.
        rows: dict[str, dict[str, list[Mapping[str, int]]]] = {}
        for shard in self._shards:
            for service, servers in shard.measurements(now_ns).items():
                for server, row in servers.items():
                    rows.setdefault(service, {}).setdefault(server, []).append(row)
        return {
            service: {server: together(of_server) for server, of_server in servers.items()}
            for service, servers in rows.items()
        }

    def peek(self, service: int, client: Address, client_port: int, now_ns: int) -> tuple[Flow | None, int]:
        """Return what the worker of this client knows before a packet comes."""
        return self._shards[worker_of(client, len(self._shards))].peek(service, client, client_port, now_ns)

    def keep_flow_exports(self, most: int) -> None:
        """Export the flows that end from now on; each worker has room for its part of `most`, rounded up."""
        for shard in self._shards:
            shard.keep_flow_exports(-(-most // len(self._shards)))

    def take_flow_exports(self) -> tuple[list[FlowRecord], int]:
        """Return the flows that ended since the last call, worker by worker, and the number without room."""
        taken = [shard.take_flow_exports() for shard in self._shards]
        return [export for exports, _ in taken for export in exports], sum(missed for _, missed in taken)

    def memory(self) -> tuple[int, int] | None:
        """Return the bytes promised for the flow tables, and those that are resident by now."""
        found = [memory for shard in self._shards if (memory := shard.memory()) is not None]
        if not found:
            return None
        return sum(promised for promised, _ in found), sum(resident for _, resident in found)

    def take_unresolved(self) -> list[tuple[int, Address]]:
        """Return the (interface id, address) pairs to resolve; raise LbError when a loop has failed."""
        return list(dict.fromkeys(pair for shard in self._shards for pair in shard.take_unresolved()))

    def attach(self, interfaces: Sequence[AttachedInterface], notify_fd: int, poll: Poll = DEFAULT_POLL) -> None:
        """
        Start the packet loops, each on its own thread. When one does not start, none runs.

        Args:
            interfaces: in order of interface id, each with a socket for each worker, that hears nothing before
                (`open_packet_socket`, `muted`), and none with `direct`.
            notify_fd: an eventfd that all loops share.
            poll: what the loops do while nothing comes.

        Raises:
            LbError: a loop runs already, or nothing is published.
            BackendError, OSError, ValueError: as for one data path.
        """
        if any(interface.direct is not None for interface in interfaces):
            raise ValueError("direct: frames go straight to the driver from one worker only")
        if self._snapshot is None:
            raise LbError("several workers need a snapshot before they start: publish one")
        if any(len(interface.sockets) != len(self._shards) for interface in interfaces):
            raise ValueError(f"interfaces: each needs {len(self._shards)} sockets, one for each worker")
        shares = [[share_of(interface, number) for interface in interfaces] for number in range(len(self._shards))]
        self._sockets = [only_sockets(share) for share in shares]
        self._deal(self._snapshot)
        try:
            for shard, share in zip(self._shards, shares, strict=True):
                shard.attach(share, notify_fd, poll)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Stop all loops and join their threads. Raise LbError, of the first that had failed."""
        self._sockets = []
        failures: list[LbError] = []
        for shard in self._shards:
            try:
                shard.detach()
            except LbError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def capabilities(one: Capabilities) -> Capabilities:
    """Return what several data paths can together. Each has rounds and draws of its own: placement is not exact."""
    return dataclasses.replace(
        one, exact=one.exact - {"placement"}, offline=False, sends_directly=False, keeps_flows=False
    )


def share_of(interface: AttachedInterface, number: int) -> AttachedInterface:
    """Return an interface as one worker is attached to it."""
    return interface._replace(sockets=(interface.sockets[number],))


def part(whole: int, number: int, parts: int) -> int:
    """Return part `number` of `whole` split into `parts` nearly equal whole numbers."""
    return whole // parts + (number < whole % parts)


def with_part_of_limit(service: Service, parts: int) -> Service:
    """Return a service with one worker's part of its limit of new flows: rounded up, so that each lets some in."""
    limit = service.new_flow_limit
    if limit is None:
        return service
    share = dataclasses.replace(limit, rate=-(-limit.rate // parts), burst=-(-limit.burst // parts))
    return dataclasses.replace(service, new_flow_limit=share)


def in_all(ids: Sequence[int], lists: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids, in order, that all of the lists have."""
    common = frozenset(ids).intersection(*lists)
    return [number for number in ids if number in common]


def added(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two trees of numbers, of `max_ns` the higher; what one of them lacks counts as nothing."""
    total = dict(left)
    for name, value in right.items():
        if isinstance(value, Mapping):
            total[name] = added(total.get(name, {}), value)
        elif name == "max_ns":
            total[name] = max(total.get(name, 0), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def together(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """
    Return the workers' measurements of one server as one row: sums, the highest of the peaks, and the shortest stall of
    the workers whose flows wait.
    """
    row = {name: sum(each[name] for each in rows) for name in rows[0]}
    for name in ("connect_peak_ns", "first_byte_peak_ns"):
        row[name] = max(each[name] for each in rows)
    row["stalled_ns"] = min((each["stalled_ns"] for each in rows if each["waiting_flows"]), default=0)
    return row


def one_at_a_time(ask: AskFunction) -> AskFunction:
    """Return a function that one worker at a time calls: a user's policy need not be thread-safe."""
    lock = threading.Lock()

    def ask_alone(service: str, client: str, port: int, names: Sequence[str]) -> str | None:
        with lock:
            return ask(service, client, port, names)

    return ask_alone
