"""
When a server that left can be forgotten: once it has had no active flow for as long as a closing flow is remembered.

Earlier, the last packets of its connections (the answer to a FIN, a retransmission) would belong to nobody. Pure: time
and counts are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lb.control.state import ServerIdentity, ServerKey


class Leavers:
    """Remembers since when each leaving server has been without flows."""

    def __init__(self) -> None:
        self._idle_since_ns: dict[ServerIdentity, int] = {}

    def gone(
        self,
        leaving: Iterable[tuple[ServerKey, ServerIdentity]],
        servers: Mapping[str, Mapping[str, int]],
        closing_ns: int,
        now_ns: int,
    ) -> set[ServerIdentity]:
        """
        Return the servers to forget now.

        Args:
            leaving: as `Steering.leaving` gives them.
            servers: the data path's counters by `SERVICE/SERVER`.
            closing_ns: how long a closing flow is remembered.
            now_ns: of a monotonic clock.
        """
        idle = [identity for key, identity in leaving if not servers.get(str(key), {}).get("flows_active", 0)]
        self._idle_since_ns = {identity: self._idle_since_ns.get(identity, now_ns) for identity in idle}
        return {identity for identity, since_ns in self._idle_since_ns.items() if now_ns - since_ns >= closing_ns}
