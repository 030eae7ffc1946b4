"""
Restarts under load: long echo flows stay open while the balancer is taken over from, stopped or killed and started
again, again and again, with the same state directory. Nothing may break, nothing may move (rule 23.1, flows over a
restart, and rule 23.2, taking over).

    python tests/netns/restarts.py --flows 2000 --rounds 100 [--how HOW] [--no-offloads] [--map]  # `make soak-restarts`

HOW is `take-over`, `stop`, `kill`, `supervised` or `nothing`. `supervised`: it is killed, and started again by `lb run
--supervise`; `kill`: by this script, at once. Some flows speak all the while, a few of them in bulk: their longest
answer is the stall that a client sees, most of which is the start of the interpreter and the clients' own pause before
they send again. The flow table is in a file, with `--map` in a map of the kernel.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from churn import balancing, configuration, control_of, echo, open_flows, placements
from ready import state_in
from realhosts import RunningBalancer, running_testbed, wait_until

from lb.control.api.client import fetch
from lb.errors import DaemonError
from lb.lab.testbed.lifecycle import Testbed

# Flows that speak all the while, and so many of them in bulk, bytes; the others do after each round.
SPEAKERS, BULK, BULK_BYTES = 10, 2, 1 << 16
# "nothing": the balancer goes on, to see what the machine itself makes clients wait.
HOWS = ("nothing", "take-over", "stop", "kill", "supervised")
# About as long as a start takes, seconds.
NOTHING_S = 0.8
# Longest time before the end of a round, seconds.
MOMENT_S = 0.2


@dataclass
class Report:
    """What became of the flows. `stalls_s`: the longest answer of each round, as a client saw it."""

    flows: int
    broken: int = 0
    moved: int = 0
    stalls_s: list[float] = field(default_factory=list)

    def line(self, how: str) -> str:
        """Return it for people."""
        stalls = sorted(self.stalls_s)
        return (
            f"{how}: {self.flows} flows, {len(stalls)} rounds: {self.broken} broken, {self.moved} moved; "
            f"stall {stalls[len(stalls) // 2] * 1000:.0f} ms in the middle, "
            f"{stalls[len(stalls) * 9 // 10] * 1000:.0f} ms in one of ten, {stalls[-1] * 1000:.0f} ms at most"
        )


class Speakers:
    """Flows that speak until told to stop, on threads of their own."""

    def __init__(self, flows: list[socket.socket]) -> None:
        self._flows, self._stop = flows, threading.Event()
        self.longest_s, self.broken = 0.0, 0

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Let them speak for the block, and finish what they are saying."""
        words = [random.Random(1).randbytes(BULK_BYTES)] * BULK + [b"speaking"] * (len(self._flows) - BULK)
        threads = [threading.Thread(target=self._speak, args=each) for each in zip(self._flows, words, strict=True)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _speak(self, flow: socket.socket, word: bytes) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            if not echo(flow, word):
                self.broken += 1
                return
            self.longest_s = max(self.longest_s, time.monotonic() - began)


def pid_of(balancer: RunningBalancer) -> int | None:
    """Return the process that forwards, None while none answers."""
    try:
        return int(fetch(control_of(balancer), "/status")["pid"])
    except DaemonError:
        return None


def renew(balancer: RunningBalancer, how: str) -> None:
    """Restart it as an operator does, kill it and start it again, or let another one take over."""
    if how == "nothing":
        time.sleep(NOTHING_S)
        return
    if how == "take-over":
        balancer.take_over()
        return
    if how == "supervised":
        pid = pid_of(balancer)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid_of(balancer) not in (None, pid), "another one answers")
        return
    if how == "stop":
        balancer.stop()
    else:
        assert balancer.running is not None
        balancer.running.end(signal.SIGKILL)
        balancer.running = None
    balancer.start()


def restarts(testbed: Testbed, balancer: RunningBalancer, flows: int, rounds: int, how: str) -> Report:
    """Open flows, restart the balancer in rounds at random moments, and tell what became of them."""
    draw, report = random.Random(1), Report(flows)
    with ExitStack() as stack:
        opened = open_flows(testbed, flows, stack)
        assert all(echo(flow, b"first") for flow in opened)
        where = placements(balancer)
        for _ in range(rounds):
            speakers = Speakers(opened[:SPEAKERS])
            with speakers.speaking():
                time.sleep(draw.uniform(0.0, MOMENT_S))
                renew(balancer, how)
            report.stalls_s.append(speakers.longest_s)
            report.broken += speakers.broken + sum(not echo(flow, b"after") for flow in opened[SPEAKERS:])
            found = placements(balancer)
            report.moved += sum(found.get(flow) not in (None, server) for flow, server in where.items())
    return report


def main() -> int:
    """Run from the command line. Exit with 1 when a flow broke or moved."""
    parser = argparse.ArgumentParser(description="Keep flows open over restarts of the balancer.")
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--how", choices=HOWS, action="append", help="default: all, one after the other")
    parser.add_argument("--no-offloads", action="store_true", help="links without offloads")
    parser.add_argument("--map", action="store_true", help="the flow table is a map of the kernel")
    arguments = parser.parse_args()
    # Both ends of a flow need a descriptor, one here and one in a server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    memory = "map" if arguments.map else "file"
    failed = 0
    with running_testbed("restarts-", use_apache=False, offloads=not arguments.no_offloads) as testbed:
        for how in arguments.how or HOWS:
            more = ("--supervise",) if how == "supervised" else ()
            with (
                state_in(memory) as state,
                balancing(testbed, "rust", configuration(testbed), str(state), more) as balancer,
            ):
                assert fetch(control_of(balancer), "/status")["table_memory"]["memory"] == memory
                report = restarts(testbed, balancer, arguments.flows, arguments.rounds, how)
            print(report.line(how), flush=True)
            failed += report.broken + report.moved
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
