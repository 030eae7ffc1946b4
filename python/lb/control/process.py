"""`lb run` as a process: its log, its rights, its signals, and a `Daemon` until one of these ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from lb.control.api.paths import default_control_path
from lb.control.daemon import Daemon
from lb.control.preparation import Prepared, prepared
from lb.control.respawn import READY, REPLACED, Respawner
from lb.control.telemetry.logs import LogFormat, start_logging
from lb.errors import LbError

# How long a thread of this process may keep the others from running Python: a tenth of the default.
SWITCH_S = 0.0005

log = logging.getLogger(__name__)


async def serve(
    config_path: Path, backend: str, control_path: Path, made: Prepared, ready_fd: int | None = None
) -> bool:
    """
    Run a balancer until SIGTERM or SIGINT; SIGHUP reloads it. `ready_fd`: told `respawn.READY` once it forwards.

    Returns:
        Whether another process has taken over from it.

    Raises:
        LbError: it could not start, or failed.
    """
    daemon = Daemon(config_path, backend, control_path, made, lambda: _tell_ready(ready_fd))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.request_stop)
    # Until packets flow there is nothing to reload; without a handler, the signal would end the process.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    await daemon.start()
    # The objects of the start stay: a collector that visits 10 000 servers each time holds up every thread.
    gc.freeze()
    # While a change computes, the loop runs this soon after each system call, of which a check makes several.
    sys.setswitchinterval(SWITCH_S)
    loop.add_signal_handler(signal.SIGHUP, daemon.request_reload)
    try:
        await daemon.wait()
    finally:
        log.info("stopping")
        await _stop(daemon)
    return daemon.is_replaced


async def _stop(daemon: Daemon) -> None:
    try:
        await daemon.stop()
    except LbError as error:
        if not daemon.is_replaced:
            raise
        # Another one forwards, whatever failed here.
        log.error("%s", error)


def _tell_ready(ready_fd: int | None) -> None:
    # One that supervises and is gone has no use for it.
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, READY)


def run(
    config_path: Path,
    backend: str = "auto",
    control_path: Path | None = None,
    log_format: LogFormat = "text",
    user: str | None = None,
    state: Path | None = None,
    supervise: bool = False,
    take_over: bool = False,
) -> None:
    """
    Run a balancer in the foreground, with its log on stderr, as an unprivileged user where that is possible.

    Raises:
        LbError: it could not start, or failed.
    """
    start_logging(log_format)
    ready_fd = None
    if supervise:
        respawner = Respawner(can_renew=state is not None)
        ready_fd = respawner.supervise()
        take_over = take_over or respawner.takes_over
    control_path = control_path or default_control_path()
    with prepared(config_path, control_path, user, state, take_over) as made:
        is_replaced = asyncio.run(serve(config_path, backend, control_path, made, ready_fd))
    if supervise and is_replaced:
        sys.exit(REPLACED)
