"""
Read the vectors and turn their setups into snapshots. What the fields mean is in README.md beside this file.

Shared by `tests/unit/test_vectors.py`, the differential driver and the benches. Ids are handed out here as the
control side does it: the same name keeps its id in every later snapshot of one `Scene`, a removed one leaves None.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from lb.config import Config, ServiceConfig
from lb.config.parts import shared_keys
from lb.model.snapshot import (
    AskFunction,
    Interface,
    Neighbour,
    NewFlowLimit,
    NextHops,
    Plan,
    Route,
    Server,
    Service,
    Snapshot,
)
from snapshots import complete_snapshot, make_service, make_timeouts

HERE = Path(__file__).resolve().parent
NOT_VECTORS = {"base.json", "hash.json"}
# Keys that a setup has as a snapshot has them; one that it leaves out has its default.
KEYS_OF_SERVICE = {*shared_keys(Service, ServiceConfig)} - {"name", "address", "port", "protocol", "new_flow_limit"}
KEYS_OF_SNAPSHOT = {*shared_keys(Snapshot, Config)} - {"seed", "interfaces", "services"}
BASE: dict[str, Any] = json.loads((HERE / "base.json").read_text())


def vectors() -> list[dict[str, Any]]:
    """Return all vectors, each with the topic it is filed under."""
    files = sorted(path for path in HERE.glob("*.json") if path.name not in NOT_VECTORS)
    return [{"topic": path.stem, **vector} for path in files for vector in json.loads(path.read_text())]


def golden_hashes() -> dict[str, Any]:
    """Return the golden values of the placement hash."""
    loaded: dict[str, Any] = json.loads((HERE / "hash.json").read_text())
    return loaded


def mac(text: str | None) -> bytes | None:
    """Return the six bytes of a MAC address."""
    return None if text is None else bytes.fromhex(text.replace(":", ""))


def ask_function(described: dict[str, Any] | None) -> AskFunction | None:
    """Make the ask function of a setup: `always` a name, `by_port`, `by_remainder` of the port, or `raises`."""
    if described is None:
        return None

    def ask(service: str, client: str, client_port: int, servers: Sequence[str]) -> str | None:
        assert service
        assert ip_address(client)
        assert servers
        if "raises" in described:
            raise RuntimeError(described["raises"])
        if "by_remainder" in described:
            names: list[str | None] = described["by_remainder"]
            return names[client_port % len(names)]
        if "by_port" in described:
            return described["by_port"].get(str(client_port))
        return str(described["always"])

    return ask


class Scene:
    """The ids of one data path's life: makes its snapshots and next hops from setups."""

    def __init__(self, **overrides: Any) -> None:
        self.setup: dict[str, Any] = {**copy.deepcopy(BASE), **overrides}
        self.services: list[str] = []
        self.servers: list[str] = []
        self.endpoints: list[tuple[str, int, str]] = []
        self.generation = 0

    def change(self, **overrides: Any) -> None:
        """Override parts of the setup."""
        self.setup.update(overrides)

    @property
    def interfaces(self) -> list[str]:
        """The interface names by id."""
        return [described["name"] for described in self.setup["interfaces"]]

    def _id(self, known: list[Any], thing: Any) -> int:
        if thing not in known:
            known.append(thing)
        return known.index(thing)

    def _plan(self, service: str, described: dict[str, Any]) -> Plan:
        slots = tuple(self._id(self.servers, name) for name in described["slots"])
        fallback = described.get("fallback")
        return Plan(
            described["selector"],
            slots,
            tuple(described.get("scores", ())),
            self._plan(service, fallback) if fallback else None,
        )

    def _server(self, service: int, protocol: str, described: dict[str, Any]) -> Server:
        address = ip_address(described["address"])
        endpoint = self._id(self.endpoints, (str(address), described["port"], protocol))
        return Server(
            described["name"],
            service,
            endpoint,
            address,
            described["port"],
            described.get("weight", 1),
            mac(described.get("mac")),
            described.get("moves_udp", False),
        )

    def snapshot(self) -> Snapshot:
        """Make the next snapshot."""
        self.generation += 1
        setup = self.setup
        services: dict[int, Service] = {}
        servers: dict[int, Server] = {}
        for described in setup["services"]:
            number = self._id(self.services, described["name"])
            for one in described["servers"]:
                servers[self._id(self.servers, one["name"])] = self._server(number, described["protocol"], one)
            limit = described.get("new_flow_limit")
            services[number] = make_service(
                described["name"],
                ip_address(described["address"]),
                described["port"],
                described["protocol"],
                self._plan(described["name"], described["plan"]),
                new_flow_limit=limit and NewFlowLimit(**limit),
                **{key: described[key] for key in KEYS_OF_SERVICE & described.keys()},
            )
        return complete_snapshot(
            self.generation,
            setup["seed"],
            self._interfaces(),
            tuple(services.get(i) for i in range(len(self.services))),
            tuple(servers.get(i) for i in range(len(self.servers))),
            timeouts=make_timeouts(**{f"{name}_ns": int(value * 10**9) for name, value in setup["timeouts_s"].items()}),
            ask=ask_function(setup["ask"]),
            any_replies=setup["any_replies"],
            **{key: setup[key] for key in KEYS_OF_SNAPSHOT & setup.keys()},
        )

    def _interfaces(self) -> tuple[Interface, ...]:
        return tuple(
            Interface(
                one["name"],
                mac(one["mac"]) or b"",
                one["mtu"],
                tuple(ip_interface(text) for text in one["addresses"]),
                one["announce"],
            )
            for one in self.setup["interfaces"]
        )

    def next_hops(self) -> NextHops:
        """Make the next hops."""
        names = self.interfaces
        routes = tuple(
            Route(
                ip_network(one["prefix"]),
                names.index(one["interface"]),
                ip_address(one["gateway"]) if one.get("gateway") else None,
                one.get("mtu"),
            )
            for one in self.setup["routes"]
        )
        known = tuple(
            Neighbour(names.index(name), ip_address(address), mac(hardware) or b"")
            for name, address, hardware in self.setup["neighbours"]
        )
        return NextHops(routes, known)
