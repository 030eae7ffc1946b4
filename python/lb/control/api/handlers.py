"""
The resources of the admin API: what can be read from a running balancer, and what can be changed.

`lb.control.api.listener` serves them (HTTP over a UNIX socket), `docs/control.md` is the reference. Reads are GETs with
a query, changes are POSTs with a JSON object. Handlers run on the asyncio loop of the daemon; what takes long (listing
flows, building the status) runs in threads. All changes go through `lb.control.controller`.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lb.compiler.spec import EffectiveServer, EffectiveService
from lb.config import dump_config, parse_server, parse_weight
from lb.control.api.explainer import Explainer
from lb.control.api.listener import Handler, Method
from lb.control.api.paths import EXPLAIN, STOP, process_identity
from lb.control.api.sources import DataPathQueries, Reloads
from lb.control.api.status import build_status, describe_server
from lb.control.changes import ANSWER_S, Changes
from lb.control.controller import Controller
from lb.control.outcome import Change
from lb.control.stopping import Stopping
from lb.control.telemetry.process_facts import Facts
from lb.control.telemetry.rates import RateMeter
from lb.errors import RequestError, UnknownNameError
from lb.fields.types import plain_address
from lb.model.flow_states import FLOW_STATES
from lb.model.snapshot import Address
from lb.policies.base import State

DEFAULT_FLOWS = 1000
MAX_FLOWS = 100_000
# Of a drain before the stop.
DEFAULT_DRAIN_S, MOST_DRAIN_S = 60.0, 10**9
# No table holds more flows.
MAX_NUMBER = 2**32
NUMBER = re.compile(r"-?[0-9]{1,20}")
FLOW_FILTERS = ("client", "service", "server", "state")


class Api:
    """
    The resources of the admin API.

    Args:
        controller: has spec, snapshot and history; makes the changes.
        changes: the queue of changes.
        data_path: has flows and counters.
        reloads: of the configuration.
        facts: returns what the status begins with.
        explainer: answers `/explain`.
        stopping: ends the balancer.
    """

    def __init__(
        self,
        controller: Controller,
        changes: Changes,
        data_path: DataPathQueries,
        reloads: Reloads,
        facts: Callable[[], Facts],
        explainer: Explainer,
        stopping: Stopping,
    ) -> None:
        self._controller = controller
        self._changes = changes
        self._data_path = data_path
        self._reloads = reloads
        self._facts = facts
        self._explainer = explainer
        self._stopping = stopping
        self._meter = RateMeter(lambda: asyncio.to_thread(data_path.counters))

    def handlers(self) -> dict[tuple[Method, str], Handler]:
        """Return the handler of each method and resource."""
        return {
            ("GET", "/status"): self.status,
            ("GET", "/server"): self.server,
            ("GET", "/flows"): self.flows,
            ("GET", "/counters"): self.counters,
            ("GET", "/config"): self.config,
            ("GET", "/history"): self.history,
            ("GET", EXPLAIN): self._explainer.answer,
            ("POST", "/drain"): self._setter("draining"),
            ("POST", "/enable"): self._setter("active"),
            ("POST", "/disable"): self._setter("disabled"),
            ("POST", "/weight"): self.weight,
            ("POST", "/add"): self.add,
            ("POST", "/remove"): self.remove,
            ("POST", "/reload"): self.reload,
            ("GET", STOP): self.stop_progress,
            ("POST", STOP): self.stop,
        }

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the status, as `lb status` shows it."""
        counters, rates = await self._meter.read()
        spec, snapshot = self._controller.spec, self._controller.snapshot
        # In a thread: of 10 000 servers it takes longer than health checks should wait.
        return await asyncio.to_thread(build_status, self._facts(), spec, snapshot, counters, rates)

    async def server(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return one server, `service` and `server` by name; also a removed one."""
        service, server = self._find(_name(params, "service"), _name(params, "server"))
        counters, rates = await self._meter.read()
        return describe_server(service.name, server, self._controller.spec, counters, rates)

    def _find(self, service: str, server: str) -> tuple[EffectiveService, EffectiveServer]:
        """Return a server by name; a present one before a removed one of the same name."""
        for each in self._controller.services():
            if each.name == service:
                for one in each.servers:
                    if one.name == server:
                        return each, one
        raise UnknownNameError(f"there is no server {service}/{server}")

    async def flows(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `limit` of the flows that match the filters, from `offset` on, and how many match in all."""
        limit = min(only_number(params, "limit", DEFAULT_FLOWS), MAX_FLOWS)
        offset = only_number(params, "offset", 0)
        unknown = set(params) - {*FLOW_FILTERS, "limit", "offset"}
        if unknown:
            raise RequestError(f"flows have no {', '.join(sorted(unknown))}: filter by {', '.join(FLOW_FILTERS)}")
        client = _address(str(params["client"])) if "client" in params else None
        state = _state(str(params["state"])) if "state" in params else None
        servers = self._server_ids(params.get("service"), params.get("server"))
        find = functools.partial(self._data_path.find_flows, offset, limit, client, servers, state)

        def answer() -> dict[str, Any]:
            total, page = find()
            return {"total": total, "offset": offset, "flows": [flow._asdict() for flow in page]}

        return await asyncio.to_thread(answer)

    def _server_ids(self, service: str | None, server: str | None) -> list[int] | None:
        """Return the ids of the servers with these names; None: of any server."""
        if service is None and server is None:
            return None
        snapshot = self._controller.snapshot
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
        """Return the counters of the data path."""
        return await asyncio.to_thread(self._data_path.counters)

    async def config(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration as it was last read, and what the operator has changed since."""
        spec = self._controller.spec
        return {
            "config": await asyncio.to_thread(dump_config, spec.config),
            "changes": {
                str(key): {"state": override.state, "weight": override.weight}
                for key, override in spec.overrides.items()
            },
            "added": {
                service: [server.name for server in servers] for service, servers in spec.added.items() if servers
            },
            "removed": sorted(str(key) for key in spec.withdrawn),
        }

    async def history(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the last changes, the oldest first."""
        return [asdict(event) for event in self._controller.history]

    def _setter(self, state: State) -> Handler:
        async def set_state(params: Mapping[str, Any]) -> dict[str, Any]:
            require_only(params, "service", "server", "reset")
            service, server = _name(params, "service"), _name(params, "server")
            reset = _flag(params, "reset")
            return await self._changed(lambda: self._controller.set_state(service, server, state, reset=reset))

        return set_state

    async def weight(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Set the `weight` of a server."""
        require_only(params, "service", "server", "weight")
        service, server, weight = _name(params, "service"), _name(params, "server"), parse_weight(params.get("weight"))
        return await self._changed(lambda: self._controller.set_weight(service, server, weight))

    async def add(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Add a server: `server` holds the keys of a [[service.server]]."""
        require_only(params, "service", "server")
        service, server = _name(params, "service"), parse_server(params.get("server"))
        return await self._changed(lambda: self._controller.add(service, server))

    async def remove(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Remove a server."""
        require_only(params, "service", "server", "reset")
        service, server = _name(params, "service"), _name(params, "server")
        reset = _flag(params, "reset")
        return await self._changed(lambda: self._controller.remove(service, server, reset=reset))

    async def _changed(self, change: Change) -> dict[str, Any]:
        """Make a change, and return the generation and whether anything changed."""
        outcome = await self._changes.make(change, ANSWER_S)
        outcome.result()
        return {"generation": outcome.generation, "changed": outcome.changed}

    async def reload(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Read the configuration again; with `dry_run`, only return what that would do."""
        require_only(params, "dry_run")
        if _flag(params, "dry_run"):
            preview = await self._reloads.preview(ANSWER_S)
            lines = [forecast.line() for forecast in preview.forecasts]
            return {
                "dry_run": True,
                "diff": preview.diff,
                "moves": [asdict(forecast) for forecast in preview.forecasts],
                "lines": lines,
            }
        changes = await self._reloads.reload(ANSWER_S)
        return {"dry_run": False, "diff": changes, "generation": self._controller.generation}

    async def stop_progress(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return how far a drain before the stop is, at its end or after a moment."""
        return {**process_identity(), **(await self._stopping.progress())._asdict()}

    async def stop(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Stop the balancer: at once; with `drain` when its flows have ended or `timeout_s` is over; `cancel` that."""
        require_only(params, "drain", "timeout_s", "cancel")
        drain, cancel, timeout_s = _flag(params, "drain"), _flag(params, "cancel"), _seconds(params, "timeout_s")
        if drain and cancel:
            raise RequestError("drain and cancel cannot be combined: leave one of them out")
        if cancel:
            return {"changed": await self._stopping.cancel()}
        if drain:
            await self._stopping.drain(timeout_s)
        else:
            self._stopping.stop_now()
        return {"changed": True}


def require_only(params: Mapping[str, Any], *names: str) -> None:
    """Raise RequestError when a request has parameters of other names."""
    if unknown := sorted(set(params) - set(names)):
        raise RequestError(f"unknown: {', '.join(unknown)}; allowed: {', '.join(names)}")


def _name(params: Mapping[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{key}: a name is needed")
    return value


def _flag(params: Mapping[str, Any], key: str) -> bool:
    value = params.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(f"{key}: true or false is needed")
    return value


def _seconds(params: Mapping[str, Any], key: str) -> float:
    """Return a time of a request. Raise RequestError when it is none."""
    value = params.get(key, DEFAULT_DRAIN_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_DRAIN_S:
        raise RequestError(f"{key}: seconds are needed, 0 to {MOST_DRAIN_S}")
    return float(value)


def only_number(params: Mapping[str, Any], key: str, default: int) -> int:
    """Return a number of a query, at least 0. Raise RequestError when it is none, or more than any table holds."""
    text = str(params.get(key, default))
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
