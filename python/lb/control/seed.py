"""
The seed of placement: that of the configuration, or one that was drawn at the start (rule 21.1, secrets and seeds).

A public seed lets a client choose ports that all lead to one server, so there is no constant default: a seed is drawn
when `lb run` starts, logged, and kept for as long as it runs; with a state directory, over restarts, too.
"""

from __future__ import annotations

import secrets

from lb.config import Config

# TOML's integers have a sign: a drawn seed can be written into a configuration.
SEED_BITS = 63
# Policies that place a flow on the same server on every balancer and after every restart, if the seed is the same.
HASH_POLICIES = ("maglev", "source-hash")


def draw_seed() -> int:
    """Return a random seed that cannot be guessed."""
    return secrets.randbits(SEED_BITS)


def with_seed(config: Config, seed: int) -> Config:
    """Return a configuration with a seed: its own, else this one."""
    return config if config.seed is not None else config.model_copy(update={"seed": seed})


def describe_drawn(config: Config, seed: int, *, is_left: bool = False) -> str:
    """Return the log line about a seed that was drawn for a configuration. `is_left`: by the process before."""
    line = f"seed {seed}, of the process before" if is_left else f"seed {seed}, drawn at start"
    if any(service.policy.name in HASH_POLICIES for service in config.services):
        line += (
            f": write seed = {seed} where balancers must agree, or flows survive a restart ({', '.join(HASH_POLICIES)})"
        )
    return line
