"""
What the benches work on: real frames of many flows, a snapshot with any number of servers, and how to measure.

A flow has a number; number and client (address, port) follow from each other, so that ten million flows need no list.
Addresses: clients 198.18.2.x, the VIP 198.18.1.100, servers 198.19.x.y; the same shape under 2001:2::/48 for IPv6. All
hosts are on the link of the only interface, and servers have their MAC in the configuration: no packet ever waits.
Nothing here is timed but the action that `measure` is given.
"""

from __future__ import annotations

import itertools
import random
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import packets as p
from lb.backends.base import Result
from lb.model.snapshot import AskFunction, Interface, NextHops, Plan, Route, Selector, Server, Snapshot
from snapshots import complete_snapshot, make_service

SEED = 1
BATCH = 1000  # operations per round, unless a bench says otherwise
BUDGET_S = 0.6  # time for the rounds of one bench
MOST_ROUNDS, FEWEST_ROUNDS = 2000, 5
SECOND_NS = 10**9
UDP_TIMEOUT_NS = 300 * SECOND_NS
EXPIRED_PER_TICK = 64

ROUTER_MAC = bytes.fromhex("aaaaaa000001")
CLIENT_MAC = bytes.fromhex("aaaaaa000021")
VIP = {4: ip_address("198.18.1.100"), 6: ip_address("2001:2:0:1::100")}
FIRST_CLIENT = {4: ip_address("198.18.2.1"), 6: ip_address("2001:2:0:2::1")}
FIRST_SERVER = {4: ip_address("198.19.0.1"), 6: ip_address("2001:2:0:3::1")}
PORT = {"udp": 53, "tcp": 80}
SERVER_PORT = {"udp": 5353, "tcp": 8080}
PORTS_PER_CLIENT = 60_000
FIRST_PORT = 1024
FRAME_BYTES = 60  # the shortest Ethernet frame, without FCS; IPv6 needs a little more
UDP_HEADERS = {4: 42, 6: 62}
TCP_HEADERS = {4: 54, 6: 74}


def client_of(number: int, version: int = 4) -> tuple[bytes, int]:
    """Return the client's packed address and its port."""
    host, port = divmod(number, PORTS_PER_CLIENT)
    return (FIRST_CLIENT[version] + host).packed, FIRST_PORT + port


def server_mac(number: int) -> bytes:
    """Return the MAC of a server."""
    return b"\xaa\xbb" + number.to_bytes(4, "big")


def snapshot(
    selector: Selector = "counter", servers: int = 3, version: int = 4, ask: AskFunction | None = None
) -> Snapshot:
    """Compile one UDP and one TCP service, each with its own servers `udp0`, `udp1`, ... `tcp0`, ..."""
    made: list[Server] = []
    services = []
    for service, protocol in enumerate(("udp", "tcp")):
        slots = range(service * servers, (service + 1) * servers)
        for number, slot in enumerate(slots):
            address = FIRST_SERVER[version] + number
            name, mac = f"{protocol}{number}", server_mac(number)
            made.append(Server(name, service, slot, address, SERVER_PORT[protocol], 1, mac))
        plan = Plan(selector, tuple(slots))
        services.append(make_service(protocol, VIP[version], PORT[protocol], protocol, plan))
    addresses = (ip_interface("198.18.1.1/15"), ip_interface("2001:2:0:1::1/48"))
    interfaces = (Interface("eth0", ROUTER_MAC, 1500, addresses),)
    return complete_snapshot(1, SEED, interfaces, tuple(services), tuple(made), ask=ask)


def data_path(module: Any, capacity: int, compiled: Snapshot) -> Any:
    """Make a backend's data path that works from a snapshot."""
    path = module.DataPath(capacity, bytes(16), SEED)
    path.publish(compiled)
    path.set_next_hops(NextHops((Route(ip_network("198.18.0.0/15"), 0), Route(ip_network("2001:2::/48"), 0))))
    return path


