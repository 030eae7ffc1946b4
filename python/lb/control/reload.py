"""
Reloads: reading the configuration file again and swapping to it, or telling what that would do (rule 18.1, reloads and
changes).

Reading runs on a thread, because a large file takes a while and runs users' policies. A reload is carried through
whole or changes nothing. Reloads and dry runs are one at a time. Belongs to one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lb.balancer import require_same_interfaces
from lb.config import Config, MetricsConfig, read
from lb.config.unprivileged import require_trusted
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.outcome import Preview
from lb.control.policy_threads import close_policies
from lb.control.seed import with_seed
from lb.control.serial import SerialJobs, SerialThread
from lb.control.tasks import Supervisor
from lb.errors import ConfigError, LbError
from lb.model.snapshot import Interface

# Lines of the diff that go to the log; `lb reload` prints all.
LOGGED_CHANGES = 100
# How long reading the configuration may take: it runs the files of users' policies.
READ_DEADLINE_S = 20.0
# Threads that hang in a reading and are left alone; beyond these, readings wait for the last one.
MAX_HUNG_READERS = 4

log = logging.getLogger(__name__)


class InterfaceSource(Protocol):
    """What the kernel says about the interfaces: `lb.net.kernel.Kernel`."""

    def configure(self, config: Config) -> None:
        """Let the values of a configuration override the kernel's."""

    async def read_interfaces(self) -> tuple[Interface, ...]:
        """Return the interfaces as they are now. Raise LbError when one is down or gone."""

    def refresh(self) -> Coroutine[Any, Any, None]:
        """Resolve the next hops of all servers."""


class MetricsAddress(Protocol):
    """The address that metrics are served at: `lb.control.telemetry.metrics_server.MetricsServer`."""

    def moving(self, where: MetricsConfig | None) -> AbstractAsyncContextManager[None]:
        """Serve at another address for the block, and keep it when the block succeeds."""


class FlowLogSwitch(Protocol):
    """Turns the flow log on and off: `lb.control.telemetry.flow_log.FlowLog`."""

    def follow(self, is_on: bool) -> None:
        """Write from now on, or not."""


@dataclass(slots=True)
class ReloadRecord:
    """
    How reloads have ended. `counts`: by result, `success` and `failure`; `last_error`: of the last one, in one line,
    None when it succeeded; `reloaded_at`: Unix time in seconds of the last success, or of the start.
    """

    counts: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None
    reloaded_at: float = field(default_factory=time.time)

    def note_success(self) -> None:
        """Count a reload that succeeded."""
        self.counts["success"] += 1
        self.last_error, self.reloaded_at = None, time.time()

    def note_failure(self, error: Exception) -> None:
        """Count a reload that changed nothing."""
        self.counts["failure"] += 1
        self.last_error = first_lines(error)


