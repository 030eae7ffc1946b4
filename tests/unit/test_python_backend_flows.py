"""Flows through a backend: creation, translation, TCP states, timeouts, eviction (rule 8, flows)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    CLIENT_PORT,
    FAR,
    FAR_MAC,
    PROPERTY,
    ROUTER_MAC,
    ROUTER_MAC_1,
    SERVER_MACS,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Box,
    answer,
    from_client,
    from_server,
    load_backend,
    make_snapshot,
    only_frame,
    open_flow,
    query,
    request,
    response,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from lb.errors import LbError
from lb.model.snapshot import Neighbour, NextHops, Route, Snapshot
from snapshots import make_timeouts


def outcome(result: object) -> tuple[object, ...]:
    return tuple(getattr(result, name) for name in ("verdict", "reason", "direction", "service", "server"))


@pytest.mark.parametrize(("client", "vip", "server"), [(CLIENT, VIP, SERVERS[0]), (CLIENT6, VIP6, SERVERS6[0])])
def test_syn_new_flow_is_translated_both_ways(backend: str, client: str, vip: str, server: str) -> None:
    """Rule 8, flows, and rule 11, next hop: a SYN makes a flow, its answer goes back to the MAC the SYN came from."""
    box = Box(backend)
    name = "web6" if ":" in client else "web"
    result = box.send(from_client(request(), client))
    assert outcome(result) == ("forward", None, "forward", name, "server1")
    sent = only_frame(result)
    assert (sent.src, sent.dst, sent[1].src, sent[1].dst) == (ROUTER_MAC, SERVER_MACS[31], client, server)
    assert (sent[TCP].sport, sent[TCP].dport) == (CLIENT_PORT, 8031)
    result = box.send(from_server(response(), 0, client))
    assert outcome(result) == ("forward", None, "reply", name, "server1")
    sent = only_frame(result)
    assert (sent.src, sent.dst, sent[1].src, sent[1].dst) == (ROUTER_MAC, CLIENT_MAC, vip, client)
    assert (sent[TCP].sport, sent[TCP].dport) == (9876, CLIENT_PORT)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_udp_new_flow_is_translated_both_ways(backend: str, client: str) -> None:
    """Rule 8, flows: any UDP datagram to a service makes a flow."""
    box = Box(backend)
    assert only_frame(box.send(from_client(query(), client)))[UDP].dport == 5353
    assert only_frame(box.send(from_server(answer(), 0, client)))[UDP].sport == 53
    assert box.states() == ["udp"]


def test_translate_keeps_all_other_bytes(backend: str) -> None:
    """
    Rule 11.1, TTL; rule 8.20, translation; rule 5, IP headers: DSCP, ECN, TCP options and payload pass; TTL falls by
    one; padding is not sent.
    """
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]
    segment = TCP(sport=CLIENT_PORT, dport=9876, flags="SEC", options=options, window=999) / Raw(b"early")
    frame = bytes(from_client(segment, tos=0xB9, id=7))
    sent = only_frame(Box(backend).send(frame + b"padding"))
    expected = Ether(frame)
    expected.src, expected.dst, expected[IP].dst, expected[IP].ttl = ROUTER_MAC, SERVER_MACS[31], SERVERS[0], 63
    expected[TCP].dport = 8031
    del expected[IP].chksum, expected[TCP].chksum
    assert bytes(sent) == bytes(Ether(bytes(expected)))


def test_udp_checksum_rfc_vector_becomes_ffff(backend: str) -> None:
    """Rule 8.20, translation: the vector whose checksum becomes 0 by translation, which is sent as FFFF."""
    snapshot, hops = vector_world()
    datagram = UDP(sport=40000, dport=53) / Raw(b"\x1a\x6b")
    frame = from_client(datagram, "198.51.100.7", "203.0.113.10")
    assert Ether(bytes(frame))[UDP].chksum == 0xE2B3
    sent = only_frame(Box(backend, snapshot, hops).send(frame))
    assert (sent[IP].dst, sent[UDP].dport, sent[UDP].chksum) == ("10.0.0.11", 5353, 0xFFFF)


def vector_world() -> tuple[Snapshot, NextHops]:
    base = make_snapshot(slots=(0,))
    services, servers = list(base.services), list(base.servers)
    services[1] = replace(services[1], address=ip_address("203.0.113.10"))
    servers[3] = replace(servers[3], address=ip_address("10.0.0.11"))
    hops = NextHops((Route(ip_network("10.0.0.0/8"), 0),), (Neighbour(0, ip_address("10.0.0.11"), bytes(6)),))
    return replace(base, services=tuple(services), servers=tuple(servers)), hops


def test_udp_checksum_none_stays_none(backend: str) -> None:
    """Rule 8.20, translation: over IPv4, 0 means that there is no checksum."""
    result = Box(backend).send(from_client(UDP(sport=1, dport=53, chksum=0) / Raw(b"x")))
    assert Ether(result.out[0][1])[UDP].chksum == 0


@pytest.mark.parametrize("payload", [request(), query()])
def test_translate_wrong_checksum_stays_wrong(backend: str, payload: object) -> None:
    """Rule 8.20, translation: a wrong checksum is off by as much afterwards, never repaired."""
    frame = Ether(bytes(from_client(payload)))
    right = Box(backend).send(bytes(frame)).out[0][1]
    frame[2].chksum ^= 0x0100
    wrong = Box(backend).send(bytes(frame)).out[0][1]
    assert wrong != right
    assert Ether(wrong)[2].chksum != Ether(right)[2].chksum


@PROPERTY
@given(
    data=st.binary(max_size=60),
    port=st.integers(1, 65535),
    ttl=st.integers(2, 255),
    client=st.sampled_from([CLIENT, CLIENT6]),
    udp=st.booleans(),
)
def test_translate_any_packet_checksums_right_and_restored(
    backend: str, data: bytes, port: int, ttl: int, client: str, udp: bool
) -> None:
    """
    Rule 8.20, translation: scapy agrees with every checksum; an answer comes back from the VIP with the same bytes.
    """
    box = Box(backend)
    there = query(data, port) if udp else request("S", data=data, port=port)
    sent = only_frame(box.send(from_client(there, client, ttl=ttl)))
    back = answer(data, port) if udp else response("SA", data=data, port=port)
    seen = only_frame(box.send(from_server(back, 0, client)))
    vip = VIP6 if ":" in client else VIP
    assert (seen[1].src, seen[1].dst, seen[2].dport) == (vip, client, port)
    assert (seen[2].sport, sent[2].sport) == (53 if udp else 9876, port)
    assert bytes(seen[2].payload)[: len(data)] == data == bytes(sent[2].payload)[: len(data)]


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA", "SA"])
def test_tcp_without_flow_is_dropped(backend: str, flags: str) -> None:
    """Rule 8.14, client packets of no flow: without a hash selector nothing but a SYN creates a flow."""
    result = Box(backend).send(from_client(request(flags, 5, 6)))
    assert outcome(result) == ("drop", "no_flow", "forward", "web", None)


@pytest.mark.parametrize("selector", ["hash-flow", "hash-source"])
@pytest.mark.parametrize(
    ("flags", "verdict", "states"),
    [
        ("A", "forward", ["pickup"]),
        ("PA", "forward", ["pickup"]),
        ("FA", "forward", []),
        ("R", "forward", []),
        ("SA", "drop", []),
    ],
)
def test_tcp_mid_stream_hash_places_again(
    backend: str, selector: str, flags: str, verdict: str, states: list[str]
) -> None:
    """
    Rule 8.14, client packets of no flow: a hash selector places an ACK where its SYN was; FIN and RST, too, but they
    leave no entry.
    """
    snapshot = make_snapshot(selector)
    first = Box(backend, snapshot).send(from_client(request())).server
    restarted = Box(backend, snapshot)
    result = restarted.send(from_client(request(flags, 5, 6)))
    assert (result.verdict, restarted.states()) == (verdict, states)
    assert result.server == (first if verdict == "forward" else None)


def test_pickup_server_confirms_it(backend: str) -> None:
    """
    Rule 8.14, client packets of no flow, and rule 8.17, full table: a flow that a hash took up counts as active once
    its server has answered, by its numbers.
    """
    box = Box(backend, make_snapshot("hash-flow"))
    server = int(box.send(from_client(request("PA", 1001, 5001, b"more"))).server[-1]) - 1
    assert active_flows(box) == 0
    box.after(29)
    box.send(from_client(request("PA", 1005, 5001, b"more")))
    assert [flow.idle_s for flow in box.path.flows(box.now)] == [29.0]
    box.send(from_server(response("A", 5001, 1009), server))
    assert (box.states(), active_flows(box)) == (["established"], 1)
    box.after(30)
    assert box.states() == ["established"]


def test_pickup_alone_expires_with_the_half_open(backend: str) -> None:
    """
    Rule 8.14, client packets of no flow, and rule 8.12, idle timeouts: what only one side speaks in does not keep
    itself.
    """
    box = Box(backend, make_snapshot("hash-flow"))
    for _ in range(3):
        box.send(from_client(request("PA", 1001, 5001, b"more")))
        box.after(10)
    assert box.states() == []


def active_flows(box: Box) -> int:
    """Return how many flows count for servers."""
    return sum(each["flows_active"] for each in box.counters()["servers"].values())


def test_reply_mid_stream_hash_takes_up_the_flow(backend: str) -> None:
    """
    Rule 8.14, client packets of no flow: a server's packet restores the flow when the hash names that server, and is
    routed to the client.
    """
    snapshot = make_snapshot("hash-flow")
    first = int(Box(backend, snapshot).send(from_client(request())).server[-1]) - 1
    box = Box(backend, snapshot)
    result = box.send(from_server(response("PA", 7, 8, b"x"), first))
    assert outcome(result) == ("forward", None, "reply", "web", f"server{first + 1}")
    assert only_frame(result).dst == CLIENT_MAC
    other = (first + 1) % 3
    assert outcome(box.send(from_server(response("PA", 7, 8), other))) == ("drop", "no_flow", None, None, None)
    assert box.states() == ["pickup"]
    ending = Box(backend, snapshot)
    assert only_frame(ending.send(from_server(response("FA", 7, 8), first))).dst == CLIENT_MAC
    assert (ending.states(), ending.event("flow_stateless")) == ([], 1)
    assert outcome(ending.send(from_server(response("FA", 7, 8), other))) == ("drop", "no_flow", None, None, None)
    assert outcome(ending.send(from_server(response("SA", 7, 8), first))) == ("drop", "no_flow", None, None, None)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_no_flow_reset_answers_an_ack(backend: str, client: str) -> None:
    """Rule 8.14, client packets of no flow: with on_no_flow = "reset" a client whose flow is gone learns at once."""
    base = make_snapshot()
    services = tuple(replace(service, on_no_flow="reset") for service in base.services if service is not None)
    box = Box(backend, replace(base, services=services, icmp_rate=2))
    for flags in ("PA", "FA"):
        result = box.send(from_client(request(flags, 1001, 4242), client))
        assert outcome(result) == ("reply", "no_flow", "forward", "web6" if ":" in client else "web", None)
        sent = only_frame(result)
        assert (str(sent[TCP].flags), sent[TCP].seq, sent[TCP].ack, sent[TCP].window) == ("R", 4242, 0, 0)
        assert (sent.dst, sent[1].src, sent[1].dst) == (CLIENT_MAC, VIP6 if ":" in client else VIP, client)
    assert box.send(from_client(request("RA", 1001, 4242), client)).reason == "no_flow"
    assert box.send(from_server(response("A", 5001, 1001), 0, client)).reason == "no_flow"
    assert box.send(from_client(request("A", 1001, 4242), client)).reason == "rate_limited"
    assert (box.states(), box.counters()["tx_packets"]) == ([], 2)


def test_server_without_flow_is_dropped(backend: str) -> None:
    """Rule 8.15, server packets of no flow: a server's real address never leaks toward a client."""
    box = Box(backend)
    assert outcome(box.send(from_server(response()))) == ("drop", "no_flow", None, None, None)
    assert outcome(box.send(from_server(answer()))) == ("drop", "no_flow", None, None, None)


