"""
Where every change goes through: the operator's, a reload's, the health checks', the replan timer's, the kernel's.

The control walk's middle: it holds what is wanted (`lb.compiler.spec`), and for each change computes the next snapshot,
publishes it in one swap, and notes what happened and why. Nothing else compiles or publishes. A change that cannot be
made raises and has changed nothing (behaviour 29).

Changes belong to one thread at a time: in the daemon to the one of `lb.control.changes`, which makes all that wait
together (`apply`). What others read (`desired`, `snapshot`, `services`) are values that are swapped once a change is
published.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

from lb.compiler.compile import Compiler, IdKind
from lb.compiler.spec import (
    HEALTHY,
    NO_WISH,
    Condition,
    Desired,
    ServerIdentity,
    ServerKey,
    ServerNow,
    ServiceNow,
    draining_servers,
    server_identity,
    services,
    wanted,
    with_conditions,
    with_config,
    with_overdue,
    with_server,
    with_wish,
    without_leavers,
    without_server,
)
from lb.config import Config, ServerConfig, ServiceConfig
from lb.config.rules import unusable_in
from lb.control.diff import diff
from lb.control.drains import Drains
from lb.control.forecast import Move, moves
from lb.errors import RefusedError, UnknownNameError
from lb.model.snapshot import Interface, Snapshot
from lb.policies import UserPolicy
from lb.policies.base import Health, Measurements, State

HISTORY = 200
# Names in an error message, when none is near.
LISTED = 10
STATE_WORDS: Mapping[State, str] = {"active": "enabled", "draining": "drained", "disabled": "disabled"}


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened. `at`: Unix time in seconds; `generation`: of the snapshot it led to; `what`: a server
    (`video/server2`), a service, or the configuration; `change`: what is new; `reason`: who or what did it.
    """

    at: float
    generation: int
    what: str
    change: str
    reason: str


class Preview(NamedTuple):
    """What a reload would do. `diff`: what changes, in lines for people; `moves`: what becomes of new flows."""

    diff: list[str]
    moves: list[Move]


