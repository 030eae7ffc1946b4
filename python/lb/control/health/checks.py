"""
Health checks of a running balancer: which servers are checked, and what follows from the results (rule 19, health).

Control side of the walk: `lb.control.health.prober` makes the checks, `lb.control.health.judge` turns results into
verdicts, `lb.control.controller` publishes them. Belongs to the asyncio loop of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from lb.compiler.spec import HEALTHY, ServerKey, Spec, present_servers
from lb.config import HealthConfig
from lb.control.changes import Requests
from lb.control.health.judge import RAMP_STEPS, Rules, ServiceHealth, Transition
from lb.control.health.passive import Measured, PassiveChecks
from lb.control.health.prober import Key, OnResult, Prober, Target
from lb.control.health.slices import Pace
from lb.control.outcome import Change, HealthUpdate, Outcome
from lb.control.tasks import Supervisor
from lb.errors import LbError

# Between two steps of a slow start.
RAMP_TICK_S = 0.1
# Between two passive checks, at least.
PASSIVE_S = 1.0
# Before a change that failed is tried again.
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Checker(Protocol):
    """What makes the checks: `lb.control.health.prober.Prober`."""

    def watch(self, key: Key, target: Target) -> None:
        """Check a server from now on; if it is checked already, in this way."""

    def drop(self, key: Key) -> None:
        """Stop checking a server."""

    def limit(self, concurrency: int) -> None:
        """Bound the number of checks that are in progress at a time."""

    async def stop(self) -> None:
        """End all checks."""


class CheckedServers(Protocol):
    """The servers that may be checked, and their health: `lb.control.controller.Controller`."""

    @property
    def spec(self) -> Spec:
        """The published spec."""

    def update_health(self, updates: Mapping[ServerKey, HealthUpdate]) -> list[ServerKey]:
        """Note health and ramps of any number of servers. Return those that do not exist (any more)."""


class Checks:
    """
    The checks of all services that have a `health` table.

    Args:
        servers: those that may be checked; takes health updates.
        changes: the queue of changes.
        supervisor: runs the tasks.
        now_ns: a monotonic clock.
        prober: makes what checks the servers; None: `Prober`.
        measure: returns the measurements of the data path; called in a thread. None: no passive checks.

    `results`, `changes`: numbers of checks and of changes of health, by (service, server, `success` or `failure`) and
    by (service, server, health).
    """

    def __init__(
        self,
        servers: CheckedServers,
        changes: Requests,
        supervisor: Supervisor,
        now_ns: Callable[[], int] = time.monotonic_ns,
        prober: Callable[[OnResult], Checker] | None = None,
        measure: Callable[[], Measured] | None = None,
    ) -> None:
        self._servers = servers
        self._changes = changes
        self._supervisor = supervisor
        self._now_ns = now_ns
        self._prober = Prober(self.on_result, supervisor) if prober is None else prober(self.on_result)
        # Health updates that wait for a publication.
        self._updates: dict[ServerKey, HealthUpdate] = {}
        self._targets: dict[Key, Target] = {}
        self._health: dict[str, ServiceHealth] = {}
        self.results: Counter[tuple[str, str, str]] = Counter()
        self.changes: Counter[tuple[str, str, str]] = Counter()
        self._last_failure: dict[Key, str | None] = {}
        # Servers in their slow start, with the step that was published last.
        self._ramping: dict[Key, int] = {}
        self._ramp_task: asyncio.Task[None] | None = None
        self._followed: tuple[object, ...] = ()
        self._news = asyncio.Event()
        self._follow_task: asyncio.Task[None] | None = None
        self._measure = measure
        self._passive = PassiveChecks()
        self._passive_at_ns: dict[str, int] = {}
        self._passive_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Call `follow` after every publication from now on."""
        self._follow_task = self._supervisor.run("checked servers", self._follow)
        if self._measure is not None:
            self._passive_task = self._supervisor.run("passive health", self._check_passively)

    async def stop(self) -> None:
        """End all checks; the health of the servers stays."""
        for task in (self._follow_task, self._ramp_task, self._passive_task):
            if task is not None:
                task.cancel()
        await self._prober.stop()

    @property
    def late(self) -> int:
        """The number of checks that began late."""
        return self._prober.late if isinstance(self._prober, Prober) else 0

    def follow(self) -> None:
        """Check the present servers from now on, soon. Servers that are the same keep their health."""
        self._news.set()

    @property
    def is_current(self) -> bool:
        """Whether the present servers are the ones that are checked."""
        return _all_same(_servers_of(self._servers.spec), self._followed)

    async def _follow(self) -> None:
        # Compared with what is checked, so that it begins anew after a failure.
        while True:
            self._news.clear()
            if self.is_current:
                await self._news.wait()
            else:
                await self._follow_servers()

    async def _follow_servers(self) -> None:
        """Check the present servers and no others, in slices."""
        spec, pace = self._servers.spec, Pace()
        self._prober.limit(spec.config.check_concurrency)
        present: set[Key] = set()
        for service in spec.config.services:
            if service.health is None:
                continue
            rules = rules_of(service.health)
            self._health.setdefault(service.name, ServiceHealth(rules)).rules = rules
            for server in present_servers(spec, service):
                key = (service.name, server.name)
                present.add(key)
                self._check(key, Target(server.address, service.health.port or server.port, service.health))
                await pace.keep()
        for key in self._targets.keys() - present:
            self._stop_checking(key)
            await pace.keep()
        for gone in self._health.keys() - {service for service, _ in present}:
            self._forget_service(gone)
        self._followed = _servers_of(spec)

    def _check(self, key: Key, target: Target) -> None:
        """Check a server as its service is configured now."""
        before = self._targets.get(key)
        if before is not None and not _same_server(before, target):
            self._forget(key)
        if before != target:
            # Down before its first check: the process before this one had found it so.
            self._health[key[0]].know(key[1], "up" if self._is_up(key) else "down")
            self._prober.watch(key, target)
            self._targets[key] = target
        if self._health[key[0]].health(key[1]) == "down" and self._is_up(key):
            self._repeat(key)

    def _stop_checking(self, key: Key) -> None:
        self._prober.drop(key)
        self._forget(key)
        for outcome in ("success", "failure"):
            self.results.pop((*key, outcome), None)
        for health in ("up", "down"):
            self.changes.pop((*key, health), None)
        del self._targets[key]

    def _forget(self, key: Key) -> None:
        """Forget the health of a machine that a server name no longer belongs to."""
        self._health[key[0]].forget(key[1])
        self._last_failure.pop(key, None)
        self._ramping.pop(key, None)
        self._updates.pop(ServerKey(*key), None)
        self._release(key)

    def _forget_service(self, service: str) -> None:
        del self._health[service]
        self._passive_at_ns.pop(service, None)
        self._passive.forget(service)

    def _is_up(self, key: Key) -> bool:
        """Return whether a server is up in the published spec."""
        return self._servers.spec.health.get(ServerKey(*key), HEALTHY).health == "up"

    def _repeat(self, key: Key) -> None:
        """Publish again that a server is down: removed and added back in one publication, it has lost its health."""
        self._update(key, HealthUpdate("down", reason=self._last_failure.get(key) or "checks failed"))

    def _release(self, key: Key) -> None:
        """Mark a server up that is not checked any more, or is another machine now."""
        if self._servers.spec.health.get(ServerKey(*key), HEALTHY) != HEALTHY:
            self._tell(key, Transition(key[1], "up", "not checked any more"))
            self._update(key, HealthUpdate(ramp=1.0))

    def on_result(self, key: Key, failure: str | None) -> None:
        """Handle the result of a check. `failure`: what went wrong; None: it passed."""
        health = self._health.get(key[0])
        if health is None or key not in self._targets:
            return
        self._last_failure[key] = failure
        self.results[(*key, "failure" if failure else "success")] += 1
        self._act(key, health.checked(key[1], failure, self._now_ns()))

    async def _check_passively(self) -> None:
        """Check all services passively, each once per interval of its checks."""
        measure = self._measure
        while measure is not None:
            await asyncio.sleep(PASSIVE_S)
            now_ns = self._now_ns()
            due = [name for name, health in self._health.items() if self._is_due(name, health, now_ns)]
            if not due:
                continue
            # A failure of the data path is handled where it runs.
            with contextlib.suppress(LbError):
                for key in await asyncio.to_thread(self._look, measure, due):
                    self.on_passive_failure(key)

    def _look(self, measure: Callable[[], Measured], services: list[str]) -> list[Key]:
        return list(self._passive.look(measure(), services))

    def _is_due(self, service: str, health: ServiceHealth, now_ns: int) -> bool:
        """Return whether it is time for the passive checks of a service, and note that they are made."""
        if now_ns - self._passive_at_ns.get(service, 0) < health.rules.interval_ns:
            return False
        self._passive_at_ns[service] = now_ns
        return True

    def on_passive_failure(self, key: Key) -> None:
        """Handle that clients' connects to a server failed since the last call, and none succeeded."""
        health = self._health.get(key[0])
        if health is not None and key in self._targets:
            health.failed_passive_check(key[1])

    def last_failure(self, service: str, server: str) -> str | None:
        """Return why the last check of a server failed; None: it passed, or there was none."""
        return self._last_failure.get((service, server))

    def _act(self, key: Key, transition: Transition | None) -> None:
        if transition is None:
            return
        if transition.health == "up" and self._targets[key].health.slow_start is not None:
            # No step was published so far.
            self._ramping[key] = 0
            self._step(key)
            self._start_ramps()
        self._tell(key, transition)

    def _tell(self, key: Key, transition: Transition) -> None:
        self.changes[(*key, transition.health)] += 1
        log.log(
            logging.WARNING if transition.health == "down" else logging.INFO,
            "%s/%s is %s: %s", *key, transition.health, transition.why,
            extra={"facts": {"service": key[0], "server": key[1], "health": transition.health, "why": transition.why}},
        )  # fmt: skip
        self._update(key, HealthUpdate(transition.health, reason=transition.why))

    def _start_ramps(self) -> None:
        if self._ramp_task is None or self._ramp_task.done():
            self._ramp_task = self._supervisor.run("slow start", self._ramp)

    async def _ramp(self) -> None:
        while self._ramping:
            await asyncio.sleep(RAMP_TICK_S)
            pace = Pace()
            for key in tuple(self._ramping):
                self._step(key)
                await pace.keep()

    def _step(self, key: Key) -> None:
        """Publish the part of its weight that a server in its slow start has by now, if that is a new step."""
        health, published = self._health.get(key[0]), self._ramping.get(key)
        step = RAMP_STEPS if health is None else health.ramp_step(key[1], self._now_ns())
        if published is None or step == published:
            return
        if step == RAMP_STEPS:
            del self._ramping[key]
        else:
            self._ramping[key] = step
        if health is not None:
            self._update(key, HealthUpdate(ramp=step / RAMP_STEPS))

    def _update(self, key: Key, update: HealthUpdate) -> None:
        """Add a health update to the next publication."""
        name = ServerKey(*key)
        self._updates[name] = _merged(self._updates.get(name, HealthUpdate()), update)
        self._request()

    def _request(self) -> None:
        taken: dict[ServerKey, HealthUpdate] = {}

        def prepare() -> Change:
            nonlocal taken
            taken, self._updates = self._updates, {}
            return lambda: self._servers.update_health(taken)

        self._changes.request("health", prepare, lambda outcome: self._on_published(taken, outcome))

    def _on_published(self, taken: Mapping[ServerKey, HealthUpdate], outcome: Outcome) -> None:
        """Request again later what could not be published; updates that came meanwhile are newer."""
        if outcome.error is None:
            return
        log.error("the health of %d servers could not be followed, trying again: %s", len(taken), outcome.error)
        for name, update in taken.items():
            if tuple(name) in self._targets:
                self._updates[name] = _merged(update, self._updates.get(name, HealthUpdate()))
        if self._updates:
            asyncio.get_running_loop().call_later(RETRY_S, self._request)


def _merged(before: HealthUpdate, after: HealthUpdate) -> HealthUpdate:
    """Return two updates of a server as one."""
    is_verdict = after.health is not None
    return HealthUpdate(
        health=after.health if is_verdict else before.health,
        ramp=before.ramp if after.ramp is None else after.ramp,
        reason=after.reason if is_verdict else before.reason,
    )


def _servers_of(spec: Spec) -> tuple[object, ...]:
    """Return what the present servers follow from: the same objects while they are the same servers."""
    return spec.config, spec.added, spec.withdrawn


def _all_same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def rules_of(health: HealthConfig) -> Rules:
    """Return the rules of a `health` table."""
    return Rules(health.interval, health.fall, health.rise, health.slow_start or 0)


def _same_server(one: Target, other: Target | None) -> bool:
    """Return whether two targets are the same endpoint: its health stays, even if the check is another."""
    return other is not None and (one.address, one.port) == (other.address, other.port)
