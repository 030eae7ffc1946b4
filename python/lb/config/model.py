"""The tables of a configuration and their keys. Rules between keys are in `lb.config.rules`."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StrictBool,
    ValidationInfo,
    WithJsonSchema,
)

from lb.config.rules import DEFAULT_CHECK_INTERVAL, DEFAULT_CHECK_TIMEOUT
from lb.config.toml.document import Table
from lb.fields.types import (
    Capacity,
    CheckTime,
    Concurrency,
    Count,
    Expect,
    FlowTimeout,
    HostAddress,
    IcmpRate,
    InterfaceName,
    ListenAddress,
    MacAddress,
    Mtu,
    Name,
    Port,
    PrefixedAddress,
    RampTime,
    Seed,
    UrlPath,
    Weight,
    Workers,
    duration,
    invalid,
    show,
    type_name,
)
from lb.model.snapshot import Timeouts
from lb.policies import NAMES, State, make
from lb.policies.base import Policy

DEFAULT_FILE = "lb.toml"
DEFAULT_CAPACITY = 262_144
DEFAULT_ICMP_RATE = 1000
DEFAULT_METRICS_PORT = 9464
# Health checks under way at a time: each holds a socket, and many processes may have 1 024 of them.
DEFAULT_CHECK_CONCURRENCY = 512
# A UDP flow whose sender never pauses has no end of its own.
UDP_DRAIN_TIMEOUT_NS = 60 * 10**9
DEFAULT_POLICY = "round-robin"
# What HAProxy and most others take for healthy: a redirect is an answer of a server that works.
DEFAULT_EXPECT = "200-399"
HERE = pathlib.Path()
BACKENDS = ("auto", "rust", "python")


class PolicyConfig(Table):
    """How a service's flows are placed. `options`: of the policy; `base`: the folder that its file is found from."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)
    base: pathlib.Path = HERE

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy object: one for as long as this configuration is in use, so that it may remember things."""
        return make(self.name, self.options, self.base)

    def make(self) -> Policy:
        """Return the policy object."""
        return self.policy


def _parse_policy(value: object, info: ValidationInfo) -> PolicyConfig:
    base = (info.context or {}).get("base", HERE)
    hint = 'a name, or a table: policy = { name = "static", server = "server1" }'
    if isinstance(value, PolicyConfig):
        return value
    if isinstance(value, str):
        return PolicyConfig(name=value, base=base)
    if not isinstance(value, dict):
        raise invalid(f"{show(value)} is {type_name(value)}, not a string or a table", hint)
    if not isinstance(value.get("name"), str):
        raise invalid("the policy has no name", hint)
    options = {key: option for key, option in value.items() if key != "name"}
    return PolicyConfig(name=value["name"], options=options, base=base)


def _parse_backend(value: object) -> str:
    if value == "ebpf":
        raise invalid('backend "ebpf" is not in this version', f"allowed: {', '.join(BACKENDS)}")
    if value not in BACKENDS:
        raise invalid(f"{show(value)} is no backend", f"allowed: {', '.join(BACKENDS)}")
    return str(value)


# Editors offer the names; a policy of one's own may have any.
_POLICY_NAME_SCHEMA = {"anyOf": [{"enum": NAMES}, {"type": "string", "description": "FILE.py:CLASS"}]}
_POLICY_SCHEMA = {
    "anyOf": [
        _POLICY_NAME_SCHEMA,
        {"type": "object", "properties": {"name": _POLICY_NAME_SCHEMA}, "required": ["name"]},
    ],
    "default": DEFAULT_POLICY,
}
PolicyField: TypeAlias = Annotated[
    PolicyConfig,
    BeforeValidator(_parse_policy),
    PlainSerializer(lambda policy: {"name": policy.name, **policy.options}),
    WithJsonSchema(_POLICY_SCHEMA),
]
BackendField: TypeAlias = Annotated[
    str, BeforeValidator(_parse_backend), WithJsonSchema({"type": "string", "enum": list(BACKENDS)})
]


class ServerConfig(Table):
    """A real machine behind a service. `mac`: 6 bytes, or None: the kernel's neighbour table is asked."""

    name: Name
    address: HostAddress
    port: Port
    weight: Weight = 1
    mac: MacAddress | None = None
    state: State = "active"


