"""
A load from the testbed's client hosts: one process per host plays its part of the plan, all start at the same moment.

Both kinds of testbed use it: the one that this process owns (`lb run --testbed`, `lb experiment`) and the one that
another process keeps (`lb testbed load`). They differ only in how a program is started in a host.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, TypeAlias

from lb.errors import TestbedError
from lb.loadgen.lines import Event
from lb.loadgen.plan import Plan, to_json
from lb.loadgen.records import Record, from_json

READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0
# From the last one's being ready to the start: all must have read it.
HEAD_START_S = 0.2
READ_BYTES = 1 << 16

# (host, module of this package) -> the process, with pipes on its standard input and output
Spawn: TypeAlias = Callable[[str, str], "subprocess.Popen[bytes]"]
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


class LoadClients:
    """
    The processes that play a plan; a context manager that ends them.

    Args:
        plan: its clients are hosts.
        spawn: starts a program in a host.
    """

    def __init__(self, plan: Plan, spawn: Spawn) -> None:
        self._plan, self._spawn = plan, spawn
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._rest: dict[str, bytes] = {}
        self._stopped = False
        self.origin_s = 0.0

    def __enter__(self) -> LoadClients:
        try:
            for client in self._plan.clients:
                self._start(client.name)
            self._wait_ready()
            self._go()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether any of them may still say something."""
        return bool(self._selector.get_map())

    def now_s(self) -> float:
        """Return the seconds since the start, as records count them."""
        return time.monotonic() - self.origin_s

    def poll(self, timeout_s: float) -> Iterator[Record]:
        """
        Yield what they say within a time: as soon as there is anything, what there is.

        Raises:
            TestbedError: one of them ended before its time.
        """
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            for line in self._read(key.data):
                yield from_json(line)

    def drain(self) -> Iterator[Record]:
        """End the load and yield what is left to say."""
        self._stopped = True
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_DEADLINE_S
        while self.running and time.monotonic() < deadline:
            yield from self.poll(deadline - time.monotonic())

    def stop(self) -> None:
        """End all of them, whatever they are doing."""
        self._stopped = True
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        self._selector.close()
        self._processes.clear()

    def _start(self, host: str) -> None:
        process = self._spawn(host, "lb.loadgen.worker")
        self._processes[host] = process
        self._rest[host] = b""
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, host)
        self._tell(host, to_json(self._plan.only(host)))

    def _wait_ready(self) -> None:
        missing = set(self._processes)
        deadline = time.monotonic() + READY_DEADLINE_S
        while missing and time.monotonic() < deadline:
            for key, _ in self._selector.select(deadline - time.monotonic()):
                if any(json.loads(line)["kind"] == "ready" for line in self._read(key.data)):
                    missing.discard(key.data)
        if missing:
            raise TestbedError(f"the load client on {min(missing)} is not ready after {READY_DEADLINE_S:.0f} s")

    def _go(self) -> None:
        self.origin_s = time.monotonic() + HEAD_START_S
        for host in self._processes:
            self._tell(host, repr(self.origin_s))

    def _tell(self, host: str, text: str) -> None:
        pipe = self._processes[host].stdin
        assert pipe is not None
        # When it has ended, its end is what we hear of.
        with suppress(BrokenPipeError):
            pipe.write(text.encode() + b"\n")
            pipe.flush()

    def _read(self, host: str) -> list[bytes]:
        """Return the whole lines that a client has written."""
        process = self._processes[host]
        stream: IO[bytes] | None = process.stdout
        assert stream is not None
        data: bytes = stream.read1(READ_BYTES)  # type: ignore[attr-defined]
        if not data:
            self._selector.unregister(stream)
            status = process.wait(STOP_DEADLINE_S)
            if status and not self._stopped:
                raise TestbedError(f"the load client on {host} ended with status {status}")
        lines = (self._rest[host] + data).split(b"\n")
        self._rest[host] = lines.pop()
        return lines


class Faults:
    """
    Loses servers and lets them return, when a load says so; a context manager, after which all have returned.

    Args:
        events: in order of time.
        spawn: as for `LoadClients`.
        switch: the host that holds the servers' links.
    """

    def __init__(self, events: Sequence[Event], spawn: Spawn, switch: str) -> None:
        self._events = list(events)
        self._lost: set[str] = set()
        self._helper = spawn(switch, "lb.testbed.faults") if events else None

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, *_: object) -> None:
        if self._helper is None:
            return
        for server in sorted(self._lost):
            with suppress(TestbedError):
                self._do("return", server)
        for stream in (self._helper.stdin, self._helper.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        self._helper.terminate()
        self._helper.wait()

    def wait_s(self, now_s: float, most_s: float) -> float:
        """Return the seconds until the next event, but not more than `most_s`."""
        return min(most_s, max(0.0, self._events[0].at_s - now_s)) if self._events else most_s

    def due(self, now_s: float) -> Iterator[str]:
        """
        Do what is due and yield, in words, what was done.

        Args:
            now_s: seconds since the start of the load.

        Raises:
            TestbedError: there is no such server.
        """
        while self._events and self._events[0].at_s <= now_s:
            event = self._events.pop(0)
            self._do(event.action, event.server)
            (self._lost.add if event.action == "lose" else self._lost.discard)(event.server)
            yield f"{event.server} {'is lost' if event.action == 'lose' else 'returns'}"

    def _do(self, action: str, server: str) -> None:
        helper = self._helper
        assert helper is not None
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            helper.stdin.write(f"{action} {server}\n".encode())
            helper.stdin.flush()
            answer = helper.stdout.readline().decode().strip()
        except BrokenPipeError:
            answer = ""
        if answer != "done":
            raise TestbedError(answer or "the program that loses servers has ended")


def exec_command(prefix: str, host: str, module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in a host of a testbed that another process keeps."""
    python = [sys.executable, "-P", "-m"]
    return [*python, "lb", "testbed", "exec", "--prefix", prefix, host, "--", *python, module, *arguments]


def spawn_with_exec(prefix: str) -> Spawn:
    """Return how to start a program in a host of such a testbed."""
    # A Ctrl-C is for us: we end the clients when we have heard them out.
    return lambda host, module: subprocess.Popen(exec_command(prefix, host, module), start_new_session=True, **PIPES)
