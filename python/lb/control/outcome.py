"""What changes of the running balancer are, and what becomes of them: plain values of the control walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from lb.control.forecast import RemapForecast
from lb.policies.base import Health

# A call of a method of `lb.control.controller.Controller` that changes something. It may be called twice.
Change: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The result of a change. `generation`: the one that is published now; `changed`: whether the change led to it;
    `value`: what its call returned; `error`: why the change was not made.
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
class Event:
    """
    An entry of the history. `at`: Unix time in seconds; `generation`: of the snapshot it led to; `what`: a server
    (`video/server2`), a service, or the configuration; `change`: what is new; `reason`: who or what caused it.
    """

    at: float
    generation: int
    what: str
    change: str
    reason: str


class Preview(NamedTuple):
    """What a reload would do. `diff`: the changes, in lines for people; `forecasts`: where new flows would go."""

    diff: list[str]
    forecasts: list[RemapForecast]


@dataclass(frozen=True, slots=True)
class HealthUpdate:
    """
    News about the health of a server; None: no news. `health`: the verdict of the checks, with its `reason`; `ramp`:
    the part of its weight, in (0, 1].
    """

    health: Health | None = None
    ramp: float | None = None
    reason: str = ""
