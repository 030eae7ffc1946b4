"""
Bounded HTTP connections: of the admin API on its UNIX socket, and of the metrics.

Everything that a client may send is bounded: request line, headers, connections at a time, and the life of a
connection, so that slow, oversized and hostile clients are cut off.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from aiohttp import web

MAX_LINE_BYTES = 4096
MAX_HEADER_BYTES = 4096
MAX_HEADERS = 32
MAX_CONNECTIONS = 32
# The longest life of a connection: far more than any answer takes.
CONNECTION_S = 30.0
SHUTDOWN_S = 0.2


class ConnectionOwner(Protocol):
    """A server with open connections. `connection_s`: the longest life of one."""

    connections: set[Connection]
    connection_s: float


class Connection(web.RequestHandler):
    """A client's connection with a deadline: aiohttp itself waits for ever for a complete header."""

    __slots__ = ("_deadline", "_owner")

    def __init__(self, owner: ConnectionOwner, manager: web.Server) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            # None is what its own runner passes for "no log"; its annotation does not say so.
            access_log=cast(Any, None),
            max_line_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            max_field_size=MAX_HEADER_BYTES,
            auto_decompress=False,
        )
        self._owner = owner
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a client, with a deadline, or cut it off when there are too many."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self._owner.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._owner.connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(self._owner.connection_s, transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget a client."""
        self._owner.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)