def test_states_full_connection_passes_through_all(backend: str) -> None:
    """Rule 8.8, states: SYN/ACK and the client's ACK establish, both FINs close; active flows follow."""
    box = Box(backend)
    seen = []
    for frame in (
        from_client(request("S", 100)),
        from_server(response("SA", 500, 101)),
        from_client(request("A", 101, 501)),
        from_client(request("FA", 101, 501)),
        from_server(response("FA", 501, 102)),
        from_client(request("A", 102, 502)),
    ):
        assert box.send(frame).verdict == "forward"
        seen.append((box.states()[0], box.counters()["servers"]["web/server1"]["flows_active"]))
    assert seen == [
        ("syn-sent", 1),
        ("syn-received", 1),
        ("established", 1),
        ("established", 1),
        ("closing", 0),
        ("closing", 0),
    ]
    assert box.event("flow_closed") == 1


def test_states_retransmitted_syn_counts_one_flow(backend: str) -> None:
    """Rule 8.8, states: least-connections does not drift by retransmissions, nor by FIN and then RST."""
    box = Box(backend)
    for _ in range(3):
        box.send(from_client(request("S", 100)))
    assert box.counters()["servers"]["web/server1"]["flows_active"] == 1
    box.send(from_server(response("SA", 500, 101)))
    box.send(from_client(request("FA", 101, 501)))
    box.send(from_server(response("FA", 501, 102)))
    box.send(from_server(response("RA", 502, 102)))
    assert (box.counters()["servers"]["web/server1"]["flows_active"], box.event("flow_closed")) == (0, 1)


