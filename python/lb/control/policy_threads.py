"""Ending the threads of users' policies that no configuration uses any more."""

from __future__ import annotations

from lb.config import Config
from lb.policies import UserPolicy


def close_policies(unused: Config, used: Config) -> None:
    """End the threads of a configuration's policies that another configuration does not use."""
    kept = {id(service.policy) for service in used.services}
    for service in unused.services:
        policy = service.policy.policy
        if isinstance(policy, UserPolicy) and id(service.policy) not in kept:
            policy.close()
