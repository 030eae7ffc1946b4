"""A run of chaos as it is written down: what was set, what became of the flows, and the run without acts beside it."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lb.lab.chaos.judge import FLOWS, Outcome
from lb.model.version import version

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Document:
    """
    One run.

    Args:
        settings: what was set, and on what it ran.
        duration_s: of the run.
        chaos: what became of the flows.
        control: the same of the run without acts; None: there was none.
    """

    settings: Mapping[str, str]
    duration_s: float
    chaos: Outcome
    control: Outcome | None

    @property
    def is_good(self) -> bool:
        """Whether nothing broke that should not, in both."""
        return self.chaos.is_good and (self.control is None or self.control.is_good)


def settings(seed: int, duration_s: float, control_s: float, backend: str, facts: Mapping[str, str]) -> dict[str, str]:
    """Return what was set, and on what it runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, Linux {os.uname().release}",
        "load average at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "lb": version(),
        "backend": backend,
        "seed": str(seed),
        "duration": f"{duration_s:g} s",
        "without acts": f"{control_s:g} s" if control_s else "no such run",
        "offloads": facts.get("offloads", "-"),
    }


def rows(outcome: Outcome) -> list[tuple[str, int, int, int, int, int | None, int, float]]:
    """
    Return, for each kind of flow: flows, exchanges, broken, broken with a reason, moved, stalls, the longest in
    seconds. Only of long flows it is known that they move.
    """
    found = []
    for flow in FLOWS:
        stalls = [each.stalled_s for each in outcome.stalls if each.flow == flow]
        found.append(
            (
                flow,
                outcome.counts.get(flow, 0),
                outcome.counts.get(f"{flow} exchange", 0),
                sum(each.flow == flow for each in outcome.broken),
                sum(each.flow == flow for each in outcome.excused),
                len(outcome.moved) if flow == "long" else None,
                len(stalls),
                max(stalls, default=0.0),
            )
        )
    return found


def to_json(document: Document) -> str:
    """Return it as JSON."""
    return json.dumps({"format": FORMAT, "good": document.is_good, **_finite(asdict(document))}, indent=1)


def _finite(value: Any) -> Any:
    """Return a value without what JSON has no word for: an act that had no end when the run was stopped."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
