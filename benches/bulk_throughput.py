"""
Measure 1 MB responses from server1 to client1: plain kernel routing, then through the balancer, backend by backend.

    python benches/bulk_throughput.py [--rounds N] [--seconds S] [--connections C] [--backends rust python]

Everything runs in one testbed with default offloads, in turns A B C A B C, so that drift of the machine hits all alike;
the medians and their ratio to routing are printed. Routing is the limit: the router's kernel forwards, client1 asks
server1's own address. Client and server share the machine's cores with what is measured. Uses `wrk` when it is
installed, else a client of its own. Needs root or user namespaces; bounded in time by its options.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lb.errors import LbError
from lb.testbed import build, live
from lb.testbed.bed import Testbed
from lb.testbed.content import MEGABYTE
from lb.testbed.topology import ROUTER, VIP, VIP_PORT

ROUTING = "kernel routing"
REQUEST = b"GET /1MB HTTP/1.1\r\nHost: bench\r\n\r\n"
CONFIG = """
[[interface]]
name = "eth0"
[[service]]
name = "bulk"
address = "{vip}"
port = {port}
protocol = "tcp"
policy = "static"
server = [{{ name = "server1", address = "{address}", port = {server_port} }}]
"""


def measure_with_wrk(bed: Testbed, host: str, port: int, seconds: int, connections: int) -> float:
    """Return bytes of body per second, as wrk counts responses."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://{host}:{port}/1MB"]
    client = bed.spawn("client1", "wrk", command, stdout=subprocess.PIPE)
    text = client.communicate(timeout=seconds + 30)[0].decode()
    found = re.search(r"Requests/sec:\s*([\d.]+)", text)
    if client.returncode != 0 or found is None:
        raise LbError(f"wrk failed: {text.strip()}")
    return float(found[1]) * MEGABYTE


def measure_with_own_client(bed: Testbed, host: str, port: int, seconds: int, connections: int) -> float:
    """Return bytes per second, as a client received them over kept-alive connections."""
    arguments = ["--receive", host, str(port), "--seconds", str(seconds), "--connections", str(connections)]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    client = bed.spawn("client1", "receive", command, stdout=subprocess.PIPE)
    text = client.communicate(timeout=seconds + 30)[0].decode()
    if client.returncode != 0:
        raise LbError(f"the client failed: {bed.last_log_line('client1', 'receive')}")
    return float(text)


class Download:
    """One kept-alive connection that asks for 1 MB again and again. `received`: bytes of bodies so far."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=5)
        self.received = 0
        self._missing = 0
        self.socket.sendall(REQUEST)

    def read(self, buffer: bytearray) -> None:
        """Take what has arrived; ask again when a response is complete."""
        if self._missing == 0:
            header, end, body = self.socket.recv(4096).partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", header)
            if not end or length is None:
                raise LbError(f"no usable answer: {header[:80]!r}")
            self._missing, size = int(length[1]), len(body)
        else:
            size = self.socket.recv_into(buffer, min(self._missing, len(buffer)))
            if size == 0:
                raise LbError("the server closed the connection")
        self._missing -= size
        self.received += size
        if self._missing == 0:
            self.socket.sendall(REQUEST)


def receive(host: str, port: int, seconds: int, connections: int) -> float:
    """Download on several connections at once; return the bytes of bodies received per second."""
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        downloads = [Download(host, port) for _ in range(connections)]
        for download in downloads:
            selector.register(download.socket, selectors.EVENT_READ, download)
        start_s = time.monotonic()
        while (left_s := start_s + seconds - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                key.data.read(buffer)
        elapsed_s = time.monotonic() - start_s
        for download in downloads:
            download.socket.close()
        return sum(download.received for download in downloads) / elapsed_s


def measure(bed: Testbed, name: str, config: Path, options: argparse.Namespace) -> float:
    """Run one turn of one contender; return bytes per second."""
    tool = measure_with_wrk if options.client == "wrk" else measure_with_own_client
    server = bed.topology.host("server1")
    if name == ROUTING:
        build.set_kernel_forwarding(bed.prefix, True)
        try:
            return tool(bed, str(server.address), server.web_port, options.seconds, options.connections)
        finally:
            build.set_kernel_forwarding(bed.prefix, False)
    live.start_balancer(bed, config, name)
    try:
        return tool(bed, str(VIP), VIP_PORT, options.seconds, options.connections)
    finally:
        bed.end(ROUTER, "lb")


def run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Run all turns in one testbed; return bytes per second of each turn, by contender."""
    contenders = [ROUTING, *options.backends]
    results: dict[str, list[float]] = {name: [] for name in contenders}
    with Testbed(prefix=f"bench{os.getpid()}-") as bed:
        server = bed.topology.host("server1")
        config = bed.directory / "bulk.toml"
        config.write_text(CONFIG.format(vip=VIP, port=VIP_PORT, address=server.address, server_port=server.web_port))
        print(f"web server: {bed.facts['web']}; client: {options.client}, {options.connections} connections")
        for turn in range(1, options.rounds + 1):
            for name in contenders:
                results[name].append(measure(bed, name, config, options))
                print(f"round {turn}: {name:<15}{results[name][-1] / 1e6:8.0f} MB/s", file=sys.stderr, flush=True)
    return results


def report(results: dict[str, list[float]]) -> None:
    """Print medians and their ratio to routing."""
    limit = statistics.median(results[ROUTING])
    print(f"{'1 MB responses':<16}{'median MB/s':>12}{'lowest':>9}{'highest':>9}{'ratio':>8}")
    for name, values in results.items():
        median = statistics.median(values)
        low, high = min(values) / 1e6, max(values) / 1e6
        print(f"{name:<16}{median / 1e6:12.0f}{low:9.0f}{high:9.0f}{median / limit:8.3f}")


def processor() -> str:
    """Return the processor's name, as the kernel tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def main() -> int:
    """Run the benchmark. Returns the exit status."""
    parser = argparse.ArgumentParser(description="1 MB responses: routing against the backends.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a turn (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=20, help="at once (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=["rust", "python"], help="default: rust python")
    parser.add_argument("--client", choices=("wrk", "own"), default="wrk" if shutil.which("wrk") else "own")
    parser.add_argument("--receive", nargs=2, metavar=("HOST", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        print(receive(options.receive[0], int(options.receive[1]), options.seconds, options.connections))
        return 0
    # A signal must end the testbed, not only this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    print(f"{when}; {processor()}, {os.cpu_count()} cores; Linux {platform.release()}; Python {sys.version.split()[0]}")
    try:
        report(run(options))
    except LbError as error:
        print(f"bulk_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
