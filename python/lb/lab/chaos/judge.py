"""
What became of the flows of a run of chaos, and why: which of it had to be, and which should not have been.

Pure. What may break: flows that are reset because their server's checks took it out, as it could not be reached for
long enough (rule 19, health: `on_server_down`), and flows that their server gives up by itself, open or half-open.
Nothing else: neither restarts nor crashes, floods or reloads may break a flow or move it, nor take out a server that
can be reached. Nothing excuses silence, for a client whose flow is gone is told so, nor bytes that are not those that
were sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from lb.lab.chaos.schedule import Kind

# Between two looks, at most: while the balancer starts, it does not answer.
LOOK_S = 2.0
# What a client hears when its flow is ended, or when no server takes it.
ENDED = ("connection reset by peer", "broken pipe", "connection refused", "no route to host")
# Flows of a server are reset when it is found down. Who says nothing then speaks again within this, and notices.
NOTICE_S = 1.0
# A RST may be lost, too: who waits for an answer sends again before this is over, and is told then.
TOLD_S = 15.0
# The balancer's log tells it by another clock than the clients'.
CLOCKS_S = 0.05
# So long before its verdict may have begun what kept a server from being reached. Several acts may add up: each hits
# one check, and one more per interval. Three in a row must fail, and clients' failures may stand for one of them.
CHECKS_S, CHECK_INTERVAL_S, FAILED_CHECKS = 5.0, 0.5, 2
UNREACHABLE: frozenset[Kind] = frozenset({"server lost", "server down", "link flap"})
# A host forgets its neighbours with its carrier, and so long after it has asked in vain it asks again: until then
# nobody hears it, although its link is back (ip-sysctl: retrans_time_ms of neighbours).
ASKED_AGAIN_S = 1.0
# RSTs are heard so long after they came, at most: an act may take that long to be done.
HEARD_S = 1.0
# An act explains a stall that begins up to so long after its end: what was lost is sent again later.
ECHO_S = 3.0
FLOWS = ("long", "short", "bulk", "udp")


@dataclass(frozen=True, slots=True)
class Happened:
    """An act as it was: when it really began and ended, seconds from the start; what went wrong with it, if so."""

    kind: Kind
    shown: str
    server: str
    began_s: float
    ended_s: float
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Something that a client noticed.

    Args:
        flow: kind of flow.
        client: its host.
        port: of the client.
        what: `connect` or `exchange`.
        began_s, ended_s: seconds from the start.
        error: why it broke; None: it was late.
        stalled_s: how late; 0 for what broke.
        server: where the flow was, if that is known.
        causes: what happened meanwhile.
        is_due: whether it had to be.
        reset_by: who sent the first RST of it: a server, its client, or `balancer`; empty: nobody was heard.
    """

    flow: str
    client: str
    port: int
    what: str
    began_s: float
    ended_s: float
    error: str | None
    stalled_s: float
    server: str
    causes: tuple[str, ...]
    is_due: bool
    reset_by: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """
    A TCP flow that was at one server, and then at another.

    Args:
        client: its host.
        port: of the client.
        servers: where it was, and where then.
        at_s: when it was first seen there.
        since_s, until_s: since when it had its port, and until when.
        seen: where it was seen meanwhile, as `Observed.placements`.
        causes: what happened between the two looks that show it.
    """

    client: str
    port: int
    servers: tuple[str, str]
    at_s: float
    since_s: float
    until_s: float
    seen: tuple[tuple[float, float, str], ...]
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Down:
    """A server that its checks took out at `at_s`, until `until_s`. `why`: the check that failed last."""

    at_s: float
    why: str
    until_s: float = float("inf")


class Life(NamedTuple):
    """A flow of a client's port: since when it has that, and until when at most."""

    client: str
    port: int
    since_s: float
    until_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Heard:
    """
    A RST of a client's flow, as the router heard it.

    Args:
        at_s: when.
        source, target: hosts, or `balancer`.
        gives_up: whether its host had the connection and ends it, instead of knowing none.
    """

    at_s: float
    source: str
    target: str
    gives_up: bool = False


