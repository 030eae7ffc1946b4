"""
How long packets are held up: the longest pause of the packet loop under each act of control, beside a control run.

    sudo .venv/bin/python benches/pauses.py [--backend rust] [--act NAME ...] [--rounds N] [--load PPS] [--real-time]

A network namespace of its own, one packet loop on two veth pairs. A probe (a process of its own, a core for it helps)
sends a datagram to a service every 50 us and takes back what the loop forwards, with the kernel's time of arrival: its
latency tells how long the loop looked away, whatever the loop says of itself, so that versions without
`lb_loop_pause_seconds` can be measured too. Each act is carried out in rounds; before each there is a control run
without it, of the same length: what the machine itself holds up, both have. `--load` sends as many 60-byte packets a
second through the loop all the while, out by its other interface. `--real-time` lets the loop's thread run before
those of other processes (SCHED_FIFO): on as many cores as there are senders and loops, what is left is the loop's own.
Where the counters have the histograms of pauses,
what the loop says stands beside the probe's figures: the highest bucket that got a value, how many pauses were over
200 us, and the highest bucket of the commands of the control side, which the machine's own hold-ups seldom meet.

Acts: `publication` of 10 000 servers, and of their 10 000 neighbours; `least`, the same with the selector `least`;
`listing`, a page of 1 000 000 flows; `dump`, all of these as rows; `load` of as many, a part in each
round; `reset` of a server with 100 000 flows; `expiry` of 100 000 flows at one instant;
`full`, another interface whose queue is full.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import secrets
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import lb.backends
from lb._core import BUILD_PROFILE, checksum, generate
from lb.backends.base import AttachedInterface, DataPath
from lb.control.kept_names import Names, translations
from lb.model.snapshot import Interface, Neighbour, NextHops, Plan, Route, Server, Snapshot
from lb.net.sockets import open_packet_socket, read_interface
from snapshots import complete_snapshot, make_service, make_timeouts

ACTS = ("publication", "least", "listing", "dump", "load", "reset", "expiry", "full")
PROBE_GAP_NS = 50_000
# Of a control run, and at least of a round.
RUN_S = 2.0
FLOWS_LISTED, FLOWS_ENDING, SERVERS = 1_000_000, 100_000, 10_000
ROW_BYTES, BLOCK_ROWS = 104, 1 << 14
CLONE_NEWNET = 0x40000000
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("=qq")
STAMP = struct.Struct("=QQ")
HEADERS_BYTES = 14 + 20 + 8
HOUR_NS, SECOND_NS = 3600 * 10**9, 10**9
LONG = make_timeouts(half_open_ns=HOUR_NS, udp_ns=HOUR_NS)
# One batch of `reset_flows` of versions that walk the table for each.
OLD_RESET_BATCH, ALL_FLOWS = 4096, 2**32 - 1

VIP = IPv4Address("198.18.0.100")
CLIENT, FAR_CLIENT = IPv4Address("198.18.0.21"), IPv4Address("198.19.128.21")
PROBED, FAR = IPv4Address("198.18.0.31"), IPv4Address("198.19.0.31")
CLIENT_MAC, SERVER_MAC = bytes.fromhex("020000000021"), bytes.fromhex("020000000031")
PROBE_PORT, FULL_PORT, LOAD_PORT = 7, 8, 80
# Pauses beyond this are counted: what no act of control may take.
LONGEST_NS = 200_000
LOAD_FLOWS = 1000


class Latencies(NamedTuple):
    """What a probe saw. Microseconds; `lost`: frames of `sent` that did not come back."""

    sent: int
    lost: int
    median_us: float
    p999_us: float
    max_us: float


class Run(NamedTuple):
    """
    A control run, or a round of an act: what the probe saw; what the loop says of its pauses, the highest bucket and
    how many were over 200 us, and of commands the highest bucket; how long the act took.
    """

    seen: Latencies
    bucket: str
    long: int
    commands: str
    act_s: float


def highest(new: dict[str, int]) -> str:
    """Return the name of the highest bucket that got a value."""
    used = [name for name, count in new.items() if count]
    return used[-1] if used else "-"


def command(*words: str) -> None:
    """Run a command, or fail with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Be in a new network namespace with two veth pairs, a0-b0 and a1-b1. It goes with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise SystemExit(f"a network namespace: {os.strerror(ctypes.get_errno())}; run as root")
    for pair in range(2):
        command("ip", "link", "add", f"a{pair}", "type", "veth", "peer", "name", f"b{pair}")
        for end in (f"a{pair}", f"b{pair}"):
            # No neighbour discovery of the hosts: only the probe's frames are there.
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
            command("ip", "link", "set", end, "up")
    yield


