"""
Sending: next hop, MTU, the new Ethernet header; and the answers made instead of forwarding.

Last stage of the walk (`docs/rules.md` rule 11, next hop, and rule 12, sending). Packets arrive here rewritten.
"""

from __future__ import annotations

from lb.backends.python import reply as make
from lb.backends.python.fragment import cut
from lb.backends.python.limit import Kind
from lb.backends.python.next_hop import UNKNOWN_MAC, Hop, Output
from lb.backends.python.tables import Tables
from lb.backends.python.verdicts import FORWARD, Verdict, drop, hold, reply
from lb.model.snapshot import Service
from lb.packet import icmp, ipv4, tcp
from lb.packet.offload import Offload
from lb.packet.parse import GSO_UDP_L4, NEEDS_CSUM, Packet
from lb.packet.rewrite import complete_partial
from lb.packet.segment import Segment

# Reasons to refuse a new flow although a server is available.
REFUSALS = frozenset({"hairpin", "flow_conflict", "table_full"})


def deliver(tables: Tables, packet: Packet, data: bytearray, hop: Hop | None, *, tells: bool = False) -> Verdict:
    """
    Send a rewritten packet to its next hop.

    Args:
        tables: of the data path.
        packet: as received; the inner packet of the ICMP error if it is too big.
        data: the rewritten frame, without padding.
        hop: where to; None: there is no route.
        tells: whether the sender, a client, is told when there is no route or the neighbour does not answer.

    Returns:
        forward; hold `neighbour`; reply or drop `too_big`, `no_route`, `neighbour_unresolved`; drop `vlan`,
        `rate_limited`.
    """
    if hop is None:
        kind = icmp.NO_ROUTE[len(packet.source)]
        return answer_from_vip(tables, packet, "no_route", kind) if tells else drop("no_route")
    if packet.vlans and hop.interface != packet.interface:
        return drop("vlan")
    frames = [(bytes(data), sent_offload(packet.offload))]
    if mtu_needed(packet) > hop.mtu:
        if must_stay_whole(packet):
            return answer_too_big(tables, packet, hop.mtu)
        frames = fit(packet, data, hop.mtu)
        if not frames:
            return drop("too_big")
    source_mac = tables.forwarding.interfaces[hop.interface].mac
    header = (hop.mac or UNKNOWN_MAC) + source_mac
    outputs = [Output(hop.interface, header + frame[12:], offload) for frame, offload in frames]
    if hop.mac is not None:
        tables.out.extend(outputs)
        return FORWARD
    return wait(tables, packet, hop, outputs, tells=tells)


def wait(tables: Tables, packet: Packet, hop: Hop, outputs: list[Output], *, tells: bool) -> Verdict:
    """
    Hold a packet until its neighbour is resolved; not for a neighbour that has failed (rule 11.3, unresolved
    neighbours, and rule 11.4, unreachable servers).
    """
    kind = icmp.HOST_UNREACHABLE[len(packet.source)]
    notice = None
    if tells and may_answer(packet):
        notice = make.icmp_error(tables.forwarding, packet, packet.destination, kind, 0)
    if tables.waiting.hold(hop, outputs, notice, tables.now_ns):
        return hold("neighbour")
    if notice is not None and tables.waiting.has_failed(hop):
        return send_answer(tables, "unreachable", "neighbour_unresolved", notice)
    return drop("neighbour_unresolved")


def sent_offload(offload: Offload) -> Offload | None:
    """Return the offload to send a frame with: NEEDS_CSUM alone of the flags; None when there is nothing to do."""
    if not offload.flags & NEEDS_CSUM and not offload.gso_type & 0x7F:
        return None
    return offload._replace(flags=offload.flags & NEEDS_CSUM)


def mtu_needed(packet: Packet) -> int:
    """Return the MTU a packet needs: its length, or that of the segments the network card will make of it."""
    if packet.gso_type:
        return packet.payload - packet.l3 + packet.offload.gso_size
    return packet.total_len


def must_stay_whole(packet: Packet) -> bool:
    """Tell whether a packet must not be fragmented: IPv6, DF, or UDP segments, whose borders carry meaning."""
    if not packet.is_v4 or packet.gso_type == GSO_UDP_L4:
        return True
    return bool(packet.word(packet.l3 + ipv4.FLAGS_OFFSET) & ipv4.DF)


def fit(packet: Packet, data: bytearray, mtu: int) -> list[tuple[bytes, Offload | None]]:
    """
    Return the frames of a packet that fit an MTU: GSO segments get a smaller size, any other packet becomes fragments.
    Empty: it cannot fit.
    """
    if packet.gso_type:
        size = mtu - (packet.payload - packet.l3)
        offload = sent_offload(packet.offload._replace(gso_size=size)) if size > 0 else None
        return [(bytes(data), offload)] if size > 0 else []
    if packet.is_partial:
        complete_partial(data, packet)
    link_header = bytes(data[: packet.l3])
    return [(link_header + piece, None) for piece in cut(bytes(data[packet.l3 :]), mtu)]


