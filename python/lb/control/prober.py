"""
Ask servers whether they work: TCP connects and HTTP requests, at jittered intervals (behaviour 30).

Control side of the walk; results go to whoever gave the callback (`lb.control.health` judges them). Checks go to the
server's own address through the kernel's routes, never to a VIP: the balancer's data path passes their answers to the
host. Intervals run from start to start and jitter only shortens them, so `fall` failures are in after
`fall x interval + timeout` at the latest. What a server sends back is read up to its headers, bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lb.config import HealthConfig
from lb.control.http_check import Head, get_status
from lb.snapshot import Address

NS_PER_S = 10**9
# An interval is shortened by up to this share of itself, so that checks of many servers do not stay in step.
JITTER = 0.2

# (service name, server name)
ServerKey: TypeAlias = tuple[str, str]
# Called with a key and what went wrong; None: the check passed.
OnResult: TypeAlias = Callable[[ServerKey, str | None], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What is checked, and how. `port`: the one that the check asks."""

    address: Address
    port: int
    health: HealthConfig

    @property
    def url(self) -> str:
        """What a check over HTTP asks for."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"http://{host}:{self.port}{self.health.path}"


class Prober:
    """
    Checks any number of servers; belongs to one asyncio loop.

    Args:
        on_result: gets every result, on the loop's thread.
        seed: of the jitter; None: from the system.
    """

    def __init__(self, on_result: OnResult, seed: int | None = None) -> None:
        self._on_result = on_result
        self._random = random.Random(seed)
        self._targets: dict[ServerKey, Target] = {}
        self._tasks: dict[ServerKey, asyncio.Task[None]] = {}

    def follow(self, targets: Mapping[ServerKey, Target]) -> None:
        """Check these from now on. The checks of those that are no different go on undisturbed."""
        for key in [key for key in self._tasks if targets.get(key) != self._targets[key]]:
            self._tasks.pop(key).cancel()
        self._targets = dict(targets)
        for key in targets.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.get_running_loop().create_task(self._watch(key, targets[key]))

    async def stop(self) -> None:
        """End all checks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, key: ServerKey, target: Target) -> None:
        loop, interval_s = asyncio.get_running_loop(), target.health.interval / NS_PER_S
        start = loop.time() + self._random.uniform(0, interval_s)
        while True:
            await asyncio.sleep(start - loop.time())
            start = loop.time() + interval_s * self._random.uniform(1 - JITTER, 1)
            self._on_result(key, await self.check(target))

    async def check(self, target: Target) -> str | None:
        """Check once; return what went wrong, or None."""
        timeout_s = target.health.timeout / NS_PER_S
        head = Head()
        try:
            async with asyncio.timeout(timeout_s):
                return await (ask(target, head) if target.health.check == "http" else connect(target))
        except TimeoutError:
            what = "only a part of an answer" if head.data else "no answer"
            return f"{what} from {target.address} port {target.port} within {timeout_s:g} s"
        except (OSError, ValueError) as error:
            return f"{target.address} port {target.port}: {_reason(error)}"


async def ask(target: Target, head: Head) -> str | None:
    """
    Ask a target over HTTP; return what is wrong with its answer, or None. `head`: takes what comes.

    Raises:
        OSError: no connection, or it broke.
        AnswerError: the answer is not one of HTTP.
    """
    status = await get_status(target.address, target.port, target.health.path, head)
    low, high = target.health.expect
    if low <= status <= high:
        return None
    expected = str(low) if low == high else f"{low}-{high}"
    return f"{target.url} answered {status}, {expected} is expected"


async def connect(target: Target) -> None:
    """Connect to a target and hang up. Raise OSError when that fails."""
    _, writer = await asyncio.open_connection(str(target.address), target.port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reason(error: Exception) -> str:
    """Return what went wrong in a few words, without addresses that the caller adds."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    number = getattr(cause, "errno", None)
    if isinstance(cause, OSError) and number:
        return os.strerror(number).lower()
    return str(error) or type(error).__name__
