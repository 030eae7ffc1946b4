"""
Flows that a packet tells of although they may have no entry here: a hash selector gives a client its server, and the
endpoint that a server's packet comes from says which service it answers for (`docs/rules.md` rule 8.23, replies through
any balancer).
"""

from __future__ import annotations

from typing import NamedTuple

from lb.backends.python.entry import Entry
from lb.backends.python.picker import NewFlow
from lb.backends.python.tables import Tables
from lb.model.snapshot import HASH_SELECTORS
from lb.packet.protocols import PROTOCOLS


class MatchedFlow(NamedTuple):
    """A flow, whether it has an entry or not: ids, and the client's ingress neighbour, None when unknown."""

    service: int
    server: int
    ingress: tuple[int, bytes] | None


def stored(tables: Tables, entry: Entry | None) -> MatchedFlow | None:
    """Return the flow of an entry that lives."""
    entry = tables.living(entry)
    return None if entry is None else MatchedFlow(entry.service, entry.server, entry.ingress)


def hashed_to_vip(tables: Tables, service: int, client: bytes, client_port: int) -> MatchedFlow | None:
    """
    Return the flow that a hash selector gives a client at a service, although it has no entry: path-MTU discovery must
    work after a restart.
    """
    server = hash_choice(tables, service, client, client_port)
    if server is None or tables.forwarding.servers[server].address.packed == client:
        return None
    # If another service's flow has these ports at the server, this flow would not have been placed there.
    other = tables.flows.by_reply.get((tables.forwarding.servers[server].endpoint, client, client_port))
    return MatchedFlow(service, server, None) if tables.living(other) is None else None


def of_endpoint(tables: Tables, endpoint: int, client: bytes, client_port: int) -> MatchedFlow | None:
    """
    Return the flow of a client by a server's endpoint: of the first service whose hash selector would place the client
    there, unless an entry says otherwise.
    """
    if tables.forwarding.snapshot.any_replies:
        return of_another_balancer(tables, endpoint, client, client_port)
    for service in tables.forwarding.services_by_endpoint[endpoint]:
        server = hash_choice(tables, service, client, client_port)
        if server is None or tables.forwarding.servers[server].endpoint != endpoint:
            continue
        elsewhere = tables.living(tables.flows.by_forward.get((client, client_port, service)))
        if elsewhere is None and tables.forwarding.servers[server].address.packed != client:
            return MatchedFlow(service, server, None)
    return None


def of_another_balancer(tables: Tables, endpoint: int, client: bytes, client_port: int) -> MatchedFlow | None:
    """
    Return the flow that another balancer may have of a client with an endpoint: of the only service that can have
    placed it there. One that places by a hash places it nowhere else.
    """
    forwarding = tables.forwarding
    servers = forwarding.endpoint_servers[endpoint]

    def may_have_placed(number: int) -> bool:
        service = forwarding.servers[number].service
        if forwarding.services[service].plan.selector not in HASH_SELECTORS:
            return True
        choice = hash_choice(tables, service, client, client_port)
        return choice is not None and forwarding.servers[choice].endpoint == endpoint

    candidates = [number for number in servers if len(servers) == 1 or may_have_placed(number)]
    if len(candidates) != 1 or forwarding.servers[candidates[0]].address.packed == client:
        return None
    return MatchedFlow(forwarding.servers[candidates[0]].service, candidates[0], None)


def hash_choice(tables: Tables, number: int, client: bytes, client_port: int) -> int | None:
    """Return the server that a hash selector gives a client's flow; None when the plan has another selector."""
    service = tables.forwarding.services[number]
    if service.plan.selector not in HASH_SELECTORS:
        return None
    vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
    new_flow = NewFlow(number, client, client_port, vip, service.port, protocol)
    return tables.picker.hashed(tables.forwarding, service.plan, new_flow)
