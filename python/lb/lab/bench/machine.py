"""What a figure belongs to: the machine, its kernel, what is installed, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
import time
from pathlib import Path

from lb.lab.bench import programs
from lb.lab.testbed import ethtool
from lb.lab.testbed.lifecycle import Testbed
from lb.model.version import version

# A tick is 10 ms: a look of 100 ms tells tenths on one core.
QUIET_LOOK_S, QUIET_DEADLINE_S, QUIET_SHARE = 0.1, 1.0, 0.1
_STAT = Path("/proc/stat")


def facts() -> dict[str, str]:
    """Return what holds for the whole run, by name, in the order to show it."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "load average at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "lb": f"{version()}, {build_profile()}",
        "python": sys.version.split()[0],
    }
    wrk = programs.find("wrk")
    if wrk is not None:
        found["wrk"] = programs.version([wrk, "-v"]).partition(" [")[0]
    return found


def settle() -> float:
    """
    Wait until the machine is quiet, or some time has passed: the kernel removes namespaces, and ends thousands of
    connections, after the program that had them.

    Returns:
        The share of all cores that was busy last, 0..1.
    """
    deadline, before = time.monotonic() + QUIET_DEADLINE_S, cpu_ticks(_STAT.read_text())
    while True:
        time.sleep(QUIET_LOOK_S)
        after = cpu_ticks(_STAT.read_text())
        total = after[0] - before[0]
        busy = (after[1] - before[1]) / total if total else 0.0
        if busy <= QUIET_SHARE or time.monotonic() >= deadline:
            return busy
        before = after


def cpu_ticks(text: str) -> tuple[int, int]:
    """Return the ticks of all cores together, and the busy ones among them, from the text of /proc/stat."""
    words = text.splitlines()[0].split()
    # user nice system idle iowait irq softirq steal; guests are in user already (proc_stat(5)).
    ticks = [int(word) for word in words[1:9]]
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4]


def processor() -> str:
    """Return the processor's name, as the kernel tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_profile() -> str:
    """Return how the extension was built, or that there is none."""
    try:
        from lb import _core
    except ImportError:
        return "no extension"
    return f"{_core.BUILD_PROFILE} build of the extension"


def offloads(testbed: Testbed, host: str) -> str:
    """Return which offloads the first interface of a host has."""
    with testbed.inside(host):
        found = ethtool.get_offloads("eth0")
    on, off = ([name for name, state in found.items() if state is wanted] for wanted in (True, False))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in (("on", on), ("off", off)) if names)
