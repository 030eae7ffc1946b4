"""
The packet loop on real sockets: a router between a client and a server, joined by veth, with each backend in turn.

Neighbours and routes are given by hand: only the loop, the sockets and the data path are under test.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import secrets
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns

import lb.backends
from attaching import attached
from lb.backends.base import DataPath
from lb.backends.sharded import Sharded
from lb.errors import InterfaceError, LbError
from lb.lab.testbed import ethtool
from lb.model.snapshot import Interface, Neighbour, NextHops, Plan, Route, Server, Snapshot
from lb.net import frames, sockets
from snapshots import complete_snapshot, make_service

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root"),
]

DEADLINE_S = 20
PREFIX = f"t-loop-{os.getpid()}"
CLIENT, ROUTER, SERVER = (f"{PREFIX}-{name}" for name in ("client", "router", "server"))
CLIENT_ADDRESS = "198.18.1.21"
SERVER_ADDRESS = "198.18.2.31"
TAGGED_SERVER_ADDRESS = "198.18.1.77"
TAGGED_SERVER_MAC = bytes.fromhex("aaaaaa000077")
VIP = "198.18.1.100"
TRANSFER_BYTES = 20_000_000
# linux/if_tun.h: a virtual machine's card (tap), each of its frames with an offload header.
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
# linux/virtio_net.h: cut into IPv4 fragments.
GSO_UDP = 3


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a namespace for the time being: sockets made here belong to it and may be used from anywhere."""
    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