# A call of one of the methods below that change something. It may be called twice.
Change: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of a change. `generation`: the one that is published now; `changed`: whether the change led to it;
    `value`: what its call returned; `error`: why it has not happened.
    """

    generation: int
    changed: bool = False
    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class ConditionUpdate:
    """
    What is new about a server; None: nothing. `health`: the verdict of the checks, with its `reason`; `ramp`: the part
    of its weight, in (0, 1].
    """

    health: Health | None = None
    ramp: float | None = None
    reason: str = ""


@dataclass(slots=True)
class _Stage:
    """Changes that wait to be published together: what they make of the state, and what follows."""

    desired: Desired
    interfaces: tuple[Interface, ...]
    measurements: dict[str, Measurements]
    drains: Drains
    is_dirty: bool = False
    events: list[tuple[str, str, str]] = field(default_factory=list)
    # By identity: a server that is new has no id before the publication.
    resets: list[ServerIdentity] = field(default_factory=list)

    def copy(self) -> _Stage:
        """Return the same, to go back to."""
        return replace(self, measurements=dict(self.measurements), events=list(self.events), resets=list(self.resets))


class Target(Protocol):
    """What changes are carried out on: the daemon."""

    def publish(self, snapshot: Snapshot) -> None:
        """Swap to a snapshot; raise LbError and change nothing when that cannot be done."""

    def reset_flows(self, server: int) -> None:
        """Begin to reset every flow of the server with this id: its clients learn at once."""


class Steering:
    """
    The balancer's steering wheel.

    Args:
        config: what the file said at start.
        interfaces: what its interfaces have.
        target: gets every snapshot but the first, which `start` publishes.
        now: returns Unix time, for the history.
        monotonic_ns: returns nanoseconds of a monotonic clock, for drains.

    Raises:
        ConfigError: the first snapshot cannot be made.
    """

    def __init__(
        self,
        config: Config,
        interfaces: Sequence[Interface],
        target: Target,
        now: Callable[[], float] = time.time,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.desired = Desired(config)
        self.history: deque[Event] = deque(maxlen=HISTORY)
        # What a restart alone can change is as it was here.
        self.running = config
        self._interfaces = tuple(interfaces)
        self._measurements: dict[str, Measurements] = {}
        # Since the first one.
        self.publications = 0
        self._stage: _Stage | None = None
        # By id: the generation that left it out.
        self._absent: dict[IdKind, dict[int, int]] = {"server": {}, "service": {}}
        self._services: tuple[Desired, tuple[ServiceNow, ...]] | None = None
        self._index: tuple[tuple[object, ...], dict[ServerKey, tuple[ServiceConfig, ServerConfig]]] | None = None
        self._target = target
        self._now = now
        self._monotonic_ns = monotonic_ns
        self._drains = Drains()
        self._compiler = Compiler()
        self._listeners: list[Callable[[], None]] = []
        self.snapshot = self._compiler.compile(self.desired, self._interfaces)

    def start(self) -> None:
        """Publish the first snapshot."""
        self._target.publish(self.snapshot)
        self._drains = self._drains.followed(draining_servers(self.desired), self._monotonic_ns())

    @property
    def config(self) -> Config:
        """The configuration, as the file said."""
        return self.desired.config

    @property
    def generation(self) -> int:
        """The generation that is published."""
        return self.snapshot.generation

    def services(self) -> tuple[ServiceNow, ...]:
        """Return every service with its servers, their states, health and weights; leaving ones too."""
        # Read far more often than changed, by several threads: each may compute it, none sees another's half.
        desired, known = self.desired, self._services
        if known is None or known[0] is not desired:
            known = self._services = (desired, services(desired))
        return known[1]

    def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        """
        Make changes in order, with one publication.

        A change that raises has not happened, and the others have. When the publication of all together fails, each is
        made alone, so that the one at fault fails alone.

        Returns:
            What became of each.
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

    def _commit(self, stage: _Stage) -> _Stage:
        """Compute, publish, note; in this order, so that a failure has changed nothing. Return the stage."""
        if stage.is_dirty:
            self._publish(stage)
        replaced, self.desired = self.desired.config, stage.desired
        self._interfaces, self._measurements, self._drains = stage.interfaces, stage.measurements, stage.drains
        self.history.extend(Event(self._now(), self.generation, *event) for event in stage.events)
        if replaced is not self.config:
            close_policies(replaced, self.config)
        return stage

    def _publish(self, stage: _Stage) -> None:
        """Compile and swap; what fails has taken no ids."""
        snapshot = self._compiler.compile(stage.desired, stage.interfaces, measurements=stage.measurements)
        try:
            self._target.publish(snapshot)
        except BaseException:
            self._compiler.undo()
            raise
        self.snapshot = snapshot
        self.publications += 1
        self._note_absent()

    def _follow_up(self, stage: _Stage) -> None:
        """Reset flows and tell listeners: what a publication leads to, and cannot undo."""
        for identity in stage.resets:
            # One without an id was never published: it has no flows.
            if (server := self._compiler.server_id(identity)) is not None:
                self._target.reset_flows(server)
        if stage.is_dirty:
            for listener in self._listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called after each publication, on the thread that made it."""
        self._listeners.append(listener)

    # What checks and timers say.

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
        self._update_one(key, ConditionUpdate("up" if up else "down", reason=reason))

    def set_ramp(self, service: str, server: str, part: float) -> None:
        """
        Give a server a part of its weight, while it starts slowly.

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
        self._update_one(ServerKey(service, server), ConditionUpdate(ramp=part))

    def _update_one(self, key: ServerKey, update: ConditionUpdate) -> None:
        if self.update_conditions({key: update}):
            # Raises, and says which names are near.
            self._find(*key)

    def update_conditions(self, updates: Mapping[ServerKey, ConditionUpdate]) -> list[ServerKey]:
        """
        Note what checks and slow starts say about any number of servers, with one publication.

        Returns:
            Those that are not there (any more).
        """
        with self._staging() as stage:
            index, conditions = self._find_all(stage.desired), dict(stage.desired.conditions)
            for key, update in updates.items():
                if key in index:
                    before = conditions.get(key, HEALTHY)
                    conditions[key] = _updated(before, update)
                    self._note_condition(key, index[key], before, conditions[key])
            stage.desired = with_conditions(stage.desired, conditions)
        return [key for key in updates if key not in index]

    def _note_condition(
        self, key: ServerKey, owner: tuple[ServiceConfig, ServerConfig], before: Condition, after: Condition
    ) -> None:
        """Stage what follows from a server's new condition."""
        assert self._stage is not None
        # The reason alone is no news for packets.
        self._stage.is_dirty |= (before.health, before.ramp) != (after.health, after.ramp)
        if before.health == after.health:
            return
        self._stage.events.append((str(key), after.health, after.reason))
        if after.health == "down" and owner[0].on_server_down == "reset":
            self._stage.resets.append(server_identity(*owner))

    def _find_all(self, desired: Desired) -> Mapping[ServerKey, tuple[ServiceConfig, ServerConfig]]:
        """Return every server that is wanted, by name; remembered while the same ones are."""
        seen = (desired.config, desired.added, desired.removed)
        if self._index is None or not all(one is other for one, other in zip(seen, self._index[0], strict=True)):
            found = {
                ServerKey(service.name, server.name): (service, server)
                for service in desired.config.services
                for server in wanted(desired, service)
            }
            self._index = seen, found
        return self._index[1]

    def replan(self, service: str, measurements: Measurements) -> bool:
        """
        Let a service's policy plan anew, from what was measured. Nothing is published when its plan stays the same.

        Returns:
            Whether a new plan was published.

        Raises:
            UnknownNameError: there is no such service (any more).
        """
        self._service(service)
        return bool(self.replan_all({service: measurements}))

    def replan_all(self, measured: Mapping[str, Measurements]) -> list[str]:
        """
        Let the policies of services plan anew, with one publication at most.

        Args:
            measured: what was measured, by service; those that are not there any more are left out.

        Returns:
            The services whose plans changed.
        """
        with self._staging() as stage:
            present = [service for service in self._present() if not service.leaving and service.name in measured]
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
        Follow what changed about the interfaces.

        Raises:
            ConfigError: an interface has got the address of a VIP or server.
        """
        with self._staging() as stage:
            stage.interfaces = tuple(interfaces)
            self._change(stage.desired, "interfaces", "changed", "by the kernel")

    # What the operator says.

    def set_state(self, service: str, server: str, state: State, reset: bool = False) -> None:
        """
        Set a server's operator state. `active`: it takes new flows; `draining`, `disabled`: it takes none, those it has
        go on.

        Args:
            service: its name.
            server: its name.
            state: the new one.
            reset: end the flows that it has: both ends are told.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            key, owner, found = self._find(service, server)
            wish = stage.desired.wishes.get(key, NO_WISH)
            # What the file says needs no wish: then a reload can change it.
            kept = None if state == found.config.state else state
            wish = replace(wish, state=kept, reason=f"{STATE_WORDS[state]} by operator")
            if state != found.state:
                self._change(with_wish(stage.desired, key, wish), str(key), state, "by operator")
            if reset:
                self._reset(owner, found)

    def set_weight(self, service: str, server: str, weight: int) -> None:
        """
        Set a server's weight. 0: no new flows.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            key, _, found = self._find(service, server)
            wish = stage.desired.wishes.get(key, NO_WISH)
            kept = None if weight == found.config.weight else weight
            if weight != found.weight:
                after = with_wish(stage.desired, key, replace(wish, weight=kept))
                self._change(after, str(key), f"weight {found.weight} -> {weight}", "by operator")

    def add(self, service: str, server: ServerConfig) -> None:
        """
        Add a server to a service, until the next reload.

        Raises:
            UnknownNameError: there is no such service.
            RefusedError: its name or its address and port are taken, or no packet could be translated to it.
        """
        with self._staging() as stage:
            owner = self._service(service)
            self._require_fitting(owner, server, stage.interfaces)
            self._require_free(owner, server)
            key = ServerKey(service, server.name)
            self._change(with_server(stage.desired, service, server), str(key), "added", "by operator")

    def remove(self, service: str, server: str, reset: bool = False) -> None:
        """
        Remove a server. Its flows go on until they end.

        Args:
            service: its name.
            server: its name.
            reset: end them instead: both ends are told.

        Raises:
            UnknownNameError: there is no such server.
        """
        with self._staging() as stage:
            key, owner, found = self._find(service, server)
            self._change(without_server(stage.desired, key), str(key), "removed", "by operator")
            if reset:
                self._reset(owner, found)

    def preview(self, config: Config) -> Preview:
        """
        Tell what a reload would do after the changes under way, and change nothing.

        Raises:
            ConfigError: it could not be compiled.
        """
        stage = self._stage or self._new_stage()
        after = with_config(stage.desired, config)
        try:
            with self._compiler.trial():
                before = self._draft(stage, stage.desired) if self._is_news(stage) else self.snapshot
                snapshot = self._draft(stage, after)
        finally:
            close_policies(config, self.config)
        return Preview(diff(stage.desired, after, self.running), moves(before, snapshot))

    def _draft(self, stage: _Stage, desired: Desired) -> Snapshot:
        return self._compiler.draft(desired, stage.interfaces, measurements=stage.measurements)

    def _is_news(self, stage: _Stage) -> bool:
        """Tell whether a stage has anything that is not published."""
        published = (self.desired, self._interfaces, self._measurements)
        return (stage.desired, stage.interfaces, stage.measurements) != published

    def reload(self, config: Config, interfaces: Sequence[Interface] | None = None) -> list[str]:
        """
        Swap to another configuration, in one step.

        Returns:
            What is different, in lines for people.

        Raises:
            ConfigError: it cannot be compiled; nothing has changed then.
        """
        with self._staging() as stage:
            if interfaces is not None:
                stage.interfaces = tuple(interfaces)
            names = {service.name for service in config.services}
            stage.measurements = {name: row for name, row in stage.measurements.items() if name in names}
            before, after = stage.desired, with_config(stage.desired, config)
            self._change(after, "configuration", "reloaded", "by operator")
        return diff(before, after, self.running)

    def _require_fitting(self, owner: ServiceNow, server: ServerConfig, interfaces: Sequence[Interface]) -> None:
        """Raise RefusedError when an address cannot be a server's of a service: as `lb.config.rules` for a file."""
        vip, address = owner.config.address, server.address
        if address.version != vip.version:
            raise RefusedError(f"{address} is IPv{address.version}, the VIP {vip} is IPv{vip.version}")
        taken = next((service.name for service in self._present() if service.config.address == address), None)
        if taken is not None:
            raise RefusedError(f"{address} is the VIP of service {taken}: a server has a real address")
        prefixes = [own.network for interface in interfaces for own in interface.addresses]
        if (why := unusable_in(address, prefixes)) is not None:
            raise RefusedError(f"{address} is {why}: a server has a host's address")

    @staticmethod
    def _require_free(owner: ServiceNow, server: ServerConfig) -> None:
        """Raise RefusedError when a server's name or endpoint is taken in its service."""
        for other in owner.servers:
            if not other.leaving and other.name == server.name:
                raise RefusedError(f"{owner.name}/{server.name} is there already")
            if not other.leaving and (other.config.address, other.config.port) == (server.address, server.port):
                raise RefusedError(f"{server.address} port {server.port} is {owner.name}/{other.name} already")

    # Servers that drain or left.

    def end_drains(self) -> None:
        """
        End what draining servers have kept for their `drain_timeout`: UDP flows move to other servers, each with its
        next packet; TCP flows are reset.
        """
        with self._staging() as stage:
            before = stage.desired.overdue
            due = stage.drains.overdue(draining_servers(stage.desired), self._monotonic_ns())
            if {each.identity for each in due} == before:
                return
            self._change(with_overdue(stage.desired, [each.identity for each in due]))
            for each in due:
                (_, _, protocol), _, _ = each.identity
                if each.identity in before:
                    continue
                stage.events.append((str(each.key), "drain timed out", "by drain_timeout"))
                if protocol == "tcp":
                    stage.resets.append(each.identity)

    def leaving(self) -> dict[ServerIdentity, int]:
        """Return the servers that left and are kept for their flows, with their ids: names may be used again."""
        return self._compiler.server_ids(leaver.identity for leaver in self.desired.leaving)

    def forget(self, gone: Collection[ServerIdentity]) -> None:
        """Drop servers that left, once they have no flow any more."""
        if gone:
            with self._staging() as stage:
                self._change(without_leavers(stage.desired, gone))

    def absent(self, kind: IdKind) -> dict[int, int]:
        """
        Return the ids of servers or services that the published snapshot does not have, with the generation that left
        them out.
        """
        return dict(self._absent[kind])

    def release(self, kind: IdKind, retired: Mapping[int, int]) -> None:
        """
        Let other servers or services have ids. Nothing is published.

        Args:
            kind: what they are of.
            retired: as `absent` gives them; those that have been in a snapshot since are left alone.
        """
        absent = self._absent[kind]
        self._compiler.release(kind, [number for number, since in retired.items() if absent.get(number) == since])
        self._note_absent()

    def _note_absent(self) -> None:
        """Note since when each id that was published, and is not free, has been absent."""
        tables: dict[IdKind, Sequence[object]] = {"server": self.snapshot.servers, "service": self.snapshot.services}
        for kind, table in tables.items():
            holes = {number for number, entry in enumerate(table) if entry is None}
            absent, before = holes & self._compiler.ids(kind) if holes else (), self._absent[kind]
            self._absent[kind] = {number: before.get(number, self.generation) for number in absent}

    # How a change happens.

    def _new_stage(self) -> _Stage:
        """Return a stage of what is published."""
        return _Stage(self.desired, self._interfaces, dict(self._measurements), self._drains)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[_Stage]:
        """Give the stage of the changes under way; without one, one of its own, published when the block ends."""
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

    def _change(self, desired: Desired, what: str = "", change: str = "", reason: str = "") -> None:
        """Stage another state, and what to note about it."""
        assert self._stage is not None
        self._stage.desired, self._stage.is_dirty = desired, True
        self._follow_drains(self._stage)
        if what:
            self._stage.events.append((what, change, reason))

    def _follow_drains(self, stage: _Stage) -> None:
        """Note which servers drain after a change: one that is enabled and drained in the same batch starts anew."""
        draining = list(draining_servers(stage.desired))
        stage.drains = stage.drains.followed(draining, self._monotonic_ns())
        overdue = stage.desired.overdue & {each.identity for each in draining} if stage.desired.overdue else frozenset()
        if overdue != stage.desired.overdue:
            stage.desired = with_overdue(stage.desired, overdue)

    def _reset(self, owner: ServiceNow, server: ServerNow) -> None:
        """Stage the end of a server's flows. It keeps its id until it is forgotten."""
        assert self._stage is not None
        self._stage.resets.append(server_identity(owner.config, server.config))

    def _present(self) -> tuple[ServiceNow, ...]:
        """Return every service as the changes under way make it."""
        if self._stage is None or self._stage.desired is self.desired:
            return self.services()
        return services(self._stage.desired)

    def _service(self, name: str) -> ServiceNow:
        present = self._present()
        found = next((service for service in present if service.name == name and not service.leaving), None)
        if found is None:
            raise UnknownNameError(_unknown("service", name, [service.name for service in present]))
        return found

    def _find(self, service: str, server: str) -> tuple[ServerKey, ServiceNow, ServerNow]:
        owner = self._service(service)
        found = next((entry for entry in owner.servers if entry.name == server and not entry.leaving), None)
        if found is None:
            names = [entry.name for entry in owner.servers if not entry.leaving]
            raise UnknownNameError(_unknown("server", server, names, f"{service}/"))
        return ServerKey(service, server), owner, found


def _updated(before: Condition, update: ConditionUpdate) -> Condition:
    health = before.health if update.health is None else update.health
    ramp = before.ramp if update.ramp is None else update.ramp
    return Condition(health, ramp, before.reason if update.health is None else update.reason)


def close_policies(unused: Config, used: Config) -> None:
    """End the threads of a configuration's policies that another does not use."""
    kept = {id(service.policy) for service in used.services}
    for service in unused.services:
        policy = service.policy.policy
        if isinstance(policy, UserPolicy) and id(service.policy) not in kept:
            policy.close()


def _unknown(what: str, name: str, names: Iterable[str], prefix: str = "") -> str:
    """Say that a name is unknown, and which ones are near."""
    known = list(names)
    if near := [prefix + word for word in difflib.get_close_matches(name, known, n=3)]:
        return f"there is no {what} {prefix}{name}; did you mean {' or '.join(near)}?"
    listed = ", ".join(prefix + word for word in known[:LISTED]) + (", ..." if len(known) > LISTED else "")
    return f"there is no {what} {prefix}{name}; there {'is' if len(known) == 1 else 'are'}: {listed or 'none'}"
