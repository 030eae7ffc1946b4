"""
Flows out of the running balancer, as rows with what their ids mean, and into it: for snapshots, `lb flows dump` and
`lb flows load` (`lb.control.flow_file`). Called from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lb.backends.base import ServerIds
from lb.control.flow_file import Contents
from lb.control.kept_names import Meanings, Names, translated
from lb.errors import LbError
from lb.model.snapshot import Snapshot


class Published(Protocol):
    """What is published: `lb.control.controller.Controller`."""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot in use."""


class Rows(Protocol):
    """The flow table as rows: `lb.control.runtime.Runtime`."""

    def flow_layout(self) -> str:
        """Return the layout of the rows. Raise LbError when the backend has none."""

    def copy_flows(self, place: int) -> tuple[bytes, int | None]:
        """Return rows, and where the next ones are."""

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None]
    ) -> tuple[int, int]:
        """Take over the flows of rows; return how many were, and how many were not."""


class Loaded(NamedTuple):
    """How many flows were taken over, and how many were not."""

    flows: int
    dropped: int


class StoredFlows:
    """
    The flows of the running balancer; a `Source` of a file.

    Args:
        published: says what ids mean now.
        table: of the data path.
    """

    def __init__(self, published: Published, table: Rows) -> None:
        self._published = published
        self._table = table
        self._meanings: tuple[Snapshot, Meanings] | None = None

    def layout(self) -> str:
        """Return the layout of the rows. Raise LbError when the backend has none."""
        return self._table.flow_layout()

    def names(self) -> Names:
        """Return what the ids in rows mean now."""
        return Names.of(self._published.snapshot, 0, 0)

    def rows(self, place: int) -> tuple[bytes, int | None]:
        """Return rows, and where the next ones are."""
        return self._table.copy_flows(place)

    def load(self, layout: str, names: Names, rows: bytes) -> Loaded:
        """
        Take over the flows of rows; those that the table has already stay as they are.

        Args:
            layout: of the rows.
            names: what the ids in them mean.
            rows: as another process, or this one, has returned them.

        Raises:
            LbError: they are of another layout, or cut short, or the backend has none.
        """
        self._require(layout)
        ids = translated(names, self._meanings_now())
        return Loaded(*self._table.load_flows(rows, ids.rows, ids.interfaces))

    def load_all(self, contents: Contents) -> Loaded:
        """Take over all flows of a file. Errors: as `load`."""
        self._require(contents.layout)
        ids, flows, dropped = translated(contents.names, self._meanings_now()), 0, 0
        for rows in contents.blocks():
            loaded = Loaded(*self._table.load_flows(rows, ids.rows, ids.interfaces))
            flows, dropped = flows + loaded.flows, dropped + loaded.dropped
        return Loaded(flows, dropped)

    def _require(self, layout: str) -> None:
        if layout != self.layout():
            raise LbError("its flows are laid out as those of another version of lb, or of another kind of machine")

    def _meanings_now(self) -> Meanings:
        """Return the ids of the snapshot in use by what they mean; computed once for each snapshot."""
        snapshot, known = self._published.snapshot, self._meanings
        if known is None or known[0] is not snapshot:
            known = self._meanings = (snapshot, Meanings(snapshot))
        return known[1]
