"""Ids of services, servers and endpoints: positions in the tables of a snapshot, stable across generations."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


@dataclass
class Ids:
    """
    Gives each key a unique number, the same one every time. A released number is given to another key, the smallest
    first, so that tables stay short. `free`: a heap of the numbers below `size` that no key has; `fresh`: the keys that
    got a number since `settle`.
    """

    numbers: dict[Hashable, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    size: int = 0
    fresh: list[Hashable] = field(default_factory=list)

    def of(self, key: Hashable) -> int:
        """Return the number of a key."""
        number = self.numbers.get(key)
        if number is None:
            number = heapq.heappop(self.free) if self.free else self.size
            self.numbers[key] = number
            self.size = max(self.size, number + 1)
            self.fresh.append(key)
        return number

    def settle(self) -> None:
        """Keep the numbers that were given so far."""
        self.fresh.clear()

    def undo(self) -> None:
        """Release the numbers that were given since `settle`."""
        if self.fresh:
            gone = frozenset(self.fresh)
            self.keep(lambda key, _: key not in gone)
            self.fresh.clear()

    def keep(self, is_kept: Callable[[Hashable, int], bool]) -> None:
        """Release the numbers of all keys but those that are kept."""
        self.numbers = {key: number for key, number in self.numbers.items() if is_kept(key, number)}
        self.size = max(self.numbers.values(), default=-1) + 1
        self.free = sorted(set(range(self.size)) - set(self.numbers.values()))

    def __len__(self) -> int:
        return self.size
