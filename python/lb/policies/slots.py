"""
Slot tables in proportion to weights: what the selectors `counter`, `random` and `two-choices` pick from.

A round of `counter` is interleaved smoothly: with weights 5, 1, 1 it is a a b a c a a, not a a a a a b c, so that a
heavy server gets no burst. Computed from scratch each time: pure functions of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, repeat

from lb.policies.base import ServerView, eligible

# Weights whose reduced sum is larger are scaled down to about this sum, each to at least 1: a share is then off by at
# most one slot in 65536.
MAX_SLOTS = 65536
# Beyond this many different weights, or this many comparisons in all, a step-by-step round costs more than a sort.
MAX_GROUPS = 32
MAX_COMPARISONS = 100_000


def weighted_slots(servers: Sequence[ServerView]) -> tuple[int, ...]:
    """Return the ids of the servers that take flows, each as often as its weight says, interleaved."""
    candidates = eligible(servers)
    order = interleave(reduce_weights([server.weight for server in candidates]))
    return tuple(candidates[index].id for index in order)


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
    Return the indices of one round: index i occurs weights[i] times, spread evenly.

    Up to MAX_GROUPS different weights: every server gains its weight in credit at each step, the richest takes the
    slot and pays the sum of all weights. It follows that in any prefix no server is ahead of its exact share by a
    whole flow. Servers of equal weight take turns among themselves, so only one candidate per weight is looked at in
    each step: a thousand equal servers cost no more than one. With more weights, or where all steps would look at more
    than MAX_COMPARISONS candidates: occurrence k of weight w stands where (k + 1/2) / w sorts it.

    Args:
        weights: each at least 1.
    """
    groups: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        groups.setdefault(weight, []).append(index)
    if len(groups) == 1:
        return list(chain.from_iterable(repeat(range(len(weights)), weights[0])))
    total = sum(weights)
    if len(groups) > MAX_GROUPS or total * len(groups) > MAX_COMPARISONS:
        return _sorted_round(groups)
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
    rounds, place = divmod(group_picks, len(members))
    return step * weight - total * rounds, -members[place]


def _sorted_round(groups: Mapping[int, Sequence[int]]) -> list[int]:
    """Return a round of the members of each weight; the earlier server first among equals."""
    places = [
        ((2 * k + 1) / weight, index) for weight, members in groups.items() for k in range(weight) for index in members
    ]
    places.sort()
    return [index for _, index in places]
