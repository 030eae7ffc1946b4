"""
When a removed server can be forgotten: once it has had no active flow for as long as a closing flow is remembered.

Before that, the last packets of its connections (the answer to a FIN, a retransmission) would find no flow. Pure: time
and counts are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

from lb.compiler.spec import ServerIdentity


class RemovedServers:
    """Remembers since when each removed server has been without flows."""

    def __init__(self) -> None:
        self._idle_since_ns: dict[ServerIdentity, int] = {}

    def gone(self, active: Mapping[ServerIdentity, int], closing_ns: int, now_ns: int) -> set[ServerIdentity]:
        """
        Return the servers to forget now.

        Args:
            active: the number of active flows of each removed server.
            closing_ns: how long a closing flow is remembered.
            now_ns: of a monotonic clock.
        """
        idle = [identity for identity, flows in active.items() if not flows]
        self._idle_since_ns = {identity: self._idle_since_ns.get(identity, now_ns) for identity in idle}
        return {identity for identity, since_ns in self._idle_since_ns.items() if now_ns - since_ns >= closing_ns}
