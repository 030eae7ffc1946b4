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

# Two looks that are not further apart show a flow at one place: while the balancer starts, it does not answer.
GAP_S = 2.0
# What a client hears when its flow is ended, or when no server takes it.
ENDED = ("connection reset by peer", "broken pipe", "connection refused", "no route to host")
# Flows of a server are reset when it is found down. Who says nothing then speaks again within this, and notices.
NOTICE_S = 1.0
# Until the plan without it is published, new flows still go to a server that was found down.
PLACED_S = 0.25
# A RST may be lost, too: who waits for an answer sends again before this is over, and is told then.
TOLD_S = 15.0
# The balancer's log tells it by another clock than the clients'.
CLOCKS_S = 0.05
# So long before its verdict may have begun what kept a server from being reached. Several acts may add up: each hits
# one check, and one more per interval. Three in a row must fail, and clients' failures may stand for one of them.
CHECKS_S, CHECK_INTERVAL_S, FAILED_CHECKS = 5.0, 0.5, 2
# And so long before it the last of it may have ended: a check that began just then takes its time, and clients notice
# when they send again.
LAST_CHECK_S = 2.0
UNREACHABLE: frozenset[Kind] = frozenset({"server lost", "server down", "link flap"})
# A host forgets its neighbours with its carrier, and so long after it has asked in vain it asks again: until then
# nobody hears it, although its link is back (ip-sysctl: retrans_time_ms of neighbours).
ASKED_AGAIN_S = 1.0
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
            if seen and seen[-1][2] == server and asked_s - seen[-1][1] < GAP_S:
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

    def resets_of(self, flow: Life) -> list[Heard]:
        """Return the RSTs of a flow that were heard while it had its port, in their order."""
        heard = self.resets.get((flow.client, flow.port), ())
        return [each for each in heard if flow.since_s <= each.at_s <= flow.until_s + CLOCKS_S]

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
    lives = dict(_lives(observed, start))
    excuses = _Excuses(observed)
    troubles = [
        _trouble(client, words, excuses, start, lives.get((client, words["number"])))
        for client, words in observed.statements
        if "flow" in words
    ]
    broken = [each for each in troubles if each.error is not None]
    counts = _counts(observed)
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


def _lives(observed: Observed, start: float) -> Iterable[tuple[tuple[str, int], Life]]:
    """Yield the long flows, by client and number."""
    ends = {(client, words["closed"]): words["at"] for client, words in observed.statements if "closed" in words}
    for client, words in observed.statements:
        if "opened" in words:
            flow = client, words["opened"]
            yield flow, Life(client, words["port"], words["at"] - start, ends.get(flow, float("inf")) - start)


def _counts(observed: Observed) -> dict[str, int]:
    """Return how many flows and exchanges there were, by kind."""
    counts: dict[str, int] = {}
    for _, words in observed.statements:
        for name, count in words.get("totals", {}).items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _taken_out(observed: Observed) -> Iterable[str]:
    """Yield servers that their checks took out although they could be reached."""
    for server, spans in observed.downs.items():
        acts = [act for act in observed.acts if act.kind in UNREACHABLE and act.server in (server, "")]
        for span in spans:
            last_s = max((_unreachable_until(act) for act in acts if act.began_s < span.at_s), default=float("-inf"))
            hits = sum(_checks_hit(act, span) for act in acts)
            if hits < FAILED_CHECKS or span.at_s - last_s > LAST_CHECK_S:
                yield f"{server} was taken out at {span.at_s:.1f} s, and could be reached"


def _silent(counts: Mapping[str, int]) -> Iterable[str]:
    """Yield kinds of flow of which there were none: nothing broke, and nothing was shown."""
    return (f"there was no exchange of kind {flow}" for flow in FLOWS if not counts.get(f"{flow} exchange"))


def _unreachable_until(act: Happened) -> float:
    """Return until when an act may have kept servers from being reached."""
    return act.ended_s + (ASKED_AGAIN_S if act.server else 0)


def _checks_hit(act: Happened, span: Down) -> int:
    """Return how many checks of its server an act can have made fail before the server was found down."""
    hit_s = min(_unreachable_until(act), span.at_s) - max(act.began_s, span.at_s - CHECKS_S)
    return 1 + int(hit_s / CHECK_INTERVAL_S) if hit_s > 0 else 0


