"""
The way out: next hop, MTU, the frame's new Ethernet header; and the answers we make instead.

Last stage of the walk (`docs/datapath.md` rules 11 and 12). What arrives here is rewritten already.
"""

from __future__ import annotations

from lb.backends.python import reply as make
from lb.backends.python.fragment import cut
from lb.backends.python.limit import Kind
from lb.backends.python.next_hop import UNKNOWN_MAC, Hop, Output
from lb.backends.python.state import FORWARD, State, Verdict, drop, hold, reply
from lb.model.snapshot import Service
from lb.packet import icmp, ipv4, tcp
from lb.packet.offload import Offload
from lb.packet.parse import GSO_UDP_L4, NEEDS_CSUM, Packet
from lb.packet.rewrite import complete_partial
from lb.packet.segment import Segment

# Why a new flow of a client that found a server is not placed.
REFUSALS = frozenset({"hairpin", "flow_conflict", "table_full"})


def deliver(state: State, packet: Packet, data: bytearray, hop: Hop | None, *, tells: bool = False) -> Verdict:
    """
    Send a rewritten packet to its next hop.

    Args:
        state: of the data path.
        packet: as it came in; quoted if it is too big.
        data: the rewritten frame, without padding.
        hop: where to; None: there is no route.
        tells: whether the sender, a client, is told when there is no route or the neighbour does not answer.

    Returns:
        forward; hold `neighbour`; reply or drop `too_big`, `no_route`, `neighbour_unresolved`; drop `vlan`,
        `rate_limited`.
    """
    if hop is None:
        kind = icmp.NO_ROUTE[len(packet.source)]
        return answer_from_vip(state, packet, "no_route", kind) if tells else drop("no_route")
    if packet.vlans and hop.interface != packet.interface:
        return drop("vlan")
    frames = [(bytes(data), sent_offload(packet.offload))]
    if mtu_needed(packet) > hop.mtu:
        if must_stay_whole(packet):
            return answer_too_big(state, packet, hop.mtu)
        frames = fit(packet, data, hop.mtu)
        if not frames:
            return drop("too_big")
    source_mac = state.view.interfaces[hop.interface].mac
    header = (hop.mac or UNKNOWN_MAC) + source_mac
    outputs = [Output(hop.interface, header + frame[12:], offload) for frame, offload in frames]
    if hop.mac is not None:
        state.out.extend(outputs)
        return FORWARD
    return wait(state, packet, hop, outputs, tells=tells)


def wait(state: State, packet: Packet, hop: Hop, outputs: list[Output], *, tells: bool) -> Verdict:
    """Let a packet wait for its neighbour. One that has failed is not waited for: rules 11.3 and 11.4."""
    kind = icmp.HOST_UNREACHABLE[len(packet.source)]
    notice = None
    if tells and may_answer(packet):
        notice = make.icmp_error(state.view, packet, packet.destination, kind, 0)
    if state.waiting.hold(hop, outputs, notice, state.now_ns):
        return hold("neighbour")
    if notice is not None and state.waiting.has_failed(hop):
        return send_answer(state, "unreachable", "neighbour_unresolved", notice)
    return drop("neighbour_unresolved")


def sent_offload(offload: Offload) -> Offload | None:
    """Return the offload as it is passed on: with the one flag that asks for something; None when nothing is asked."""
    if not offload.flags & NEEDS_CSUM and not offload.gso_type & 0x7F:
        return None
    return offload._replace(flags=offload.flags & NEEDS_CSUM)


def mtu_needed(packet: Packet) -> int:
    """Return the MTU a packet needs: its length, or that of the segments the network card will make of it."""
    if packet.gso_type:
        return packet.payload - packet.l3 + packet.offload.gso_size
    return packet.total_len


def must_stay_whole(packet: Packet) -> bool:
    """Tell whether a packet must not be cut on its way: IPv6, DF, or UDP segments, whose borders carry meaning."""
    if not packet.is_v4 or packet.gso_type == GSO_UDP_L4:
        return True
    return bool(packet.word(packet.l3 + ipv4.FLAGS_OFFSET) & ipv4.DF)


