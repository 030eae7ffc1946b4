"""
Why a flow goes where it goes: `lb explain`.

It answers from the same snapshot, plan and next hops that packets are handled by, without a packet: nothing is placed,
counted or drawn (`DataPath.peek` changes nothing). Where chance decides, it gives the chances. The answer is plain
data, ready for JSON; `lb.explain.text` makes text of it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from lb.backends.base import Flow
from lb.backends.python.forwarding_state import ForwardingState, is_martian_source
from lb.backends.python.next_hop import Hop, HopTable
from lb.compiler.compile import Compiler, connected_routes, offline_interface
from lb.compiler.spec import EffectiveServer, ServerKey, Spec, services
from lb.config import Config
from lb.errors import RequestError, UnknownNameError
from lb.fields.types import format_mac, plain_address
from lb.model.limits import HIGHEST_PORT
from lb.model.snapshot import Address, NextHops, Plan, Protocol, Service, Snapshot
from lb.packet.hashing import flow_hash, source_hash
from lb.packet.protocols import PROTOCOLS

# Linux hosts send with this; what matters is that it leaves one lower.
EXAMPLE_TTL = 64
NEAR = 3


class Endpoint(NamedTuple):
    """An address and a port."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Question:
    """A flow that may come. `protocol`: None: whichever has a service there, TCP before UDP."""

    client: Endpoint
    vip: Endpoint
    protocol: Protocol | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """
    What an answer is made of.

    Args:
        spec: configuration, overrides and health.
        snapshot, next_hops: what packets are handled by.
        active: active flows by `SERVICE/SERVER`.
        flow: of the client, if it has one. round: of the service. Both belong to one question.
        is_running: whether all this comes from a running balancer.
    """

    spec: Spec
    snapshot: Snapshot
    next_hops: NextHops
    active: Mapping[str, int]
    flow: Flow | None = None
    round: int = 0
    is_running: bool = True


def parse_endpoint(text: str) -> Endpoint:
    """
    Read `198.18.1.21:40000` or `[2001:db8::21]:40000`.

    Raises:
        RequestError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = plain_address(host)
        if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= HIGHEST_PORT:
            raise ValueError
    except ValueError:
        raise RequestError(f"{text!r} is not ADDRESS:PORT, such as 198.18.1.21:40000 or [2001:db8::21]:40000") from None
    return Endpoint(address, int(port))


def find_service(snapshot: Snapshot, question: Question) -> tuple[int, Service]:
    """
    Return the service that a question is about, with its id.

    Raises:
        RequestError: client and VIP are of different families.
        UnknownNameError: packets there belong to no service; the message says what is near.
    """
    if question.client.address.version != question.vip.address.version:
        raise RequestError(
            f"{question.client.address} is IPv{question.client.address.version}, "
            f"{question.vip.address} is IPv{question.vip.address.version}: no packet has both"
        )
    present = [(number, service) for number, service in enumerate(snapshot.services) if service is not None]
    for protocol in (question.protocol,) if question.protocol else ("tcp", "udp"):
        for number, service in present:
            if (service.address, service.port, service.protocol) == (*question.vip, protocol):
                return number, service
    raise UnknownNameError(_what_is_near(question, [service for _, service in present]))


def _what_is_near(question: Question, present: list[Service]) -> str:
    here = [service for service in present if service.address == question.vip.address]
    protocol = f"/{question.protocol}" if question.protocol else ""
    if here:
        listed = ", ".join(_listening(service) for service in here[:NEAR])
        return (
            f"{question.vip}{protocol} is not a service: such packets are dropped (no_service); on this VIP: {listed}"
        )
    names = {_listening(service): service for service in present}
    near = difflib.get_close_matches(str(question.vip), names, n=NEAR, cutoff=0.5) or list(names)[:NEAR]
    return (
        f"{question.vip.address} is not a VIP: such packets belong to no service; services: {', '.join(near) or 'none'}"
    )


def _listening(service: Service) -> str:
    return f"{Endpoint(service.address, service.port)}/{service.protocol} ({service.name})"


def explain(question: Question, known: Known) -> dict[str, Any]:
    """
    Answer a question.

    Returns:
        `service`, `flow` (None: a new one), `servers` with what keeps each in or out, `plan` with how it chooses,
        `choice`, `next_hop`, `headers`, `notes`. Docs: docs/observe.md.

    Raises:
        UnknownNameError, RequestError: as `find_service`.
    """
    number, service = find_service(known.snapshot, question)
    forwarding = ForwardingState(known.snapshot)
    choice = _choice(question, known, service, forwarding)
    server_id = _server_id(known.snapshot, number, choice["server"])
    hop = None if server_id is None else HopTable(forwarding, known.next_hops).to_server(server_id)
    return {
        "client": str(question.client),
        "vip": str(question.vip),
        "running": known.is_running,
        "generation": known.snapshot.generation,
        "service": {
            "name": service.name,
            "address": str(service.address),
            "port": service.port,
            "protocol": service.protocol,
            "policy": _policy_name(known.spec, service),
        },
        "flow": None if known.flow is None else known.flow._asdict(),
        "servers": list(_servers(known, service)),
        "plan": _plan(service.plan),
        "choice": choice,
        "next_hop": None if hop is None else _next_hop(hop, forwarding),
        "headers": None if server_id is None else _headers(question, service, forwarding, server_id, hop),
        "notes": list(_notes(known, service, choice, hop)),
    }


def _choice(question: Question, known: Known, service: Service, forwarding: ForwardingState) -> dict[str, Any]:
    """Return the verdict on the flow's first packet: its server if only one is possible, the chances, and how."""
    chances, how = _choose(question, known, service)
    choice: dict[str, Any] = {
        "how": how,
        "chances": chances,
        "server": None,
        "asked": [],
        "verdict": "forward",
        "reason": None,
    }
    is_asked = known.flow is None and service.plan.selector == "ask"
    asked = list(dict.fromkeys(_slot_names(known.snapshot, service.plan))) if is_asked else []
    refused = _refusal(question, forwarding)
    if refused is not None:
        choice |= {"how": refused[1], "chances": {}, "verdict": "drop", "reason": refused[0]}
    elif asked:
        choice["asked"] = asked
    elif not chances:
        choice |= {"verdict": "drop" if service.on_no_server == "drop" else "reply", "reason": "no_server"}
    elif len(chances) == 1:
        choice["server"] = next(iter(chances))
    return choice


