"""
The policy `maglev`: consistent hashing of the 5-tuple (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).

Several balancers with the same servers and seed place every flow alike without talking to each other, and when a
server leaves, hardly any flow of the others moves. Each server fills a table in the order of its own permutation of
all slots: slot j of a server is `(offset + j * skip) mod size`, where, with h the 8 bytes of BLAKE2b (RFC 7693) of the
server's name, big-endian: `offset = (h >> 32) mod size`, `skip = (h mod 2**32) mod (size - 1) + 1`. Servers, sorted by
name, take slots in turn, by weight as in `round-robin`; each takes the next slot of its permutation that is free.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Annotated, ClassVar

from lb.fields.key import option
from lb.fields.types import integer
from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, OptionProblem, ServerView, eligible
from lb.policies.slots import interleave, reduce_weights

# The paper's small table: more than 100 slots for each of 655 servers, so that shares are within 1 %.
DEFAULT_TABLE_SIZE = 65537
MAX_TABLE_SIZE = 2**24

TableSize = Annotated[int, *integer(2, MAX_TABLE_SIZE, "slots")]
TABLE_SIZE = "Size of the hash table, a prime; above 100 slots per server, shares are within 1 %"


@dataclass(frozen=True, slots=True)
class Maglev(BuiltIn):
    """Place flows by a hash of the 5-tuple."""

    name: ClassVar[str] = "maglev"
    table_size: TableSize = option(TABLE_SIZE, default=DEFAULT_TABLE_SIZE)

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan whose slots are the whole table."""
        return Plan("hash-flow", table_slots(servers, self.table_size))

    def problems(self, server_names: Sequence[str]) -> Iterator[OptionProblem]:
        """Yield a problem when the table cannot be filled."""
        yield from table_problems(self.table_size, server_names)


def table_problems(size: int, server_names: Sequence[str]) -> Iterator[OptionProblem]:
    """Yield what is wrong with a table size."""
    if not is_prime(size):
        yield OptionProblem("table_size", f"{size} is not a prime", f"the next one: {next_prime(size)}")
    elif size < len(server_names):
        yield OptionProblem("table_size", f"{size} slots for {len(server_names)} servers", "above 100 per server")


def table_slots(servers: Sequence[ServerView], size: int) -> tuple[int, ...]:
    """
    Return a Maglev table of server ids.

    Args:
        servers: those that take no flows are left out.
        size: slots, a prime.
    """
    candidates = sorted(eligible(servers), key=lambda server: server.name)
    names = tuple(server.name for server in candidates)
    table = fill(names, tuple(reduce_weights([server.weight for server in candidates])), size)
    ids = [server.id for server in candidates]
    return tuple([ids[index] for index in table])


@lru_cache(maxsize=32)
def fill(names: tuple[str, ...], weights: tuple[int, ...], size: int) -> list[int]:
    """
    Fill a table: a pure function, remembered, for a reload or a health check leaves most services as they were.

    The last free slots are hit by few permutations: walking there would take half of all steps. So the last sqrt(size)
    slots are given out the other way round, by computing where in the server's permutation each free slot stands.

    Args:
        names: of the servers, in the order of the round.
        weights: of the servers, each at least 1.
        size: slots, a prime.

    Returns:
        size entries, each an index into names; none when there are no names.
    """
    if not names:
        return []
    places, skips = map(list, zip(*(permutation(name, size) for name in names), strict=True))
    rounds = cycle(interleave(weights))
    table, taken = [0] * size, bytearray(size)
    for index in islice(rounds, size - math.isqrt(size)):
        slot = places[index]
        if taken[slot]:
            skip = skips[index]
            while taken[slot]:
                slot += skip
                if slot >= size:
                    slot -= size
            places[index] = slot
        taken[slot] = 1
        table[slot] = index
    free = [slot for slot in range(size) if not taken[slot]]
    for index in islice(rounds, len(free)):
        inverse, place = pow(skips[index], -1, size), places[index]
        places[index] = min(free, key=lambda slot: (slot - place) * inverse % size)
        free.remove(places[index])
        table[places[index]] = index
    return table


def permutation(name: str, size: int) -> tuple[int, int]:
    """Return (offset, skip) of a server's permutation of the slots."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return (number >> 32) % size, (number & 0xFFFFFFFF) % (size - 1) + 1


def is_prime(number: int) -> bool:
    """Tell whether a number is prime."""
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def next_prime(number: int) -> int:
    """Return the smallest prime from a number on."""
    while not is_prime(number):
        number += 1
    return number
