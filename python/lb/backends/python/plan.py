"""
Placement: which server gets a new flow, as the service's plan says.

Stage "miss: plan -> server" of the walk (`docs/datapath.md` rule 8, "Selectors"). A plan is a selector and a table of
slots; policies made it, and nothing else of them is known here. What a selector remembers lives in `Placement`: the
counters of `counter`, the turns of `least`, the state of the random draws, and whom a loop asks. A server that cannot
take the flow is passed over (behaviour 37).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple, TypeAlias

from lb.backends.callbacks import Questions, call
from lb.backends.python.counters import Counters
from lb.backends.python.entry import Entry
from lb.backends.python.held import LIMIT as ASKED_LIMIT
from lb.backends.python.held import Asking
from lb.backends.python.view import View
from lb.model.snapshot import Plan, Selector
from lb.packet import udp
from lb.packet.hashing import MASK, flow_hash, source_hash

# Slots looked at in order before the plan's servers are gone through one by one, and servers that one placement tries.
MOST_SLOTS = 1024
MOST_TRIED = 1024
# What a server of weight 1 moves back in the order of turns when `least` chooses it; one of weight w: TURN // w.
TURN = 1 << 40


class Newcomer(NamedTuple):
    """A flow that looks for a server. Addresses: 4 or 16 bytes. `opens`: its packet opens a TCP connection."""

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
    Whether a server takes a flow. `refused`: the drop reason if it does not. `dead`: a flow that is over and in the
    way: to be removed.
    """

    refused: str | None = None
    dead: Entry | None = None


class Choice(NamedTuple):
    """
    What a placement came to: a server, and the entry to be removed before; or none, and if there were some that do not
    take the flow, the first one that was tried and its drop reason.
    """

    server: int | None = None
    dead: Entry | None = None
    refused: tuple[int, str] | None = None


class Attempt:
    """
    One placement under way.

    Args:
        view: the servers.
        flow: the newcomer.
        fit: tells whether a server takes it.
    """

    def __init__(self, view: View, flow: Newcomer, fit: Callable[[int], Fit]) -> None:
        self.view = view
        self.flow = flow
        self.fit = fit
        # Reason by server, in the order of trying.
        self.tried: dict[int, str] = {}
        self.dead: Entry | None = None

    def takes(self, server: int) -> bool:
        """Tell whether a server takes the flow. It is noted if it is in the snapshot and does not."""
        if server in self.tried or server not in self.view.servers:
            return False
        refused, dead = self.fit(server)
        if refused is None:
            self.dead = dead
            return True
        self.tried[server] = refused
        return False

    def servers(self, plan: Plan) -> list[int]:
        """Return the servers that a plan names, each once, in the order of their first slots."""
        return list(dict.fromkeys(slot for slot in plan.slots if slot in self.view.servers))

    def from_slot(self, plan: Plan, slot: int) -> tuple[int | None, int]:
        """Return the first server that takes the flow, from a slot on, and how many slots were passed over for it."""
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
        """Yield the slots after one in order, going round, each with its distance; then all servers of the plan."""
        slots = plan.slots
        for passed in range(1, min(len(slots), MOST_SLOTS)):
            yield passed, slots[(slot + passed) % len(slots)]
        yield from ((0, server) for server in servers)


Picker: TypeAlias = Callable[[Plan, Attempt], int | None]