@dataclass(frozen=True, slots=True)
class GivenUp:
    """How many connections a server's kernel has given up between two looks before they were established."""

    server: str
    since_s: float
    until_s: float
    count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of the flows.

    Args:
        counts: flows and exchanges, by kind.
        broken: what broke that should not have.
        excused: what broke and had to.
        moved: flows that moved.
        stalls: what was late.
        acts: what happened.
        faults: failures of the balancer and its tasks, servers taken out for no reason, clients that said too little.
        downs: by server: when it was down.
        given_up: connections that servers' kernels gave up before they were established.
    """

    counts: Mapping[str, int]
    broken: tuple[Trouble, ...]
    excused: tuple[Trouble, ...]
    moved: tuple[Move, ...]
    stalls: tuple[Trouble, ...]
    acts: tuple[Happened, ...]
    faults: tuple[str, ...] = ()
    downs: Mapping[str, Sequence[Down]] = field(default_factory=dict)
    given_up: Sequence[GivenUp] = ()

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that should not."""
        return not (self.broken or self.moved or self.faults or any(act.trouble for act in self.acts))

    def stalls_by_cause(self) -> dict[str, tuple[int, float, float]]:
        """Return how many stalls each kind of act had, the middle one and the longest, seconds."""
        found: dict[str, list[float]] = {}
        for each in self.stalls:
            for cause in each.causes or ("nothing",):
                found.setdefault(cause, []).append(each.stalled_s)
        return {cause: (len(times), median(times), max(times)) for cause, times in sorted(found.items())}


@dataclass(slots=True)
class Observed:
    """
    What was seen during a run.

    Args:
        statements: of clients, with the name of the client.
        placements: by client and port: since when, until when, and at which server a flow was seen for certain: a look
            takes its time, and shows what was at one moment of it.
        downs: by server: when it was down.
        resets: by client and port: RSTs that were heard, in their order.
        given_up: by servers' kernels.
        acts: what happened.
        faults: of the balancer or of the clients.
    """

    statements: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    placements: dict[tuple[str, int], list[tuple[float, float, str]]] = field(default_factory=dict)
    downs: dict[str, list[Down]] = field(default_factory=dict)
    resets: dict[tuple[str, int], list[Heard]] = field(default_factory=dict)
    given_up: list[GivenUp] = field(default_factory=list)
    acts: list[Happened] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def place(self, asked_s: float, told_s: float, flows: Iterable[tuple[str, int, str]]) -> None:
        """Note where flows are: client, port, server; when that was asked, and when the answer was there."""
        for client, port, server in flows:
            seen = self.placements.setdefault((client, port), [])
            if seen and seen[-1][2] == server and asked_s - seen[-1][1] < LOOK_S:
                seen[-1] = (seen[-1][0], asked_s, server)
            else:
                seen.append((told_s, asked_s, server))

    def places(self, flow: Life) -> list[tuple[float, float, str]]:
        """
        Return where a flow was seen. Another one may have had its port before, and may have it later: from the moment
        on that this one is reset, whether its client speaks then or not.
        """
        place = flow.client, flow.port
        ends = [each.at_s for each in self.resets.get(place, ()) if each.at_s >= flow.since_s]
        until_s = min(flow.until_s, *ends, float("inf"))
        return [each for each in self.placements.get(place, ()) if each[0] <= until_s and each[1] >= flow.since_s]

    def change_health(self, at_s: float, server: str, is_up: bool, why: str) -> None:
        """Note that a server's checks have found it down, or up again."""
        spans = self.downs.setdefault(server, [])
        if spans and spans[-1].until_s == float("inf"):
            spans[-1] = replace(spans[-1], until_s=at_s)
        if not is_up:
            spans.append(Down(at_s, why))


def judge(observed: Observed, start: float) -> Outcome:
    """
    Return what became of the flows.

    Args:
        observed: during the run.
        start: of the run, of the monotonic clock.
    """
    counts: dict[str, int] = {}
    troubles: list[Trouble] = []
    # By client and number, long flows.
    lives: dict[tuple[str, int], Life] = {}
    unclaimed = {each: each.count for each in observed.given_up}
    for client, words in observed.statements:
        if "opened" in words:
            lives[client, words["opened"]] = Life(client, words["port"], words["at"] - start)
        if "closed" in words:
            flow = client, words["closed"]
            lives[flow] = lives[flow]._replace(until_s=words["at"] - start)
        for name, count in words.get("totals", {}).items():
            counts[name] = counts.get(name, 0) + count
        if "flow" in words:
            flow = client, words.get("number")
            opened_s = lives[flow].since_s if flow in lives else words["began"] - start
            troubles.append(_trouble(client, words, observed, start, opened_s, unclaimed))
    broken = [each for each in troubles if each.error is not None]
    return Outcome(
        counts,
        tuple(each for each in broken if not each.is_due),
        tuple(each for each in broken if each.is_due),
        tuple(_moves(observed, lives.values())),
        tuple(each for each in troubles if each.error is None),
        tuple(observed.acts),
        (*observed.faults, *_taken_out(observed), *_silent(counts)),
        observed.downs,
        tuple(observed.given_up),
    )


def _taken_out(observed: Observed) -> Iterable[str]:
    """Yield servers that their checks took out although they could be reached."""
    for server, spans in observed.downs.items():
        acts = [act for act in observed.acts if act.kind in UNREACHABLE and act.server in (server, "")]
        for span in spans:
            if sum(_checks_hit(act, span) for act in acts) < FAILED_CHECKS:
                yield f"{server} was taken out at {span.at_s:.1f} s, and could be reached"


