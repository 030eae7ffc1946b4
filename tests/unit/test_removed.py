"""Removed servers: kept while they have flows, and a little longer."""

from __future__ import annotations

from ipaddress import ip_address
from typing import cast

from helpers import Box, from_client, make_interfaces, open_flow, request
from test_controller import config, extra, server

from lb.compiler.spec import ServerIdentity
from lb.control.controller import Controller
from lb.control.removed import RemovedServers
from lb.control.transactions import Publisher

IDENTITY: ServerIdentity = ((ip_address("198.18.1.100"), 9876, "tcp"), ip_address("198.18.1.31"), 8031)
CLOSING_NS = 100


def test_removed_server_with_flows_is_kept_and_then_for_the_closing_time() -> None:
    """
    Rule 18.2, servers that leave or fail: flows continue; the last packets of a closing one still reach the server.
    """
    removed = RemovedServers()

    def gone(flows: int, now_ns: int) -> bool:
        return IDENTITY in removed.gone({IDENTITY: flows}, CLOSING_NS, now_ns)

    assert [gone(2, 0), gone(0, 50), gone(0, 149), gone(0, 150)] == [False, False, False, True]
    assert [gone(1, 200), gone(0, 210), gone(0, 300), gone(0, 310)] == [False, False, False, True]


def test_removed_server_that_came_back_starts_anew() -> None:
    """Time without flows counts from the last removal, not from an earlier one."""
    removed = RemovedServers()
    assert removed.gone({IDENTITY: 0}, CLOSING_NS, 0) == set()
    assert removed.gone({}, CLOSING_NS, 50) == set()
    assert removed.gone({IDENTITY: 0}, CLOSING_NS, 120) == set()
    assert removed.gone({IDENTITY: 0}, CLOSING_NS, 220) == {IDENTITY}


def test_removed_servers_of_one_name_are_judged_one_by_one(backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: a flow of a removed server continues when another removed server of its name
    has none.
    """
    box = Box(backend)
    controller = Controller(config(server(1)), make_interfaces(1500), cast(Publisher, box.path))
    controller.start()
    assert open_flow(box, index=0) == 0
    controller.add("video", extra(2))
    controller.remove("video", "server1")
    for octet in (38, 39):
        controller.add("video", extra(1, address=f"198.18.1.{octet}"))
        controller.remove("video", "server1")
    removed_servers = controller.removed_servers()
    active = box.path.active_flows(list(removed_servers.values()))
    assert active == [1, 0, 0]
    flows = dict(zip(removed_servers, active, strict=True))
    removed = RemovedServers()
    assert removed.gone(flows, CLOSING_NS, 0) == set()
    controller.forget(removed.gone(flows, CLOSING_NS, CLOSING_NS))
    assert box.send(from_client(request("A", 1001, 5001))).server == "server1"


def test_active_flows_unknown_server_has_none(backend: str) -> None:
    """An id that no snapshot has had has no flows, and the query makes no room for it."""
    box = Box(backend)
    open_flow(box, index=0)
    assert box.path.active_flows([7, 0, 2**32 - 1]) == [0, 1, 0]
    assert box.path.active_flows([]) == []
