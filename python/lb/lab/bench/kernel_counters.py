"""
What the kernel counts of TCP in a host: whether a load met trouble that its figure does not show.

`/proc/net/netstat` and `/proc/net/snmp` (RFC 4022 and Linux's own), one pair of lines per group: names, then values.
Each network namespace has its own counters. A kernel that lacks one counts nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lb.errors import LbError
from lb.lab.bench.document import Faults
from lb.lab.testbed.lifecycle import Testbed

_PROC = Path("/proc/thread-self/net")
# What may tell of a TIME_WAIT entry, a full listener or a lost packet, by the name of the fault.
_FAULTS: Mapping[str, tuple[str, ...]] = {
    "syn_retransmits": ("TcpExt.TCPSynRetrans",),
    "time_wait_refused": ("TcpExt.PAWSTimewait",),
    "time_wait_overflow": ("TcpExt.TCPTimeWaitOverflow",),
    "listen_overflow": ("TcpExt.ListenOverflows",),
    "timeouts": ("TcpExt.TCPTimeouts",),
    "retransmits": ("Tcp.RetransSegs",),
}
# connect() looks at every second port first, and at each of them anew when TIME_WAIT holds it: half is where it slows.
_CROWDED = 0.25

Counts = Mapping[str, int]


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


def parse_time_wait(text: str) -> int:
    """Return how many sockets are in TIME_WAIT, from the text of /proc/net/sockstat; 0 when it does not tell."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["TCP:"] and "tw" in words[:-1]:
            return int(words[words.index("tw") + 1])
    return 0


def read(testbed: Testbed, hosts: Iterable[str]) -> dict[str, int]:
    """Return the sums of the counters of these hosts."""
    total: dict[str, int] = {}
    for host in hosts:
        with testbed.inside(host):
            found = parse((_PROC / "netstat").read_text()) | parse((_PROC / "snmp").read_text())
        for name, value in found.items():
            total[name] = total.get(name, 0) + value
    return total


def crowded_ports(testbed: Testbed, host: str) -> int:
    """Return how many ports of a host TIME_WAIT holds, or 0 while they are too few to slow a connect."""
    with testbed.inside(host):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        held = parse_time_wait((_PROC / "sockstat").read_text())
    return held if held > _CROWDED * (last - first + 1) else 0


def faults(before: Counts, after: Counts, failed: int = 0, slow: int = 0, ports: int = 0) -> Faults:
    """
    Return what went wrong between two looks at the same hosts.

    Args:
        before: as `read` returned it.
        after: the same, later.
        failed: requests, as the load counted them.
        slow: likewise.
        ports: as `crowded_ports` returned it.
    """
    grown = {
        fault: sum(max(0, after.get(name, 0) - before.get(name, 0)) for name in names)
        for fault, names in _FAULTS.items()
    }
    return Faults(failed=failed, slow=slow, crowded_ports=ports, **grown)
