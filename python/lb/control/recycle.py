"""
When the id of a server or service that is gone may be given to another: once nothing in the data path refers to it.

Ids are positions in the snapshot's tables: without this, every server and service that ever was would keep its slot. An
id has to be absent for as long as a datagram's fragments are remembered, which go where its first one went; then the
data path is asked for those that no flow refers to (`DataPath.retire_servers`, `retire_services`). Pure: time is an
argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lb.compiler.compile import Compiler, IdKind
from lb.model.snapshot import Snapshot

# Fragments are forgotten after 30 s (`docs/rules.md` rule 6, fragments), and flow exports are logged every half
# second.
QUARANTINE_NS = 35 * 10**9


class AbsentIds:
    """The ids of servers and services that the published snapshot does not have and that are not free yet."""

    def __init__(self) -> None:
        # By id: the generation that left it out.
        self._since: dict[IdKind, dict[int, int]] = {"server": {}, "service": {}}

    def of(self, kind: IdKind) -> dict[int, int]:
        """Return the absent ids of a kind, with the generation that left each out."""
        return dict(self._since[kind])

    def note(self, snapshot: Snapshot, compiler: Compiler) -> None:
        """Note which ids are absent from a snapshot that has been published, or after ids have been released."""
        tables: dict[IdKind, Sequence[object]] = {"server": snapshot.servers, "service": snapshot.services}
        for kind, table in tables.items():
            holes = {number for number, entry in enumerate(table) if entry is None}
            absent, before = holes & compiler.ids(kind) if holes else (), self._since[kind]
            self._since[kind] = {number: before.get(number, snapshot.generation) for number in absent}


class Recycler:
    """Remembers since when each absent id of one kind has been absent."""

    def __init__(self) -> None:
        self._since_ns: dict[tuple[int, int], int] = {}

    def due(self, absent: Mapping[int, int], now_ns: int) -> dict[int, int]:
        """
        Return the ids to ask the data path about.

        Args:
            absent: as `Controller.absent` returns them.
            now_ns: of a monotonic clock.
        """
        self._since_ns = {entry: self._since_ns.get(entry, now_ns) for entry in absent.items()}
        return {entry[0]: entry[1] for entry, since in self._since_ns.items() if now_ns - since >= QUARANTINE_NS}
