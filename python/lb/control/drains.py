"""
How long servers have been draining, and whose time is over (behaviour 8).

A flow of a draining server goes on until it ends. A UDP flow whose sender never pauses has no end of its own, so there
is a deadline: the service's `drain_timeout`, 60 s by default over UDP. Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable

from lb.control.state import Draining, ServerIdentity


class Drains:
    """Remembers since when each server has been draining. A reload that leaves it draining changes nothing."""

    def __init__(self) -> None:
        self._since_ns: dict[ServerIdentity, int] = {}

    def follow(self, draining: Iterable[Draining], now_ns: int) -> None:
        """Note which servers are draining now. One that was active in between starts anew."""
        self._since_ns = {each.identity: self._since_ns.get(each.identity, now_ns) for each in draining}

    def overdue(self, draining: Iterable[Draining], now_ns: int) -> list[Draining]:
        """
        Return those whose time is over.

        Args:
            draining: as `follow` was told.
            now_ns: of a monotonic clock.
        """
        return [
            each
            for each in draining
            if each.timeout_ns is not None and now_ns - self._since_ns.get(each.identity, now_ns) >= each.timeout_ns
        ]