class Placement:
    """
    Picks servers.

    Args:
        seed: starts the random draws.
        counters: tells the active flows of each server, gets `ask_fallback`.
        first_turn: where the turns of `counter` and `least` start.
    """

    def __init__(self, seed: int, counters: Counters, first_turn: int = 0) -> None:
        self.counters = counters
        self.first_turn = first_turn
        self.random = SplitMix64(seed)
        self.questions: Questions | None = None
        self.asking = Asking()
        # By service id: the number of the next turn of `counter`, the turn that `least` took last; by server id: its
        # turn in `least`.
        self.turns: defaultdict[int, int] = defaultdict(lambda: first_turn)
        self.clocks: defaultdict[int, int] = defaultdict(int)
        self.server_turns: defaultdict[int, int] = defaultdict(int)
        self.pickers: dict[Selector, Picker] = {
            "counter": self.by_turn,
            "random": self.by_chance,
            "hash-source": self.by_source,
            "hash-flow": self.by_flow,
            "least": self.least,
            "two-choices": self.better_of_two,
            "ask": self.ask,
        }

    def select(self, view: View, plan: Plan, flow: Newcomer, fit: Callable[[int], Fit]) -> Choice:
        """
        Pick a server.

        Args:
            view: the servers.
            plan: of the flow's service.
            flow: the newcomer.
            fit: tells whether a server takes it; asked once about each.

        Returns:
            What it came to; no server too when the packet has to wait for an answer (`asking.wait`).
        """
        attempt = Attempt(view, flow, fit)
        server = self.pick(plan, attempt)
        if server is None:
            return Choice(refused=next(iter(attempt.tried.items()), None))
        return Choice(server, attempt.dead)

    def hashed(self, view: View, plan: Plan, flow: Newcomer) -> int | None:
        """Return the server of the slot that a hash selector gives a flow, whatever is in the way there."""
        chosen: list[int] = []

        def note(server: int) -> Fit:
            chosen.append(server)
            return Fit()

        self.pick(plan, Attempt(view, flow, note))
        return chosen[0] if chosen else None

    def pick(self, plan: Plan, attempt: Attempt) -> int | None:
        """Return the first server in the order of the plan's selector that takes the flow."""
        return self.pickers[plan.selector](plan, attempt) if plan.slots else None

    def by_turn(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the next slot. The turn goes on after the slot that was taken."""
        service = attempt.flow.service
        server, passed = attempt.from_slot(plan, self.turns[service] % len(plan.slots))
        self.turns[service] = (self.turns[service] + passed + 1) & MASK
        return server

    def by_chance(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick a random slot."""
        return attempt.from_slot(plan, self.random.draw() % len(plan.slots))[0]

    def by_source(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the slot of the client's address."""
        number = source_hash(attempt.view.snapshot.seed, attempt.flow.client)
        return attempt.from_slot(plan, number % len(plan.slots))[0]

    def by_flow(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the slot of the 5-tuple."""
        flow, seed = attempt.flow, attempt.view.snapshot.seed
        number = flow_hash(seed, flow.client, flow.vip, flow.client_port, flow.vip_port, flow.protocol)
        return attempt.from_slot(plan, number % len(plan.slots))[0]

    def least(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the least loaded server; equal ones take turns."""
        view, service = attempt.view, attempt.flow.service
        servers = attempt.servers(plan)
        start = self.first_turn % max(len(servers), 1)
        left = servers[start:] + servers[:start]
        while left and len(attempt.tried) < MOST_TRIED:
            server = self.least_loaded(view, left, servers)
            if attempt.takes(server):
                self.clocks[service] = max(self.server_turns[server], self.clocks[service])
                self.server_turns[server] = self.clocks[service] + TURN // weight(view, server)
                return server
            left.remove(server)
        return None

    def next_turn(self, view: View, service: int) -> int:
        """Return the number of a service's next turn; where it places by `least`, the first slot of the next server."""
        plan = view.services[service].plan if service in view.services else None
        while plan is not None and plan.selector == "ask":
            plan = plan.fallback
        servers = [] if plan is None else list(dict.fromkeys(slot for slot in plan.slots if slot in view.servers))
        if plan is None or plan.selector != "least" or not servers:
            return self.turns.get(service, self.first_turn)
        start = self.first_turn % len(servers)
        return plan.slots.index(self.least_loaded(view, servers[start:] + servers[:start], servers))

    def least_loaded(self, view: View, left: list[int], servers: list[int]) -> int:
        """
        Return the one of the servers left that is to get the next flow.

        While there are fewer active flows than servers, those without any take turns. The first of equals.
        """
        if sum(self.active(server) for server in servers) < len(servers):
            idle = [server for server in left if not self.active(server)]
            if idle:
                return min(idle, key=lambda server: self.server_turns[server])
        best, *others = left
        for server in others:
            # (active + 1) / weight, multiplied crosswise: exact where division would round.
            ours = (self.active(server) + 1) * weight(view, best)
            theirs = (self.active(best) + 1) * weight(view, server)
            if (ours, self.server_turns[server]) < (theirs, self.server_turns[best]):
                best = server
        return best

    def better_of_two(self, plan: Plan, attempt: Attempt) -> int | None:
        """Pick the cheaper of two different random slots; the first of equals."""
        count = len(plan.slots)
        first = self.random.draw() % count
        second = (first + 1 + self.random.draw() % max(count - 1, 1)) % count
        return attempt.from_slot(plan, second if self.is_cheaper(plan, second, first, attempt.flow) else first)[0]

    def is_cheaper(self, plan: Plan, index: int, first: int, flow: Newcomer) -> bool:
        """
        Tell whether one more flow costs less on a slot than on one that was drawn before it.

        Of two servers that seem idle none does where flows may never count, over UDP: as they are drawn they have them
        by weight.
        """
        is_idle = not any(self.active(plan.slots[slot]) for slot in (index, first))
        return not (is_idle and flow.protocol == udp.PROTOCOL) and self.cost(plan, index) < self.cost(plan, first)

    def cost(self, plan: Plan, index: int) -> int:
        """Return what one more flow on a slot costs."""
        score = plan.scores[index] if plan.scores else 1
        return (self.active(plan.slots[index]) + 1) * score

    def ask(self, plan: Plan, attempt: Attempt) -> int | None:
        """
        Ask the user's policy; without a usable answer the fall-back plan decides. Where the server that is answered, or
        those of the fall-back plan, do not take the flow: the slots in order.
        """
        view = attempt.view
        slots: dict[str, int] = {}
        names: list[str] = []
        for slot in plan.slots:
            server = view.servers.get(slot)
            names.append(server.name if server else "")
            if server:
                slots.setdefault(names[-1], slot)
        answer = self.answer(view, plan, attempt.flow, names)
        if self.asking.wait is not None:
            return None
        if answer is None or answer not in slots:
            self.counters.event("ask_fallback")
        elif attempt.takes(slots[answer]):
            return slots[answer]
        chosen = None if plan.fallback is None else self.pick(plan.fallback, attempt)
        if chosen is None and attempt.tried:
            return attempt.from_slot(plan, 0)[0]
        return chosen

    def answer(self, view: View, plan: Plan, flow: Newcomer, names: list[str]) -> str | None:
        """
        Ask the user's function: here and now offline, through `questions` while a loop runs. Then the packet waits, if
        `asking.wait` is set.
        """
        if view.snapshot.ask is None:
            return None
        service, client = view.services[flow.service].name, str(ip_address(flow.client))
        question = (view.snapshot.ask, service, client, flow.client_port, tuple(names))
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
