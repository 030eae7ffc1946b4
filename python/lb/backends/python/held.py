"""
First packets of flows for which a user's policy is being asked: held as received, while packets of other flows pass
(`docs/rules.md` rule 8.21, asking a policy).

Used only while a packet loop runs. Time is an argument; `lb.backends.callbacks` does the asking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lb.packet.parse import Packet

# Packets held at once, of all flows together.
LIMIT = 64

# Service id, client address, client port.
HeldFlow: TypeAlias = tuple[int, bytes, int]


@dataclass(slots=True)
class HeldPacket:
    """A packet held as received. `answer`: a tuple of one, once there is one."""

    ticket: int
    flow: HeldFlow
    due_ns: int
    packet: Packet
    answer: tuple[str | None] | None = None


class HeldPackets:
    """All held packets, oldest first."""

    def __init__(self) -> None:
        self.packets: list[HeldPacket] = []
        self.tickets = 0
        # The answer for the flow of the packet that continues just now.
        self.answered: tuple[HeldFlow, str | None] | None = None
        # Whether the current packet may be held; set by the picker: the ticket and the deadline to hold it for.
        self.may_wait = False
        self.wait: tuple[int, int] | None = None

    def begin(self, may_wait: bool) -> None:
        """Begin with a packet that needs a server."""
        self.may_wait, self.wait = may_wait, None

    def take_answered(self, flow: HeldFlow) -> tuple[str | None] | None:
        """Return the answer for the flow of the packet that continues, in a tuple; None: for another flow."""
        if self.answered is None or self.answered[0] != flow:
            return None
        answer, self.answered = self.answered[1], None
        return (answer,)

    def first(self, flow: HeldFlow) -> HeldPacket | None:
        """Return the oldest held packet of a flow."""
        return next((each for each in self.packets if each.flow == flow), None)

    def hold(self, flow: HeldFlow, packet: Packet) -> None:
        """Hold a packet, unparsed, for the ticket that the picker set."""
        assert self.wait is not None
        ticket, due_ns = self.wait
        fresh = Packet(packet.frame, packet.interface, packet.offload)
        self.packets.append(HeldPacket(ticket, flow, due_ns, fresh))
        self.wait = None

    def answer(self, ticket: int, answer: str | None) -> None:
        """Give an answer to the packets held for its ticket."""
        for each in self.packets:
            if each.ticket == ticket:
                each.answer = (answer,)

    def is_due(self, now_ns: int) -> bool:
        """Tell whether a packet may continue: it has an answer, or its deadline has passed."""
        return any(each.answer is not None or each.due_ns <= now_ns for each in self.packets)

    def next(self, now_ns: int) -> Packet | None:
        """Take out the oldest packet that may continue, and set `answered` for the picker."""
        for each in self.packets:
            if each.answer is not None or each.due_ns <= now_ns:
                self.packets.remove(each)
                self.answered = each.flow, None if each.answer is None else each.answer[0]
                return each.packet
        return None