def _policy_name(spec: Spec, service: Service) -> str:
    found = (each.config.policy.name for each in services(spec) if each.name == service.name)
    return next(found, "none: the service is leaving")


def _server_id(snapshot: Snapshot, service: int, name: str | None) -> int | None:
    for number, server in enumerate(snapshot.servers):
        if server is not None and server.service == service and server.name == name:
            return number
    return None


def _refusal(question: Question, forwarding: ForwardingState) -> tuple[str, str] | None:
    """Return the drop reason of packets from this client, and why, when no service would ever see them."""
    client = question.client.address.packed
    if (
        is_martian_source(client)
        or client in forwarding.vips
        or client in forwarding.own_addresses
        or client in forwarding.all_broadcasts
    ):
        return "martian_source", f"no packet may come from {question.client.address}"
    return None


# Servers: which are eligible, and why the others are not.


def _servers(known: Known, service: Service) -> Iterator[dict[str, Any]]:
    slots = Counter(_slot_names(known.snapshot, service.plan))
    for each in services(known.spec):
        if each.name != service.name:
            continue
        for server in each.servers:
            reason = _why_out(known.spec, service.name, server)
            count = slots.get(server.name, 0)
            if reason is None and not count:
                reason = "the policy gives it no slot"
            yield {
                "name": server.name,
                "address": str(server.config.address),
                "port": server.config.port,
                "weight": server.weight,
                "ramp": server.ramp,
                "state": server.state,
                "health": server.health,
                "flows_active": known.active.get(f"{service.name}/{server.name}", 0),
                "slots": count,
                "candidate": reason is None,
                "why": reason
                or ("takes new flows" if server.ramp >= 1 else f"starts slowly: {server.ramp:.0%} so far"),
            }


