"""
The policy `static`: every flow goes to one server.

Option `server`: its name. Without it, the first server that takes flows. There is no second choice when a named
server takes none: then the service has no server (rule 8.18, refusals).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.fields.key import option
from lb.fields.types import Text
from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, OptionProblem, ServerView, eligible


@dataclass(frozen=True, slots=True)
class Static(BuiltIn):
    """Place every flow on one server."""

    name: ClassVar[str] = "static"
    server: Text | None = option(
        "Name of the server", default=None, example="server1", unset="the first that takes flows"
    )

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan of at most one slot."""
        fitting = [server.id for server in eligible(servers) if self.server in (None, server.name)]
        return Plan("counter", tuple(fitting[:1]))

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield a problem when `server` is no name of a server."""
        if self.server is None or self.server in server_names:
            return
        near = difflib.get_close_matches(str(self.server), server_names, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"servers: {', '.join(server_names) or 'none'}"
        yield OptionProblem("server", f'"{self.server}" is not a server of this service', hint)
