"""Finding services and servers by name, and what to say when there is none of that name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lb.compiler.spec import EffectiveServer, EffectiveService, ServerKey, Spec, present_servers
from lb.config import ServerConfig, ServiceConfig
from lb.errors import UnknownNameError

# Names in an error message when none is similar.
LISTED = 10

# A server with its service, by names.
Index: TypeAlias = Mapping[ServerKey, tuple[ServiceConfig, ServerConfig]]


def find_service(services: Iterable[EffectiveService], name: str) -> EffectiveService:
    """Return the service of a name that is not removed. Raise UnknownNameError when there is none."""
    known = list(services)
    found = next((service for service in known if service.name == name and not service.is_removed), None)
    if found is None:
        raise UnknownNameError(_unknown("service", name, [service.name for service in known]))
    return found


def find_server(service: EffectiveService, name: str) -> EffectiveServer:
    """Return the server of a service that is not removed. Raise UnknownNameError when there is none of the name."""
    present = [server for server in service.servers if not server.is_removed]
    found = next((server for server in present if server.name == name), None)
    if found is None:
        raise UnknownNameError(_unknown("server", name, [server.name for server in present], f"{service.name}/"))
    return found


def _unknown(what: str, name: str, known: list[str], prefix: str = "") -> str:
    """Return a message that says that a name is unknown, and which names are similar."""
    if near := [prefix + word for word in difflib.get_close_matches(name, known, n=3)]:
        return f"there is no {what} {prefix}{name}; did you mean {' or '.join(near)}?"
    listed = ", ".join(prefix + word for word in known[:LISTED]) + (", ..." if len(known) > LISTED else "")
    return f"there is no {what} {prefix}{name}; there {'is' if len(known) == 1 else 'are'}: {listed or 'none'}"


class ServerIndex:
    """All present servers by name, computed anew only when they may be others: health updates come often."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._index: Index = {}

    def of(self, spec: Spec) -> Index:
        """Return the present servers of a spec, by name."""
        key = (spec.config, spec.added, spec.withdrawn)
        if len(self._of) != len(key) or not all(one is other for one, other in zip(key, self._of, strict=True)):
            self._index = {
                ServerKey(service.name, server.name): (service, server)
                for service in spec.config.services
                for server in present_servers(spec, service)
            }
            self._of = key
        return self._index
