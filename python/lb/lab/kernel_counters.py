"""
What the kernel counts of TCP in a host of a testbed.

`/proc/net/netstat` and `/proc/net/snmp` (RFC 4022 and Linux's own), one pair of lines per group: names, then values.
Each network namespace has its own counters. A kernel that lacks one counts nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lb.errors import LbError
from lb.lab.testbed.lifecycle import Testbed

PROC = Path("/proc/thread-self/net")


def parse(text: str) -> dict[str, int]:
    """
    Read counters.

    Args:
        text: of /proc/net/netstat or /proc/net/snmp.

    Returns:
        Values by GROUP.NAME, as `TcpExt.TCPSynRetrans`.

    Raises:
        LbError: lines do not come in pairs of one group, or differ in length.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names[0] != values[0] or len(names) != len(values):
            raise LbError(f"the kernel's counters of {names[0].rstrip(':')} cannot be read")
        group = names[0].rstrip(":")
        found |= {f"{group}.{name}": int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    if len(lines) % 2:
        raise LbError("the kernel's counters end in the middle")
    return found


def read(testbed: Testbed, hosts: Iterable[str]) -> dict[str, int]:
    """Return the sums of the counters of these hosts."""
    total: dict[str, int] = {}
    for host in hosts:
        with testbed.inside(host):
            found = parse((PROC / "netstat").read_text()) | parse((PROC / "snmp").read_text())
        for name, value in found.items():
            total[name] = total.get(name, 0) + value
    return total
