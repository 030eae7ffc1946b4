"""Target weights of the servers: as told, as a configuration says, or as a running balancer says."""

from __future__ import annotations

import math
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.lab.loadgen.lines import LoadLine, decimal


def parse(text: str) -> dict[str, float]:
    """
    Read `SERVER=WEIGHT,...`.

    Raises:
        ValueError: it is anything else.
    """
    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, separator, weight = pair.strip().rpartition("=")
        try:
            value = decimal(weight)
        except ValueError:
            value = math.nan
        if not separator or not name or not math.isfinite(value) or value < 0:
            raise ValueError(f"{pair.strip()!r} is not SERVER=WEIGHT with a weight from 0")
        weights[name] = value
    return weights


def of_config(path: Path, line: LoadLine) -> dict[str, float] | None:
    """
    Return the weights of the service that a line asks, as its policy makes a plan of them; None: there is no such
    service, or its policy asks about each flow.

    Raises:
        ConfigError: the configuration is invalid.
        PolicyError: a user's policy makes no plan.
    """
    from lb.config.unprivileged import enter_config, in_child, load

    load(path)

    def work() -> dict[str, float] | None:
        enter_config(path)
        return _planned(path, line)

    found = in_child(work) if os.geteuid() == 0 else work()
    return None if found is None else {str(name): float(weight) for name, weight in found.items()}


def _planned(path: Path, line: LoadLine) -> dict[str, float] | None:
    from lb.config import load
    from lb.policies import ServerView

    for service in load(path).services:
        if _is_asked(str(service.address), service.port, service.protocol, line):
            views = [
                ServerView(index, server.name, server.weight, server.state)
                for index, server in enumerate(service.servers)
            ]
            # The slots of every plan are in proportion to the target weights.
            slots = service.policy.make().plan(service.name, views, {}).slots
            return {view.name: float(slots.count(view.id)) for view in views} if slots else None
    return None


def of_status(status: dict[str, Any], line: LoadLine) -> dict[str, float] | None:
    """
    Return the weights of the service that a line asks, as `lb status` has them; None: it has no such service, or its
    policy has no use for weights.
    """
    for service in status["services"]:
        if service["policy"] != "static" and _is_asked(service["address"], service["port"], service["protocol"], line):
            return {
                server["name"]: float(server["weight"] if server["state"] == "active" else 0)
                for server in service["servers"]
            }
    return None


def _is_asked(address: str, port: int, protocol: str, line: LoadLine) -> bool:
    if (port, protocol) != (line.port, "tcp"):
        return False
    try:
        return ip_address(address) == ip_address(line.vip)
    except ValueError:
        return False
