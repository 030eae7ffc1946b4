"""
Drawn cases for the fuzz tests of text: a fixed number in the test suite, for as long as FLOWLB_FUZZ_S says otherwise.

Each case has a generator of its own, seeded by its number: the number alone says what a failed case was.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

SECONDS = "FLOWLB_FUZZ_S"

# Numbers at and beyond the bounds of types, of every kind that TOML and JSON have, and texts that mean something.
NUMBERS: Sequence[Any] = (0, 1, -1, 65535, 65536, 2**31, 2**32, 2**63, 2**64, 10**400, -(10**30), 0.5, -0.0, 1e308)
TEXTS: Sequence[str] = (
    "", "x", "video", "server1", "10ms", "-1s", "99999999999999999999h", "0", "eth0", "../..", "\0", "\n", "é" * 300,
    "198.18.1.100", "198.18.1.300", "::1", "fe80::1%eth0", "::ffff:1.2.3.4", "0.0.0.0", "2001:db8::1", "maglev",
    "aa:aa:aa:00:00:01", "ff:ff:ff:ff:ff:ff", "tcp", "udp", "active", "🙂", "%00", "true", "null", "x" * 5000,
    "a\u202eb",
)  # fmt: skip


def cases(number: int) -> Iterator[tuple[int, random.Random]]:
    """Yield the number of each case and its generator: `number` of them, or for the seconds that are asked for."""
    seconds = os.environ.get(SECONDS)
    if seconds is None:
        yield from ((case, random.Random(case)) for case in range(number))
        return
    first = random.SystemRandom().getrandbits(40)
    end = time.monotonic() + float(seconds)
    for case in count(first):
        if time.monotonic() >= end:
            print(f"{case - first} cases")
            return
        yield case, random.Random(case)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Draw a value that JSON has."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((None, True, False)),
        lambda: [value(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))},
    ]
    return rng.choice(kinds if depth < 3 else kinds[:3])()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with up to five of them changed, left out, doubled or cut off."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(5):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                made[at:at] = rng.choice((b"\0", b"\n", b"\r\n", b'"', b"]", b"[[", b"{", b"=", b"\xff", b"\xc3"))
            case 2:
                del made[at : at + rng.randrange(1, 20)]
            case 3:
                made[at:at] = made[at : at + rng.randrange(1, 40)]
            case _ if rng.random() < 0.2:
                del made[at:]
    return bytes(made)
