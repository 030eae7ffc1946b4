"""Traffic between real hosts through a real `lb run`: both backends, both link modes."""

from __future__ import annotations

import hashlib
import json
import selectors
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from realhosts import (
    CLOSED_PORT,
    DEADLINE_S,
    ECHO_PORT,
    PIPE_PORT,
    UDP_PORT,
    WEB_PORT,
    Capture,
    RunningBalancer,
    connect,
    echo_once,
    listen,
    receive_exactly,
    spawn_lb,
    wait_until,
)

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP6

TRANSFER_BYTES = 50_000_000
PARALLEL = 300
ICMP_ECHO_REQUEST = bytes([8, 0, 0xF7, 0xFE, 0, 1, 0, 0])
BOTH_FAMILIES = pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])


@BOTH_FAMILIES
def test_echo_through_vip_returns_greeting(hosts: Testbed, balancer: RunningBalancer, vip: object) -> None:
    """What a client sends to the VIP comes back from the server (rule 8, flows)."""
    assert echo_once(hosts, "client1", vip=vip) == b"greeting"


def test_echo_example_through_vip_prints_greeting(hosts: Testbed, balancer: RunningBalancer) -> None:
    """The example client prints its greeting and ends with 0."""
    script = Path(__file__).parents[2] / "examples" / "echo_client.py"
    client = hosts.spawn("client2", "example", ["python3", str(script), "--message", "hello there"], stdout=-1)
    assert client.communicate(timeout=DEADLINE_S)[0] == b"hello there\n"
    assert client.returncode == 0


@BOTH_FAMILIES
def test_udp_echo_through_vip_returns_datagrams(hosts: Testbed, balancer: RunningBalancer, vip: object) -> None:
    """Datagrams of one flow go to one server and come back from the VIP (rule 8, flows)."""
    with hosts.socket("client1", socket.AF_INET6 if vip is VIP6 else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE_S)
        client.connect((str(vip), UDP_PORT))
        for size in (1, 100, 1400):
            client.send(bytes(size))
            assert client.recv(2000) == bytes(size)


