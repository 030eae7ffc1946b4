"""The data path in Rust (`rust/bindings`). Use it through `lb.backends.rust`."""

from collections.abc import Sequence
from typing import Any, Final, final

from lb.backends.base import AttachedInterface, Carried, Flow, FlowRecord
from lb.model.snapshot import Address, AskFunction, NextHops, Snapshot
from lb.model.verdict import Direction, Verdict
from lb.packet.offload import Offload

__all__ = [
    "BUILD_PROFILE",
    "CallbackChannel",
    "DataPath",
    "Result",
    "__version__",
    "checksum",
    "checksum_update",
    "create_table_map",
    "flood",
    "flow_hash",
    "generate",
    "open_table_map",
    "parse",
    "scatter",
    "source_hash",
]

__version__: Final[str]
BUILD_PROFILE: Final[str]
"""`release` or `debug`: benches say what they ran."""

@final
class Result:
    """What became of one frame. Made by `DataPath` only; attributes become Python objects when they are read."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def direction(self) -> Direction | None: ...
    @property
    def service(self) -> str | None: ...
    @property
    def server(self) -> str | None: ...
    @property
    def out(self) -> list[tuple[str, bytes]]: ...
    @property
    def offloads(self) -> list[Offload | None]: ...

@final
class CallbackChannel:
    """A packet loop's questions, for the answering thread of `lb.backends.callbacks`. Made by `DataPath` only."""

    def wait(self) -> tuple[AskFunction, str, str, int, tuple[str, ...]] | None:
        """
        Wait for a question, without the GIL: (function, service, client, client port, candidate names). None: there
        will be none any more.
        """

    def answer(self, answer: str | None) -> None:
        """Answer the question that `wait` returned last. None: no usable answer."""

@final
class DataPath:
    """
    A data path in Rust; the contract is `lb.backends.base.DataPath`.

    Args:
        capacity: flows the table can hold.
        hash_key: 16 secret bytes that key the flow table.
        seed: starts the random draws, 64 bits.
        first_round: where the rounds of `counter` and `least` start, 64 bits.
        table_fd: of an empty file, whose memory the flow table takes, so that it outlives the process. None: memory of
            its own.

    Raises:
        LbError: the capacity is out of range.
        BackendError: the table's memory could not be had.
        TypeError: an argument is of another type.
        ValueError: a number is negative or has more than 64 bits, or the key has not 16 bytes.
    """

    def __new__(
        cls, capacity: int, hash_key: bytes, seed: int, first_round: int = 0, table_fd: int | None = None
    ) -> DataPath: ...
    def keep_flows(
        self,
        table_fd: int,
        servers: Sequence[tuple[tuple[int, int, bool], tuple[int, int, int]] | None],
        interfaces: Sequence[int | None],
        now_ns: int,
    ) -> tuple[int, int]: ...
    def carried(self) -> Carried: ...
    def carry(self, carried: Carried, services: Sequence[int | None], servers: Sequence[int | None]) -> None: ...
    def publish(self, snapshot: Snapshot) -> None: ...
    def set_next_hops(self, next_hops: NextHops) -> None: ...
    def process(self, frame: bytes, interface: int, now_ns: int, offload: Offload | None = None) -> Result: ...
    def process_many(self, frames: Sequence[bytes], interface: int, now_ns: int) -> list[Result]: ...
    def tick(self, now_ns: int) -> list[tuple[str, bytes, Offload | None]]: ...
    def flow_layout(self) -> str: ...
    def copy_flows(self, place: int, now_ns: int) -> tuple[bytes, int | None]: ...
    def load_flows(
        self,
        rows: bytes,
        servers: Sequence[tuple[tuple[int, int, bool], tuple[int, int, int]] | None],
        interfaces: Sequence[int | None],
        now_ns: int,
    ) -> tuple[int, int]: ...
    def reset_flows(self, server: int | None, limit: int, now_ns: int) -> int: ...
    def active_flows(self, servers: Sequence[int]) -> list[int]: ...
    def retire_servers(self, servers: Sequence[int]) -> list[int]: ...
    def retire_services(self, services: Sequence[int]) -> list[int]: ...
    def flows(self, now_ns: int) -> list[Flow]: ...
    def find_flows(
        self,
        now_ns: int,
        offset: int,
        limit: int,
        client: Address | None = None,
        servers: Sequence[int] | None = None,
        state: str | None = None,
    ) -> tuple[int, list[Flow]]: ...
    def counters(self) -> dict[str, Any]: ...
    def memory(self) -> tuple[int, int]: ...
    def take_unresolved(self) -> list[tuple[int, Address]]: ...
    def peek(self, service: int, client: Address, client_port: int, now_ns: int) -> tuple[Flow | None, int]: ...
    def measurements(self, now_ns: int) -> dict[str, dict[str, dict[str, int]]]: ...
    def keep_flow_exports(self, most: int) -> None: ...
    def take_flow_exports(self) -> tuple[list[FlowRecord], int]: ...
    def attach(self, interfaces: Sequence[AttachedInterface], notify_fd: int, poll: str | None = None) -> None: ...
    def detach(self) -> None: ...
    def leave(self) -> list[int | None]: ...

