"""
Packets of no service: dropped, or routed on with nothing but the TTL changed (`docs/datapath.md` rule 9). What clients
send straight to a server's address and port is remembered (`direct.py`).
"""

from __future__ import annotations

from lb.backends.python.flow_states import CLOSING
from lb.backends.python.send import answer_ttl_exceeded, deliver
from lb.backends.python.state import State, Verdict, drop
from lb.packet import tcp, udp
from lb.packet.parse import Packet, read_l4
from lb.packet.rewrite import lower_ttl, outgoing
from lb.packet.segment import segment


def transit(state: State, packet: Packet) -> Verdict:
    """Route a packet of no service on, if the snapshot says so."""
    if state.view.snapshot.transit == "drop":
        return drop("transit")
    if packet.ttl <= 1:
        return answer_ttl_exceeded(state, packet)
    reason = note_direct(state, packet)
    return drop(reason) if reason else route(state, packet)


def route(state: State, packet: Packet) -> Verdict:
    """Send a packet on to its destination."""
    data = outgoing(packet)
    lower_ttl(data, packet)
    return deliver(state, packet, data, state.hops.to_address(packet.destination))


def note_direct(state: State, packet: Packet) -> str | None:
    """
    Remember a packet to a server's endpoint, so that the answer may pass (rule 9.1).

    Returns:
        Why it is refused: the server could not tell it from a flow.
    """
    if packet.destination not in state.view.servers_by_address or packet.protocol not in (tcp.PROTOCOL, udp.PROTOCOL):
        return None
    # A first fragment has not been read so far; a later one has no ports, and what is malformed none that we believe.
    if packet.fragment_offset or read_l4(packet):
        return None
    endpoint = state.view.endpoints.get((packet.destination, packet.destination_port, packet.protocol))
    if endpoint is None:
        return None
    key = (endpoint, packet.source, packet.source_port)
    entry = state.table.by_reply.get(key)
    seg = segment(packet) if packet.is_tcp else None
    if entry is not None:
        event = state.table.why_dead(entry, state.view, state.now_ns)
        # What else may be anybody's: a flow that is over would lose its last segments.
        if event is None and not (entry.state == CLOSING and (seg is None or seg.opens)):
            return "flow_conflict"
        state.table.remove(entry, event or "flow_reused")
    guarded = endpoint in state.view.guarded_endpoints
    if state.direct.ask(key, seg, guarded, state.view.snapshot.timeouts, state.now_ns):
        state.counters.event("direct_evicted")
    return None
