"""
What a running balancer says about itself: what is wanted, what is known and what was counted, brought together for
JSON.

The shape is what `lb status -o json` prints; `lb.control.api.render` makes tables of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lb.compiler.compile import describe_interface
from lb.compiler.spec import HEALTHY, NO_WISH, Desired, ServerKey, ServerNow, ServiceNow, services
from lb.control.tasks import TaskState
from lb.control.telemetry.rates import Rates
from lb.model.snapshot import Snapshot
from lb.net.host import NOT_GUARDED, GuardState
from lb.policies import Policy, UserPolicy
from lb.policies.user import Failures

TRAFFIC = ("flows_active", "flows_created", "packets_forward", "packets_reply", "bytes_forward", "bytes_reply")


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What stays the same or changes rarely. `uptime_s`: seconds since packets began to flow. `trouble`: which interface
    is down or gone, and why no reload is possible. `reloads`: attempts; `reload_failures`: those that changed nothing.
    `tasks`: how the background tasks have fared, by name. `host_guard`: how the host's kernel is kept from the
    services' packets.
    """

    version: str
    pid: int
    backend: str
    config_path: str
    uptime_s: float
    last_reload_error: str | None
    trouble: str | None = None
    reloads: int = 0
    reload_failures: int = 0
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    host_guard: GuardState = NOT_GUARDED


def build_status(
    facts: Facts, desired: Desired, snapshot: Snapshot, counters: dict[str, Any], rates: Rates
) -> dict[str, Any]:
    """Return the whole status. `counters`: as the data path gives them; `rates`: between them and an earlier look."""
    return {
        "version": facts.version,
        "pid": facts.pid,
        "backend": facts.backend,
        "uptime_s": round(facts.uptime_s, 3),
        "generation": snapshot.generation,
        "seed": snapshot.seed,
        "config": facts.config_path,
        "last_reload_error": facts.last_reload_error,
        "reloads": facts.reloads,
        "reload_failures": facts.reload_failures,
        "trouble": facts.trouble,
        "host_guard": asdict(facts.host_guard),
        "tasks": {name: _describe_task(task) for name, task in facts.tasks.items()},
        "table": counters["table"],
        "interfaces": [describe_interface(interface) for interface in snapshot.interfaces],
        "services": [describe_service(service, desired, counters, rates) for service in services(desired)],
        "counters": {key: value for key, value in counters.items() if key not in ("services", "servers", "table")},
    }


def _describe_task(task: TaskState) -> dict[str, Any]:
    """Return how a background task has fared. `recent`: whether it failed within the last hour."""
    return {**asdict(task), "recent": task.is_recent(time.time())}


def describe_service(
    service: ServiceNow, desired: Desired, counters: Mapping[str, Any], rates: Rates
) -> dict[str, Any]:
    """Return one service with its servers."""
    facts = service.config
    return {
        "name": service.name,
        "address": str(facts.address),
        "port": facts.port,
        "protocol": facts.protocol,
        "policy": facts.policy.name,
        "policy_failures": _policy_failures(facts.policy.make()),
        "leaving": service.leaving,
        **_traffic(counters["services"].get(service.name), rates.services.get(service.name)),
        "servers": [describe_server(service.name, server, desired, counters, rates) for server in service.servers],
    }


def _policy_failures(policy: Policy) -> dict[str, Any]:
    """Return how often a policy of one's own has failed, and how the last time; nothing of lb's own."""
    failures = policy.failures if isinstance(policy, UserPolicy) else Failures()
    return {"count": failures.count, "last": failures.last}


def describe_server(
    service: str, server: ServerNow, desired: Desired, counters: Mapping[str, Any], rates: Rates
) -> dict[str, Any]:
    """Return one server. `notes`: in words, why it is not as the file says, and why it takes no flows."""
    key = ServerKey(service, server.name)
    return {
        "name": server.name,
        "address": str(server.config.address),
        "port": server.config.port,
        "weight": server.weight,
        "state": server.state,
        "health": server.health,
        "ramp": server.ramp,
        "leaving": server.leaving,
        "notes": _notes(key, server, desired),
        **_traffic(counters["servers"].get(str(key)), rates.servers.get(str(key))),
    }


def _notes(key: ServerKey, server: ServerNow, desired: Desired) -> list[str]:
    if server.leaving:
        return ["leaving: kept for its flows"]
    wish, condition = desired.wishes.get(key, NO_WISH), desired.conditions.get(key, HEALTHY)
    notes = []
    if wish.state is not None:
        notes.append(wish.reason)
    if wish.weight is not None:
        notes.append(f"weight {server.config.weight} in the file")
    if condition.health == "down":
        notes.append(f"down: {condition.reason}")
    if condition.ramp < 1:
        notes.append(f"slow start: {condition.ramp:.0%} of its weight")
    if any(added is server.config for added in desired.added.get(key.service, ())):
        notes.append("added by operator")
    return notes


def _traffic(traffic: Mapping[str, int] | None, rates: Mapping[str, float] | None) -> dict[str, float]:
    counted = {key: (traffic or {}).get(key, 0) for key in TRAFFIC}
    return {**counted, **(rates or {"flows_per_s": 0.0, "packets_per_s": 0.0, "bytes_per_s": 0.0})}
