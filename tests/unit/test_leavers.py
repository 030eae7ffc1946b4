"""Servers that left: kept while they have flows, and a little longer."""

from __future__ import annotations

from ipaddress import ip_address

from lb.control.leavers import Leavers
from lb.control.state import ServerIdentity, ServerKey

IDENTITY: ServerIdentity = ((ip_address("198.18.1.100"), 9876, "tcp"), ip_address("198.18.1.31"), 8031)
LEAVING = [(ServerKey("video", "server1"), IDENTITY)]
CLOSING_NS = 100


def test_leaver_with_flows_is_kept_and_then_for_the_closing_time() -> None:
    """Behaviour 8: flows go on; the last packets of a closing one still find their way."""
    leavers = Leavers()

    def gone(flows: int, now_ns: int) -> bool:
        counters = {"video/server1": {"flows_active": flows}}
        return IDENTITY in leavers.gone(LEAVING, counters, CLOSING_NS, now_ns)

    assert [gone(2, 0), gone(0, 50), gone(0, 149), gone(0, 150)] == [False, False, False, True]
    assert [gone(1, 200), gone(0, 210), gone(0, 300), gone(0, 310)] == [False, False, False, True]


def test_leaver_that_came_back_starts_anew() -> None:
    """Time without flows counts from when it left, not from an earlier leave."""
    leavers = Leavers()
    assert leavers.gone(LEAVING, {}, CLOSING_NS, 0) == set()
    assert leavers.gone([], {}, CLOSING_NS, 50) == set()
    assert leavers.gone(LEAVING, {}, CLOSING_NS, 120) == set()
    assert leavers.gone(LEAVING, {}, CLOSING_NS, 220) == {IDENTITY}
