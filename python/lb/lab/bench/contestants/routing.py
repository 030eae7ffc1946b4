"""Plain kernel routing: no balancer. Clients ask the server itself; the limit for any program in the router."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from lb.lab.bench.contestants.base import Contestant, Working
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import Host


class Routing(Contestant):
    """The router's kernel forwards."""

    name = "routing"
    title = "kernel routing"

    def version(self) -> str:
        """Return the kernel's version."""
        return f"Linux {platform.release()}"

    def obstacle(self) -> str | None:
        """Return None: every kernel can."""
        return None

    @contextmanager
    def work(self, testbed: Testbed, server: Host) -> Iterator[Working]:
        """Switch forwarding on within the block."""
        build.set_kernel_forwarding(testbed.prefix, True)
        try:
            yield Working(server.address, server.web_port)
        finally:
            build.set_kernel_forwarding(testbed.prefix, False)