@pytest.mark.parametrize("direction", ["forward", "reply"])
def test_transfer_50_megabytes_hashes_equal(hosts: Testbed, balancer: RunningBalancer, direction: str) -> None:
    """A long stream arrives byte-equal, merged and cut frames included (rule 12.2, frames over the MTU)."""
    block = hashlib.sha256(b"seed").digest() * 31250
    assert len(block) * 50 == TRANSFER_BYTES
    with (
        listen(hosts, "server1") as listener,
        connect(hosts, "client1", PIPE_PORT) as client,
        listener.accept()[0] as server,
    ):
        sender, receiver = (client, server) if direction == "forward" else (server, client)
        thread = threading.Thread(target=_send_blocks, args=(sender, block, TRANSFER_BYTES // len(block)))
        thread.start()
        receiver.settimeout(DEADLINE_S)
        received = hashlib.sha256()
        size = 0
        while data := receiver.recv(1 << 20):
            received.update(data)
            size += len(data)
        thread.join()
    assert size == TRANSFER_BYTES
    assert received.digest() == hashlib.sha256(block * (TRANSFER_BYTES // len(block))).digest()


def _send_blocks(connection: socket.socket, block: bytes, times: int) -> None:
    for _ in range(times):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)


def test_connections_300_parallel_all_answered_by_three_servers(hosts: Testbed, balancer: RunningBalancer) -> None:
    """Connections open at the same time each get their own flow, spread evenly by round robin."""
    before = balancer.counters()["servers"]
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for index in range(PARALLEL):
            client = stack.enter_context(hosts.socket(f"client{index % 5 + 1}"))
            client.setblocking(False)
            client.connect_ex((str(VIP), WEB_PORT))
            selector.register(client, selectors.EVENT_WRITE)
        open_clients = _connected(selector)
        assert len(open_clients) == PARALLEL
        # Only now, with all of them open, does each ask for the page.
        answers = [_get_page(client) for client in open_clients]
    assert set(answers) == {b"200"}
    after = balancer.counters()["servers"]
    created = {
        name: after[f"web/{name}"]["flows_created"] - before[f"web/{name}"]["flows_created"] for name in _SERVERS
    }
    assert created == dict.fromkeys(_SERVERS, PARALLEL // 3)


_SERVERS = ("server1", "server2", "server3")


def _connected(selector: selectors.DefaultSelector) -> list[socket.socket]:
    done = []
    while selector.get_map():
        ready = selector.select(DEADLINE_S)
        assert ready, f"{len(selector.get_map())} connections still not open"
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            assert key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            selector.unregister(key.fileobj)
            done.append(key.fileobj)
    return done


def _get_page(client: socket.socket) -> bytes:
    client.settimeout(DEADLINE_S)
    client.sendall(b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
    return receive_exactly(client, 1 << 16).split(b" ", 2)[1]


@BOTH_FAMILIES
def test_connection_refused_by_server_reaches_client(hosts: Testbed, balancer: RunningBalancer, vip: object) -> None:
    """The server's RST reaches the client as a refusal, not as silence (rule 8.2, reset acceptance)."""
    with pytest.raises(ConnectionRefusedError):
        connect(hosts, "client1", CLOSED_PORT, vip)


@BOTH_FAMILIES
def test_ping_to_vip_is_dropped(hosts: Testbed, balancer: RunningBalancer, vip: object) -> None:
    """An echo request to a VIP is counted and not answered (rule 7.A, to a VIP)."""
    before = balancer.verdict("drop.vip_echo")
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if vip is VIP6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    with hosts.socket("client3", family, socket.SOCK_RAW, protocol) as pinger:
        if vip is VIP6:
            # type 128 = echo request; only echo replies (129) are let in. The kernel fills in the checksum.
            allowed = bytearray(b"\xff" * 32)
            struct.pack_into("=I", allowed, 16, 0xFFFFFFFF ^ (1 << 1))
            pinger.setsockopt(socket.IPPROTO_ICMPV6, 1, bytes(allowed))
        pinger.sendto(b"\x80" + ICMP_ECHO_REQUEST[1:] if vip is VIP6 else ICMP_ECHO_REQUEST, (str(vip), 0))
        wait_until(lambda: balancer.verdict("drop.vip_echo") > before, "the ping is counted as dropped")
        # A request answered would have been answered before it was counted.
        pinger.setblocking(False)
        with pytest.raises(BlockingIOError):
            pinger.recv(2000)


def test_port_of_no_service_is_dropped(hosts: Testbed, balancer: RunningBalancer) -> None:
    """A connection to another port of the VIP gets no answer and is counted (rule 7.A, to a VIP)."""
    before = balancer.verdict("drop.no_service")
    with hosts.socket("client4") as client:
        client.setblocking(False)
        client.connect_ex((str(VIP), 4))
        wait_until(lambda: balancer.verdict("drop.no_service") > before, "the SYN is counted as dropped")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_router_stopped_echo_stops_and_starts_again(hosts: Testbed, balancer: RunningBalancer) -> None:
    """Routing works only while `lb run` runs, and again after a new start."""
    assert echo_once(hosts, "client1") == b"greeting"
    assert balancer.stop() == 0
    try:
        with pytest.raises(TimeoutError):
            echo_once(hosts, "client1", timeout_s=0.7)
    finally:
        balancer.start()
    assert echo_once(hosts, "client1") == b"greeting"


def test_run_second_on_same_interface_refuses_with_4(hosts: Testbed, balancer: RunningBalancer) -> None:
    """Two balancers on one interface would answer twice: the second says so and ends."""
    control = str(hosts.directory / "second.sock")
    second = spawn_lb(
        hosts, "second", "run", "-c", str(balancer.config), "--backend", balancer.backend, "--control", control
    )
    output, errors = second.communicate(timeout=DEADLINE_S)
    assert (second.returncode, output) == (4, b"")
    assert b"eth0" in errors
    assert len(errors.splitlines()) == 1
    assert echo_once(hosts, "client1") == b"greeting"


def test_replay_of_capture_gives_live_verdicts(hosts: Testbed, balancer: RunningBalancer) -> None:
    """A capture of what came in, replayed offline, ends as it did live: verdicts, reasons, flows per server."""
    balancer.restart()
    capture, before = _capture_from_now(hosts, balancer)
    _mixed_traffic(hosts)
    after = _stop_when_complete(capture, balancer, before)
    path = hosts.directory / "replay.pcap"
    capture.write(path)
    router = hosts.topology.host(ROUTER).interfaces[0]
    arguments = ["-c", str(balancer.config), "--backend", balancer.backend, "-o", "json", "--mac", router.mac]
    for address in hosts.topology.interface_addresses(hosts.topology.host(ROUTER), router):
        arguments += ["--address", str(address)]
    replay = spawn_lb(hosts, "replay", "replay", str(path), *arguments, "--mtu", "1500")
    output, errors = replay.communicate(timeout=60)
    assert replay.returncode == 0, errors
    lines = [json.loads(line) for line in output.splitlines()]
    assert len(lines) == after["rx_packets"] - before["rx_packets"]
    assert _replayed_verdicts(lines) == _difference(after["verdicts"], before["verdicts"])
    assert _replayed_flows(lines) == {
        name: server["flows_created"] for name, server in after["servers"].items() if server["flows_created"]
    }


def _capture_from_now(hosts: Testbed, balancer: RunningBalancer) -> tuple[Capture, dict[str, object]]:
    """Start a capture with the counters of its very beginning: no frame came in between."""
    while True:
        before = balancer.counters()
        capture = Capture(hosts, ROUTER)
        capture.drain()
        if balancer.counters()["rx_packets"] == before["rx_packets"] and not capture.frames:
            return capture, before
        capture.stop()


def _stop_when_complete(capture: Capture, balancer: RunningBalancer, before: dict[str, object]) -> dict[str, object]:
    """End a capture at a moment when it and the balancer have seen the same frames; return the counters of it."""

    def same() -> dict[str, object] | None:
        after = balancer.counters()
        seen = capture.drain()
        return after if after["rx_packets"] - int(str(before["rx_packets"])) == seen else None

    after = wait_until(same, "capture and balancer have seen the same frames")
    capture.stop()
    assert isinstance(after, dict)
    return after


def _mixed_traffic(hosts: Testbed) -> None:
    for vip in (VIP, VIP6):
        assert echo_once(hosts, "client1", vip=vip) == b"greeting"
        for index in range(4):
            with connect(hosts, f"client{index + 1}", WEB_PORT, vip) as client:
                assert _get_page(client) == b"200"
        with pytest.raises(ConnectionRefusedError):
            connect(hosts, "client2", CLOSED_PORT, vip)
    with connect(hosts, "client5", WEB_PORT) as client:
        client.sendall(b"GET /1MB HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        assert len(receive_exactly(client, 2_000_000)) > 1_000_000
    with hosts.socket("client4", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinger:
        pinger.sendto(ICMP_ECHO_REQUEST, (str(VIP), 0))
        pinger.sendto(ICMP_ECHO_REQUEST, (str(hosts.topology.host("server2").address), 0))


def _replayed_verdicts(lines: list[dict[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in lines:
        name = line["verdict"] if line["reason"] is None else f"{line['verdict']}.{line['reason']}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def _replayed_flows(lines: list[dict[str, str]]) -> dict[str, int]:
    """Count the flows a replay created, by SERVICE/SERVER: each is another client address and port."""
    flows = {
        (f"{line['service']}/{line['server']}", line["source"], line["source_port"])
        for line in lines
        if line["direction"] == "forward" and line["verdict"] == "forward" and line["protocol"] in ("TCP", "UDP")
    }
    return dict(Counter(name for name, _, _ in flows))


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    # Live, the first packet to a server may wait for its MAC; it is counted again when it leaves.
    names = (name for name in after if not name.startswith("hold."))
    counts = {name: after[name] - before.get(name, 0) for name in names}
    return {name: count for name, count in counts.items() if count}


# With offloads on, frames carry unfinished checksums by design.
@pytest.mark.parametrize("link_mode", ["off"], indirect=True, ids=["offloads-off"], scope="session")
def test_forwarded_checksums_without_offloads_all_right(
    hosts: Testbed, balancer: RunningBalancer, link_mode: str
) -> None:
    """Every packet that servers and clients get has right IP and L4 checksums (rule 8.20, translation)."""
    from scapy.layers.l2 import Ether

    captures = [Capture(hosts, host) for host in ("client1", "server1")]
    for vip in (VIP, VIP6):
        assert echo_once(hosts, "client1", ECHO_PORT, vip) == b"greeting"
        with connect(hosts, "client1", WEB_PORT, vip) as client:
            assert _get_page(client) == b"200"
        with hosts.socket("client1", socket.AF_INET6 if vip is VIP6 else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE_S)
            client.connect((str(vip), UDP_PORT))
            client.send(b"odd")
            assert client.recv(10) == b"odd"
    router = bytes.fromhex(hosts.topology.host(ROUTER).interfaces[0].mac.replace(":", ""))
    frames = [frame for capture in captures for frame in capture.stop() if frame[6:12] == router]
    packets = [frame for frame in frames if frame[12:14] in (b"\x08\x00", b"\x86\xdd")]
    assert len(packets) > 20
    assert [frame.hex() for frame in packets if _with_fresh_checksums(Ether(frame)) != frame] == []


def _with_fresh_checksums(packet: object) -> bytes:
    from scapy.layers.inet import ICMP, IP, TCP, UDP

    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:  # type: ignore[operator]
            packet[layer].chksum = None  # type: ignore[index]
    return bytes(packet)  # type: ignore[call-overload]
