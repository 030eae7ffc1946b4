"""
Kernel NAT: nftables rewrites the VIP to the server before routing, connection tracking rewrites the answers.

The VIP is on no interface: the rule changes the destination before the kernel looks for a route. Answers come back
through the router because hosts send everything through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lb.lab.bench import programs
from lb.lab.bench.contestants.base import Contestant, Working, at_vip
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, VIP_PORT, Host

_TABLE = "flowlb_bench"
_RULES = f"""table ip {_TABLE} {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {VIP} tcp dport {VIP_PORT} dnat to {{address}}:{{port}}
        ip daddr {VIP} udp dport {VIP_PORT} dnat to {{address}}:{{port}}
    }}
}}
"""


class Nft(Contestant):
    """Destination NAT by nftables."""

    name = "nft"
    title = "nft DNAT"

    def version(self) -> str:
        """Return what nft says."""
        program = programs.find("nft")
        return programs.version([program, "--version"]) if program else ""

    def obstacle(self) -> str | None:
        """Return that nft is not installed, when so; a kernel without NAT shows when the rules are loaded."""
        return None if programs.find("nft") else "nft is not installed"

    @contextmanager
    def work(self, testbed: Testbed, server: Host) -> Iterator[Working]:
        """Load the rules and let the kernel forward within the block."""
        program = programs.find("nft") or "nft"
        rules = _RULES.replace("{address}", str(server.address)).replace("{port}", str(server.web_port))
        programs.run(testbed, ROUTER, [program, "-f", "-"], rules)
        try:
            build.set_kernel_forwarding(testbed.prefix, True)
            yield at_vip()
        finally:
            build.set_kernel_forwarding(testbed.prefix, False)
            programs.run(testbed, ROUTER, [program, "delete", "table", "ip", _TABLE])
