"""
Which servers are up: check results in, steady verdicts out (rule 19, health).

Control side of the walk; pure: time is an argument, and sockets are in `lb.control.health.prober`. A server is `up`
until `fall` failures in a row, `down` until `rise` successes in a row, so results that alternate change nothing.
Failures of passive checks (clients' connects refused or unanswered) count like failed checks, but only an active check
that fails takes a server out: a SYN that is sent again tells of a second ago. Active checks alone never take out more
than half of the servers of a service within one interval: a broken checker must not empty a service at once. A server
that came back gets its weight little by little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Health = Literal["up", "down"]
# A ramp has this many steps: each is one publication.
RAMP_STEPS = 20


@dataclass(frozen=True, slots=True)
class Rules:
    """How results become verdicts. `fall`, `rise`: results in a row; `slow_start_ns`: length of the ramp, 0: none."""

    interval_ns: int
    fall: int
    rise: int
    slow_start_ns: int


@dataclass(frozen=True, slots=True)
class Transition:
    """A server's health changed. `why`: the last result, for the log."""

    server: str
    health: Health
    why: str


@dataclass(slots=True)
class _Server:
    """The state of one server. `streak`: results in a row that contradict `health`."""

    health: Health = "up"
    streak: int = 0
    failed_passively: bool = False
    came_up_ns: int | None = None


class ServiceHealth:
    """
    The health of the servers of one service.

    Args:
        rules: of the service.
        servers: their names. All are up until results say otherwise.
    """

    def __init__(self, rules: Rules, servers: Iterable[str] = ()) -> None:
        self.rules = rules
        self._servers: dict[str, _Server] = {}
        self._taken_out_ns: list[int] = []
        for server in servers:
            self.know(server)

    def know(self, server: str, health: Health = "up") -> None:
        """Keep the health of a server from now on. `health`: of one that is new here."""
        self._servers.setdefault(server, _Server(health))

    def forget(self, server: str) -> None:
        """Drop the health of a server."""
        self._servers.pop(server, None)

    def health(self, server: str) -> Health:
        """Return the health of a server; an unknown one is up."""
        found = self._servers.get(server)
        return found.health if found else "up"

    def checked(self, server: str, failure: str | None, now_ns: int) -> Transition | None:
        """
        Note the result of one active check, and return the change of health that follows, or None.

        Args:
            server: its name; an unknown one is ignored.
            failure: what went wrong; None: it passed.
            now_ns: monotonic nanoseconds.
        """
        found = self._servers.get(server)
        if found is None:
            return None
        passed = failure is None
        if passed == (found.health == "up"):
            found.streak, found.failed_passively = 0, False
            return None
        found.streak += 1
        if found.health == "down":
            return self._raise(server, found, now_ns) if found.streak >= self.rules.rise else None
        if found.streak < self.rules.fall or not self._may_take_out(found, now_ns):
            return None
        found.health, found.streak = "down", 0
        self._taken_out_ns.append(now_ns)
        return Transition(server, "down", failure or "")

    def failed_passive_check(self, server: str) -> None:
        """
        Note that clients' connects were refused or unanswered since the last call, and none succeeded. Nothing follows
        before a check fails as well; the removal cap does not hold for failures that clients have confirmed.
        """
        found = self._servers.get(server)
        if found is not None and found.health == "up":
            found.streak += 1
            found.failed_passively = True
        elif found is not None:
            found.streak = 0

    def _raise(self, name: str, server: _Server, now_ns: int) -> Transition:
        server.health, server.streak, server.came_up_ns = "up", 0, now_ns
        return Transition(name, "up", "checks pass")

    def _may_take_out(self, server: _Server, now_ns: int) -> bool:
        """Return whether the removal cap allows it. A single server may be taken out: it has no half."""
        self._taken_out_ns = [then for then in self._taken_out_ns if now_ns - then < self.rules.interval_ns]
        return server.failed_passively or len(self._taken_out_ns) < max(1, len(self._servers) // 2)

    def ramp_step(self, server: str, now_ns: int) -> int:
        """
        Return the share of its weight that a server has by now, in steps of 1 / RAMP_STEPS: RAMP_STEPS is all of it.

        It grows linearly from one step, at the moment the server came up, over `slow_start_ns`.
        """
        found = self._servers.get(server)
        if found is None or found.came_up_ns is None or found.health == "down":
            return RAMP_STEPS
        elapsed_ns = now_ns - found.came_up_ns
        if elapsed_ns >= self.rules.slow_start_ns:
            found.came_up_ns = None
            return RAMP_STEPS
        return max(1, RAMP_STEPS * elapsed_ns // self.rules.slow_start_ns)
