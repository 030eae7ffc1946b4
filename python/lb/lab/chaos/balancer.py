"""The balancer of a run of chaos: `lb run --supervise` with a state directory, in the testbed's router."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lb.control.api.client import fetch
from lb.errors import DaemonError, LbError, TestbedError
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ECHO_PORT, ROUTER

READY_S = 15.0
STEP_S = 0.01
# In memory, as a state directory must be.
MEMORY = Path("/dev/shm")


class Balancer:
    """
    A running balancer; `with` ends it.

    Args:
        testbed: in whose router it runs.
        config: path of its configuration.
        backend: as `lb run --backend`.
        keeps: whether its flows outlive its process.
    """

    server_port = ECHO_PORT

    def __init__(self, testbed: Testbed, config: Path, backend: str, keeps: bool) -> None:
        self._testbed, self._config, self._backend = testbed, config, backend
        self._keeps = keeps
        self._state: Path | None = None
        self.control = testbed.directory / "lb.sock"
        self._number = 0
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Balancer:
        with contextlib.ExitStack() as undo:
            if self._keeps:
                self._state = Path(tempfile.mkdtemp(prefix="flowlb-chaos-", dir=MEMORY))
                undo.callback(shutil.rmtree, self._state)
            self._process = self._start()
            undo.callback(lambda: self._end(self._process))
            self.wait_answering()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        arguments = ["run", "-c", str(self._config), "--control", str(self.control), "--backend", self._backend]
        arguments += ["--log-format", "json", *more]
        if self._state is not None:
            arguments += ["--state", str(self._state), "--supervise"]
        environment = {name: value for name, value in os.environ.items() if name != "LB_STATE"}
        self._number += 1
        return self._testbed.spawn_python(ROUTER, f"lb-{self._number}", "lb", *arguments, env=environment)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TestbedError(f"`lb run` does not end {READY_S:.0f} s after SIGTERM") from None

    def status(self) -> dict[str, Any] | None:
        """Return its status; None when it does not answer."""
        try:
            status: dict[str, Any] = fetch(self.control, "/status")
        except DaemonError:
            return None
        return status

    def flows(self, client: str, service: str) -> list[dict[str, Any]]:
        """Return the flows of a client's address to a service; none when it does not answer."""
        try:
            rows: list[dict[str, Any]] = fetch(self.control, "/flows", client=client, service=service, limit=100_000)[
                "flows"
            ]
        except LbError:
            return []
        return rows

    def logged_facts(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield what its processes' logs state in facts, and when that was, seconds of the monotonic clock."""
        ahead_s = time.time() - time.monotonic()
        for number in range(1, self._number + 1):
            for line in self._testbed.log_lines(ROUTER, f"lb-{number}"):
                try:
                    logged = json.loads(line)
                except ValueError:
                    # What it writes before it has read its configuration is for people.
                    continue
                yield datetime.fromisoformat(logged["time"]).timestamp() - ahead_s, logged

    def pid(self) -> int:
        """Return the process id of the one that forwards. Raise TestbedError when none does."""
        self.wait_answering()
        status = self.status()
        if status is None:
            raise TestbedError("`lb run` does not answer")
        return int(status["pid"])

    def wait_answering(self) -> None:
        """Wait until it answers."""
        self._wait(lambda _: True)

    def wait_other_than(self, pid: int) -> None:
        """Wait until another process than that one answers."""
        self._wait(lambda status: status["pid"] != pid)

    def _wait(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            status = self.status()
            if status is not None and condition(status):
                return
            if (code := self._process.poll()) is not None:
                words = self._testbed.last_log_line(ROUTER, f"lb-{self._number}")
                raise TestbedError(f"`lb run` has ended with status {code}: {words}")
            time.sleep(STEP_S)
        raise TestbedError(f"`lb run` does not answer after {READY_S:.0f} s")

    def restart(self) -> None:
        """Stop it as an operator does, and start it again; it gets ready by itself."""
        self.wait_answering()
        self._end(self._process)
        self._process = self._start()

    def begin_take_over(self) -> Callable[[], None]:
        """Start another one that takes over from this one; return what waits for it."""
        before, pid = self._process, self.pid()
        self._process = self._start("--take-over")

        def finish() -> None:
            self.wait_other_than(pid)
            if (code := before.wait(READY_S)) != 0:
                raise TestbedError(f"`lb run` that was taken over from has ended with status {code}")

        return finish
