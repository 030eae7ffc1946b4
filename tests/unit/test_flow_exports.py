"""How flows end, as a data path tells it (`docs/rules.md` rule 13, counters), on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import CLIENT, CLIENT6, START, Box, answer, from_client, from_server, make_snapshot, open_flow, query
from helpers import request as segment
from helpers import response as reply

from lb.backends.base import FlowRecord

CLOSING_S, HALF_OPEN_S, ESTABLISHED_S, UDP_S = 121, 31, 7441, 301
FOREVER_S = 10_000


def kept(backend: str, capacity: int = 64, most: int = 100) -> Box:
    box = Box(backend, capacity=capacity)
    box.path.keep_flow_exports(most)
    return box


def close(box: Box, server: int) -> None:
    """Let both sides of the flow of `open_flow` say FIN."""
    assert box.send(from_client(segment("FA", 1001, 5001))).verdict == "forward"
    assert box.send(from_server(reply("FA", 5001, 1002), server)).verdict == "forward"


def ways(box: Box) -> list[str]:
    return [end.ended for end in box.path.take_flow_exports()[0]]


def test_closed_flow_is_told_once_with_all_it_was(backend: str) -> None:
    """Who, where, how long and how many bytes, when the entry leaves the table; then it is forgotten."""
    box = kept(backend)
    server = open_flow(box)
    box.after(2.5)
    close(box, server)
    assert box.path.take_flow_exports() == ([], 0)
    box.after(CLOSING_S)
    box.tick()
    expected = FlowRecord(
        client=CLIENT, client_port=40000, service="web", server="server1", protocol="tcp", ended="closed",
        began_ns=START, last_seen_ns=START + 2_500_000_000, bytes_forward=120, bytes_reply=80,
    )  # fmt: skip
    ends, missed = box.path.take_flow_exports()
    assert (ends, missed) == ([expected], 0)
    assert isinstance(ends[0], FlowRecord)
    assert box.path.take_flow_exports() == ([], 0)


def test_reset_flow_is_told_as_reset(backend: str) -> None:
    """A valid RST, from whichever side, is how it ended; its bytes count."""
    box = kept(backend)
    server = open_flow(box)
    assert box.send(from_server(reply("R", 5001), server)).verdict == "forward"
    box.after(CLOSING_S)
    box.tick()
    (end,), _ = box.path.take_flow_exports()
    assert (end.ended, end.bytes_forward, end.bytes_reply) == ("reset", 80, 80)


@pytest.mark.parametrize("kind", ["half-open", "established", "udp"])
def test_idle_flow_is_told_as_expired(backend: str, kind: str) -> None:
    """No packet ended it: its timeout did."""
    box = kept(backend)
    if kind == "udp":
        box.send(from_client(query()))
        box.send(from_server(answer()))
    elif kind == "established":
        open_flow(box)
    else:
        box.send(from_client(segment()))
    box.after(FOREVER_S)
    box.tick()
    (end,), _ = box.path.take_flow_exports()
    assert (end.ended, end.protocol) == ("expired", "udp" if kind == "udp" else "tcp")
    assert (end.began_ns, end.last_seen_ns) == (START, START)


def test_evicted_flow_is_told_as_evicted(backend: str) -> None:
    """A full table: the half-open flow that was evicted for a new one."""
    box = kept(backend, capacity=1)
    box.send(from_client(segment(port=1)))
    box.send(from_client(segment(port=2)))
    (end,), _ = box.path.take_flow_exports()
    assert (end.client_port, end.ended) == (1, "evicted")


def test_flow_of_removed_service_keeps_its_names(backend: str) -> None:
    """A flow whose service and server left the configuration is told by the names they had."""
    box = kept(backend)
    server = open_flow(box, CLIENT6)
    snapshot = make_snapshot()
    servers = tuple(None if each and each.service == 2 else each for each in snapshot.servers)
    services = tuple(None if number == 2 else each for number, each in enumerate(snapshot.services))
    box.path.publish(replace(snapshot, generation=2, services=services, servers=servers))
    box.after(FOREVER_S)
    box.tick()
    (end,), _ = box.path.take_flow_exports()
    assert (end.client, end.service, end.server) == (CLIENT6, "web6", f"server{server + 1}")


def test_orphaned_flow_is_told_as_orphaned(backend: str) -> None:
    """The next packet of a flow whose server is gone ends it."""
    box = kept(backend)
    server = open_flow(box, index=0)
    snapshot = make_snapshot(slots=(1, 2))
    box.path.publish(replace(snapshot, generation=2, servers=(None, *snapshot.servers[1:])))
    box.send(from_client(segment("A", 1001, 5001)))
    (end,), _ = box.path.take_flow_exports()
    assert (end.ended, end.server) == ("orphaned", f"server{server + 1}")


def test_port_reuse_ends_the_flow_before(backend: str) -> None:
    """A SYN on a closing 5-tuple: the old flow is told as it ended, the new one is another."""
    box = kept(backend)
    close(box, open_flow(box))
    box.after(1)
    box.send(from_client(segment(seq=77)))
    assert ways(box) == ["closed"]
    box.after(HALF_OPEN_S)
    box.tick()
    (end,), _ = box.path.take_flow_exports()
    assert (end.began_ns, end.ended) == (START + 10**9, "expired")


def test_ends_beyond_the_most_are_counted(backend: str) -> None:
    """Exports not taken in time use bounded memory: the first `most` are kept, the rest are counted."""
    box = kept(backend, most=3)
    for port in range(1, 9):
        box.send(from_client(query(port=port)))
    box.after(UDP_S)
    box.tick()
    ends, missed = box.path.take_flow_exports()
    assert ([end.client_port for end in ends], missed) == ([1, 2, 3], 5)
    assert box.path.take_flow_exports() == ([], 0)


def test_flow_older_than_keeping_has_no_beginning(backend: str) -> None:
    """The start of a flow is known only for flows that began with exports on; switched off, nothing is kept."""
    box = Box(backend)
    box.send(from_client(query(port=1)))
    box.path.keep_flow_exports(10)
    box.send(from_client(query(port=2)))
    box.after(UDP_S)
    box.tick()
    assert [(end.client_port, end.began_ns) for end in box.path.take_flow_exports()[0]] == [(1, None), (2, START)]
    box.send(from_client(query(port=3)))
    box.path.keep_flow_exports(0)
    box.path.keep_flow_exports(10)
    box.after(UDP_S)
    box.tick()
    assert [(end.client_port, end.began_ns) for end in box.path.take_flow_exports()[0]] == [(3, None)]
    box.path.keep_flow_exports(0)
    box.send(from_client(query(port=4)))
    box.after(ESTABLISHED_S)
    box.tick()
    assert box.path.take_flow_exports() == ([], 0)


@pytest.mark.parametrize("most", [-1, 2**64])
def test_keep_flow_exports_wrong_number_raises(backend: str, most: int) -> None:
    """The same error on both backends."""
    with pytest.raises(ValueError):
        Box(backend).path.keep_flow_exports(most)
