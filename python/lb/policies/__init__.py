"""
Policies: pure functions of a service's servers that return plans (`docs/policies.md`).

What a policy of one's own needs is here: `Plan`, `ServerView`, `Measurements`.
"""

from lb.policies.base import Measurements, OptionProblem, Policy, ServerView, State, takers
from lb.policies.registry import ALIASES, NAMES, POLICIES, allowed, find, make, problems
from lb.snapshot import Plan

__all__ = [
    "ALIASES",
    "NAMES",
    "POLICIES",
    "Measurements",
    "OptionProblem",
    "Plan",
    "Policy",
    "ServerView",
    "State",
    "allowed",
    "find",
    "make",
    "problems",
    "takers",
]
