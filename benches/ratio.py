"""
How many times as fast as python rust is, whole pipeline offline, without pytest: one line for IPv4, one for IPv6.

    python benches/ratio.py [--rounds N]

1 000 UDP packets of the shortest frame, one of each of 1 000 known flows in pseudo-random order, through
`process_many`. The backends take turns (A B A B ...), so that drift of the machine hits both alike; medians and the
quartiles of the ratio of neighbouring turns are printed. A turn of rust is 50 calls and counts with their median: one
call is over before the caches are warm again after a turn of python. CPU time is counted: what else the machine does
would interrupt python's long calls more often than rust's short ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import workload as w
from lb._core import BUILD_PROFILE
from lb.backends import load

FLOWS = 1000
CALLS = {"rust": 50, "python": 1}
NOW_NS = 2


def turn(path: Any, frames: list[bytes], calls: int) -> float:
    """Return nanoseconds of CPU time per packet: the median of a few calls."""
    took = []
    for _ in range(calls):
        start = time.thread_time_ns()
        path.process_many(frames, 0, NOW_NS)
        took.append(time.thread_time_ns() - start)
    return statistics.median(took) / len(frames)


def compare(version: int, rounds: int) -> str:
    """Measure both backends in turns; return the line."""
    frames = [w.udp_frame(number, version) for number in w.shuffled(range(FLOWS))]
    paths = {name: w.data_path(load(name), FLOWS, w.snapshot(version=version)) for name in CALLS}
    for path in paths.values():
        w.check_forwarded(path.process_many(frames, 0, 1))
    took = [{name: turn(path, frames, CALLS[name]) for name, path in paths.items()} for _ in range(rounds)]
    for path in paths.values():
        assert path.counters()["events"]["flow_miss"] == FLOWS
    rust, python = (statistics.median(each[name] for each in took) for name in ("rust", "python"))
    low, middle, high = statistics.quantiles([each["python"] / each["rust"] for each in took], n=4)
    times = f"rust {rust:.0f} ns, python {python / 1000:.1f} us per packet"
    return f"process_many, IPv{version}: {times}: {middle:.0f}x (quartiles {low:.0f}x, {high:.0f}x)"


def main() -> None:
    """Print a line per IP version."""
    parser = argparse.ArgumentParser(description="Compare process_many of rust and python.")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each backend (25)")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        parser.error(f"--rounds: {rounds} is less than 2")
    print(f"load {os.getloadavg()[0]:.2f}, extension built as {BUILD_PROFILE}, {rounds} turns", file=sys.stderr)
    for version in (4, 6):
        print(compare(version, rounds))


if __name__ == "__main__":
    main()
