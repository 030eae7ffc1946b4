"""
The remap forecast: which share of new flows another plan would place on another server (`lb reload --dry-run`).

Flows that exist never move. The forecast is about *new* flows of the same clients. It matters for plans that place by a
hash (caches, pickups after a restart); plans that place by rounds or at random give a client no server of its own, and
the forecast says so. Pure: clients are drawn from a fixed seed, so that the same plans give the same forecast.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import lb.backends
from lb.backends import Backend
from lb.model.snapshot import HASH_SELECTORS, Service, Snapshot
from lb.packet.protocols import PROTOCOLS

SAMPLE = 10_000
# From where clients are drawn: all of IPv4 that a host may have, or one /32 of IPv6.
FIRST_V4, LAST_V4 = 0x01000000, 0xDFFFFFFF
NETWORK_V6 = 0x20010DB8 << 96


@dataclass(frozen=True, slots=True)
class RemapForecast:
    """
    Where new flows of a service would go. `share`: of clients that would get another server, in 0..1, None when that
    is unknown; `forced`: of clients whose server takes no new flows any more; `why`: in words, why it is unknown.
    """

    service: str
    share: float | None
    forced: float = 0.0
    why: str = ""

    def line(self) -> str:
        """Return the forecast as a sentence."""
        if self.share is None:
            return f"service {self.service}: {self.why}"
        return (
            f"service {self.service}: {self.share:.1%} of new flows would go to another server "
            f"({self.forced:.1%} must: theirs takes none any more); existing flows stay"
        )


def remap_forecasts(before: Snapshot, after: Snapshot) -> list[RemapForecast]:
    """Return a forecast for each service that is in both snapshots (of one compiler) with different plans."""
    return [
        _forecast(before, after, old, new)
        for old, new in zip(before.services, after.services, strict=False)
        if old is not None and new is not None and (old.plan, before.seed) != (new.plan, after.seed)
    ]


def _forecast(before: Snapshot, after: Snapshot, old: Service, new: Service) -> RemapForecast:
    for service in (old, new):
        if service.plan.selector not in HASH_SELECTORS:
            why = f"its flows are placed by {service.plan.selector}, not by a hash: a client has no server of its own"
            return RemapForecast(new.name, None, why=f"{why}; existing flows stay")
    if not old.plan.slots or not new.plan.slots:
        return RemapForecast(new.name, 1.0, 1.0 if old.plan.slots else 0.0)
    eligible = frozenset(new.plan.slots)
    pairs = list(zip(_servers(old, before.seed), _servers(new, after.seed), strict=True))
    moved = sum(one != two for one, two in pairs)
    forced = sum(one not in eligible for one, _ in pairs)
    return RemapForecast(new.name, moved / SAMPLE, forced / SAMPLE)


def _servers(service: Service, seed: int) -> Iterator[int]:
    """Yield the server of each client of the sample."""
    backend, slots = lb.backends.load_any(), service.plan.slots
    for client, port in _clients(len(service.address.packed)):
        yield slots[_hash(backend, service, seed, client, port) % len(slots)]


def _hash(backend: Backend, service: Service, seed: int, client: bytes, port: int) -> int:
    match service.plan.selector:
        case "hash-source":
            return backend.source_hash(seed, client)
        case "hash-flow":
            vip, protocol = service.address.packed, PROTOCOLS[service.protocol]
            return backend.flow_hash(seed, client, vip, port, service.port, protocol)
        case other:
            raise ValueError(f"{other} is no hash selector")


def _clients(address_bytes: int) -> Iterator[tuple[bytes, int]]:
    draw = random.Random(1)
    for _ in range(SAMPLE):
        number = draw.randint(FIRST_V4, LAST_V4) if address_bytes == 4 else NETWORK_V6 | draw.getrandbits(96)
        yield number.to_bytes(address_bytes, "big"), draw.randint(1024, 65535)