def datagram(mac: bytes, source: IPv4Address, port: int, service_port: int, payload: bytes) -> bytes:
    """Make a datagram to the VIP, without a UDP checksum."""
    udp = struct.pack("!HHHH", port, service_port, 8 + len(payload), 0) + payload
    return ip_frame(mac, source, 17, udp)


def syn(mac: bytes, source: IPv4Address, port: int) -> bytes:
    """Make a SYN to the VIP; its TCP checksum, which is not verified here, is 0."""
    return ip_frame(mac, source, 6, struct.pack("!HHIIBBHHH", port, LOAD_PORT, 1, 0, 5 << 4, 2, 8000, 0, 0))


def ip_frame(mac: bytes, source: IPv4Address, protocol: int, data: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, protocol, 0) + source.packed + VIP.packed
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return mac + CLIENT_MAC + b"\x08\x00" + header + data


def probe(fd: int, frame: bytes) -> None:
    """Send the frame every 50 us, take it back, until stdin ends; print what was seen as JSON."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    message, latencies, number = bytearray(frame), [], 0
    due = time.monotonic_ns()
    while not select.select([0], [], [], 0)[0]:
        if time.monotonic_ns() >= due:
            due = max(due + PROBE_GAP_NS, time.monotonic_ns())
            number += 1
            STAMP.pack_into(message, HEADERS_BYTES, number, time.clock_gettime_ns(time.CLOCK_REALTIME))
            with contextlib.suppress(BlockingIOError):
                sock.send(message)
        take_back(sock, latencies)
    # What is on its way still comes back, or is lost.
    while select.select([sock], [], [], 0.5)[0]:
        take_back(sock, latencies)
    ordered = sorted(latencies) or [0]
    median, p999 = statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 999 // 1000)]
    seen = (number, number - len(latencies), median / 1e3, p999 / 1e3, ordered[-1] / 1e3)
    print(json.dumps(seen), flush=True)


def take_back(sock: socket.socket, latencies: list[int]) -> None:
    """Note the latency of every frame that has come back: from our clock to the kernel's time of its arrival."""
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, control, _, _ = sock.recvmsg(2048, socket.CMSG_SPACE(TIMESPEC.size))
            is_probe = len(frame) >= HEADERS_BYTES + STAMP.size and frame[:6] == SERVER_MAC
            if is_probe and control:
                seconds, nanoseconds = TIMESPEC.unpack(control[0][2][: TIMESPEC.size])
                _, sent_ns = STAMP.unpack_from(frame, HEADERS_BYTES)
                latencies.append(seconds * SECOND_NS + nanoseconds - sent_ns)


