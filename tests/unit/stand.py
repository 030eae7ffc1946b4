"""A balancer without sockets and interfaces behind a real admin API: real steering, a real data path, a real file."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, cast

import lb.backends
from lb.config import load
from lb.control.api.handlers import Api
from lb.control.api.listener import Admin
from lb.control.api.status import Facts
from lb.control.changes import Changes
from lb.control.controller import Preview, Steering
from lb.control.tasks import Supervisor
from lb.errors import LbError
from lb.model.snapshot import Interface, Neighbour, NextHops, Route, Snapshot
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


class Stand:
    """
    What the API needs of a daemon.

    Args:
        folder: gets the configuration file and the control socket.
        backend: of the data path.
    """

    def __init__(self, folder: Path, backend: str) -> None:
        self.path = folder / "lb.toml"
        self.path.write_text(CONFIG)
        self.control = folder / "lb.sock"
        self.data_path = lb.backends.load(backend).DataPath(1000, bytes(16), 1)
        hosts = [Neighbour(0, ip_address(f"198.18.1.{n}"), bytes.fromhex(f"aaaaaa0000{n}")) for n in range(31, 40)]
        self.steering = Steering(load(self.path), (INTERFACE,), self)
        self.steering.start()
        self.changes = Changes(self.steering, Supervisor())
        self.data_path.set_next_hops(NextHops((Route(INTERFACE.addresses[0].network, 0),), tuple(hosts)))

    def publish(self, snapshot: Snapshot) -> None:
        self.data_path.publish(snapshot)

    def reset_flows(self, server: int) -> None:
        self.data_path.reset_flows(server, 1000, time.monotonic_ns())

    def counters(self) -> dict[str, Any]:
        return self.data_path.counters()

    def facts(self) -> Facts:
        return Facts("1", 1, "test", str(self.path), 1.0, None)

    async def reload(self, deadline_s: float | None = None) -> list[str]:
        return self.steering.reload(load(self.path))

    async def preview(self, deadline_s: float | None = None) -> Preview:
        return self.steering.preview(load(self.path))

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
def serving(stand: Stand) -> Iterator[None]:
    """Serve the stand's API on its socket, on a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stopped = asyncio.Event()

    async def serve() -> None:
        supervisor = Supervisor()
        stand.changes = Changes(stand.steering, supervisor)
        stand.changes.start()
        admin = Admin(stand.control, Api(cast(Any, stand)).answers())
        await admin.start()
        ready.set()
        await stopped.wait()
        await admin.stop()
        await supervisor.stop()
        await stand.changes.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not ready.wait(10):
            raise LbError("the API did not start")
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()
