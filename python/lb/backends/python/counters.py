"""
The counters of a data path (`docs/rules.md` rule 13, counters). Every frame is counted once when received, once by its
verdict, and once per frame sent.

All stages write here; status and metrics read `report`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from lb.backends.python.forwarding_state import ForwardingState
from lb.backends.python.measure import Measures
from lb.model.verdict import EVENTS, Direction


@dataclass(slots=True)
class Traffic:
    """The counters of one service or server."""

    flows_created: int = 0
    flows_active: int = 0
    packets_forward: int = 0
    packets_reply: int = 0
    bytes_forward: int = 0
    bytes_reply: int = 0

    def count(self, direction: Direction, len_bytes: int) -> None:
        """Count one translated packet of `len_bytes` bytes of IP."""
        if direction == "forward":
            self.packets_forward += 1
            self.bytes_forward += len_bytes
        else:
            self.packets_reply += 1
            self.bytes_reply += len_bytes


class Counters:
    """All counters of a data path. Those of services and servers are kept by id, until it is retired."""

    def __init__(self) -> None:
        self.rx_packets = 0
        self.rx_bytes = 0
        self.tx_packets = 0
        self.tx_bytes = 0
        self.verdicts: Counter[str] = Counter()
        self.events: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self.services: defaultdict[int, Traffic] = defaultdict(Traffic)
        self.servers: defaultdict[int, Traffic] = defaultdict(Traffic)
        self.measures: defaultdict[int, Measures] = defaultdict(Measures)
        # Stored entries of each server in any state, expired and orphaned ones included.
        self.stored: Counter[int] = Counter()
        # The same of each service.
        self.stored_of_service: Counter[int] = Counter()

    def event(self, name: str) -> None:
        """Count an event of the flow table or of placement."""
        self.events[name] += 1

    def received(self, len_bytes: int) -> None:
        """Count a frame that came in."""
        self.rx_packets += 1
        self.rx_bytes += len_bytes

    def sent(self, len_bytes: int) -> None:
        """Count a frame that goes out."""
        self.tx_packets += 1
        self.tx_bytes += len_bytes

    def verdict(self, name: str, reason: str | None = None, times: int = 1) -> None:
        """Count verdicts, by name and reason."""
        if times:
            self.verdicts[name if reason is None else f"{name}.{reason}"] += times

    def active(self, server: int) -> int:
        """Return the active flows of a server; 0 for an unknown one."""
        traffic = self.servers.get(server)
        return 0 if traffic is None else traffic.flows_active

    def retire_service(self, service: int) -> bool:
        """Reset the counters of a service that no entry refers to; return False when an entry does."""
        if self.stored_of_service[service]:
            return False
        self.services.pop(service, None)
        self.stored_of_service.pop(service, None)
        return True

    def retire_server(self, server: int) -> bool:
        """Reset the counters of a server that no entry refers to; return False when an entry does."""
        if self.stored[server]:
            return False
        for kept in (self.servers, self.measures, self.stored):
            kept.pop(server, None)
        return True

    def measurements(self, forwarding: ForwardingState, now_ns: int) -> dict[str, dict[str, dict[str, int]]]:
        """
        Return what is known of each server, by service and server name (`docs/rules.md` rule 16, measurements).

        Args:
            forwarding: has the names; services and servers that it lacks are left out.
            now_ns: monotonic nanoseconds.
        """
        found: dict[str, dict[str, dict[str, int]]] = {}
        for number, server in forwarding.servers.items():
            traffic = self.servers[number]
            counts = {name: getattr(traffic, name) for name in ("flows_created", "flows_active", "bytes_reply")}
            of_service = found.setdefault(forwarding.services[server.service].name, {})
            of_service[server.name] = counts | self.measures[number].report(now_ns)
        return found

    def report(self, forwarding: ForwardingState) -> dict[str, Any]:
        """
        Return all counters by name.

        Args:
            forwarding: has the names; services and servers that it lacks are left out.
        """
        services = {number: asdict(self.services[number]) for number in forwarding.services}
        servers = {number: asdict(self.servers[number]) for number in forwarding.servers}
        for number, server in forwarding.servers.items():
            services[server.service]["flows_active"] += servers[number]["flows_active"]
        return {
            "rx_packets": self.rx_packets,
            "rx_bytes": self.rx_bytes,
            "tx_packets": self.tx_packets,
            "tx_bytes": self.tx_bytes,
            "verdicts": dict(self.verdicts),
            "events": dict(self.events),
            "services": {forwarding.services[number].name: traffic for number, traffic in services.items()},
            "servers": {forwarding.full_name(number): traffic for number, traffic in servers.items()},
        }