@dataclass
class Stage:
    """A running loop, and all that an act needs."""

    path: DataPath
    snapshot: Snapshot
    next_hops: NextHops
    scale: float
    probe_socket: socket.socket
    frame: bytes
    load_pps: float
    rounds: int

    @property
    def measures_itself(self) -> bool:
        """Whether the version has the histogram of pauses."""
        return "loop" in self.path.counters()

    def run(self, act: Callable[[], None]) -> Run:
        """Carry an act out while the probe looks on."""
        before = self._buckets()
        words = [sys.executable, __file__, "--probe", str(self.probe_socket.fileno()), self.frame.hex()]
        with (
            self._load(),
            subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self.probe_socket.fileno()]
            ) as process,
        ):
            began = self._wait_for_probe()
            act()
            act_s = time.monotonic() - began
            time.sleep(max(0.0, RUN_S - act_s))
            output, _ = process.communicate(b"\n")
        after = self._buckets()
        new = {kind: {name: after[kind][name] - old for name, old in before[kind].items()} for kind in before}
        long = sum(count for name, count in new["pauses"].items() if float(name) > LONGEST_NS)
        seen = Latencies(*json.loads(output))
        return Run(seen, highest(new["pauses"]), long, highest(new["control"]), act_s)

    @contextlib.contextmanager
    def _load(self) -> Iterator[None]:
        """Send packets through the loop, out by its other interface."""
        if not self.load_pps:
            yield
            return
        frame = datagram(self.frame[:6], CLIENT, 2000, FULL_PORT, bytes(18))
        with open_packet_socket("b0") as sock:
            words = [sys.executable, __file__, "--flood", str(sock.fileno()), frame.hex(), str(self.load_pps)]
            with subprocess.Popen(words, pass_fds=[sock.fileno()]) as process:
                try:
                    yield
                finally:
                    process.kill()

    def _wait_for_probe(self) -> float:
        """Wait until its frames come."""
        start, deadline = self.path.counters()["rx_packets"], time.monotonic() + 30
        while self.path.counters()["rx_packets"] < start + 100:
            if time.monotonic() > deadline:
                raise SystemExit("the probe's frames do not reach the loop")
            time.sleep(0.05)
        return time.monotonic()

    def _buckets(self) -> dict[str, dict[str, int]]:
        loop = self.path.counters().get("loop", {})
        return {kind: dict(loop.get(kind, {}).get("buckets", {})) for kind in ("pauses", "control")}


def interfaces() -> tuple[Interface, ...]:
    addresses = (IPv4Interface("198.18.0.1/16"), IPv4Interface("198.19.0.1/16"))
    facts = [read_interface(f"a{pair}") for pair in range(2)]
    return tuple(Interface(f"a{n}", fact.mac, fact.mtu, (addresses[n],)) for n, fact in enumerate(facts))


def make_snapshot(load_servers: int, selector: str) -> Snapshot:
    """The probed service, the one behind the full interface, and one with many servers, all but the first far."""
    services = (
        make_service("probed", VIP, PROBE_PORT, "udp", Plan("counter", (0,))),
        make_service("full", VIP, FULL_PORT, "udp", Plan("counter", (1,))),
        make_service("load", VIP, LOAD_PORT, "tcp", Plan(selector, tuple(range(3, 3 + load_servers)))),
        make_service("ending", VIP, LOAD_PORT, "udp", Plan("counter", (2,))),
    )
    # Ids of services: 0 probed, 1 full, 2 load, 3 ending; of the last and the second the server is the same machine.
    near = Server("near", 0, 0, PROBED, 7, mac=SERVER_MAC)
    far = tuple(Server("far", service, number, FAR, 7 + number, mac=SERVER_MAC) for service, number in ((1, 1), (3, 2)))
    many = tuple(
        Server(f"server{n}", 2, 3 + n, IPv4Address(int(FAR) + 1 + n), 80, mac=SERVER_MAC) for n in range(load_servers)
    )
    return complete_snapshot(1, 1, interfaces(), services, (near, *far, *many), timeouts=LONG)


@contextlib.contextmanager
def stage(act: str, rounds: int, options: argparse.Namespace) -> Iterator[Stage]:
    """Make the flows that an act needs, and start the loop."""
    scale = options.scale
    servers = round(SERVERS * scale) if act in ("publication", "least") else max(rounds, 1)
    snapshot = make_snapshot(servers, "least" if act == "least" else "counter")
    routes = (Route(IPv4Network("198.18.0.0/16"), 0), Route(IPv4Network("198.19.0.0/16"), 1))
    far = (Neighbour(1, IPv4Address(int(FAR_CLIENT) + n), CLIENT_MAC) for n in range(servers))
    next_hops = NextHops(routes, (Neighbour(0, CLIENT, CLIENT_MAC), *far))
    counts = {"listing": FLOWS_LISTED, "dump": FLOWS_LISTED, "reset": FLOWS_ENDING * rounds, "expiry": FLOWS_ENDING}
    flows = round(counts.get(act, 0) * scale)
    capacity = round(FLOWS_LISTED * scale) if act == "load" else flows
    path: DataPath = lb.backends.load(options.backend).DataPath(capacity + 1024, secrets.token_bytes(16), 1)
    path.publish(snapshot)
    path.set_next_hops(next_hops)
    make_flows(path, flows, snapshot.interfaces[1].mac, act in ("dump", "expiry"))
    with contextlib.ExitStack() as opened:
        ports = [opened.enter_context(open_packet_socket(f"a{pair}")) for pair in range(2)]
        probe_socket = opened.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        probe_socket.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        probe_socket.bind(("b0", 0x0800))
        notify = os.eventfd(0, os.EFD_NONBLOCK)
        opened.callback(os.close, notify)
        others = set(Path("/proc/self/task").iterdir())
        path.attach([AttachedInterface(f"a{pair}", (port.fileno(),)) for pair, port in enumerate(ports)], notify)
        opened.callback(path.detach)
        if options.real_time:
            for task in set(Path("/proc/self/task").iterdir()) - others:
                os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(1))
        frame = datagram(snapshot.interfaces[0].mac, CLIENT, 1000, PROBE_PORT, bytes(STAMP.size))
        yield Stage(path, snapshot, next_hops, scale, probe_socket, frame, options.load, options.rounds)


