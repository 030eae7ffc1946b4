"""
The configuration: TOML into frozen, validated models, or every error at once with its place in the file.

First step of the control walk: `config -> policy -> plan -> snapshot`. Loading is deterministic and looks at no
machine: what interfaces really have is read when a backend starts (`lb.net.kernel`). Types of fields are in
`lb.config_fields`, rules between fields in `lb.config_checks`, positions in `lb.config_locator`.
"""

from __future__ import annotations

import codecs
import difflib
import pathlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from lb.config_checks import DEFAULT_CHECK_INTERVAL, DEFAULT_CHECK_TIMEOUT, Problem, check, dotted, missing_array
from lb.config_fields import (
    CUSTOM_ERROR,
    Capacity,
    Count,
    Duration,
    Expect,
    HostAddress,
    IcmpRate,
    InterfaceName,
    MacAddress,
    Mtu,
    Name,
    Port,
    PrefixedAddress,
    Seed,
    UrlPath,
    Weight,
    duration,
    invalid,
    show,
    type_name,
)
from lb.config_locator import START, Locator, Path, Position, locate
from lb.errors import ConfigError
from lb.policies import NAMES, State, make
from lb.policies.base import Policy
from lb.snapshot import Timeouts
from lb.source_text import block

DEFAULT_FILE = "lb.toml"
DEFAULT_CAPACITY = 262_144
DEFAULT_ICMP_RATE = 1000
DEFAULT_POLICY = "round-robin"
# A config is read whole; beyond this it is no config (behaviour 35: what is read is bounded).
MAX_FILE_BYTES = 16 * 1024 * 1024
BACKENDS = ("auto", "rust", "python")

HUGE_INTEGER = re.compile(r"[0-9_]{4000,}")
TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyConfig(_Table):
    """How a service's flows are placed. `options`: those of the policy."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)

    def make(self) -> Policy:
        """Return the policy object."""
        return make(self.name, self.options)


def _parse_policy(value: object) -> PolicyConfig:
    hint = 'a name, or a table: policy = { name = "static", server = "server1" }'
    if isinstance(value, PolicyConfig):
        return value
    if isinstance(value, str):
        return PolicyConfig(name=value)
    if not isinstance(value, dict):
        raise invalid(f"{show(value)} is {type_name(value)}, not a string or a table", hint)
    if not isinstance(value.get("name"), str):
        raise invalid("the policy has no name", hint)
    return PolicyConfig(name=value["name"], options={key: option for key, option in value.items() if key != "name"})


def _parse_backend(value: object) -> str:
    if value == "ebpf":
        raise invalid('backend "ebpf" is not in this version', f"allowed: {', '.join(BACKENDS)}")
    if value not in BACKENDS:
        raise invalid(f"{show(value)} is no backend", f"allowed: {', '.join(BACKENDS)}")
    return str(value)


_POLICY_SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": NAMES},
        {"type": "object", "properties": {"name": {"enum": NAMES}}, "required": ["name"]},
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


class ServerConfig(_Table):
    """A real machine behind a service. `mac`: 6 bytes, or None: the kernel's neighbour table is asked."""

    name: Name
    address: HostAddress
    port: Port
    weight: Weight = 1
    mac: MacAddress | None = None
    state: State = "active"


class HealthConfig(_Table):
    """
    How a service's servers are checked. `expect`: HTTP status codes that pass, from and to. `port`: None: the server's
    own. `slow_start`: how long a server that came back takes to get its whole weight; None: it has it at once.
    """

    check: Literal["tcp", "http"]
    path: UrlPath = "/"
    expect: Expect = Field(default="200", validate_default=True)
    port: Port | None = None
    interval: Duration = duration(DEFAULT_CHECK_INTERVAL)
    timeout: Duration = duration(DEFAULT_CHECK_TIMEOUT)
    fall: Count = 3
    rise: Count = 2
    slow_start: Duration | None = None