# scapy's window: what both sides advertise.
WINDOW = 8192
RESETS = [
    ("client at next", "client", 1001, "closing"),
    ("client one too high", "client", 1002, "sent on"),
    ("client at the window's end", "client", 1001 + WINDOW, "sent on"),
    ("client beyond the window", "client", 1001 + WINDOW + 1, "dropped"),
    ("client one too low", "client", 1000, "dropped"),
    ("server at next", "server", 5001, "closing"),
    ("server in the window", "server", 9999, "sent on"),
    ("server beyond the window", "server", 5001 + WINDOW + 1, "dropped"),
    ("server one too low", "server", 5000, "dropped"),
]


@pytest.mark.parametrize(("name", "side", "seq", "becomes"), RESETS, ids=[row[0] for row in RESETS])
def test_rst_is_believed_only_at_the_exact_number(backend: str, name: str, side: str, seq: int, becomes: str) -> None:
    """
    Rule 8.2, reset acceptance: RST exactly at the next expected number closes; in the window it is sent on, beyond it
    dropped.
    """
    box = Box(backend)
    server = open_flow(box)
    box.after(1)
    frame = from_client(request("R", seq)) if side == "client" else from_server(response("R", seq), server)
    result = box.send(frame)
    if becomes == "closing":
        assert (result.verdict, box.states()) == ("forward", ["closing"])
        return
    assert outcome(result)[:2] == (("forward", None) if becomes == "sent on" else ("drop", "rst_window"))
    assert (box.states(), box.event("flow_closed")) == (["established"], 0)
    assert [flow.idle_s for flow in box.path.flows(box.now)] == [1.0]