class HealthConfig(Table):
    """
    How a service's servers are checked. `expect`: HTTP status codes that pass, from and to. `port`: None: the server's
    own. `slow_start`: how long a server that came back takes to get its whole weight; None: it has it at once.
    """

    check: Literal["tcp", "http"]
    path: UrlPath = "/"
    expect: Expect = Field(default=DEFAULT_EXPECT, validate_default=True)
    port: Port | None = None
    interval: CheckTime = duration(DEFAULT_CHECK_INTERVAL)
    timeout: CheckTime = duration(DEFAULT_CHECK_TIMEOUT)
    fall: Count = 3
    rise: Count = 2
    slow_start: RampTime | None = None


class ServiceConfig(Table):
    """
    A VIP, port and protocol, with a policy and servers. `drain_timeout`: how long the flows of a server that takes no
    new ones may go on; None: 60 s over UDP, over TCP until they end.
    """

    name: Name
    address: HostAddress
    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    policy: PolicyField = PolicyConfig(name=DEFAULT_POLICY)
    on_no_server: Literal["reset", "drop"] = "reset"
    on_no_flow: Literal["reset", "drop"] = "drop"
    on_server_down: Literal["reset", "keep"] = "reset"
    drain_timeout: FlowTimeout | None = None
    health: HealthConfig | None = None
    servers: tuple[ServerConfig, ...] = Field(default=(), alias="server")

    @property
    def drain_timeout_ns(self) -> int | None:
        """How long a draining server keeps its flows, in nanoseconds; None: until they end."""
        if self.drain_timeout is None and self.protocol == "udp":
            return UDP_DRAIN_TIMEOUT_NS
        return self.drain_timeout


class InterfaceConfig(Table):
    """A network interface. What is None is read from the kernel at start; offline there is no kernel to ask."""

    name: InterfaceName
    announce: StrictBool = False
    mac: MacAddress | None = None
    addresses: tuple[PrefixedAddress, ...] | None = None
    mtu: Mtu | None = None
    transmit: Literal["queue", "direct"] = "queue"


class FlowsConfig(Table):
    """The flow table. `capacity`: flows it holds; the rest: idle times, such as "30s", after which one may go."""

    capacity: Capacity = DEFAULT_CAPACITY
    half_open: FlowTimeout = duration("30s")
    established: FlowTimeout = duration("7440s")
    closing: FlowTimeout = duration("120s")
    udp: FlowTimeout = duration("300s")
    idle_floor: FlowTimeout = duration("60s")

    def timeouts(self) -> Timeouts:
        """Return the idle times as a snapshot carries them."""
        return Timeouts(self.half_open, self.established, self.closing, self.udp, self.idle_floor)


class MetricsConfig(Table):
    """Where Prometheus reads the metrics."""

    address: ListenAddress = Field(default="127.0.0.1", validate_default=True)
    port: Port = DEFAULT_METRICS_PORT


class Config(Table):
    """
    A whole configuration. `seed`: of placement; None: `lb run` draws one at start, offline work takes a fixed one
    (`lb.compiler.compile.OFFLINE_SEED`). `check_concurrency`: health checks under way at a time, of all services
    together.
    """

    backend: BackendField = "auto"
    transit: Literal["drop", "forward"] = "drop"
    seed: Seed | None = None
    answer_echo: StrictBool = False
    icmp_rate: IcmpRate = DEFAULT_ICMP_RATE
    poll: Literal["adaptive", "busy", "sleep"] = "adaptive"
    workers: Workers = 1
    flows: FlowsConfig = FlowsConfig()
    check_concurrency: Concurrency = DEFAULT_CHECK_CONCURRENCY
    flow_log: StrictBool = False
    metrics: MetricsConfig | None = None
    interfaces: tuple[InterfaceConfig, ...] = Field(alias="interface")
    services: tuple[ServiceConfig, ...] = Field(alias="service")
