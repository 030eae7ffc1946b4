"""
Placing a new flow: each selector over 3, 100 and 10 000 servers, on both backends.

    python -m pytest -p no:xdist benches/test_selectors.py

Seen through the whole pipeline (`process_many`): the first packet of a UDP flow is missed, placed, inserted, rewritten.
What a selector costs is the difference to `counter` over 3 servers. The round's flows expire before the next round.
The hash selectors index the servers themselves; what a Maglev table costs to build is in `test_plans.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

import packets as p
import workload as w
from lb.backends.base import Result
from lb.model.snapshot import SELECTORS, Selector

SERVERS = [3, 100, 10_000]
# These look at every server for every flow: in Python tens of milliseconds for 10 000.
LINEAR: frozenset[Selector] = frozenset({"least", "ask"})
BATCH_OF_LINEAR = 25
CLIENTS_FLOWS = 10_000_000


def ask(service: str, client: str, client_port: int, servers: Sequence[str]) -> str:
    """Choose as a user's policy would: here by the port."""
    return servers[client_port % len(servers)]


def check_placed(
    module: ModuleType, selector: Selector, servers: int, numbers: list[int], results: list[Result]
) -> None:
    """Assert that the flows went where the selector sends them."""
    w.check_forwarded(results)
    chosen = [int(str(result.server).removeprefix("udp")) for result in results]
    clients = [w.client_of(number) for number in numbers]
    vip = w.VIP[4].packed
    expected = {
        "counter": lambda: [number % servers for number in range(len(chosen))],
        "hash-source": lambda: [module.source_hash(w.SEED, address) % servers for address, _ in clients],
        "hash-flow": lambda: [
            module.flow_hash(w.SEED, address, vip, port, w.PORT["udp"], p.UDP) % servers for address, port in clients
        ],
        "least": lambda: [number % servers for number in range(len(chosen))],
        "ask": lambda: [port % servers for _, port in clients],
    }
    if selector in expected:
        assert chosen == expected[selector]()
    else:
        assert len(set(chosen)) >= min(3, servers)


@pytest.mark.parametrize("servers", SERVERS)
@pytest.mark.parametrize("selector", SELECTORS)
def test_place(benchmark: Any, module: ModuleType, selector: Selector, servers: int) -> None:
    """The first packet of a UDP flow."""
    size = BATCH_OF_LINEAR if selector in LINEAR and servers == SERVERS[-1] else w.BATCH
    path = w.data_path(module, 2 * w.BATCH, w.snapshot(selector, servers, ask=ask))
    numbers = w.shuffled(range(CLIENTS_FLOWS), 10 * size)
    frames = w.udp_frames(numbers)
    now_ns = 1
    check_placed(module, selector, servers, numbers[:size], path.process_many(frames[:size], 0, now_ns))

    def expire() -> None:
        nonlocal now_ns
        now_ns += w.UDP_TIMEOUT_NS
        w.expire_all(path, now_ns, size)

    def place(batch: list[bytes]) -> None:
        path.process_many(batch, 0, now_ns)

    w.measure(
        benchmark,
        f"new flow, {servers:_} servers".replace("_", " "),
        selector,
        place,
        w.batches(frames, size),
        expire,
        "new flow",
    )
    events = path.counters()["events"]
    assert (events["flow_hit"], events["ask_fallback"]) == (0, 0)
    assert events["flow_created"] == events["flow_miss"]
