"""Passive health checks, from what clients met: pure numbers, and those of a real data path."""

from __future__ import annotations

import pytest
from helpers import Box, from_client, from_server, open_flow, request, response

from lb.control.health.passive import PassiveChecks

KEY = ("web", "server1")


def measured(connects: int, refused: int, unanswered: int, again: int = 0) -> dict[str, dict[str, dict[str, int]]]:
    counts = {"connects": connects, "refused": refused, "unanswered": unanswered, "syn_retransmitted": again}
    return {"web": {"server1": counts}}


@pytest.mark.parametrize(
    ("before", "after", "has_failed"),
    [
        ((5, 0, 0), (5, 0, 0), False),
        ((5, 0, 0), (9, 0, 0), False),
        ((5, 0, 0), (5, 2, 0), True),
        ((5, 0, 0), (5, 0, 3), True),
        ((5, 0, 0, 1), (5, 0, 0, 4), True),
        ((5, 0, 0), (6, 2, 3), False),
        ((5, 7, 7), (0, 1, 0), False),
    ],
)
def test_look_failures_without_a_success_are_reported(
    before: tuple[int, ...], after: tuple[int, ...], has_failed: bool
) -> None:
    """What counts is what happened since the last look; one connect that succeeded clears the server."""
    checks = PassiveChecks()
    assert list(checks.look(measured(*before), ["web"])) == []
    assert list(checks.look(measured(*after), ["web"])) == ([KEY] if has_failed else [])


def test_look_services_not_asked_about_wait() -> None:
    """A service that is not looked at loses nothing: its failures show at its next look."""
    checks = PassiveChecks()
    list(checks.look(measured(0, 0, 0), ["web"]))
    assert list(checks.look(measured(0, 1, 0), ["other"])) == []
    assert list(checks.look(measured(0, 2, 0), ["web"])) == [KEY]


def test_look_at_a_data_path_refused_and_silent(backend: str) -> None:
    """What a backend measures is what is looked at: a RST to a SYN, and a SYN that is sent again."""
    box, checks = Box(backend), PassiveChecks()

    def look() -> list[tuple[str, str]]:
        return list(checks.look(box.path.measurements(box.now), ["web"]))

    assert look() == []
    assert open_flow(box, port=1) == 0
    assert look() == []
    for port in (2, 3):
        box.send(from_client(request(port=port)))
    box.send(from_server(response("RA", 0, 1001, port=2), 1))
    box.after(1)
    box.send(from_client(request(port=3)))
    assert look() == [("web", "server2"), ("web", "server3")]
    assert look() == []
