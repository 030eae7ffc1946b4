"""
Who comes when: the order of the contestants in each turn, from a seed. Pure.

A fixed order would let the same contestant always follow the same one, and meet the machine as that left it. The rows
are those of a Williams design (E. J. Williams, 1949: experimental designs balanced for residual effects): over as
many turns as there are contestants (twice as many when their number is odd) each is at each place, and follows each
other, equally often. Which contestant is which letter is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def draw_seed() -> int:
    """Return a seed that people can type."""
    return random.SystemRandom().randrange(1, 1_000_000)


def orders(names: Sequence[str], turns: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """
    Return the order of each turn.

    Args:
        names: contestants, each once.
        turns: how many, at least 0.
        seed: the same seed gives the same orders.
    """
    letters = list(names)
    random.Random(seed).shuffle(letters)
    count = len(letters)
    # 0, 1, n-1, 2, n-2, ...: no two neighbours of a row differ as two others do.
    first = [(step + 1) // 2 if step % 2 else -(step // 2) for step in range(count)]
    rows = []
    for turn in range(turns):
        places = [letters[(place + turn // (1 + count % 2)) % count] for place in first] if count else []
        # For an odd number the second square is the mirror of the first.
        rows.append(tuple(reversed(places) if count % 2 and turn % 2 else places))
    return tuple(rows)
