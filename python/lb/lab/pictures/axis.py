"""Positions of values on an axis, and its ticks. Pixels count from the axis's low end."""

from __future__ import annotations

import math
from dataclasses import dataclass

TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Axis:
    """
    One axis.

    Args:
        low, high: the values at its ends.
        pixels: its length.
        ticks: (pixels from its low end, text).
        logarithmic: equal distances are equal ratios.
    """

    low: float
    high: float
    pixels: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the pixels from the low end; what is beyond an end is put at it."""
        inside = min(max(value, self.low), self.high)
        if self.logarithmic:
            return self.pixels * math.log(inside / self.low) / math.log(self.high / self.low)
        return self.pixels * (inside - self.low) / (self.high - self.low)


def nice_step(top: float, ticks: int = TICKS) -> float:
    """Return a round distance between ticks, so that about that many reach up to `top`, which is above 0."""
    rough = top / ticks
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(step * magnitude for step in STEPS if step * magnitude >= rough * (1 - 1e-9))


def linear(top: float, pixels: float, tight: bool = False) -> Axis:
    """
    Return an axis from 0 to at least `top`, which is above 0.

    Args:
        top: the highest value.
        pixels: its length.
        tight: whether it ends at `top`; else at the next tick.
    """
    step = nice_step(top)
    count = math.floor(top / step + 1e-9) if tight else math.ceil(top / step - 1e-9)
    end = top if tight else count * step
    digits = _digits(step)
    ticks = tuple((pixels * index * step / end, f"{index * step:.{digits}f}") for index in range(count + 1))
    return Axis(0.0, end, pixels, ticks)


def logarithmic(low: float, high: float, pixels: float) -> Axis:
    """Return an axis that holds both values, which are above 0, and ends at ticks: 1, 2 and 5 of each decade, or 1."""
    marks: tuple[float, ...] = (1, 2, 5) if high / low < 1000 else (1,)
    start = max((m for m in _decades(low, high, marks) if m <= low * (1 + 1e-9)), default=low)
    end = min((m for m in _decades(low, high, marks) if m >= high * (1 - 1e-9) and m > start), default=high)
    values = [mark for mark in _decades(low, high, marks) if start <= mark <= end]
    span = math.log(end / start)
    ticks = tuple((pixels * math.log(value / start) / span, f"{value:.{_digits(value)}f}") for value in values)
    return Axis(start, end, pixels, ticks, logarithmic=True)


def _decades(low: float, high: float, marks: tuple[float, ...]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    # Powers of ten below 1 are made by division: 0.1 is not exactly 10 ** -1 times 1.
    return [mark * 10.0**power for power in range(first, last + 1) for mark in marks]


def _digits(step: float) -> int:
    """Return how many digits after the point show multiples of a step."""
    extra = 1 if round(step * 10 ** -math.floor(math.log10(step) + 1e-9), 6) == 2.5 else 0
    return max(0, -math.floor(math.log10(step) + 1e-9) + extra)
