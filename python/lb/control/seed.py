"""
The seed of placement: the configuration's, or one that this run has drawn (behaviour 33).

Control side. A seed that everybody knows lets a client choose ports that all lead to one server, so the default is no
constant: it is drawn when `lb run` starts, shown, and kept for as long as it runs.
"""

from __future__ import annotations

import secrets

from lb.config import Config

# TOML's integers have a sign: what is shown can be written into a configuration.
SEED_BITS = 63
# Policies whose placement of a flow is the same wherever and whenever it is asked for, while the seed is.
HASH_POLICIES = ("maglev", "source-hash")


def draw_seed() -> int:
    """Return a seed that nobody can guess."""
    return secrets.randbits(SEED_BITS)


def with_seed(config: Config, seed: int) -> Config:
    """Return a configuration that has a seed: its own, else this one."""
    return config if config.seed is not None else config.model_copy(update={"seed": seed})


def describe_drawn(config: Config, seed: int) -> str:
    """Return what the log says about a seed that was drawn for a configuration."""
    line = f"seed {seed}, drawn at start"
    if any(service.policy.name in HASH_POLICIES for service in config.services):
        line += (
            f": write seed = {seed} where balancers must agree, or flows survive a restart ({', '.join(HASH_POLICIES)})"
        )
    return line
