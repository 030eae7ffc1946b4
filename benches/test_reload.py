"""
A reload of 10 000 servers, from the text of the file to the published snapshot: one service with all of them, or a
hundred with a hundred each.

    python -m pytest -p no:xdist benches/test_reload.py

What `lb reload` does but for reading the disk, the kernel's routes and the socket: TOML and every check, what changes
for the operator, plans, snapshot, publication. Each round gives a third of the servers other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

import workload as w
from lb.config import parse
from lb.control.controller import Controller
from lb.model.snapshot import Interface, Snapshot

SECTION = "reload"
SERVERS = 10_000
WEIGHTS = (4, 5)
INTERFACES = (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),)


class Published:
    """What changes are carried out on: a data path and nothing else."""

    def __init__(self, module: ModuleType) -> None:
        self.data_path = module.DataPath(1000, bytes(16), 1)
        self.snapshots: list[Snapshot] = []

    def publish(self, snapshot: Snapshot) -> None:
        self.data_path.publish(snapshot)
        self.snapshots.append(snapshot)

    def reset_flows(self, server: int) -> None:
        raise AssertionError(f"nothing goes down here: {server}")


def configuration(services: int, policy: str, weight: int) -> str:
    """Return the text of a file with 10 000 servers; every third one has this weight."""
    rows = ['[[interface]]\nname = "eth0"']
    for service in range(services):
        rows.append(f'[[service]]\nname = "service{service}"\naddress = "198.18.0.{service + 1}"\nport = 80')
        rows.append(f'policy = "{policy}"')
        for server in range(SERVERS // services):
            number = service * (SERVERS // services) + server
            rows.append(
                f'[[service.server]]\nname = "server{server}"\naddress = "10.0.{number // 256}.{number % 256}"\n'
                f"port = 8080\nweight = {weight if server % 3 == 0 else 1}"
            )
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("services", "policy"),
    [(1, "round-robin"), (1, "least-connections"), (100, "round-robin"), (100, "maglev")],
)
def test_reload(benchmark: Any, module: ModuleType, services: int, policy: str) -> None:
    """The reload of 10 000 servers."""
    target = Published(module)
    texts = [configuration(services, policy, weight) for weight in WEIGHTS]
    controller = Controller(parse(texts[1]), INTERFACES, target)
    controller.start()

    def reload(text: str) -> Sequence[str]:
        return controller.reload(parse(text))

    changed = reload(texts[0])
    assert len(changed) == sum(1 for number in range(SERVERS) if number % (SERVERS // services) % 3 == 0)
    assert len([server for server in target.snapshots[-1].servers if server is not None]) == SERVERS
    shape = f"{services} service{'s' if services > 1 else ''}"
    stage = f"10 000 servers in {shape}, {policy}"
    w.measure(benchmark, SECTION, stage, w.call_each(reload), w.batches([(texts[1],), (texts[0],)], 1), unit="reload")
