"""Packets of no service: dropped, or routed on with nothing but the TTL changed (`docs/datapath.md` rule 9)."""

from __future__ import annotations

from lb.backends.python.parse import Packet
from lb.backends.python.rewrite import lower_ttl, outgoing
from lb.backends.python.send import answer_ttl_exceeded, deliver
from lb.backends.python.state import State, Verdict, drop


def transit(state: State, packet: Packet) -> Verdict:
    """Route a packet of no service on, if the snapshot says so."""
    if state.view.snapshot.transit == "drop":
        return drop("transit")
    if packet.ttl <= 1:
        return answer_ttl_exceeded(state, packet)
    data = outgoing(packet)
    lower_ttl(data, packet)
    return deliver(state, packet, data, state.hops.to_address(packet.destination))