def _why_out(spec: Spec, service: str, server: EffectiveServer) -> str | None:
    """Return why a server takes no new flows; None: it takes them."""
    key = ServerKey(service, server.name)
    if server.is_removed:
        return "removed: it stays until its flows have ended"
    if server.state != "active":
        override = spec.overrides.get(key)
        by = "by the operator" if override is not None and override.state is not None else "by the configuration"
        return f"{server.state}, {by}"
    if server.health == "down":
        status = spec.health.get(key)
        return f"down: {status.reason}" if status is not None and status.reason else "down"
    if server.weight == 0:
        return "weight 0"
    return None


# The plan: how it would choose.


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "selector": plan.selector,
        "slots": len(plan.slots),
        "fallback": None if plan.fallback is None else _plan(plan.fallback),
    }


def _slot_names(snapshot: Snapshot, plan: Plan) -> list[str]:
    servers = (snapshot.servers[slot] for slot in plan.slots)
    return [server.name for server in servers if server is not None]


def _choose(question: Question, known: Known, service: Service) -> tuple[dict[str, float], str]:
    """Return the chance of each server, and how that comes; no server: no chance."""
    if known.flow is not None:
        return {known.flow.server: 1.0}, "the flow exists: it keeps its server"
    return _chances(question, known, service, service.plan)


def _chances(question: Question, known: Known, service: Service, plan: Plan) -> tuple[dict[str, float], str]:
    if not plan.slots:
        return {}, "no server takes new flows"
    count = len(plan.slots)
    if plan.selector == "ask":
        return _ask(question, known, service, plan)
    if plan.selector == "least":
        return _least(known, service, plan)
    if plan.selector == "two-choices":
        return _two_choices(
            known, service, plan
        ), "two different random slots, the cheaper one; cost = (active flows + 1) x score"
    if plan.selector == "random":
        shares = Counter(_slot_names(known.snapshot, plan))
        return {name: slots / count for name, slots in shares.items()}, f"a random slot of {count}"
    index, how = _fixed_slot(question, known, service, plan)
    server = known.snapshot.servers[plan.slots[index]]
    return ({} if server is None else {server.name: 1.0}), how


def _fixed_slot(question: Question, known: Known, service: Service, plan: Plan) -> tuple[int, str]:
    """Return the slot of a selector that leaves nothing to chance, and how it is computed."""
    count, seed = len(plan.slots), known.snapshot.seed
    if plan.selector == "counter":
        index = known.round % count
        return index, f"round {known.round}: slot {index} of {count}, if no other flow comes first"
    client = question.client.address.packed
    if plan.selector == "hash-source":
        number, of = source_hash(seed, client), "the client's address"
    else:
        vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
        number, of = flow_hash(seed, client, vip, question.client.port, service.port, protocol), "the 5-tuple"
    return number % count, f"hash of {of}: {number:#018x}, slot {number % count} of {count}"


def _least(known: Known, service: Service, plan: Plan) -> tuple[dict[str, float], str]:
    rows = {}
    for slot in plan.slots:
        server = known.snapshot.servers[slot]
        if server is not None:
            rows[server.name] = (known.active.get(f"{service.name}/{server.name}", 0), server.weight or 1)
    chosen = known.snapshot.servers[plan.slots[known.round % len(plan.slots)]]
    if chosen is None:
        return {}, "no server takes new flows"
    total, (active, weight) = sum(each for each, _ in rows.values()), rows[chosen.name]
    how = f"the smallest (active flows + 1) / weight now: {active + 1} / {weight}"
    if total < len(rows) and not active:
        how = f"{total} active flows, {len(rows)} servers: those without flows round-robin by weight"
    return {chosen.name: 1.0}, f"{how}; right if no other flow comes first"


def _two_choices(known: Known, service: Service, plan: Plan) -> dict[str, float]:
    """Return the chances exactly: a slot wins when it is drawn first and the second is no cheaper, or the reverse."""
    groups: Counter[tuple[str, int]] = Counter()
    for index, slot in enumerate(plan.slots):
        server = known.snapshot.servers[slot]
        if server is not None:
            active = known.active.get(f"{service.name}/{server.name}", 0)
            groups[server.name, (active + 1) * (plan.scores[index] if plan.scores else 1)] += 1
    total = sum(groups.values())
    pairs = max(total * (total - 1), 1)
    chances: dict[str, float] = {}
    for (name, cost), slots in groups.items():
        # Drawn first, it is compared with every other slot; a single slot is compared with none.
        first = sum(other for (_, theirs), other in groups.items() if theirs >= cost) - (total > 1)
        second = sum(other for (_, theirs), other in groups.items() if theirs > cost)
        chances[name] = chances.get(name, 0.0) + slots * (first + second) / pairs
    return chances