def _silent(counts: Mapping[str, int]) -> Iterable[str]:
    """Yield kinds of flow of which there were none: nothing broke, and nothing was shown."""
    return (f"there was no exchange of kind {flow}" for flow in FLOWS if not counts.get(f"{flow} exchange"))


def _checks_hit(act: Happened, span: Down) -> int:
    """Return how many checks of its server an act can have made fail before the server was found down."""
    ended_s = act.ended_s + (ASKED_AGAIN_S if act.server else 0)
    hit_s = min(ended_s, span.at_s) - max(act.began_s, span.at_s - CHECKS_S)
    return 1 + int(hit_s / CHECK_INTERVAL_S) if hit_s > 0 else 0


def _trouble(
    client: str,
    words: Mapping[str, Any],
    observed: Observed,
    start: float,
    opened_s: float,
    unclaimed: dict[GivenUp, int],
) -> Trouble:
    """
    Return what a client has noticed.

    Args:
        client: its host.
        words: what it says.
        observed: during the run.
        start: of the run, of the monotonic clock.
        opened_s: since when the flow has its port, as far as that is known.
        unclaimed: connections given up that no flow has claimed: it is for the flow to take one.
    """
    began_s, ended_s = words["began"] - start, words["ended"] - start
    seen = observed.places(Life(client, words["port"], opened_s, ended_s))
    server = seen[-1][2] if seen else ""
    heard = observed.resets.get((client, words["port"]), ())
    resets = [each for each in heard if opened_s <= each.at_s <= ended_s + HEARD_S]
    # Datagrams go to another server.
    was_ended = words["flow"] != "udp" and words.get("error") in ENDED
    servers = {each[2] for each in seen}
    is_due = (
        _is_due(observed, server, began_s, ended_s)
        or _is_given_up(resets, servers)
        or _is_given_up_half_open(resets, servers, opened_s, unclaimed)
    )
    return Trouble(
        words["flow"],
        client,
        words["port"],
        words["what"],
        began_s,
        ended_s,
        words.get("error"),
        words.get("stalled_s", 0.0),
        server,
        _causes(observed, began_s, ended_s),
        was_ended and is_due,
        _reset_by(resets, client),
    )


def _causes(observed: Observed, began_s: float, ended_s: float) -> tuple[str, ...]:
    """Return the kinds of act that happened meanwhile, or just before."""
    acts = [act for act in observed.acts if act.began_s < ended_s and act.ended_s + ECHO_S > began_s]
    return tuple(sorted({act.kind for act in acts}))


def _reset_by(resets: Sequence[Heard], client: str) -> str:
    """
    Return who ended a flow, of the RSTs that were heard of it, in their order. A server that was sent one first has not
    ended it by itself: then it was the balancer.
    """
    for each in resets:
        if each.source != "balancer":
            return each.source
        if each.target != client:
            break
    return "balancer" if resets else ""


def _is_given_up(resets: Sequence[Heard], servers: set[str]) -> bool:
    """
    Return whether a flow's server has ended it by itself. One to which a flow has moved has no such connection: what
    it answers says that it knows none. `servers`: at which it was seen.
    """
    return bool(resets) and resets[0].gives_up and servers == {resets[0].source}


def _is_given_up_half_open(
    resets: Sequence[Heard], servers: set[str], opened_s: float, unclaimed: dict[GivenUp, int]
) -> bool:
    """
    Return whether a flow's server has given it up before it had the client's ACK, and says so when that comes: then its
    kernel has counted one more such connection, which is claimed. It gives one up when its SYN+ACK cannot be sent for
    some seconds, as no neighbour answers.
    """
    if not resets or resets[0].gives_up or servers != {resets[0].source}:
        return False
    for each, left in unclaimed.items():
        if left and each.server == resets[0].source and opened_s <= each.until_s and each.since_s <= resets[0].at_s:
            unclaimed[each] -= 1
            return True
    return False


def _is_due(observed: Observed, server: str, began_s: float, ended_s: float) -> bool:
    """Return whether something had to break: its server was found down. `server`: empty: unknown."""
    spans = [span for name, found in observed.downs.items() if server in (name, "") for span in found]
    return any(began_s < span.at_s + NOTICE_S and span.at_s - CLOCKS_S < ended_s < span.at_s + TOLD_S for span in spans)


def _moves(observed: Observed, lives: Iterable[Life]) -> Iterable[Move]:
    """Yield long flows that changed their server: of others a port may be used again."""
    for life in lives:
        seen = observed.places(life)
        for (_, last_s, before), (at_s, _, after) in pairwise(seen):
            if before != after:
                causes = _causes(observed, last_s, at_s)
                client, port, since_s, until_s = life
                yield Move(client, port, (before, after), at_s, since_s, until_s, tuple(seen), causes)
