"""
Policies: pure functions of a service's servers that return plans (`docs/policies.md`).

What a policy of one's own needs is here: `Plan`, `ServerView`, `NewFlow`, `Measurements`; `takers` and `weighted_slots`
help to make plans, `lb.testing` to test them.
"""

from lb.model.snapshot import Plan
from lb.policies.base import Health, Measurements, NewFlow, OptionProblem, Policy, ServerView, State, takers
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
    "make",
    "problems",
    "takers",
    "weighted_slots",
]
