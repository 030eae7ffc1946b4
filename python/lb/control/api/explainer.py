"""`GET /explain?client=ADDRESS:PORT&vip=ADDRESS:PORT`, the balancer's side: `lb.control.api.ask` is the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

from lb.control.api.sources import DataPathQueries, Published
from lb.errors import RequestError
from lb.explain.placement import Known, Question, explain, find_service, parse_endpoint
from lb.model.snapshot import NextHops, Protocol

PROTOCOLS = get_args(Protocol)


class Explainer:
    """
    Explains where flows of a running balancer go.

    Args:
        published: spec and snapshot.
        data_path: has flows and counters.
        next_hops: returns the current routes and neighbours.
    """

    def __init__(self, published: Published, data_path: DataPathQueries, next_hops: Callable[[], NextHops]) -> None:
        self._published = published
        self._data_path = data_path
        self._next_hops = next_hops

    async def answer(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the explanation for the parameters of a request.

        Raises:
            RequestError: a parameter is wrong.
            UnknownNameError: there is no such service.
        """
        unknown = sorted(set(params) - {"client", "vip", "protocol"})
        protocol = params.get("protocol")
        if unknown or "client" not in params or "vip" not in params or protocol not in (None, *PROTOCOLS):
            raise RequestError("explain takes client=ADDRESS:PORT, vip=ADDRESS:PORT and protocol=tcp or udp")
        client, vip = parse_endpoint(str(params["client"])), parse_endpoint(str(params["vip"]))
        question = Question(client, vip, cast(Protocol | None, protocol))
        return await asyncio.to_thread(self._explain, question)

    def _explain(self, question: Question) -> dict[str, Any]:
        snapshot, spec = self._published.snapshot, self._published.spec
        number, _ = find_service(snapshot, question)
        flow, round_number = self._data_path.peek(number, question.client.address, question.client.port)
        servers = self._data_path.counters()["servers"]
        known = Known(
            spec=spec,
            snapshot=snapshot,
            next_hops=self._next_hops(),
            active={name: traffic["flows_active"] for name, traffic in servers.items()},
            flow=flow,
            round=round_number,
        )
        return explain(question, known)
