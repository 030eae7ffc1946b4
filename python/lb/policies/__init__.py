"""
The policies of this version, by name, and the names that later versions will have.

`make(name, options)` turns what a configuration says into a policy object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lb.policies.base import Measurements, OptionProblem, Policy, ServerView, State
from lb.policies.round_robin import RoundRobin
from lb.policies.static import Static

POLICIES: dict[str, type[Static] | type[RoundRobin]] = {policy.name: policy for policy in (RoundRobin, Static)}
# Named by the design, not built yet: an error that says so is kinder than "unknown".
NOT_YET: frozenset[str] = frozenset(
    {"random", "weighted-random", "least-connections", "two-choices", "source-hash", "maglev", "adaptive"}
)


def option_names(name: str) -> list[str]:
    """Return the names of a policy's options."""
    return [field.name for field in fields(POLICIES[name])]


def make(name: str, options: Mapping[str, Any]) -> Policy:
    """
    Make a policy.

    Args:
        name: a key of POLICIES.
        options: its options by name.

    Raises:
        KeyError: there is no such policy.
        TypeError: it has no such option.
    """
    return POLICIES[name](**options)


__all__ = [
    "NOT_YET",
    "POLICIES",
    "Measurements",
    "OptionProblem",
    "Policy",
    "RoundRobin",
    "ServerView",
    "State",
    "Static",
    "make",
    "option_names",
]
