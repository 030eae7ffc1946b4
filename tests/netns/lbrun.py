"""
`lb run` on a host, its log in a file.

Most tests start one, and half of what such a test costs is the interpreter with its imports: theirs is forked from a
process that has them. With a wrapper, an empty one too, it is a program, started as a user does: tests of rights, of
other users, and of the start and end themselves need that. `lb run --testbed`, `lb bench` and `lb experiment run`
start theirs so, and have tests of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from forked import Forked
from pair import DEADLINE_S, wait_until

CODE = "from lb.cli import main; main()"


class Started(Protocol):
    """What a test does with a process."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; raise TimeoutExpired."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal."""


def started(namespace: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Started:
    """Start a command in a network namespace, its output in a file."""
    ip = shutil.which("ip")
    assert ip is not None
    with log.open("w") as file:
        return subprocess.Popen([ip, "netns", "exec", namespace, *command], stderr=file, stdout=file, env=environment)


def program(*arguments: str) -> list[str]:
    """Return the command of `lb` with these arguments, as a program of its own."""
    return [sys.executable, "-c", CODE, *arguments]


class LbRun:
    """
    An `lb run` in a namespace.

    Args:
        namespace: its name.
        folder: where the control socket goes.
        options: of `lb run`, the backend among them.
        wrapper: a command that runs it as a program. None: it is forked.
        environment: its variables. None: those of the tests.
        config, log: None: in the folder.
        state: the state directory. None: its flows end with it.
    """

    def __init__(
        self,
        namespace: str,
        folder: Path,
        options: Sequence[str],
        *,
        wrapper: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        config: Path | None = None,
        log: Path | None = None,
        state: str | None = None,
        start: bool = True,
    ) -> None:
        self.config, self.log = config or folder / "lb.toml", log or folder / "log.txt"
        self.control = folder / "lb.sock"
        self._namespace, self._wrapper = namespace, wrapper
        more = () if state is None else ("--state", state)
        self._arguments = ("run", "-c", str(self.config), "--control", str(self.control), *more, *options)
        self._environment = dict(os.environ if environment is None else environment)
        self.process: Started
        if start:
            self.start()

    def start(self) -> None:
        """Start it, and once more after its end."""
        if self._wrapper is None:
            self.process = Forked(self._namespace, self._arguments, self.log, self._environment)
        else:
            command = [*self._wrapper, *program(*self._arguments)]
            self.process = started(self._namespace, command, self.log, self._environment)

    def text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text()

    def gets_ready(self) -> bool:
        """Wait until it forwards, or has ended before that; tell which."""
        wait_until(lambda: "ready: " in self.text() or self.process.poll() is not None, "ready, or ended")
        return "ready: " in self.text()

    def wait_ready(self) -> None:
        """Wait until it forwards; fail the test with its log when it ends before."""
        assert self.gets_ready(), self.text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            # One that hangs fails its test, and holds up no other.
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(DEADLINE_S)
            raise


Some = TypeVar("Some", bound=LbRun)


@contextmanager
def until_the_end(run: Some) -> Iterator[Some]:
    """Wait until a balancer is ready, and end it after the block."""
    try:
        run.wait_ready()
        yield run
    finally:
        run.end()
