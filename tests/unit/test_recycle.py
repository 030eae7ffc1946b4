"""Ids of what is gone for good are used again, and nothing of the old owner shows in the new one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import cast, get_args

import pytest
from helpers import (
    CLIENT,
    DNS,
    SECOND,
    WEB,
    Box,
    from_client,
    from_server,
    make_interfaces,
    make_snapshot,
    open_flow,
    query,
    request,
    response,
)
from test_controller import config, extra, present, server, start_controller

from lb.backends.sharded import in_all
from lb.compiler.compile import IdKind
from lb.control.controller import Controller
from lb.control.recycle import QUARANTINE_NS, Recycler
from lb.control.transactions import Publisher
from lb.model.snapshot import Plan, Snapshot

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
    """Entries that count for no server are entries too."""
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


def sweep(controller: Controller) -> None:
    """Forget removed servers, and release absent ids, as if no flow referred to them."""
    controller.forget(controller.removed_servers())
    for kind in get_args(IdKind):
        controller.release(kind, controller.absent(kind))


def test_add_and_remove_many_times_leaves_few_slots() -> None:
    """Without reuse every server that ever was keeps a slot in every table."""
    controller, _ = start_controller(config(server(1), server(2)))
    for number in range(CYCLES):
        controller.add("video", extra(3 + number % 50, port=9000 + number))
        controller.remove("video", f"server{3 + number % 50}")
        sweep(controller)
    assert [found.name for found in present(controller.snapshot)] == ["server1", "server2"]
    assert len(controller.snapshot.servers) <= 3
    controller.add("video", extra(9, port=1))
    assert len(controller.snapshot.servers) <= 3
    endpoints = [found.endpoint for found in present(controller.snapshot)]
    assert (len(endpoints), len(set(endpoints))) == (3, 3)


def test_release_endpoint_keeps_its_number() -> None:
    """A direct connection may refer to it: no other endpoint may have it, and its owner has it again."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.add("video", extra(3))
    first = present(controller.snapshot)[-1]
    controller.remove("video", "server3")
    sweep(controller)
    controller.add("video", extra(4))
    other = present(controller.snapshot)[-1]
    assert controller.snapshot.servers.index(other) == 2
    assert other.endpoint != first.endpoint
    controller.add("video", extra(3))
    again = present(controller.snapshot)[-1]
    assert (again.name, again.endpoint) == ("server3", first.endpoint)


