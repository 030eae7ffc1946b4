"""
The packet loop, on pairs of UNIX sockets in place of packet sockets: a message is a header and a frame.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from helpers import (
    CLIENT,
    FAR,
    ROUTER_MAC,
    ROUTER_MAC_1,
    SERVERS,
    Box,
    assert_checksums,
    from_client,
    from_server,
    make_datapath,
    make_next_hops,
    make_snapshot,
    query,
    request,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from attaching import attached
from lb.backends.base import AttachedInterface, DataPath
from lb.errors import LbError
from lb.net.frames import OFFLOAD_HEADER
from lb.packet.offload import Offload

DEADLINE_MS = 10_000


class Wire:
    """A running Python data path, and the far ends of its two interfaces."""

    def __init__(self, path: DataPath) -> None:
        self.path = path
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.near = [pair[0] for pair in pairs]
        self.far = [pair[1] for pair in pairs]
        self.notify_fd = os.eventfd(0, os.EFD_NONBLOCK)
        path.attach(attached([each.fileno() for each in self.near]), self.notify_fd)

    def put(self, frame: object, interface: int = 0, offload: Offload | None = None) -> None:
        """Let a frame arrive."""
        self.far[interface].send(OFFLOAD_HEADER.pack(*(offload or Offload())) + bytes(frame))  # type: ignore[call-overload]

    def get(self, interface: int = 0) -> tuple[bytes, Offload]:
        """Return the next frame that was sent."""
        wait_for(self.far[interface].fileno())
        message = self.far[interface].recv(100_000)
        return message[OFFLOAD_HEADER.size :], Offload(*OFFLOAD_HEADER.unpack_from(message))

    def close(self) -> None:
        for each in (*self.near, *self.far):
            each.close()
        os.close(self.notify_fd)


def wait_for(descriptor: int) -> None:
    """Wait until a descriptor can be read."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(DEADLINE_MS), "nothing came"


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A running data path of the small topology."""
    running = Wire(make_datapath("python"))
    yield running
    running.path.detach()
    running.close()


def test_loop_frames_are_translated_between_sockets(wire: Wire) -> None:
    """A query goes to the server, its answer comes back; the offload header travels with the frame."""
    wire.put(from_client(query()))
    frame, offload = wire.get()
    assert_checksums(frame)
    assert (Ether(frame)[IP].dst, offload) == (SERVERS[0], Offload())
    wire.put(from_server(UDP(sport=5353, dport=40000)), offload=Offload(1, csum_start=34, csum_offset=6))
    frame, offload = wire.get()
    assert (Ether(frame)[IP].dst, offload) == (CLIENT, Offload(1, csum_start=34, csum_offset=6))


def test_loop_other_interface_gets_its_frames(wire: Wire) -> None:
    """Interfaces are told apart by the order of their sockets."""
    wire.put(Ether(src="aa:aa:aa:00:02:09", dst=ROUTER_MAC_1) / IP(src=FAR, dst="198.18.1.100") / query(), 1)
    assert Ether(wire.get(0)[0]).src == ROUTER_MAC
    wire.put(from_server(UDP(sport=5353, dport=40000), destination=FAR))
    assert Ether(wire.get(1)[0])[IP].dst == FAR


def test_loop_control_calls_work_while_it_runs(wire: Wire) -> None:
    """Publishing, counters and flows are carried out between two batches."""
    wire.put(from_client(query()))
    wire.get()
    wire.path.publish(make_snapshot(slots=(2,), generation=2))
    wire.put(from_client(query(port=7)))
    assert Ether(wire.get()[0])[IP].dst == SERVERS[2]
    counters = wire.path.counters()
    assert (counters["rx_packets"], counters["verdicts"]) == (2, {"forward": 2})
    assert counters["io"] == {"rx_truncated": 0, "rx_errors": 0, "rx_dropped": 0, "tx_dropped": 0, "tx_errors": 0}


def test_loop_unresolved_neighbour_is_told_and_tick_releases(wire: Wire) -> None:
    """Rule 11, next hop: the eventfd tells of a hop to resolve; the packet leaves when it is published."""
    wire.path.set_next_hops(make_next_hops(without=SERVERS))
    wire.put(from_client(query()))
    wait_for(wire.notify_fd)
    assert [str(address) for _, address in wire.path.take_unresolved()] == [SERVERS[0]]
    wire.path.set_next_hops(make_next_hops())
    assert Ether(wire.get()[0])[IP].dst == SERVERS[0]


def test_loop_malformed_frames_are_counted_and_it_goes_on(wire: Wire) -> None:
    """Bad input is a verdict; a message shorter than its header is counted as truncated."""
    wire.far[0].send(b"short")
    wire.put(b"")
    wire.put(bytes(60))
    wire.put(from_client(query()))
    wire.get()
    counters = wire.path.counters()
    assert (counters["io"]["rx_truncated"], counters["rx_packets"]) == (1, 3)
    assert counters["verdicts"]["drop.frame_truncated"] == 1


def test_loop_stop_ends_the_thread_and_may_start_again(wire: Wire) -> None:
    """`stop` joins; twice is fine; a second `start` works, one while it runs is refused."""
    with pytest.raises(LbError, match="runs already"):
        wire.path.attach(attached([]), wire.notify_fd)
    wire.path.detach()
    wire.path.detach()
    assert not [each for each in threading.enumerate() if each.name == "lb-packets"]
    wire.path.attach(attached([each.fileno() for each in wire.near]), wire.notify_fd)
    wire.put(from_client(query()))
    wire.get()


def test_loop_unknown_way_to_poll_is_refused(wire: Wire) -> None:
    """As `rust` does."""
    wire.path.detach()
    with pytest.raises(ValueError, match=r"often. is none of adaptive, busy, sleep"):
        wire.path.attach(attached([]), wire.notify_fd, "often")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eth0: 0 sockets for one worker"):
        wire.path.attach([AttachedInterface("eth0", ())], wire.notify_fd)


def test_loop_failure_is_told_and_raised_by_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours wakes the control thread, and is not lost."""
    running = Wire(make_datapath("python"))

    def fail(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("lb.backends.python.loop.process", fail)
    running.put(from_client(query()))
    wait_for(running.notify_fd)
    with pytest.raises(LbError, match="broken on purpose"):
        running.path.detach()
    running.path.detach()
    running.close()


def test_ask_policy_that_calls_the_data_path_is_refused(backend: str) -> None:
    """A policy that asks the data path itself gets an error, never a hang; the packet still gets its verdict."""
    caught: list[Exception] = []

    def ask(*_: object) -> str:
        try:
            box.counters()
        except LbError as error:
            caught.append(error)
        return "server2"

    box = Box(backend, make_snapshot("ask"))
    box.path.publish(replace(make_snapshot("ask"), ask=ask))
    assert box.send(from_client(request())).server == "server2"
    assert "in use" in str(caught[0])
