"""The tables of a configuration and their keys. Rules between keys are in `lb.config.rules`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StrictBool,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from lb.config.parts import PartTable
from lb.config.toml.toml_file import Table
from lb.fields.key import key
from lb.fields.schema import KIND, properties_of
from lb.fields.types import (
    Capacity,
    CheckTime,
    Concurrency,
    Count,
    Expect,
    FlowBurst,
    FlowRate,
    FlowTimeout,
    Folder,
    HostAddress,
    IcmpRate,
    InterfaceName,
    ListenAddress,
    MacAddress,
    Mtu,
    Name,
    Port,
    PrefixedAddress,
    PrefixLength,
    PrefixLength6,
    RampTime,
    Seed,
    UrlPath,
    Weight,
    Workers,
    format_duration,
    format_endpoint,
    invalid,
    show,
    type_name,
)
from lb.model.backend import BACKENDS, MISSING_BACKENDS
from lb.model.poll import DEFAULT_POLL, Poll
from lb.model.snapshot import DEFAULT_WEIGHT, NewFlowLimit, Protocol, Refusal, Timeouts, Transit
from lb.policies import NAMES, POLICIES, State, make
from lb.policies.base import Policy
from lb.policies.loader import is_file
from lb.policies.user import Settings as UserSettings

DEFAULT_FILE = "lb.toml"
# Each check holds a socket, and many processes may have 1 024 of them.
DEFAULT_CHECK_CONCURRENCY = 512
SEED_NOTE = "random draws keep theirs until a restart"
KERNELS = "the kernel's; required by `lb replay`"
# A UDP flow whose sender never pauses has no end of its own.
UDP_DRAIN_TIMEOUT_NS = 60 * 10**9
DEFAULT_POLICY = "round-robin"
# What HAProxy and most others take for healthy: a redirect is an answer of a server that works.
DEFAULT_EXPECT = "200-399"
HERE = pathlib.Path()


class PolicyConfig(BaseModel):
    """How a service's flows are placed. `options`: of the policy; `base`: the folder that its file is found from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)
    base: pathlib.Path = HERE

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy object: one for as long as this configuration is in use, so that it may remember things."""
        return make(self.name, self.options, self.base)

    def shown(self) -> str:
        """Return the name with its options, for people."""
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}{f' ({options})' if options else ''}"

    def make(self) -> Policy:
        """Return the policy object."""
        return self.policy


def _parse_policy(value: object, info: ValidationInfo) -> PolicyConfig:
    hint = 'a name, or a table: policy = { name = "static", server = "server1" }'
    if isinstance(value, PolicyConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise invalid(f"{show(value)} is {type_name(value)}, not a string or a table", hint)
    if not isinstance(value.get("name"), str):
        raise invalid("the policy has no name", hint)
    options = {key: option for key, option in value.items() if key != "name"}
    # Policies by name are the same wherever the file is.
    base = (info.context or {}).get("base", HERE) if is_file(value["name"]) else HERE
    return PolicyConfig(name=value["name"], options=options, base=base)


def _parse_backend(value: object) -> str:
    if value in MISSING_BACKENDS:
        raise invalid(f"backend {show(value)} is not in this version", f"allowed: {', '.join(BACKENDS)}")
    if value not in BACKENDS:
        raise invalid(f"{show(value)} is not a backend", f"allowed: {', '.join(BACKENDS)}")
    return str(value)


class _PolicySchema:
    """The JSON Schema of a policy, made when it is asked for: it needs those of all options."""

    def __get_pydantic_json_schema__(self, _core: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return a schema by which editors offer names and options; a policy of one's own may have any."""
        name = {"anyOf": [{"enum": NAMES}, {"type": "string", "description": "FILE.py:CLASS"}]}
        options: dict[str, Any] = {}
        models: tuple[type, ...] = (UserSettings, *POLICIES.values())
        for policy in models:
            options.update(properties_of(policy))
        table = {"type": "object", "properties": {"name": name, **options}, "required": ["name"]}
        return {"anyOf": [name, table], KIND: "name or table"}


PolicyField: TypeAlias = Annotated[
    PolicyConfig,
    BeforeValidator(_parse_policy),
    PlainSerializer(lambda policy: {"name": policy.name, **policy.options}),
    _PolicySchema(),
]
BackendField: TypeAlias = Annotated[
    str, BeforeValidator(_parse_backend), WithJsonSchema({"type": "string", "enum": list(BACKENDS)})
]


class ServerConfig(Table):
    """A server of a service: where it listens, and its share of new flows."""

    name: Name = key("Name in commands, tables and metrics, unique in its service", example="server1")
    address: HostAddress = key("Address of the server, of the VIP's IP version", example="198.18.1.31")
    port: Port = key("Port that it listens on", example=8031)
    weight: Weight = key("Share of new flows; 0: none", default=DEFAULT_WEIGHT)
    mac: MacAddress | None = key(
        "MAC address of the server", default=None, example="aa:aa:aa:00:00:31", unset="the kernel's neighbour table"
    )
    state: State = key("Operator state; draining and disabled servers get no new flows", default="active")


