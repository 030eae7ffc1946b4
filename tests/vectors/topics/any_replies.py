"""Replies that come to any balancer (docs/rules.md rule 8.23, replies through any balancer)."""

from __future__ import annotations

from typing import Any

from scene import (
    BOTH,
    CLIENT_PORT,
    V4,
    WEB_PORT,
    Case,
    Family,
    Talk,
    Watch,
    dns_service,
    hash_flow,
    tcp,
    udp,
    web_service,
)

from topics.icmp import from_client, from_server

ORIGIN = "rule 8.23, replies through any balancer"
NEAR, NEAR_ACKNOWLEDGED = 1 << 20, 1 << 24
FAR = 1 << 30


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [
            *_passing(f),
            *_refused(f),
            *_shared(f),
            *_no_flow(f),
            *_opening(f),
            *_confirmed(f),
            *_closing(f),
            *_half_closed(f),
            _picked_up(f),
            *_guesses(f),
            *_resets(f),
            _idle(f),
            *_eviction(f),
            *_errors(f),
            _direct(f),
            *_reloads(f),
        ]
    return made


def _case(name: str, f: Family, **setup: Any) -> Case:
    return Case(f"{name}, IPv{f.version}", ["8.23"], ORIGIN, any_replies=True, **setup)


def _passing(f: Family) -> list[Case]:
    """Replies of flows that another balancer has, of each policy."""
    made = []
    for selector in ("counter", "least", "hash-flow"):
        case = _case(f"a reply of no flow is translated by its endpoint and leaves no entry, {selector}", f)
        case.setup["services"] = [web_service(f, selector), dns_service(f)]
        for number in (1, 2, 3):
            talk = Talk(case, f, number=number)
            for l4 in (
                tcp("SA", 5000, 1001),
                tcp("A", 5001, 1001),
                tcp("PA", 5001, 1001, b"answer"),
                tcp("FA", 5007, 1001),
                tcp("R", 5007),
                tcp("RA", 0, 1001),
            ):
                talk.s(l4)
        Talk(case, f, "udp").s(udp(b"answer"))
        case.flows()
        case.counters(
            events={"reply_stateless": 19, "flow_stateless": 0, "flow_created": 0, "flow_miss": 19},
            servers={f"{f.web}/{f.web_servers[1]}": {"packets_reply": 6, "flows_active": 0}},
        )
        made.append(case)
    full = _case("a full table passes replies of no flow, too", f, capacity=1)
    Talk(full, f, sport=1).open()
    Talk(full, f, number=2, sport=2).s(tcp("SA", 5000, 1001))
    full.counters(events={"reply_stateless": 1, "flow_created": 1})
    elsewhere = _case("a reply of another server than that of the client's flow here is of another balancer's", f)
    Talk(elsewhere, f).open()
    Talk(elsewhere, f, number=2).s(tcp("A", 5001, 1001))
    elsewhere.counters(events={"reply_stateless": 1})
    return [*made, full, elsewhere]


def _refused(f: Family) -> list[Case]:
    case = _case("a SYN of a server, and what a client with its own address would get, are of no flow", f)
    case.drop(Talk(case, f).s_in(tcp("S", 5000)), "no_flow")
    case.drop(Talk(case, f, client=f.servers[0]).s_in(tcp("SA", 5000, 1001)), "no_flow")
    case.counters(events={"reply_stateless": 0})
    same = Case(f"only where it is set is a reply of no flow translated, IPv{f.version}", ["8.23"], ORIGIN)
    same.drop(Talk(same, f).s_in(tcp("SA", 5000, 1001)), "no_flow")
    same.publish(any_replies=True)
    Talk(same, f).s(tcp("SA", 5000, 1001))
    return [case, same]


