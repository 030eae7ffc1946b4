"""
Making a plan: each policy over 3, 100 and 1 000 servers; the Maglev table filled anew.

    python -m pytest -p no:xdist benches/test_plans.py

Policies are Python whatever the backend: the figures stand under `python`. A plan is made when something changes, never
when a packet comes.
"""

from __future__ import annotations

from typing import Any

import pytest

import workload as w
from lb import policies
from lb.policies import ServerView
from lb.policies.maglev import fill, next_prime

SECTION = "plans"
SLOTS_PER_SERVER = 100


def servers_named(count: int) -> list[ServerView]:
    """Make servers of equal weight."""
    return [ServerView(number, f"server{number}") for number in range(count)]


@pytest.mark.parametrize("servers", [3, 100, 1000])
@pytest.mark.parametrize("name", sorted(set(policies.POLICIES) - {"maglev", "source-hash"}))
def test_plan(benchmark: Any, name: str, servers: int) -> None:
    """The plan of a service."""
    benchmark.extra_info["backend"] = "python"
    policy, views = policies.make(name, {}), servers_named(servers)
    assert policy.plan("video", views, {}).slots
    action = w.call_each(lambda: policy.plan("video", views, {}))
    w.measure(benchmark, SECTION, f"{name}, {servers} servers", action, w.batches([()] * 10, 10), unit="plan")


@pytest.mark.parametrize("servers", [3, 100, 1000])
def test_maglev_table(benchmark: Any, servers: int) -> None:
    """A Maglev table, not remembered: 65 537 slots, or more than 100 per server."""
    benchmark.extra_info["backend"] = "python"
    size = max(65537, next_prime(SLOTS_PER_SERVER * servers + 1))
    row = (tuple(server.name for server in servers_named(servers)), (1,) * servers, size)
    assert len(fill.__wrapped__(*row)) == size
    stage = f"maglev table of {size:_} slots, {servers} servers".replace("_", " ")
    w.measure(benchmark, SECTION, stage, w.call_each(fill.__wrapped__), w.batches([row], 1), unit="table")
