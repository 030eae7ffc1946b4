"""
When the id of a server or service that is gone can be another's: once nothing in the data path can refer to it.

Ids are positions in the snapshot's tables: without this, every server and service that ever was would keep its slot. An
id has to be absent for as long as a datagram's fragments are remembered, which go where its first one went; then the
data path is asked for those that no flow refers to (`DataPath.retire_servers`, `retire_services`). Pure: time is an
argument.
"""

from __future__ import annotations

from collections.abc import Mapping

# Fragments are forgotten after 30 s (`docs/datapath.md` rule 6), and what ended is logged every half second.
QUARANTINE_NS = 35 * 10**9


class Recycler:
    """Remembers since when each absent id of a kind has been so."""

    def __init__(self) -> None:
        self._since_ns: dict[tuple[int, int], int] = {}

    def due(self, absent: Mapping[int, int], now_ns: int) -> dict[int, int]:
        """
        Return the ids to ask the data path about.

        Args:
            absent: as `Steering.absent` gives them.
            now_ns: of a monotonic clock.
        """
        self._since_ns = {entry: self._since_ns.get(entry, now_ns) for entry in absent.items()}
        return {entry[0]: entry[1] for entry, since in self._since_ns.items() if now_ns - since >= QUARANTINE_NS}