def _second(f: Family, selector: str) -> dict[str, Any]:
    """Describe a second service on the servers of the first."""
    service = {**web_service(f, selector), "name": "alt", "port": 443}
    names = [f"alt{number}" for number in (1, 2, 3)]
    service["servers"] = [{**each, "name": name} for each, name in zip(service["servers"], names, strict=True)]
    service["plan"] = {**service["plan"], "slots": names}
    return service


def _shared(f: Family) -> list[Case]:
    """Two services on one endpoint: told apart where one alone can have placed the client there."""
    both = _case("a reply of an endpoint of two services that both may have placed it is of no flow", f)
    both.setup["services"] = [web_service(f, "counter"), _second(f, "counter")]
    both.drop(Talk(both, f).s_in(tcp("SA", 5000, 1001)), "no_flow")
    both.counters(events={"reply_stateless": 0})
    one = _case("a reply of an endpoint of two services is of the one that a hash does not exclude", f)
    one.setup["services"] = [web_service(f, "counter"), _second(f, "hash-flow")]
    chosen = hash_flow(1, f.client, f.vip, CLIENT_PORT, 443, 6) % 3 + 1
    one.drop(Talk(one, f, number=chosen).s_in(tcp("SA", 5000, 1001)), "no_flow")
    Talk(one, f, number=chosen % 3 + 1).s(tcp("SA", 5000, 1001))
    hashed = _case("a reply of an endpoint of two services that hash is of the one whose choice it is", f)
    hashed.setup["services"] = [web_service(f, "hash-source", (1,)), _second(f, "hash-flow")]
    number = chosen if chosen != 1 else 2
    talk = Talk(hashed, f, number=number, service="alt", server=f"alt{number}", vport=443)
    if number == chosen:
        talk.s(tcp("SA", 5000, 1001))
    else:
        hashed.drop(talk.s_in(tcp("SA", 5000, 1001)), "no_flow")
    return [both, one, hashed]


def _no_flow(f: Family) -> list[Case]:
    """What a client sends without a flow is placed as else."""
    hashed = _case("a client's FIN and RST of no flow are placed by a hash and leave no entry", f)
    hashed.setup["services"] = [web_service(f, "hash-flow")]
    talk = Talk(hashed, f, number=1 + hash_flow(1, f.client, f.vip, CLIENT_PORT, WEB_PORT, 6) % 3)
    for flags in ("FA", "R", "RA"):
        talk.c(tcp(flags, 1000, 5000))
    hashed.flows()
    hashed.counters(events={"flow_stateless": 3, "flow_created": 0})
    other = _case("a client's segment of no flow and of no hash is of no flow", f)
    for flags in ("A", "FA", "R"):
        talk = Talk(other, f)
        other.drop(talk.c_in(tcp(flags, 1000, 5000)), "no_flow", service=talk.service, direction="forward")
    return [hashed, other]


def _counted(case: Case, talk: Talk, active: int, closed: int = 0) -> None:
    case.counters(servers={f"{talk.service}/{talk.server}": {"flows_active": active}}, events={"flow_closed": closed})


def _watch(talk: Talk, state: str) -> Watch:
    """Watch a conversation whose replies go by route, whatever MAC its client has."""
    return Watch(talk, state, moves=False)


def _opened(name: str, f: Family, **setup: Any) -> tuple[Case, Talk, Watch]:
    """Make a case whose flow one side alone was seen of: the client's next is 1001, and it has acknowledged 5001."""
    case = _case(name, f, **setup)
    talk = Talk(case, f)
    talk.c(tcp("S", 1000))
    watch = _watch(talk, "syn-sent")
    watch.client(tcp("A", 1001, 5001), "one-way")
    return case, talk, watch


