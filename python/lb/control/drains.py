"""
How long servers have been draining, and whose time is over (behaviour 8).

A flow of a draining server goes on until it ends. A UDP flow whose sender never pauses has no end of its own, so there
is a deadline: the service's `drain_timeout`, 60 s by default over UDP. A frozen value, so that what is staged can be
given up; time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lb.compiler.spec import Draining, ServerIdentity


@dataclass(frozen=True, slots=True)
class Drains:
    """Since when each server has been draining. A reload that leaves it draining changes nothing."""

    since_ns: Mapping[ServerIdentity, int] = field(default_factory=dict)

    def followed(self, draining: Iterable[Draining], now_ns: int) -> Drains:
        """Return the same with the servers that are draining now. One that was active in between starts anew."""
        return Drains({each.identity: self.since_ns.get(each.identity, now_ns) for each in draining})

    def overdue(self, draining: Iterable[Draining], now_ns: int) -> list[Draining]:
        """
        Return those whose time is over.

        Args:
            draining: as `followed` was told.
            now_ns: of a monotonic clock.
        """
        return [
            each
            for each in draining
            if each.timeout_ns is not None and now_ns - self.since_ns.get(each.identity, now_ns) >= each.timeout_ns
        ]
