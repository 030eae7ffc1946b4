"""
Checking a policy: does it do what every policy must, and how well does it share?

    from lb.testing import check_policy

    def test_my_policy() -> None:
        check_policy("./mine.py:MyPolicy", options={"prefix": 24}, share_error=0.1, remapping=0.03)

`lb policy check ./mine.py:MyPolicy` does the same from a shell. No packets, no root: flows are placed by the rules
that every backend follows (`docs/rules.md` rule 8, flows), with a fixed seed, so a check has the same result every
time.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lb.backends.python.counters import Counters
from lb.backends.python.forwarding_state import ForwardingState
from lb.backends.python.picker import Fit, NewFlow, Picker
from lb.config import ServiceConfig
from lb.config.parts import part_of
from lb.model.snapshot import EMPTY, HASH_SELECTORS, Plan, Server, Service, Snapshot
from lb.policies import Measurements, Policy, ServerView, UserPolicy, eligible, make
from lb.policies.registry import wrap

FLOWS = 10_000
SERVERS = 10
# Three sigma of 1 000 flows per server that fall by chance are 9 %.
SHARE_ERROR = 0.15
REMAPPING = 0.03
SERVICE = "video"
VIP, VIP_PORT = IPv4Address("198.18.1.100"), 9876
FIRST_SERVER = IPv4Address("198.19.0.1")
TCP = 6

Subject: TypeAlias = str | type[object] | Policy | object


class Placed(NamedTuple):
    """Where flows went: a server id each, None where there was no server; `fallbacks`: flows that `choose` left."""

    servers: list[int | None]
    fallbacks: int


@dataclass(slots=True)
class Report:
    """
    What a check found.

    Args:
        selector: of the plan. share_error: largest relative error of a server's share, equal servers.
        weighted_share_error: the same, weights 5, 3 and 2.
        remapping: one of the servers leaves, all flows arrive again: the part of the others' flows that go elsewhere.
        plan_s, choose_s: seconds that one call takes, the median; None when there is no such method.
        problems: what is wrong, one line each; empty: the policy passed.
    """

    selector: str = ""
    share_error: float = 0.0
    weighted_share_error: float = 0.0
    remapping: float = 0.0
    plan_s: float | None = None
    choose_s: float | None = None
    problems: list[str] = field(default_factory=list)


def check_policy(policy: Subject, **arguments: Any) -> Report:
    """
    Check a policy; arguments and result as of `examine`.

    Raises:
        AssertionError: it failed; says in what.
        PolicyError: it cannot be loaded.
    """
    report = examine(policy, **arguments)
    if report.problems:
        raise AssertionError("the policy failed:\n" + "\n".join(f"- {problem}" for problem in report.problems))
    return report


def examine(
    policy: Subject,
    *,
    options: Mapping[str, Any] | None = None,
    base: Path = Path(),
    servers: int = SERVERS,
    flows: int = FLOWS,
    share_error: float | None = SHARE_ERROR,
    remapping: float | None = None,
    measurements: Measurements | None = None,
) -> Report:
    """
    Look whether a policy

    - only ever places flows on servers that take them: not drained, disabled or down, and of a weight above 0; and
      always on one when there is one;
    - places the same flows alike, whenever it is asked;
    - shares flows by weight;
    - moves few flows when a server leaves (what places by a hash only, unless `remapping` is given);
    - neither raises, nor returns nonsense, nor takes longer than its deadline.

    Args:
        policy: the name of a policy, `FILE.py:CLASS`, a class, or an object (a copy of which is used each time).
        options: as in a configuration.
        base: the folder that a relative FILE starts from.
        servers: how many there are, at least 3.
        flows: number of new flows, each from another client.
        share_error: the largest relative error allowed in the share of one of `servers` equal servers; None: any.
        remapping: the part of flows that may move needlessly; None: 3 % for hashes, any for others.
        measurements: what `plan` is given, by server name: `server0`, `server1`, ...; default: nothing.

    Raises:
        PolicyError: the policy cannot be loaded.
    """
    return _Examination(policy, options or {}, base, measurements or {}, flows, servers).run(share_error, remapping)


@dataclass
class _Examination:
    policy: Subject
    options: Mapping[str, Any]
    base: Path
    measurements: Measurements
    flows: int
    count: int
    report: Report = field(default_factory=Report)

    def run(self, share_error: float | None, remapping: float | None) -> Report:
        """Do everything; return the report."""
        few = max(100, self.flows // 20)
        for name, views in situations(self.count).items():
            self._check_allowed(name, views, self.place(name, views, few))
        equal, weighted = named([1] * self.count), named([5, 3, 2])
        placed = self.place("equal servers", equal, self.flows)
        if placed != self.place("equal servers", equal, self.flows):
            self._problem("it places the same flows otherwise when asked again")
        self.report.share_error = share_error_of(placed.servers, equal)
        again = self.place("weights 5, 3, 2", weighted, self.flows)
        self.report.weighted_share_error = share_error_of(again.servers, weighted)
        gone = self.count // 2
        self.report.remapping = moved(placed, self.place("one left", named([1] * self.count, gone), self.flows), gone)
        self._judge(share_error, remapping)
        return self.report

    def place(self, situation: str, views: list[ServerView], flows: int) -> Placed:
        """Let flows arrive at a policy that was made just now."""
        policy = self._make()
        start = time.perf_counter()
        plan = policy.plan(SERVICE, views, self.measurements)
        self.report.plan_s = time.perf_counter() - start
        self.report.selector = plan.selector
        placed, took = place(policy, plan, views, flows)
        if took and plan.selector == "ask":
            self.report.choose_s = statistics.median(took)
        if isinstance(policy, UserPolicy) and policy.failures.last is not None:
            self._problem(f"{situation}: {policy.failures.last}")
        return placed

    def _make(self) -> Policy:
        if isinstance(self.policy, str):
            return make(self.policy, self.options, self.base)
        if isinstance(self.policy, type):
            return wrap(self.policy, self.options)
        return wrap(copy.deepcopy(self.policy), self.options)

    def _check_allowed(self, situation: str, views: list[ServerView], placed: Placed) -> None:
        allowed = {server.id for server in eligible(views)}
        used = Counter(placed.servers)
        for server, count in used.items():
            if server is None and allowed:
                self._problem(f"{situation}: {count} flows found no server, though {len(allowed)} take flows")
            elif server is not None and server not in allowed:
                self._problem(f"{situation}: {count} flows went to {views[server].name}, which takes none")
        if placed.fallbacks:
            self._problem(f"{situation}: choose left {placed.fallbacks} flows to the fall-back policy")

    def _judge(self, share_error: float | None, remapping: float | None) -> None:
        report = self.report
        if share_error is not None and report.share_error > share_error:
            self._problem(f"shares are off by up to {report.share_error:.1%}, more than {share_error:.1%}")
        if remapping is None and report.selector in HASH_SELECTORS:
            remapping = REMAPPING
        if remapping is not None and report.remapping > remapping:
            self._problem(f"{report.remapping:.1%} of flows move needlessly when a server leaves, not {remapping:.1%}")
        policy = self._make()
        if report.choose_s is not None and isinstance(policy, UserPolicy):
            deadline_s = policy.settings.deadline / 1e9
            if report.choose_s > deadline_s:
                self._problem(f"choose takes {report.choose_s * 1000:.1f} ms, its deadline is {deadline_s * 1000:g} ms")

    def _problem(self, words: str) -> None:
        if words not in self.report.problems:
            self.report.problems.append(words)


def named(weights: Sequence[int], gone: int | None = None) -> list[ServerView]:
    """Make servers `server0`, `server1`, ...; the one numbered `gone` has left."""
    views = [ServerView(number, f"server{number}", weight) for number, weight in enumerate(weights)]
    return [view for view in views if view.id != gone]


def situations(count: int) -> dict[str, list[ServerView]]:
    """Return lists of servers in which some take no flows, by what is the matter with them."""
    whole = named([1] * (count - 1))
    number, name = count - 1, f"server{count - 1}"
    return {
        "one drained": [*whole, ServerView(number, name, 1, "draining")],
        "one disabled": [*whole, ServerView(number, name, 1, "disabled")],
        "one down": [*whole, ServerView(number, name, 1, "active", "down")],
        "one of weight 0": [*whole, ServerView(number, name, 0)],
        "all drained": [ServerView(n, f"server{n}", 1, "draining") for n in range(count)],
        "all but one down": [ServerView(n, f"server{n}", 1, "active", "down" if n else "up") for n in range(count)],
        "no server": [],
    }


def place(policy: Policy, plan: Plan, views: Sequence[ServerView], flows: int) -> tuple[Placed, list[float]]:
    """Place flows one after the other, all of which stay; return where they went, and the seconds each took."""
    counters, forwarding = Counters(), ForwardingState(_snapshot(policy, plan, views))
    picker = Picker(1, counters)
    placed: list[int | None] = []
    took = []
    for number in range(flows):
        # Spread over 10.0.0.0/8, so that clients differ in all bytes but the first.
        client = (10 << 24 | number * 2654435761 % 2**24).to_bytes(4, "big")
        new_flow = NewFlow(0, client, 1024 + number * 40503 % 60000, VIP.packed, VIP_PORT, TCP)
        start = time.perf_counter()
        server = picker.select(forwarding, plan, new_flow, _takes_any).server
        took.append(time.perf_counter() - start)
        if server is not None:
            counters.servers[server].flows_active += 1
        placed.append(server)
    return Placed(placed, counters.events["ask_fallback"]), took


def _takes_any(_server: int) -> Fit:
    """Tell that a server takes a flow: each new flow here is another client."""
    return Fit()


def _snapshot(policy: Policy, plan: Plan, views: Sequence[ServerView]) -> Snapshot:
    highest = max((view.id for view in views), default=-1)
    servers: list[Server | None] = [None] * (highest + 1)
    for view in views:
        servers[view.id] = Server(view.name, 0, view.id, FIRST_SERVER + view.id, 8000, view.weight)
    ask = policy.picker(SERVICE, views) if isinstance(policy, UserPolicy) and policy.asks else None
    listening = ServiceConfig.model_construct(address=VIP, port=VIP_PORT, protocol="tcp")
    service = part_of(Service, listening, name=SERVICE, plan=plan)
    return replace(EMPTY, generation=1, seed=1, services=(service,), servers=tuple(servers), ask=ask)


def share_error_of(placed: Sequence[int | None], views: Sequence[ServerView]) -> float:
    """Return the largest relative error of a server's share."""
    counts, total = Counter(placed), sum(view.weight for view in views)
    return max(abs(counts[view.id] * total / (view.weight * len(placed)) - 1) for view in views)


def moved(before: Placed, after: Placed, gone: int) -> float:
    """Return the part of flows, of those that were not on the server that left, that go elsewhere now."""
    stayed = [(old, new) for old, new in zip(before.servers, after.servers, strict=True) if old != gone]
    return sum(old != new for old, new in stayed) / max(1, len(stayed))
