"""
The page that Prometheus reads: `GET /metrics` on the address and port of the configuration's `[metrics]`.

It belongs to the daemon's asyncio loop and follows the configuration; a scrape is made in a thread, one at a time,
because asking the data path takes a while. Slow, oversized and too many clients are cut off as on the control socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from lb.config import MetricsConfig
from lb.control.admin import CONNECTION_S, Connection
from lb.control.metrics import Metrics, Sample
from lb.errors import LbError

PATH = "/metrics"
SHUTDOWN_S = 0.2
BACKLOG = 16

log = logging.getLogger(__name__)


class MetricsServer:
    """
    Serves the metrics while the configuration wants them.

    Args:
        sample: gives what a scrape is made of; called in a thread.
    """

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._registry = Metrics(sample).registry()
        self._turn = asyncio.Lock()
        self.connections: set[Connection] = set()
        self.connection_s = CONNECTION_S
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._where: MetricsConfig | None = None

    async def follow(self, where: MetricsConfig | None) -> None:
        """
        Serve there from now on; None: nowhere. Does nothing when that is no change.

        Raises:
            LbError: the address or port cannot be had; then they are served nowhere.
        """
        if where == self._where:
            return
        await self.stop()
        if where is None:
            return
        app = web.Application()
        app.router.add_get(PATH, self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        manager = runner.server
        assert manager is not None
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self, manager), str(where.address), where.port, backlog=BACKLOG
            )
        except OSError as error:
            await runner.cleanup()
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise LbError(
                f"metrics: cannot listen on {where.address} port {where.port}: {reason}; "
                "change address or port under [metrics]"
            ) from error
        self._runner, self._where = runner, where
        log.info("metrics: http://%s%s", _host_port(where), PATH)

    async def stop(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._server = self._runner = self._where = None

    async def _answer(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._turn:
            try:
                text = await asyncio.to_thread(encode, self._registry)
            except LbError as error:
                raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        return web.Response(body=text, headers={"Content-Type": content_type})


def _host_port(where: MetricsConfig) -> str:
    host = f"[{where.address}]" if where.address.version == 6 else str(where.address)
    return f"{host}:{where.port}"