def test_rst_refusing_a_syn_closes_the_flow(backend: str) -> None:
    """Rule 8.8, states, and rule 8.2, reset acceptance: connection refused has seq 0 and acknowledges the SYN."""
    box = Box(backend)
    box.send(from_client(request("S", 100)))
    assert box.send(from_server(response("RA", 0, 999))).reason == "rst_window"
    assert box.send(from_server(response("RA", 0, 101))).verdict == "forward"
    assert box.states() == ["closing"]


def test_rst_at_what_the_other_side_acknowledged_is_believed(backend: str) -> None:
    """Rule 8.10, believed segments: after unacknowledged data was lost on the way, the receiver's number counts too."""
    box = Box(backend)
    open_flow(box)
    box.send(from_client(request("PA", 1001, 5001, b"lost?")))
    assert box.send(from_client(request("R", 1001))).verdict == "forward"
    assert box.states() == ["closing"]


def test_sequence_numbers_wrap_around(backend: str) -> None:
    """Rule 8.10, believed segments: numbers are compared modulo 2**32."""
    box = Box(backend)
    box.send(from_client(request("S", 2**32 - 1)))
    box.send(from_server(response("SA", 2**32 - 2, 0)))
    box.send(from_client(request("PA", 0, 2**32 - 1, b"12345")))
    box.send(from_server(response("PA", 2**32 - 1, 5, b"1234")))
    for between in (2**32 - 2, 2, 4):
        box.send(from_server(response("R", between % 2**32, 0)))
        assert box.states() == ["established"]
    assert box.send(from_server(response("R", 3, 0))).verdict == "forward"
    assert box.states() == ["closing"]


def test_data_out_of_window_is_never_dropped(backend: str) -> None:
    """Rule 8.2, reset acceptance: strictness is for RST alone."""
    box = Box(backend)
    open_flow(box)
    box.after(1)
    assert box.send(from_client(request("PA", 1001 + 2**31, 77, b"far off"))).verdict == "forward"
    assert box.states() == ["established"]
    assert [flow.idle_s for flow in box.path.flows(box.now)] == [1.0]