class ServiceConfig(_Table):
    """A VIP, port and protocol, with a policy and servers."""

    name: Name
    address: HostAddress
    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    policy: PolicyField = PolicyConfig(name=DEFAULT_POLICY)
    on_no_server: Literal["reset", "drop"] = "reset"
    on_server_down: Literal["reset", "keep"] = "reset"
    health: HealthConfig | None = None
    servers: tuple[ServerConfig, ...] = Field(default=(), alias="server")


class InterfaceConfig(_Table):
    """A network interface. What is None is read from the kernel at start; offline there is no kernel to ask."""

    name: InterfaceName
    announce: StrictBool = False
    mac: MacAddress | None = None
    addresses: tuple[PrefixedAddress, ...] | None = None
    mtu: Mtu | None = None


class FlowsConfig(_Table):
    """The flow table. `capacity`: flows it holds; the rest: idle times, such as "30s", after which one may go."""

    capacity: Capacity = DEFAULT_CAPACITY
    half_open: Duration = duration("30s")
    established: Duration = duration("7440s")
    closing: Duration = duration("120s")
    udp: Duration = duration("300s")
    idle_floor: Duration = duration("60s")

    def timeouts(self) -> Timeouts:
        """Return the idle times as a snapshot carries them."""
        return Timeouts(self.half_open, self.established, self.closing, self.udp, self.idle_floor)


class Config(_Table):
    """A whole configuration."""

    backend: BackendField = "auto"
    transit: Literal["drop", "forward"] = "drop"
    seed: Seed = 1
    answer_echo: StrictBool = False
    icmp_rate: IcmpRate = DEFAULT_ICMP_RATE
    flows: FlowsConfig = FlowsConfig()
    interfaces: tuple[InterfaceConfig, ...] = Field(alias="interface")
    services: tuple[ServiceConfig, ...] = Field(alias="service")


@dataclass(frozen=True, slots=True)
class Report:
    """
    What reading a configuration found. `config`: None when there are problems; both lists hold printable blocks in
    file order.
    """

    config: Config | None
    problems: list[str]
    warnings: list[str]


def load(path: str | pathlib.Path) -> Config:
    """
    Read a configuration file.

    Raises:
        ConfigError: it cannot be read or is invalid; with every problem found.
    """
    return _require(read(path))


def parse(source: str, name: str = "<config>") -> Config:
    """
    Read a configuration from TOML text.

    Args:
        source: the text.
        name: stands for the file in messages.

    Raises:
        ConfigError: it is invalid; with every problem found.
    """
    return _require(inspect(source, name))


def _require(report: Report) -> Config:
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def read(path: str | pathlib.Path) -> Report:
    """Read a configuration file; report its problems and warnings instead of raising."""
    name = str(path)
    try:
        with pathlib.Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return Report(None, [f"{name}: cannot be read: {error.strerror}"], [])
    if len(data) > MAX_FILE_BYTES:
        return Report(None, [f"{name}: larger than {MAX_FILE_BYTES} bytes: this is no configuration"], [])
    try:
        source = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line, column = _end(error.object[: error.start].decode())
        return Report(None, [f"{name}:{line}:{column}: byte {error.object[error.start]:#04x} is not UTF-8"], [])
    return inspect(source, name)


def inspect(source: str, name: str) -> Report:
    """Check TOML text; report its problems and warnings. `name`: stands for the file in messages."""
    source = source.replace("\r\n", "\n")
    try:
        return _inspect(source, name)
    except tomllib.TOMLDecodeError as error:
        message, position = _syntax_error(str(error), source)
        return Report(None, [block(name, source, *position, message)], [])
    except ValueError:
        # Python refuses to convert integers of thousands of digits, and does not say where they are.
        number = HUGE_INTEGER.search(source)
        if number is None:
            raise
        line, column = _end(source[: number.start()])
        return Report(None, [f"{name}:{line}:{column}: an integer of {len(number[0])} digits"], [])
    except RecursionError:
        return Report(None, [f"{name}:1:1: nested too deeply"], [])


