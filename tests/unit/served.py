"""A balancer without sockets and interfaces behind a real admin API: controller, data path and file are real."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, cast

import lb.backends
from lb.backends.base import Flow, ServerIds
from lb.config import load
from lb.control.api.explainer import Explainer
from lb.control.api.flow_rows import FlowRows
from lb.control.api.handlers import Api
from lb.control.api.listener import Listener
from lb.control.changes import Changes
from lb.control.controller import Controller
from lb.control.outcome import Preview
from lb.control.stopping import Stopping
from lb.control.stored_flows import StoredFlows
from lb.control.tasks import Supervisor, call_on
from lb.control.telemetry.process_facts import Facts
from lb.errors import LbError
from lb.model.snapshot import Address, Interface, Neighbour, NextHops, Route, Snapshot
from packets import ether, ip4, tcp, udp

CONFIG = """\
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
policy = "maglev"
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
  [[service.server]]
  name = "server2"
  address = "198.18.1.32"
  port = 8032
[[service]]
name = "dns"
address = "198.18.1.100"
port = 53
protocol = "udp"
  [[service.server]]
  name = "ns1"
  address = "198.18.1.33"
  port = 5353
"""
INTERFACE = Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500, (ip_interface("198.18.1.1/24"),))
SYN = 2
CLIENT_MAC = bytes.fromhex("aaaaaa000021")
VIP = ip_address("198.18.1.100").packed


class ServedBalancer:
    """
    What the API needs of a running balancer: it plays runtime and reloader.

    Args:
        folder: gets the configuration file and the control socket.
        backend: of the data path.
        capacity: of its flow table.
    """

    def __init__(self, folder: Path, backend: str, capacity: int = 1000) -> None:
        self.path = folder / "lb.toml"
        self.path.write_text(CONFIG)
        self.control = folder / "lb.sock"
        self.data_path = lb.backends.load(backend).DataPath(capacity, bytes(16), 1)
        hosts = [Neighbour(0, ip_address(f"198.18.1.{n}"), bytes.fromhex(f"aaaaaa0000{n}")) for n in range(31, 40)]
        self.controller = Controller(load(self.path), (INTERFACE,), self)
        self.controller.start()
        self.changes = Changes(self.controller, Supervisor())
        self.stopping: Stopping
        self.next_hops = NextHops((Route(INTERFACE.addresses[0].network, 0),), tuple(hosts))
        self.data_path.set_next_hops(self.next_hops)

    def publish(self, snapshot: Snapshot) -> None:
        self.data_path.publish(snapshot)

    def reset_flows(self, server: int) -> None:
        self.data_path.reset_flows(server, 1000, time.monotonic_ns())

    def reset_some(self, limit: int) -> int:
        return self.data_path.reset_flows(None, limit, time.monotonic_ns())

    def active_flows(self, servers: Sequence[int]) -> list[int]:
        return self.data_path.active_flows(servers)

    def flow_layout(self) -> str:
        return self.data_path.flow_layout()

    def copy_flows(self, place: int) -> tuple[bytes, int | None]:
        return self.data_path.copy_flows(place, time.monotonic_ns())

    def load_flows(
        self, rows: bytes, servers: Sequence[ServerIds | None], interfaces: Sequence[int | None]
    ) -> tuple[int, int]:
        return self.data_path.load_flows(rows, servers, interfaces, time.monotonic_ns())

    def counters(self) -> dict[str, Any]:
        return self.data_path.counters()

    def find_flows(self, *filters: Any) -> tuple[int, list[Flow]]:
        return self.data_path.find_flows(time.monotonic_ns(), *filters)

    def peek(self, service: int, client: Address, port: int) -> tuple[Flow | None, int]:
        return self.data_path.peek(service, client, port, time.monotonic_ns())

    def api(self) -> Api:
        explainer = Explainer(self.controller, self, lambda: self.next_hops)
        return Api(self.controller, self.changes, self, self, self.facts, explainer, self.stopping)

    def facts(self) -> Facts:
        left_s = self.stopping.seconds_left()
        return Facts("1", 1, "test", str(self.path), 1.0, None, stops_within_s=left_s)

    async def reload(self, deadline_s: float | None = None) -> list[str]:
        return self.controller.reload(load(self.path))

    async def preview(self, deadline_s: float | None = None) -> Preview:
        return self.controller.preview(load(self.path))

    def open(self, client: str, port: int, service: str = "video") -> str:
        """Open a flow, and return the name of its server."""
        source = ip_address(client).packed
        segment = tcp(source, VIP, port, 9876, 1000, 0, SYN) if service == "video" else udp(source, VIP, port, 53)
        protocol = 6 if service == "video" else 17
        frame = ether(INTERFACE.mac, CLIENT_MAC, ip4(source, VIP, protocol, segment))
        result = self.data_path.process(frame, 0, time.monotonic_ns())
        assert result.verdict == "forward", result
        return cast(str, result.server)


@contextlib.contextmanager
def serving(served: ServedBalancer) -> Iterator[None]:
    """Serve the API on its socket, on a thread."""
    ready, stopped = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        supervisor = Supervisor()
        served.changes = Changes(served.controller, supervisor)
        served.changes.start()
        served.stopping = Stopping(served.controller, served.changes, served, supervisor, stopped.set)
        stored = FlowRows(StoredFlows(served.controller, served))
        listener = Listener(served.control, {**served.api().handlers(), **stored.handlers()})
        await listener.start()
        ready.set()
        await stopped.wait()
        await listener.stop()
        await supervisor.stop()
        await served.changes.close()

    # As the daemon does it: what connections have left behind ends with the loop.
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        if not ready.wait(10):
            raise LbError("the API did not start")
        yield
    finally:
        for loop in loops:
            # It has ended already where the test has stopped it.
            call_on(loop, stopped.set)
        thread.join()
