"""`lb explain` of a running balancer, the command's side: `lb.control.api.explainer` answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lb.control.api.client import fetch
from lb.control.api.paths import EXPLAIN, default_control_path
from lb.explain.placement import Question


def ask(question: Question, control: Path | None = None) -> dict[str, Any]:
    """
    Return what the running balancer says about a flow.

    Args:
        question: about the flow.
        control: its control socket; None: the default one.

    Raises:
        UnknownNameError, RequestError: as `lb.explain.placement.find_service`.
        DaemonError: no balancer answers.
    """
    query = {"client": str(question.client), "vip": str(question.vip)}
    if question.protocol is not None:
        query["protocol"] = question.protocol
    answer: dict[str, Any] = fetch(control or default_control_path(), EXPLAIN, **query)
    return answer
