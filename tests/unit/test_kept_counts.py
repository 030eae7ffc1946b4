"""
What is counted of flows that another process left: their ids stay in use, their requests wait, their bytes are on the
way, and all of that ends with them (rule 23.1, flows over a restart).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from helpers import Box, from_client, from_server, make_snapshot, open_flow, request, response

from lb.control.kept_names import Names, translations

CAPACITY = 64
PORTS = range(40000, 40006)


@contextmanager
def restarted(before: Box, table: IO[bytes]) -> Iterator[Box]:
    """Give a data path that has taken over the flows of another one, at the same instant."""
    with tempfile.TemporaryFile() as file:
        box = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        box.now = before.now
        snapshot = make_snapshot()
        ids = translations(Names.of(snapshot, 0, 0), snapshot)
        assert box.path.keep_flows(table.fileno(), ids.rows, ids.interfaces, box.now) == (len(before.states()), 0)
        yield box


@contextmanager
def opened(count: int) -> Iterator[Box]:
    """Give a data path with established flows that has been restarted."""
    with tempfile.TemporaryFile() as file:
        box = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        for port in PORTS[:count]:
            open_flow(box, port=port)
        box.after(1)
        with restarted(box, file) as again:
            yield again


def test_ids_of_kept_flows_are_in_use_until_they_end() -> None:
    """A server that has left keeps its id as long as an entry of before refers to it, and no longer."""
    with opened(6) as box:
        box.path.publish(make_snapshot(generation=2, services=(None,) * 4, servers=(None,) * 12))
        assert box.path.retire_servers(range(12)) == list(range(3, 12))
        assert box.path.retire_services(range(4)) == [1, 2, 3]
        box.after(100_000)
        box.tick()
        assert box.states() == []
        assert box.path.retire_servers(range(3)) == [0, 1, 2]
        assert box.path.retire_services(range(1)) == [0]


def test_request_of_before_is_answered() -> None:
    """It waits on, and its answer ends the wait; what the answer has on the way is acknowledged."""
    with tempfile.TemporaryFile() as file:
        before = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        server = open_flow(before)
        before.send(from_client(request("PA", 1001, 5001, b"question")))
        before.after(1)
        with restarted(before, file) as box:
            name = f"server{server + 1}"
            assert box.path.measurements(box.now)["web"][name]["waiting_flows"] == 1
            assert box.send(from_server(response("PA", 5001, 1009, b"answer"), server)).verdict == "forward"
            measured = box.path.measurements(box.now)["web"][name]
            assert (measured["waiting_flows"], measured["in_flight_bytes"]) == (0, 6)
            box.send(from_client(request("A", 1009, 5007)))
            assert box.path.measurements(box.now)["web"][name]["in_flight_bytes"] == 0


def test_bytes_of_before_are_acknowledged() -> None:
    with tempfile.TemporaryFile() as file:
        before = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        server = open_flow(before)
        before.send(from_client(request("PA", 1001, 5001, b"question")))
        before.send(from_server(response("PA", 5001, 1009, b"answer"), server))
        with restarted(before, file) as box:
            name = f"server{server + 1}"
            assert box.path.measurements(box.now)["web"][name]["in_flight_bytes"] == 6
            box.send(from_client(request("A", 1009, 5007)))
            assert box.path.measurements(box.now)["web"][name]["in_flight_bytes"] == 0


def test_flows_of_before_end_as_others_do() -> None:
    """By FINs, by reset and by time; nothing counts below nothing."""
    with opened(6) as box:
        for port in PORTS[:2]:
            (flow,) = [each for each in box.path.flows(box.now) if each.client_port == port]
            index = int(flow.server[-1]) - 1
            box.send(from_client(request("FA", 1001, 5001, port=port)))
            box.send(from_server(response("FA", 5001, 1002, port=port), index))
            box.send(from_client(request("A", 1002, 5002, port=port)))
        assert sorted(box.states()).count("closing") == 2
        assert box.path.reset_flows(2, 10, box.now) == 2
        box.tick()
        box.after(100_000)
        box.tick()
        assert box.states() == []
        assert box.path.active_flows(range(12)) == [0] * 12
        for measured in box.path.measurements(box.now)["web"].values():
            assert (measured["waiting_flows"], measured["in_flight_bytes"]) == (0, 0)
