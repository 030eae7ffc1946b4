"""
The contract between Python and a backend: what a data path takes, gives and promises.

Every backend implements `DataPath`. Rules for packets are in `docs/datapath.md`; two backends given the same
snapshot, seed, clock and frames give byte-identical outcomes and equal counters. Ids inside, names at the edge:
outcomes and counters carry names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from lb.model.snapshot import Address, NextHops, Snapshot
from lb.model.verdict import Direction, Verdict
from lb.packet.offload import Offload

Poll: TypeAlias = Literal["adaptive", "busy", "sleep"]
NO_DIRECT: Mapping[int, int] = MappingProxyType({})
POLLS: tuple[Poll, ...] = ("adaptive", "busy", "sleep")

# Upper bounds of the buckets of the loop's pauses, nanoseconds; a last bucket has none (`docs/datapath.md` rule 13).
PAUSE_BOUNDS_NS: tuple[int, ...] = (
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
)


@runtime_checkable
class Result(Protocol):
    """What became of one frame. Attributes are read-only; results of both backends compare equal through `astuple`."""

    @property
    def verdict(self) -> Verdict:
        """What became of the frame."""

    @property
    def reason(self) -> str | None:
        """Why: set for drop, reply and hold; None for forward and pass."""

    @property
    def direction(self) -> Direction | None:
        """`forward` is client to server."""

    @property
    def service(self) -> str | None:
        """Name of the service the frame was matched to."""

    @property
    def server(self) -> str | None:
        """Name of the server of its flow."""

    @property
    def out(self) -> list[tuple[str, bytes]]:
        """Frames to send: (interface name, whole Ethernet frame)."""

    @property
    def offloads(self) -> list[Offload | None]:
        """One per frame of `out`."""


def astuple(result: Result) -> tuple[Any, ...]:
    """Return every attribute of a result, for comparison."""
    return (
        result.verdict,
        result.reason,
        result.direction,
        result.service,
        result.server,
        list(result.out),
        [None if offload is None else tuple(offload) for offload in result.offloads],
    )


class Flow(NamedTuple):
    """
    One entry of the flow table. `state`: syn-sent, syn-received, established, closing, udp, pickup or udp-unreplied.
    `idle_s`: seconds since the last packet that refreshed it.
    """

    client: str
    client_port: int
    service: str
    server: str
    protocol: str
    state: str
    idle_s: float
    bytes_forward: int
    bytes_reply: int


class FlowEnd(NamedTuple):
    """
    One flow that is over.

    Args:
        ended: `closed` (both sides said FIN), `reset` (a valid RST, or ours: rule 15), `expired` (idle for its
        timeout), `evicted` (its place in a full table was needed), `orphaned` (its server left the configuration),
        `moved` (a UDP flow whose server was removed or drained).
        began_ns, last_seen_ns: monotonic nanoseconds of its first and last packet; `began_ns` is None for a flow that
        is older than `keep_flow_ends`.
        bytes_forward, bytes_reply: of IP.
    """

    client: str
    client_port: int
    service: str
    server: str
    protocol: str
    ended: str
    began_ns: int | None
    last_seen_ns: int
    bytes_forward: int
    bytes_reply: int


class DataPath(Protocol):
    """
    A backend's data path. Made with (capacity, hash_key, seed, first_round=0): flows the table can hold, 16 secret
    bytes, the u64 that seeds the random draws, and the number at which the turns of `counter` and `least` start; wrong
    ones raise ValueError or TypeError, a capacity that no table can have LbError.

    Not thread-safe by itself, except while a loop runs (`start`): then every method may be called from the control
    thread and is carried out between two batches. None holds packets up for long: what takes its time is done in
    slices, or on the calling thread (`docs/datapath.md` rule 13).
    """

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a new snapshot. Flows stay."""

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap routes and neighbours. Waiting packets leave at the next `tick`."""

    def process(self, frame: bytes, interface: int, now_ns: int, offload: Offload | None = None) -> Result:
        """Process one frame that came in by the interface with this id."""

    def process_many(self, frames: Sequence[bytes], interface: int, now_ns: int) -> list[Result]:
        """Process frames in order at one instant."""

    def tick(self, now_ns: int) -> list[tuple[str, bytes, Offload | None]]:
        """
        Expire and release what is due; return frames to send. Of flows that are due, one call removes 64 at most
        (`docs/datapath.md` rule 2); a loop that is behind ticks again at once.
        """

    def reset_flows(self, server: int, limit: int, now_ns: int) -> int:
        """
        Remove flows of the server with this id, `limit` at most, and let both ends of each know at the next `tick`
        (`docs/datapath.md` rule 15). Return how many were removed; fewer than `limit`: it has none left.
        """

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """
        Return how many active flows each of the servers with these ids has, in their order. By id: of names the
        counters know only those that the snapshot has now.
        """

    def retire_servers(self, servers: Sequence[int]) -> list[int]:
        """
        Begin anew with the servers of these ids that the snapshot does not have and no entry refers to, whatever its
        state: their counters and measurements are 0 (`docs/datapath.md` rule 13). Return those ids: another server may
        have them.
        """

    def retire_services(self, services: Sequence[int]) -> list[int]:
        """
        Begin anew with the services of these ids that the snapshot does not have and no entry refers to, whatever its
        state: their counters and turns (`docs/datapath.md` rule 13). Return those ids: another service may have them.
        """

    def flows(self, now_ns: int) -> list[Flow]:
        """Return the unexpired entries, sorted by (client, client_port, service)."""

    def find_flows(
        self,
        now_ns: int,
        offset: int,
        limit: int,
        client: Address | None = None,
        servers: Sequence[int] | None = None,
        state: str | None = None,
    ) -> tuple[int, list[Flow]]:
        """
        Return how many unexpired entries fit, and `limit` of them from `offset` on, in the order of `flows`.

        Args:
            now_ns: monotonic nanoseconds.
            offset: flows to leave out.
            limit: most flows to return.
            client: only those of this address.
            servers: only those of servers with these ids.
            state: only those in this state; ValueError for one that no flow has.
        """

    def counters(self) -> dict[str, Any]:
        """Return all counters by name: `docs/datapath.md` rule 13."""

    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """
        Return what is known of each server until now, by service and server name: `docs/datapath.md` rule 16. Servers
        of one service that share a name: the one with the highest id.
        """

    def peek(self, service: int, client: Address, client_port: int, now_ns: int) -> tuple[Flow | None, int]:
        """
        Return what is known before a packet comes: the flow of a client with the service of this id, None when it has
        none that lives, and the number of the service's next turn (selector `counter`), or the slot of the server that
        is next (selector `least`). Changes and counts nothing.
        """

    def keep_flow_ends(self, most: int) -> None:
        """Keep how flows end from now on: up to `most` of them between two calls of `take_flow_ends`. 0: none."""

    def take_flow_ends(self) -> tuple[list[FlowEnd], int]:
        """Return the flows that ended since the last call, in that order, and how many found no room."""

    def memory(self) -> tuple[int, int] | None:
        """
        Return the bytes promised for a full flow table, everything included, and those of them that are resident by
        now. None from a backend whose table grows as flows come.
        """

    def take_unresolved(self) -> list[tuple[int, Address]]:
        """
        Return the (interface id, address) pairs to resolve that were not returned before. Raise LbError when the loop
        has failed.
        """

    def start(
        self, sockets: Sequence[int], notify_fd: int, poll: Poll = "adaptive", direct: Mapping[int, int] = NO_DIRECT
    ) -> None:
        """
        Start the packet loop on its own thread. All memory of the flow table is resident then, where it is promised.

        Args:
            sockets: one AF_PACKET descriptor per interface, in order of interface id; the caller keeps ownership and
            closes them after `stop`.
            notify_fd: an eventfd the loop adds 1 to when `take_unresolved` has news, and when the loop has failed.
            poll: what the loop does while nothing comes: look again for a while where that pays ("adaptive"), always
            ("busy"), or sleep at once ("sleep"). `python` always sleeps at once.
            direct: ids of interfaces whose finished frames are handed straight to the driver, past queue disciplines,
            each with a fresh AF_XDP descriptor; the caller keeps ownership. `python` sends all frames the same way.

        Raises:
            LbError: the loop runs already, or the kernel does not let frames be sent directly.
            BackendError: there is less memory than the flow table was promised.
            OSError: a descriptor is not open, or one of `sockets` is no socket.
            ValueError: `poll` is another word, or `direct` names what is no interface.
        """

    def stop(self) -> None:
        """
        Stop the loop and join its thread, within 200 ms. Raise LbError when the loop had failed. Does nothing when it
        does not run.
        """
