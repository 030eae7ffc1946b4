"""
Health checks of a running balancer: whom to ask, what the answers mean, and telling the steering (behaviour 30).

Control side of the walk: `lb.control.health.prober` asks, `lb.control.health.judge` judges, `lb.control.controller`
acts. Belongs to the daemon's asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from lb.compiler.spec import HEALTHY, Desired, wanted
from lb.compiler.spec import ServerKey as Name
from lb.config import HealthConfig
from lb.control.changes import Requests
from lb.control.controller import Change, ConditionUpdate, Outcome, Steering
from lb.control.health.judge import RAMP_STEPS, Rules, ServiceHealth, Transition
from lb.control.health.passive import ClientSigns, Measured
from lb.control.health.prober import OnResult, Prober, ServerKey, Target
from lb.control.health.slices import Pace
from lb.control.tasks import Supervisor
from lb.errors import LbError

# Between two looks at servers that start slowly.
RAMP_TICK_S = 0.1
# Between two looks at what clients met, at least.
SIGNS_S = 1.0
# After a change that could not be made: before it is tried again.
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Asker(Protocol):
    """Asks servers: `lb.control.health.prober.Prober`."""

    def watch(self, key: ServerKey, target: Target) -> None:
        """Check a server from now on; in this way, if it was checked before."""

    def drop(self, key: ServerKey) -> None:
        """Check a server no more."""

    def limit(self, concurrency: int) -> None:
        """Have so many checks under way at a time, at most."""

    async def stop(self) -> None:
        """End all checks."""


class Checks:
    """
    Checks the servers of all services that say how.

    Args:
        steering: says which servers there are.
        changes: carries out what the checks find.
        supervisor: keeps the tasks here running.
        now_ns: a monotonic clock.
        prober: makes what asks the servers; None: real checks.
        measure: returns what the data path measured; called in a thread. None: nobody measures.

    `results`, `changes`: how many checks and changes of health there were, by (service, server, `success` or `failure`)
    and by (service, server, health).
    """

    def __init__(
        self,
        steering: Steering,
        changes: Requests,
        supervisor: Supervisor,
        now_ns: Callable[[], int] = time.monotonic_ns,
        prober: Callable[[OnResult], Asker] | None = None,
        measure: Callable[[], Measured] | None = None,
    ) -> None:
        self._steering = steering
        self._changes = changes
        self._supervisor = supervisor
        self._now_ns = now_ns
        self._prober = Prober(self.on_result, supervisor) if prober is None else prober(self.on_result)
        # What is to be said about servers, until it is taken for a publication.
        self._updates: dict[Name, ConditionUpdate] = {}
        self._targets: dict[ServerKey, Target] = {}
        self._health: dict[str, ServiceHealth] = {}
        self.results: Counter[tuple[str, str, str]] = Counter()
        self.changes: Counter[tuple[str, str, str]] = Counter()
        self._last_failure: dict[ServerKey, str | None] = {}
        # Servers that start slowly, with the step that was told last.
        self._ramping: dict[ServerKey, int] = {}
        self._ramp_task: asyncio.Task[None] | None = None
        self._followed: tuple[object, ...] = ()
        self._news = asyncio.Event()
        self._follow_task: asyncio.Task[None] | None = None
        self._measure = measure
        self._signs = ClientSigns()
        self._signs_at_ns: dict[str, int] = {}
        self._signs_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. `follow` is to be called after every change of the steering from now on."""
        self._follow_task = self._supervisor.run("checked servers", self._follow)
        if self._measure is not None:
            self._signs_task = self._supervisor.run("passive health", self._watch_signs)

    async def stop(self) -> None:
        """End all checks; the servers stay as they are."""
        for task in (self._follow_task, self._ramp_task, self._signs_task):
            if task is not None:
                task.cancel()
        await self._prober.stop()

    @property
    def late(self) -> int:
        """How many checks began later than they should have."""
        return self._prober.late if isinstance(self._prober, Prober) else 0

    def follow(self) -> None:
        """Check the servers that there are now, soon. Those that are no different keep what is known of them."""
        self._news.set()

    @property
    def is_current(self) -> bool:
        """Whether the servers that there are now are the ones that are checked."""
        return _all_same(_wanted(self._steering.desired), self._followed)

    async def _follow(self) -> None:
        # By what is, not by what was told: after a failure it begins anew.
        while True:
            self._news.clear()
            if self.is_current:
                await self._news.wait()
            else:
                await self._follow_servers()

    async def _follow_servers(self) -> None:
        """Check all servers that there are now, and no others, with pauses in which others have the loop."""
        desired, pace = self._steering.desired, Pace()
        self._prober.limit(desired.config.check_concurrency)
        present: set[ServerKey] = set()
        for service in desired.config.services:
            if service.health is None:
                continue
            rules = rules_of(service.health)
            self._health.setdefault(service.name, ServiceHealth(rules)).rules = rules
            for server in wanted(desired, service):
                key = (service.name, server.name)
                present.add(key)
                self._check(key, Target(server.address, service.health.port or server.port, service.health))
                await pace.keep()
        for key in self._targets.keys() - present:
            self._check_no_more(key)
            await pace.keep()
        for gone in self._health.keys() - {service for service, _ in present}:
            self._forget_service(gone)
        self._followed = _wanted(desired)

    def _check(self, key: ServerKey, target: Target) -> None:
        """Check a server as its service says now."""
        before = self._targets.get(key)
        if before is not None and not _same_server(before, target):
            self._forget(key)
        if before != target:
            self._health[key[0]].know(key[1])
            self._prober.watch(key, target)
            self._targets[key] = target
        if self._health[key[0]].health(key[1]) == "down" and self._is_up(key):
            self._repeat(key)

    def _check_no_more(self, key: ServerKey) -> None:
        self._prober.drop(key)
        self._forget(key)
        for outcome in ("success", "failure"):
            self.results.pop((*key, outcome), None)
        for health in ("up", "down"):
            self.changes.pop((*key, health), None)
        del self._targets[key]

    def _forget(self, key: ServerKey) -> None:
        """Forget what was found out about a machine that has a server's name no more."""
        self._health[key[0]].forget(key[1])
        self._last_failure.pop(key, None)
        self._ramping.pop(key, None)
        self._updates.pop(Name(*key), None)
        self._release(key)

    def _forget_service(self, service: str) -> None:
        del self._health[service]
        self._signs_at_ns.pop(service, None)
        self._signs.forget(service)

    def _is_up(self, key: ServerKey) -> bool:
        """Tell whether the steering takes a server for up."""
        return self._steering.desired.conditions.get(Name(*key), HEALTHY).health == "up"

    def _repeat(self, key: ServerKey) -> None:
        """Say once more that a server is down: it was removed and added back in one publication, and that was lost."""
        self._update(key, ConditionUpdate("down", reason=self._last_failure.get(key) or "checks failed"))

    def _release(self, key: ServerKey) -> None:
        """Let a server that is checked no more, or is another one now, be up: nobody says otherwise."""
        if self._steering.desired.conditions.get(Name(*key), HEALTHY) != HEALTHY:
            self._tell(key, Transition(key[1], "up", "not checked any more"))
            self._update(key, ConditionUpdate(ramp=1.0))

    def on_result(self, key: ServerKey, failure: str | None) -> None:
        """Take in the result of a check. `failure`: what went wrong; None: it passed."""
        health = self._health.get(key[0])
        if health is None or key not in self._targets:
            return
        self._last_failure[key] = failure
        self.results[(*key, "failure" if failure else "success")] += 1
        self._act(key, health.checked(key[1], failure, self._now_ns()))

    async def _watch_signs(self) -> None:
        """Look what clients met, of each service once per interval of its checks."""
        measure = self._measure
        while measure is not None:
            await asyncio.sleep(SIGNS_S)
            now_ns = self._now_ns()
            due = [name for name, health in self._health.items() if self._is_due(name, health, now_ns)]
            if not due:
                continue
            # A data path that fails is told, and acted upon, elsewhere.
            with contextlib.suppress(LbError):
                for key, failure in await asyncio.to_thread(self._look, measure, due):
                    self.on_clients(key, failure)

    def _look(self, measure: Callable[[], Measured], services: list[str]) -> list[tuple[ServerKey, str]]:
        return list(self._signs.look(measure(), services))

    def _is_due(self, service: str, health: ServiceHealth, now_ns: int) -> bool:
        """Tell whether a service is to be looked at, and note that it is."""
        if now_ns - self._signs_at_ns.get(service, 0) < health.rules.interval_ns:
            return False
        self._signs_at_ns[service] = now_ns
        return True

    def on_clients(self, key: ServerKey, failure: str) -> None:
        """Take in that clients' connects to a server failed, and none succeeded, since the last call."""
        health = self._health.get(key[0])
        if health is not None and key in self._targets:
            self._act(key, health.failed_for_clients(key[1], failure, self._now_ns()))

    def last_failure(self, service: str, server: str) -> str | None:
        """Return why the last check of a server failed; None: it passed, or there was none."""
        return self._last_failure.get((service, server))

    def _act(self, key: ServerKey, transition: Transition | None) -> None:
        if transition is None:
            return
        if transition.health == "up" and self._targets[key].health.slow_start is not None:
            # Nothing was told so far.
            self._ramping[key] = 0
            self._step(key)
            self._start_ramps()
        self._tell(key, transition)

    def _tell(self, key: ServerKey, transition: Transition) -> None:
        self.changes[(*key, transition.health)] += 1
        log.log(
            logging.WARNING if transition.health == "down" else logging.INFO,
            "%s/%s is %s: %s", *key, transition.health, transition.why,
        )  # fmt: skip
        self._update(key, ConditionUpdate(transition.health, reason=transition.why))

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

    def _step(self, key: ServerKey) -> None:
        """Give a server that starts slowly the part of its weight that is its due by now, if it has not got that."""
        health, told = self._health.get(key[0]), self._ramping.get(key)
        step = RAMP_STEPS if health is None else health.ramp_step(key[1], self._now_ns())
        if told is None or step == told:
            return
        if step == RAMP_STEPS:
            del self._ramping[key]
        else:
            self._ramping[key] = step
        if health is not None:
            self._update(key, ConditionUpdate(ramp=step / RAMP_STEPS))

    def _update(self, key: ServerKey, update: ConditionUpdate) -> None:
        """Have the next publication say this about a server, beside what it says about others."""
        name = Name(*key)
        self._updates[name] = _merged(self._updates.get(name, ConditionUpdate()), update)
        self._request()

    def _request(self) -> None:
        taken: dict[Name, ConditionUpdate] = {}

        def prepare() -> Change:
            nonlocal taken
            taken, self._updates = self._updates, {}
            return lambda: self._steering.update_conditions(taken)

        self._changes.request("conditions", prepare, lambda outcome: self._on_published(taken, outcome))

    def _on_published(self, taken: Mapping[Name, ConditionUpdate], outcome: Outcome) -> None:
        """Say again later what could not be published; what has come meanwhile is newer."""
        if outcome.error is None:
            return
        log.error("the health of %d servers could not be followed, trying again: %s", len(taken), outcome.error)
        for name, update in taken.items():
            if tuple(name) in self._targets:
                self._updates[name] = _merged(update, self._updates.get(name, ConditionUpdate()))
        if self._updates:
            asyncio.get_running_loop().call_later(RETRY_S, self._request)


def _merged(before: ConditionUpdate, after: ConditionUpdate) -> ConditionUpdate:
    """Return two updates of one server as one."""
    is_verdict = after.health is not None
    return ConditionUpdate(
        health=after.health if is_verdict else before.health,
        ramp=before.ramp if after.ramp is None else after.ramp,
        reason=after.reason if is_verdict else before.reason,
    )


def _wanted(desired: Desired) -> tuple[object, ...]:
    """Return what says which servers there are: the same objects while there are the same servers."""
    return desired.config, desired.added, desired.removed


def _all_same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def rules_of(health: HealthConfig) -> Rules:
    """Return how results become verdicts, as a configuration says."""
    return Rules(health.interval, health.fall, health.rise, health.slow_start or 0)


def _same_server(one: Target, other: Target | None) -> bool:
    """Tell whether two targets are the same socket: what was found out about it holds, however it is asked now."""
    return other is not None and (one.address, one.port) == (other.address, other.port)
