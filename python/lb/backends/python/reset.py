"""
Resetting the flows of a server: client and server get a RST at once (`docs/rules.md` rule 15, resetting flows).

Not part of a packet's walk: the control side asks for it when a server is down or disabled with `--reset`. The next
tick sends the frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from lb.backends.python.entry import Entry
from lb.backends.python.flow_states import CLOSING, UDP, UDP_UNREPLIED
from lb.backends.python.next_hop import Hop, Output
from lb.backends.python.reply import ip_packet
from lb.backends.python.tables import Tables
from lb.model.verdict import Direction
from lb.packet import ethernet, tcp

OTHER: dict[Direction, Direction] = {"forward": "reply", "reply": "forward"}


def reset_flows(tables: Tables, server: int | None, entries: Sequence[Entry], now_ns: int) -> int:
    """
    Remove flows, and make the resets for their ends.

    Args:
        tables: of the data path.
        server: the id of theirs; None: any.
        entries: the flows to remove; those removed or expired by now, or of another server, are left out.
        now_ns: monotonic nanoseconds.

    Returns:
        How many were removed.
    """
    table, forwarding = tables.flows, tables.forwarding
    removed = 0
    for entry in entries:
        is_one = server in (None, entry.server) and table.has(entry)
        if not is_one or table.why_dead(entry, forwarding, now_ns) is not None:
            continue
        if entry.state not in (UDP, UDP_UNREPLIED, CLOSING) and not entry.tagged:
            tables.pending.extend(resets(tables, entry))
        table.remove(entry, "flow_reset")
        removed += 1
    return removed


def resets(tables: Tables, entry: Entry) -> list[Output]:
    """Make the resets of one flow: to its client, then to its server."""
    service, server = tables.forwarding.services[entry.service], tables.forwarding.servers[entry.server]
    client = (entry.client, entry.client_port)
    vip, real = (service.address.packed, service.port), (server.address.packed, server.port)
    to_client = tables.hops.reply_next_hop(entry.ingress, entry.client)
    to_server = tables.hops.to_server(entry.server)
    return [
        *frames(tables, to_client, vip, client, numbers(entry, "reply") or [0], acknowledged(entry, "reply")),
        *frames(tables, to_server, client, real, numbers(entry, "forward"), acknowledged(entry, "forward")),
    ]


def numbers(entry: Entry, direction: Direction) -> list[int]:
    """Return the sequence numbers that the receiver may expect: the peer's next, and the last one acknowledged."""
    known = (entry.latest_snd_nxt(direction), entry.rcv_nxt[OTHER[direction]])
    return list(dict.fromkeys(number for number in known if number is not None))


def acknowledged(entry: Entry, direction: Direction) -> int | None:
    """Return the number that a segment in this direction acknowledges, None when unknown."""
    sent = entry.latest_snd_nxt(OTHER[direction])
    return entry.rcv_nxt[direction] if sent is None else sent


def frames(
    tables: Tables,
    hop: Hop | None,
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    seqs: list[int],
    ack: int | None,
) -> list[Output]:
    """Make a RST from one (address, port) to another for each sequence number; none without a next hop."""
    if hop is None or hop.mac is None:
        return []
    is_v4 = len(source[0]) == len(bytes(4))
    ethertype = ethernet.ETHERTYPE_IPV4 if is_v4 else ethernet.ETHERTYPE_IPV6
    header = ethernet.ethernet_header(hop.mac, tables.forwarding.interfaces[hop.interface].mac, ethertype)
    ports = (source[1], destination[1])
    segments = [tcp.reset_segment(source[0], destination[0], ports, seq, ack) for seq in seqs]
    packets = [ip_packet(source[0], destination[0], tcp.PROTOCOL, segment) for segment in segments]
    return [Output(hop.interface, header + packet, None) for packet in packets]
