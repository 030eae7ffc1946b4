"""
`lb run --supervise`: a process that does nothing but start the balancer again when it has ended by itself.

Each balancer is a child, forked once all is imported, so that a new one forwards after a fraction of what an
interpreter needs to start. This process keeps the rights it was started with, for each balancer needs them anew and
drops its own; it reads no configuration, no policy and no packet, and has no thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from types import FrameType

# Handed on to the balancer: to stop, to stop, to reload.
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Before a balancer is started again that ended before it forwarded, seconds: doubled each time, up to the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
READY = b"ready"

log = logging.getLogger(__name__)


class Respawner:
    """Starts balancers, one after the other, until one ends as it was told to."""

    def __init__(self) -> None:
        self._child = 0
        self._is_over = False

    def supervise(self) -> int:
        """
        Start a balancer, and again each time it ends without having been told to.

        Returns:
            In each balancer's process: a descriptor to tell `READY` when it forwards. In this one never: it exits as
            the last balancer did, with 128 and its number for a signal.
        """
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)
        has_forwarded, pause_s = False, FIRST_PAUSE_S
        while True:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._fork() == 0:
                os.close(reader)
                return writer
            os.close(writer)
            status = self._wait()
            forwarded = _was_told(reader)
            has_forwarded, pause_s = has_forwarded or forwarded, FIRST_PAUSE_S if forwarded else pause_s
            if self._is_over or status == 0 or not has_forwarded:
                sys.exit(status if status >= 0 else 128 - status)
            log.error("the balancer %s: started again in %.1f s", describe(status), pause_s)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _fork(self) -> int:
        """Fork; no signal comes before it is known whom to hand it to. The child hears them as a process does."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
        child = os.fork()
        if child == 0:
            for number in HANDED_ON:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._child = child
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return child

    def _wait(self) -> int:
        """Wait for the balancer's end; return its exit status, negative for a signal."""
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        stops = number != signal.SIGHUP
        self._is_over = self._is_over or stops
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)
        elif stops:
            sys.exit(0)


def describe(status: int) -> str:
    """Return how a process ended: its exit status, or the name of a signal."""
    return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"


def _was_told(reader: int) -> bool:
    """Return whether a balancer that has ended said that it forwards."""
    try:
        return os.read(reader, len(READY)) == READY
    except BlockingIOError:
        # Something that it has started holds the other end.
        return False
    finally:
        os.close(reader)
