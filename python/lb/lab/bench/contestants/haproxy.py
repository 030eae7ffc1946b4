"""
HAProxy in TCP mode with one thread: a proxy, which ends connections and makes its own.

The VIP must be an address of the router here, and servers see the router's address. It carries no UDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lb.lab.bench import programs
from lb.lab.bench.contestants.base import Contestant, Working, at_vip
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP_PORT, Host

_CONFIGURATION = f"""global
    nbthread 1
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen bench
    bind {VIP}:{VIP_PORT} backlog 4096
    server server1 {{address}}:{{port}}
"""


class HAProxy(Contestant):
    """A TCP proxy."""

    name = "haproxy"
    title = "HAProxy, mode tcp, 1 thread"
    protocols = frozenset({"tcp"})

    def version(self) -> str:
        """Return what haproxy says."""
        program = programs.find("haproxy")
        return programs.version([program, "-v"]).partition(" - ")[0] if program else ""

    def obstacle(self) -> str | None:
        """Return that it is not installed, when so."""
        return None if programs.find("haproxy") else "haproxy is not installed"

    @contextmanager
    def work(self, testbed: Testbed, server: Host) -> Iterator[Working]:
        """Run it within the block, with the VIP on the router."""
        path = testbed.directory / "haproxy.cfg"
        path.write_text(_CONFIGURATION.format(address=server.address, port=server.web_port))
        build.set_extra_address(testbed.prefix, VIP, True)
        try:
            child = testbed.spawn(ROUTER, self.name, [programs.find("haproxy") or "haproxy", "-db", "-f", str(path)])
            try:
                yield at_vip(child.pid)
            finally:
                testbed.end(ROUTER, self.name)
        finally:
            build.set_extra_address(testbed.prefix, VIP, False)
