"""
The contract of backends: what every data path takes, returns and guarantees.

A data path is two things. An `Engine` holds flows and does to packets what `docs/rules.md` says: two engines given
the same snapshot, seed, clock and frames give byte-identical outcomes and equal counters, in all that their
`Capabilities` call exact. An `Attachment` connects an engine to interfaces, so that packets come and go without
Python. Who only asks or publishes takes an engine; who starts and stops takes the attachment. Ids inside, names at the
edge: outcomes and counters carry names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, runtime_checkable

from lb.errors import LbError
from lb.model.poll import DEFAULT_POLL, POLLS, Poll
from lb.model.snapshot import Address, NextHops, Snapshot
from lb.model.verdict import Direction, Verdict
from lb.packet.offload import Offload

# In what two backends can be compared.
Aspect: TypeAlias = Literal["verdicts", "frames", "placement", "flows", "counters", "measurements"]
ASPECTS: frozenset[Aspect] = frozenset({"verdicts", "frames", "placement", "flows", "counters", "measurements"})

# Upper bounds of the buckets of the loop's pauses, nanoseconds; a last bucket has none (`docs/rules.md` rule 13,
# counters).
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
    """The outcome of one frame. Attributes are read-only; `astuple` makes results of both backends comparable."""

    @property
    def verdict(self) -> Verdict:
        """The verdict."""

    @property
    def reason(self) -> str | None:
        """Why: set for drop, reply and hold, None for forward and pass."""

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
    One entry of the flow table. `state`: one of `lb.model.flow_states.FLOW_STATES`. `idle_s`: seconds since the last
    packet that refreshed it.
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


class FlowRecord(NamedTuple):
    """
    One flow that ended.

    Args:
        ended: `closed` (both sides said FIN), `reset` (a valid RST, or ours: rule 15, resetting flows), `expired`
        (idle for its timeout), `evicted` (its place in a full table was needed), `orphaned` (its server left the
        configuration), `moved` (a UDP flow whose server was removed or drained).
        began_ns, last_seen_ns: monotonic nanoseconds of its first and last packet; `began_ns` is None for a flow that
        is older than `keep_flow_exports`.
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


