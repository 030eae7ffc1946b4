"""
What the status and the metrics are made of, collected from the parts of the running balancer that know it.

`lb.control.api.status` and `lb.control.telemetry.metrics` present it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lb.backends.base import Capabilities
from lb.compiler.spec import EffectiveService
from lb.control.reload import ReloadRecord
from lb.control.tasks import TaskState
from lb.control.telemetry.metrics import Sample
from lb.control.telemetry.process_facts import Facts
from lb.model.version import version
from lb.net.host import GuardState
from lb.policies.executor import stuck_threads


class DataPathFigures(Protocol):
    """Figures of the data path: `lb.control.runtime.Runtime`. `started_at_s`: of `time.monotonic`."""

    started_at_s: float

    def counters(self) -> dict[str, Any]:
        """Return all counters."""

    def measurements(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what was measured about each server, by service and server name."""

    def capabilities(self) -> Capabilities:
        """Return what the data path does as the rules say, and what it does not measure."""

    def guard_state(self) -> GuardState:
        """Return how the services' packets are kept from the host's kernel."""

    def table_memory(self) -> dict[str, str | None]:
        """Return what the flow table's memory is, where, and why it is that."""


class Published(Protocol):
    """What is published: `lb.control.controller.Controller`."""

    publications: int

    @property
    def generation(self) -> int:
        """The generation that is published."""

    def services(self) -> tuple[EffectiveService, ...]:
        """Return every service with its servers."""


class CheckFigures(Protocol):
    """Figures of the health checks: `lb.control.health.checks.Checks`."""

    @property
    def results(self) -> Mapping[tuple[str, str, str], int]:
        """The numbers of checks, by service, server and result."""

    @property
    def changes(self) -> Mapping[tuple[str, str, str], int]:
        """The numbers of changes of health, by service, server and health."""

    @property
    def late(self) -> int:
        """The number of checks that began late."""


class FlowLogFigures(Protocol):
    """Figures of the flow log: `lb.control.telemetry.flow_log.FlowLog`. `missed`: exports that found no room."""

    missed: int


class Sampler:
    """
    Collects facts and samples.

    Args:
        backend: its name.
        path: of the configuration.
        data_path: its figures.
        published: spec and snapshot.
        checks: figures of the health checks.
        flow_log: figures of the flow log.
        reloads: how reloads have ended.
        tasks: returns the state of the background tasks.
        troubles: returns what is wrong, in words; None where nothing is.
        stops_within_s: returns how long a drain before the stop may still take; None: there is none.
    """

    def __init__(
        self,
        backend: str,
        path: Path,
        data_path: DataPathFigures,
        published: Published,
        checks: CheckFigures,
        flow_log: FlowLogFigures,
        reloads: ReloadRecord,
        tasks: Callable[[], Mapping[str, TaskState]],
        troubles: Callable[[], tuple[str | None, ...]],
        stops_within_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._backend = backend
        self._path = path
        self._data_path = data_path
        self._published = published
        self._checks = checks
        self._flow_log = flow_log
        self._reloads = reloads
        self._tasks = tasks
        self._troubles = troubles
        self._stops_within_s = stops_within_s

    def facts(self) -> Facts:
        """Return what the status begins with."""
        return Facts(
            version=version(),
            pid=os.getpid(),
            backend=self._backend,
            config_path=str(self._path.absolute()),
            uptime_s=time.monotonic() - self._data_path.started_at_s,
            last_reload_error=self._reloads.last_error,
            trouble="; ".join(filter(None, self._troubles())) or None,
            reloads=self._reloads.counts.total(),
            reload_failures=self._reloads.counts["failure"],
            tasks=self._tasks(),
            host_guard=self._data_path.guard_state(),
            table_memory=self._data_path.table_memory(),
            stops_within_s=self._stops_within_s(),
        )

    def sample(self) -> Sample:
        """Return what the metrics are made of. Called in a thread."""
        return Sample(
            version=version(),
            backend=self._backend,
            started_at=time.time() - (time.monotonic() - self._data_path.started_at_s),
            reloaded_at=self._reloads.reloaded_at,
            generation=self._published.generation,
            reloads=self._reloads.counts,
            last_reload_ok=self._reloads.last_error is None,
            services=self._published.services(),
            counters=self._data_path.counters(),
            measured=self._data_path.measurements(),
            not_measured=self._data_path.capabilities().not_measured,
            checks=dict(self._checks.results),
            changes=dict(self._checks.changes),
            flow_log_missed=self._flow_log.missed,
            host_guard=self._data_path.guard_state(),
            tasks=self._tasks(),
            checks_late=self._checks.late,
            publications=self._published.publications,
            stuck_threads=stuck_threads(),
        )
