"""
What an experiment's TOML file says: servers and their bandwidths, loads, policies, and what is expected.

Read as the configuration is: unknown keys are errors, all mistakes at once, each with file:line:column. A service, as
`lb run` gets it, is made from it for each policy; what that says about a wrong policy is told at the policy's place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StrictBool, ValidationInfo
from pydantic_core import PydanticCustomError

from lb.config import unprivileged
from lb.config.toml.problem import Problem
from lb.config.toml.toml_file import Report, Table, TomlFile, require
from lb.errors import ConfigError
from lb.fields.key import key
from lb.fields.types import Duration, Name, Weight, integer, invalid, require_string, show, type_name
from lb.lab.loadgen import lines
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.plan import Options, parse_arrival
from lb.lab.testbed.topology import VIP, VIP_PORT, one_segment
from lb.policies import POLICIES
from lb.policies.loader import is_file

FIGURES = ("mean", "p50", "p95", "p99", "failures", "stalls", "stalled")
SERVICE = "video"
BANDWIDTH = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kMG])bit/s")
BANDWIDTH_HINT = 'a number and a unit: "40 Mbit/s", "500 kbit/s"'
BITS = {"k": 1e3, "M": 1e6, "G": 1e9}
SERVERS = {host.name: host for host in one_segment().of_role("server")}
ALL = "all"


def _parse_bandwidth(value: object) -> float:
    text = require_string(value, BANDWIDTH_HINT)
    match = BANDWIDTH.fullmatch(text)
    if match is None or not 8e3 <= float(match[1]) * BITS[match[2]] <= 32e9:
        raise invalid(f"{show(value)} is not a bandwidth from 8 kbit/s to 32 Gbit/s", BANDWIDTH_HINT)
    return float(match[1]) * BITS[match[2]]


def _parse_arrival(value: object) -> float:
    hint = '"poisson:RATE", RATE in fetches per second'
    try:
        return parse_arrival(require_string(value, hint))
    except ValueError as error:
        raise invalid(str(error), hint) from None


def _parse_policies(value: object, info: ValidationInfo) -> tuple[str | dict[str, Any], ...]:
    return policies_of(value, (info.context or {}).get("base", Path()))


def policies_of(value: object, base: Path) -> tuple[str | dict[str, Any], ...]:
    """Read `policies`. `base`: the folder that policies in files start from; what comes out needs it no more."""
    hint = '"all", or a list of names or tables: ["round-robin", { name = "static", server = "server1" }]'
    if value == ALL:
        return tuple(optionless())
    if not isinstance(value, list) or not value:
        raise invalid(f"{show(value)} is not a list of policies", hint)
    for entry in value:
        if not isinstance(entry, str) and not (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
            raise invalid(f"{show(entry)} is {type_name(entry)}, not a policy", hint)
    return tuple(_located(entry, base) for entry in value)


def _located(policy: str | dict[str, Any], base: Path) -> str | dict[str, Any]:
    if isinstance(policy, dict):
        return {**policy, "name": _located(policy["name"], base)}
    return str((base / policy).resolve()) if is_file(policy) else policy


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise invalid(f"{show(value)} is not a number from 0", "a ratio: 1.05")
    return float(value)


def optionless() -> list[str]:
    """Return every policy that needs no option, the simplest first."""
    order = ["static", "round-robin", "random"]
    names = [
        name
        for name, policy in POLICIES.items()
        if all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(policy))
    ]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


class ServerEntry(Table):
    """A server of the testbed. `bandwidth`: in bits per second."""

    bandwidth: Annotated[float, BeforeValidator(_parse_bandwidth)] | None = key(
        "Rate at which it may send", default=None, example="40 Mbit/s", unset="as fast as it can"
    )
    weight: Weight = key("Share of new flows; 0: none", default=1)


class LoadEntry(Table):
    """One load that every policy gets: in a file or in lines, played as the options of `lb loadgen` say."""

    name: Name = key("Name in tables and pictures", example="short")
    file: str | None = key(
        "A load file, from the experiment's own directory", default=None, example="short.load", unset="`lines`"
    )
    lines: str | None = key("The lines of the load themselves", default=None, example="1 x GET /", unset="`file`")
    clients: Annotated[int, *integer(1, 5)] = key("Number of client hosts that play it", default=5)
    arrival: Annotated[float, BeforeValidator(_parse_arrival)] | None = key(
        "Fetches per second of all clients together, in an open loop",
        default=None,
        example="poisson:20",
        unset="each line waits for its answers",
    )
    adaptive: StrictBool = key("Each line is a player that buffers and switches bitrates", default=False)
    new_connection: StrictBool = key("Each fetch gets a new connection", default=True)
    timeout: Duration = key("Time of one fetch, from its start to its last byte", default="10s")
    chunk_duration: Duration = key("Video in a chunk; only players ask", default="4s")
    repeat: Annotated[int, *integer(1, 1000)] = key("How often each client plays the load", default=1)

    def options(self, seed: int) -> Options:
        """Return how it is played."""
        return Options(
            repeat=self.repeat,
            rate_hz=self.arrival,
            new_connection=self.new_connection,
            adaptive=self.adaptive,
            timeout_s=self.timeout / 1e9,
            seed=seed,
            chunk_s=self.chunk_duration / 1e9,
        )


class Expectation(Table):
    """The expectation that a policy's figure is at most a multiple of the baseline's."""

    policy: str = key("Policy whose figure it is", example="adaptive")
    load: str = key("Name of the load", example="short")
    figure: Literal["mean", "p50", "p95", "p99", "failures", "stalls", "stalled"] = key("The figure", example="mean")
    at_most: Annotated[float, BeforeValidator(_positive)] = key("Times the baseline's figure", example=1.05)


class Experiment(Table):
    """A whole experiment."""

    title: str = key("What it is", example="One slow server of three")
    about: str = key("What it should show", default="")
    baseline: str = key("The policy that others are compared with", default="round-robin")
    policies: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_parse_policies)] = key(
        "Names of policies, or tables of a name and options", default=ALL
    )
    turns: Annotated[int, *integer(1, 1000)] = key("How often each policy gets each load", default=3)
    seed: Annotated[int, *integer(0, 2**63 - 1)] = key("Seed of placement, and of open loops", default=1)
    health: dict[str, Any] | None = key(
        "Health checks, as a service of the configuration has them", default=None, unset="no checks"
    )
    servers: dict[str, ServerEntry] = key("Servers of the testbed, by name", default={}, alias="server")
    loads: tuple[LoadEntry, ...] = key("The loads", alias="load")
    expectations: tuple[Expectation, ...] = key("What is expected of policies", default=(), alias="expect")

    def weights(self) -> dict[str, float]:
        """Return the servers' weights by name."""
        return {name: float(self.servers.get(name, ServerEntry()).weight) for name in SERVERS}

    def bandwidths(self) -> dict[str, float] | None:
        """Return the servers' bandwidths in bits per second; None: not all have one."""
        found = {name: self.servers[name].bandwidth for name in SERVERS if name in self.servers}
        known = {name: value for name, value in found.items() if value is not None}
        return known if len(known) == len(SERVERS) else None