@PROPERTY
@given(data=st.data())
def test_segments_of_a_stranger_change_nothing(backend: str, data: st.DataObject) -> None:
    """
    Rule 8.10, believed segments: no segments with other numbers than the window's change state, server, idle timer or
    last hop.
    """
    box = Box(backend)
    server = open_flow(box)
    box.after(1)
    beyond = st.integers(WINDOW + 2, 2**32 - WINDOW - 2)
    for _ in range(data.draw(st.integers(1, 8))):
        flags = data.draw(st.sampled_from(["A", "PA", "FA", "S", "R", "RA", "P", "SA"]))
        # A number beyond either window is enough to be no part of the connection.
        seq = (1001 + data.draw(beyond)) % 2**32
        ack = (5001 + data.draw(st.integers(0, 2**32 - 1))) % 2**32
        forged = from_client(request(flags, seq, ack, data.draw(st.binary(max_size=4))))
        forged[Ether].src = FAR_MAC
        assert box.send(forged).reason in (None, "rst_window")
    (flow,) = box.path.flows(box.now)
    assert (flow.state, flow.server, flow.idle_s) == ("established", f"server{server + 1}", 1.0)
    assert only_frame(box.send(from_server(response("A", 5001, 1001), server))).dst == CLIENT_MAC
    box.send(from_client(request("R", 1001)))
    assert box.states() == ["closing"]


def test_syn_on_closing_flow_is_a_new_flow(backend: str) -> None:
    """Rule 8.1, port reuse: no penalty for port reuse; the plan is asked again."""
    box = Box(backend)
    open_flow(box, index=0)
    box.send(from_client(request("R", 1001)))
    result = box.send(from_client(request("S", 9000)))
    assert outcome(result) == ("forward", None, "forward", "web", "server2")
    assert (box.states(), box.event("flow_reused"), box.event("flow_miss")) == (["syn-sent"], 1, 1)


def test_syn_inside_established_flow_goes_to_the_same_server(backend: str) -> None:
    """Rule 8.1, port reuse: the server's challenge ACK must be able to return."""
    box = Box(backend)
    server = open_flow(box)
    result = box.send(from_client(request("S", 9000)))
    assert (result.verdict, result.server, box.states()) == ("forward", f"server{server + 1}", ["established"])


TIMEOUTS = [
    ("syn-sent", 30),
    ("syn-received", 30),
    ("established", 7440),
    ("closing", 120),
    ("udp", 300),
    ("udp-unreplied", 300),
]


@pytest.mark.parametrize(("state", "seconds"), TIMEOUTS)
def test_timeout_idle_flow_expires(backend: str, state: str, seconds: int) -> None:
    """
    Rule 8.12, idle timeouts: half-open 30 s, established 7440 s, closing 120 s, UDP 300 s; not a nanosecond earlier.
    """
    box = Box(backend)
    bring_to(box, state)
    box.now += seconds * 10**9 - 1
    box.tick()
    assert box.states() == [state]
    box.now += 1
    assert box.states() == []
    assert box.event("flow_expired") == 0
    box.tick()
    assert box.event("flow_expired") == 1
    assert sum(each["flows_active"] for each in box.counters()["servers"].values()) == 0


def bring_to(box: Box, state: str) -> None:
    """Make a flow and bring it to a state."""
    if state in ("udp", "udp-unreplied"):
        box.send(from_client(query()))
    elif state in ("syn-sent", "syn-received"):
        box.send(from_client(request()))
    else:
        open_flow(box)
    if state == "udp":
        box.send(from_server(answer()))
    elif state == "syn-received":
        box.send(from_server(response()))
    elif state == "closing":
        box.send(from_client(request("R", 1001)))


def test_timeout_syns_that_nothing_answers_do_not_refresh(backend: str) -> None:
    """Rule 8.12, idle timeouts: a client of a dead server is placed anew 30 s after its first SYN."""
    box = Box(backend)
    servers = []
    for _ in range(5):
        servers.append(box.send(from_client(request())).server)
        box.after(7.5)
    assert servers == ["server1"] * 4 + ["server2"]


