"""What a data path tells about a packet that has not come yet, on every backend: and that telling changes nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import CLIENT, CLIENT6, DNS, WEB, WEB6, Box, from_client, make_snapshot, open_flow, query

CLIENT_ADDRESS = ip_address(CLIENT)


@pytest.mark.parametrize(("client", "service", "name"), [(CLIENT, WEB, "web"), (CLIENT6, WEB6, "web6")])
def test_peek_finds_the_flow_that_lives(backend: str, client: str, service: int, name: str) -> None:
    """The same as the listing says; other ports and services have none."""
    box = Box(backend)
    open_flow(box, client)
    box.after(5)
    flow, next_round = box.path.peek(service, ip_address(client), 40000, box.now)
    assert [flow] == box.path.flows(box.now)
    assert flow is not None
    assert (flow.service, flow.server, flow.idle_s, next_round) == (name, "server1", 5.0, 1)
    assert box.path.peek(service, ip_address(client), 40001, box.now) == (None, 1)
    assert box.path.peek(DNS, ip_address(client), 40000, box.now) == (None, 0)


def test_peek_dead_flows_are_none(backend: str) -> None:
    """A flow whose time is over, or whose server is gone, decides nothing any more."""
    box = Box(backend)
    open_flow(box, index=0)
    assert box.path.peek(WEB, CLIENT_ADDRESS, 40000, box.now + 7440 * 10**9) == (None, 1)
    snapshot = make_snapshot(slots=(1, 2))
    box.path.publish(replace(snapshot, generation=2, servers=(None, *snapshot.servers[1:])))
    assert box.path.peek(WEB, CLIENT_ADDRESS, 40000, box.now) == (None, 1)


def test_peek_round_is_the_next_one_and_nothing_is_counted(backend: str) -> None:
    """Asked any number of times, the next flow goes where it would have gone."""
    box = Box(backend)
    for number in range(5):
        before = box.counters()
        assert [box.path.peek(DNS, CLIENT_ADDRESS, 9, box.now)[1] for _ in range(3)] == [number] * 3
        assert box.counters() == before
        assert box.send(from_client(query(port=100 + number))).server == f"server{number % 3 + 1}"


def test_peek_unknown_service_has_nothing(backend: str) -> None:
    """An id that no snapshot had is no error: nothing is known."""
    assert Box(backend).path.peek(99, CLIENT_ADDRESS, 1, 0) == (None, 0)
