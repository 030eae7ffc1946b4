"""
Numbers about turns: median, spread, ratios. Pure arithmetic on lists; a turn that gave nothing is None.

Contestants take turns, so a figure and its peer of the same turn met the same state of the machine: differences are
taken turn by turn, ratios between medians.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """What several turns gave."""

    median: float
    low: float
    high: float


def summarise(values: Sequence[float | None]) -> Summary | None:
    """Return median and spread of the turns that gave a value. None: there is none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Summary(statistics.median(there), min(there), max(there))


def ratio(values: Sequence[float | None], base: Sequence[float | None]) -> float | None:
    """Return the ratio of the medians of two contestants. None: one has no value, or the base is 0."""
    mine, other = summarise(values), summarise(base)
    if mine is None or other is None or other.median == 0:
        return None
    return mine.median / other.median


def disagreement(values: Sequence[float | None]) -> float | None:
    """Return how far the largest and the smallest value are apart, as a share of the median. None: fewer than two."""
    found = summarise(values)
    if found is None or found.median == 0 or sum(value is not None for value in values) < 2:
        return None
    return (found.high - found.low) / abs(found.median)


def subtract(values: Sequence[float | None], base: Sequence[float | None]) -> list[float | None]:
    """Return value minus base of each turn that both have."""
    return [
        None if value is None or other is None else value - other for value, other in zip(values, base, strict=False)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """
    Return the smallest value that at least this share of all values does not exceed.

    Args:
        values: at least one, in any order.
        share: 0..1.
    """
    return ordered_percentile(sorted(values), share)


def ordered_percentile(ordered: Sequence[float], share: float) -> float:
    """Do the same for values in ascending order, of which there is at least one."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