class HealthConfig(Table):
    """How the servers of a service are checked."""

    check: Literal["tcp", "http"] = key("A connect alone, or a GET request over it", example="http")
    path: UrlPath = key("Path of the request (http)", default="/")
    expect: Expect = key("Status codes that pass (http)", default=DEFAULT_EXPECT)
    port: Port | None = key("Port to check", default=None, example=8080, unset="the server's own")
    interval: CheckTime = key("Time from one check to the next", default="1s")
    timeout: CheckTime = key("Time that a check may take, at most the interval", default="500ms")
    fall: Count = key("Failed checks in a row after which a server is down", default=3)
    rise: Count = key("Passed checks in a row after which a server is up again", default=2)
    slow_start: RampTime | None = key(
        "Time over which the weight of a server that came back rises to its full value",
        default=None,
        example="30s",
        unset="full weight at once",
    )


class NewFlowLimitConfig(PartTable):
    """How many new flows the clients of one prefix may begin; those beyond are dropped, flows that exist go on."""

    rate: FlowRate = key("New flows per second of each prefix", example=100)
    burst: FlowBurst | None = key(
        "New flows of a prefix at once, after a pause", default=None, example=200, unset="a second's worth: the rate"
    )
    prefix_ipv4: PrefixLength = key("Length of the prefix that IPv4 clients share a limit in", default=24)
    prefix_ipv6: PrefixLength6 = key("Length of the prefix that IPv6 clients share a limit in", default=56)

    def part(self) -> NewFlowLimit:
        """Return it as a snapshot carries it."""
        burst = self.rate if self.burst is None else self.burst
        return NewFlowLimit(self.rate, burst, self.prefix_ipv4, self.prefix_ipv6)


def _shown_new_flow_limit(service: ServiceConfig) -> str:
    if service.new_flow_limit is None:
        return "none"
    limit = service.new_flow_limit.part()
    bits = limit.prefix_ipv4 if service.address.version == 4 else limit.prefix_ipv6
    return f"{limit.rate}/s per /{bits}, burst {limit.burst}"


def _shown_health(service: ServiceConfig) -> str:
    return "unchecked" if service.health is None else f"checked ({service.health.check})"


def _shown_drain_timeout(service: ServiceConfig) -> str:
    timeout_ns = service.drain_timeout_ns
    return "none" if timeout_ns is None else format_duration(timeout_ns)


class ServiceConfig(Table):
    """A VIP, port and protocol, with a policy and servers."""

    name: Name = key("Name in commands, tables and metrics", example="video")
    address: HostAddress = key("The VIP, IPv4 or IPv6: an address that no host has", example="198.18.1.100")
    port: Port = key("Port of the VIP", example=9876)
    protocol: Protocol = key("Transport protocol", default="tcp")
    policy: PolicyField = key(
        "Policy that places new flows: its name, or a table of name and options",
        default=DEFAULT_POLICY,
        example={"name": "maglev", "table_size": 65537},
        shown=lambda service: service.policy.shown(),
    )
    on_no_server: Refusal = key("What a client gets when no server is available", default="reset")
    on_no_flow: Refusal = key("What a client gets for TCP of an unknown flow", default="drop")
    new_flow_limit: NewFlowLimitConfig | None = key(
        "Limit of new flows by their source; without this table there is none",
        default=None,
        shown=_shown_new_flow_limit,
    )
    on_server_down: Literal["reset", "keep"] = key("What the flows of a server get when it goes down", default="reset")
    drain_timeout: FlowTimeout | None = key(
        "Time after which flows leave a draining server: UDP flows move to another one, TCP flows are reset",
        default=None,
        example="60s",
        unset=f"{UDP_DRAIN_TIMEOUT_NS // 10**9}s over UDP, over TCP until they end",
        shown=_shown_drain_timeout,
    )
    health: HealthConfig | None = key(
        "Health checks of the servers; without this table there are none", default=None, shown=_shown_health
    )
    servers: tuple[ServerConfig, ...] = key(
        "The servers; without any, every new flow is refused", default=(), alias="server"
    )

    @property
    def drain_timeout_ns(self) -> int | None:
        """How long a draining server keeps its flows, in nanoseconds; None: until they end."""
        if self.drain_timeout is None and self.protocol == "udp":
            return UDP_DRAIN_TIMEOUT_NS
        return self.drain_timeout


