"""
Flow exports: one record per flow that ended, for the flow log (`docs/rules.md` rule 13, counters). Bounded, and
written only when a flow begins or ends. Records hold ids; `datapath.py` adds the names.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python.entry import Entry


class FlowExport(NamedTuple):
    """One flow that ended. `began_ns`: monotonic, None when it began before exports were kept."""

    entry: Entry
    ended: str
    began_ns: int | None


class FlowExports:
    """The flows that ended since the last `take`. Off until `keep`."""

    def __init__(self) -> None:
        self.most = 0
        self.began_ns: dict[Entry, int] = {}
        self.kept: list[FlowExport] = []
        self.missed = 0

    def keep(self, most: int) -> None:
        """Keep up to `most` records between two calls of `take`. 0: none, and forget those kept."""
        self.most = most
        if most == 0:
            self.began_ns, self.kept, self.missed = {}, [], 0

    def begin(self, entry: Entry, now_ns: int) -> None:
        """Note that a flow began."""
        if self.most:
            self.began_ns[entry] = now_ns

    def end(self, entry: Entry, ended: str) -> None:
        """Note that a flow was removed, and how it ended."""
        if not self.most:
            return
        began_ns = self.began_ns.pop(entry, None)
        if len(self.kept) >= self.most:
            self.missed += 1
        else:
            self.kept.append(FlowExport(entry, ended, began_ns))

    def take(self) -> tuple[list[FlowExport], int]:
        """Return the records, oldest first, and the number of flows for which there was no room; forget both."""
        taken, missed = self.kept, self.missed
        self.kept, self.missed = [], 0
        return taken, missed
