"""
The policy `source-hash`: every flow of a client address goes to the same server.

The table is Maglev's, so that a server that leaves takes only its own clients with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.fields.key import option
from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, OptionProblem, ServerView
from lb.policies.maglev import DEFAULT_TABLE_SIZE, TABLE_SIZE, TableSize, table_problems, table_slots


@dataclass(frozen=True, slots=True)
class SourceHash(BuiltIn):
    """Place flows by a hash of the client's address."""

    name: ClassVar[str] = "source-hash"
    table_size: TableSize = option(TABLE_SIZE, default=DEFAULT_TABLE_SIZE)

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan whose slots are the whole table."""
        return Plan("hash-source", table_slots(servers, self.table_size))

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield a problem when the table cannot be filled."""
        yield from table_problems(self.table_size, server_names)