def _opening(f: Family) -> list[Case]:
    case = _case("a client that goes on behind its SYN was answered by another way", f)
    talk = Talk(case, f)
    talk.c(tcp("S", 1000))
    watch = _watch(talk, "syn-sent")
    # Not exactly behind it.
    for seq in (1000, 1002, 999):
        watch.forged_client(tcp("A", seq, 5001))
    watch.forged_client(tcp("P", 1001, 5001))
    watch.client(tcp("PA", 1001, 5001, b"data"), "one-way")
    _counted(case, talk, 1)
    watch.client(tcp("A", 1005, 5301))
    watch.client(tcp("PA", 1005, 5301, b"more"))
    # Sent again.
    watch.client(tcp("PA", 1001, 5301, b"data"))
    again = _case("a client may go on behind another SYN that it sent, and then behind its first", f)
    talk = Talk(again, f)
    talk.c(tcp("S", 1000))
    talk.c(tcp("S", 70000))
    watch = _watch(talk, "syn-sent")
    watch.client(tcp("A", 70001, 5001), "one-way")
    # It was forged: here is the client.
    watch.client(tcp("A", 1001, 9001))
    watch.client(tcp("FA", 1001, 9001), "closing")
    return [case, again]


def _confirmed(f: Family) -> list[Case]:
    case, talk, watch = _opened("a reply that acknowledges the client makes its flow established", f)
    watch.forged_server(tcp("A", 5001, (1001 + NEAR + 2) % 2**32))
    # A server answers any SYN inside the connection that it has by its own number.
    watch.forged_server(tcp("A", 5001 + 65537, 1001))
    watch.forged_server(tcp("A", 12345678, 1001))
    watch.forged_server(tcp("SA", 5000, 1001))
    watch.forged_server(tcp("P", 5001, 1001))
    watch.server(tcp("PA", 5001, 1001, b"answer"), "established")
    _counted(case, talk, 1)
    watch.client(tcp("A", 1001, 5007))
    both = _case("a flow both of whose sides come here is established by its handshake", f)
    talk = Talk(both, f)
    talk.c(tcp("S", 1000))
    watch = _watch(talk, "syn-sent")
    watch.server(tcp("SA", 5000, 1001), "syn-received")
    watch.forged_client(tcp("A", 1002, 5001))
    # A sender that did not see the SYN+ACK can hardly know its number.
    for ack in (5000, 5001 + 65536, 12345678):
        watch.forged_client(tcp("A", 1001, ack))
    watch.client(tcp("A", 1001, 5001), "established")
    # What the client acknowledges came by another way.
    watch.client(tcp("A", 1001, 5001 + NEAR_ACKNOWLEDGED))
    watch.client(tcp("PA", 1001, 5001 + NEAR_ACKNOWLEDGED, b"data"))
    _counted(both, talk, 1)
    return [case, both]


def _closing(f: Family) -> list[Case]:
    case, talk, watch = _opened("the client's FIN closes a flow, and what follows keeps it", f)
    watch.client(tcp("FA", 1001, 5001), "closing")
    _counted(case, talk, 0, closed=1)
    # It goes on reading, for longer than a closing flow lives.
    for step in range(1, 4):
        case.at(case.now_ms + 100_000)
        watch.client(tcp("A", 1002, 5001 + step * NEAR_ACKNOWLEDGED))
    case.at(case.now_ms + 100_000)
    watch.kept_client(tcp("A", 1002, 5001))
    _counted(case, talk, 0, closed=1)
    server = _case("the server's FIN closes a flow", f)
    talk = Talk(server, f)
    talk.open()
    watch = _watch(talk, "established")
    watch.forged_server(tcp("FA", 5001, 1001 + NEAR + 2))
    watch.server(tcp("FA", 5001, 1001), "closing")
    _counted(server, talk, 0, closed=1)
    watch.client(tcp("PA", 1001, 5002, b"data"))
    gap, talk, watch = _opened("the client's FIN behind a gap closes a flow", f)
    watch.client(tcp("FA", 1005, 5001), "closing")
    watch.client(tcp("PA", 1001, 5001, b"data"))
    third = _case("the FIN of a client that was not seen to be answered closes its flow", f)
    talk = Talk(third, f)
    talk.c(tcp("S", 1000))
    _watch(talk, "syn-sent").client(tcp("FA", 1001, 5001), "closing")
    _counted(third, talk, 0, closed=1)
    return [case, server, gap, third]


