"""Policies of one's own on real hosts: whatever they do, packets flow, and counters tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from textwrap import dedent
from typing import Any

import pytest
from churn import balancing, configuration, echo, placements
from realhosts import ECHO_PORT, RunningBalancer, connect, running_testbed, wait_until

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import read_status

FLOWS = 20
SLEEPS = """
    import time
    class Mine:
        def choose(self, flow, servers):
            time.sleep(1)
            return servers[0]
"""
SPINS = """
    class Mine:
        def choose(self, flow, servers):
            while flow.client_port:
                pass
"""
RAISES = """
    class Mine:
        def plan(self, service, servers, measurements):
            raise LookupError("no plan today")
        def choose(self, flow, servers):
            raise LookupError("no server today")
"""
LAST = """
    class Mine:
        def choose(self, flow, servers):
            return servers[-1]
"""


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}u{link_mode}-", offloads=link_mode == "on", use_apache=False) as made:
        yield made


def with_policy(testbed: Testbed, code: str, options: str = "") -> str:
    """Write a policy beside the configuration; return the configuration."""
    (testbed.directory / "mine.py").write_text(dedent(code))
    (testbed.directory / "mine.py").chmod(0o600)
    table = f'{{ name = "./mine.py:Mine"{options} }}'
    return configuration(testbed).replace('policy = "round-robin"', f"policy = {table}")


def shares(balancer: RunningBalancer) -> Counter[str]:
    """Return the flows that each server was given."""
    servers = balancer.counters()["servers"]
    return Counter({name.partition("/")[2]: server["flows_created"] for name, server in servers.items()})


@pytest.mark.parametrize("code", [SLEEPS, SPINS, RAISES], ids=["sleeps", "spins", "raises"])
def test_policy_that_fails_packets_flow_and_counters_tell(testbed: Testbed, backend: str, code: str) -> None:
    """Every new flow is placed by the fall-back policy, and those that are there go on all the while."""
    with balancing(testbed, backend, with_policy(testbed, code)) as balancer, ExitStack() as stack:
        old = stack.enter_context(connect(testbed, "client1", ECHO_PORT))
        for number in range(FLOWS):
            new = stack.enter_context(connect(testbed, "client2", ECHO_PORT))
            assert echo(new, b"new %d" % number)
            assert echo(old, b"old %d" % number)
        counters = balancer.counters()
        assert counters["events"]["ask_fallback"] == FLOWS + 1
        assert sorted(shares(balancer).values()) == [FLOWS // 3 + 1] * 3


def test_policy_that_raises_is_told_in_the_log(testbed: Testbed, backend: str) -> None:
    """The line says which policy, what it raised, and where; it has a second to do so, as the one that chooses."""
    with balancing(testbed, backend, with_policy(testbed, RAISES, ', deadline = "1s"')) as balancer:
        with connect(testbed, "client1", ECHO_PORT) as flow:
            assert echo(flow, b"hello")
        assert shares(balancer).total() == 1
        assert balancer.running is not None
        running = balancer.running

        def failures() -> dict[str, Any]:
            status = read_status(running.control)
            assert status is not None
            found: dict[str, Any] = status["services"][0]["policy_failures"]
            return found

        # Its plan and its answer, in any order and the plan more than once: packets do not wait for the log.
        told = [
            f"service echo: policy ./mine.py:Mine failed: LookupError: no {what} today (line {line} of mine.py)"
            for what, line in (("plan", 4), ("server", 6))
        ]
        wait_until(lambda: all(each in running.text() for each in told), "both failures are in the log")
        wait_until(lambda: failures()["count"] >= 2, "both failures are counted")
        assert failures()["last"].startswith("LookupError: no ")


def test_policy_that_chooses_is_obeyed(testbed: Testbed, backend: str) -> None:
    """What it answers in time is where flows go; it has a second, since other tests may have the cores just then."""
    with balancing(testbed, backend, with_policy(testbed, LAST, ', deadline = "1s"')) as balancer, ExitStack() as stack:
        flows = [stack.enter_context(connect(testbed, "client1", ECHO_PORT)) for _ in range(6)]
        assert all(echo(flow, b"hello") for flow in flows)
        wait_until(lambda: len(placements(balancer)) == len(flows), "all flows are established")
        assert set(placements(balancer).values()) == {"server3"}
        assert balancer.counters()["events"]["ask_fallback"] == 0


def test_weights_are_followed_by_real_connections(testbed: Testbed, backend: str) -> None:
    """Weights 5, 3, 2 over 100 connections: 50, 30, 20."""
    weights = {"server1": 5, "server2": 3, "server3": 2}
    with balancing(testbed, backend, configuration(testbed, weights=weights)) as balancer:
        for _ in range(100):
            with connect(testbed, "client1", ECHO_PORT) as flow:
                assert echo(flow, b"hello")
        assert shares(balancer) == {"server1": 50, "server2": 30, "server3": 20}
