"""
What fetches add up to: counts, percentiles, shares, fairness. Pure arithmetic on records.

Latencies are of fetches that succeeded; failures are counted beside them, never averaged in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lb.lab.loadgen.records import UNKNOWN_SERVER, Fetch, Playback
from lb.lab.spread import ordered_percentile


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that fetches took."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Group:
    """
    Fetches that belong together: all, one server's, one client's.

    Args:
        fetches, failures: those that succeeded, and those that did not.
        share: of all that succeeded, 0..1.
        latency: from the actual start. response: from the intended start. None: no fetch succeeded.
        received: bytes of bodies.
        bits_per_s: over the whole run.
    """

    name: str
    fetches: int
    failures: int
    share: float
    latency: Latency | None
    response: Latency | None
    received: int
    bits_per_s: float


@dataclass(frozen=True, slots=True)
class Players:
    """
    What all who watched saw together.

    Args:
        players: how many. unseen: those whose picture never moved.
        startup_s: mean, over those that started; None: none did.
        stalls, stalled_s: how often pictures stood still, and for how long, all together.
        stall_share: of the time they should have moved, 0..1.
        bitrate: mean of the chunks in kbit/s.
        switches: of the bitrate, all together.
    """

    players: int
    unseen: int
    startup_s: float | None
    stalls: int
    stalled_s: float
    stall_share: float
    bitrate: float
    switches: int


@dataclass(frozen=True, slots=True)
class Figures:
    """
    A whole run.

    Args:
        total: all fetches. servers, clients: the same fetches, by who sent and by who fetched.
        lag: how late fetches started, failed ones included; None without a fetch.
        errors: how often fetches failed, by reason.
        duration_s: from the first start to the last end.
        rate_hz: fetches that succeeded, per second.
        players: None without adaptive players.
        fairness: Jain's index of the servers' fetches per weight, 0..1; None without a fetch.
    """

    total: Group
    servers: tuple[Group, ...]
    clients: tuple[Group, ...]
    lag: Latency | None
    errors: dict[str, int]
    duration_s: float
    rate_hz: float
    players: Players | None
    fairness: float | None


def figure(
    fetches: Sequence[Fetch], playbacks: Sequence[Playback] = (), target_weights: Mapping[str, float] | None = None
) -> Figures:
    """
    Add up a run.

    Args:
        fetches: all of it, in any order.
        playbacks: of its players.
        target_weights: of servers, by name, also of those that sent nothing; None: those that sent weigh the same.
    """
    duration_s = max((f.ended_s for f in fetches), default=0.0) - min((f.started_s for f in fetches), default=0.0)
    good = [fetch for fetch in fetches if fetch.ok]

    def groups(key: Callable[[Fetch], str], names: Iterable[str] = ()) -> tuple[Group, ...]:
        members: dict[str, list[Fetch]] = defaultdict(list, {name: [] for name in names})
        for fetch in fetches:
            members[key(fetch)].append(fetch)
        return tuple(group(name, members[name], len(good), duration_s) for name in sorted(members, key=natural))

    servers = groups(lambda fetch: fetch.server, target_weights or ())
    return Figures(
        total=group("all", fetches, len(good), duration_s),
        servers=servers,
        clients=groups(lambda fetch: fetch.client),
        lag=latency([max(0.0, fetch.lag_s) for fetch in fetches]),
        errors=dict(Counter(fetch.error for fetch in fetches if not fetch.ok).most_common()),
        duration_s=duration_s,
        rate_hz=len(good) / duration_s if duration_s else 0.0,
        players=watch(playbacks),
        fairness=_fairness(servers, target_weights),
    )


def group(name: str, members: Sequence[Fetch], all_good: int, duration_s: float) -> Group:
    """
    Return the figures of a group of fetches.

    Args:
        name: of the group.
        members: its fetches.
        all_good: fetches of the run that succeeded.
        duration_s: seconds of the run.
    """
    good = [fetch for fetch in members if fetch.ok]
    received = sum(fetch.received for fetch in good)
    return Group(
        name,
        fetches=len(good),
        failures=len(members) - len(good),
        share=len(good) / all_good if all_good else 0.0,
        latency=latency([fetch.duration_s for fetch in good]),
        response=latency([fetch.response_s for fetch in good]),
        received=received,
        bits_per_s=received * 8 / duration_s if duration_s else 0.0,
    )


def latency(values_s: Sequence[float]) -> Latency | None:
    """Sum up durations in seconds, in any order. None: there is none."""
    if not values_s:
        return None
    ordered = sorted(values_s)
    p50_s, p95_s, p99_s = (ordered_percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Latency(sum(ordered) / len(ordered), p50_s, p95_s, p99_s, ordered[-1])


def watch(playbacks: Sequence[Playback]) -> Players | None:
    """Sum up what players saw. None: there was none."""
    if not playbacks:
        return None
    startups = [playback.startup_s for playback in playbacks if playback.startup_s is not None]
    stalled_s = sum(playback.stalled_s for playback in playbacks)
    chunks = [bitrate for playback in playbacks for _, bitrate, _ in playback.points]
    # Video played during the run: the rest of the buffer was never waited for.
    moved_s = sum(
        max(0.0, playback.end_s - playback.start_s - playback.startup_s - playback.stalled_s)
        for playback in playbacks
        if playback.startup_s is not None
    )
    return Players(
        players=len(playbacks),
        unseen=len(playbacks) - len(startups),
        startup_s=sum(startups) / len(startups) if startups else None,
        stalls=sum(len(playback.stalls) for playback in playbacks),
        stalled_s=stalled_s,
        stall_share=stalled_s / (stalled_s + moved_s) if stalled_s else 0.0,
        bitrate=sum(chunks) / len(chunks) if chunks else 0.0,
        switches=sum(playback.switches for playback in playbacks),
    )


def jain(values: Sequence[float]) -> float | None:
    """Return Jain's index (DEC-TR-301): 1 when all are equal, 1/n when one has everything. None: all are 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def _fairness(servers: Sequence[Group], target_weights: Mapping[str, float] | None) -> float | None:
    """Compare what servers sent per weight, without those that should send nothing or are unknown."""
    weights = target_weights or {
        server.name: 1.0 for server in servers if server.fetches and server.name != UNKNOWN_SERVER
    }
    sent = {server.name: server.fetches for server in servers}
    return jain([sent.get(name, 0) / weight for name, weight in weights.items() if weight > 0])


def natural(name: str) -> tuple[str, int, str]:
    """Order names as people do: client2 before client10."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits[:18] or -1), name
