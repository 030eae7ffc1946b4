"""
Placement: which server gets a new flow, as the service's plan says.

Stage "miss: plan -> server" of the walk (`docs/datapath.md` rule 8, "Selectors"). A plan is a selector and a table of
slots; policies made it, and nothing else of them is known here. What a selector remembers lives in `Placement`: the
counters of `counter`, the state of the random draws, and whom a loop asks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

from lb.backends.asking import Questions, call
from lb.backends.python.asking import LIMIT as ASKED_LIMIT
from lb.backends.python.asking import Asking
from lb.backends.python.counters import Counters
from lb.backends.python.hashing import MASK, flow_hash, source_hash
from lb.backends.python.view import View
from lb.snapshot import Plan, Selector


class Newcomer(NamedTuple):
    """A flow that looks for a server. Addresses: 4 or 16 bytes."""

    service: int
    client: bytes
    client_port: int
    vip: bytes
    vip_port: int
    protocol: int


class SplitMix64:
    """The random draws (Steele, Lea, Flood 2014): small, seeded, the same in every backend."""

    def __init__(self, seed: int) -> None:
        self.state = seed & MASK

    def draw(self) -> int:
        """Return the next 64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        mixed = self.state
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MASK
        return mixed ^ mixed >> 31


class Placement:
    """
    Picks servers.

    Args:
        seed: starts the random draws.
        counters: tells the active flows of each server, gets `ask_fallback`.
    """

    def __init__(self, seed: int, counters: Counters) -> None:
        self.counters = counters
        self.random = SplitMix64(seed)
        self.questions: Questions | None = None
        self.asking = Asking()
        self.turns: defaultdict[int, int] = defaultdict(int)
        self.pickers: dict[Selector, Callable[[View, Plan, Newcomer], int | None]] = {
            "counter": self.by_turn,
            "random": self.by_chance,
            "hash-source": self.by_source,
            "hash-flow": self.by_flow,
            "least": self.least,
            "two-choices": self.better_of_two,
            "ask": self.ask,
        }

    def select(self, view: View, plan: Plan, flow: Newcomer) -> int | None:
        """
        Pick a server.

        Args:
            view: the servers.
            plan: of the flow's service.
            flow: the newcomer.

        Returns:
            A server id; None when no server is available, or the packet has to wait for an answer (`asking.wait`).
        """
        if not plan.slots:
            return None
        server = self.pickers[plan.selector](view, plan, flow)
        return server if server in view.servers else None

    def by_turn(self, _view: View, plan: Plan, flow: Newcomer) -> int:
        """Pick the next slot."""
        turn = self.turns[flow.service]
        self.turns[flow.service] = (turn + 1) & MASK
        return plan.slots[turn % len(plan.slots)]

    def by_chance(self, _view: View, plan: Plan, _flow: Newcomer) -> int:
        """Pick a random slot."""
        return plan.slots[self.random.draw() % len(plan.slots)]

    def by_source(self, view: View, plan: Plan, flow: Newcomer) -> int:
        """Pick the slot of the client's address."""
        return plan.slots[source_hash(view.snapshot.seed, flow.client) % len(plan.slots)]

    def by_flow(self, view: View, plan: Plan, flow: Newcomer) -> int:
        """Pick the slot of the 5-tuple."""
        number = flow_hash(view.snapshot.seed, flow.client, flow.vip, flow.client_port, flow.vip_port, flow.protocol)
        return plan.slots[number % len(plan.slots)]

    def least(self, view: View, plan: Plan, _flow: Newcomer) -> int:
        """Pick the server with the fewest active flows per weight; the first slot of equals."""
        best = plan.slots[0]
        for slot in plan.slots[1:]:
            # active / weight, multiplied crosswise: exact where division would round.
            if self.active(slot) * weight(view, best) < self.active(best) * weight(view, slot):
                best = slot
        return best

    def better_of_two(self, _view: View, plan: Plan, _flow: Newcomer) -> int:
        """Pick the cheaper of two different random slots; the first of equals."""
        count = len(plan.slots)
        first = self.random.draw() % count
        second = (first + 1 + self.random.draw() % max(count - 1, 1)) % count
        return plan.slots[second if self.cost(plan, second) < self.cost(plan, first) else first]

    def cost(self, plan: Plan, index: int) -> int:
        """Return what one more flow on a slot costs."""
        score = plan.scores[index] if plan.scores else 1
        return (self.active(plan.slots[index]) + 1) * score

    def ask(self, view: View, plan: Plan, flow: Newcomer) -> int | None:
        """Ask the user's policy; without a usable answer the fall-back plan decides."""
        slots: dict[str, int] = {}
        names: list[str] = []
        for slot in plan.slots:
            server = view.servers.get(slot)
            names.append(server.name if server else "")
            slots.setdefault(names[-1], slot)
        answer = self.answer(view, plan, flow, names)
        if self.asking.wait is not None:
            return None
        if answer is not None and answer in slots:
            return slots[answer]
        self.counters.event("ask_fallback")
        return None if plan.fallback is None else self.select(view, plan.fallback, flow)

    def answer(self, view: View, plan: Plan, flow: Newcomer, names: list[str]) -> str | None:
        """
        Ask the user's function: here and now offline, through `questions` while a loop runs. Then the packet waits, if
        `asking.wait` is set.
        """
        if view.snapshot.ask is None:
            return None
        service, client = view.services[flow.service].name, str(ip_address(flow.client))
        question = (view.snapshot.ask, service, client, flow.client_port, names)
        if self.questions is None:
            return call(*question)
        asking, asked = self.asking, (flow.service, flow.client, flow.client_port)
        if (answered := asking.take_answered(asked)) is not None:
            return answered[0]
        if not asking.may_wait or len(asking.held) >= ASKED_LIMIT:
            return None
        if (first := asking.first(asked)) is not None:
            asking.wait = first.ticket, first.due_ns
            return None
        due_ns = time.monotonic_ns() + plan.deadline_ns
        asking.tickets += 1
        if self.questions.post(asking.tickets, question, due_ns):
            asking.wait = asking.tickets, due_ns
        return None

    def active(self, server: int) -> int:
        """Return the active flows of a server."""
        return self.counters.servers[server].flows_active


def weight(view: View, server: int) -> int:
    """Return the weight of a server for comparisons: 0 counts as 1."""
    found = view.servers.get(server)
    return found.weight or 1 if found else 1
