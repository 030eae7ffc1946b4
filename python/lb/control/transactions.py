"""
Changes as transactions: each is staged, compiled, published and noted, or has changed nothing (rule 18.1, reloads and
changes).

The mechanism below `lb.control.controller`, which has the changes themselves. Nothing else compiles or publishes.
Several changes may share one publication. Belongs to one thread at a time; `spec`, `snapshot` and `services` are
values that any thread may read: they are swapped once a change is published.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from lb.compiler.compile import Compiler
from lb.compiler.spec import EffectiveService, Spec, draining_servers, services
from lb.config import Config
from lb.control.drains import Drains
from lb.control.finding import ServerIndex
from lb.control.outcome import Change, Event, Outcome
from lb.control.policy_threads import close_policies
from lb.control.recycle import AbsentIds
from lb.control.stage import Stage
from lb.model.snapshot import Interface, Snapshot
from lb.policies.base import Measurements

HISTORY = 200


class Publisher(Protocol):
    """What snapshots are published to: `lb.control.runtime.Runtime`."""

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a snapshot. Raise LbError, with nothing changed, when that is impossible."""

    def reset_flows(self, server: int) -> None:
        """Begin to reset every flow of the server with this id: its clients get a RST."""


class Transactions:
    """
    Holds the spec and the snapshot that are published, and makes changes of them.

    Args:
        config: the configuration of the start.
        interfaces: what its interfaces have.
        publisher: gets every snapshot; the first one from `start`.
        now: returns Unix time, for the history.
        monotonic_ns: returns nanoseconds of a monotonic clock, for drains.
        spec: with what stands beside that configuration; None: nothing does.

    Raises:
        ConfigError: the first snapshot cannot be made.
    """

    def __init__(
        self,
        config: Config,
        interfaces: Sequence[Interface],
        publisher: Publisher,
        now: Callable[[], float] = time.time,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        spec: Spec | None = None,
    ) -> None:
        self.spec = spec or Spec(config)
        self.history: deque[Event] = deque(maxlen=HISTORY)
        # Keys that only a restart changes have the values of this configuration.
        self.running = config
        # After the first one.
        self.publications = 0
        self._interfaces = tuple(interfaces)
        self._measurements: dict[str, Measurements] = {}
        self._stage: Stage | None = None
        self._absent = AbsentIds()
        self._services: tuple[Spec, tuple[EffectiveService, ...]] | None = None
        self._index = ServerIndex()
        self._publisher = publisher
        self._now = now
        self._monotonic_ns = monotonic_ns
        self._drains = Drains()
        self._compiler = Compiler()
        self._listeners: list[Callable[[], None]] = []
        self.snapshot = self._compiler.compile(self.spec, self._interfaces)

    def start(self) -> None:
        """Publish the first snapshot."""
        self._publisher.publish(self.snapshot)
        self._drains = self._drains.followed(draining_servers(self.spec), self._monotonic_ns())

    @property
    def config(self) -> Config:
        """The configuration, as it was last read from the file."""
        return self.spec.config

    @property
    def generation(self) -> int:
        """The generation that is published."""
        return self.snapshot.generation

    def services(self) -> tuple[EffectiveService, ...]:
        """Return every service with its servers, their states, health and weights; removed ones too."""
        # Read far more often than changed, by several threads: each may compute it, none sees a half-made one.
        spec, known = self.spec, self._services
        if known is None or known[0] is not spec:
            known = self._services = (spec, services(spec))
        return known[1]

    def listen(self, listener: Callable[[], None]) -> None:
        """Register a function that is called after each publication, on the thread that made it."""
        self._listeners.append(listener)

    # How changes are made.

    def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        """
        Make changes in order, with one publication.

        A change that raises is not made; the others are. When the publication of all together fails, each is made
        alone, so that only the one at fault fails.

        Returns:
            The outcome of each.
        """
        outcomes = self._apply_together(changes)
        if outcomes is None:
            outcomes = [outcome for change in changes for outcome in self._apply_together([change]) or ()]
        return outcomes

    def _apply_together(self, changes: Sequence[Change]) -> list[Outcome] | None:
        """Make changes with one publication; None: it failed, nothing has changed, and there are several."""
        self._stage = self._new_stage()
        try:
            outcomes = [self._attempt(change) for change in changes]
            stage = self._commit(self._stage)
        except Exception as error:
            return [Outcome(self.generation, error=error)] if len(changes) == 1 else None
        finally:
            self._stage = None
        self._follow_up(stage)
        return [replace(outcome, generation=self.generation) for outcome in outcomes]

    def _attempt(self, change: Change) -> Outcome:
        """Stage one change; when it raises, the stage is as it was before."""
        assert self._stage is not None
        before, was_dirty = self._stage.copy(), self._stage.is_dirty
        self._stage.is_dirty = False
        try:
            value = change()
        except Exception as error:
            self._stage = before
            return Outcome(0, error=error)
        changed = self._stage.is_dirty
        self._stage.is_dirty |= was_dirty
        return Outcome(0, changed, value)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Stage]:
        """Yield the stage of the changes in progress; without one, a new one, published when the block ends."""
        if self._stage is not None:
            yield self._stage
            return
        self._stage = self._new_stage()
        try:
            yield self._stage
            stage = self._commit(self._stage)
        finally:
            self._stage = None
        self._follow_up(stage)

    def _new_stage(self) -> Stage:
        """Return a stage of what is published."""
        return Stage(
            self.spec,
            self._interfaces,
            dict(self._measurements),
            self._drains,
            services_of=lambda spec: self.services() if spec is self.spec else services(spec),
            index_of=self._index.of,
            monotonic_ns=self._monotonic_ns,
        )

    def _commit(self, stage: Stage) -> Stage:
        """Compute, publish, note; in this order, so that a failure has changed nothing. Return the stage."""
        if stage.is_dirty:
            self._publish(stage)
        replaced, self.spec = self.spec.config, stage.spec
        self._interfaces, self._measurements, self._drains = stage.interfaces, stage.measurements, stage.drains
        self.history.extend(Event(self._now(), self.generation, *event) for event in stage.events)
        if replaced is not self.config:
            close_policies(replaced, self.config)
        return stage

    def _publish(self, stage: Stage) -> None:
        """Compile and swap; what fails has taken no ids."""
        snapshot = self._compiler.compile(stage.spec, stage.interfaces, measurements=stage.measurements)
        try:
            self._publisher.publish(snapshot)
        except BaseException:
            self._compiler.undo()
            raise
        self.snapshot = snapshot
        self.publications += 1
        self._absent.note(self.snapshot, self._compiler)

    def _follow_up(self, stage: Stage) -> None:
        """Reset flows and call listeners: what a publication leads to, and cannot undo."""
        for identity in stage.resets:
            # A server without an id was never published: it has no flows.
            if (server := self._compiler.server_id(identity)) is not None:
                self._publisher.reset_flows(server)
        if stage.is_dirty:
            for listener in self._listeners:
                listener()