def _half_closed(f: Family) -> list[Case]:
    case, talk, watch = _opened("a SYN moves no flow that one side alone has closed, and may begin another there", f)
    watch.client(tcp("FA", 1001, 5001), "closing")
    # It keeps what is closing, so that it is there when the client goes on. The same again does not.
    watch.kept_client(tcp("S", 70000))
    watch.forged_client(tcp("S", 70000))
    watch.client(tcp("A", 1002, 5301))
    case.counters(events={"flow_created": 1, "flow_reused": 0})
    watch.client(tcp("A", 70001, 9001), "one-way")
    _counted(case, talk, 1, closed=1)
    watch.client(tcp("FA", 70001, 9001), "closing")
    _counted(case, talk, 0, closed=2)
    over, talk, watch = _opened("a SYN begins a flow anew that both sides have closed", f)
    watch.client(tcp("FA", 1001, 5001), "closing")
    watch.server(tcp("FA", 5001, 1002))
    over.rules.append("8.1")
    anew = Talk(over, f, number=2)
    anew.c(tcp("S", 70000))
    over.flows(anew.flow("syn-sent"))
    over.counters(events={"flow_created": 2, "flow_reused": 1})
    reset, talk, watch = _opened("a RST behind a SYN and an ACK that are forged moves no flow that goes on", f)
    watch.client(tcp("FA", 1001, 5001), "closing")
    watch.kept_client(tcp("S", 70000))
    reset.at(reset.now_ms + 1000)
    talk.c(tcp("A", 70001, 9001))
    talk.c(tcp("R", 70001))
    talk.c(tcp("S", 90000))
    talk.c(tcp("A", 1002, 5301))
    reset.flows(talk.flow("closing"))
    reset.counters(events={"flow_created": 1, "flow_reused": 0})
    return [case, over, reset]


def _picked_up(f: Family) -> Case:
    case = _case("a flow that was picked up counts when its client goes on where it was", f)
    case.setup["services"] = [web_service(f, "hash-flow")]
    talk = Talk(case, f, number=1 + hash_flow(1, f.client, f.vip, CLIENT_PORT, WEB_PORT, 6) % 3)
    talk.c(tcp("PA", 1000, 5000, b"data"))
    watch = _watch(talk, "pickup")
    _counted(case, talk, 0)
    watch.forged_client(tcp("FA", 1003, 5000))
    watch.forged_client(tcp("A", 2000, 5000))
    watch.client(tcp("A", 2000, 5300), "one-way")
    _counted(case, talk, 1)
    watch.client(tcp("FA", 2000, 5300), "closing")
    return case


def _guesses(f: Family) -> list[Case]:
    case, talk, watch = _opened("what a guess of a flow does not find closes nothing", f)
    for sign in (1, -1):
        watch.forged_client(tcp("FA", (1001 + sign * (NEAR + 2)) % 2**32, 5001))
        watch.forged_client(tcp("FA", 1001, (5001 + sign * (NEAR_ACKNOWLEDGED + 2)) % 2**32))
        # It may be the client, who has gone on by another way: the flow is kept for it.
        watch.kept_client(tcp("A", (1001 + sign * (NEAR + 2)) % 2**32, 5001))
    _counted(case, talk, 1)
    pair, talk, watch = _opened("a forged SYN and ACK take no flow from its client", f)
    watch.forged_client(tcp("S", FAR))
    watch.forged_server(tcp("SA", 9000, FAR + 1))
    watch.kept_client(tcp("A", FAR + 1, 9001))
    watch.forged_client(tcp("FA", FAR + 1, 9001))
    watch.forged_client(tcp("R", FAR + 1))
    watch.forged_client(tcp("S", FAR + 9))
    watch.client(tcp("PA", 1001, 5001, b"data"))
    watch.client(tcp("FA", 1005, 5001), "closing")
    _counted(pair, talk, 0, closed=1)
    return [case, pair]


