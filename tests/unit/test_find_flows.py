"""The flow table a page at a time, on both backends: what `lb flows` asks."""

from __future__ import annotations

import random
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from served import ServedBalancer

from lb.backends.base import Flow

CLIENTS = ("198.18.1.21", "198.18.1.22", "198.18.1.23")
LATER_NS = 10**15


@pytest.fixture
def served(backend: str, tmp_path: Path) -> ServedBalancer:
    """Give a table with 60 flows, made in no order."""
    made = ServedBalancer(tmp_path, backend)
    rows = [(client, port) for client in CLIENTS for port in range(40000, 40020)]
    random.Random(1).shuffle(rows)
    for client, port in rows:
        made.open(client, port, "dns" if port % 5 == 0 else "video")
    return made


def names(rows: list[Flow]) -> list[tuple[str, int]]:
    return [(row.client, row.client_port) for row in rows]


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 60), (0, 1), (0, 7), (13, 20), (59, 1), (60, 5), (99, 5), (5, 0), (0, 2**63)]
)
def test_find_flows_page_is_a_slice_of_all(served: ServedBalancer, offset: int, limit: int) -> None:
    """Whatever the page, it is that part of the whole list, and the total is the whole's."""
    instant = time.monotonic_ns()
    total, page = served.data_path.find_flows(instant, offset, limit)
    assert (total, names(page)) == (60, names(served.data_path.flows(instant))[offset : offset + limit])


def test_find_flows_filters_count_before_the_page_is_cut(served: ServedBalancer) -> None:
    """Client, servers and state; each alone and all together."""
    instant = time.monotonic_ns()
    everything = served.data_path.flows(instant)
    client = ip_address(CLIENTS[1])
    ids = {server.name: number for number, server in enumerate(served.controller.snapshot.servers) if server}
    for asked, wanted in (
        ({"client": client}, [row for row in everything if row.client == CLIENTS[1]]),
        ({"servers": [ids["server1"], ids["ns1"]]}, [row for row in everything if row.server in ("server1", "ns1")]),
        ({"state": "udp-unreplied"}, [row for row in everything if row.protocol == "udp"]),
        ({"state": "udp"}, []),
        ({"servers": []}, []),
        ({"servers": [99]}, []),
        (
            {"client": client, "servers": [ids["server2"]], "state": "syn-sent"},
            [row for row in everything if (row.client, row.server) == (CLIENTS[1], "server2")],
        ),
    ):
        total, page = served.data_path.find_flows(instant, 2, 5, **asked)  # type: ignore[arg-type]
        assert (total, names(page)) == (len(wanted), names(wanted)[2:7])


def test_find_flows_expired_ones_are_not_there(served: ServedBalancer) -> None:
    """What is over is neither listed nor counted, also before it is removed."""
    assert served.data_path.find_flows(time.monotonic_ns() + LATER_NS, 0, 10) == (0, [])


def test_find_flows_unknown_state_is_an_error(served: ServedBalancer) -> None:
    """A state that no flow has is a mistake, not an empty list."""
    with pytest.raises(ValueError, match="is none of a flow"):
        served.data_path.find_flows(time.monotonic_ns(), 0, 1, state="open")
