"""
`lb` commands that are forked from a process which has imported all they need.

Imported by that process: nothing heavy, pytest least of all, may be imported here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# No backend: the one that is chosen is loaded by the command, and only that one.
PRELOAD = ["lb.cli", "lb.control.process", "lb.lab.testbed.isolation"]


class Forked:
    """An `lb` command in a network namespace, forked from a process that has imported it; its output in a file."""

    def __init__(self, namespace: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        # What an earlier one has logged is no sign of this one.
        log.write_text("")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._process = context.Process(
            target=be_command, args=(namespace, tuple(arguments), str(log), dict(environment)), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; raise TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("lb", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int, /) -> None:
        """Send a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


def be_command(namespace: str, arguments: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    """Become an `lb` command in a network namespace."""
    from lb.cli import main
    from lb.lab.testbed import isolation

    # The parent is the process that forks, which ends with the tests.
    isolation.die_with_parent(signal.SIGTERM, os.getppid())
    output = os.open(log, os.O_WRONLY | os.O_CLOEXEC)
    for standard in (1, 2):
        os.dup2(output, standard)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    isolation.enter_namespace(namespace)
    isolation.dress_as(namespace)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["lb", *arguments]
    main()
