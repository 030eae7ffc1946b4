"""Parts of snapshots in which what a test leaves out is as the configuration has it by default."""

from __future__ import annotations

import dataclasses
from typing import Any

from lb.config import Config, FlowsConfig, ServiceConfig
from lb.config.parts import part_of
from lb.model.snapshot import Address, Interface, Plan, Server, Service, Snapshot, Timeouts


def make_service(name: str, address: Address, port: int, protocol: Any, plan: Plan, **keys: Any) -> Service:
    """Return a service."""
    made = {"name": name, "address": address, "port": port, "protocol": protocol, "plan": plan}
    return part_of(Service, ServiceConfig.model_construct(), **made, **keys)


def complete_snapshot(
    generation: int,
    seed: int,
    interfaces: tuple[Interface, ...],
    services: tuple[Service | None, ...],
    servers: tuple[Server | None, ...],
    **keys: Any,
) -> Snapshot:
    """Return a snapshot."""
    made = {"generation": generation, "seed": seed, "interfaces": interfaces, "services": services, "servers": servers}
    return part_of(
        Snapshot, Config.model_construct(), **made, **{"any_replies": False, "timeouts": make_timeouts(), **keys}
    )


def make_timeouts(**keys: int) -> Timeouts:
    """Return idle timeouts."""
    return dataclasses.replace(FlowsConfig().timeouts(), **keys)
