"""
How flows ended, kept for whoever asked: bounded, and written only when a flow begins or ends (`docs/datapath.md` rule
13). Ids inside; `datapath.py` names them.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python.entry import Entry


class End(NamedTuple):
    """One flow that is over. `began_ns`: None when that was not noted."""

    entry: Entry
    ended: str
    began_ns: int | None


class Ends:
    """The flows that ended since somebody last asked. Made off."""

    def __init__(self) -> None:
        self.most = 0
        self.began_ns: dict[Entry, int] = {}
        self.kept: list[End] = []
        self.missed = 0

    def keep(self, most: int) -> None:
        """Keep up to `most` ends between two calls of `take`. 0: none, and forget what was kept."""
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
            self.kept.append(End(entry, ended, began_ns))

    def take(self) -> tuple[list[End], int]:
        """Take what is there, in the order of the ends, and the number of those that found no room."""
        taken, missed = self.kept, self.missed
        self.kept, self.missed = [], 0
        return taken, missed
