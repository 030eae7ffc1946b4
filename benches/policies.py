"""
How evenly each policy shares flows, and what happens when a server leaves: the figures of docs/policies.md.

    python benches/policies.py [--flows 10000]

Real packets, both backends: the first datagrams of that many flows, each from a client address of its own, each
answered by its server, so that it counts as active; both backends must place every one alike. Columns:

- slots: the largest relative error of a server's share of the plan's slots, over 100 servers of equal weight: what the
  policy promises; flows then fall on the slots in turn, by chance, or by hash.
- equal, weighted: largest relative error of a share, over 10 servers of equal weight, and over 3 of weights
  5, 3, 2.
- leaves: one of 10 servers leaves, all flows arrive again (as at another balancer, or after a restart): flows of the
  others that go elsewhere. 0.9 is what chance gives. Known flows keep their server under every policy.
- plan: time to make the plan of 1 000 servers.

Nothing here depends on speed but the last column, and nothing on chance but the seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import packets as p
import workload as w
from lb import policies
from lb.backends import load
from lb.model.snapshot import Plan, Server, Snapshot
from lb.policies import ServerView
from lb.policies.maglev import fill
from snapshots import complete_snapshot, make_service

BACKENDS = ("rust", "python")
POLICIES = sorted(policies.POLICIES)
OPTIONS: dict[str, dict[str, Any]] = {}


def views(weights: list[int], gone: int | None = None) -> list[ServerView]:
    """Make servers; `gone`: the one that takes no new flows."""
    return [
        ServerView(number, f"udp{number}", weight, "disabled" if number == gone else "active")
        for number, weight in enumerate(weights)
    ]


def snapshot(plan: Plan, weights: list[int]) -> Snapshot:
    """Compile one service with a plan."""
    base = w.snapshot(servers=1)
    address = w.FIRST_SERVER[4]
    servers = tuple(
        Server(f"udp{n}", 0, n, address + n, w.SERVER_PORT["udp"], weight, w.server_mac(n))
        for n, weight in enumerate(weights)
    )
    service = make_service("udp", w.VIP[4], w.PORT["udp"], "udp", plan)
    return complete_snapshot(1, w.SEED, base.interfaces, (service,), servers)


def frame(mac: bytes, source: tuple[IPv4Address, int], destination: tuple[IPv4Address, int]) -> bytes:
    """Make a datagram to the balancer."""
    (source_address, source_port), (address, port) = source, destination
    datagram = p.udp(source_address.packed, address.packed, source_port, port, bytes(18))
    return p.ether(w.ROUTER_MAC, mac, p.ip4(source_address.packed, address.packed, p.UDP, datagram))


def client(number: int) -> tuple[IPv4Address, int]:
    """Return the address and port of a flow's client: each has one of its own."""
    return w.FIRST_CLIENT[4] + number, 4000 + number % 1000


def arrive(path: Any, number: int) -> int:
    """Let a flow arrive and its server answer; return the server."""
    (result,) = path.process_many([frame(w.CLIENT_MAC, client(number), (w.VIP[4], w.PORT["udp"]))], 0, 1)
    server = int(result.server.removeprefix("udp"))
    answer = frame(w.server_mac(server), (w.FIRST_SERVER[4] + server, w.SERVER_PORT["udp"]), client(number))
    w.check_forwarded(path.process_many([answer], 0, 1))
    return server


def place(name: str, weights: list[int], flows: int, gone: int | None = None) -> list[int]:
    """Return the server of each flow; both backends must agree."""
    policy = policies.make(name, OPTIONS.get(name, {}))
    compiled = snapshot(policy.plan("udp", views(weights, gone), {}), weights)
    placed = []
    for backend in BACKENDS:
        path = w.data_path(load(backend), flows, compiled)
        placed.append([arrive(path, number) for number in range(flows)])
    assert placed[0] == placed[1], f"{name}: the backends disagree"
    return placed[0]


def share_error(placed: list[int], weights: list[int]) -> float:
    """Return the largest relative error of a share."""
    counts, total = Counter(placed), sum(weights)
    return max(abs(counts[n] * total / (weight * len(placed)) - 1) for n, weight in enumerate(weights))


def slot_error(name: str) -> str:
    """Return the largest relative error of a share of the slots; nothing where the slots do not decide."""
    plan = policies.make(name, OPTIONS.get(name, {})).plan("udp", views([1] * 100), {})
    return "-" if plan.selector == "least" else f"{share_error(list(plan.slots), [1] * 100):.2%}"


def moved(before: list[int], after: list[int], gone: int) -> float:
    """Return the share of flows, of those not on the server that left, that go elsewhere."""
    stayed = [(old, new) for old, new in zip(before, after, strict=True) if old != gone]
    return sum(old != new for old, new in stayed) / len(stayed)


def plan_time_ms(name: str) -> float:
    """Return the least of five times to plan 1 000 servers."""
    policy, servers = policies.make(name, OPTIONS.get(name, {})), views([1] * 1000)
    took = []
    for _ in range(5):
        fill.cache_clear()
        start = time.perf_counter()
        policy.plan("udp", servers, {})
        took.append(time.perf_counter() - start)
    return min(took) * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Share error and disruption of each policy.")
    parser.add_argument("--flows", type=int, default=10_000, help="flows that arrive (10000)")
    flows = parser.parse_args().flows
    print("| policy | slots | equal | weighted | leaves | plan, ms |\n|---|--:|--:|--:|--:|--:|")
    for name in POLICIES:
        if name == "static":
            continue
        equal, weighted = [1] * 10, [5, 3, 2]
        even = place(name, equal, flows)
        errors = f"{share_error(even, equal):.2%} | {share_error(place(name, weighted, flows), weighted):.2%}"
        left = moved(even, place(name, equal, flows, gone=4), gone=4)
        print(f"| {name} | {slot_error(name)} | {errors} | {left:.2%} | {plan_time_ms(name):.1f} |")


if __name__ == "__main__":
    main()
