"""
Policies: pure functions of a service's servers that return plans (`docs/policies.md`).

Users' policies import from here: `Plan`, `ServerView`, `NewFlow`, `Measurements`; `eligible` and `weighted_slots` help
to make plans, `lb.testing` to test them.
"""

from lb.model.snapshot import Plan
from lb.policies.base import Health, Measurements, NewFlow, OptionProblem, Policy, ServerView, State, eligible
from lb.policies.registry import ALIASES, NAMES, POLICIES, OptionsError, make, problems
from lb.policies.slots import weighted_slots
from lb.policies.user import UserPolicy

__all__ = [
    "ALIASES",
    "NAMES",
    "POLICIES",
    "Health",
    "Measurements",
    "NewFlow",
    "OptionProblem",
    "OptionsError",
    "Plan",
    "Policy",
    "ServerView",
    "State",
    "UserPolicy",
    "eligible",
    "make",
    "problems",
    "weighted_slots",
]