def _end(before: str) -> Position:
    """Return the position of what follows a text."""
    return Position(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _inspect(source: str, name: str) -> Report:
    document = tomllib.loads(source)
    config, problems = _validate(document)
    problems.extend(check(document))
    locator = locate(source)
    blocks: dict[str, list[str]] = {"error": [], "warning": []}
    for position, problem in sorted(((_place(locator, problem), problem) for problem in problems), key=lambda p: p[0]):
        warning = "warning: " if problem.severity == "warning" else ""
        message = f"{warning}{dotted(problem.path)}: {problem.message}"
        blocks[problem.severity].append(block(name, source, *position, message, problem.hint))
    return Report(None if blocks["error"] else config, blocks["error"], blocks["warning"])


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration."""
    document = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document, "title": "flowlb configuration"}


def _validate(document: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate(document), []
    except ValidationError as error:
        return None, [_problem(details) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails) -> Problem:
    """Turn an error of pydantic into a problem of ours."""
    path, value, context = details["loc"], details["input"], details.get("ctx", {})
    match details["type"]:
        case _ if details["type"] == CUSTOM_ERROR:
            return Problem(path, context["message"], context["hint"])
        case "extra_forbidden":
            return Problem(path, "unknown key", _unknown_hint(path), at="key")
        case "missing":
            return _missing(path)
        case "literal_error":
            allowed = re.findall(r"'([^']+)'", context["expected"])
            return Problem(path, f"{show(value)} is not allowed", _near(str(value), allowed))
        case "bool_type":
            return Problem(path, f"{show(value)} is {type_name(value)}, not a boolean", "true or false")
        case "tuple_type":
            is_table = path[-1] in ("interface", "service", "server")
            hint = f"write [[{'service.server' if path[-1] == 'server' else path[-1]}]]" if is_table else "[...]"
            return Problem(path, f"{show(value)} is {type_name(value)}, not an array", hint)
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(path, f"{show(value)} is {type_name(value)}, not a table")
    return Problem(path, details["msg"])


def _unknown_hint(path: Path) -> str:
    """Return what was probably meant by an unknown key."""
    key = str(path[-1])
    if len(path) > 1 and key in _keys(Config):
        return f'"{key}" is about the whole file: it goes above the first [table]'
    return _near(key, _keys(_model(path[:-1])))


def _missing(path: Path) -> Problem:
    """Return the problem of a required key that is not there; it points at the table that lacks it."""
    key = path[-1]
    if key in ("interface", "service"):
        return missing_array(str(key))
    return Problem(path[:-1], f'required key "{key}" is missing')


def _model(path: Path) -> type[BaseModel]:
    """Return the model of the table at a path."""
    models: dict[str | int, type[BaseModel]] = {
        "interface": InterfaceConfig,
        "service": ServiceConfig,
        "server": ServerConfig,
        "flows": FlowsConfig,
        "health": HealthConfig,
    }
    names = [part for part in path if isinstance(part, str)]
    return models[names[-1]] if names else Config


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f'did you mean "{near[0]}"?' if near else f"allowed: {', '.join(words)}"


def _syntax_error(message: str, source: str) -> tuple[str, Position]:
    """Split the message of tomllib into what is wrong and where; the end of the document is its last line."""
    match = TOML_PLACE.search(message)
    if match is None:
        return message, START
    text = message[: match.start()]
    if match[1]:
        return text, Position(int(match[1]), int(match[2]))
    lines = source.rstrip("\n").split("\n")
    return f"{text}, but the file ends here", Position(len(lines), len(lines[-1]) + 1)


def _place(locator: Locator, problem: Problem) -> Position:
    return locator.key(problem.path) if problem.at == "key" else locator.value(problem.path)
