"""
The page that Prometheus reads: `GET /metrics` on the address and port of `[metrics]` in the configuration.

It belongs to the asyncio loop of the daemon and follows the configuration; a scrape is made in a thread, one at a time,
because reading the data path takes a while. Slow, oversized and too many clients are cut off as on the control socket
(`lb.control.http_connections`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from lb.config import MetricsConfig
from lb.control.http_connections import CONNECTION_S, SHUTDOWN_S, Acceptor, Connection
from lb.control.telemetry.metrics import Metrics, Sample
from lb.errors import LbError

PATH = "/metrics"
BACKLOG = 16

log = logging.getLogger(__name__)


class _Listening(NamedTuple):
    """An address at which metrics are served."""

    where: MetricsConfig
    acceptor: Acceptor
    runner: web.AppRunner

    async def close(self) -> None:
        """Stop serving there. Does nothing when it has stopped already."""
        self.acceptor.close()
        await self.runner.cleanup()


class MetricsServer:
    """
    Serves the metrics while the configuration has `[metrics]`.

    Args:
        sample: returns what a scrape is made of; called in a thread.
        left: returns a listening socket of another process by what it is, as `descriptors` names it; None: none.
    """

    def __init__(
        self, sample: Callable[[], Sample], left: Callable[[str], socket.socket | None] = lambda _: None
    ) -> None:
        self._registry = Metrics(sample).registry()
        self._one_scrape = asyncio.Lock()
        self.connections: set[Connection] = set()
        self.connection_s = CONNECTION_S
        self._listening: _Listening | None = None
        self._left = left
        self._is_serving = True

    def wait(self) -> None:
        """Answer nobody until `serve`."""
        self._is_serving = False

    async def serve(self) -> None:
        """Answer from now on, also those who have asked since `wait`."""
        self._is_serving = True
        if self._listening is not None:
            await self._listening.acceptor.start()

    async def pause(self) -> None:
        """Answer those who have asked; those who ask from now on wait until `serve`, here or in another process."""
        if self._listening is not None:
            await self._listening.acceptor.pause()

    def descriptors(self) -> dict[str, int]:
        """Return the listening socket, by what it is; nothing when there is none."""
        if self._listening is None:
            return {}
        return {_named(self._listening.where): self._listening.acceptor.sock.fileno()}

    async def follow(self, where: MetricsConfig | None) -> None:
        """
        Serve at this address from now on; None: nowhere. Does nothing when that is no change.

        Raises:
            LbError: the address or port is not available; then they are served where they were.
        """
        async with self.moving(where):
            pass

    @contextlib.asynccontextmanager
    async def moving(self, where: MetricsConfig | None) -> AsyncIterator[None]:
        """
        Listen at this address for the block, beside the present one; serve there alone once the block has succeeded,
        and as before when it has failed.

        Raises:
            LbError: the address or port is not available; the block does not run.
        """
        if where == self._where:
            yield
            return
        before, self._listening = self._listening, None
        if where is not None and before is not None and where.port == before.where.port:
            # Two addresses of one port may exclude each other, such as 0.0.0.0 and 127.0.0.1.
            await before.close()
        try:
            self._listening = None if where is None else await self._listen(where)
            yield
        except BaseException:
            await _close(self._listening)
            self._listening = None if before is None else await self._again(before)
            raise
        await _close(before)
        if where is not None:
            log.info("metrics: http://%s%s", _host_port(where), PATH)

    async def _again(self, before: _Listening) -> _Listening | None:
        """Return the previous server, listening; None, and logged, when its port has been taken meanwhile."""
        if before.acceptor.is_open:
            return before
        try:
            return await self._listen(before.where)
        except LbError as error:
            log.error("%s", error)
            return None

    @property
    def _where(self) -> MetricsConfig | None:
        return None if self._listening is None else self._listening.where

    async def _listen(self, where: MetricsConfig) -> _Listening:
        app = web.Application()
        app.router.add_get(PATH, self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        manager = runner.server
        assert manager is not None
        try:
            sock = self._left(_named(where)) or _listen(where)
        except OSError as error:
            await runner.cleanup()
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise LbError(
                f"metrics: cannot listen on {where.address} port {where.port}: {reason}; "
                "change address or port under [metrics]"
            ) from error
        acceptor = Acceptor(sock, self, manager)
        if self._is_serving:
            await acceptor.start()
        return _Listening(where, acceptor, runner)

    async def stop(self) -> None:
        """Stop serving."""
        listening, self._listening = self._listening, None
        await _close(listening)

    async def _answer(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._one_scrape:
            try:
                text = await asyncio.to_thread(encode, self._registry)
            except LbError as error:
                raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        return web.Response(body=text, headers={"Content-Type": content_type})


async def _close(listening: _Listening | None) -> None:
    if listening is not None:
        await listening.close()


def _listen(where: MetricsConfig) -> socket.socket:
    """Return a socket that listens at an address. OSError: it is not available."""
    family = socket.AF_INET if where.address.version == 4 else socket.AF_INET6
    return socket.create_server((str(where.address), where.port), family=family, backlog=BACKLOG)


def _named(where: MetricsConfig) -> str:
    return f"metrics {_host_port(where)}"


def _host_port(where: MetricsConfig) -> str:
    host = f"[{where.address}]" if where.address.version == 6 else str(where.address)
    return f"{host}:{where.port}"