def udp_frame(number: int, version: int = 4) -> bytes:
    """Make the frame of 60 bytes (IPv6: 62) that the client of a flow sends to the VIP."""
    client, port = client_of(number, version)
    vip = VIP[version].packed
    datagram = p.udp(client, vip, port, PORT["udp"], bytes(max(0, FRAME_BYTES - UDP_HEADERS[version])))
    packet = p.ip4(client, vip, p.UDP, datagram) if version == 4 else p.ip6(client, vip, p.UDP, datagram)
    return p.ether(ROUTER_MAC, CLIENT_MAC, packet)


def udp_frames_of_host(host: int, ports: Iterable[int]) -> Iterator[bytes]:
    """
    Make `udp_frame(number)` for many ports of one client, ten times as fast: only the port and the checksum change.

    Args:
        host: the client's number.
        ports: 0..59999 each.
    """
    model = udp_frame(host * PORTS_PER_CLIENT)
    start = UDP_HEADERS[4] - 8
    before, after = model[:start], model[UDP_HEADERS[4] :]
    length = 8 + len(after)
    # What the checksum covers apart from the source port, folded by end-around carry (remainder by 0xFFFF).
    rest = 0xFFFF - int.from_bytes(model[start + 6 : start + 8], "big") - FIRST_PORT
    pack, to_port = struct.Struct("!HHHH").pack, PORT["udp"]
    for port in ports:
        source = FIRST_PORT + port
        # 0xFFFF - remainder is never 0, as UDP wants it: 0 would mean "no checksum".
        yield before + pack(source, to_port, length, 0xFFFF - (rest + source) % 0xFFFF) + after


