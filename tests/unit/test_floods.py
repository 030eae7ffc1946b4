"""Floods against a full table: what each kind may fill; flows and new clients go on (rule 8.17, full table)."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from helpers import Box, answer, from_client, from_server, open_flow, query, request, response
from scapy.layers.inet import IP

from lb.lab.floods import KINDS, Target

# A 64th of it is 4 flows, a quarter 64.
CAPACITY = 256
PACE_S = 0.001
FLOOD = range(10_000, 10_600)
# How often true flows speak: within the time in which the flood fills its share.
SPEAKS_EVERY = 40


def placed(box: Box, frame: object) -> int:
    """Send a client's frame that must get through; return the index of its server."""
    result = box.send(frame)  # type: ignore[arg-type]
    assert (result.verdict, result.reason) == ("forward", None)
    assert result.server is not None
    return int(result.server[-1]) - 1


def states(box: Box, *ports: int) -> list[str | None]:
    """Return the states of flows by their client's port; None: it is not there."""
    found = {flow.client_port: flow.state for flow in box.path.flows(box.now)}
    return [found.get(port) for port in ports]


def test_flood_of_answered_datagrams_takes_its_own_oldest_flows(backend: str) -> None:
    """Established flows stay, UDP flows that both sides go on with stay, and each new client finds room."""
    box = Box(backend, capacity=CAPACITY)
    open_flow(box, port=1)
    speakers = {port: placed(box, from_client(query(port=port))) for port in (2, 3, 4)}
    for port, server in speakers.items():
        box.send(from_server(answer(port=port), server))
    for port in FLOOD:
        box.after(PACE_S)
        server = placed(box, from_client(query(port=port)))
        box.send(from_server(answer(port=port), server))
        if port % SPEAKS_EVERY == 0:
            assert {speaker: placed(box, from_client(query(port=speaker))) for speaker in speakers} == speakers
    assert states(box, 1, *speakers) == ["established", "udp", "udp", "udp"]
    open_flow(box, port=5)
    assert states(box, 5) == ["established"]
    assert box.event("flow_created") == len(FLOOD) + 5
    assert box.event("flow_evicted_idle") > len(FLOOD) - CAPACITY


def test_flood_of_answered_datagrams_within_the_share_evicts_no_other(backend: str) -> None:
    """What is not beyond its share stays, like all that was heard of lately: a new client is refused."""
    box = Box(backend, capacity=CAPACITY)
    for port in range(1, CAPACITY - 64 + 1):
        open_flow(box, port=port)
    for port in FLOOD[:64]:
        box.send(from_server(answer(port=port), placed(box, from_client(query(port=port)))))
    box.after(PACE_S)
    assert box.send(from_client(request(port=9_999))).reason == "table_full"
    assert states(box, FLOOD[0], 1) == ["udp", "established"]


def test_flood_of_answered_syns_takes_its_own_oldest_flows(backend: str) -> None:
    """Servers with SYN cookies answer each: a client that acknowledges before a share has passed gets through."""
    box = Box(backend, capacity=CAPACITY)
    open_flow(box, port=1)
    for port in FLOOD:
        box.after(PACE_S)
        server = placed(box, from_client(request(port=port)))
        box.send(from_server(response(port=port), server))
        if port == FLOOD[300]:
            opening = placed(box, from_client(request(port=2)))
            box.send(from_server(response(port=2), opening))
        if port == FLOOD[350]:
            box.send(from_client(request("A", 1001, 5001, port=2)))
    assert states(box, 1, 2) == ["established", "established"]
    assert box.event("flow_evicted_half_open") > len(FLOOD) - CAPACITY


def test_flood_of_refused_syns_leaves_new_flows_the_time_of_an_answer(backend: str) -> None:
    """The table is full of flows that are over: they go before the few that wait for an answer."""
    box = Box(backend, capacity=CAPACITY)
    for port in FLOOD:
        box.after(PACE_S)
        server = placed(box, from_client(request(port=port)))
        if port == FLOOD[500]:
            opening = placed(box, from_client(request(port=2)))
        if port == FLOOD[502]:
            box.send(from_server(response(port=2), opening))
        box.send(from_server(response("RA", 0, 1001, port=port), server))
    assert states(box, 2) == ["syn-received"]
    assert box.event("flow_evicted_closing") > 0


@pytest.mark.parametrize("kind", KINDS)
def test_flood_packets_are_whole(kind: str) -> None:
    """Each fits its length fields, and what is drawn lies in it."""
    make, words = KINDS[kind]
    packet = make(Target(IPv4Address("198.18.1.100"), 9876, 9877))
    assert IP(packet).len == len(packet)
    assert all(14 < offset <= 14 + len(packet) - 2 for offset, _ in words)
