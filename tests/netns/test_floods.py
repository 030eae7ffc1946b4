"""
Floods from random sources, of each kind: more packets than the flow table has entries, however long a busy machine
takes for them. Flows go on at their servers, clients get through, and what a flood may take is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from churn import balancing, control_of, echo, open_flows
from floods import FLOODER, TARGET, Load, Report, flood_configuration, flood_once
from realhosts import DEADLINE_S, RunningBalancer, running_testbed

from lb.control.api.client import change, fetch
from lb.errors import LbError
from lb.lab.floods import KINDS, Flood, prepare
from lb.lab.testbed.lifecycle import Testbed

pytestmark = pytest.mark.netns
FLOWS, ASKS_PER_S, CONNECTS_PER_S = 20, 200.0, 20.0
RATE_PPS, SECONDS = 5000.0, 1.5
CAPACITY = 1000
PACKETS = 2 * CAPACITY
# Above what clients need, below what a flood brings on any machine.
LIMIT_PER_S, LIMIT_BURST = 40, 100
# Fragments that wait may have 4 MiB (rule 6.11, held fragments); the rest is what the process has anyway.
MOST_GROWTH_BYTES = 32 << 20
# What a flood of each kind ends as, where it makes no flow.
VERDICTS = {
    "ack": "drop.no_flow",
    "rst": "drop.no_flow",
    "later-fragment": "hold.fragment",
    "icmp-echo": "drop.vip_echo",
    "icmp-error": "drop.icmp_no_flow",
}


@pytest.fixture(scope="module")
def testbed(link_mode: str, unique: str) -> Iterator[Testbed]:
    with running_testbed(f"{unique}d{link_mode}-", offloads=link_mode == "on") as made:
        prepare(made, FLOODER)
        try:
            with Flood(made, FLOODER, "rst", TARGET, RATE_PPS, SECONDS / 100):
                pass
        except LbError as error:
            if os.geteuid() == 0:
                raise
            pytest.skip(f"the kernel makes no packets for us: {error}")
        yield made


@pytest.fixture(scope="module")
def balancer(testbed: Testbed) -> Iterator[RunningBalancer]:
    with balancing(testbed, "rust", flood_configuration(testbed, "round-robin", CAPACITY)) as running:
        yield running


def play(testbed: Testbed, balancer: RunningBalancer, kind: str, rate_pps: float = RATE_PPS) -> Report:
    """Flood while flows speak and clients connect; none of them may notice."""
    with ExitStack() as stack:
        flows = open_flows(testbed, FLOWS, stack)
        assert all(echo(flow, b"first") for flow in flows)
        load = Load(testbed, flows, ASKS_PER_S, CONNECTS_PER_S, connect_s=DEADLINE_S)
        report = flood_once(testbed, balancer, flows, load, (kind, rate_pps, SECONDS), PACKETS)
    assert (report.broken, report.moved) == (0, 0)
    assert report.sent >= PACKETS
    table = fetch(control_of(balancer), "/status")["table"]
    assert table["entries"] <= table["capacity"] == CAPACITY
    assert report.resident_bytes[1] - report.resident_bytes[0] < MOST_GROWTH_BYTES
    return report


@pytest.mark.parametrize("kind", KINDS)
def test_flood_breaks_no_flow_and_lets_clients_in(testbed: Testbed, balancer: RunningBalancer, kind: str) -> None:
    """Rule 8.17, full table; rule 6, fragments; rule 10.5, flow of an error: each ends as it is to."""
    report = play(testbed, balancer, kind)
    assert (report.during.refused, report.during.late) == (0, 0)
    assert report.during.connects > 0
    assert report.counters[VERDICTS.get(kind, "flow_created")] > CAPACITY


def test_flood_beyond_a_limit_is_dropped_before_it_makes_flows(testbed: Testbed, balancer: RunningBalancer) -> None:
    """Rule 8.22, limits of new flows: set by a reload, it holds at once; flows that exist never notice."""
    before = balancer.config.read_text()
    limit = f"new_flow_limit = {{ rate = {LIMIT_PER_S}, burst = {LIMIT_BURST}, prefix_ipv4 = 8 }}\n"
    balancer.config.write_text(before.replace('policy = "round-robin"\n', f'policy = "round-robin"\n{limit}'))
    change(control_of(balancer), "/reload", {})
    try:
        report = play(testbed, balancer, "syn")
    finally:
        balancer.config.write_text(before)
        change(control_of(balancer), "/reload", {})
    assert report.counters["drop.new_flow_limit"] > 0
    created = report.counters["flow_created"] - report.during.connects
    assert created <= LIMIT_BURST + LIMIT_PER_S * (1 + max(report.lasted_s, report.watched_s))
    # Clients have a prefix of their own.
    assert len(report.during.waits_s) > 0