def policy_name(policy: str | Mapping[str, Any]) -> str:
    """Return what a policy is called: its name, without folders, and its options when it has any."""
    if isinstance(policy, str):
        return Path(policy).name if is_file(policy) else policy
    options = ", ".join(f"{key}={value}" for key, value in policy.items() if key != "name")
    return policy_name(policy["name"]) + (f" ({options})" if options else "")


def service_toml(experiment: Experiment, policy: str | Mapping[str, Any]) -> str:
    """Return the configuration of `lb run` for one policy."""
    service: dict[str, Any] = {
        "name": SERVICE,
        "address": str(VIP),
        "port": VIP_PORT,
        "policy": policy,
        "server": [
            {"name": name, "address": str(host.address), "port": host.web_port, "weight": int(weight)}
            for (name, host), weight in zip(SERVERS.items(), experiment.weights().values(), strict=True)
        ],
    }
    if experiment.health is not None:
        service["health"] = experiment.health
    rows = (f"{key} = {_toml(value)}" for key, value in service.items())
    return "\n".join([f"seed = {experiment.seed}", "[[interface]]", 'name = "eth0"', "[[service]]", *rows, ""])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON writes strings and numbers as TOML reads them.
    return json.dumps(value) if isinstance(value, str | int | float | bool) else str(value)


