"""
CPU time, to the nanosecond: of a process, and of what the kernel did for packets.

/proc/stat counts ticks of 10 ms, too coarse for runs of a second. A packet's softirq work is done in the context of the
process that sent it (charged to that process) or in the ksoftirqd threads; so the CPU time of a packet run is that of
the sender, of the contestant and of ksoftirqd together. Other processes of the machine are not counted.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from lb.errors import LbError

# include/linux/posix-timers.h: a process's scheduler clock is named by its inverted pid and these low bits.
_PROCESS_CLOCK = 2


def process_ns(pid: int) -> int:
    """
    Return the CPU time of a process with all its threads, in nanoseconds.

    Raises:
        LbError: it is gone.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | _PROCESS_CLOCK)
    except OSError as error:
        raise LbError(f"process {pid} is gone: {error.strerror}") from error


def softirq_threads() -> tuple[int, ...]:
    """Return the pids of the kernel's ksoftirqd threads."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "comm").read_text().startswith("ksoftirqd/"):
                found.append(int(entry.name))
    return tuple(found)


def threads_ns(pids: tuple[int, ...]) -> int:
    """Return the CPU time of kernel threads, in nanoseconds; 0 where the kernel does not tell."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return total
