"""
The picker: gives a new flow its server, as the service's plan says.

Stage "miss: plan -> server" of the walk (`docs/rules.md` rule 8.19, selectors). A plan is a selector and a table of
slots, made by a policy. `Picker` keeps what selectors remember: the rounds of `counter` and `least`, the random draws,
the held packets of `ask`. A server that is not eligible for the flow is passed over (rule 8.16, placement).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple, TypeAlias

from lb.backends.callbacks import CallbackChannel, call
from lb.backends.python.counters import Counters
from lb.backends.python.entry import Entry
from lb.backends.python.forwarding_state import ForwardingState
from lb.backends.python.held import LIMIT as HELD_LIMIT
from lb.backends.python.held import HeldPackets
from lb.model.snapshot import Plan, Selector
from lb.packet import udp
from lb.packet.hashing import MASK, flow_hash, source_hash

# Slots tried in order before the plan's servers are tried one by one, and servers tried for one flow.
MOST_SLOTS = 1024
MOST_TRIED = 1024
# How far a server of weight 1 moves back in the round when `least` picks it; one of weight w moves ROUND // w.
ROUND = 1 << 40


class NewFlow(NamedTuple):
    """A flow that needs a server. Addresses: 4 or 16 bytes. `opens`: its packet opens a TCP connection."""

    service: int
    client: bytes
    client_port: int
    vip: bytes
    vip_port: int
    protocol: int
    opens: bool = False


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


class Fit(NamedTuple):
    """
    Whether a server is eligible for a flow. `refused`: the drop reason if not. `dead`: the entry of a flow that is
    over, to be removed first.
    """

    refused: str | None = None
    dead: Entry | None = None


class Choice(NamedTuple):
    """
    The result of a placement: a server, with the entry to be removed first; or none, with the first server that was
    refused and its drop reason, if there was one.
    """

    server: int | None = None
    dead: Entry | None = None
    refused: tuple[int, str] | None = None


class Attempt:
    """
    One placement in progress.

    Args:
        forwarding: has the servers.
        flow: the new flow.
        fit: tells whether a server is eligible.
    """

    def __init__(self, forwarding: ForwardingState, flow: NewFlow, fit: Callable[[int], Fit]) -> None:
        self.forwarding = forwarding
        self.flow = flow
        self.fit = fit
        # Drop reason by refused server, in the order tried.
        self.tried: dict[int, str] = {}
        self.dead: Entry | None = None

    def takes(self, server: int) -> bool:
        """Tell whether a server is eligible for the flow; remember the reason if not."""
        if server in self.tried or not self.forwarding.is_candidate(self.flow.service, server):
            return False
        refused, dead = self.fit(server)
        if refused is None:
            self.dead = dead
            return True
        self.tried[server] = refused
        return False

    def servers(self, plan: Plan) -> list[int]:
        """Return the servers that a plan names, each once, in the order of their first slots."""
        return self.forwarding.candidates(self.flow.service, plan)

    def from_slot(self, plan: Plan, slot: int) -> tuple[int | None, int]:
        """Return the first eligible server from a slot on, and the number of slots passed over."""
        if self.takes(plan.slots[slot]):
            return plan.slots[slot], 0
        servers = self.servers(plan)
        left = set(servers) - self.tried.keys()
        for passed, server in self.following(plan, slot, servers):
            if not left or len(self.tried) >= MOST_TRIED:
                break
            if self.takes(server):
                return server, passed
            left.discard(server)
        return None, 0

    def following(self, plan: Plan, slot: int, servers: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the slots after one, wrapping around, each with its distance; then all servers of the plan."""
        slots = plan.slots
        for passed in range(1, min(len(slots), MOST_SLOTS)):
            yield passed, slots[(slot + passed) % len(slots)]
        yield from ((0, server) for server in servers)


Pick: TypeAlias = Callable[[Plan, Attempt], int | None]