def test_release_id_that_is_in_use_again_is_left_alone() -> None:
    """Between the data path's word and the release the server may have come back, and have gone again."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.remove("video", "server2")
    controller.forget(controller.removed_servers())
    asked = controller.absent("server")
    controller.add("video", extra(2))
    controller.release("server", asked)
    assert [found and found.name for found in controller.snapshot.servers] == ["server1", "server2"]
    controller.remove("video", "server2")
    controller.forget(controller.removed_servers())
    controller.release("server", asked)
    controller.add("video", extra(7))
    assert [found and found.name for found in controller.snapshot.servers] == ["server1", None, "server7"]


def test_preview_takes_no_ids() -> None:
    """What was only looked at leaves no trace."""
    controller, _ = start_controller(config(server(1)))
    for number in range(2, 50):
        controller.preview(config(server(1), server(number)))
    controller.add("video", extra(60))
    assert [found and found.name for found in controller.snapshot.servers] == ["server1", "server60"]


def test_recycler_waits_until_fragments_are_forgotten() -> None:
    """An id is due after the quarantine; one that was in use meanwhile starts over."""
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


def without_service(snapshot: Snapshot, number: int) -> Snapshot:
    """Return the next snapshot, in which a service is gone, and its servers are."""
    servers = tuple(None if each is not None and each.service == number else each for each in snapshot.servers)
    services = tuple(None if index == number else each for index, each in enumerate(snapshot.services))
    return replace(snapshot, generation=snapshot.generation + 1, services=services, servers=servers)


def test_retire_services_entry_of_any_kind_keeps_the_id(backend: str) -> None:
    """An orphaned flow holds the id of its service until it has expired; the next owner starts from zero."""
    box = Box(backend)
    first = make_snapshot()
    assert open_flow(box, index=0) == 0
    assert box.path.peek(WEB, ip_address(CLIENT), 1, box.now)[1] == 1
    assert box.path.retire_services([WEB]) == []
    gone = without_service(first, WEB)
    box.path.publish(gone)
    assert box.path.retire_services([WEB, DNS, 99]) == [99]
    box.after(7441)
    assert box.path.retire_services([WEB]) == []
    box.tick()
    assert box.path.retire_services([WEB, DNS]) == [WEB]
    assert box.path.retire_servers([0, 1, 2]) == [0, 1, 2]
    owner = first.services[WEB]
    assert owner is not None
    other = replace(owner, name="other", address=ip_address("198.18.1.101"))
    box.path.publish(replace(first, generation=3, services=(other, *first.services[1:])))
    assert set(box.counters()["services"]["other"].values()) == {0}
    assert box.path.peek(WEB, ip_address(CLIENT), 1, box.now) == (None, 0)


def test_retire_services_flow_that_comes_back_in_time_goes_on(backend: str) -> None:
    """An id that could not be retired stays with its owner: with it, flows and counts are there again."""
    box = Box(backend)
    first = make_snapshot()
    assert open_flow(box, index=0) == 0
    box.path.publish(without_service(first, WEB))
    assert box.path.retire_services([WEB]) == []
    box.path.publish(replace(first, generation=3))
    assert box.send(from_client(request("A", 1001, 5001))).server == "server1"
    assert box.counters()["services"]["web"]["flows_created"] == 1


@pytest.mark.parametrize("answered", [True, False])
def test_retire_services_counts_what_was_evicted_or_reset(backend: str, answered: bool) -> None:
    """Every way out of the table is a way out of the count of the service, too."""
    box = Box(backend, capacity=2)
    for port in range(40000, 40006):
        result = box.send(from_client(request(port=port)))
        assert result.verdict == "forward"
        if answered:
            box.send(from_server(response(port=port), int(str(result.server)[-1]) - 1))
            box.after(4)
    for number in range(3):
        box.path.reset_flows(number, 100, box.now)
    box.path.publish(without_service(make_snapshot(), WEB))
    assert box.path.retire_services([WEB]) == [WEB]


def test_retire_services_order_of_least_begins_anew(backend: str) -> None:
    """A service that takes over an id starts its rounds as on a fresh data path."""
    choices = []
    for used in (True, False):
        box = Box(backend, make_snapshot("least"))
        if used:
            # Its rounds are at another position than those of a new service.
            for port in (100, 101, 102, 103):
                box.send(from_client(request(port=port)))
                box.send(from_client(request("R", 1001, port=port)))
            box.after(8000)
            box.tick()
            box.path.publish(without_service(make_snapshot("least"), WEB))
            assert box.path.retire_services([WEB]) == [WEB]
            assert box.path.retire_servers([0, 1, 2]) == [0, 1, 2]
            box.path.publish(replace(make_snapshot("least"), generation=3))
        choices.append([box.send(from_client(request(port=port))).server for port in range(200, 207)])
    assert choices[0] == choices[1]


def test_in_all_id_that_one_worker_holds_is_left_out() -> None:
    """Several workers: an id is free when none of them has a flow of it."""
    assert in_all([5, 3, 4], [[5, 3, 4], [3, 5], [5, 4, 3]]) == [5, 3]


def test_service_added_and_removed_many_times_by_reload_leaves_few_slots() -> None:
    """Without reuse every service that ever was keeps a slot, and its plan."""
    controller, _ = start_controller(config(server(1)))
    sizes = set()
    for number in range(CYCLES):
        controller.reload(config(server(1), port=1000 + number))
        sizes.add(len(controller.snapshot.services))
        sweep(controller)
    assert len(controller.snapshot.services) <= 2
    assert len(controller.snapshot.servers) <= 2
    assert max(sizes) <= 3
    assert len(controller._compiler._plans) <= 2


def test_service_id_is_kept_while_its_servers_are_leaving() -> None:
    """Flows of a removed service that drain keep what they mean: no other has its id, and it has it again."""
    controller, _ = start_controller(config(server(1)))
    controller.reload(config(server(1), port=1))
    for kind in get_args(IdKind):
        controller.release(kind, controller.absent(kind))
    controller.reload(config(server(1), port=2))
    assert [found and found.port for found in controller.snapshot.services] == [9876, 1, 2]
    controller.reload(config(server(1)))
    assert [found and found.port for found in controller.snapshot.services] == [9876, 1, 2]
    assert [found and found.service for found in controller.snapshot.servers] == [0, 1, 2]


def test_reload_without_a_service_forgets_what_was_measured_of_it() -> None:
    """Names that are gone keep nothing."""
    controller, _ = start_controller(config(server(1)))
    controller.replan("video", {})
    controller.reload(config(server(1)))
    assert list(controller._measurements) == ["video"]
    after = config(server(1))
    renamed = after.services[0].model_copy(update={"name": "other"})
    controller.reload(after.model_copy(update={"services": (renamed,)}))
    assert [found and found.name for found in controller.snapshot.services] == ["other"]
    assert list(controller._measurements) == []


def test_service_of_every_reload_leaves_few_slots_and_flows_go_on(backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: 1000 services come and go; a flow of the first one, which is removed, keeps
    its server.
    """
    box = Box(backend)
    controller = Controller(config(server(1)), make_interfaces(1500), cast(Publisher, box.path))
    controller.start()
    assert open_flow(box, index=0) == 0
    for number in range(1000):
        controller.reload(config(server(1), port=1000 + number))
        removed = controller.removed_servers()
        active = box.path.active_flows(list(removed.values()))
        controller.forget([identity for identity, flows in zip(removed, active, strict=True) if not flows])
        controller.release("server", free(controller.absent("server"), box.path.retire_servers))
        controller.release("service", free(controller.absent("service"), box.path.retire_services))
    assert len(controller.snapshot.services) <= 3
    assert len(controller.snapshot.servers) <= 3
    result = box.send(from_client(request("A", 1001, 5001)))
    assert (result.verdict, result.service, result.server) == ("forward", "video@198.18.1.100:9876", "server1")
    assert box.counters()["services"]["video@198.18.1.100:9876"]["flows_active"] == 1


def free(absent: dict[int, int], retire: Callable[[list[int]], list[int]]) -> dict[int, int]:
    """Return those of the absent ids that the data path gives up."""
    return {number: absent[number] for number in retire(list(absent))}
