"""
What happens in a run of chaos, and when: drawn from a seed, the same each time.

There are two lanes, one for the network and one for the balancer. Acts of one lane follow each other, those of the two
overlap. Each kind comes about as often as any other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

# Before the first act, and after the last one, seconds.
WARM_UP_S, COOL_DOWN_S = 3.0, 12.0
# Between two acts of a lane.
GAP_S = (0.3, 2.5)

Kind: TypeAlias = Literal[
    "server lost",
    "server down",
    "link flap",
    "mtu lowered",
    "neighbour changed",
    "flood",
    "drain",
    "weight",
    "remove and add",
    "reload",
    "broken reload",
    "restart",
    "take-over",
    "kill",
    "pause",
]
# How long each lasts, seconds: drawn between these. A server is lost for less than its checks need to find it down, and
# is down for longer; what restarts has its own time.
LANES: Mapping[str, Mapping[Kind, tuple[float, float]]] = {
    "network": {
        "server lost": (0.2, 0.8),
        "server down": (4.0, 6.0),
        "link flap": (0.05, 0.4),
        "mtu lowered": (1.0, 4.0),
        "neighbour changed": (1.0, 4.0),
        "flood": (1.0, 2.0),
    },
    "balancer": {
        "drain": (1.0, 3.0),
        "weight": (1.0, 3.0),
        "remove and add": (1.0, 3.0),
        "reload": (0.5, 1.0),
        "broken reload": (0.5, 1.0),
        "restart": (1.5, 3.0),
        "take-over": (1.5, 3.0),
        "kill": (1.5, 3.0),
        "pause": (0.2, 0.2),
    },
}
# Those that need flows to outlive the process.
RESTARTS: frozenset[Kind] = frozenset({"restart", "take-over", "kill"})
FLOODS = ("syn", "ack", "rst", "udp", "first-fragment", "later-fragment", "icmp-echo", "icmp-error")


@dataclass(frozen=True, slots=True)
class Act:
    """
    One thing that happens.

    Args:
        at_s: when it begins, seconds from the start of the run.
        seconds: how long it lasts.
        kind: what it is.
        server: the one that it happens to, if it is about one.
        detail: what else was drawn: a weight, a kind of flood.
    """

    at_s: float
    seconds: float
    kind: Kind
    server: str
    detail: str = ""

    @property
    def end_s(self) -> float:
        """When it ends."""
        return self.at_s + self.seconds

    def shown(self) -> str:
        """Return it for people."""
        more = " ".join(filter(None, (self.server, self.detail)))
        return f"{self.kind} ({more})" if more else self.kind


SERVERLESS: frozenset[Kind] = frozenset(
    {"link flap", "flood", "reload", "broken reload", "restart", "take-over", "kill", "pause"}
)


def make(
    seed: int, duration_s: float, servers: Sequence[str], without: frozenset[Kind] = frozenset()
) -> tuple[Act, ...]:
    """
    Return the acts of a run, in order of their beginning.

    Args:
        seed: what is drawn is the same for the same seed, duration and servers.
        duration_s: of the run.
        servers: their names.
        without: kinds to leave out.
    """
    acts = [
        act
        for number, lane in enumerate(LANES.values())
        for act in _lane(random.Random(f"{seed}/{number}"), duration_s, servers, lane, without)
    ]
    return tuple(sorted(acts, key=lambda act: act.at_s))


def _lane(
    draw: random.Random,
    duration_s: float,
    servers: Sequence[str],
    lane: Mapping[Kind, tuple[float, float]],
    without: frozenset[Kind],
) -> Iterator[Act]:
    at_s, deck = WARM_UP_S, list[Kind]()
    kinds = [kind for kind in lane if kind not in without]
    while kinds:
        if not deck:
            deck = draw.sample(kinds, len(kinds))
        kind = deck.pop()
        at_s += draw.uniform(*GAP_S)
        seconds = draw.uniform(*lane[kind])
        server, detail = draw.choice(servers), _detail(draw, kind)
        if at_s + seconds > duration_s - COOL_DOWN_S:
            return
        yield Act(round(at_s, 3), round(seconds, 3), kind, "" if kind in SERVERLESS else server, detail)
        at_s += seconds


def _detail(draw: random.Random, kind: Kind) -> str:
    number, flood = draw.randint(0, 5), draw.choice(FLOODS)
    return {"weight": str(number), "flood": flood}.get(kind, "")
