"""
`lb run --take-over`: another process goes on with the flows, sockets and all that stands beside the configuration, while
packets come, and the first one ends (rule 23.2, taking over).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from churn import balancing, configuration, echo, open_flows, placements
from realhosts import RunningBalancer, running_testbed

from lb.lab.testbed.lifecycle import Testbed

pytestmark = pytest.mark.netns
FLOWS = 60


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}o{link_mode}-", offloads=link_mode == "on") as made:
        yield made


@pytest.fixture
def state() -> Iterator[Path]:
    """Give the path of a state directory that is not there."""
    folder = Path(tempfile.mkdtemp(prefix="flowlb-test-", dir="/dev/shm"))
    yield folder / "state"
    shutil.rmtree(folder)


@pytest.fixture
def balancer(testbed: Testbed, state: Path) -> Iterator[RunningBalancer]:
    """Give a balancer with the default policy that keeps its flows; none are there at first."""
    with balancing(testbed, "rust", configuration(testbed), str(state)) as running:
        yield running


def test_flows_go_on_in_the_process_that_takes_over(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 23.2, taking over: none is broken, none moves, new ones are placed, time after time."""
    with ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        where = placements(balancer)
        assert len(set(where.values())) == 3
        for turn in range(4):
            assert balancer.take_over() == 0
            assert balancer.running is not None
            assert f"{len(flows)} taken over, 0 dropped" in balancer.running.text()
            assert all(echo(flow, b"turn %d" % turn) for flow in flows)
            new = open_flows(testbed, 3, stack)
            assert all(echo(flow, b"new") for flow in new)
            found = placements(balancer)
            assert {flow: found[flow] for flow in where} == where
            flows, where = [*flows, *new], found
