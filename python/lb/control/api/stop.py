"""
`lb stop`, the command's side: `lb.control.stopping` stops the balancer.

A balancer that has stopped does not answer any more. Its process ends a little later, when interfaces and state
directory are free for the next one; where it is in the same PID namespace, that is waited for, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lb.control.api.client import change, fetch
from lb.control.api.paths import PID_NAMESPACE, STOP
from lb.control.api.waiting import POLL_S, showing
from lb.errors import DaemonError, LbError

# How long a balancer may take from the end of its drain to its own: flows that are reset, changes in progress.
END_S = 30.0


def stop_and_wait(path: Path) -> None:
    """
    Stop the balancer at once, and wait for its end.

    Args:
        path: of the control socket.

    Raises:
        DaemonError: no balancer answers.
        RemoteError: it refused.
        LbError: it still runs after a long time.
    """
    with _end_of(fetch(path, STOP)) as process:
        # It answers, but may be gone before that answer has left.
        with contextlib.suppress(DaemonError):
            change(path, STOP, {})
        _wait_for_end(path, process)


def drain_and_wait(path: Path, timeout_s: float) -> int:
    """
    Let the balancer drain and stop, show how many flows are left, and wait for its end.

    Args:
        path: of the control socket.
        timeout_s: after which it stops all the same.

    Returns:
        How many active flows were left.

    Raises:
        DaemonError, RemoteError, LbError: as `stop_and_wait`; or the drain was cancelled.
    """
    before = fetch(path, STOP)
    with _end_of(before) as process:
        change(path, STOP, {"drain": True, "timeout_s": timeout_s})
        left = _wait_for_drain(path, before["flows_active"])
        _wait_for_end(path, process)
    return left


def cancel_stop(path: Path) -> bool:
    """Cancel a drain; return whether there was one. Errors: as `stop_and_wait`."""
    return bool(change(path, STOP, {"cancel": True})["changed"])


def _wait_for_drain(path: Path, left: int) -> int:
    """Wait until the balancer has drained and stops; return how many flows were left. `left`: how many there were."""
    # Another caller or a signal may stop it, or its drain ends between two questions.
    with contextlib.suppress(DaemonError), showing("draining", left) as show:
        while not (progress := fetch(path, STOP))["is_over"]:
            left = progress["flows_active"]
            if not progress["draining"]:
                raise LbError("the stop was cancelled: the balancer goes on")
            show(left)
        left = progress["flows_active"]
    return int(left)


@contextmanager
def _end_of(progress: dict[str, Any]) -> Iterator[int | None]:
    """Give a descriptor that becomes readable when a balancer's process ends; None: that cannot be seen from here."""
    descriptor = None
    if progress["pid_namespace"] == PID_NAMESPACE.stat().st_ino:
        # One that is gone already has ended; a kernel without pidfds leaves the socket to look at.
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(progress["pid"])
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _wait_for_end(path: Path, process: int | None) -> None:
    """Wait until the balancer answers no more, and until its process has ended where that can be seen."""
    has_ended = _falls_silent(path) if process is None else bool(select.select([process], [], [], END_S)[0])
    if not has_ended:
        raise LbError(f"the balancer still runs after {END_S:g} s: its log says why")


def _falls_silent(path: Path) -> bool:
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        try:
            fetch(path, STOP)
        except DaemonError:
            return True
        time.sleep(POLL_S)
    return False