def _resets(f: Family) -> list[Case]:
    case, talk, watch = _opened("a client's RST closes its flow exactly where it is, and passes elsewhere", f)
    for seq in (1000, 1002, 1001 + NEAR + 1):
        watch.forged_client(tcp("R", seq))
    watch.client(tcp("R", 1001), "closing")
    _counted(case, talk, 0, closed=1)
    server, talk, watch = _opened(
        "a server's RST closes a flow exactly where its client waits, and passes elsewhere", f
    )
    for seq in (5000, 5002):
        watch.forged_server(tcp("R", seq))
    watch.server(tcp("R", 5001), "closing")
    _counted(server, talk, 0, closed=1)
    refused = _case("a server's RST of a SYN that it answers closes its flow, and passes else", f)
    talk = Talk(refused, f)
    talk.c(tcp("S", 1000))
    watch = _watch(talk, "syn-sent")
    watch.forged_server(tcp("R", 5001))
    watch.forged_server(tcp("RA", 0, 1900))
    watch.server(tcp("RA", 0, 1001), "closing")
    return [case, server, refused]


def _idle(f: Family) -> Case:
    case, talk, watch = _opened("a flow of one way has the idle time of an established one", f)
    case.at(watch.seen_ms + 7440 * 1000 - 1)
    case.flows(talk.flow("one-way"))
    case.at(case.now_ms + 1)
    case.flows()
    return case


def _one_way(case: Case, talk: Talk) -> None:
    talk.c(tcp("S", 1000))
    talk.c(tcp("A", 1001, 5001))
    case.at(case.now_ms + 10)


def _eviction(f: Family) -> list[Case]:
    case = _case("a full table evicts flows of one way before the idlest", f, capacity=3)
    case.rules.append("8.17")
    case.setup["services"] = [web_service(f, "counter", (1,))]
    one, two, three, four, five, six = (Talk(case, f, sport=port) for port in (1, 2, 3, 4, 5, 6))
    one.open()
    for talk in (two, three):
        _one_way(case, talk)
    four.open()
    case.flows(one.flow("established"), three.flow("one-way"), four.flow("established"))
    case.counters(events={"flow_evicted_one_way": 1})
    five.c(tcp("S", 1000))
    six.c(tcp("S", 1000))
    case.flows(one.flow("established"), four.flow("established"), six.flow("syn-sent"))
    case.counters(events={"flow_evicted_one_way": 2, "flow_evicted_half_open": 1})
    reserve = _case("a full table evicts flows of one way before the reserve of new ones", f, capacity=64)
    reserve.rules.append("8.17")
    reserve.setup["services"] = [web_service(f, "counter", (1,))]
    talks = [Talk(reserve, f, sport=port) for port in range(1, 66)]
    for talk in talks[:63]:
        _one_way(reserve, talk)
    for talk in talks[63:]:
        talk.c(tcp("S", 1000))
    reserve.counters(events={"flow_evicted_one_way": 1, "flow_evicted_half_open": 0})
    return [case, reserve]