def test_timeout_packets_of_both_sides_refresh(backend: str) -> None:
    """Rule 8.12, idle timeouts: either direction keeps a flow alive."""
    box = Box(backend)
    box.send(from_client(query()))
    box.after(299)
    box.send(from_server(answer()))
    box.after(299)
    box.send(from_client(query()))
    box.after(299)
    assert box.states() == ["udp"]


def test_timeout_configured_value_counts(backend: str) -> None:
    """Rule 8.12, idle timeouts: all timeouts come with the snapshot."""
    box = Box(backend, make_snapshot(timeouts=make_timeouts(udp_ns=5)))
    box.send(from_client(query()))
    box.now += 5
    assert box.send(from_client(query())).server == "server2"
    assert (box.event("flow_expired"), box.event("flow_hit"), box.event("flow_miss")) == (1, 0, 2)


def test_expiry_removes_at_most_64_per_tick_and_4_per_frame(backend: str) -> None:
    """Rule 2, expiry, rule 22.1, bounded pauses: a flood's end does not stall one packet."""
    box = Box(backend)
    for port in range(1, 101):
        box.send(from_client(query(port=port)))
    box.after(300)
    box.tick()
    assert box.event("flow_expired") == 64
    box.send(bytes(60))
    assert box.event("flow_expired") == 68
    box.tick()
    assert box.event("flow_expired") == 100


def fill(box: Box, *kinds: str) -> None:
    """Make one flow of each kind, one second apart, on ports from 1."""
    for port, kind in enumerate(kinds, 1):
        if kind in ("udp", "unreplied"):
            placed = box.send(from_client(query(port=port))).server
        elif kind in ("half-open", "answered"):
            placed = box.send(from_client(request(port=port))).server
        else:
            open_flow(box, port=port)
        if kind == "udp":
            box.send(from_server(answer(port=port), int(placed[-1]) - 1))
        elif kind == "answered":
            box.send(from_server(response(port=port), int(placed[-1]) - 1))
        elif kind == "closing":
            box.send(from_client(request("R", 1001, port=port)))
        box.after(1)


EVICTIONS = [
    (("half-open", "answered", "unreplied", "unreplied"), 0, 3, "flow_evicted_unconfirmed"),
    (("established", "half-open", "closing", "half-open"), 0, 2, "flow_evicted_half_open"),
    (("answered", "answered", "closing", "half-open"), 0, 4, "flow_evicted_half_open"),
    (("answered", "udp", "closing", "established"), 0, 1, "flow_evicted_half_open"),
    (("closing", "udp", "answered", "established"), 0, 1, "flow_evicted_closing"),
    (("established", "udp", "closing", "closing"), 0, 3, "flow_evicted_closing"),
    (("established", "udp", "udp", "established"), 100, 1, "flow_evicted_idle"),
    (("udp", "established", "udp", "established"), 100, 1, "flow_evicted_idle"),
]


@pytest.mark.parametrize(("kinds", "wait", "gone", "event"), EVICTIONS)
def test_eviction_full_table_takes_the_right_one(
    backend: str, kinds: tuple[str, ...], wait: int, gone: int, event: str
) -> None:
    """
    Rule 8.17, full table: unconfirmed, syn-sent, syn-received after 3 s, closing, then the longest idle beyond the
    floor.
    """
    box = Box(backend, capacity=4)
    fill(box, *kinds)
    box.after(wait)
    assert box.send(from_client(request(port=999))).verdict == "forward"
    ports = {flow.client_port for flow in box.path.flows(box.now)}
    assert ports == {1, 2, 3, 4, 999} - {gone}
    assert box.event(event) == 1


def test_eviction_recently_active_flows_stay(backend: str) -> None:
    """
    Rule 8.17, full table: below the idle floor nothing is evicted for a new flow, which is refused with its own
    counter.
    """
    box = Box(backend, capacity=2)
    fill(box, "udp", "established")
    result = box.send(from_client(request(port=999)))
    assert outcome(result) == ("reply", "table_full", "forward", "web", "server2")
    assert box.counters()["verdicts"]["reply.table_full"] == 1


def test_eviction_hash_selector_needs_no_entry(backend: str) -> None:
    """Rule 8.17, full table: what cannot be stored is placed by the hash without state, both ways."""
    box = Box(backend, make_snapshot("hash-flow"), capacity=1)
    fill(box, "udp")
    result = box.send(from_client(request(port=999)))
    assert (result.verdict, box.event("flow_stateless")) == ("forward", 1)
    server = int(result.server[-1]) - 1
    only_frame(result)
    back = box.send(from_server(response("A", port=999), server))
    assert (back.verdict, back.direction, box.event("flow_stateless")) == ("forward", "reply", 2)
    assert only_frame(back)[IP].src == VIP
    assert len(box.path.flows(box.now)) == 1


