"""Whether a load met trouble that its figure does not show: what the kernels of its hosts counted of TCP meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lb.lab.bench.document import Faults
from lb.lab.kernel_counters import PROC
from lb.lab.testbed.lifecycle import Testbed

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


def parse_time_wait(text: str) -> int:
    """Return how many sockets are in TIME_WAIT, from the text of /proc/net/sockstat; 0 when it does not tell."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["TCP:"] and "tw" in words[:-1]:
            return int(words[words.index("tw") + 1])
    return 0


def crowded_ports(testbed: Testbed, host: str) -> int:
    """Return how many ports of a host TIME_WAIT holds, or 0 while they are too few to slow a connect."""
    with testbed.inside(host):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        held = parse_time_wait((PROC / "sockstat").read_text())
    return held if held > _CROWDED * (last - first + 1) else 0


def faults(before: Counts, after: Counts, failed: int = 0, slow: int = 0, ports: int = 0) -> Faults:
    """
    Return what went wrong between two looks at the same hosts.

    Args:
        before: as `kernel_counters.read` returned it.
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