def _ask(question: Question, known: Known, service: Service, plan: Plan) -> tuple[dict[str, float], str]:
    """Return what the fall-back plan would do."""
    told = "the user's policy is asked when the flow comes, not now"
    if plan.fallback is None:
        return {}, told
    chances, how = _chances(question, known, service, plan.fallback)
    return chances, f"{told}; without a usable answer in time: {how}"


# Next hop and headers.


def _next_hop(hop: Hop, forwarding: ForwardingState) -> dict[str, Any]:
    return {
        "interface": forwarding.interfaces[hop.interface].name,
        "address": str(ip_address(hop.address)),
        "mac": None if hop.mac is None else format_mac(hop.mac),
        "mtu": hop.mtu,
    }


def _headers(
    question: Question, service: Service, forwarding: ForwardingState, server_id: int, hop: Hop | None
) -> dict[str, Any]:
    """Return the headers of both directions before and after translation; None: unknown before a packet comes."""
    server, vip = forwarding.servers[server_id], Endpoint(service.address, service.port)
    real = Endpoint(server.address, server.port)
    ours = None if hop is None else _known_mac(forwarding.interfaces[hop.interface].mac)
    theirs = None if hop is None or hop.mac is None else format_mac(hop.mac)
    return {
        "forward": {
            "before": _header(question.client, vip, None, None, EXAMPLE_TTL),
            "after": _header(question.client, real, ours, theirs, EXAMPLE_TTL - 1),
        },
        "reply": {
            "before": _header(real, question.client, theirs, ours, EXAMPLE_TTL),
            "after": _header(vip, question.client, None, None, EXAMPLE_TTL - 1),
        },
    }


def _known_mac(mac: bytes) -> str | None:
    return format_mac(mac) if any(mac) else None


def _header(
    source: Endpoint, target: Endpoint, source_mac: str | None, target_mac: str | None, ttl: int
) -> dict[str, Any]:
    return {
        "ethernet_source": source_mac,
        "ethernet_destination": target_mac,
        "source": str(source.address),
        "destination": str(target.address),
        "ttl": ttl,
        "source_port": source.port,
        "destination_port": target.port,
    }


def _notes(known: Known, service: Service, choice: Mapping[str, Any], hop: Hop | None) -> Iterator[str]:
    """Yield remarks for the reader."""
    if not known.is_running:
        yield "from the configuration alone: flows, rounds, health and neighbours are those of a fresh start"
        if known.spec.config.seed is None and service.plan.selector.startswith("hash"):
            yield "the configuration has no seed: `lb run` draws one at start, and its hashes differ from these"
    if choice["reason"] == "no_server":
        answers = {"tcp": "a TCP RST", "udp": "ICMP port unreachable"}
        yield (
            "the client gets no answer"
            if choice["verdict"] == "drop"
            else f"the client gets {answers[service.protocol]}"
        )
    if choice["server"] is not None and hop is None:
        yield "no route leads to the server: the client gets ICMP host unreachable (no_route)"
    elif hop is not None and hop.mac is None and known.is_running:
        yield f"{ip_address(hop.address)} has not answered ARP or neighbour discovery: packets wait for it, 3 s at most"
    if service.protocol == "tcp" and known.flow is None and choice["verdict"] == "forward":
        if service.plan.selector in ("hash-source", "hash-flow"):
            yield "a SYN creates the flow, and so does any later ACK: the hash picks it up"
        else:
            yield "only a SYN creates the flow: other TCP packets are dropped (no_flow)"


# From a file alone.


def known_from(config: Config) -> Known:
    """
    Return the facts of a configuration alone, without this machine's.

    Raises:
        ConfigError: a VIP or server has an address of one of its interfaces.
    """
    interfaces = tuple(offline_interface(entry) for entry in config.interfaces)
    spec = Spec(config)
    snapshot = Compiler().compile(spec, interfaces)
    routes = connected_routes(interfaces)
    return Known(spec, snapshot, NextHops(routes), {}, is_running=False)