@pytest.fixture(scope="module", params=["offloads-on", "offloads-off"])
def wires(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make client -- eth0 router eth1 -- server. The client finds the VIP by ARP; the server answers by the router."""
    for namespace in (CLIENT, ROUTER, SERVER):
        run("ip", "netns", "add", namespace)
    try:
        for port, host in enumerate((CLIENT, SERVER)):
            run(
                *("ip", "link", "add", f"eth{port}", "netns", ROUTER, "type", "veth"),
                *("peer", "name", "eth0", "netns", host),
            )
            address = (CLIENT_ADDRESS, SERVER_ADDRESS)[port]
            run("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", ROUTER, "address", "add", f"198.18.{port + 1}.1/24", "dev", f"eth{port}")
            for namespace, device in ((host, "eth0"), (ROUTER, f"eth{port}")):
                run("ip", "-n", namespace, "link", "set", device, "up")
                if request.param == "offloads-off":
                    with inside(namespace):
                        ethtool.set_offloads(device, False)
        run("ip", "-n", SERVER, "route", "add", "default", "via", "198.18.2.1")
        yield
    finally:
        for namespace in (CLIENT, ROUTER, SERVER):
            run("ip", "netns", "delete", namespace)


@dataclass
class Router:
    """What a test sees of the router: its data path, and the calls that start and stop its loop."""

    data_path: DataPath
    notify_fd: int
    ports: list[socket.socket]
    is_direct: bool = False
    workers: int = 1
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> None:
        with inside(ROUTER):
            self.start_from_here()

    def start_from_here(self) -> None:
        """Start with sockets for direct frames of the calling thread's namespace; each serves one start."""
        self.opened.close()
        with contextlib.ExitStack() as stack:
            descriptors = [port.fileno() for port in self.ports]
            direct = {}
            if self.is_direct:
                fresh = [stack.enter_context(sockets.open_direct_socket("eth0")) for _ in self.ports]
                direct = {number: sock.fileno() for number, sock in enumerate(fresh)}
            self.data_path.attach(attached(descriptors, direct, self.workers), self.notify_fd)
            self.opened.enter_context(stack.pop_all())

    def forget_queued(self) -> None:
        """Read what came while no loop ran: a new `lb run` opens new sockets and does not see it either."""
        for port in self.ports:
            while frames.receive(port, frames.IoCounters()):
                pass

    def wait_for_news(self) -> None:
        poller = select.poll()
        poller.register(self.notify_fd, select.POLLIN)
        assert poller.poll(DEADLINE_S * 1000), "no news from the loop"
        os.eventfd_read(self.notify_fd)


@pytest.fixture(params=["rust", "rust-direct", "rust-workers", "python", "python-workers"])
def router(request: pytest.FixtureRequest, wires: None) -> Iterator[Router]:
    """Run a loop in the router's namespace, with everything known."""
    backend, _, way = request.param.partition("-")
    module = lb.backends.load(backend)
    direct, workers = way == "direct", 2 if way == "workers" else 1
    with inside(ROUTER):
        facts = [sockets.read_interface(name) for name in ("eth0", "eth1")]
        ports = [
            sockets.open_packet_socket(name, direct=direct, muted=workers > 1)
            for _ in range(workers)
            for name in ("eth0", "eth1")
        ]
    key = secrets.token_bytes(16)
    data_path = module.DataPath(1024, key, 1) if workers == 1 else Sharded(module.DataPath, workers, 1024, key, 1)
    data_path.publish(make_snapshot(facts))
    data_path.set_next_hops(make_next_hops())
    notify_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    router = Router(data_path, notify_fd, ports, direct, workers)
    run("ip", "-n", CLIENT, "neighbour", "flush", "all")
    router.start()
    try:
        yield router
    finally:
        data_path.detach()
        os.close(notify_fd)
        router.opened.close()
        for port in ports:
            port.close()


def make_snapshot(facts: list[sockets.InterfaceFacts]) -> Snapshot:
    """Three services on one VIP: TCP and UDP to the server, and one whose server is reached in the client's VLAN."""
    interfaces = tuple(
        Interface(f"eth{port}", fact.mac, fact.mtu, (IPv4Interface(f"198.18.{port + 1}.1/24"),), announce=True)
        for port, fact in enumerate(facts)
    )
    vip, server, tagged = IPv4Address(VIP), IPv4Address(SERVER_ADDRESS), IPv4Address(TAGGED_SERVER_ADDRESS)
    services = (
        make_service("tcp", vip, 9876, "tcp", Plan("counter", (0,))),
        make_service("udp", vip, 9876, "udp", Plan("counter", (1,))),
        make_service("tagged", vip, 53, "udp", Plan("counter", (2,))),
    )
    servers = (
        Server("server1", 0, 0, server, 7000),
        Server("server1", 1, 1, server, 7000),
        Server("server2", 2, 2, tagged, 5353, mac=TAGGED_SERVER_MAC),
    )
    return complete_snapshot(1, 1, interfaces, services, servers)


def make_next_hops(known: bool = True) -> NextHops:
    """Both prefixes on-link; the server's MAC when it is known."""
    with inside(SERVER):
        mac = sockets.read_interface("eth0").mac
    routes = tuple(Route(IPv4Network(f"198.18.{port + 1}.0/24"), port) for port in range(2))
    return NextHops(routes, (Neighbour(1, IPv4Address(SERVER_ADDRESS), mac),) if known else ())


@contextlib.contextmanager
def serve(kind: int, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve one exchange on the server, on its own thread."""
    with inside(SERVER):
        listener = socket.socket(socket.AF_INET, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER_ADDRESS, 7000))
    listener.settimeout(DEADLINE_S)
    if kind == socket.SOCK_STREAM:
        listener.listen()
    thread = threading.Thread(target=answer, args=(listener,))
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def client_socket(kind: int) -> socket.socket:
    with inside(CLIENT):
        sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(DEADLINE_S)
    sock.connect((VIP, 9876))
    return sock


def echo_datagram(listener: socket.socket) -> None:
    data, sender = listener.recvfrom(2000)
    listener.sendto(data.upper(), sender)


def echo_stream(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.settimeout(DEADLINE_S)
    with connection:
        while data := connection.recv(1 << 20):
            connection.sendall(data)


def echo_once() -> bytes:
    """Send one datagram to the VIP and return the answer."""
    with serve(socket.SOCK_DGRAM, echo_datagram), client_socket(socket.SOCK_DGRAM) as sock:
        sock.send(b"ping")
        return sock.recv(2000)


def test_loop_udp_echo_through_vip(router: Router) -> None:
    """
    The client finds the VIP by ARP (rule 4, ARP and neighbour discovery), its datagram arrives and the answer comes
    back from the VIP.
    """
    assert echo_once() == b"PING"
    counters = router.data_path.counters()
    assert counters["verdicts"]["reply.arp"] == 1
    assert counters["servers"]["udp/server1"]["packets_reply"] == 1


def test_loop_frames_sent_directly_pass_by_who_watches_the_interface(router: Router) -> None:
    """What `transmit = "direct"` is for, and its price: nothing between the loop and the driver sees a frame leave."""
    with inside(ROUTER):
        watcher = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(sockets.ETH_P_ALL)
        )
    with watcher:
        watcher.bind(("eth1", sockets.ETH_P_ALL))
        assert echo_once() == b"PING"
        left = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, sender = watcher.recvfrom(2000)
                if sender[2] == socket.PACKET_OUTGOING and b"ping" in frame:
                    left.append(frame)
    assert len(left) == (0 if router.is_direct else 1)


@pytest.mark.parametrize("router", ["rust-direct"], indirect=True)
def test_loop_direct_frames_need_an_interface_of_the_same_namespace(router: Router) -> None:
    """An interface of the same number elsewhere would get them."""
    router.data_path.detach()
    with pytest.raises(LbError, match=r"directly from interface 0: .* another network namespace"):
        router.start_from_here()
    router.start()
    assert echo_once() == b"PING"


def test_loop_tcp_bulk_both_ways_is_byte_equal(router: Router) -> None:
    """
    Rule 8.20, translation, and rule 12.2, frames over the MTU: whatever the links leave unfinished, the stream arrives
    as it was sent.
    """
    data = os.urandom(1 << 20) * (TRANSFER_BYTES >> 20)
    with serve(socket.SOCK_STREAM, echo_stream), client_socket(socket.SOCK_STREAM) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        received = hashlib.sha256()
        while chunk := sock.recv(1 << 20):
            received.update(chunk)
        sender.join()
    assert received.hexdigest() == hashlib.sha256(data).hexdigest()
    io = router.data_path.counters()["io"]
    assert (io["rx_truncated"], io["tx_errors"]) == (0, 0)


def test_loop_stopped_echo_stops_and_works_again_after_start(router: Router) -> None:
    assert echo_once() == b"PING"
    began = time.monotonic()
    router.data_path.detach()
    stopped_s = time.monotonic() - began
    assert stopped_s < 0.2, "the contract of stop, not a speed test"
    seen = router.data_path.counters()["rx_packets"]
    with serve(socket.SOCK_DGRAM, nothing_arrives), client_socket(socket.SOCK_DGRAM) as sock:
        sock.send(b"ping")
    assert router.data_path.counters()["rx_packets"] == seen
    router.forget_queued()
    router.start()
    assert echo_once() == b"PING"


def nothing_arrives(listener: socket.socket) -> None:
    """Wait long enough for a frame that crosses two veths, and fail when it comes."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    assert not poller.poll(200)


def test_loop_unresolved_neighbour_is_told_and_packet_follows(router: Router) -> None:
    """Rule 11, next hop: the packet waits for the neighbour and leaves when it is known."""
    router.data_path.set_next_hops(make_next_hops(known=False))
    with serve(socket.SOCK_DGRAM, echo_datagram), client_socket(socket.SOCK_DGRAM) as sock:
        sock.send(b"ping")
        router.wait_for_news()
        assert router.data_path.take_unresolved() == [(1, IPv4Address(SERVER_ADDRESS))]
        router.data_path.set_next_hops(make_next_hops())
        assert sock.recv(2000) == b"PING"


def test_loop_tagged_frame_leaves_with_its_tag(router: Router) -> None:
    """Rule 3.4, VLAN tags: the kernel takes the tag out on the way in; it is in the frame that leaves."""
    with inside(CLIENT):
        wire = sockets.open_packet_socket("eth0")
        client_mac = sockets.read_interface("eth0").mac
    with inside(ROUTER):
        router_mac = sockets.read_interface("eth0").mac
    tag = bytes.fromhex("81002007")
    with contextlib.closing(wire):
        assert frames.send(wire, router_mac + client_mac + tag + tagged_request(), None, frames.IoCounters())
        frame = wait_for_frame(wire, TAGGED_SERVER_MAC)
    assert frame[:18] == TAGGED_SERVER_MAC + router_mac + tag + bytes.fromhex("0800")[:2]
    assert frame[-4:] == b"ping"


def tagged_request() -> bytes:
    """Return a UDP datagram from the client to the service `tagged`, from its EtherType on."""
    header = bytes.fromhex("45000020000000004011") + b"\0\0"
    header += IPv4Address(CLIENT_ADDRESS).packed + IPv4Address(VIP).packed
    checksum = lb.backends.load("python").checksum(header)
    header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
    return b"\x08\0" + header + bytes.fromhex("9c400035000c0000") + b"ping"


def wait_for_frame(wire: socket.socket, destination: bytes) -> bytes:
    """Return the next frame for this MAC."""
    poller = select.poll()
    poller.register(wire, select.POLLIN)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        poller.poll(100)
        received = frames.receive(wire, frames.IoCounters())
        if received and received[0].startswith(destination):
            return received[0]
    raise AssertionError(f"no frame for {destination.hex(':')}")


def test_loop_interface_going_down_does_not_end_it(router: Router) -> None:
    """A link that flaps is counted, and traffic goes on when it is up again."""
    assert echo_once() == b"PING"
    run("ip", "-n", ROUTER, "link", "set", "eth1", "down")
    run("ip", "-n", ROUTER, "link", "set", "eth1", "up")
    assert echo_once() == b"PING"
    assert router.data_path.counters()["io"]["rx_errors"] > 0


@pytest.mark.usefixtures("wires")
@pytest.mark.parametrize("backend", ["rust", "python"])
def test_loop_frame_whose_offload_cannot_be_told_is_counted_and_does_not_end_it(backend: str) -> None:
    """
    A virtual machine may leave the fragmentation of a datagram to its card. No offload header tells of that: the
    kernel fails the receive, once, and with a ring drops what comes until the loop gives the ring up. Then frames are
    processed as ever (rule 12.2, frames over the MTU).
    """
    with contextlib.ExitStack() as stack, inside(ROUTER):
        machine = stack.enter_context(open_tap("tap0"))
        port = stack.enter_context(contextlib.closing(sockets.open_packet_socket("tap0")))
        fact = sockets.read_interface("tap0")
        data_path = lb.backends.load(backend).DataPath(16, bytes(16), 1)
        data_path.publish(complete_snapshot(1, 1, (Interface("tap0", fact.mac, fact.mtu),), (), ()))
        notify_fd = os.eventfd(0)
        stack.callback(os.close, notify_fd)
        data_path.attach(attached([port.fileno()]), notify_fd)
        stack.callback(data_path.detach)
        frame = fact.mac + bytes.fromhex("020000000002") + tagged_request()
        unfinished = frames.OFFLOAD_HEADER.pack(frames.NEEDS_CSUM, GSO_UDP, 42, 1400, 34, 6)
        machine.write(unfinished + frame + bytes(4000))
        counters = wait_for_processed(data_path, 1, lambda: machine.write(bytes(frames.OFFLOAD_HEADER.size) + frame))
        more = wait_for_processed(
            data_path, counters["rx_packets"] + 5, lambda: machine.write(bytes(frames.OFFLOAD_HEADER.size) + frame)
        )
    assert counters["io"]["rx_errors"] == more["io"]["rx_errors"] == 1
    assert more["verdicts"] == {"drop.transit": more["rx_packets"]}


@contextlib.contextmanager
def open_tap(name: str) -> Iterator[io.FileIO]:
    """Make a tap interface for the block; what is written to it comes in there."""
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("this machine has no /dev/net/tun")
    with Path("/dev/net/tun").open("r+b", buffering=0) as machine:
        fcntl.ioctl(machine, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        run("ip", "-n", ROUTER, "link", "set", name, "up")
        yield machine


def wait_for_processed(data_path: DataPath, packets: int, send: Callable[[], object]) -> dict[str, Any]:
    """Send repeatedly; return the counters once a number of packets were processed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        send()
        counters = data_path.counters()
        if counters["rx_packets"] >= packets:
            return counters
        time.sleep(0.01)
    raise AssertionError(f"not {packets} packets within {DEADLINE_S} s")


@pytest.mark.usefixtures("wires")
def test_open_packet_socket_on_interface_that_is_down_says_how_to_fix_it() -> None:
    run("ip", "-n", ROUTER, "link", "set", "eth1", "down")
    try:
        with inside(ROUTER), pytest.raises(InterfaceError, match="eth1 is down: `ip link set eth1 up`"):
            sockets.open_packet_socket("eth1")
    finally:
        run("ip", "-n", ROUTER, "link", "set", "eth1", "up")


@pytest.mark.usefixtures("wires")
def test_claim_interface_twice_is_refused_until_released() -> None:
    with inside(ROUTER):
        claim = sockets.claim_interface("eth0")
        with contextlib.closing(claim), pytest.raises(InterfaceError, match="another balancer runs on eth0"):
            sockets.claim_interface("eth0")
        sockets.claim_interface("eth0").close()


@pytest.mark.usefixtures("wires")
def test_claim_interface_of_same_name_elsewhere_is_free() -> None:
    """The claim is one of an interface, not of a name."""
    with inside(ROUTER):
        ours: Any = sockets.claim_interface("eth0")
    with contextlib.closing(ours), inside(CLIENT):
        sockets.claim_interface("eth0").close()