def may_answer(packet: Packet) -> bool:
    """Tell whether a packet may be answered by an error at all (RFC 1812 4.3.2.7, RFC 4443 2.4 e)."""
    return not packet.fragment_offset and not packet.destination_mac[0] & 1 and not is_icmp_error(packet)


def is_icmp_error(packet: Packet) -> bool:
    """Tell whether a packet is an ICMP error or redirect."""
    if not packet.is_icmp or packet.l4 >= packet.end:
        return False
    family, kind = len(packet.source), packet.frame[packet.l4]
    return kind in icmp.ERRORS[family] or kind == icmp.REDIRECT[family]


def answer_ttl_exceeded(tables: Tables, packet: Packet) -> Verdict:
    """Answer a packet whose TTL has run out with ICMP time exceeded."""
    kind = icmp.TIME_EXCEEDED[len(packet.source)]
    return send_icmp_error(tables, packet, "time_exceeded", "ttl_exceeded", kind, 0)


def answer_too_big(tables: Tables, packet: Packet, mtu: int) -> Verdict:
    """Answer a packet that is too big with the MTU that would fit (RFC 1191, RFC 8201); ICMPv4 has 16 bits for it."""
    field = min(mtu, 0xFFFF) if packet.is_v4 else mtu
    return send_icmp_error(tables, packet, "too_big", "too_big", icmp.TOO_BIG[len(packet.source)], field)


def send_icmp_error(
    tables: Tables, packet: Packet, bucket: Kind, reason: str, kind: tuple[int, int], field: int
) -> Verdict:
    """Answer with an ICMP error from our own address; drop for the same reason when none may be sent."""
    source = tables.forwarding.own_address(packet.interface, len(packet.source))
    if source is None and packet.destination in tables.forwarding.vips:
        source = packet.destination
    if source is None or not may_answer(packet):
        return drop(reason)
    return send_answer(tables, bucket, reason, make.icmp_error(tables.forwarding, packet, source, kind, field))


def answer_from_vip(tables: Tables, packet: Packet, reason: str, kind: tuple[int, int]) -> Verdict:
    """Answer a client's packet with an ICMP unreachable from the VIP; drop when none may be sent."""
    if not may_answer(packet):
        return drop(reason)
    answer = make.icmp_error(tables.forwarding, packet, packet.destination, kind, 0)
    return send_answer(tables, "unreachable", reason, answer)


def answer_no_server(tables: Tables, packet: Packet, seg: Segment | None) -> Verdict:
    """Refuse a new flow from the VIP: TCP by RST, UDP by port unreachable. `seg`: None for UDP."""
    if seg is not None:
        return answer_reset(tables, packet, seg, "reset", "no_server")
    return answer_from_vip(tables, packet, "no_server", icmp.PORT_UNREACHABLE[len(packet.source)])


def refuse_new_flow(tables: Tables, packet: Packet, service: Service, seg: Segment | None, verdict: Verdict) -> Verdict:
    """
    Answer a new flow that could not be placed from the VIP (rule 8.18, refusals): by RST if `on_no_server` says so,
    else by ICMP "administratively prohibited".

    Args:
        tables: of the data path.
        packet: the client's packet that would have created the flow.
        service: its service.
        seg: None for UDP.
        verdict: of the placement; any but a refusal stays.
    """
    if verdict.name != "drop" or verdict.reason not in REFUSALS:
        return verdict
    if seg is not None and service.on_no_server == "reset":
        return answer_reset(tables, packet, seg, "reset", verdict.reason)
    return answer_from_vip(tables, packet, verdict.reason, icmp.PROHIBITED[len(packet.source)])


def answer_reset(tables: Tables, packet: Packet, seg: Segment, bucket: Kind, reason: str) -> Verdict:
    """
    Answer a TCP segment with a RST that its sender accepts, from the address it was sent to; a RST is dropped for the
    same reason. `bucket`: the rate limit that counts the answer.
    """
    if seg.has(tcp.RST):
        return drop(reason)
    return send_answer(tables, bucket, reason, make.tcp_reset(tables.forwarding, packet, seg))


def send_answer(tables: Tables, bucket: Kind, reason: str, answer: Output) -> Verdict:
    """Send an answer if the rate limit of its kind allows it; called last, so that no token is wasted."""
    if not tables.limiter.take(bucket, tables.forwarding.snapshot.icmp_rate, tables.now_ns):
        return drop("rate_limited")
    tables.out.append(answer)
    return reply(reason)
