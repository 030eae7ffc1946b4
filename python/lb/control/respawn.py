"""
`lb run --supervise`: a process that does nothing but start the balancer again when it has ended by itself.

Each balancer is a child, forked once all is imported, so that a new one forwards after a fraction of what an
interpreter needs to start. This process keeps the rights it was started with, for each balancer needs them anew and
drops its own; it reads no configuration, no policy and no packet, and has no thread.

SIGUSR2 renews both: this process becomes the program anew, of another version perhaps, by the same process id, and the
balancer that it starts then takes over from the one that runs. Where that fails, the running one goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from lb.privileges.drop import request_death_signal

# Handed on to the balancer: to stop, to stop, to reload.
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Before a balancer is started again, seconds: doubled for each that did not forward, up to the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 5.0
READY = b"ready"
# The exit status of a supervised balancer that another one has taken over from (EX_TEMPFAIL of sysexits.h).
REPLACED = 75
# With these a balancer ends for good: it was told to, or another one forwards.
ENDS = (0, REPLACED)
# As if it had failed: it ended for one that has failed. So long that takes at most, seconds.
LEFT, LEFT_S = 1, 10.0
RENEW = signal.SIGUSR2
# What this process would become: tried first, for exec cannot be undone. Seconds that it may take.
PROGRAM, PROGRAM_S = "import lb.cli, lb.control.process, lb._core", 30.0
# By this a process that has become the program anew knows the balancer that it has already.
RUNNING = "LB_RUNNING_BALANCER"

log = logging.getLogger(__name__)


class Respawner:
    """Starts balancers, one after the other, until one ends as it was told to."""

    def __init__(self, can_renew: bool = True) -> None:
        self._child = 0
        # A balancer from before this process became the program anew; 0: none. It ends when it is taken over from.
        # With its status where it has ended meanwhile, None: it has not, or there was none.
        self._before, self._status_before = _running_before()
        self._was_renewed = self._before > 0 or self._status_before is not None
        self._is_over = False
        self._can_renew = can_renew

    @property
    def takes_over(self) -> bool:
        """Whether the next balancer is to take over from one that runs."""
        return self._before > 0

    def supervise(self) -> int:
        """
        Start a balancer, and again each time it ends without having been told to.

        Returns:
            In each balancer's process: a descriptor to tell `READY` when it forwards. In this one never: it exits as
            the last balancer did, with 128 and its number for a signal; 0 when it was told to stop or was replaced.
        """
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)
        signal.signal(RENEW, self._renew)
        # A process that became the program anew has the mask of that moment.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*HANDED_ON, RENEW))
        if self._status_before in ENDS:
            sys.exit(0)
        has_forwarded, pause_s = self._was_renewed, FIRST_PAUSE_S
        while True:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._fork() == 0:
                os.close(reader)
                return writer
            os.close(writer)
            status = self._wait()
            forwarded = _was_told(reader)
            status = self._judge(status, forwarded)
            has_forwarded = forwarded or has_forwarded
            if self._is_over or status in ENDS or not has_forwarded:
                sys.exit(exit_code(status, told=self._is_over))
            # Packets wait for one that did forward; one that does not come so far may need something that is not there.
            pause_s = FIRST_PAUSE_S if forwarded else min(pause_s * 2, LONGEST_PAUSE_S)
            facts = {"ended": describe(status)}
            log.error("the balancer %s: started again in %.2f s", facts["ended"], pause_s, extra={"facts": facts})
            time.sleep(pause_s)

    def _judge(self, status: int, forwarded: bool) -> int:
        """
        Return the status that counts when a balancer has ended with one. Where it was to take over from another one,
        that may run still: it is supervised again, until it ends. `forwarded`: whether the one that ended did.
        """
        before, self._status_before = self._status_before, None
        if not self._before:
            # The one before was stopped, or another one took over from it, while this one got ready.
            return before if before in ENDS and not forwarded else status
        if forwarded and status in ENDS:
            return status
        log.error("the new balancer %s before it was alone: the running one goes on", describe(status))
        began, self._child, self._before = time.monotonic(), self._before, 0
        status = self._wait()
        # It may have left its flows to the one that failed; a stranger comes later.
        was_left = forwarded and status == REPLACED and time.monotonic() - began < LEFT_S
        return LEFT if was_left else status

    def _fork(self) -> int:
        """Fork, again and again where memory or process ids are short: a machine that killed a balancer may be."""
        while True:
            with contextlib.suppress(OSError):
                return self._fork_once()
            time.sleep(FIRST_PAUSE_S)

    def _fork_once(self) -> int:
        """Fork. No signal comes before it is known whom to hand it to."""
        parent, mask = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, (*HANDED_ON, RENEW))
        try:
            self._child = os.fork()
            if self._child == 0:
                be_child(parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self._child

    def _wait(self) -> int:
        """
        Wait for the balancer's end; return its exit status, negative for a signal. What balancers have left behind
        becomes this process's child where it is the first of its namespace, and is waited for, too.
        """
        while True:
            child, status = os.waitpid(-1, 0)
            if child == self._child:
                self._child = 0
                return os.waitstatus_to_exitcode(status)
            if child == self._before:
                self._before, self._status_before = 0, os.waitstatus_to_exitcode(status)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        stops = number != signal.SIGHUP
        self._is_over = self._is_over or stops
        for child in filter(None, (self._child, self._before)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        if stops and not (self._child or self._before):
            sys.exit(0)

    def _renew(self, *_: object) -> None:
        """Become the program anew, as it was started; the balancer stays a child of this process."""
        if not self._can_renew or not self._child or self._before:
            why = "one is being started already" if self._can_renew else "only with --state its flows would go on"
            log.error("the balancer is not renewed: %s", why)
            return
        try:
            # -P: nothing from the directory where this was started may run with the rights that this process has.
            trial = [sys.executable, "-P", "-c", PROGRAM]
            subprocess.run(trial, check=True, stdout=subprocess.DEVNULL, timeout=PROGRAM_S)
        except (OSError, subprocess.SubprocessError) as error:
            log.error("the balancer is not renewed: the program does not start: %s", error)
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*HANDED_ON, RENEW))
        try:
            # What comes from now on waits for the program; what came while it was tried does not wait.
            if not self._is_over:
                log.info("the balancer is renewed: another one takes over")
                os.execve(
                    sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, RUNNING: str(self._child)}
                )
        except OSError as error:
            log.error("the balancer is not renewed: %s", error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _running_before() -> tuple[int, int | None]:
    """
    Return the balancer that this process had before it became the program anew, 0: none that runs; and its status when
    it has ended meanwhile.
    """
    told = os.environ.pop(RUNNING, "")
    if not told.isdecimal():
        return 0, None
    with contextlib.suppress(ChildProcessError, OverflowError):
        child, status = os.waitpid(int(told), os.WNOHANG)
        return (int(told), None) if child == 0 else (0, os.waitstatus_to_exitcode(status))
    return 0, None


def be_child(parent: int) -> None:
    """Become a process that hears signals as any does, but each once, and that goes when the one above it is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Nothing to reload until the balancer says how.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(RENEW, signal.SIG_IGN)
    # A terminal tells the foreground group, which hands it on.
    os.setpgid(0, 0)
    request_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def exit_code(status: int, *, told: bool) -> int:
    """Return what to exit with when a balancer ended with a status, negative for a signal."""
    if status == REPLACED or (told and status in (-signal.SIGTERM, -signal.SIGINT)):
        return 0
    return status if status >= 0 else 128 - status


def describe(status: int) -> str:
    """Return how a process ended: its exit status, or the name of a signal."""
    if status >= 0:
        return f"ended with status {status}"
    # Real-time signals have no names.
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names.get(-status, f'signal {-status}')}"


def _was_told(reader: int) -> bool:
    """Return whether a balancer that has ended said that it forwards."""
    try:
        return os.read(reader, len(READY)) == READY
    except BlockingIOError:
        # Something that it has started holds the other end.
        return False
    finally:
        os.close(reader)
