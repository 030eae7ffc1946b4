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
# Rest when a client cannot be accepted.
REST_S = 1.0

log = logging.getLogger(__name__)


class ConnectionOwner(Protocol):
    """A server with open connections. `connection_s`: the longest life of one."""

    connections: set[Connection]
    connection_s: float


class Acceptor:
    """
    Accepts clients on a listening socket, from `start` on; `pause` and `start` again go unnoticed by them.

    Not a server of asyncio: one that is closed drops clients that it has accepted in the same turn of the loop, and
    says nothing.

    Args:
        sock: bound and listening; this owns it.
        owner: whose connections they are.
        manager: answers them.
    """

    def __init__(self, sock: socket.socket, owner: ConnectionOwner, manager: web.Server) -> None:
        self.sock = sock
        self._owner = owner
        self._manager = manager
        self._is_accepting = False
        # Accepted, and not yet in the owner's connections.
        self._arriving: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self.sock.fileno() >= 0

    async def start(self) -> None:
        """Accept clients, also those who have come before."""
        if not self._is_accepting:
            self._is_accepting = True
            self.sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self.sock, self._accept)

    async def pause(self) -> None:
        """Accept nobody: who comes, waits. Return when those who are there have their answers, or after PAUSE_S."""
        self._end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                while self._arriving or self._owner.connections:
                    await asyncio.sleep(PAUSE_STEP_S)

    def close(self) -> None:
        """Accept nobody, and close the socket."""
        self._end()
        self.sock.close()

    def _end(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            asyncio.get_running_loop().remove_reader(self.sock)

    def _accept(self) -> None:
        """Accept one client; the loop calls again while there are more."""
        try:
            client, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._rest(error)
            return
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        arriving = loop.create_task(
            loop.connect_accepted_socket(lambda: Connection(self._owner, self._manager), client)
        )
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arrived)

    def _arrived(self, arriving: asyncio.Task[Any]) -> None:
        self._arriving.discard(arriving)
        if not arriving.cancelled() and (error := arriving.exception()) is not None:
            log.debug("a client is cut off: %r", error)

    def _rest(self, error: OSError) -> None:
        """Accept nobody for a while, such as when there are no descriptors left: the socket stays readable."""
        log.warning("a client waits for %s s: %s", REST_S, error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock)
        loop.call_later(REST_S, self._resume)

    def _resume(self) -> None:
        if self._is_accepting:
            asyncio.get_running_loop().add_reader(self.sock, self._accept)


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
