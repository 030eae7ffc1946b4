"""
Changes that wait to be published together: what they make of the spec, and what follows from them.

`lb.control.controller` makes a stage of what is published, lets changes act on it, and publishes the result. A stage
that is given up has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lb.compiler.edits import with_overdue
from lb.compiler.spec import (
    EffectiveServer,
    EffectiveService,
    ServerIdentity,
    ServerKey,
    Spec,
    draining_servers,
    server_identity,
)
from lb.control.drains import Drains
from lb.control.finding import Index, find_server, find_service
from lb.model.snapshot import Interface
from lb.policies.base import Measurements


@dataclass(slots=True)
class Stage:
    """
    A spec under change.

    Args:
        spec, interfaces, measurements, drains: as published, at first; measurements are by service name.
        services_of: returns the effective services of a spec.
        index_of: returns the present servers of a spec.
        monotonic_ns: returns nanoseconds of a monotonic clock.
        is_dirty: whether there is anything to publish.
        events: for the history: what, change, reason.
        resets: servers whose flows are to be reset. By identity: a new server has no id before the publication.
    """

    spec: Spec
    interfaces: tuple[Interface, ...]
    measurements: dict[str, Measurements]
    drains: Drains
    services_of: Callable[[Spec], tuple[EffectiveService, ...]]
    index_of: Callable[[Spec], Index]
    monotonic_ns: Callable[[], int]
    is_dirty: bool = False
    events: list[tuple[str, str, str]] = field(default_factory=list)
    resets: list[ServerIdentity] = field(default_factory=list)

    def copy(self) -> Stage:
        """Return a copy, to go back to."""
        return replace(self, measurements=dict(self.measurements), events=list(self.events), resets=list(self.resets))

    def change(self, spec: Spec, what: str = "", change: str = "", reason: str = "") -> None:
        """Replace the spec, and note an event if there is one."""
        self.spec, self.is_dirty = spec, True
        self._follow_drains()
        if what:
            self.events.append((what, change, reason))

    def _follow_drains(self) -> None:
        """Note which servers drain now: one that is enabled and drained in the same batch starts anew."""
        draining = list(draining_servers(self.spec))
        self.drains = self.drains.followed(draining, self.monotonic_ns())
        before = self.spec.overdue
        overdue = before & {each.identity for each in draining} if before else frozenset()
        if overdue != before:
            self.spec = with_overdue(self.spec, overdue)

    def reset(self, owner: EffectiveService, server: EffectiveServer) -> None:
        """Stage a reset of the flows of a server. It keeps its id until it is forgotten."""
        self.resets.append(server_identity(owner.config, server.config))

    def services(self) -> tuple[EffectiveService, ...]:
        """Return every service as the changes so far make it."""
        return self.services_of(self.spec)

    def service(self, name: str) -> EffectiveService:
        """Return a service. Raise UnknownNameError when there is none of the name."""
        return find_service(self.services(), name)

    def server(self, service: str, server: str) -> tuple[ServerKey, EffectiveService, EffectiveServer]:
        """Return a server with its service. Raise UnknownNameError when there is none of the names."""
        owner = self.service(service)
        return ServerKey(service, server), owner, find_server(owner, server)
