"""
The listener of the admin API: HTTP on a UNIX socket, mode 0660 (rule 21.3, control socket). The resources are in
`lb.control.api.handlers`.

It belongs to the asyncio loop of the daemon, never to the packet thread. Everything that a client may send is bounded:
the body here, the rest in `lb.control.http_connections`. Errors are JSON: `{"error": one line, "exit_code": what the
command line ends with}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from lb.config.toml.excerpt import printable
from lb.control.http_connections import CONNECTION_S, SHUTDOWN_S, Acceptor, Connection
from lb.errors import ConfigError, DaemonError, LbError, RefusedError, RequestError, UnderWayError, UnknownNameError

SOCKET_MODE = 0o660
MAX_BODY_BYTES = 64 * 1024

Method = Literal["GET", "POST"]
# From the parameters of a request (the query of a GET, the JSON object of a POST) to a value for JSON.
Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]

log = logging.getLogger(__name__)


STATUS_OF_ERROR: Mapping[type[LbError], int] = {
    RequestError: 400,
    UnknownNameError: 404,
    RefusedError: 409,
    ConfigError: 422,
    UnderWayError: 504,
}


class Listener:
    """
    The HTTP server on the control socket.

    Args:
        path: of the socket.
        handlers: by method and resource.
        connection_s: the longest life of a connection.
        bind: returns the socket, bound; None: `bind_socket`.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[tuple[Method, str], Handler],
        connection_s: float = CONNECTION_S,
        bind: Callable[[Path], socket.socket] | None = None,
    ) -> None:
        self.path = path
        self.connection_s = connection_s
        self.connections: set[Connection] = set()
        self._handlers = handlers
        self._bind = bind or bind_socket
        self._runner: web.AppRunner | None = None
        self._acceptor: Acceptor | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Listen and answer. Raise LbError as `bind`."""
        await self.bind()
        await self.serve()

    async def bind(self) -> None:
        """
        Listen; those who ask wait until `serve`.

        Raises:
            LbError: another balancer listens there, or the socket cannot be made.
        """
        sock = self._bind(self.path)
        self.own()
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        for (method, resource), handler in self._handlers.items():
            app.router.add_route(method, resource, _route(method, handler))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        manager = self._runner.server
        assert manager is not None
        self._acceptor = Acceptor(sock, self, manager)

    async def serve(self) -> None:
        """Answer from now on, also those who have asked since `bind` or `pause`."""
        assert self._acceptor is not None
        await self._acceptor.start()

    async def pause(self) -> None:
        """Answer those who have asked; those who ask from now on wait until `serve`, here or in another process."""
        if self._acceptor is not None:
            await self._acceptor.pause()

    def descriptor(self) -> int:
        """Return the listening socket."""
        assert self._acceptor is not None
        return self._acceptor.sock.fileno()

    def own(self) -> None:
        """Remove the socket when this listener stops, as it does from `bind` on, until `leave`."""
        # Bound by root in a folder that we may not read: then its broker removes it.
        with contextlib.suppress(OSError):
            self._inode = self.path.stat().st_ino

    def leave(self) -> None:
        """Leave the socket where it is when this listener stops: it is another process's."""
        self._inode = None

    async def stop(self) -> None:
        """Stop listening and remove the socket, unless another process has put its own there."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()


def _route(method: Method, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        params = request.query if method == "GET" else await _body(request)
        content = await handler(params)
        return web.json_response(text=await asyncio.to_thread(dumps, content))

    return handle


def dumps(content: Any) -> str:
    """Return JSON without spaces: a status of 10 000 servers is long enough."""
    return json.dumps(content, separators=(",", ":"))


async def _body(request: web.Request) -> Mapping[str, Any]:
    """Return the JSON object in the body of a request; of an empty body, an empty one."""
    text = await request.read()
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    if not isinstance(content, dict):
        raise RequestError("the body is not a JSON object")
    return content


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except LbError as error:
        status = next((code for kind, code in STATUS_OF_ERROR.items() if isinstance(error, kind)), 503)
        # Those of a configuration are blocks of lines, and printable; others contain what the client sent.
        message = str(error) if isinstance(error, ConfigError) else printable(str(error))
        return _error(status, message, error.exit_code)
    except web.HTTPException as error:
        what = printable(f"{request.method} {request.path}: {error.reason}")
        return _error(error.status, what, DaemonError.exit_code)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        # A request must not end the balancer; the error is ours, and goes to the log with its traceback.
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal error; see the log", LbError.exit_code)


def _error(status: int, message: str, exit_code: int) -> web.Response:
    return web.json_response({"error": message, "exit_code": exit_code}, status=status, dumps=dumps)


def bind_socket(path: Path) -> socket.socket:
    """
    Return a UNIX socket bound to a path. A file that a killed process left is replaced.

    Raises:
        LbError: another balancer listens there, or the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _bind(sock, path)
        # At once: a socket that does not listen looks like one whose process was killed.
        sock.listen(socket.SOMAXCONN)
        path.chmod(SOCKET_MODE)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE and not path.is_socket():
            raise LbError(f"{path} already exists and is not a socket; --control names another place") from None
        if error.errno == errno.EADDRINUSE:
            raise LbError(f"{path}: a balancer listens there already; --control names another socket") from None
        raise LbError(f"{path}: the control socket cannot be made: {error.strerror or error}") from error
    return sock


def _bind(sock: socket.socket, path: Path) -> None:
    if path.is_socket() and not _is_alive(path):
        path.unlink()
    # Created without permissions, opened by chmod: no other process can connect in between.
    before = os.umask(0o777)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
