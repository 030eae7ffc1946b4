"""
A load from the testbed's client hosts: one process per host plays its part of the plan, all start at the same moment.

Both kinds of testbed use it: the one that this process owns (`lb run --testbed`, `lb experiment`) and the one that
another process keeps (`lb testbed load`). They differ only in how a program is started in a host. Processes may play
several plans, one after the other: starting them takes longer than a short load.
"""

from __future__ import annotations

import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, TypeAlias

from lb.errors import TestbedError
from lb.lab.loadgen.lines import Event
from lb.lab.loadgen.plan import Plan, to_json
from lb.lab.loadgen.records import DONE, READY, Record, from_json

READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0
# From the last one's being ready to the start: all must have read it.
HEAD_START_S = 0.2
READ_BYTES = 1 << 16
DONE_LINE, READY_LINE = DONE.encode(), READY.encode()

# (host, module of this package) -> the process, with pipes on its standard input and output
Spawn: TypeAlias = Callable[[str, str], "subprocess.Popen[bytes]"]
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


class Workers:
    """
    The processes that play plans, one per client host; a context manager that ends them.

    Args:
        spawn: starts a program in a host.
    """

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(list(self._processes))

    def of(self, host: str) -> subprocess.Popen[bytes]:
        """Return an idle process of a host, or a new one."""
        if host not in self._processes:
            self._processes[host] = self._spawn(host, "lb.lab.loadgen.worker")
        return self._processes[host]

    def terminate(self, hosts: Iterable[str]) -> None:
        """Ask processes to end what they play."""
        for host in hosts:
            self._processes[host].terminate()

    def end(self, hosts: Sequence[str]) -> None:
        """End processes, busy or not."""
        ending = [self._processes.pop(host) for host in hosts]
        for process in ending:
            # It ends its plan, and finds no other; what it still has to say does not hold it up.
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
            process.terminate()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for process in ending:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class LoadClients:
    """
    One plan, played by a process in each of its hosts; a context manager that ends the load.

    Args:
        plan: its clients are hosts.
        spawn: starts a program in a host.
        workers: play it, and stay for the next load; None: new processes.
    """

    def __init__(self, plan: Plan, spawn: Spawn, workers: Workers | None = None) -> None:
        self._plan, self._own = plan, workers is None
        self._workers = workers or Workers(spawn)
        self._selector = selectors.DefaultSelector()
        self._hosts = [client.name for client in plan.clients]
        self._rest: dict[str, bytes] = {}
        self._busy: set[str] = set()
        self._stopped = False
        self.origin_s = 0.0

    def __enter__(self) -> LoadClients:
        try:
            for host in self._hosts:
                self._start(host)
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
        return bool(self._busy)

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
                if line == DONE_LINE:
                    self._finish(key.data)
                else:
                    yield from_json(line)

    def drain(self) -> Iterator[Record]:
        """End the load and yield what is left to say."""
        self._stopped = True
        self._workers.terminate(self._busy)
        deadline = time.monotonic() + STOP_DEADLINE_S
        while self.running and time.monotonic() < deadline:
            yield from self.poll(deadline - time.monotonic())

    def stop(self) -> None:
        """End the load: the processes that still play it, and all that it started."""
        self._stopped = True
        self._selector.close()
        self._workers.end([host for host in self._rest if self._own or host in self._busy])
        self._rest.clear()
        self._busy.clear()

    def _start(self, host: str) -> None:
        process = self._workers.of(host)
        self._rest[host] = b""
        self._busy.add(host)
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, host)
        self._tell(host, to_json(self._plan.only(host)))

    def _wait_ready(self) -> None:
        missing = set(self._hosts)
        deadline = time.monotonic() + READY_DEADLINE_S
        while missing and time.monotonic() < deadline:
            for key, _ in self._selector.select(deadline - time.monotonic()):
                if READY_LINE in self._read(key.data):
                    missing.discard(key.data)
        if missing:
            raise TestbedError(f"the load client on {min(missing)} is not ready after {READY_DEADLINE_S:.0f} s")

    def _go(self) -> None:
        self.origin_s = time.monotonic() + HEAD_START_S
        for host in self._hosts:
            self._tell(host, repr(self.origin_s))

    def _tell(self, host: str, text: str) -> None:
        pipe = self._workers.of(host).stdin
        assert pipe is not None
        # When it has ended, the end of the process is reported.
        with suppress(BrokenPipeError):
            pipe.write(text.encode() + b"\n")
            pipe.flush()

    def _finish(self, host: str) -> None:
        """Note that a host has played its part."""
        stream = self._workers.of(host).stdout
        assert stream is not None
        self._selector.unregister(stream)
        self._busy.discard(host)

    def _read(self, host: str) -> list[bytes]:
        """Return the whole lines that a client has written."""
        process = self._workers.of(host)
        stream: IO[bytes] | None = process.stdout
        assert stream is not None
        data: bytes = stream.read1(READ_BYTES)  # type: ignore[attr-defined]
        if not data:
            self._finish(host)
            status = process.wait(STOP_DEADLINE_S)
            if not self._stopped:
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
        self._helper = spawn(switch, "lb.lab.testbed.faults") if events else None

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