class InterfaceConfig(Table):
    """A network interface. What is left out is read from the kernel at start; offline there is no kernel to ask."""

    name: InterfaceName = key(
        "Name of the interface; one is enough: in and out through the same wire", example="eth0", reload="restart"
    )
    announce: StrictBool = key("Answer ARP and neighbour solicitations for the VIPs", default=False)
    mac: MacAddress | None = key(
        "MAC address to use", default=None, example="aa:aa:aa:00:00:01", unset=KERNELS, reload="restart"
    )
    addresses: tuple[PrefixedAddress, ...] | None = key(
        "Addresses of this host", default=None, example=["198.18.1.1/24"], unset=KERNELS
    )
    mtu: Mtu | None = key("MTU: the largest IP packet", default=None, example=1500, unset=KERNELS)
    transmit: Literal["queue", "direct"] = key(
        "How frames are sent; direct (backend rust): straight to the driver, faster, past traffic shaping and tcpdump",
        default="queue",
        reload="restart",
    )


class FlowsConfig(Table):
    """The flow table: its size, and the idle times after which a flow is forgotten."""

    capacity: Capacity = key("Flows remembered at once; allocated at start", default=262_144, reload="restart")
    half_open: FlowTimeout = key("Idle time of TCP flows before they are established", default="30s")
    established: FlowTimeout = key("Idle time of established TCP flows", default="7440s")
    closing: FlowTimeout = key("Idle time of TCP flows that both sides have closed", default="120s")
    udp: FlowTimeout = key("Idle time of UDP flows; RFC 4787 asks for 120s or more", default="300s")
    idle_floor: FlowTimeout = key("Flows idle for less than this are never evicted", default="60s")
    snapshot: Folder | None = key(
        "Directory for snapshots of all flows, for after a reboot: a start reads them unless --state has newer ones",
        default=None,
        example="/var/lib/flowlb",
        unset="no snapshots",
        reload="restart",
    )
    snapshot_interval: FlowTimeout = key(
        "Time from one snapshot to the next; one more is written at the end", default="60s", reload="restart"
    )

    def timeouts(self) -> Timeouts:
        """Return the idle times as a snapshot carries them."""
        return Timeouts(**{f.name: getattr(self, f.name.removesuffix("_ns")) for f in dataclasses.fields(Timeouts)})


class ClusterConfig(Table):
    """What this balancer shares with others that serve the same VIPs."""

    replies: Literal["same", "any"] = key(
        "Which balancer translates a reply: the one that has its flow (same), or any that it comes to (any)",
        default="same",
    )


class MetricsConfig(Table):
    """Where Prometheus reads the metrics."""

    address: ListenAddress = key("Address to listen on", default="127.0.0.1")
    port: Port = key("TCP port to listen on", default=9464)


def _shown_metrics(config: Config) -> str:
    return "off" if config.metrics is None else format_endpoint(config.metrics.address, config.metrics.port)


class Config(Table):
    """
    A whole configuration. `seed`: None: `lb run` draws one at start, offline work takes a fixed one
    (`lb.compiler.compile.OFFLINE_SEED`).
    """

    backend: BackendField = key("Data path; auto: the fastest available", default="auto", reload="restart")
    transit: Transit = key("Packets of no service: drop them, or route them on as a router would", default="drop")
    seed: Seed | None = key(
        "Seed of placement: the same on balancers that must agree, and where flows must survive a restart "
        "(maglev, source-hash)",
        default=None,
        example=1,
        unset="drawn at start, shown in the log and by `lb status`",
        note=SEED_NOTE,
    )
    answer_echo: StrictBool = key("Answer pings to a VIP", default=False)
    on_stop: Literal["keep", "reset"] = key(
        "What flows get when the balancer stops: nothing, so that the next one may go on with them, or both ends of "
        "each TCP flow a RST",
        default="keep",
    )
    icmp_rate: IcmpRate = key("ICMP and RST packets that the balancer itself may send, of each kind", default=1000)
    poll: Poll = key(
        "While no packet comes: look again for 0.1 ms where that pays (adaptive), always (busy: one core for the "
        "lowest latency), or sleep at once (sleep); backend rust",
        default=DEFAULT_POLL,
        reload="restart",
    )
    workers: Workers = key(
        "Packet loops, each on a core of its own, with the flows of its share of the clients",
        default=1,
        reload="restart",
    )
    flows: FlowsConfig = key("The flow table", default=FlowsConfig())
    cluster: ClusterConfig = key("Several balancers side by side", default=ClusterConfig())
    check_concurrency: Concurrency = key(
        "Concurrent health checks, of all services together", default=DEFAULT_CHECK_CONCURRENCY
    )
    flow_log: StrictBool = key("Log a line for each flow that ends", default=False)
    metrics: MetricsConfig | None = key(
        "Serve metrics for Prometheus; without this table they are not served", default=None, shown=_shown_metrics
    )
    interfaces: tuple[InterfaceConfig, ...] = key("The network interfaces", alias="interface", reload="restart")
    services: tuple[ServiceConfig, ...] = key("The services", alias="service")
