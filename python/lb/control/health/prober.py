"""
Active health checks: TCP connects and HTTP requests, at jittered intervals (rule 19, health).

Control side of the walk; results go to a callback (`lb.control.health.judge` turns them into verdicts). Checks go to
the address of the server through the kernel's routes, never to a VIP: the data path passes their answers to the host.
Intervals run from start to start and jitter only shortens them, so `fall` failures are in after `fall x interval +
timeout` at the latest. The answer of a server is read up to the end of its headers, bounded.

An endpoint that several services check in the same way is checked once, for all of them. The number of checks that are
in progress at a time is bounded; a check that begins more than a tenth of its interval after it was due is *late*, and
counted: too many were in progress, or the loop was held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lb.config import HealthConfig
from lb.config.model import DEFAULT_CHECK_CONCURRENCY
from lb.control.health.http_check import Head, get_status
from lb.control.tasks import Supervisor
from lb.model.snapshot import Address

NS_PER_S = 10**9
# An interval is shortened by up to this share of itself, so that checks of many servers do not stay in step.
JITTER = 0.2
# A check is late when it begins more than this share of its interval after it was due.
LATE = 0.1
TASK = "health checks"

# (service name, server name)
Key: TypeAlias = tuple[str, str]
# Called with a key and the failure; None: the check passed.
OnResult: TypeAlias = Callable[[Key, str | None], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What is checked, and how. `port`: that of the check, which may differ from that of the server."""

    address: Address
    port: int
    health: HealthConfig

    @property
    def question(self) -> Hashable:
        """All that a check does: targets with the same value share one check. Rules of verdicts are no part of it."""
        how = self.health
        return self.address, self.port, how.check, how.path, how.expect, how.interval, how.timeout

    @property
    def url(self) -> str:
        """The URL that a check over HTTP requests."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"http://{host}:{self.port}{self.health.path}"


@dataclass(slots=True)
class _Watched:
    """An endpoint that is checked. `keys`: of its servers; `task`: makes the checks."""

    target: Target
    keys: list[Key] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Slots:
    """A bound on the work that is in progress at a time, first come, first served. The limit may change at any time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    def resize(self, limit: int) -> None:
        """Change the limit. Work that is in progress continues."""
        self._limit = limit
        self._admit()

    async def __aenter__(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(mine)
        self._admit()
        try:
            await mine
        except asyncio.CancelledError:
            # Admitted and cancelled at once: the slot goes to the next.
            if mine.done() and not mine.cancelled():
                self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self._used -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._used < self._limit:
            first = self._queue.popleft()
            if not first.done():
                self._used += 1
                first.set_result(None)


class Prober:
    """
    Checks any number of servers; belongs to one asyncio loop.

    Args:
        on_result: gets every result, on the loop's thread. An exception of it is noted, and the checks go on.
        supervisor: runs the checks; None: one of its own.
        seed: of the jitter; None: from the system.

    `late`: the number of checks that began late, because too many were in progress or the loop was held up.
    """

    def __init__(self, on_result: OnResult, supervisor: Supervisor | None = None, seed: int | None = None) -> None:
        self._on_result = on_result
        self._supervisor = supervisor or Supervisor()
        self._random = random.Random(seed)
        self._watched: dict[Hashable, _Watched] = {}
        self._questions: dict[Key, Hashable] = {}
        self._slots = Slots(DEFAULT_CHECK_CONCURRENCY)
        self.late = 0

    def limit(self, concurrency: int) -> None:
        """Bound the number of checks that are in progress at a time."""
        self._slots.resize(concurrency)

    def follow(self, targets: Mapping[Key, Target]) -> None:
        """Check these servers from now on, and no others."""
        for key, target in targets.items():
            self.watch(key, target)
        for key in self._questions.keys() - targets.keys():
            self.drop(key)

    def watch(self, key: Key, target: Target) -> None:
        """Check a server from now on. If it is checked in this way already, nothing changes."""
        question = target.question
        if self._questions.get(key) == question:
            return
        watched = self._watched.setdefault(question, _Watched(target))
        watched.keys.append(key)
        if watched.task is None:
            watched.task = self._supervisor.run(TASK, functools.partial(self._watch, watched))
        self.drop(key)
        self._questions[key] = question

    def drop(self, key: Key) -> None:
        """Stop checking a server, and its endpoint unless other servers share it."""
        question = self._questions.pop(key, None)
        watched = self._watched.get(question)
        if watched is None:
            return
        watched.keys.remove(key)
        if not watched.keys:
            del self._watched[question]
            if watched.task is not None:
                watched.task.cancel()

    async def stop(self) -> None:
        """End all checks."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        self._questions.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, watched: _Watched) -> None:
        loop, target = asyncio.get_running_loop(), watched.target
        interval_s, timeout_s = target.health.interval / NS_PER_S, target.health.timeout / NS_PER_S
        due = loop.time() + self._random.uniform(0, interval_s)
        while True:
            await asyncio.sleep(due - loop.time())
            async with self._slots:
                start = loop.time()
                # From when it was due, not from when the loop came to it: that too may be late.
                self.late += start - due > LATE * interval_s
                with self._supervisor.guard(TASK):
                    failure = await self.check(target)
                    self._tell(watched, failure)
                # Jitter may make it due before the timeout of a slow server: the next one begins after that.
                over = min(loop.time(), start + timeout_s)
                due = max(start + interval_s * self._random.uniform(1 - JITTER, 1), over)

    def _tell(self, watched: _Watched, failure: str | None) -> None:
        """Pass a result to every server of an endpoint; an exception in one does not keep it from the others."""
        for key in tuple(watched.keys):
            with self._supervisor.guard(TASK):
                self._on_result(key, failure)

    async def check(self, target: Target) -> str | None:
        """Check once, and return what went wrong, or None."""
        timeout_s = target.health.timeout / NS_PER_S
        head = Head()
        try:
            async with asyncio.timeout(timeout_s):
                return await (request_status(target, head) if target.health.check == "http" else connect(target))
        except TimeoutError:
            what = "only a part of an answer" if head.data else "no answer"
            return f"{what} from {target.address} port {target.port} within {timeout_s:g} s"
        except (OSError, ValueError) as error:
            return f"{target.address} port {target.port}: {_reason(error)}"


async def request_status(target: Target, head: Head) -> str | None:
    """
    Send an HTTP request to a target, and return what is wrong with its answer, or None. `head`: collects the answer.

    Raises:
        OSError: no connection, or it broke.
        AnswerError: the answer is not HTTP.
    """
    status = await get_status(target.address, target.port, target.health.path, head)
    low, high = target.health.expect
    if low <= status <= high:
        return None
    expected = str(low) if low == high else f"{low}-{high}"
    return f"{target.url} answered {status}, {expected} is expected"


async def connect(target: Target) -> None:
    """Connect to a target and close the connection. Raise OSError when that fails."""
    _, writer = await asyncio.open_connection(str(target.address), target.port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reason(error: Exception) -> str:
    """Return an error in a few words, without the address, which the caller adds."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    number = getattr(cause, "errno", None)
    if isinstance(cause, OSError) and number:
        return os.strerror(number).lower()
    return str(error) or type(error).__name__
