"""What share of the fetches each server should get: as told, as a configuration says, or as a running balancer says."""

from __future__ import annotations

import math
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.loadgen.lines import LoadLine


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
            value = float(weight)
        except ValueError:
            value = math.nan
        if not separator or not name or not math.isfinite(value) or value < 0:
            raise ValueError(f"{pair.strip()!r} is not SERVER=WEIGHT with a weight from 0")
        weights[name] = value
    return weights


def of_config(path: Path, line: LoadLine) -> dict[str, float] | None:
    """
    Return the weights of the service that a line asks, as a configuration has them; None: it has no such service.

    Raises:
        ConfigError: the configuration is invalid.
    """
    from lb.config import load

    for service in load(path).services:
        if _is_asked(str(service.address), service.port, service.protocol, line):
            return {server.name: float(server.weight if server.state == "active" else 0) for server in service.servers}
    return None


def of_status(status: dict[str, Any], line: LoadLine) -> dict[str, float] | None:
    """Return the weights of the service that a line asks, as `lb status` has them; None: it has no such service."""
    for service in status["services"]:
        if _is_asked(service["address"], service["port"], service["protocol"], line):
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
