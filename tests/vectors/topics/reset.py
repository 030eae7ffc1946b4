"""Resetting the flows of a server: who is told, with which numbers (docs/rules.md rule 15, resetting flows)."""

from __future__ import annotations

from scene import (
    BOTH,
    CLIENT2_MAC,
    SERVER_MACS,
    Case,
    Family,
    Talk,
    ether,
    hash_source,
    neighbours,
    tag,
    tcp,
    two_interfaces,
    udp,
    web_service,
    with_ports,
)

RFC = "RFC 5961 3.2: a RST is believed at exactly the next expected number"


def cases() -> list[Case]:
    """Make the cases."""
    return [case for f in BOTH for case in (*_states(f), *_lost(f), *_silent(f), *_choice(f), *_ways(f))]


def _ours(f: Family) -> dict[str, object]:
    return {"id": 0, "flags": "DF"} if f.version == 4 else {}


def to_client(talk: Talk, flags: str, seq: int, ack: int = 0) -> bytes:
    """Make the reset that the client must get."""
    packet = talk.family.ip(talk.vip, talk.client, 64, **_ours(talk.family)) / with_ports(
        tcp(flags, seq, ack, window=0), talk.vport, talk.sport
    )
    return ether(talk.our_macs[talk.client_if], talk.mac, packet)


def to_server(talk: Talk, flags: str, seq: int, ack: int = 0) -> bytes:
    """Make the reset that the server must get."""
    packet = talk.family.ip(talk.client, talk.server_address, 64, **_ours(talk.family)) / with_ports(
        tcp(flags, seq, ack, window=0), talk.sport, talk.server_port
    )
    return ether(talk.our_macs[talk.server_if], talk.server_mac, packet)


