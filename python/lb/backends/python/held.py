"""
First packets of flows that a user's policy is being asked about: they wait as they came in, and packets of others pass
(`docs/datapath.md` rule 8, *ask*).

Only while a packet loop runs. Time is an argument; who is asked is `lb.backends.callbacks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lb.packet.parse import Packet

# Packets that may wait for an answer, all flows together.
LIMIT = 64

# Service id, client address, client port.
AskedFlow: TypeAlias = tuple[int, bytes, int]


@dataclass(slots=True)
class AskedPacket:
    """A packet that waits: as it came in. `answer`: in a tuple of one, once it is there."""

    ticket: int
    flow: AskedFlow
    due_ns: int
    packet: Packet
    answer: tuple[str | None] | None = None


class Asking:
    """All packets that wait."""

    def __init__(self) -> None:
        self.held: list[AskedPacket] = []
        self.tickets = 0
        # The answer about the flow of the packet that goes on just now.
        self.answered: tuple[AskedFlow, str | None] | None = None
        # Whether the packet at hand may wait; set by the selection: for what, and until when.
        self.may_wait = False
        self.wait: tuple[int, int] | None = None

    def begin(self, may_wait: bool) -> None:
        """Begin with a packet that looks for a server."""
        self.may_wait, self.wait = may_wait, None

    def take_answered(self, flow: AskedFlow) -> tuple[str | None] | None:
        """Return the answer about the flow of the packet that goes on, in a tuple; None: it is another."""
        if self.answered is None or self.answered[0] != flow:
            return None
        answer, self.answered = self.answered[1], None
        return (answer,)

    def first(self, flow: AskedFlow) -> AskedPacket | None:
        """Return the packet of a flow that has waited longest."""
        return next((each for each in self.held if each.flow == flow), None)

    def hold(self, flow: AskedFlow, packet: Packet) -> None:
        """Keep a packet for what the selection said; what was read of it is forgotten."""
        assert self.wait is not None
        ticket, due_ns = self.wait
        fresh = Packet(packet.frame, packet.interface, packet.offload)
        self.held.append(AskedPacket(ticket, flow, due_ns, fresh))
        self.wait = None

    def answer(self, ticket: int, answer: str | None) -> None:
        """Let the packets that wait for this answer go on."""
        for each in self.held:
            if each.ticket == ticket:
                each.answer = (answer,)

    def is_due(self, now_ns: int) -> bool:
        """Tell whether a packet may go on: answered, or too late."""
        return any(each.answer is not None or each.due_ns <= now_ns for each in self.held)

    def next(self, now_ns: int) -> Packet | None:
        """Take out the oldest packet that may go on; the selection finds its answer."""
        for each in self.held:
            if each.answer is not None or each.due_ns <= now_ns:
                self.held.remove(each)
                self.answered = each.flow, None if each.answer is None else each.answer[0]
                return each.packet
        return None
