"""
The policy `adaptive`: two choices, by what the servers are seen to do. No agents: the data path sees both directions.

What a typical answer would take at a server that has nothing else to do: the service's average bytes per answer, times
the server's time per byte, over the flows that shared it meanwhile; and on top the time to its first byte, smoothed so
that it rises at once when a server stalls (as in Finagle's balancer). A server's *quality* is the shortest such time of
all over its own. Little is believed of a server that has shown little lately: without evidence its quality is 1, so
that one which was avoided is tried again half a minute later.

Quality counts like weight: it makes a server less likely to be drawn, and each flow on it dearer. It cannot be had by
failing fast: quick answers of few bytes make a low rate, and a server most of whose flows fail gets none, while there
are others, until that is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar

from lb.fields.key import option
from lb.fields.types import PlanInterval
from lb.model.snapshot import Plan
from lb.policies.base import BuiltIn, Measurements, ServerView, eligible
from lb.policies.slots import reduce_weights
from lb.policies.two_choices import UNIT

INTERVAL_NS = 200_000_000
# A server of the smallest weight and the best quality has this many slots.
SLOTS = 16
# Beyond these, slots are scaled down to about as many, each server to at least one: a share is then off by at most half
# a slot, 1 / 8192 of all. Services of more than 512 servers have 8 times as many slots as servers instead.
MAX_SLOTS = 4096
SLOTS_EACH = 8
# Qualities are steps of a fourth of an octave: what changes by less changes no plan.
STEPS_PER_OCTAVE = 4
# Servers this near to the best are as good: differences below are mostly chance.
AS_GOOD = 0.7
WORST = 1 / 64
# One answer, or a quarter of a second of waiting for one, is one piece of evidence.
EVIDENCE_PER_S = 4
# More failures than this part of a server's flows: it gets none.
FAILING = 0.5


@dataclass(frozen=True, slots=True)
class Adaptive(BuiltIn):
    """Place flows where they will be done first."""

    name: ClassVar[str] = "adaptive"
    interval: PlanInterval = option("Time from one look at the measurements to the next", default=INTERVAL_NS)

    @property
    def interval_ns(self) -> int | None:
        """How often it plans anew."""
        return self.interval

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Measurements) -> Plan:
        """Return a plan that draws by weight and quality, and compares active flows per both."""
        candidates = eligible(servers)
        sound = [server for server in candidates if not is_failing(measurements.get(server.name, {}))] or candidates
        quality = dict(zip((server.id for server in sound), qualities(sound, measurements), strict=True))
        if all(value == 1 for value in quality.values()) and len({server.weight for server in sound}) <= 1:
            return Plan("two-choices", tuple(server.id for server in sound))
        divisor = math.gcd(*(server.weight for server in sound))
        worth = {server.id: server.weight // divisor * quality[server.id] for server in sound}
        counts = slot_counts(list(worth.values()))
        # Both slots are drawn: their order means nothing, and interleaving them would cost more than all the rest.
        slots = tuple(chain.from_iterable(map(repeat, worth, counts)))
        scores = {server: round(UNIT / value) for server, value in worth.items()}
        return Plan("two-choices", slots, tuple(scores[slot] for slot in slots))


def slot_counts(worths: Sequence[float]) -> list[int]:
    """Return how many slots servers of these worths have, in proportion, each at least one; see MAX_SLOTS."""
    most = max(MAX_SLOTS, SLOTS_EACH * len(worths))
    scale = min(SLOTS, most / sum(worths))
    return reduce_weights([max(1, round(scale * worth)) for worth in worths])


def is_failing(measures: Mapping[str, float]) -> bool:
    """Tell whether most of a server's flows failed lately; a single one is no proof."""
    return measures.get("recent_failures", 0) > FAILING * (measures.get("recent_flows", 0) + 1)


def qualities(servers: Sequence[ServerView], measurements: Measurements) -> Iterator[float]:
    """Yield the quality of each server: 1 for the best and those as good, down to WORST, in steps."""
    measured = [measurements.get(server.name, {}) for server in servers]
    answers = sum(measures.get("recent_answers", 0) for measures in measured)
    size = sum(measures.get("recent_bytes", 0) for measures in measured) / max(answers, 1)
    times = [answer_s(measures, size) for measures in measured]
    known = [time_s for time_s, measures in zip(times, measured, strict=True) if evidence(measures) >= 1]
    best = min(known, default=0)
    for time_s, measures in zip(times, measured, strict=True):
        seen = best / time_s if time_s > 0 else 1
        belief = evidence(measures) / (evidence(measures) + 1)
        yield stepped(min(1, seen) * belief + (1 - belief))


def answer_s(measures: Mapping[str, float], size: float) -> float:
    """Return what an answer of `size` bytes takes at a server, alone, in seconds; infinite when it delivers nothing."""
    sent = measures.get("recent_bytes", 0)
    if not sent:
        return math.inf
    shared = max(1, measures.get("recent_active", 0) / max(measures.get("recent_requests", 0), 1e-9))
    deliver_s = size * measures.get("recent_answer_s", 0) / sent / shared
    return deliver_s + max(measures.get("first_byte_peak_ns", 0), measures.get("stalled_ns", 0)) / 1e9


def evidence(measures: Mapping[str, float]) -> float:
    """Return how much a server has shown lately."""
    waited_s = measures.get("recent_answer_s", 0) + measures.get("stalled_ns", 0) / 1e9
    return measures.get("recent_answers", 0) + EVIDENCE_PER_S * waited_s


def stepped(quality: float) -> float:
    """Return the nearest step; 1 for what is as good."""
    if quality >= AS_GOOD:
        return 1
    step = round(math.log2(max(quality, WORST)) * STEPS_PER_OCTAVE)
    return float(2 ** (step / STEPS_PER_OCTAVE))