class Picker:
    """
    Picks a server for each new flow.

    Args:
        seed: of the random draws.
        counters: has the active flows of each server, gets the event `ask_fallback`.
        first_round: the number at which the rounds of `counter` and `least` start.
    """

    def __init__(self, seed: int, counters: Counters, first_round: int = 0) -> None:
        self.counters = counters
        self.first_round = first_round
        self.random = SplitMix64(seed)
        self.callbacks: CallbackChannel | None = None
        self.held = HeldPackets()
        # By service id: the next number of `counter`, and how far `least` has come in its round; by server id: when
        # `least` may pick the server again.
        self.rounds: defaultdict[int, int] = defaultdict(lambda: first_round)
        self.clocks: defaultdict[int, int] = defaultdict(int)
        self.server_rounds: defaultdict[int, int] = defaultdict(int)
        self.pickers: dict[Selector, Pick] = {
            "counter": self.by_round,
            "random": self.by_chance,
            "hash-source": self.by_source,
            "hash-flow": self.by_flow,
            "least": self.least,
            "two-choices": self.better_of_two,
            "ask": self.ask,
        }

    def select(self, forwarding: ForwardingState, plan: Plan, flow: NewFlow, fit: Callable[[int], Fit]) -> Choice:
        """
        Pick a server.

        Args:
            forwarding: has the servers.
            plan: of the flow's service.
            flow: the new flow.
            fit: tells whether a server is eligible; called once per server.

        Returns:
            The choice; also without a server while the packet is to be held for an answer (`held.wait`).
        """
        attempt = Attempt(forwarding, flow, fit)
        server = self.pick(plan, attempt)
        if server is None:
            return Choice(refused=next(iter(attempt.tried.items()), None))
        return Choice(server, attempt.dead)

    def hashed(self, forwarding: ForwardingState, plan: Plan, flow: NewFlow) -> int | None:
        """Return the server of the slot that a hash selector gives a flow, without any test of eligibility."""
        chosen: list[int] = []

        def note(server: int) -> Fit:
            chosen.append(server)
            return Fit()

        self.pick(plan, Attempt(forwarding, flow, note))
        return chosen[0] if chosen else None

    def pick(self, plan: Plan, attempt: Attempt) -> int | None:
        """Return the first eligible server in the order of the plan's selector."""
        return self.pickers[plan.selector](plan, attempt) if plan.slots else None

    def by_round(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the next slot of the round, which continues after the slot that was picked."""
        service = attempt.flow.service
        server, passed = attempt.from_slot(plan, self.rounds[service] % len(plan.slots))
        self.rounds[service] = (self.rounds[service] + passed + 1) & MASK
        return server

    def by_chance(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick a random slot."""
        return attempt.from_slot(plan, self.random.draw() % len(plan.slots))[0]

    def by_source(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the slot of the client's address."""
        number = source_hash(attempt.forwarding.snapshot.seed, attempt.flow.client)
        return attempt.from_slot(plan, number % len(plan.slots))[0]

    def by_flow(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the slot of the 5-tuple."""
        flow, seed = attempt.flow, attempt.forwarding.snapshot.seed
        number = flow_hash(seed, flow.client, flow.vip, flow.client_port, flow.vip_port, flow.protocol)
        return attempt.from_slot(plan, number % len(plan.slots))[0]

    def least(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the least loaded server; equal ones round-robin."""
        forwarding, service = attempt.forwarding, attempt.flow.service
        servers = attempt.servers(plan)
        start = self.first_round % max(len(servers), 1)
        left = servers[start:] + servers[:start]
        while left and len(attempt.tried) < MOST_TRIED:
            server = self.least_loaded(forwarding, left, servers)
            if attempt.takes(server):
                self.clocks[service] = max(self.server_rounds[server], self.clocks[service])
                self.server_rounds[server] = self.clocks[service] + ROUND // weight(forwarding, server)
                return server
            left.remove(server)
        return None

    def next_round(self, forwarding: ForwardingState, service: int) -> int:
        """Return a service's next number of `counter`; with the selector `least`, the first slot of the next server."""
        plan = forwarding.services[service].plan if service in forwarding.services else None
        while plan is not None and plan.selector == "ask":
            plan = plan.fallback
        servers = [] if plan is None else forwarding.candidates(service, plan)
        if plan is None or plan.selector != "least" or not servers:
            return self.rounds.get(service, self.first_round)
        start = self.first_round % len(servers)
        return plan.slots.index(self.least_loaded(forwarding, servers[start:] + servers[:start], servers))

    def least_loaded(self, forwarding: ForwardingState, left: list[int], servers: list[int]) -> int:
        """
        Return the server of `left` that gets the next flow.

        While there are fewer active flows than servers, those without any round-robin. The first of equals.
        """
        if sum(self.active(server) for server in servers) < len(servers):
            idle = [server for server in left if not self.active(server)]
            if idle:
                return min(idle, key=lambda server: self.server_rounds[server])
        best, *others = left
        for server in others:
            # (active + 1) / weight, multiplied crosswise: exact where division would round.
            ours = (self.active(server) + 1) * weight(forwarding, best)
            theirs = (self.active(best) + 1) * weight(forwarding, server)
            if (ours, self.server_rounds[server]) < (theirs, self.server_rounds[best]):
                best = server
        return best

    def better_of_two(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the cheaper of two different random slots; the first of equals."""
        count = len(plan.slots)
        first = self.random.draw() % count
        second = (first + 1 + self.random.draw() % max(count - 1, 1)) % count
        return attempt.from_slot(plan, second if self.is_cheaper(plan, second, first, attempt.flow) else first)[0]

    def is_cheaper(self, plan: Plan, index: int, first: int, flow: NewFlow) -> bool:
        """
        Tell whether one more flow costs less on a slot than on one that was drawn before it.

        Never of two idle servers over UDP, where one-way flows do not count as active: the draws alone follow the
        weights then.
        """
        is_idle = not any(self.active(plan.slots[slot]) for slot in (index, first))
        return not (is_idle and flow.protocol == udp.PROTOCOL) and self.cost(plan, index) < self.cost(plan, first)

    def cost(self, plan: Plan, index: int) -> int:
        """Return what one more flow on a slot costs."""
        score = plan.scores[index] if plan.scores else 1
        return (self.active(plan.slots[index]) + 1) * score

    def ask(self, plan: Plan, attempt: Attempt) -> int | None:
        """
        Ask the user's policy; without a usable answer the fall-back plan decides. If none of these servers is eligible,
        the slots are tried in order.
        """
        forwarding = attempt.forwarding
        slots: dict[str, int] = {}
        names: list[str] = []
        for slot in plan.slots:
            server = forwarding.servers.get(slot)
            names.append(server.name if server else "")
            if server:
                slots.setdefault(names[-1], slot)
        answer = self.answer(forwarding, plan, attempt.flow, names)
        if self.held.wait is not None:
            return None
        if answer is None or answer not in slots:
            self.counters.event("ask_fallback")
        elif attempt.takes(slots[answer]):
            return slots[answer]
        chosen = None if plan.fallback is None else self.pick(plan.fallback, attempt)
        if chosen is None and attempt.tried:
            return attempt.from_slot(plan, 0)[0]
        return chosen

    def answer(self, forwarding: ForwardingState, plan: Plan, flow: NewFlow, names: list[str]) -> str | None:
        """
        Return the answer of the user's function: called directly offline, through `callbacks` while a loop runs. With
        `held.wait` set the packet is to be held, and there is no answer yet.
        """
        if forwarding.snapshot.ask is None:
            return None
        service, client = forwarding.services[flow.service].name, str(ip_address(flow.client))
        question = (forwarding.snapshot.ask, service, client, flow.client_port, tuple(names))
        if self.callbacks is None:
            return call(*question)
        held, asked = self.held, (flow.service, flow.client, flow.client_port)
        if (answered := held.take_answered(asked)) is not None:
            return answered[0]
        if not held.may_wait or len(held.packets) >= HELD_LIMIT:
            return None
        if (first := held.first(asked)) is not None:
            held.wait = first.ticket, first.due_ns
            return None
        due_ns = time.monotonic_ns() + plan.deadline_ns
        held.tickets += 1
        if self.callbacks.post(held.tickets, question, due_ns):
            held.wait = held.tickets, due_ns
        return None

    def active(self, server: int) -> int:
        """Return the active flows of a server."""
        return self.counters.servers[server].flows_active


def weight(forwarding: ForwardingState, server: int) -> int:
    """Return the weight of a server for comparisons: 0 counts as 1."""
    found = forwarding.servers.get(server)
    return found.weight or 1 if found else 1
