"""What a figure belongs to: the machine, its kernel, what is installed, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from pathlib import Path

import lb
from lb.bench import programs
from lb.testbed import ethtool
from lb.testbed.bed import Testbed


def facts() -> dict[str, str]:
    """Return what holds for the whole run, by name, in the order to show it."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "load average at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "lb": f"{lb.__version__}, {build_profile()}",
        "python": sys.version.split()[0],
    }
    wrk = programs.find("wrk")
    if wrk is not None:
        found["wrk"] = programs.version([wrk, "-v"]).partition(" [")[0]
    return found


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


def offloads(bed: Testbed, host: str) -> str:
    """Return which offloads the first interface of a host has."""
    with bed.inside(host):
        found = ethtool.get_offloads("eth0")
    on, off = ([name for name, state in found.items() if state is wanted] for wanted in (True, False))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in (("on", on), ("off", off)) if names)
