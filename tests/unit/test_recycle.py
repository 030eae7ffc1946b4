"""Ids of servers that are gone for good are used again, and nothing of the old owner shows in the new one's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import SECOND, Box, from_client, from_server, make_snapshot, open_flow, query, request, response
from test_steering import config, extra, present, server, steer

from lb.control.recycle import QUARANTINE_NS, Recycler
from lb.control.steering import Steering
from lb.snapshot import Plan, Snapshot

CYCLES = 300


def without(snapshot: Snapshot, number: int) -> Snapshot:
    """Return the next snapshot, in which a server of service 0 is gone."""
    servers = tuple(None if index == number else each for index, each in enumerate(snapshot.servers))
    service = snapshot.services[0]
    assert service is not None
    plan = Plan("counter", tuple(slot for slot in service.plan.slots if slot != number))
    services = (replace(service, plan=plan), *snapshot.services[1:])
    return replace(snapshot, generation=snapshot.generation + 1, servers=servers, services=services)


def test_retire_servers_entry_of_any_kind_keeps_the_id(backend: str) -> None:
    """An orphaned flow holds its server's id until it has expired; then the next owner starts from zero."""
    box = Box(backend)
    first = make_snapshot()
    assert open_flow(box, index=0) == 0
    assert box.path.retire_servers([0]) == []
    gone = without(first, 0)
    box.path.publish(gone)
    assert box.path.retire_servers([0, 1]) == []
    box.after(7441)
    assert box.path.retire_servers([0]) == []
    box.tick()
    assert box.path.retire_servers([0, 1]) == [0]
    owner = first.servers[0]
    assert owner is not None
    other = replace(owner, name="other", address=ip_address("198.18.1.33"), endpoint=99)
    box.path.publish(replace(first, generation=3, servers=(other, *first.servers[1:])))
    assert set(box.counters()["servers"]["web/other"].values()) == {0}
    measured = box.path.measurements(box.now)["web"]["other"]
    assert {key: value for key, value in measured.items() if value} == {}


def test_retire_servers_closing_and_udp_entries_keep_the_id(backend: str) -> None:
    """Entries that count for nobody are entries."""
    box = Box(backend)
    open_flow(box, index=0)
    box.send(from_client(request("R", 1001)))
    assert box.states() == ["closing"]
    assert box.send(from_client(query())).verdict == "forward"
    snapshot = make_snapshot()
    dns = without(snapshot, 0)
    box.path.publish(replace(dns, servers=(None, None, None, None, *snapshot.servers[4:])))
    assert box.path.retire_servers([0, 1, 2, 3]) == [1, 2]
    box.after(121)
    box.tick()
    assert box.path.retire_servers([0, 3]) == [0]
    box.after(300)
    box.tick()
    assert box.path.retire_servers([3]) == [3]


def sweep(steering: Steering) -> None:
    """Forget what is leaving, and release what is absent, as if no flow referred to it."""
    steering.forget([identity for _, identity in steering.leaving()])
    steering.release(steering.absent())


def test_add_and_remove_many_times_leaves_few_slots() -> None:
    """Without reuse every server that ever was keeps a slot in every table."""
    steering, _ = steer(config(server(1), server(2)))
    for number in range(CYCLES):
        steering.add("video", extra(3 + number % 50, port=9000 + number))
        steering.remove("video", f"server{3 + number % 50}")
        sweep(steering)
    assert [found.name for found in present(steering.snapshot)] == ["server1", "server2"]
    assert len(steering.snapshot.servers) <= 3
    steering.add("video", extra(9, port=1))
    assert len(steering.snapshot.servers) <= 3
    endpoints = [found.endpoint for found in present(steering.snapshot)]
    assert (len(endpoints), len(set(endpoints))) == (3, 3)


def test_release_endpoint_keeps_its_number() -> None:
    """A direct connection may refer to it: nobody else may have it, and its owner has it again."""
    steering, _ = steer(config(server(1), server(2)))
    steering.add("video", extra(3))
    first = present(steering.snapshot)[-1]
    steering.remove("video", "server3")
    sweep(steering)
    steering.add("video", extra(4))
    other = present(steering.snapshot)[-1]
    assert steering.snapshot.servers.index(other) == 2
    assert other.endpoint != first.endpoint
    steering.add("video", extra(3))
    again = present(steering.snapshot)[-1]
    assert (again.name, again.endpoint) == ("server3", first.endpoint)


def test_release_id_that_is_in_use_again_is_left_alone() -> None:
    """Between the data path's word and the release the server may have come back, and have gone again."""
    steering, _ = steer(config(server(1), server(2)))
    steering.remove("video", "server2")
    steering.forget([identity for _, identity in steering.leaving()])
    asked = steering.absent()
    steering.add("video", extra(2))
    steering.release(asked)
    assert [found and found.name for found in steering.snapshot.servers] == ["server1", "server2"]
    steering.remove("video", "server2")
    steering.forget([identity for _, identity in steering.leaving()])
    steering.release(asked)
    steering.add("video", extra(7))
    assert [found and found.name for found in steering.snapshot.servers] == ["server1", None, "server7"]


def test_preview_takes_no_ids() -> None:
    """What was only looked at leaves no trace."""
    steering, _ = steer(config(server(1)))
    for number in range(2, 50):
        steering.preview(config(server(1), server(number)))
    steering.add("video", extra(60))
    assert [found and found.name for found in steering.snapshot.servers] == ["server1", "server60"]


def test_recycler_waits_until_fragments_are_forgotten() -> None:
    """An id is asked about after the quarantine; one that was in use meanwhile starts over."""
    recycler = Recycler()
    assert recycler.due({4: 7}, 0) == {}
    assert recycler.due({4: 7}, QUARANTINE_NS - 1) == {}
    assert recycler.due({4: 7, 5: 8}, QUARANTINE_NS) == {4: 7}
    assert recycler.due({4: 9}, QUARANTINE_NS + SECOND) == {}


@pytest.mark.parametrize("answered", [True, False])
def test_retire_servers_counts_what_was_evicted_or_reset(backend: str, answered: bool) -> None:
    """Every way out of the table is a way out of the count."""
    box = Box(backend, capacity=2)
    for port in range(40000, 40006):
        result = box.send(from_client(request(port=port)))
        assert result.verdict == "forward"
        if answered:
            box.send(from_server(response(port=port), int(str(result.server)[-1]) - 1))
            # A handshake that the server has answered is spared for 3 s.
            box.after(4)
    assert box.event("flow_evicted_half_open") == 4
    for number in range(3):
        box.path.reset_flows(number, 100, box.now)
    box.path.publish(replace(without(make_snapshot(), 0), servers=(None,) * 3 + make_snapshot().servers[3:]))
    assert box.path.retire_servers([0, 1, 2]) == [0, 1, 2]