def far_socket(number: int) -> tuple[IPv4Address, int]:
    """Return the address and port of a far client's flow."""
    return IPv4Address(int(FAR_CLIENT) + number // 60_000), 1 + number % 60_000


def make_flows(path: DataPath, count: int, mac: bytes, are_datagrams: bool) -> None:
    """Store flows of far clients, offline."""
    now_ns = time.monotonic_ns()
    for start in range(0, count, 1000):
        ends = [far_socket(number) for number in range(start, min(start + 1000, count))]
        frames = [datagram(mac, *end, LOAD_PORT, b"") if are_datagrams else syn(mac, *end) for end in ends]
        path.process_many(frames, 1, now_ns)
    assert path.counters()["table"]["entries"] == count


def publication(on: Stage, number: int) -> None:
    """Publish the world with another plan, then its routes and neighbours."""
    turned = on.snapshot.services[2]
    assert turned is not None
    slots = turned.plan.slots[number + 1 :] + turned.plan.slots[: number + 1]
    services = (
        *on.snapshot.services[:2],
        replace(turned, plan=replace(turned.plan, slots=slots)),
        on.snapshot.services[3],
    )
    on.path.publish(replace(on.snapshot, generation=2 + number, services=services))
    on.path.set_next_hops(on.next_hops)


def listing(on: Stage, number: int) -> None:
    """List a page."""
    total, rows = on.path.find_flows(time.monotonic_ns(), 100 * number, 100)
    assert (total >= FLOWS_LISTED * on.scale, len(rows)) == (True, 100)


def dump(on: Stage, number: int) -> None:
    """Copy all flows, as `lb flows dump` does."""
    del number
    count, place = 0, 0
    while place is not None:
        rows, place = on.path.copy_flows(place, time.monotonic_ns())
        count += len(rows) // ROW_BYTES
    assert count >= FLOWS_LISTED * on.scale


def load(on: Stage, number: int) -> None:
    """Take over a part of the flows, blocks as large as those of a file."""
    ids = translations(Names.of(on.snapshot, 0, 0), on.snapshot)
    row, _ = on.path.copy_flows(0, time.monotonic_ns())
    row, count = row[:ROW_BYTES], round(FLOWS_LISTED * on.scale) // on.rounds
    for start in range(number * count, (number + 1) * count, BLOCK_ROWS):
        ends = (far_socket(end) for end in range(start, min(start + BLOCK_ROWS, (number + 1) * count)))
        rows = b"".join(row_of(row, *end) for end in ends)
        on.path.load_flows(rows, ids.rows, ids.interfaces, time.monotonic_ns())


def row_of(row: bytes, address: IPv4Address, port: int) -> bytes:
    """Return a row with another client: two words of its IPv4-mapped address, high and low, then its port."""
    return row[:8] + struct.pack("=QH", 0xFFFF << 32 | int(address), port) + row[18:]


def reset(on: Stage, number: int) -> None:
    """Reset the flows of a server, as the daemon of each version does."""
    limit = ALL_FLOWS if on.measures_itself else OLD_RESET_BATCH
    while on.path.reset_flows(3 + number, limit, time.monotonic_ns()) == limit:
        pass
    assert on.path.counters()["servers"][f"load/server{number}"]["flows_active"] == 0


def expiry(on: Stage, number: int) -> None:
    """Let all flows end at one instant: their timeout becomes so short that they are due."""
    del number
    due = make_timeouts(half_open_ns=HOUR_NS, udp_ns=SECOND_NS // 10)
    on.path.publish(replace(on.snapshot, generation=2, timeouts=due))
    # Not a word to the loop for a second: it has to see to it by itself.
    time.sleep(1.0)
    left = on.path.counters()["servers"]["ending/far"]["flows_active"]
    print(f"flows left a second after they ended: {left}", file=sys.stderr)


def full(on: Stage, number: int) -> None:
    """Send to a server behind an interface that is too slow for it."""
    del number
    frame = datagram(on.snapshot.interfaces[1].mac, FAR_CLIENT, 2000, FULL_PORT, bytes(1400))
    with open_packet_socket("b1") as sock:
        generate(sock.fileno(), frame, 16, 20_000, RUN_S, 10_000.0)
    counters = on.path.counters()
    print(
        f"frames for the full interface: {counters['servers']['full/far']['packets_forward']}, "
        f"dropped: {counters['io']['tx_dropped']}",
        file=sys.stderr,
    )


DOINGS = {
    "publication": publication,
    "least": publication,
    "listing": listing,
    "dump": dump,
    "load": load,
    "reset": reset,
    "expiry": expiry,
    "full": full,
}


def measure(act: str, options: argparse.Namespace) -> list[tuple[Run, Run]]:
    """Return a control run and a run with the act, for each round."""
    run_act = DOINGS[act]
    if act == "full":
        command("tc", "qdisc", "add", "dev", "a1", "root", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "64mb")
    runs = []
    # An expiry takes all flows there are: each round has a loop of its own.
    stages = [range(options.rounds)] if act != "expiry" else [range(1)] * options.rounds
    for numbers in stages:
        with stage(act, len(numbers), options) as on:
            for number in numbers:
                control = on.run(lambda: None)
                runs.append((control, on.run(lambda number=number: run_act(on, number))))
    if act == "full":
        command("tc", "qdisc", "delete", "dev", "a1", "root")
    return runs


def table(act: str, runs: Sequence[tuple[Run, Run]]) -> Iterator[str]:
    """Yield a line per round."""
    for number, (control, run) in enumerate(runs):
        cells = [
            f"{each.seen.max_us:8.0f} {each.seen.p999_us:8.0f} {each.bucket:>9} {each.long:7} {each.commands:>9}"
            for each in (control, run)
        ]
        yield f"{act:12} {number:5}  {cells[0]}   {cells[1]} {run.seen.lost:6} {run.act_s:9.3f}"


def main() -> None:
    """Measure, and print."""
    if sys.argv[1:2] == ["--probe"]:
        probe(int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--flood"]:
        # Ended from outside; the bound is for a parent that died.
        generate(int(sys.argv[2]), bytes.fromhex(sys.argv[3]), LOAD_FLOWS, 10**8, 60.0, float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", default="rust", choices=("rust", "python"))
    parser.add_argument("--act", nargs="+", choices=ACTS, default=ACTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the flows and servers of each act")
    parser.add_argument("--load", type=float, default=0.0, help="packets per second through the loop all the while")
    parser.add_argument("--real-time", action="store_true", help="let the loop's thread run before other processes'")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    print(f"backend {options.backend}, build {BUILD_PROFILE}, load {os.getloadavg()[0]:.2f}", file=sys.stderr)
    head = f"{'max us':>8} {'99.9% us':>8} {'bucket ns':>9} {'>200 us':>7} {'commands':>9}"
    with network():
        if options.output == "table":
            print(f"{'':18}  {'control':>45}   {'with the act':>45}")
            print(f"{'act':12} round  {head}   {head} {'lost':>6} {'act s':>9}")
        for act in options.act:
            runs = measure(act, options)
            if options.output == "table":
                print("\n".join(table(act, runs)), flush=True)
            else:
                rows = [{"control": c._asdict(), "act": r._asdict()} for c, r in runs]
                for row in rows:
                    for run in row.values():
                        run["seen"] = run["seen"]._asdict()
                print(json.dumps({"act": act, "build": BUILD_PROFILE, "rounds": rows}), flush=True)


if __name__ == "__main__":
    main()
