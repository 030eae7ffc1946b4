"""
The contract of policies: a policy is a pure function of a service's servers that returns a plan.

Control side of the walk: `config -> policy -> plan -> snapshot`. A policy sees ids and weights, never packets, clocks
or sockets; backends see only the plan. Options of a policy are the fields of its dataclass: the configuration's
`policy = { name = "...", option = ... }`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from lb.model.snapshot import Plan

State: TypeAlias = Literal["active", "draining", "disabled"]
STATES: tuple[State, ...] = ("active", "draining", "disabled")
Health: TypeAlias = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class ServerView:
    """
    A server as policies see it. `id`: its position in the snapshot; `weight`: its share among the service's servers,
    from 0; `state`: set by the operator; `health`: the verdict of the health checks.
    """

    id: int
    name: str
    weight: int = 1
    state: State = "active"
    health: Health = "up"

    @property
    def takes_flows(self) -> bool:
        """Whether it is eligible for new flows: active, up, and of a weight above 0."""
        return self.state == "active" and self.health == "up" and self.weight > 0


# By server name, then by measure; empty when the data path measures nothing.
Measurements: TypeAlias = Mapping[str, Mapping[str, float]]


class NewFlow(NamedTuple):
    """A flow that needs a server. `client`: its address as text; `client_port`: its port."""

    service: str
    client: str
    client_port: int


class OptionProblem(NamedTuple):
    """
    An invalid option of a policy. `option`: its name; `message`: what is wrong; `hint`: what is allowed; `at`: whether
    the report points at the key or the value.
    """

    option: str
    message: str
    hint: str = ""
    at: Literal["key", "value"] = "value"


class Policy(Protocol):
    """Makes plans."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def interval_ns(self) -> int | None:
        """How often it plans again with new measurements, nanoseconds; None: only when something changes."""

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """
        Return the plan for a service.

        Args:
            service: its name.
            servers: all of its servers, in the order of the configuration.
            measurements: of its servers.

        Returns:
            A plan whose slots hold only eligible servers; empty when there is none.
        """

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield what is wrong with the options, given the names of the service's servers."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """Base of the built-in policies: options are fields, and valid unless a policy says otherwise."""

    name: ClassVar[str]

    @property
    def interval_ns(self) -> int | None:
        """None: it uses no measurements."""
        return None

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return the plan for a service, as `Policy.plan`."""
        raise NotImplementedError

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield nothing."""
        return iter(())


def eligible(servers: Sequence[ServerView]) -> list[ServerView]:
    """Return the servers that new flows may be placed on, in order."""
    return [server for server in servers if server.takes_flows]
