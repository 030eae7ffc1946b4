"""`lb explain` of a running balancer: both ends of `GET /explain?client=ADDRESS:PORT&vip=ADDRESS:PORT`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lb.control.api.client import fetch
from lb.control.api.paths import default_control_path
from lb.errors import RequestError
from lb.explain.placement import Known, Protocol, Question, explain, find_service, parse_endpoint

if TYPE_CHECKING:
    from lb.control.daemon import Daemon

RESOURCE = "/explain"
PROTOCOLS = ("tcp", "udp")


def ask(question: Question, control: Path | None = None) -> dict[str, Any]:
    """
    Ask the running balancer.

    Args:
        question: about a flow.
        control: its control socket; None: where it is by default.

    Raises:
        UnknownNameError, RequestError: as `lb.explain.placement.find_service`.
        DaemonError: no balancer answers.
    """
    query = {"client": str(question.client), "vip": str(question.vip)}
    if question.protocol is not None:
        query["protocol"] = question.protocol
    answer: dict[str, Any] = fetch(control or default_control_path(), RESOURCE, **query)
    return answer


class Explainer:
    """Answers for a running balancer."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the answer to a query.

        Raises:
            RequestError: the query is wrong.
            UnknownNameError: there is no such service.
        """
        unknown = sorted(set(asked) - {"client", "vip", "protocol"})
        protocol = asked.get("protocol")
        if unknown or "client" not in asked or "vip" not in asked or protocol not in (None, *PROTOCOLS):
            raise RequestError("explain takes client=ADDRESS:PORT, vip=ADDRESS:PORT and protocol=tcp or udp")
        client, vip = parse_endpoint(str(asked["client"])), parse_endpoint(str(asked["vip"]))
        question = Question(client, vip, cast(Protocol | None, protocol))
        return await asyncio.to_thread(self._explain, question)

    def _explain(self, question: Question) -> dict[str, Any]:
        steering, data_path = self._daemon.steering, self._daemon.data_path
        snapshot, desired = steering.snapshot, steering.desired
        number, _ = find_service(snapshot, question)
        flow, turn = data_path.peek(number, question.client.address, question.client.port, time.monotonic_ns())
        servers = data_path.counters()["servers"]
        known = Known(
            desired=desired,
            snapshot=snapshot,
            next_hops=self._daemon.next_hops,
            active={name: traffic["flows_active"] for name, traffic in servers.items()},
            flow=flow,
            turn=turn,
        )
        return explain(question, known)
