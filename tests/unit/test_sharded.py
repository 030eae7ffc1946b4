"""Several data paths as one: what is added up, what is put in order, who is asked, on both backends."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

import lb.backends
from lb.backends.sharded import Sharded, added, one_at_a_time, part, together
from lb.errors import LbError
from lb.model.snapshot import Interface, Neighbour, NewFlowLimit, NextHops, Plan, Route, Server
from lb.net.shard import worker_of
from snapshots import complete_snapshot, make_service

VIP, SERVER = IPv4Address("198.18.1.100"), IPv4Address("198.18.1.31")
MAC, SERVER_MAC, CLIENT_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000031"), "02:00:00:00:00:21"
SNAPSHOT = complete_snapshot(
    generation=1,
    seed=1,
    interfaces=(Interface("eth0", MAC, 1500, (IPv4Interface("198.18.1.1/24"),)),),
    services=(
        make_service("b", VIP, 80, "tcp", Plan("counter", (0,))),
        make_service("a", VIP, 81, "tcp", Plan("counter", (1,))),
    ),
    servers=(Server("s", 0, 0, SERVER, 8031), Server("s", 1, 1, SERVER, 8032)),
    icmp_rate=7,
)
NEXT_HOPS = NextHops((Route(IPv4Network("198.18.1.0/24"), 0),), (Neighbour(0, SERVER, SERVER_MAC),))
CLIENTS = [f"198.18.1.{number}" for number in range(21, 31)]


@pytest.fixture(params=["rust", "python"])
def module(request: pytest.FixtureRequest) -> Any:
    return lb.backends.load(request.param)


@pytest.fixture
def sharded(module: Any) -> Sharded:
    """Give three workers with two flows of each client, each put where its frames would be dealt to."""
    made = Sharded(module.DataPath, 3, 100, os.urandom(16), 2**64 - 1)
    made.publish(SNAPSHOT)
    made.set_next_hops(NEXT_HOPS)
    made.keep_flow_exports(30)
    for now, client in enumerate(CLIENTS):
        for port in (80, 81):
            segment = TCP(sport=40000, dport=port, flags="S", seq=1)
            frame = Ether(src=CLIENT_MAC, dst=MAC.hex(":")) / IP(src=client, dst=str(VIP)) / segment
            shard = made._shards[worker_of(IPv4Address(client), 3)]
            assert shard.process(bytes(frame), 0, now).verdict == "forward"
    return made


def test_sharded_flows_are_in_order_and_in_pages(sharded: Sharded) -> None:
    """By address, port and id of the service, as one data path has them; no page loses or repeats one."""
    rows = sharded.flows(20)
    assert [(row.client, row.service) for row in rows] == [(client, name) for client in CLIENTS for name in ("b", "a")]
    pages = [sharded.find_flows(20, offset, 3) for offset in range(0, 21, 3)]
    assert {count for count, _ in pages} == {20}
    assert [row for _, page in pages for row in page] == rows
    assert sharded.find_flows(20, 0, 9, client=IPv4Address(CLIENTS[4])) == (2, rows[8:10])
    assert sharded.find_flows(20, 1, 2, servers=[1])[0] == 10


def test_sharded_counters_are_sums(sharded: Sharded) -> None:
    counters = sharded.counters()
    assert counters["rx_packets"] == counters["verdicts"]["forward"] == counters["events"]["flow_created"] == 20
    assert counters["servers"]["a/s"]["flows_active"] == 10
    assert sharded.active_flows([1, 2, 0]) == [10, 0, 10]
    assert counters["table"] == {"entries": 20, "capacity": 3 * 34}
    assert sharded.measurements(20)["b"]["s"]["flows_created"] == 10
    assert min(shard.counters()["rx_packets"] for shard in sharded._shards) > 0


def test_sharded_peek_asks_the_worker_of_the_client(sharded: Sharded) -> None:
    for client in CLIENTS:
        flow, _ = sharded.peek(1, IPv4Address(client), 40000, 20)
        assert flow is not None
        assert (flow.client, flow.service) == (client, "a")
    assert sharded.peek(1, IPv4Address("198.18.1.99"), 40000, 20)[0] is None


def test_sharded_reset_goes_on_until_the_limit(sharded: Sharded) -> None:
    """A part at a time, as `Daemon.reset_flows` asks; both ends are told, and the ends are kept."""
    assert [sharded.reset_flows(0, 4, 20) for _ in range(4)] == [4, 4, 2, 0]
    assert sharded.find_flows(20, 0, 100, servers=[0]) == (0, [])
    ends, missed = sharded.take_flow_exports()
    assert (len(ends), missed) == (10, 0)
    assert sorted(end.client for end in ends) == CLIENTS
    assert len(sharded.tick(20)) == 2 * 10


def test_sharded_icmp_rate_is_parted(sharded: Sharded, module: Any) -> None:
    """Seven a second are three, two and two."""
    assert [part(7, number, 3) for number in range(3)] == [3, 2, 2]
    segment = TCP(sport=40000, dport=80, flags="S")
    refusing = replace(SNAPSHOT, services=(replace(SNAPSHOT.services[0], plan=Plan("counter", ())), None))
    made = Sharded(module.DataPath, 3, 100, os.urandom(16), 1)
    made.publish(refusing)
    made.set_next_hops(NEXT_HOPS)
    frame = bytes(Ether(src=CLIENT_MAC, dst=MAC.hex(":")) / IP(src=CLIENTS[0], dst=str(VIP)) / segment)
    for shard in made._shards:
        for _ in range(7):
            shard.process(frame, 0, 10**9)
    assert made.counters()["verdicts"] == {"reply.no_server": 7, "drop.rate_limited": 14}


def test_sharded_new_flow_limit_is_parted(module: Any) -> None:
    """Rule 17, several workers: seven at once are three for each of three workers."""
    limited = replace(SNAPSHOT.services[0], new_flow_limit=NewFlowLimit(7, 7, 24, 56))
    made = Sharded(module.DataPath, 3, 100, os.urandom(16), 1)
    made.publish(replace(SNAPSHOT, services=(limited, None)))
    made.set_next_hops(NEXT_HOPS)
    for shard in made._shards:
        for port in range(1, 8):
            packet = IP(src=CLIENTS[0], dst=str(VIP)) / TCP(sport=port, dport=80, flags="S")
            shard.process(bytes(Ether(src=CLIENT_MAC, dst=MAC.hex(":")) / packet), 0, 10**9)
    assert made.counters()["verdicts"] == {"forward": 9, "drop.new_flow_limit": 12}


def test_sharded_takes_no_frames_by_hand(sharded: Sharded) -> None:
    for call in (sharded.process, sharded.process_many):
        with pytest.raises(LbError, match="from sockets only"):
            call(b"", 0, 0)


def test_together_peaks_are_the_highest_and_a_stall_the_shortest() -> None:
    """A worker whose flows do not wait knows nothing of a stall."""
    rows = [
        {"connects": 2, "connect_peak_ns": 5, "first_byte_peak_ns": 1, "stalled_ns": 9, "waiting_flows": 1},
        {"connects": 3, "connect_peak_ns": 4, "first_byte_peak_ns": 8, "stalled_ns": 0, "waiting_flows": 0},
        {"connects": 0, "connect_peak_ns": 0, "first_byte_peak_ns": 0, "stalled_ns": 7, "waiting_flows": 2},
    ]
    wanted = {"connects": 5, "connect_peak_ns": 5, "first_byte_peak_ns": 8, "stalled_ns": 7, "waiting_flows": 3}
    assert together(rows) == wanted
    assert together(rows[1:2])["stalled_ns"] == 0


def test_added_keeps_what_only_one_has() -> None:
    assert added({"a": {"x": 1}, "n": 1}, {"a": {"y": 2}, "n": 2}) == {"a": {"x": 1, "y": 2}, "n": 3}


def test_one_at_a_time_passes_on_and_lets_the_next_one_in_after_an_error() -> None:
    def ask(service: str, client: str, port: int, names: Any) -> str | None:
        return {"good": names[0]}[service]

    alone = one_at_a_time(ask)
    with pytest.raises(KeyError):
        alone("bad", "c", 1, ["s"])
    assert alone("good", "c", 1, ["s"]) == "s"


def test_sharded_counters_longest_pause_is_the_longest_of_any_worker() -> None:
    """Rule 22.1, bounded pauses: buckets and sums add up, a maximum does not."""
    one = {"loop": {"pauses": {"buckets": {"inf": 2}, "sum_ns": 5, "max_ns": 3}}}
    other = {"loop": {"pauses": {"buckets": {"inf": 1}, "sum_ns": 9, "max_ns": 9}}}
    assert added(one, other) == {"loop": {"pauses": {"buckets": {"inf": 3}, "sum_ns": 14, "max_ns": 9}}}


@pytest.mark.parametrize("newer", [0, 1, 2])
def test_sharded_counters_while_publishing_are_those_of_any_worker(sharded: Sharded, newer: int) -> None:
    """One worker has the next snapshot, the others not yet: what only some of them have is there, nothing raises."""
    renamed = replace(
        SNAPSHOT, services=(replace(SNAPSHOT.services[0], name="new"), None), servers=(SNAPSHOT.servers[0], None)
    )
    sharded._shards[newer].publish(renamed)
    assert set(sharded.counters()["servers"]) == {"new/s", "a/s", "b/s"}
    measured = sharded.measurements(20)
    assert {name: set(servers) for name, servers in measured.items()} == {"new": {"s"}, "a": {"s"}, "b": {"s"}}
    assert sum(measured[name]["s"]["flows_created"] for name in ("b", "new")) == 10
