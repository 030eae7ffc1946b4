"""
Transit: packets of no service are dropped, or routed with only the TTL changed (`docs/rules.md` rule 9, transit).
Direct connections of clients to a server's address and port are recorded (`direct.py`).
"""

from __future__ import annotations

from lb.backends.python.send import answer_ttl_exceeded, deliver
from lb.backends.python.tables import Tables
from lb.backends.python.verdicts import Verdict, drop
from lb.packet import tcp, udp
from lb.packet.parse import Packet, read_l4
from lb.packet.rewrite import lower_ttl, outgoing
from lb.packet.segment import segment


def transit(tables: Tables, packet: Packet) -> Verdict:
    """Route a packet of no service, or drop it, as the snapshot's `transit` says."""
    if tables.forwarding.snapshot.transit == "drop":
        return drop("transit")
    if packet.ttl <= 1:
        return answer_ttl_exceeded(tables, packet)
    reason = note_direct(tables, packet)
    return drop(reason) if reason else route(tables, packet)


def route(tables: Tables, packet: Packet) -> Verdict:
    """Send a packet to its own destination."""
    data = outgoing(packet)
    lower_ttl(data, packet)
    return deliver(tables, packet, data, tables.hops.to_address(packet.destination))


def note_direct(tables: Tables, packet: Packet) -> str | None:
    """
    Record a packet to a server's endpoint, so that the answer may pass (rule 9.1, direct connections).

    Returns:
        The drop reason when a flow has the same address and port at the server; None: the packet may pass.
    """
    if packet.destination not in tables.forwarding.servers_by_address or packet.protocol not in (
        tcp.PROTOCOL,
        udp.PROTOCOL,
    ):
        return None
    # First fragments are not read before this stage; later ones have no ports, and malformed headers no valid ones.
    if packet.fragment_offset or read_l4(packet):
        return None
    endpoint = tables.forwarding.endpoints.get((packet.destination, packet.destination_port, packet.protocol))
    if endpoint is None:
        return None
    key = (endpoint, packet.source, packet.source_port)
    entry = tables.flows.by_reply.get(key)
    seg = segment(packet) if packet.is_tcp else None
    if entry is not None:
        event = tables.flows.why_dead(entry, tables.forwarding, tables.now_ns)
        # Only a SYN replaces a closing flow: another segment may be forged, and would cost the flow its last segments.
        if event is None and not (entry.is_over(tables.forwarding.snapshot.any_replies) and (seg is None or seg.opens)):
            return "flow_conflict"
        tables.flows.remove(entry, event or "flow_reused")
    if tables.forwarding.snapshot.any_replies:
        # Its answers may come to another balancer, which uses them as those of a service.
        return None
    guarded = endpoint in tables.forwarding.guarded_endpoints
    if tables.direct.ask(key, seg, guarded, tables.forwarding.snapshot.timeouts, tables.now_ns):
        tables.counters.event("direct_evicted")
    return None