def read(path: Path) -> tuple[Experiment, tuple[Load, ...]]:
    """
    Read an experiment and its loads.

    Returns:
        The experiment; its loads, in order.

    Raises:
        ConfigError: it, or one of its loads, cannot be read or is invalid; with every problem found.
    """
    experiment = require(inspect(path))
    loads, problems = [], []
    for entry in experiment.loads:
        try:
            loads.append(read_load(entry, path.parent))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return experiment, tuple(loads)


def inspect(path: Path) -> Report[Experiment]:
    """Read an experiment; report its problems instead of raising."""
    return _FORMAT.read(path)


def read_load(entry: LoadEntry, directory: Path) -> Load:
    """Read a load from its file or its lines. Raise ConfigError when it is wrong."""
    if entry.file is not None:
        return lines.read(directory / entry.file)
    assert entry.lines is not None
    return replace(lines.parse(entry.lines, f"load {entry.name}"), name=entry.name)


def _check(document: Mapping[str, Any], base: Path) -> Iterator[Problem]:
    """Yield every problem between fields, given the raw document and its folder."""
    loads = [entry for entry in _list(document, "load") if isinstance(entry, dict)]
    yield from _check_loads(loads)
    for name in document["server"] if isinstance(document.get("server"), dict) else ():
        if name not in SERVERS:
            hint = f"it has {', '.join(SERVERS)}"
            yield Problem(("server", name), f'the testbed has no server "{name}"', hint, at="key")
    yield from _check_policies(document, base)
    names = [entry.get("name") for entry in loads]
    for index, entry in enumerate(_list(document, "expect")):
        if isinstance(entry, dict) and isinstance(entry.get("load"), str) and entry["load"] not in names:
            yield Problem(("expect", index, "load"), f"{show(entry['load'])} is not a load of this experiment")


def _check_loads(loads: list[dict[str, Any]]) -> Iterator[Problem]:
    for index, entry in enumerate(loads):
        if ("file" in entry) == ("lines" in entry):
            yield Problem(("load", index), "a load has either a file or lines")
        if entry.get("adaptive") is True and "arrival" in entry:
            yield Problem(
                ("load", index, "arrival"),
                "an adaptive player fetches when its buffer has room: leave out arrival or adaptive",
            )
        if entry.get("name") in [other.get("name") for other in loads[:index]]:
            yield Problem(("load", index, "name"), f"{show(entry.get('name'))} is the name of another load")


def _check_policies(document: Mapping[str, Any], base: Path) -> Iterator[Problem]:
    """Yield what `lb check` would say about the policies and the health checks."""
    try:
        given = policies_of(document.get("policies", ALL), base)
    except PydanticCustomError:
        # The field's own type says what is wrong.
        return
    health = document.get("health")
    if isinstance(health, dict) and (message := _fault({"policy": "round-robin", "health": health})):
        yield Problem(("health",), message)
    for index, policy in enumerate(given):
        if message := _fault({"policy": policy}):
            path = ("policies", index) if document.get("policies") != ALL else ("policies",)
            yield Problem(path, message)
    baseline = document.get("baseline", "round-robin")
    if isinstance(baseline, str) and policy_name(baseline) not in map(policy_name, given):
        yield Problem(("baseline",), f"{show(baseline)} is not one of the policies", ", ".join(map(policy_name, given)))


def _fault(service: dict[str, Any]) -> str:
    """Return what the configuration says about a part of a service; empty when nothing is wrong."""
    bare = Experiment.model_construct(servers={}, seed=1, health=service.get("health"))
    problems = unprivileged.inspect(service_toml(bare, service["policy"]), "")
    return problems[0].split("\n")[0].split(": ", 2)[-1] if problems else ""


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    return found if isinstance(found, list) else []


def _missing(key: str) -> Problem | None:
    return Problem((key,), "no [[load]]: at least one is needed") if key == "load" else None


_FORMAT = TomlFile(
    model=Experiment,
    check=_check,
    missing=_missing,
    array_hints={"load": "[[load]]", "expect": "[[expect]]"},
)