def _states(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    established = Case(f"an established flow's ends are reset at the numbers they expect, {v}", ["18.2", "12.4"], RFC)
    talk = Talk(established, f)
    talk.open()
    talk.c(tcp("PA", 1001, 5001, b"hello"))
    talk.s(tcp("PA", 5001, 1006, b"world!"))
    talk.c(tcp("A", 1006, 5007))
    established.reset(f.web_servers[0], 9, 1)
    established.flows()
    established.counters(
        events={"flow_reset": 1, "flow_closed": 0}, services={f.web: {"flows_active": 0}}, tx_packets=6
    )
    established.tick(to_client(talk, "RA", 5007, 1006), to_server(talk, "RA", 1006, 5007))
    established.counters(tx_packets=8)
    established.tick()
    established.drop(talk.s_in(tcp("A", 5007, 1006)), "no_flow")

    opening = Case(f"a client that waits for a SYN+ACK is refused at once, {v}", ["18.2"], "RFC 9293 3.10.7.3")
    talk = Talk(opening, f)
    talk.c(tcp("S", 1000))
    opening.reset(f.web_servers[0], 9, 1)
    opening.tick(to_client(talk, "RA", 0, 1001), to_server(talk, "R", 1001))

    answered = Case(f"a handshake that lacks its last ACK is reset on both sides, {v}", ["18.2"], "RFC 9293 3.10.7.3")
    talk = Talk(answered, f)
    talk.c(tcp("S", 1000))
    talk.s(tcp("SA", 5000, 1001))
    answered.reset(f.web_servers[0], 9, 1)
    answered.tick(to_client(talk, "RA", 5001, 1001), to_server(talk, "RA", 1001, 5001))
    return [established, opening, answered]


def _lost(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"an end that has not acknowledged all gets a reset at both numbers, {v}", ["18.2"], RFC)
    talk = Talk(case, f)
    talk.open()
    talk.s(tcp("PA", 5001, 1001, b"perhaps lost"))
    talk.c(tcp("PA", 1001, 5001, b"so too"))
    case.reset(f.web_servers[0], 9, 1)
    case.tick(
        to_client(talk, "RA", 5013, 1007),
        to_client(talk, "RA", 5001, 1007),
        to_server(talk, "RA", 1007, 5013),
        to_server(talk, "RA", 1001, 5013),
    )

    slots = (1 + hash_source(1, f.client) % 3,) * 3
    pickup = Case(
        f"a picked-up flow is reset at the numbers it showed, {v}",
        ["8.14", "18.2"],
        RFC,
        services=[web_service(f, "hash-source", slots)],
    )
    talk = Talk(pickup, f, number=slots[0])
    talk.c(tcp("PA", 1001, 5001, b"hello"))
    pickup.reset(f.web_servers[slots[0] - 1], 9, 1)
    pickup.tick(to_client(talk, "RA", 5001, 1006), to_server(talk, "RA", 1006, 5001))

    from_server = Case(
        f"a flow taken up from its server is reset at the numbers that showed, {v}",
        ["8.14", "18.2"],
        RFC,
        services=[web_service(f, "hash-source", slots)],
    )
    talk = Talk(from_server, f, number=slots[0])
    talk.s(tcp("PA", 5000, 1000, b"answer"))
    from_server.reset(f.web_servers[slots[0] - 1], 9, 1)
    from_server.tick(to_client(talk, "RA", 5006, 1000), to_server(talk, "RA", 1000, 5006))
    return [case, pickup, from_server, *_anew(f)]


def _anew(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    retry = Case(f"a client that has begun another attempt is refused at that, {v}", ["18.2"], "RFC 9293 3.10.7.3")
    talk = Talk(retry, f)
    talk.c(tcp("S", 1000))
    talk.c(tcp("S", 900000))
    retry.reset(f.web_servers[0], 9, 1)
    retry.tick(to_client(talk, "RA", 0, 900001), to_server(talk, "R", 900001))

    again = Case(f"a connection whose numbers began anew is reset at the new ones, {v}", ["8.10", "18.2"], RFC)
    talk = Talk(again, f)
    talk.open()
    talk.c(tcp("S", 900000))
    talk.s(tcp("SA", 700000, 900001))
    talk.c(tcp("A", 900001, 700001))
    talk.s(tcp("PA", 700001, 900001, b"greeting"))
    again.reset(f.web_servers[0], 9, 1)
    again.tick(
        to_client(talk, "RA", 700009, 900001),
        to_client(talk, "RA", 700001, 900001),
        to_server(talk, "RA", 900001, 700009),
    )

    forged = Case(f"segments that were not believed change no number of a reset, {v}", ["8.10", "18.2"], RFC)
    talk = Talk(forged, f)
    talk.open()
    talk.c(tcp("PA", 1001 + 8194, 5001, b"guess"))
    talk.s(tcp("PA", 5001, 1001 + 8194, b"guess"))
    talk.c(tcp("S", 77))
    talk.s(tcp("SA", 99, 78))
    talk.c(tcp("A", 78, 99))
    talk.c(tcp("R", 1002))
    forged.reset(f.web_servers[0], 9, 1)
    forged.tick(to_client(talk, "RA", 5001, 1001), to_server(talk, "RA", 1001, 5001))
    return [retry, again, forged]


def _silent(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    closing = Case(f"a flow that is closing is forgotten without a word, {v}", ["18.2"])
    talk = Talk(closing, f)
    talk.open()
    talk.close()
    closing.reset(f.web_servers[0], 9, 1)
    closing.counters(events={"flow_reset": 1}, services={f.web: {"flows_active": 0}})
    closing.tick()
    closing.flows()

    datagrams = Case(f"a UDP flow is forgotten without a word, {v}", ["18.2"])
    talk = Talk(datagrams, f, "udp")
    talk.c(udp(b"q"))
    datagrams.reset(f.dns_server, 9, 1)
    datagrams.tick()
    datagrams.flows()
    talk.c(udp(b"q"))
    talk.s(udp(b"a"))
    datagrams.flows(talk.flow("udp"))
    datagrams.reset(f.dns_server, 9, 1)
    datagrams.tick()
    datagrams.flows()
    datagrams.counters(events={"flow_reset": 2}, services={f.dns: {"flows_active": 0}})

    tagged = Case(f"a flow in a VLAN is forgotten without a word: nothing leaves untagged, {v}", ["18.2", "3.4"])
    talk = Talk(tagged, f, tags=(tag(7),))
    talk.open()
    tagged.reset(f.web_servers[0], 9, 1)
    tagged.tick()
    tagged.flows()
    return [closing, datagrams, tagged]


def _choice(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    case = Case(f"only the server's flows are reset, as many as asked, in order of client and port, {v}", ["18.2"])
    late = Talk(case, f, number=1, client=f.client2, mac=CLIENT2_MAC, sport=2000)
    other = Talk(case, f, number=2, sport=1500)
    third = Talk(case, f, number=3, sport=1600)
    second = Talk(case, f, number=1, sport=1800)
    others = [Talk(case, f, number=number, sport=1700 + number) for number in (2, 3)]
    first = Talk(case, f, number=1, sport=1000)
    for talk in (late, other, third, second, *others, first):
        talk.c(tcp("S", talk.sport))
    case.reset(f.web_servers[0], 2, 2)
    case.reset(f.web_servers[0], 2, 1)
    case.reset(f.web_servers[0], 2, 0)
    order = (first, second, late)
    case.tick(*(one for t in order for one in (to_client(t, "RA", 0, t.sport + 1), to_server(t, "R", t.sport + 1))))
    case.flows(*(talk.flow("syn-sent") for talk in (other, third, *others)))

    everything = Case(f"all flows are reset, whichever their servers, in order of client and port, {v}", ["18.3", "15"])
    talks = [Talk(everything, f, number=number, sport=1000 - number) for number in (1, 2, 3)]
    for talk in talks:
        talk.c(tcp("S", talk.sport))
    everything.reset(None, 2, 2)
    everything.reset(None, 2, 1)
    everything.reset(None, 2, 0)
    resets = ((to_client(t, "RA", 0, t.sport + 1), to_server(t, "R", t.sport + 1)) for t in reversed(talks))
    everything.tick(*(one for pair in resets for one in pair))
    everything.flows()

    expired = Case(f"a flow whose time is over is not reset, {v}", ["8.12", "18.2"])
    Talk(expired, f).c(tcp("S", 1000))
    expired.at(30_000)
    expired.reset(f.web_servers[0], 9, 0)
    expired.tick()
    expired.counters(events={"flow_reset": 0, "flow_expired": 1})
    return [case, everything, expired]


def _ways(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    gone = [entry for entry in neighbours() if entry[1] != f.servers[0]]
    unresolved = Case(f"a reset waits for no neighbour, {v}", ["18.2", "11"])
    talk = Talk(unresolved, f)
    talk.open()
    unresolved.next_hops(neighbours=gone)
    unresolved.reset(f.web_servers[0], 9, 1)
    unresolved.tick(to_client(talk, "RA", 5001, 1001))
    unresolved.unresolved()

    far = two_interfaces()
    apart = Case(f"each end is reset through its own interface, {v}", ["18.2", "11"], **far)
    address = next(s for s in far["services"] if s["name"] == f.web)["servers"][0]["address"]
    talk = Talk(apart, f, server_address=address, server_mac=SERVER_MACS[0], server_if="eth1")
    talk.open()
    apart.reset(f.web_servers[0], 9, 1)
    apart.tick(["eth0", to_client(talk, "RA", 5001, 1001)], ["eth1", to_server(talk, "RA", 1001, 5001)])
    return [unresolved, apart]
