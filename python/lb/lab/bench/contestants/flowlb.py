"""Ourselves: `lb run` with one of its backends, as a user would start it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lb.backends
from lb.errors import BackendError
from lb.lab.bench.contestants.base import Contestant, Working, at_vip
from lb.lab.testbed import live
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP_PORT, Host
from lb.model.version import version

_INTERFACE = """[[interface]]
name = "{name}"
transmit = "{transmit}"
"""
_SERVICE = """[[service]]
name = "{protocol}"
address = "{vip}"
port = {vip_port}
protocol = "{protocol}"
policy = "static"
server = [{{ name = "{name}", address = "{address}", port = {port} }}]
"""


class Balancer(Contestant):
    """
    `lb run --backend BACKEND`. `transmit`: as the key of an interface; with "direct", which finished frames only can
    show, it is a contestant of that name, and carries packets alone.
    """

    def __init__(self, backend: str, transmit: str = "queue") -> None:
        self._backend, self._transmit = backend, transmit
        self.name, self.title = backend, f"lb, backend {backend}"
        if transmit != "queue":
            self.name, self.title = transmit, f"{self.title}, transmit = {transmit}"
            self.protocols = frozenset({"udp"})

    def version(self) -> str:
        """Return our version and what runs the backend."""
        if self._backend == "rust" and self.obstacle() is None:
            from lb import _core

            return f"lb {version()}, {_core.BUILD_PROFILE} build"
        return f"lb {version()}, Python {sys.version.split()[0]}"

    def obstacle(self) -> str | None:
        """Return why the backend cannot be loaded, or None."""
        try:
            lb.backends.load(self._backend)
        except BackendError as error:
            return str(error)
        return None

    @contextmanager
    def work(self, testbed: Testbed, server: Host) -> Iterator[Working]:
        """Run it within the block."""
        config = testbed.directory / "bench.toml"
        config.write_text(configuration(testbed, server, self._transmit))
        # For any umask: a file that its group can write is not trusted (`lb.privileges.trust`).
        config.chmod(0o644)
        running = live.start_balancer(testbed, config, self._backend)
        try:
            yield at_vip(running.process.pid)
        finally:
            testbed.end(ROUTER, "lb")


def configuration(testbed: Testbed, server: Host, transmit: str = "queue") -> str:
    """Return a configuration: every arm of the router, the VIP for TCP and UDP, one server."""
    arms = testbed.topology.host(ROUTER).interfaces
    text = "".join(_INTERFACE.format(name=port.name, transmit=transmit) for port in arms)
    return text + "".join(
        _SERVICE.format(
            protocol=protocol,
            vip=VIP,
            vip_port=VIP_PORT,
            name=server.name,
            address=server.address,
            port=server.web_port,
        )
        for protocol in ("tcp", "udp")
    )
