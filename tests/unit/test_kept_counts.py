"""
What is counted of flows that another process left: their ids stay in use, their requests wait, their bytes are on the
way, and all of that ends with them (rule 23.1, flows over a restart).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from helpers import Box, from_client, from_server, make_snapshot, open_flow, request, response

from lb.control.kept_names import Names, translations
from lb.model.snapshot import Snapshot

CAPACITY = 64
PORTS = range(40000, 40006)


@contextmanager
def restarted(
    before: Box, table: IO[bytes], carry: Callable[[Any], Any] | None = None, snapshot: Snapshot | None = None
) -> Iterator[Box]:
    """
    Give a data path that has taken over the flows of another one, at the same instant. `carry`: what it goes on from
    beside them, of what that one carries; None: nothing.
    """
    with tempfile.TemporaryFile() as file:
        snapshot = snapshot or make_snapshot()
        box = Box("rust", snapshot, capacity=CAPACITY, table_fd=file.fileno())
        box.now = before.now
        ids = translations(Names.of(snapshot, 0, 0), snapshot)
        assert box.path.keep_flows(table.fileno(), ids.rows, ids.interfaces, box.now) == (len(before.states()), 0)
        if carry is not None:
            box.path.carry(carry(before.path.carried()), ids.services, ids.servers)
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


def carried_over(before: Box, table: IO[bytes], change: Any = None) -> Any:
    """Return a data path that goes on from all of another one; `change`: what the numbers become on the way."""
    return restarted(before, table, lambda carried: carried if change is None else change(carried))


def test_counters_and_measurements_go_on_by_name() -> None:
    """Rule 23.2, taking over: all counters of before, those of flows counted once, and what was measured."""
    with tempfile.TemporaryFile() as file:
        before = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        servers = {port: open_flow(before, port=port) for port in PORTS}
        for port, server in servers.items():
            before.send(from_client(request("PA", 1001, 5001, b"question", port=port)))
            before.after(0.5)
            before.send(from_server(response("PA", 5001, 1009, b"answer", port=port), server))
        before.send(b"short")
        with carried_over(before, file) as box:
            counters = before.path.counters()
            # Of the packet loop's own work, not of packets.
            assert {name: value for name, value in box.path.counters().items() if name != "loop"} == {
                name: value for name, value in counters.items() if name != "loop"
            }
            assert counters["verdicts"]["drop.frame_truncated"] == 1
            assert box.path.measurements(box.now) == before.path.measurements(before.now)
            box.after(1)
            before.after(1)
            for each in (box, before):
                each.send(from_client(request("PA", 1009, 5007, b"more", port=PORTS[0])))
                each.after(0.25)
            assert box.path.measurements(box.now) == before.path.measurements(before.now)


@pytest.mark.parametrize("selector", ["counter", "least", "random"])
def test_next_flows_are_placed_as_if_nothing_had_happened(selector: Any) -> None:
    """Rule 23.2, taking over: rounds and random draws go on where they were."""
    snapshot = make_snapshot(selector=selector)
    with tempfile.TemporaryFile() as file:
        before = Box("rust", snapshot, capacity=CAPACITY, table_fd=file.fileno())
        for port in PORTS[:5]:
            open_flow(before, port=port)
        with restarted(before, file, lambda carried: carried, snapshot) as box:
            ports = range(41000, 41012)
            assert [open_flow(box, port=port) for port in ports] == [open_flow(before, port=port) for port in ports]


def test_numbers_of_another_version_are_left_out() -> None:
    """Names that are unknown, ids that mean nothing, numbers that no counter holds."""

    def change(carried: Any) -> Any:
        carried["totals"] |= {"drop.of_the_future": 5, "future": 5, "drop.": 5, ".": 5, "rx_packets": 2**70 + 3}
        carried["services"] = [{"flows_created": 9, "of the future": 1}, *[{"flows_created": 7}] * 20]
        carried["servers"] = [{"of the future": 1}, *[{"flows_created": 7}] * 40]
        return carried

    with tempfile.TemporaryFile() as file:
        before = Box("rust", capacity=CAPACITY, table_fd=file.fileno())
        open_flow(before)
        with carried_over(before, file, change) as box:
            counters = box.path.counters()
            assert counters["rx_packets"] == 3
            assert counters["services"]["web"]["flows_created"] == 9