# What belonged to a server id of another process: service, endpoint, and whether they are of UDP; then the ids of
# service, server and endpoint in our snapshot.
ServerIds: TypeAlias = tuple[tuple[int, int, bool], tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """
    What a backend does as the rules say, and what it leaves out; known before a data path is made.

    Args:
        exact: the aspects in which it equals every other backend that is exact in them.
        not_measured: the names of measurements (rule 16, measurements) that stay 0.
        polls: the ways to wait for packets that it tells apart; it accepts the others, and waits as with the last one.
        offline: whether `process`, `process_many` and `tick` work without an attachment.
        sends_directly: whether frames go straight to the driver where an interface has a descriptor for that.
        promises_memory: whether the flow table has all its memory from the start (`Engine.memory`).
        keeps_flows: whether the flow table can be in a file, and take over what another process left in one.
    """

    exact: frozenset[Aspect] = ASPECTS
    not_measured: frozenset[str] = frozenset()
    polls: tuple[Poll, ...] = POLLS
    offline: bool = True
    sends_directly: bool = True
    promises_memory: bool = True
    keeps_flows: bool = True


class Carried(TypedDict):
    """
    Numbers by name that one process leaves to the next, without those that are 0.

    `totals`: counters of all packets, and where the random draws are; `services`, `servers`: by id: counters,
    measurements and rounds; `io`: what went wrong on the interfaces.
    """

    totals: dict[str, int]
    services: list[dict[str, int]]
    servers: list[dict[str, int]]
    io: dict[str, int]


class Engine(Protocol):
    """
    Flows, and what becomes of packets. Made with (capacity, hash_key, seed, first_round=0, table_fd=None): flows the
    table can hold, 16 secret bytes, the u64 that seeds the random draws, the number at which the rounds of `counter`
    and `least` start, and a descriptor of an empty file whose memory the table takes, where the backend keeps flows;
    wrong ones raise ValueError or TypeError, a capacity that no table can have LbError.

    Not thread-safe by itself, except while it is attached (`Attachment.attach`): then every method may be called from
    the control thread and runs between two batches. None holds packets up for long: what takes its time is
    done in slices, or on the calling thread (`docs/rules.md` rule 13, counters).
    """

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a new snapshot. Flows stay."""

    def keep_flows(
        self, table_fd: int, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None], now_ns: int
    ) -> tuple[int, int]:
        """
        Take over the flows that another process left in a file, once a snapshot is published and before packets come.

        Args:
            table_fd: of the file.
            servers: by server id of theirs, what it is in this snapshot; None: nothing.
            interfaces: by interface id of theirs, the id in this snapshot; None: none.
            now_ns: monotonic nanoseconds.

        Returns:
            How many flows were taken over, and how many entries were dropped: damaged, without a server, or for want
            of room.

        Raises:
            LbError: it is no flow table, or one of another layout, and nothing was taken over; or the backend keeps no
                flows.
            OSError: it could not be read.
        """

    def carried(self) -> Carried:
        """
        Return what the next process goes on from beside flows: counters, measurements, and whose round it is. Raise
        LbError when the backend keeps no flows.
        """

    def carry(self, carried: Carried, services: Sequence[int | None], servers: Sequence[int | None]) -> None:
        """
        Go on from what another process has carried, once its flows are here.

        Args:
            carried: by that process; numbers that this version does not know are left out.
            services: by service id of theirs, the id in this snapshot; None: none.
            servers: the same for servers.

        Raises:
            LbError: the backend keeps no flows.
        """

    def flow_layout(self) -> str:
        """
        Return what tells rows of `copy_flows` from those of other versions and machines: only rows of the same layout
        are read back. Raise LbError when the backend has no rows.
        """

    def copy_flows(self, place: int, now_ns: int) -> tuple[bytes, int | None]:
        """
        Return a part of the flow table as bytes that another process can read, after a reboot, too.

        Args:
            place: where to begin: 0, then what the call before returned.
            now_ns: monotonic nanoseconds.

        Returns:
            Rows, of flows that are not being opened, and where to go on; None: that was all. A flow that is there from
            the first call to the last is in one of them; one that comes or goes meanwhile may be.

        Raises:
            LbError: the backend has no rows.
        """

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None], now_ns: int
    ) -> tuple[int, int]:
        """
        Take over flows that `copy_flows` has returned, of this layout, also while packets come. Their idle timers go on
        where they were; what the numbers of TCP connections are by now is learnt from their next segments.

        Args:
            rows: as returned there.
            servers: as for `keep_flows`.
            interfaces: as for `keep_flows`.
            now_ns: monotonic nanoseconds.

        Returns:
            How many flows were taken over, and how many were not: in the table already, damaged, without a server, or
            for want of room.

        Raises:
            LbError: the rows are cut short; or the backend has none.
        """

    def set_next_hops(self, next_hops: NextHops) -> None:
        """Swap routes and neighbours. Waiting packets leave at the next `tick`."""

    def process(self, frame: bytes, interface: int, now_ns: int, offload: Offload | None = None) -> Result:
        """Process one frame that came in by the interface with this id."""

    def process_many(self, frames: Sequence[bytes], interface: int, now_ns: int) -> list[Result]:
        """Process frames in order at one instant."""

    def tick(self, now_ns: int) -> list[tuple[str, bytes, Offload | None]]:
        """
        Expire and release what is due; return frames to send. Of flows that are due, one call removes 64 at most
        (`docs/rules.md` rule 2, expiry); a loop that is behind ticks again at once.
        """

    def reset_flows(self, server: int | None, limit: int, now_ns: int) -> int:
        """
        Remove flows of the server with this id, None: of any, `limit` at most, and let both ends of each know at the
        next `tick` (`docs/rules.md` rule 15, resetting flows). Return how many were removed; fewer than `limit`: there
        are none left.
        """

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        """
        Return how many active flows each of the servers with these ids has, in their order. By id: of names the
        counters know only those that the snapshot has now.
        """

    def retire_servers(self, servers: Sequence[int]) -> list[int]:
        """
        Forget the servers with these ids that the snapshot lacks and no entry refers to, in any state: their counters
        and measurements become 0 (`docs/rules.md` rule 13, counters). Return the ids forgotten, which are free for
        other servers.
        """

    def retire_services(self, services: Sequence[int]) -> list[int]:
        """
        Forget the services with these ids that the snapshot lacks and no entry refers to, in any state: their counters
        and rounds (`docs/rules.md` rule 13, counters). Return the ids forgotten, which are free for other services.
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
        """Return all counters by name: `docs/rules.md` rule 13, counters."""

    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """
        Return what is known of each server until now, by service and server name: `docs/rules.md` rule 16,
        measurements. Servers of one service that share a name: the one with the highest id.
        """

    def peek(self, service: int, client: Address, client_port: int, now_ns: int) -> tuple[Flow | None, int]:
        """
        Return a client's flow with the service of this id, None when there is none, and the service's next number of
        the selector `counter`, or with `least` the slot of the next server. Changes and counts nothing.
        """

    def keep_flow_exports(self, most: int) -> None:
        """Export the flows that end from now on, up to `most` between two calls of `take_flow_exports`. 0: none."""

    def take_flow_exports(self) -> tuple[list[FlowRecord], int]:
        """Return the flows that ended since the last call, in order, and the number without room."""

    def memory(self) -> tuple[int, int] | None:
        """
        Return the bytes promised for a full flow table, everything included, and those of them that are resident by
        now. None from a backend whose table grows as flows come.
        """

    def take_unresolved(self) -> list[tuple[int, Address]]:
        """
        Return the (interface id, address) pairs to resolve that were not returned before. Raise LbError when
        its attachment has failed.
        """


class AttachedInterface(NamedTuple):
    """
    One interface to attach to. The caller keeps ownership of all descriptors and closes them after `detach`.

    Args:
        name: as the kernel has it.
        sockets: AF_PACKET descriptors, one for each worker.
        direct: a fresh AF_XDP descriptor, to hand finished frames straight to the driver, past queue disciplines; None:
            they leave by the socket. Only with one worker.
        ring: where to go on reading a socket that another process has left (`Attachment.leave`); None: at its start.
    """

    name: str
    sockets: tuple[int, ...]
    direct: int | None = None
    ring: int | None = None


def only_sockets(interfaces: Sequence[AttachedInterface]) -> list[int]:
    """Return the socket of each interface. Raise ValueError where there is not exactly one."""
    for interface in interfaces:
        if len(interface.sockets) != 1:
            raise ValueError(f"{interface.name}: {len(interface.sockets)} sockets for one worker")
    return [interface.sockets[0] for interface in interfaces]


class Attachment(Protocol):
    """What connects an engine to interfaces: a packet loop, or a program in the kernel with a loop behind it."""

    def attach(self, interfaces: Sequence[AttachedInterface], notify_fd: int, poll: Poll = DEFAULT_POLL) -> None:
        """
        Let packets of these interfaces come to the engine. Its flow table has all its memory from then on, where that
        is promised.

        Args:
            interfaces: in order of interface id.
            notify_fd: an eventfd that 1 is added to when `take_unresolved` has news, also of a failure.
            poll: what a packet loop does while nothing comes: look again for a while where that pays ("adaptive"),
                always ("busy"), or sleep at once ("sleep").

        Raises:
            LbError: it is attached already, or the kernel does not let frames be sent directly.
            BackendError: there is less memory than the flow table was promised.
            OSError: a descriptor is not open, or one of the sockets is no socket.
            ValueError: `poll` is another word, or an interface has not one socket for each worker.
        """

    def detach(self) -> None:
        """
        Let go of all interfaces, within 200 ms; flows stay. Raise LbError when it had failed. Does nothing when it is
        not attached.
        """

    def leave(self) -> list[int | None]:
        """
        As `detach`, and leave the sockets with all that waits in them to another process: return, by interface, where
        that one is to go on reading (`AttachedInterface.ring`). Raise LbError when the backend keeps no flows.
        """


class KeepsNone:
    """
    A part of backends that keep no flows over a restart: these methods raise LbError, which says why.
    `WHY_KEEPS_NONE`: the reason.
    """

    WHY_KEEPS_NONE: ClassVar[str]

    def keep_flows(
        self, table_fd: int, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None], now_ns: int
    ) -> tuple[int, int]:
        """Raise LbError."""
        del table_fd, servers, interfaces, now_ns
        raise LbError(self.WHY_KEEPS_NONE)

    def carried(self) -> Carried:
        """Raise LbError."""
        raise LbError(self.WHY_KEEPS_NONE)

    def carry(self, carried: Carried, services: Sequence[int | None], servers: Sequence[int | None]) -> None:
        """Raise LbError."""
        del carried, services, servers
        raise LbError(self.WHY_KEEPS_NONE)

    def flow_layout(self) -> str:
        """Raise LbError."""
        raise LbError(self.WHY_KEEPS_NONE)

    def copy_flows(self, place: int, now_ns: int) -> tuple[bytes, int | None]:
        """Raise LbError."""
        del place, now_ns
        raise LbError(self.WHY_KEEPS_NONE)

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None], now_ns: int
    ) -> tuple[int, int]:
        """Raise LbError."""
        del rows, servers, interfaces, now_ns
        raise LbError(self.WHY_KEEPS_NONE)

    def leave(self) -> list[int | None]:
        """Raise LbError."""
        raise LbError(self.WHY_KEEPS_NONE)


class DataPath(Engine, Attachment, Protocol):
    """An engine and its attachment, as a backend makes them."""