@pytest.mark.parametrize("capacity", [0, -1, 2**28 + 1])
def test_capacity_out_of_range_raises(backend: str, capacity: int) -> None:
    """Rule 8.17, full table: the capacity is a promise, so it must be one that can be kept."""
    with pytest.raises((LbError, ValueError), match=r"(not in 1\.\.=268435456|-1 does not fit)"):
        Box(backend, capacity=capacity)


def test_removed_server_flow_is_orphaned(backend: str) -> None:
    """
    Rule 18.2, servers that leave or fail: the packets of a flow whose server has gone find no flow; a new SYN is
    placed elsewhere.
    """
    box = Box(backend)
    open_flow(box, index=0)
    before = make_snapshot(slots=(1,))
    box.path.publish(replace(before, servers=(None, *before.servers[1:])))
    assert box.path.flows(box.now) == []
    assert outcome(box.send(from_client(request("A", 1001, 5001)))) == ("drop", "no_flow", "forward", "web", None)
    assert box.event("flow_orphaned") == 1
    assert box.send(from_client(request())).server == "server2"


def test_drained_server_keeps_its_flows(backend: str) -> None:
    """Rule 18.2, servers that leave or fail, and rule 18.1, reloads and changes: a new plan moves no flow."""
    box = Box(backend)
    open_flow(box, index=0)
    box.path.publish(make_snapshot(slots=(2,), generation=2))
    assert box.send(from_client(request("PA", 1001, 5001, b"more"))).server == "server1"
    assert box.send(from_client(request(port=2))).server == "server3"


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_no_server_tcp_is_reset_with_valid_numbers(backend: str, client: str) -> None:
    """Rule 8.18, refusals: the client learns at once that there is no server."""
    box = Box(backend, make_snapshot(slots=()))
    result = box.send(from_client(request("S", 1000, data=b"12"), client))
    assert outcome(result)[:4] == ("reply", "no_server", "forward", "web6" if ":" in client else "web")
    sent = only_frame(result)
    assert (sent.src, sent.dst, sent[1].src, sent[1].dst) == (
        ROUTER_MAC,
        CLIENT_MAC,
        VIP6 if ":" in client else VIP,
        client,
    )
    assert (str(sent[TCP].flags), sent[TCP].seq, sent[TCP].ack, sent[TCP].window) == ("RA", 0, 1003, 0)
    assert (sent[TCP].sport, sent[TCP].dport) == (9876, CLIENT_PORT)


def test_no_server_mid_stream_is_reset_at_its_ack(backend: str) -> None:
    """Rule 8.18, refusals: a RST for a segment with ACK takes its number from there and has no ACK itself."""
    box = Box(backend, make_snapshot("hash-flow", slots=()))
    sent = only_frame(box.send(from_client(request("A", 7, 4242))))
    assert (str(sent[TCP].flags), sent[TCP].seq, sent[TCP].ack) == ("R", 4242, 0)


def test_no_server_drop_is_silent(backend: str) -> None:
    """Rule 8.18, refusals: on_no_server = "drop"."""
    box = Box(backend, make_snapshot(slots=(), on_no_server="drop"))
    for payload in (request(), query()):
        result = box.send(from_client(payload))
        assert (result.verdict, result.reason, result.out) == ("drop", "no_server", [])


def test_hairpin_server_as_its_own_client_is_refused(backend: str) -> None:
    """Rule 8.16, placement: a server that asks a VIP would answer itself directly; there is no other."""
    result = Box(backend, make_snapshot(slots=(0,))).send(
        Ether(src=SERVER_MACS[31], dst=ROUTER_MAC) / IP(src=SERVERS[0], dst=VIP) / request()
    )
    assert outcome(result) == ("reply", "hairpin", "forward", "web", "server1")