def _errors(f: Family) -> list[Case]:
    case = _case("an error about a packet to a server is translated by its endpoint", f)
    too_big = (3, 4, b"\0\0\x05\x14") if f is V4 else (2, 0, b"\0\0\x05\x14")
    for number in (1, 2):
        talk = Talk(case, f, number=number)
        incoming, outgoing = from_server(talk, too_big, tcp("A", 1001, 5001), None)
        case.forward(incoming, outgoing, **talk.reply_names)
        # Which server an error to the VIP is for is not known without a flow.
        incoming, _ = from_client(talk, too_big, tcp("A", 5001, 1001), None)
        case.drop(incoming, "icmp_no_flow")
    datagram = Talk(case, f, "udp")
    incoming, outgoing = from_server(datagram, too_big, udp(b"question"), None)
    case.forward(incoming, outgoing, **datagram.reply_names)
    case.counters(events={"reply_stateless": 0})
    shared = _case("an error about a packet to an endpoint of two services is of no flow", f)
    shared.setup["services"] = [web_service(f, "counter"), _second(f, "counter")]
    incoming, _ = from_server(Talk(shared, f), too_big, tcp("A", 1001, 5001), None)
    shared.drop(incoming, "icmp_no_flow")
    hashed = _case("an error to the VIP about a flow of a hash is translated", f)
    hashed.setup["services"] = [web_service(f, "hash-flow")]
    talk = Talk(hashed, f, number=1 + hash_flow(1, f.client, f.vip, CLIENT_PORT, WEB_PORT, 6) % 3)
    incoming, outgoing = from_client(talk, too_big, tcp("A", 5001, 1001), None)
    hashed.forward(incoming, outgoing, **talk.names)
    return [case, shared, hashed]


def _direct(f: Family) -> Case:
    """A direct connection whose answers may come to another balancer cannot be told from a flow of one."""
    case = _case("what a server answers is a reply, also to a client that speaks to it directly", f, transit="forward")
    talk = Talk(case, f)
    straight = Talk(case, f, vip=talk.server_address, vport=talk.server_port)
    case.forward(straight.c_in(tcp("S", 1000)), straight.c_out(tcp("S", 1000)))
    talk.s(tcp("SA", 5000, 1001))
    return case


def _reloads(f: Family) -> list[Case]:
    on = _case("a flow goes on when any balancer translates its replies from now on", f)
    on.setup["any_replies"] = False
    talk = Talk(on, f)
    talk.open()
    talk.c(tcp("FA", 1001, 5001))
    on.publish(any_replies=True)
    watch = _watch(talk, "established")
    watch.client(tcp("A", 1002, 5301), "closing")
    _counted(on, talk, 0, closed=1)
    server = _case("a flow that was picked up by its server is its client's from now on", f)
    server.setup |= {"any_replies": False, "services": [web_service(f, "hash-flow")]}
    talk = Talk(server, f, number=1 + hash_flow(1, f.client, f.vip, CLIENT_PORT, WEB_PORT, 6) % 3)
    talk.s(tcp("PA", 5000, 1000, bytes(100)))
    server.publish(any_replies=True)
    watch = _watch(talk, "pickup")
    watch.forged_client(tcp("A", 1000, 5000))
    watch.server(tcp("A", 5100, 1000), "established")
    watch.client(tcp("FA", 1000, 5100), "closing")
    kept = _case("a SYN that was kept before takes no flow when any balancer translates its replies from now on", f)
    kept.setup["any_replies"] = False
    talk = Talk(kept, f)
    talk.open()
    talk.c(tcp("S", FAR))
    kept.publish(any_replies=True)
    watch = _watch(talk, "established")
    watch.kept_client(tcp("A", FAR + 1, 9001))
    watch.forged_client(tcp("FA", FAR + 1, 9001))
    watch.client(tcp("PA", 1001, 5001, b"data"))
    half, talk, watch = _opened("a SYN begins a closing flow anew when each reply comes to the balancer that has it", f)
    watch.client(tcp("FA", 1001, 5001), "closing")
    half.publish(any_replies=False)
    Talk(half, f, number=2).c(tcp("S", 70000))
    half.counters(events={"flow_created": 2, "flow_reused": 1})
    off, talk, watch = _opened("a flow goes on when each reply comes to the balancer that has it from now on", f)
    off.publish(any_replies=False)
    watch.client(tcp("PA", 1001, 5001, b"data"))
    watch.server(tcp("PA", 5001, 1005, b"answer"))
    watch.client(tcp("FA", 1005, 5007))
    watch.server(tcp("FA", 5007, 1006), "closing")
    _counted(off, talk, 0, closed=1)
    return [on, server, kept, half, off]