def udp_frames(numbers: Iterable[int]) -> list[bytes]:
    """Make `udp_frame` of many flows, in the order given."""
    by_host = itertools.groupby(numbers, lambda number: number // PORTS_PER_CLIENT)
    chunks = (udp_frames_of_host(host, (number % PORTS_PER_CLIENT for number in members)) for host, members in by_host)
    return list(itertools.chain.from_iterable(chunks))


def open_udp_flows(path: Any, flows: int) -> None:
    """Create the flows 0..flows-1 at instant 1."""
    for start in range(0, flows, PORTS_PER_CLIENT):
        path.process_many(udp_frames(range(start, min(flows, start + PORTS_PER_CLIENT))), 0, 1)
    created = path.counters()["events"]["flow_created"]
    assert created == flows, f"{created} flows were created, not {flows}"


def tcp_frame(number: int, direction: str, flags: int, server: int, version: int) -> bytes:
    """
    Make a TCP segment of a flow in a frame of 60 bytes (IPv6: 74).

    Args:
        number: the flow's.
        direction: `forward` from the client to the VIP, `reply` from the server to the client.
        flags: TCP flags; sequence numbers follow from them.
        server: the number of the flow's server.
        version: 4 or 6.
    """
    client, port = client_of(number, version)
    ends = (client, VIP[version].packed, port, PORT["tcp"])
    macs = (ROUTER_MAC, CLIENT_MAC)
    if direction == "reply":
        ends = ((FIRST_SERVER[version] + server).packed, client, SERVER_PORT["tcp"], port)
        macs = (ROUTER_MAC, server_mac(server))
    opening = bool(flags & p.SYN)
    data = b"" if opening else bytes(max(0, FRAME_BYTES - TCP_HEADERS[version]))
    segment = p.tcp(*ends, 1000 if opening else 1001, 1001 if flags & p.ACK else 0, flags, data)
    packet = p.ip4(*ends[:2], p.TCP, segment) if version == 4 else p.ip6(*ends[:2], p.TCP, segment)
    return p.ether(*macs, packet)


def established_frames(path: Any, flows: int, version: int) -> list[bytes]:
    """Open TCP connections with three packets each; return one data packet of each, every other one from the server."""
    opened = path.process_many([tcp_frame(n, "forward", p.SYN, 0, version) for n in range(flows)], 0, 1)
    servers = [int(result.server.removeprefix("tcp")) for result in opened]
    for direction, flags in (("reply", p.SYN | p.ACK), ("forward", p.ACK)):
        frames = [tcp_frame(n, direction, flags, server, version) for n, server in enumerate(servers)]
        check_forwarded(path.process_many(frames, 0, 1))
    assert {flow.state for flow in path.flows(1)} == {"established"}
    directions = itertools.cycle(("forward", "reply"))
    return [
        tcp_frame(n, direction, p.ACK | p.PSH, server, version)
        for (n, server), direction in zip(enumerate(servers), directions, strict=False)
    ]


def shuffled(things: Sequence[Any], count: int | None = None) -> list[Any]:
    """Return `count` things (all) in pseudo-random order, the same every time."""
    return random.Random(SEED).sample(things, len(things) if count is None else count)


def batches(things: Sequence[Any], size: int = BATCH) -> Iterator[list[Any]]:
    """Cut things into batches, again and again; a rest is left out."""
    whole = [list(things[at : at + size]) for at in range(0, len(things) - size + 1, size)]
    assert whole, f"{len(things)} do not fill one batch of {size}"
    return itertools.cycle(whole)


def expire_all(path: Any, now_ns: int, flows: int) -> None:
    """Let every UDP flow time out, 64 with each tick."""
    for _ in range(flows // EXPIRED_PER_TICK + 1):
        path.tick(now_ns)


def call_each(function: Callable[..., Any]) -> Callable[[list[Any]], None]:
    """Make an action that calls a function once per tuple of arguments, with the least overhead Python has (20 ns)."""

    def call(rows: list[Any]) -> None:
        deque(itertools.starmap(function, rows), maxlen=0)

    return call


def check_forwarded(results: Sequence[Result]) -> None:
    """Assert that every frame was forwarded as one frame whose checksums are right."""
    for result in results:
        assert (result.verdict, result.reason) == ("forward", None)
        ((_, frame),) = result.out
        seen = p.look(frame)
        assert seen is not None
        assert seen.header_ok
        assert p.l4_right(seen)


def measure(
    benchmark: Any,
    section: str,
    stage: str,
    action: Callable[[list[Any]], Any],
    work: Iterator[list[Any]],
    before_each: Callable[[], Any] | None = None,
    unit: str = "packet",
) -> None:
    """
    Time an action on one batch after another and state the time per operation.

    The number of rounds follows from one round that does not count, so that every bench takes about as long. What the
    action returns is freed within the measured time: making and freeing results is part of what a caller pays for.

    Args:
        benchmark: the fixture of pytest-benchmark.
        section: where the report lists it.
        stage: what is measured; both backends' benches share it.
        action: does the work on one batch.
        work: endless batches, all of one length.
        before_each: prepares the next round, outside the measured time.
        unit: what one operation is.
    """

    def prepare() -> tuple[tuple[list[Any]], dict[str, Any]]:
        if before_each:
            before_each()
        return (next(work),), {}

    def timed(batch: list[Any]) -> None:
        action(batch)

    (batch,), _ = prepare()
    start = time.perf_counter()
    timed(batch)
    elapsed = max(time.perf_counter() - start, 1e-9)
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(BUDGET_S / elapsed)))
    benchmark.group = f"{section}: {stage}, per {unit}"
    benchmark.extra_info.update(section=section, stage=stage, unit=unit, operations_per_round=len(batch))
    benchmark.pedantic(timed, setup=prepare, rounds=rounds, iterations=1, warmup_rounds=1)
    if benchmark.stats:
        # Rounds become operations here, before anything is computed from them: table and JSON show time per operation.
        data = benchmark.stats.stats.data
        data[:] = [duration / len(batch) for duration in data]
