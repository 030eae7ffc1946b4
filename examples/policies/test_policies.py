"""
Tests of the policies in this folder, as you would write them for your own:

    python -m pytest examples/policies
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lb.policies import ServerView
from lb.testing import check_policy, named

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from power import PowerAware  # noqa: E402
from rollout import Rollout  # noqa: E402

START = datetime(2026, 12, 1, 6, tzinfo=UTC)


def test_subnet_shares_by_weight_and_moves_nothing_needlessly() -> None:
    """Rendezvous hashing: a server that leaves takes only its own networks with it."""
    report = check_policy("./subnet.py:BySubnet", base=HERE, share_error=0.15, remapping=0.0)
    assert report.weighted_share_error < 0.1


def test_rollout_any_time_is_a_policy() -> None:
    """Long before it begins, all servers are blue or nothing is: checked with none of them green."""
    check_policy(Rollout, options={"green": "new-", "start": START})


@pytest.mark.parametrize(("hours", "part"), [(-5, 0), (0, 0), (3, 25), (6, 50), (12, 100), (99, 100)])
def test_rollout_share_follows_the_clock(hours: int, part: int) -> None:
    """Green gets an even part of the flows as time goes by."""
    policy = Rollout("new-", START, 12)
    policy.clock = lambda: START + timedelta(hours=hours)
    servers = [ServerView(0, "old-1"), ServerView(1, "old-2"), ServerView(2, "new-1", 3)]
    slots = policy.plan("video", servers, {}).slots
    assert slots.count(2) * 100 == part * len(slots)


def test_power_without_load_uses_one_server() -> None:
    """It shares nothing evenly, on purpose; all else that a policy must do, it does."""
    assert check_policy(PowerAware, share_error=None).share_error > 1


@pytest.mark.parametrize(("flows", "used"), [(0, 1), (100, 1), (101, 2), (250, 3), (10_000, 4)])
def test_power_load_opens_servers(flows: int, used: int) -> None:
    """As many servers as the load needs."""
    plan = PowerAware(100).plan("video", named([1] * 4), {"server0": {"flows_active": flows}})
    assert len(plan.slots) == used


def test_power_load_at_the_brink_does_not_flap() -> None:
    """A server closes only when the others have room to spare."""
    policy, servers = PowerAware(100), named([1] * 3)
    used = [len(policy.plan("video", servers, {"server0": {"flows_active": n}}).slots) for n in (101, 99, 51, 49)]
    assert used == [2, 2, 2, 1]
