"""
The policy `round-robin`: servers in turn, each as often as its weight says, interleaved smoothly.

Smoothly: with weights 5, 1, 1 the turn is a a b a c a a, not a a a a a b c, so that a heavy server gets no burst. The
sequence is the one where every server gains its weight in credit at each step, the richest takes the slot and pays
the sum of all weights. It follows that in any prefix of the sequence no server is ahead of its exact share by a whole
flow. Computed from scratch each time: a pure function of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lb.policies.base import Measurements, OptionProblem, ServerView, takers
from lb.snapshot import Plan

# Weights whose reduced sum is larger are scaled down to about this sum, each to at least 1: a share is then off by at
# most one slot in 65536.
MAX_SLOTS = 65536


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Place flows on the servers in turn, by weight."""

    name: ClassVar[str] = "round-robin"

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:  # noqa: ARG002
        """Return a plan whose slots are one whole turn."""
        candidates = takers(servers)
        order = interleave(reduce_weights([server.weight for server in candidates]))
        return Plan("counter", tuple(candidates[index].id for index in order))

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:  # noqa: ARG002
        """Yield nothing: there are no options."""
        return iter(())


def reduce_weights(weights: Sequence[int]) -> list[int]:
    """
    Return the smallest whole numbers in the same proportion, scaled when their sum is beyond MAX_SLOTS.

    Args:
        weights: each at least 1.
    """
    divisor = math.gcd(*weights) or 1
    reduced = [weight // divisor for weight in weights]
    total = sum(reduced)
    if total <= MAX_SLOTS:
        return reduced
    return [max(1, weight * MAX_SLOTS // total) for weight in reduced]


def interleave(weights: Sequence[int]) -> list[int]:
    """
    Return the indices of one turn: index i occurs weights[i] times, spread as evenly as credit allows.

    Servers of equal weight take turns among themselves, so only one candidate per distinct weight is looked at in
    each step: a thousand equal servers cost no more than one.

    Args:
        weights: each at least 1.
    """
    total = sum(weights)
    groups: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        groups.setdefault(weight, []).append(index)
    picks = dict.fromkeys(groups, 0)
    order: list[int] = []
    for step in range(1, total + 1):
        weight = max(groups, key=lambda weight: _claim(step, total, weight, picks[weight], groups[weight]))
        members = groups[weight]
        order.append(members[picks[weight] % len(members)])
        picks[weight] += 1
    return order


def _claim(step: int, total: int, weight: int, group_picks: int, members: list[int]) -> tuple[int, int]:
    """Return the credit of a group's next member at this step, and its rank among equals: the earlier server first."""
    rounds, turn = divmod(group_picks, len(members))
    return step * weight - total * rounds, -members[turn]
