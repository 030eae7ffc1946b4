"""
Resetting the flows of a server: both ends learn at once that it is over (`docs/datapath.md` rule 15).

Not part of a packet's walk: the control side asks for it when a server is down or is cut off. Frames wait for the next
tick, which sends them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import CLOSING, UDP, UDP_UNREPLIED
from lb.backends.python.next_hop import Hop, Output
from lb.backends.python.reply import ip_packet
from lb.backends.python.state import State
from lb.model.verdict import Direction
from lb.packet import ethernet, tcp

OTHER: dict[Direction, Direction] = {"forward": "reply", "reply": "forward"}


def reset_flows(state: State, server: int, entries: Sequence[Entry], now_ns: int) -> int:
    """
    Remove flows of a server, and make the resets for their ends.

    Args:
        state: of the data path.
        server: its id.
        entries: the flows to remove; those that are gone or dead by now, or another server's, are left out.
        now_ns: tells which flows are dead already.

    Returns:
        How many were removed.
    """
    table, view = state.table, state.view
    removed = 0
    for entry in entries:
        if entry.server != server or not table.has(entry) or table.why_dead(entry, view, now_ns) is not None:
            continue
        if entry.state not in (UDP, UDP_UNREPLIED, CLOSING) and not entry.tagged:
            state.pending.extend(resets(state, entry))
        table.remove(entry, "flow_reset")
        removed += 1
    return removed


def resets(state: State, entry: Entry) -> list[Output]:
    """Make the resets of one flow: to its client, then to its server."""
    service, server = state.view.services[entry.service], state.view.servers[entry.server]
    client = (entry.client, entry.client_port)
    vip, real = (service.address.packed, service.port), (server.address.packed, server.port)
    to_client = state.hops.to_last_hop(entry.last_hop, entry.client)
    to_server = state.hops.to_server(entry.server)
    return [
        *frames(state, to_client, vip, client, numbers(entry, "reply") or [0], acknowledged(entry, "reply")),
        *frames(state, to_server, client, real, numbers(entry, "forward"), acknowledged(entry, "forward")),
    ]


def numbers(entry: Entry, direction: Direction) -> list[int]:
    """Return the sequence numbers that the receiving end may expect: the peer's next, and what it acknowledged."""
    known = (entry.latest_snd_nxt(direction), entry.rcv_nxt[OTHER[direction]])
    return list(dict.fromkeys(number for number in known if number is not None))


def acknowledged(entry: Entry, direction: Direction) -> int | None:
    """Return what a segment in this direction acknowledges, as far as it is known."""
    sent = entry.latest_snd_nxt(OTHER[direction])
    return entry.rcv_nxt[direction] if sent is None else sent


def frames(
    state: State,
    hop: Hop | None,
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    seqs: list[int],
    ack: int | None,
) -> list[Output]:
    """Make a reset from one (address, port) to another for each sequence number; none without a way."""
    if hop is None or hop.mac is None:
        return []
    is_v4 = len(source[0]) == len(bytes(4))
    ethertype = ethernet.ETHERTYPE_IPV4 if is_v4 else ethernet.ETHERTYPE_IPV6
    header = ethernet.ethernet_header(hop.mac, state.view.interfaces[hop.interface].mac, ethertype)
    ports = (source[1], destination[1])
    segments = [tcp.reset_segment(source[0], destination[0], ports, seq, ack) for seq in seqs]
    packets = [ip_packet(source[0], destination[0], tcp.PROTOCOL, segment) for segment in segments]
    return [Output(hop.interface, header + packet, None) for packet in packets]