def fit(packet: Packet, data: bytearray, mtu: int) -> list[tuple[bytes, Offload | None]]:
    """
    Make a packet fit an MTU: a TCP stream is cut in other places, anything else becomes fragments. Empty: it cannot
    fit.
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


def answer_ttl_exceeded(state: State, packet: Packet) -> Verdict:
    """Tell the sender that its packet has travelled too far."""
    kind = icmp.TIME_EXCEEDED[len(packet.source)]
    return answer_error(state, packet, "time_exceeded", "ttl_exceeded", kind, 0)


def answer_too_big(state: State, packet: Packet, mtu: int) -> Verdict:
    """Tell the sender what size would pass (RFC 1191, RFC 8201). ICMPv4 has 16 bits for it."""
    field = min(mtu, 0xFFFF) if packet.is_v4 else mtu
    return answer_error(state, packet, "too_big", "too_big", icmp.TOO_BIG[len(packet.source)], field)


def answer_error(state: State, packet: Packet, bucket: Kind, reason: str, kind: tuple[int, int], field: int) -> Verdict:
    """Answer with an ICMP error from our own address; drop for the same reason where none may be sent."""
    source = state.view.own_address(packet.interface, len(packet.source))
    if source is None and packet.destination in state.view.vips:
        source = packet.destination
    if source is None or not may_answer(packet):
        return drop(reason)
    return send_answer(state, bucket, reason, make.icmp_error(state.view, packet, source, kind, field))


def answer_from_vip(state: State, packet: Packet, reason: str, kind: tuple[int, int]) -> Verdict:
    """Answer a client's packet with an ICMP unreachable in the VIP's name; where none may be sent: drop."""
    if not may_answer(packet):
        return drop(reason)
    answer = make.icmp_error(state.view, packet, packet.destination, kind, 0)
    return send_answer(state, "unreachable", reason, answer)


def answer_no_server(state: State, packet: Packet, seg: Segment | None) -> Verdict:
    """Refuse a new flow in the VIP's name: TCP by RST, UDP by port unreachable. `seg`: None for UDP."""
    if seg is not None:
        return answer_reset(state, packet, seg, "reset", "no_server")
    return answer_from_vip(state, packet, "no_server", icmp.PORT_UNREACHABLE[len(packet.source)])


def refuse_newcomer(state: State, packet: Packet, service: Service, seg: Segment | None, verdict: Verdict) -> Verdict:
    """
    Answer a new flow that could not be placed, in the VIP's name (rule 8, *Refused*): by RST if `on_no_server` says so,
    else by ICMP "administratively prohibited".

    Args:
        state: of the data path.
        packet: the client's, that would have made the flow.
        service: that it is for.
        seg: None for UDP.
        verdict: of the placement; any but a refusal stays.
    """
    if verdict.name != "drop" or verdict.reason not in REFUSALS:
        return verdict
    if seg is not None and service.on_no_server == "reset":
        return answer_reset(state, packet, seg, "reset", verdict.reason)
    return answer_from_vip(state, packet, verdict.reason, icmp.PROHIBITED[len(packet.source)])


def answer_reset(state: State, packet: Packet, seg: Segment, bucket: Kind, reason: str) -> Verdict:
    """
    Answer a TCP segment with a reset that its sender believes, from the address it was for; a reset is dropped for the
    same reason. `bucket`: whose token it takes.
    """
    if seg.has(tcp.RST):
        return drop(reason)
    return send_answer(state, bucket, reason, make.tcp_reset(state.view, packet, seg))


def send_answer(state: State, bucket: Kind, reason: str, answer: Output) -> Verdict:
    """Send an answer if the rate of its kind lets it; the token is taken last, when nothing else can stop it."""
    if not state.limiter.take(bucket, state.view.snapshot.icmp_rate, state.now_ns):
        return drop("rate_limited")
    state.out.append(answer)
    return reply(reason)
