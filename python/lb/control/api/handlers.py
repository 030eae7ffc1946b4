"""
The admin API: what can be asked of a running balancer, and what can be changed.

`lb.control.api.listener` is its door (HTTP over a UNIX socket), `docs/control.md` its reference. Reads by GET with a
query, changes by POST with a JSON object. Everything runs on the daemon's asyncio loop; what takes long (listing flows,
reading a file) goes through threads. Changes all go through `lb.control.controller`.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lb.compiler.spec import ServerNow, ServiceNow
from lb.config import dump_config, parse_server, parse_weight
from lb.control.api.explainer import RESOURCE, Explainer
from lb.control.api.listener import Answer, Method
from lb.control.api.status import build_status, describe_server
from lb.control.changes import ANSWER_S
from lb.control.controller import Change
from lb.control.telemetry.rates import RateMeter
from lb.errors import RequestError, UnknownNameError
from lb.fields.types import plain_address
from lb.model.snapshot import Address
from lb.policies.base import State

if TYPE_CHECKING:
    from lb.control.daemon import Daemon

DEFAULT_FLOWS = 1000
MAX_FLOWS = 100_000
# No table holds more flows.
MAX_NUMBER = 2**32
NUMBER = re.compile(r"-?[0-9]{1,20}")
FLOW_STATES = ("syn-sent", "syn-received", "established", "closing", "udp", "pickup", "udp-unreplied")
FLOW_FILTERS = ("client", "service", "server", "state")


class Api:
    """
    The resources of the admin API.

    Args:
        daemon: the running balancer.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._meter = RateMeter(lambda: asyncio.to_thread(daemon.counters))

    def answers(self) -> dict[tuple[Method, str], Answer]:
        """Return what answers to each method and resource."""
        return {
            ("GET", "/status"): self.status,
            ("GET", "/server"): self.server,
            ("GET", "/flows"): self.flows,
            ("GET", "/counters"): self.counters,
            ("GET", "/config"): self.config,
            ("GET", "/history"): self.history,
            ("GET", RESOURCE): Explainer(self._daemon).answer,
            ("POST", "/drain"): self._setter("draining"),
            ("POST", "/enable"): self._setter("active"),
            ("POST", "/disable"): self._setter("disabled"),
            ("POST", "/weight"): self.weight,
            ("POST", "/add"): self.add,
            ("POST", "/remove"): self.remove,
            ("POST", "/reload"): self.reload,
        }

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return all that `lb status` shows."""
        counters, rates = await self._meter.read()
        steering = self._daemon.steering
        # On a thread: of 10 000 servers it takes longer than health checks should wait.
        return await asyncio.to_thread(
            build_status, self._daemon.facts(), steering.desired, steering.snapshot, counters, rates
        )

    async def server(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return one server, `service` and `server` by name; one that is leaving too."""
        service, server = self._find(_name(asked, "service"), _name(asked, "server"))
        counters, rates = await self._meter.read()
        return describe_server(service.name, server, self._daemon.steering.desired, counters, rates)

    def _find(self, service: str, server: str) -> tuple[ServiceNow, ServerNow]:
        """Return a server as it is now; one that takes flows before one of the same name that is leaving."""
        for each in self._daemon.steering.services():
            if each.name == service:
                for one in each.servers:
                    if one.name == server:
                        return each, one
        raise UnknownNameError(f"there is no server {service}/{server}")

    async def flows(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return flows: those that fit the filters, `limit` of them from `offset` on, and how many there are in all."""
        limit = min(_number(asked, "limit", DEFAULT_FLOWS), MAX_FLOWS)
        offset = _number(asked, "offset", 0)
        unknown = set(asked) - {*FLOW_FILTERS, "limit", "offset"}
        if unknown:
            raise RequestError(f"flows have no {', '.join(sorted(unknown))}: filter by {', '.join(FLOW_FILTERS)}")
        client = _address(str(asked["client"])) if "client" in asked else None
        state = _state(str(asked["state"])) if "state" in asked else None
        servers = self._server_ids(asked.get("service"), asked.get("server"))
        find = functools.partial(self._daemon.data_path.find_flows, time.monotonic_ns(), offset, limit)

        def answer() -> dict[str, Any]:
            total, page = find(client, servers, state)
            return {"total": total, "offset": offset, "flows": [flow._asdict() for flow in page]}

        return await asyncio.to_thread(answer)

    def _server_ids(self, service: str | None, server: str | None) -> list[int] | None:
        """Return the ids of the servers with these names; None: any."""
        if service is None and server is None:
            return None
        snapshot = self._daemon.steering.snapshot
        names = [None if entry is None else entry.name for entry in snapshot.services]
        ids = [
            number
            for number, entry in enumerate(snapshot.servers)
            if entry is not None and server in (None, entry.name) and service in (None, names[entry.service])
        ]
        if not ids and server is not None:
            raise UnknownNameError(f"there is no server {server if service is None else f'{service}/{server}'}")
        if not ids and service not in names:
            raise UnknownNameError(f"there is no service {service}")
        return ids

    async def counters(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data path's counters."""
        return await asyncio.to_thread(self._daemon.counters)

    async def config(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration as the file said, and what the operator has changed since."""
        desired = self._daemon.steering.desired
        return {
            "config": await asyncio.to_thread(dump_config, desired.config),
            "changes": {str(key): {"state": wish.state, "weight": wish.weight} for key, wish in desired.wishes.items()},
            "added": {
                service: [server.name for server in servers] for service, servers in desired.added.items() if servers
            },
            "removed": sorted(str(key) for key in desired.removed),
        }

    async def history(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the last changes, the oldest first."""
        return [asdict(event) for event in self._daemon.steering.history]

    def _setter(self, state: State) -> Answer:
        async def set_state(asked: Mapping[str, Any]) -> dict[str, Any]:
            _require_only(asked, "service", "server", "reset")
            service, server = _name(asked, "service"), _name(asked, "server")
            reset = _flag(asked, "reset")
            return await self._changed(lambda: self._daemon.steering.set_state(service, server, state, reset=reset))

        return set_state

    async def weight(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Set the `weight` of a server."""
        _require_only(asked, "service", "server", "weight")
        service, server, weight = _name(asked, "service"), _name(asked, "server"), parse_weight(asked.get("weight"))
        return await self._changed(lambda: self._daemon.steering.set_weight(service, server, weight))

    async def add(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Add a server: `server` holds the keys of a [[service.server]]."""
        _require_only(asked, "service", "server")
        service, server = _name(asked, "service"), parse_server(asked.get("server"))
        return await self._changed(lambda: self._daemon.steering.add(service, server))

    async def remove(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Remove a server."""
        _require_only(asked, "service", "server", "reset")
        service, server = _name(asked, "service"), _name(asked, "server")
        reset = _flag(asked, "reset")
        return await self._changed(lambda: self._daemon.steering.remove(service, server, reset=reset))

    async def _changed(self, change: Change) -> dict[str, Any]:
        """Make a change, and tell whether it was one."""
        outcome = await self._daemon.changes.make(change, ANSWER_S)
        outcome.result()
        return {"generation": outcome.generation, "changed": outcome.changed}

    async def reload(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Read the configuration again; with `dry_run`, only tell what that would do."""
        _require_only(asked, "dry_run")
        if _flag(asked, "dry_run"):
            preview = await self._daemon.preview(ANSWER_S)
            lines = [move.line() for move in preview.moves]
            return {
                "dry_run": True,
                "diff": preview.diff,
                "moves": [asdict(move) for move in preview.moves],
                "lines": lines,
            }
        changes = await self._daemon.reload(ANSWER_S)
        return {"dry_run": False, "diff": changes, "generation": self._daemon.steering.generation}


def _require_only(asked: Mapping[str, Any], *names: str) -> None:
    if unknown := sorted(set(asked) - set(names)):
        raise RequestError(f"unknown: {', '.join(unknown)}; allowed: {', '.join(names)}")


def _name(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{key}: a name is needed")
    return value


def _flag(asked: Mapping[str, Any], key: str) -> bool:
    value = asked.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(f"{key}: true or false is needed")
    return value


def _number(asked: Mapping[str, Any], key: str, default: int) -> int:
    """Return a number of a query; 0 for one below. Raise RequestError when it is none, or more than any table holds."""
    text = str(asked.get(key, default))
    if NUMBER.fullmatch(text) is None:
        raise RequestError(f"{key}: {text[:60]!r} is not a number")
    if int(text) > MAX_NUMBER:
        raise RequestError(f"{key}: {text} is not in 0..{MAX_NUMBER}")
    return max(0, int(text))


def _address(text: str) -> Address:
    try:
        return plain_address(text)
    except ValueError:
        raise RequestError(f"client: {text!r} is not an IP address") from None


def _state(text: str) -> str:
    if text not in FLOW_STATES:
        raise RequestError(f"state: {text!r} is none of {', '.join(FLOW_STATES)}")
    return text