def parse(
    frame: bytes,
) -> tuple[str | None, int, tuple[int, ...], int, int, int, bytes, bytes, int, int, int, int, int, int, bool, int]:
    """Return the fields of `lb.packet.headers.Headers`."""

def checksum(data: bytes, initial: int = 0) -> int:
    """
    Compute the internet checksum (RFC 1071).

    Args:
        data: the bytes to sum; an odd length is padded with a zero byte.
        initial: a sum to start from, for instance of a pseudo-header: not complemented, 64 bits at most.

    Returns:
        The complemented sum, 0..0xFFFF. Over data that holds a right checksum it is 0.
    """

def checksum_update(checksum: int, old: bytes, new: bytes) -> int:
    """
    Update a checksum after some words have changed (RFC 1624 equation 3).

    Args:
        checksum: the checksum before, 0..0xFFFF.
        old: the changed words as they were.
        new: the same words as they are.

    Raises:
        ValueError: the checksum is out of range, old and new differ in length, or the length is odd.
    """

def flow_hash(seed: int, client: bytes, vip: bytes, client_port: int, vip_port: int, protocol: int) -> int:
    """
    Hash a 5-tuple, as the selector `hash-flow` does.

    Args:
        seed: 64 bits.
        client: client address, 4 or 16 bytes, network order.
        vip: the VIP, likewise.
        client_port: 0..65535.
        vip_port: 0..65535.
        protocol: the L4 protocol number.

    Raises:
        ValueError: a number is out of range, or an address has neither 4 nor 16 bytes.
    """

def source_hash(seed: int, client: bytes) -> int:
    """
    Hash a client address, as the selector `hash-source` does.

    Raises:
        ValueError: the seed is out of range, or the address has neither 4 nor 16 bytes.
    """

def generate(
    fd: int, frame: bytes, flows: int, packets: int, seconds: float, rate_pps: float | None = None
) -> tuple[int, float]:
    """
    Send a UDP frame over and over, with many source ports: the load of measurements.

    Args:
        fd: a packet socket with PACKET_VNET_HDR, bound to an interface.
        frame: Ethernet, IPv4 without options, UDP; its source port is the first one.
        flows: how many source ports to use in turn.
        packets: frames at most.
        seconds: time at most.
        rate_pps: frames per second; None: as many as possible.

    Returns:
        Frames sent, and the seconds that took.

    Raises:
        LbError: the frame or the number of flows does not fit, or the socket fails.
        ValueError: a time or a rate is no positive number.
    """

def flood(interface: int, frame: bytes, flows: int, packets: int, seconds: float) -> tuple[int, float]:
    """
    Let the kernel make and send a UDP frame over and over (live frames of BPF_PROG_TEST_RUN), as fast as it can.

    Args:
        interface: index of the interface, in the calling thread's network namespace.
        frame: as `generate`; its source port is drawn at random from `flows` ports on.
        flows: how many source ports to use.
        packets: frames at most.
        seconds: time at most.

    Returns:
        Frames made, and the seconds that took.

    Raises:
        LbError: CAP_BPF, CAP_NET_ADMIN or the kernel's feature (Linux 5.18) is missing, or the frame does not fit.
        ValueError: the time is no positive number.
    """

def scatter(
    interface: int, frame: bytes, words: Sequence[tuple[int, int]], seconds: float, rate_pps: float
) -> tuple[int, float]:
    """
    Let the kernel make and send IPv4 frames at a pace, some words of each drawn at random (as `flood`).

    The thread is busy until the time is over, whatever the pace: give it a low priority.

    Args:
        interface: index of the interface, in the calling thread's network namespace.
        frame: an Ethernet frame with IPv4 without options; checksums are made anew, but for L4 of a fragment.
        words: (offset, mask) of 16-bit words of its packet that are drawn; bits outside the mask are the frame's.
        seconds: time at most.
        rate_pps: frames per second, at most 10^9.

    Returns:
        Frames sent, and the seconds that took.

    Raises:
        LbError: CAP_BPF, CAP_NET_ADMIN or the kernel's feature (Linux 5.18) is missing, or the frame does not fit.
        ValueError: rate or time is no positive number.
    """

def create_table_map(capacity: int, path: str) -> int:
    """
    Have the kernel make a map that a flow table fits in (Linux 5.5), and pin it: it lasts until its path is removed.

    Args:
        capacity: flows of the table.
        path: in a BPF file system; nothing is there yet.

    Returns:
        A descriptor of the map, which the caller closes: what `DataPath` takes as `table_fd`.

    Raises:
        OSError: without CAP_BPF, without so much memory, outside of a BPF file system.
        LbError: no table has this capacity.
    """

def open_table_map(path: str) -> int:
    """
    Return a descriptor of the map that is pinned at a path, which the caller closes.

    Raises:
        OSError: there is none, or CAP_BPF is missing.
    """
