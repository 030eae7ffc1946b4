"""
Memory per flow: how much larger a process gets when its table is filled, offline.

Run as `python -m lb.lab.bench.measures.memory BACKEND FLOWS`, in a separate process, so that nothing else is counted:
the resident size before the balancer is made and when its table holds all its flows, both directions, everything
included.
"""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lb.errors import LbError

DEADLINE_S = 120.0
BATCH = 1000
FIRST_PORT, PORTS = 1024, 60_000
ROUTER_MAC, CLIENT_MAC, SERVER_MAC = "aa:aa:aa:00:00:01", "aa:aa:aa:00:00:21", "aa:aa:aa:00:00:31"
VIP, PORT = bytes((198, 18, 1, 100)), 9876
_CONFIG = """[flows]
capacity = {flows}
[[interface]]
name = "eth0"
mac = "{router}"
addresses = ["198.18.1.1/24"]
[[service]]
name = "bench"
address = "198.18.1.100"
port = {port}
protocol = "udp"
policy = "static"
server = [{{ name = "server1", address = "198.18.1.31", port = 7000, mac = "{server}" }}]
"""


def measure(backend: str, flows: int) -> dict[str, float]:
    """
    Return `memory_per_flow`, bytes.

    Raises:
        LbError: the process failed; says its last line.
    """
    command = [sys.executable, "-P", "-m", "lb.lab.bench.measures.memory", backend, str(flows)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise LbError(f"{flows} flows were not created within {DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        raise LbError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return {"memory_per_flow": float(done.stdout)}


def fill(backend: str, flows: int) -> float:
    """Fill a table of this capacity in this process; return bytes per flow."""
    from lb.balancer import Balancer
    from lb.config import load

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memory.toml"
        path.write_text(_CONFIG.format(flows=flows, router=ROUTER_MAC, server=SERVER_MAC, port=PORT))
        config = load(path)
    # Imports and their tables are no flows: a small balancer pulls them in before the first look.
    small = Balancer.from_config(
        config.model_copy(update={"flows": config.flows.model_copy(update={"capacity": 1024})}), backend
    )
    for batch in batches(BATCH):
        small.process_many(batch)
    before = resident_bytes()
    balancer = Balancer.from_config(config, backend)
    for batch in batches(flows):
        balancer.process_many(batch)
    after = resident_bytes()
    created = balancer.counters()["events"]["flow_created"]
    if created != flows:
        raise LbError(f"{created} of {flows} flows were made")
    return (after - before) / flows


def batches(flows: int) -> Iterator[list[bytes]]:
    """Make one small UDP packet per flow, in batches."""
    from lb.packet.checksum import checksum

    link = bytes.fromhex((ROUTER_MAC + CLIENT_MAC).replace(":", "")) + b"\x08\x00"
    batch: list[bytes] = []
    for number in range(flows):
        client, port = divmod(number, PORTS)
        address = bytes((198, 51, 100, 1 + client))
        if port == 0:
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, 17, 0, address, VIP)
            front = link + header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        # A checksum of 0 is "none" over IPv4.
        batch.append(front + struct.pack("!HHHH18x", FIRST_PORT + port, PORT, 26, 0))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def resident_bytes() -> int:
    """Return this process's resident size."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    """Fill and print. Returns the exit status."""
    try:
        print(fill(sys.argv[1], int(sys.argv[2])))
    except LbError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
