"""
The one place that changes go through: the operator's, a reload's, the health checks', the timers', the kernel's.

Middle of the control walk: it holds the spec (`lb.compiler.spec`). For each change it computes the next snapshot,
publishes it in one swap, and notes what happened and why (`lb.control.transactions`). What each change does is in
`lb.control.operations` (the operator's) and `lb.control.observations` (the others').

Changes belong to one thread at a time: in the daemon to the one of `lb.control.changes`, which makes all that wait
together (`apply`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lb.compiler.compile import IdKind
from lb.compiler.edits import with_config
from lb.compiler.spec import ServerIdentity, ServerKey, Spec
from lb.config import Config, ServerConfig
from lb.control import observations, operations
from lb.control.diff import diff
from lb.control.forecast import remap_forecasts
from lb.control.outcome import HealthUpdate, Preview
from lb.control.policy_threads import close_policies
from lb.control.stage import Stage
from lb.control.transactions import Transactions
from lb.model.snapshot import Interface, Snapshot
from lb.policies.base import Measurements, State


class Controller(Transactions):
    """All changes of a running balancer. Arguments and errors: as `Transactions`."""

    def restore(self, spec: Spec) -> None:
        """Swap to another spec of the same configuration, before packets come."""
        with self._staging() as stage:
            stage.change(spec)

    # What checks, timers and the kernel report.

    def set_health(self, service: str, server: str, up: bool, reason: str) -> None:
        """
        Note the verdict of the checks about a server. Down: new flows avoid it, and the ones it has are reset, if the
        service says so (`on_server_down`).

        Args:
            service: its name.
            server: its name.
            up: the verdict.
            reason: why, for people: `3 checks failed: connection refused`.

        Raises:
            UnknownNameError: there is no such server (any more).
        """
        key = ServerKey(service, server)
        self._update_one(key, HealthUpdate("up" if up else "down", reason=reason))

    def set_ramp(self, service: str, server: str, part: float) -> None:
        """
        Give a server a part of its weight during its slow start.

        Args:
            service: its name.
            server: its name.
            part: in (0, 1]; 1: all of it.

        Raises:
            UnknownNameError: there is no such server (any more).
            ValueError: the part is out of range.
        """
        if not 0 < part <= 1:
            raise ValueError(f"part: {part} is not in (0, 1]")
        self._update_one(ServerKey(service, server), HealthUpdate(ramp=part))

    def _update_one(self, key: ServerKey, update: HealthUpdate) -> None:
        with self._staging() as stage:
            stage.server(*key)
            observations.update_health(stage, {key: update})

    def update_health(self, updates: Mapping[ServerKey, HealthUpdate]) -> list[ServerKey]:
        """
        Note health and ramps of any number of servers, with one publication.

        Returns:
            The servers that do not exist (any more).
        """
        with self._staging() as stage:
            return observations.update_health(stage, updates)

    def reset_down(self) -> None:
        """
        Reset what flows there are of servers that are down, where their service says so: the process before was to do
        that, and may have ended meanwhile.
        """
        with self._staging() as stage:
            observations.reset_down(stage)

    def replan(self, service: str, measurements: Measurements) -> bool:
        """
        Replan a service from measurements. Nothing is published when its plan is the same.

        Returns:
            Whether a new plan was published.

        Raises:
            UnknownNameError: there is no such service (any more).
        """
        with self._staging() as stage:
            stage.service(service)
            return bool(self.replan_all({service: measurements}))

    def replan_all(self, measured: Mapping[str, Measurements]) -> list[str]:
        """
        Replan services from measurements, with one publication at most.

        Args:
            measured: what was measured, by service; services that do not exist any more are left out.

        Returns:
            The services whose plans changed.
        """
        with self._staging() as stage:
            present = [service for service in stage.services() if not service.is_removed and service.name in measured]
            stage.measurements.update({service.name: measured[service.name] for service in present})
            replanned = [
                service.name
                for service in present
                if self._compiler.would_change(service, measured[service.name], self.snapshot)
            ]
            stage.is_dirty |= bool(replanned)
        return replanned

    def set_interfaces(self, interfaces: Sequence[Interface]) -> None:
        """
        Follow a change of the interfaces.

        Raises:
            ConfigError: an interface has got the address of a VIP or server.
        """
        with self._staging() as stage:
            observations.set_interfaces(stage, interfaces)

    def end_drains(self) -> None:
        """
        End the drains of servers that have drained for their `drain_timeout`: UDP flows move to other servers, each
        with its next packet; TCP flows are reset.
        """
        with self._staging() as stage:
            observations.end_drains(stage)

    # Removed servers, and the ids of what is gone.

    def removed_servers(self) -> dict[ServerIdentity, int]:
        """Return the removed servers that are kept for their flows, with their ids: names may be used again."""
        return self._compiler.server_ids(removed.identity for removed in self.spec.removed_servers)

    def forget(self, gone: Collection[ServerIdentity]) -> None:
        """Drop removed servers that have no flow any more."""
        if gone:
            with self._staging() as stage:
                observations.forget(stage, gone)

    def absent(self, kind: IdKind) -> dict[int, int]:
        """
        Return the ids of servers or services that the published snapshot does not have, with the generation that left
        them out.
        """
        return self._absent.of(kind)

    def release(self, kind: IdKind, retired: Mapping[int, int]) -> None:
        """
        Release ids, so that other servers or services can have them. Nothing is published.

        Args:
            kind: of the ids.
            retired: as `absent` returns them; those that have been in a snapshot since are left alone.
        """
        absent = self._absent.of(kind)
        self._compiler.release(kind, [number for number, since in retired.items() if absent.get(number) == since])
        self._absent.note(self.snapshot, self._compiler)

    # What the operator changes.

    def set_state(self, service: str, server: str, state: State, reset: bool = False) -> None:
        """
        Set a server's operator state. `active`: it takes new flows; `draining`, `disabled`: it takes none, and existing
        flows continue.

        Args:
            service: its name.
            server: its name.
            state: the new one.
            reset: reset its flows: both ends get a RST.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            operations.set_state(stage, service, server, state, reset)

    def set_weight(self, service: str, server: str, weight: int) -> None:
        """
        Set a server's weight. 0: no new flows.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            operations.set_weight(stage, service, server, weight)

    def add(self, service: str, server: ServerConfig) -> None:
        """
        Add a server to a service, until the next reload.

        Raises:
            UnknownNameError: there is no such service.
            RefusedError: its name or its address and port are taken, or no packet could be translated to it.
        """
        with self._staging() as stage:
            operations.add(stage, service, server)

    def remove(self, service: str, server: str, reset: bool = False) -> None:
        """
        Remove a server. Its flows continue until they end.

        Args:
            service: its name.
            server: its name.
            reset: reset them instead: both ends get a RST.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            operations.remove(stage, service, server, reset)

    def set_stopping(self, is_stopping: bool) -> None:
        """Let no server take new flows, because the balancer is stopping, whatever its state; or let that be over."""
        with self._staging() as stage:
            operations.set_stopping(stage, is_stopping)

    def reload(self, config: Config, interfaces: Sequence[Interface] | None = None) -> list[str]:
        """
        Swap to another configuration, in one step.

        Returns:
            What is different, in lines for people.

        Raises:
            ConfigError: it cannot be compiled; nothing has changed then.
        """
        with self._staging() as stage:
            return operations.reload(stage, config, interfaces, self.running)

    def preview(self, config: Config) -> Preview:
        """
        Return what a reload would do after the changes in progress, and change nothing.

        Raises:
            ConfigError: it could not be compiled.
        """
        stage = self._stage or self._new_stage()
        after = with_config(stage.spec, config)
        try:
            with self._compiler.trial():
                before = self._draft(stage, stage.spec) if self._has_news(stage) else self.snapshot
                snapshot = self._draft(stage, after)
        finally:
            close_policies(config, self.config)
        return Preview(diff(stage.spec, after, self.running), remap_forecasts(before, snapshot))

    def _draft(self, stage: Stage, spec: Spec) -> Snapshot:
        return self._compiler.draft(spec, stage.interfaces, measurements=stage.measurements)

    def _has_news(self, stage: Stage) -> bool:
        """Return whether a stage has anything that is not published."""
        published = (self.spec, self._interfaces, self._measurements)
        return (stage.spec, stage.interfaces, stage.measurements) != published
