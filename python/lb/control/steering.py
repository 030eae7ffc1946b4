"""
Where every change goes through: the operator's, a reload's, the health checks', the replan timer's, the kernel's.

The control walk's middle: it holds what is wanted (`lb.control.state`), and for each change computes the next snapshot,
publishes it in one swap, and notes what happened and why. Nothing else compiles or publishes. A change that cannot be
made raises and has changed nothing (behaviour 29).

All calls belong to one thread, the daemon's asyncio loop. None blocks longer than compiling and publishing takes.
"""

from __future__ import annotations

import difflib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from lb.compile import Compiler
from lb.config import Config, ServerConfig
from lb.control.diff import diff
from lb.control.drains import Drains
from lb.control.moves import Move, moves
from lb.control.state import (
    HEALTHY,
    NO_WISH,
    Desired,
    ServerIdentity,
    ServerKey,
    ServerNow,
    ServiceNow,
    draining_servers,
    leaving_servers,
    server_identity,
    services,
    with_condition,
    with_config,
    with_overdue,
    with_server,
    with_wish,
    without_leavers,
    without_server,
)
from lb.errors import RefusedError, UnknownNameError
from lb.policies.base import Health, Measurements, State
from lb.snapshot import Interface, Snapshot

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
        self._interfaces = tuple(interfaces)
        self._measurements: dict[str, Measurements] = {}
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
        self._drains.follow(draining_servers(self.desired), self._monotonic_ns())

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
        return services(self.desired)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called after each change, on this thread: it reads what it wants to know from here."""
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
        key, owner, found = self._find(service, server)
        before = self.desired.conditions.get(key, HEALTHY)
        health: Health = "up" if up else "down"
        condition = replace(before, health=health, reason=reason)
        if condition == before:
            return
        if before.health == health:
            self.desired = with_condition(self.desired, key, condition)
            return
        self._change(with_condition(self.desired, key, condition), str(key), health, reason)
        if not up and owner.config.on_server_down == "reset":
            self._reset(owner, found)

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
        key, _, _ = self._find(service, server)
        before = self.desired.conditions.get(key, HEALTHY)
        if before.ramp != part:
            self._change(with_condition(self.desired, key, replace(before, ramp=part)))

    def replan(self, service: str, measurements: Measurements) -> bool:
        """
        Let a service's policy plan anew, from what was measured. Nothing is published when its plan stays the same.

        Returns:
            Whether a new plan was published.

        Raises:
            UnknownNameError: there is no such service (any more).
        """
        owner = self._service(service)
        self._measurements[service] = measurements
        if not self._compiler.would_change(owner, measurements, self.snapshot):
            return False
        self._change(self.desired)
        return True

    def set_interfaces(self, interfaces: Sequence[Interface]) -> None:
        """
        Follow what changed about the interfaces.

        Raises:
            ConfigError: an interface has got the address of a VIP or server.
        """
        before, self._interfaces = self._interfaces, tuple(interfaces)
        try:
            self._change(self.desired, "interfaces", "changed", "by the kernel")
        except BaseException:
            self._interfaces = before
            raise

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
        key, owner, found = self._find(service, server)
        wish = self.desired.wishes.get(key, NO_WISH)
        # What the file says needs no wish: then a reload can change it.
        wanted = None if state == found.config.state else state
        after = with_wish(self.desired, key, replace(wish, state=wanted, reason=f"{STATE_WORDS[state]} by operator"))
        if state != found.state:
            self._change(after, str(key), state, "by operator")
        if reset:
            self._reset(owner, found)

    def set_weight(self, service: str, server: str, weight: int) -> None:
        """
        Set a server's weight. 0: no new flows.

        Raises:
            UnknownNameError: there is no such server.
        """
        key, _, found = self._find(service, server)
        wish = self.desired.wishes.get(key, NO_WISH)
        wanted = None if weight == found.config.weight else weight
        if weight != found.weight:
            after = with_wish(self.desired, key, replace(wish, weight=wanted))
            self._change(after, str(key), f"weight {found.weight} -> {weight}", "by operator")

    def add(self, service: str, server: ServerConfig) -> None:
        """
        Add a server to a service, until the next reload.

        Raises:
            UnknownNameError: there is no such service.
            RefusedError: its name or its address and port are taken, or no packet could be translated to it.
        """
        owner = self._service(service)
        self._require_fitting(owner, server)
        for other in owner.servers:
            if not other.leaving and other.name == server.name:
                raise RefusedError(f"{service}/{server.name} is there already")
            if not other.leaving and (other.config.address, other.config.port) == (server.address, server.port):
                raise RefusedError(f"{server.address} port {server.port} is {service}/{other.name} already")
        key = ServerKey(service, server.name)
        self._change(with_server(self.desired, service, server), str(key), "added", "by operator")

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
        key, owner, found = self._find(service, server)
        self._change(without_server(self.desired, key), str(key), "removed", "by operator")
        if reset:
            self._reset(owner, found)

    def preview(self, config: Config) -> Preview:
        """
        Tell what a reload would do, and change nothing.

        Raises:
            ConfigError: it could not be compiled.
        """
        after = with_config(self.desired, config)
        snapshot = self._compiler.draft(after, self._interfaces, measurements=self._measurements)
        return Preview(diff(self.desired, after), moves(self.snapshot, snapshot))

    def reload(self, config: Config, interfaces: Sequence[Interface] | None = None) -> list[str]:
        """
        Swap to another configuration, in one step.

        Returns:
            What is different, in lines for people.

        Raises:
            ConfigError: it cannot be compiled; nothing has changed then.
        """
        before = self._interfaces
        if interfaces is not None:
            self._interfaces = tuple(interfaces)
        old = self.desired
        try:
            self._change(with_config(old, config), "configuration", "reloaded", "by operator")
        except BaseException:
            self._interfaces = before
            raise
        return diff(old, self.desired)

    def _require_fitting(self, owner: ServiceNow, server: ServerConfig) -> None:
        """Raise RefusedError when an address cannot be a server's of a service: as `lb.config_checks` for a file."""
        vip, address = owner.config.address, server.address
        if address.version != vip.version:
            raise RefusedError(f"{address} is IPv{address.version}, the VIP {vip} is IPv{vip.version}")
        taken = next((service.name for service in self.services() if service.config.address == address), None)
        if taken is not None:
            raise RefusedError(f"{address} is the VIP of service {taken}: a server has a real address")

    # Servers that drain or left.

    def end_drains(self) -> None:
        """
        End what draining servers have kept for their `drain_timeout`: UDP flows move to other servers, each with its
        next packet; TCP flows are reset.
        """
        before = self.desired.overdue
        due = self._drains.overdue(draining_servers(self.desired), self._monotonic_ns())
        if {each.identity for each in due} == before:
            return
        self._change(with_overdue(self.desired, [each.identity for each in due]))
        for each in due:
            (_, _, protocol), _, _ = each.identity
            if each.identity in before:
                continue
            event = Event(self._now(), self.generation, str(each.key), "drain timed out", "by drain_timeout")
            self.history.append(event)
            if protocol == "tcp":
                self._target.reset_flows(self._compiler.server_id(each.identity))

    def leaving(self) -> list[tuple[ServerKey, ServerIdentity]]:
        """Return the servers that left and are kept for their flows: the name their counters have, and identity."""
        return leaving_servers(self.desired)

    def forget(self, gone: Collection[ServerIdentity]) -> None:
        """Drop servers that left, once they have no flow any more."""
        if gone:
            self._change(without_leavers(self.desired, gone))

    # How a change happens.

    def _change(self, desired: Desired, what: str = "", change: str = "", reason: str = "") -> None:
        """Compute, publish, note; in this order, so that a failure has changed nothing."""
        draining = list(draining_servers(desired))
        if desired.overdue:
            # One that was enabled meanwhile has its whole time when it is drained again.
            desired = with_overdue(desired, desired.overdue & {each.identity for each in draining})
        snapshot = self._compile(desired)
        self._target.publish(snapshot)
        self.desired, self.snapshot = desired, snapshot
        self._drains.follow(draining, self._monotonic_ns())
        if what:
            self.history.append(Event(self._now(), snapshot.generation, what, change, reason))
        for listener in self._listeners:
            listener()

    def _compile(self, desired: Desired) -> Snapshot:
        return self._compiler.compile(desired, self._interfaces, measurements=self._measurements)

    def _reset(self, owner: ServiceNow, server: ServerNow) -> None:
        """End a server's flows, which it keeps until it is forgotten: its id stays."""
        self._target.reset_flows(self._compiler.server_id(server_identity(owner.config, server.config)))

    def _service(self, name: str) -> ServiceNow:
        present = self.services()
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


def _unknown(what: str, name: str, names: Iterable[str], prefix: str = "") -> str:
    """Say that a name is unknown, and which ones are near."""
    known = list(names)
    if near := [prefix + word for word in difflib.get_close_matches(name, known, n=3)]:
        return f"there is no {what} {prefix}{name}; did you mean {' or '.join(near)}?"
    listed = ", ".join(prefix + word for word in known[:LISTED]) + (", ..." if len(known) > LISTED else "")
    return f"there is no {what} {prefix}{name}; there {'is' if len(known) == 1 else 'are'}: {listed or 'none'}"