class ConfigReader:
    """
    Reads a configuration file on a thread, with a deadline.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = SerialThread("lb-config")
        self._hung = 0

    async def read(self) -> Config:
        """
        Return the configuration as the file is now.

        Raises:
            ConfigError: it is not valid, or not read within READ_DEADLINE_S.
        """
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                return await self._thread.run(lambda: load_config(self._path))
        except TimeoutError:
            # The thread is left alone: it hangs in a policy's file. The next reading gets another, if not too many do.
            if self._hung < MAX_HUNG_READERS:
                self._hung += 1
                self._thread = SerialThread("lb-config")
            raise ConfigError(
                [f"{self._path}: not read within {READ_DEADLINE_S:g} s; does a policy's file hang?"]
            ) from None


class Reloader:
    """
    Reloads a running balancer.

    Args:
        path: of the configuration.
        start: the configuration of the start: what only a restart changes has its values.
        controller: swaps to the configuration.
        changes: the queue of changes.
        interfaces: of the kernel.
        metrics: moves with the configuration.
        flow_log: is switched by the configuration.
        supervisor: runs the reloads.
        record: gets how they end.
    """

    def __init__(
        self,
        path: Path,
        start: Config,
        controller: Controller,
        changes: Changes,
        interfaces: InterfaceSource,
        metrics: MetricsAddress,
        flow_log: FlowLogSwitch,
        supervisor: Supervisor,
        record: ReloadRecord,
    ) -> None:
        self.record = record
        self._path = path
        self._start = start
        self._controller = controller
        self._changes = changes
        self._interfaces = interfaces
        self._metrics = metrics
        self._flow_log = flow_log
        self._supervisor = supervisor
        self._jobs = SerialJobs(supervisor, "reload")
        self._reader = ConfigReader(path)

    def request(self) -> None:
        """Start a reload in the background; the log and the status tell how it ends."""
        self._supervisor.spawn("reload", self._reload_quietly())

    async def _reload_quietly(self) -> None:
        with contextlib.suppress(LbError):
            await self.reload()

    async def reload(self, deadline_s: float | None = None) -> list[str]:
        """
        Read the configuration again and swap to it (rule 18.1, reloads and changes).

        Args:
            deadline_s: how long to wait; None: until it is done.

        Returns:
            What is different, in lines for people.

        Raises:
            LbError: it cannot be used. Nothing has changed then; the reason is in the log and in the status.
            UnderWayError: it takes longer; it goes on, and is carried through or changes nothing.
        """
        return await self._jobs.run(self._reload_and_log, deadline_s)

    async def preview(self, deadline_s: float | None = None) -> Preview:
        """
        Return what a reload would do, and change nothing.

        Args:
            deadline_s: how long to wait; None: until it is done.

        Raises:
            LbError: the file cannot be used, or it takes longer.
        """
        return await self._jobs.run(self._preview, deadline_s)

    async def _reload_and_log(self) -> list[str]:
        try:
            changes = await self._reload()
        except Exception as error:
            self.record.note_failure(error)
            self._interfaces.configure(as_it_runs(self._controller.config, self._start))
            log.error("reload failed, the configuration before it stays in use:\n%s", error)
            raise
        self.record.note_success()
        log.info("reloaded %s: generation %d", self._path, self._controller.generation)
        for line in changes[:LOGGED_CHANGES]:
            log.info("  %s", line)
        if len(changes) > LOGGED_CHANGES:
            log.info("  and %d more", len(changes) - LOGGED_CHANGES)
        return changes

    async def _reload(self) -> list[str]:
        config = await self._read()
        try:
            self._interfaces.configure(as_it_runs(config, self._start))
            interfaces = await self._interfaces.read_interfaces()
            # What can fail comes before what cannot be taken back.
            async with self._metrics.moving(config.metrics):
                outcome = await self._changes.make(lambda: self._controller.reload(config, interfaces))
                changes: list[str] = outcome.result()
        except BaseException:
            close_policies(config, self._controller.config)
            raise
        with self._supervisor.guard("flow log"):
            self._flow_log.follow(config.flow_log)
        self._supervisor.spawn("neighbours", self._interfaces.refresh())
        return changes

    async def _preview(self) -> Preview:
        config = await self._read()
        preview: Preview = (await self._changes.make(lambda: self._controller.preview(config))).result()
        return preview

    async def _read(self) -> Config:
        """Return the configuration as the file is now, if it can be swapped to."""
        config = await self._reader.read()
        # A file without a seed keeps the one that runs.
        config = with_seed(config, self._controller.snapshot.seed)
        try:
            require_same_interfaces(self._controller.config, config)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        return config


def load_config(path: Path) -> Config:
    """Return a valid configuration and log its warnings, or raise ConfigError."""
    require_trusted(path)
    report = read(path)
    for warning in report.warnings:
        log.warning("%s", warning.partition("\n")[0])
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def as_it_runs(config: Config, running: Config) -> Config:
    """Return a configuration with the MACs that the interfaces have had since the start: others wait for a restart."""
    macs = {entry.name: entry.mac for entry in running.interfaces}
    entries = tuple(entry.model_copy(update={"mac": macs[entry.name]}) for entry in config.interfaces)
    return config.model_copy(update={"interfaces": entries})


def first_lines(error: Exception) -> str:
    """Return an error as one line: the first line of each problem of a ConfigError; of an internal error, its repr."""
    if isinstance(error, ConfigError):
        return "; ".join(problem.partition("\n")[0] for problem in error.problems)
    return str(error) if isinstance(error, LbError) else repr(error)