def _trouble(client: str, words: Mapping[str, Any], excuses: _Excuses, start: float, life: Life | None) -> Trouble:
    """Return what a client has noticed. `life`: of its flow, where that is a long one that was opened."""
    began_s, ended_s = words["began"] - start, words["ended"] - start
    flow = Life(client, words["port"], began_s if life is None else life.since_s, ended_s)
    since_s = words["since"] - start
    seen = excuses.observed.places(flow)
    resets = excuses.observed.resets_of(flow)
    error = words.get("error")
    # Datagrams go to another server.
    was_ended = words["flow"] != "udp" and error in ENDED
    return Trouble(
        words["flow"],
        client,
        words["port"],
        words["what"],
        began_s,
        ended_s,
        error,
        words.get("stalled_s", 0.0),
        server=seen[-1][2] if seen else "",
        causes=_causes(excuses.observed, began_s, ended_s),
        is_due=was_ended
        and excuses.has(flow._replace(since_s=since_s), began_s, resets, [each[2] for each in seen], words["heard"]),
        reset_by=_reset_by(resets, client),
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


class _Excuses:
    """
    What excuses the end of a flow.

    Args:
        observed: during the run.
    """

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        # What servers' kernels have given up and no flow has claimed.
        self._unclaimed = {each: each.count for each in observed.given_up}

    def has(self, flow: Life, began_s: float, resets: Sequence[Heard], servers: Sequence[str], heard: bool) -> bool:
        """
        Return whether a flow that was reset or refused had to be.

        Args:
            flow: since its client began to connect, until it noticed.
            began_s: when the client began to wait for what did not come.
            resets: of the flow, in their order.
            servers: at which it was seen, in their order.
            heard: whether its client had heard from its server.
        """
        # Its own RSTs are no news to a client.
        told_by = next((each.source for each in resets if each.target == flow.client), "")
        if self._is_of_a_server_down(flow, began_s, told_by, servers[-1] if servers else ""):
            return True
        # One server, and it ended the flow first: no segment of it came to another.
        if not resets or set(servers) != {resets[0].source} or not self._was_unreachable(flow, resets[0].source):
            return False
        return resets[0].gives_up or (not heard and self._claims(flow, resets[0]))

    def _is_of_a_server_down(self, flow: Life, began_s: float, told_by: str, server: str) -> bool:
        """
        Return whether its server was found down. `server`: empty: unknown; then that of any counts. Another server than
        that does not end it, nor are flows ended that begin later. `told_by`: who sent the client the first RST.
        """
        for name, spans in self.observed.downs.items():
            if server not in (name, "") or told_by not in (name, "balancer", ""):
                continue
            for span in spans:
                waited = began_s < span.at_s + NOTICE_S and flow.since_s <= span.at_s + PLACED_S
                if waited and span.at_s - CLOCKS_S < flow.until_s < span.at_s + TOLD_S:
                    return True
        return False

    def _was_unreachable(self, flow: Life, server: str) -> bool:
        """Return whether an act kept a flow's server from being reached while it lived."""
        acts = (act for act in self.observed.acts if act.kind in UNREACHABLE and act.server in (server, ""))
        return any(act.began_s < flow.until_s and _unreachable_until(act) > flow.since_s for act in acts)

    def _claims(self, flow: Life, reset: Heard) -> bool:
        """
        Return whether a flow's server has given it up before it had the client's ACK, and says so when that comes: then
        its kernel has counted one more such connection, which is claimed. It gives one up when its SYN+ACK cannot be
        sent for some seconds, as no neighbour answers.
        """
        for each, left in self._unclaimed.items():
            if left and each.server == reset.source and each.until_s >= flow.since_s and each.since_s <= reset.at_s:
                self._unclaimed[each] -= 1
                return True
        return False


def _moves(observed: Observed, lives: Iterable[Life]) -> Iterable[Move]:
    """Yield long flows that changed their server: of others a port may be used again."""
    for life in lives:
        seen = observed.places(life)
        for (_, last_s, before), (at_s, _, after) in pairwise(seen):
            if before != after:
                causes = _causes(observed, last_s, at_s)
                client, port, since_s, until_s = life
                yield Move(client, port, (before, after), at_s, since_s, until_s, tuple(seen), causes)