def test_shared_endpoint_two_services_conflict(backend: str) -> None:
    """Two flows that a server could not tell apart are not both made; a closing one makes way."""
    base = make_snapshot(slots=(0,))
    second = replace(base.services[0], name="web-b", port=9877, plan=replace(base.services[0].plan, slots=(12,)))
    shared = replace(base.servers[0], service=4, address=ip_address(SERVERS[0]))
    box = Box(backend, replace(base, services=(*base.services, second), servers=(*base.servers, shared)))
    open_flow(box)
    to_second = from_client(TCP(sport=CLIENT_PORT, dport=9877, flags="S", seq=1))
    assert outcome(box.send(to_second)) == ("reply", "flow_conflict", "forward", "web-b", "server1")
    box.send(from_client(request("R", 1001)))
    assert outcome(box.send(to_second)) == ("forward", None, "forward", "web-b", "server1")
    assert box.event("flow_reused") == 1


def test_last_hop_reply_follows_the_client_to_another_interface(backend: str) -> None:
    """Rule 11, next hop: replies go back to the MAC and interface the flow's packets came from last."""
    box = Box(backend)
    frame = Ether(src="aa:aa:aa:00:02:77", dst=ROUTER_MAC_1) / IP(src=FAR, dst=VIP) / request()
    assert box.send(frame, interface=1).out[0][0] == "eth0"
    result = box.send(from_server(response(), 0, FAR))
    assert (result.out[0][0], only_frame(result).dst) == ("eth1", "aa:aa:aa:00:02:77")
    frame = Ether(src=FAR_MAC, dst=ROUTER_MAC_1) / IP(src=FAR, dst=VIP) / request("A", 1001, 5001)
    box.send(frame, interface=1)
    assert only_frame(box.send(from_server(response("A", 5001, 1001), 0, FAR))).dst == FAR_MAC


def test_vlan_tag_travels_with_the_flow_and_stays_on_its_interface(backend: str) -> None:
    """Rule 3.4, VLAN tags: a tagged frame keeps its tag, and never leaves through another interface."""
    box = Box(backend)
    frame = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / Dot1Q(vlan=5, prio=3) / IP(src=CLIENT, dst=VIP) / request()
    sent = only_frame(box.send(frame))
    assert (sent[Dot1Q].vlan, sent[Dot1Q].prio, sent[IP].dst) == (5, 3, SERVERS[0])
    frame = Ether(src=FAR_MAC, dst=ROUTER_MAC_1) / Dot1Q(vlan=5) / IP(src=FAR, dst=VIP) / request()
    assert outcome(box.send(frame, interface=1))[:2] == ("drop", "vlan")


def test_counters_traffic_is_attributed(backend: str) -> None:
    """Rule 13, counters: services and servers count packets and bytes of IP per direction, flows likewise."""
    box = Box(backend)
    box.send(from_client(query(b"12345")))
    box.send(from_server(answer(b"1234567")))
    expected = {
        "flows_created": 1,
        "flows_active": 1,
        "packets_forward": 1,
        "packets_reply": 1,
        "bytes_forward": 33,
        "bytes_reply": 35,
    }
    counters = box.counters()
    assert counters["services"]["dns"] == counters["servers"]["dns/server1"] == expected
    assert (counters["rx_packets"], counters["tx_packets"], counters["verdicts"]) == (2, 2, {"forward": 2})
    flow = box.path.flows(box.now)[0]
    assert flow == (CLIENT, CLIENT_PORT, "dns", "server1", "udp", "udp", 0.0, 33, 35)


def test_flows_listing_is_sorted(backend: str) -> None:
    """By client, port, service: IPv4 before IPv6."""
    box = Box(backend)
    for client in (CLIENT6, CLIENT):
        for port in (7, 5):
            box.send(from_client(query(port=port), client))
            box.send(from_client(request(port=port), client))
    listed = [(flow.client, flow.client_port, flow.service) for flow in box.path.flows(box.now)]
    assert listed == [
        (CLIENT, 5, "web"),
        (CLIENT, 5, "dns"),
        (CLIENT, 7, "web"),
        (CLIENT, 7, "dns"),
        (CLIENT6, 5, "web6"),
        (CLIENT6, 5, "dns6"),
        (CLIENT6, 7, "web6"),
        (CLIENT6, 7, "dns6"),
    ]


def test_process_before_publish_drops_everything(backend: str) -> None:
    """A data path without a snapshot takes no frames."""
    path = load_backend(backend).DataPath(16, bytes(16), 1)
    results = path.process_many([bytes(from_client(request())), b""], 0, 1)
    assert [(each.verdict, each.reason) for each in results] == [("drop", "not_for_us")] * 2
    assert Box(backend).send(from_client(request()), interface=2).reason == "not_for_us"
