"""
Bounded HTTP connections: of the admin API on its UNIX socket, and of the metrics.

Everything that a client may send is bounded: request line, headers, connections at a time, and the life of a
connection, so that slow, oversized and hostile clients are cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError

MAX_LINE_BYTES = 4096
MAX_HEADER_BYTES = 4096
MAX_HEADERS = 32
MAX_CONNECTIONS = 32
# The longest life of a connection: far more than any answer takes.
CONNECTION_S = 30.0
SHUTDOWN_S = 0.2
# How long a pause waits for answers, looking every so often.
PAUSE_S = 1.0
PAUSE_STEP_S = 0.002
ACCEPT_TURNS = 8

log = logging.getLogger(__name__)


class ConnectionOwner(Protocol):
    """A server with open connections. `connection_s`: the longest life of one."""

    connections: set[Connection]
    connection_s: float


class Acceptor:
    """
    Accepts clients on a listening socket, from `start` on; `pause` and `start` again go unnoticed by them.

    Args:
        sock: bound and listening; this owns it.
        owner: whose connections they are.
        manager: answers them.
    """

    def __init__(self, sock: socket.socket, owner: ConnectionOwner, manager: web.Server) -> None:
        self.sock = sock
        self._owner = owner
        self._manager = manager
        self._server: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self.sock.fileno() >= 0

    async def start(self) -> None:
        """Accept clients, also those who have come before."""
        if self._server is None:
            # A server of asyncio closes its socket when it pauses.
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self._owner, self._manager), sock=self.sock.dup()
            )

    async def pause(self) -> None:
        """Accept nobody: who comes, waits. Return when those who are there have their answers, or after PAUSE_S."""
        self._end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                # One that was accepted just now is no connection yet: it takes asyncio some turns.
                for _ in range(ACCEPT_TURNS):
                    await asyncio.sleep(0)
                while self._owner.connections:
                    await asyncio.sleep(PAUSE_STEP_S)

    def close(self) -> None:
        """Accept nobody, and close the socket."""
        self._end()
        self.sock.close()

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


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

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what failed outside of our own handlers. aiohttp fails over an `Expect` that is not UTF-8."""
        if isinstance(exc, UnicodeError):
            status, exc, message = 400, BadHttpMessage("a header is not UTF-8"), "a header is not UTF-8"
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error of the server. A client that speaks no HTTP, or that left, is none."""
        error = kw.get("exc_info")
        if isinstance(error, (HttpProcessingError, ConnectionError)):
            log.debug("a client is cut off: %r", error)
            return
        super().log_exception(*args, **kw)
