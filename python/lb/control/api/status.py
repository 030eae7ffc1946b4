"""
The status of a running balancer: spec, snapshot, counters and rates, as one JSON document.

Its shape is what `lb status -o json` prints; `lb.control.api.render` makes tables of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lb.compiler.compile import describe_interface
from lb.compiler.spec import HEALTHY, NO_OVERRIDE, EffectiveServer, EffectiveService, ServerKey, Spec, services
from lb.control.tasks import TaskState
from lb.control.telemetry.process_facts import Facts
from lb.control.telemetry.rates import Rates
from lb.model.snapshot import Snapshot
from lb.policies import Policy, UserPolicy
from lb.policies.user import Failures

TRAFFIC = ("flows_active", "flows_created", "packets_forward", "packets_reply", "bytes_forward", "bytes_reply")


def build_status(
    facts: Facts, spec: Spec, snapshot: Snapshot, counters: dict[str, Any], rates: Rates
) -> dict[str, Any]:
    """Return the status. `counters`: of the data path; `rates`: between them and an earlier reading."""
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
        "stops_within_s": facts.stops_within_s,
        "host_guard": asdict(facts.host_guard),
        "tasks": {name: _describe_task(task) for name, task in facts.tasks.items()},
        "table": counters["table"],
        "table_memory": dict(facts.table_memory),
        "interfaces": [describe_interface(interface) for interface in snapshot.interfaces],
        "services": [describe_service(service, spec, counters, rates) for service in services(spec)],
        "counters": {key: value for key, value in counters.items() if key not in ("services", "servers", "table")},
    }


def _describe_task(task: TaskState) -> dict[str, Any]:
    """Return the state of a background task. `recent`: whether it failed within the last hour."""
    return {**asdict(task), "recent": task.is_recent(time.time())}


def describe_service(
    service: EffectiveService, spec: Spec, counters: Mapping[str, Any], rates: Rates
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
        "leaving": service.is_removed,
        **_traffic(counters["services"].get(service.name), rates.services.get(service.name)),
        "servers": [describe_server(service.name, server, spec, counters, rates) for server in service.servers],
    }


def _policy_failures(policy: Policy) -> dict[str, Any]:
    """Return how often a user's policy has failed, and the last failure; built-in policies do not fail."""
    failures = policy.failures if isinstance(policy, UserPolicy) else Failures()
    return {"count": failures.count, "last": failures.last}


def describe_server(
    service: str, server: EffectiveServer, spec: Spec, counters: Mapping[str, Any], rates: Rates
) -> dict[str, Any]:
    """Return one server. `notes`: why it differs from the file, and why it takes no flows, in words."""
    key = ServerKey(service, server.name)
    return {
        "name": server.name,
        "address": str(server.config.address),
        "port": server.config.port,
        "weight": server.weight,
        "state": server.state,
        "health": server.health,
        "ramp": server.ramp,
        "leaving": server.is_removed,
        "notes": _notes(key, server, spec),
        **_traffic(counters["servers"].get(str(key)), rates.servers.get(str(key))),
    }


def _notes(key: ServerKey, server: EffectiveServer, spec: Spec) -> list[str]:
    if server.is_removed:
        return ["leaving: kept for its flows"]
    override, status = spec.overrides.get(key, NO_OVERRIDE), spec.health.get(key, HEALTHY)
    notes = []
    if override.state is not None:
        notes.append(override.reason)
    if override.weight is not None:
        notes.append(f"weight {server.config.weight} in the file")
    if status.health == "down":
        notes.append(f"down: {status.reason}")
    if status.ramp < 1:
        notes.append(f"slow start: {status.ramp:.0%} of its weight")
    if any(added is server.config for added in spec.added.get(key.service, ())):
        notes.append("added by operator")
    return notes


def _traffic(traffic: Mapping[str, int] | None, rates: Mapping[str, float] | None) -> dict[str, float]:
    counted = {key: (traffic or {}).get(key, 0) for key in TRAFFIC}
    return {**counted, **(rates or {"flows_per_s": 0.0, "packets_per_s": 0.0, "bytes_per_s": 0.0})}
