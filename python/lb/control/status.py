"""
What a running balancer says about itself: configuration and counters brought together, ready for JSON.

The shape is what `lb status -o json` prints; `lb.control.render` makes tables of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lb.compile import describe_interface
from lb.config import Config, ServerConfig, ServiceConfig
from lb.snapshot import Snapshot

TRAFFIC = ("flows_active", "flows_created", "packets_forward", "packets_reply", "bytes_forward", "bytes_reply")


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What stays the same or changes rarely. `uptime_s`: seconds since packets began to flow. `trouble`: which interface
    is down or gone.
    """

    version: str
    pid: int
    backend: str
    config_path: str
    uptime_s: float
    last_reload_error: str | None
    trouble: str | None = None


def build_status(facts: Facts, config: Config, snapshot: Snapshot, counters: dict[str, Any]) -> dict[str, Any]:
    """Return the whole status. `counters`: as the data path gives them."""
    return {
        "version": facts.version,
        "pid": facts.pid,
        "backend": facts.backend,
        "uptime_s": round(facts.uptime_s, 3),
        "generation": snapshot.generation,
        "config": facts.config_path,
        "last_reload_error": facts.last_reload_error,
        "trouble": facts.trouble,
        "interfaces": [describe_interface(interface) for interface in snapshot.interfaces],
        "services": [_service(entry, counters) for entry in config.services],
        "counters": {key: value for key, value in counters.items() if key not in ("services", "servers")},
    }


def _service(entry: ServiceConfig, counters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "address": str(entry.address),
        "port": entry.port,
        "protocol": entry.protocol,
        "policy": entry.policy.name,
        **_traffic(counters["services"].get(entry.name)),
        "servers": [
            _server(server, counters["servers"].get(f"{entry.name}/{server.name}")) for server in entry.servers
        ],
    }


def _server(entry: ServerConfig, traffic: dict[str, int] | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "address": str(entry.address),
        "port": entry.port,
        "weight": entry.weight,
        "state": entry.state,
        **_traffic(traffic),
    }


def _traffic(traffic: dict[str, int] | None) -> dict[str, int]:
    return {key: (traffic or {}).get(key, 0) for key in TRAFFIC}
