"""
How long servers have been draining, and which have drained for their time (rule 18.2, servers that leave or fail).

Flows of a draining server continue until they end. A UDP flow whose sender never pauses does not end by itself, so
there is a deadline: the `drain_timeout` of the service, 60 s by default over UDP. A frozen value, so that what is
staged can be given up; time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lb.compiler.spec import Draining, ServerIdentity


@dataclass(frozen=True, slots=True)
class Drains:
    """Since when each server has been draining. A reload that leaves a server draining does not restart its time."""

    since_ns: Mapping[ServerIdentity, int] = field(default_factory=dict)

    def followed(self, draining: Iterable[Draining], now_ns: int) -> Drains:
        """Return the drains with the servers that drain now. A server that was active in between starts anew."""
        return Drains({each.identity: self.since_ns.get(each.identity, now_ns) for each in draining})

    def overdue(self, draining: Iterable[Draining], now_ns: int) -> list[Draining]:
        """
        Return the servers whose `drain_timeout` is over.

        Args:
            draining: as `followed` was given.
            now_ns: of a monotonic clock.
        """
        return [
            each
            for each in draining
            if each.timeout_ns is not None and now_ns - self.since_ns.get(each.identity, now_ns) >= each.timeout_ns
        ]
