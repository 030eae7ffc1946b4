"""Waiting for flows to end, with a progress bar on stderr: `lb drain --wait`, `lb stop --drain`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lb.control.api.client import fetch
from lb.errors import RemoteError, UnknownNameError

POLL_S = 0.25


def wait_until_empty(path: Path, service: str, server: str, timeout_s: float) -> int:
    """
    Wait until a server has no active flows, or is gone; return the number of flows left, 0 unless it timed out.

    Args:
        path: of the control socket.
        service: its name.
        server: its name.
        timeout_s: how long to wait.
    """
    deadline = time.monotonic() + timeout_s
    left = flows_left(path, service, server)
    with showing(f"{service}/{server}", left) as show:
        while left and (rest := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL_S, rest))
            left = flows_left(path, service, server)
            show(left)
    return left


@contextmanager
def showing(what: str, left: int) -> Iterator[Callable[[int], None]]:
    """Show how many flows are left, for the block, which gets a function to tell a new number."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]} flows left"),
        TimeElapsedColumn(),
    )
    most = left

    def show(left: int) -> None:
        nonlocal most
        most = max(most, left)
        progress.update(task, total=most, completed=most - left, left=left)

    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(what, total=most, left=left)
        yield show


def flows_left(path: Path, service: str, server: str) -> int:
    """Return the number of active flows of a server; 0 when it is gone."""
    try:
        return int(fetch(path, "/server", service=service, server=server)["flows_active"])
    except RemoteError as error:
        if error.exit_code == UnknownNameError.exit_code:
            return 0
        raise
