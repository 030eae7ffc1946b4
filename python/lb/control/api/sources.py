"""What the admin API needs from the running balancer, beside the controller and the queue of changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lb.backends.base import Flow
from lb.compiler.spec import Spec
from lb.control.outcome import Preview
from lb.model.snapshot import Address, Snapshot


class Published(Protocol):
    """What is published: `lb.control.controller.Controller`."""

    @property
    def spec(self) -> Spec:
        """The published spec."""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that it compiles to."""


class DataPathQueries(Protocol):
    """What is asked of the data path: `lb.control.runtime.Runtime`. Called in threads."""

    def counters(self) -> dict[str, Any]:
        """Return all counters."""

    def find_flows(
        self, offset: int, limit: int, client: Address | None, servers: Sequence[int] | None, state: str | None
    ) -> tuple[int, list[Flow]]:
        """Return how many flows match, and `limit` of them from `offset` on. None matches any value."""

    def peek(self, service: int, client: Address, port: int) -> tuple[Flow | None, int]:
        """Return the flow of a client if it has one, and the round-robin position of the service (by id)."""


class Reloads(Protocol):
    """Reloads and dry runs: `lb.control.reload.Reloader`."""

    async def reload(self, deadline_s: float | None = None) -> list[str]:
        """Read the configuration again, swap to it, and return what is different."""

    async def preview(self, deadline_s: float | None = None) -> Preview:
        """Return what a reload would do."""
