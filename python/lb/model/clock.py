"""
The clocks a balancer can be driven by. Time is an argument of the data path; this is where callers get it from.

Only monotonic time is ever read, so that a jump of the wall clock changes nothing (rule 1.1, monotonic time).
"""

from __future__ import annotations

import time
from typing import Protocol

MAX_NS = 2**64 - 1
NS_PER_S = 10**9


class Clock(Protocol):
    """Gives the time that a data path works with."""

    def now_ns(self) -> int:
        """Return monotonic nanoseconds."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        """Return the machine's monotonic nanoseconds."""
        return time.monotonic_ns()


class ManualClock:
    """A clock that stands still until it is told to advance. `start_ns`: where it starts."""

    def __init__(self, start_ns: int = 0) -> None:
        if start_ns < 0:
            raise ValueError(f"start_ns: {start_ns} is negative")
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the nanoseconds it was advanced to."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """
        Let time pass.

        Args:
            seconds: at least 0; resolved to nanoseconds.

        Raises:
            ValueError: negative, infinite or no number: time does not run backwards; or beyond the last nanosecond
            that fits 64 bits, some 584 years.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds: {seconds} is not a time that can pass (0 or more)")
        now_ns = self._now_ns + round(seconds * NS_PER_S)
        if now_ns > MAX_NS:
            raise ValueError(f"seconds: {seconds} is more than a clock of 64 bits of nanoseconds holds")
        self._now_ns = now_ns

    def advance_to(self, now_ns: int) -> None:
        """Move to a time in nanoseconds; one that has passed already changes nothing."""
        self._now_ns = max(self._now_ns, now_ns)

    def __repr__(self) -> str:
        return f"ManualClock({self._now_ns})"
