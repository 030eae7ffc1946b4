"""
The admin API: HTTP on a UNIX socket, mode 0660 (behaviour 35). Reads by GET: `/status`, `/counters`, `/flows?limit=N`.

It belongs to the daemon's asyncio loop; questions to the data path go through threads, because a large flow table
takes a while to list.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from lb.errors import LbError

SOCKET_MODE = 0o660
DEFAULT_FLOWS = 1000
MAX_FLOWS = 100_000
SHUTDOWN_S = 0.2

Answer = Callable[[], Any]


class Admin:
    """
    The server on the control socket.

    Args:
        path: of the socket.
        answers: by resource, functions that return what JSON can hold. `/flows` gives a list; it is cut to the limit
        asked for.
    """

    def __init__(self, path: Path, answers: dict[str, Answer]) -> None:
        self.path = path
        self._answers = answers
        self._runner: web.AppRunner | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """
        Listen.

        Raises:
            LbError: another balancer listens there, or the socket cannot be made.
        """
        sock = bind_socket(self.path)
        self._inode = self.path.stat().st_ino
        app = web.Application()
        for resource, answer in self._answers.items():
            app.router.add_get(resource, _handler(answer))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Stop listening and remove the socket, unless another process has put its own there."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            limit = int(request.query.get("limit", DEFAULT_FLOWS))
        except ValueError:
            raise web.HTTPBadRequest(text="limit is not a number\n") from None
        try:
            content = await asyncio.to_thread(answer)
        except LbError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        if isinstance(content, list):
            content = content[: max(0, min(limit, MAX_FLOWS))]
        return web.json_response(content)

    return handle


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
            raise LbError(f"{path}: is there already and is no socket; --control names another place") from None
        if error.errno == errno.EADDRINUSE:
            raise LbError(f"{path}: a balancer listens there already; --control names another socket") from None
        raise LbError(f"{path}: the control socket cannot be made: {error.strerror or error}") from error
    return sock


def _bind(sock: socket.socket, path: Path) -> None:
    if path.is_socket() and not _is_alive(path):
        path.unlink()
    # Created closed, opened by chmod: nobody gets in between.
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
