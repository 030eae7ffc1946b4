"""
How long `lb run` takes to be ready with a full table: started as a program after a stop and after `kill -9`, taking
over from one that runs, and after `kill -9` of one with `--supervise` (rule 23.1, flows over a restart, and rule 23.2,
taking over).

    python tests/netns/ready.py [--flows 1000000] [--memory file] [--memory map]  # `make soak-ready`, as root

The flows are UDP, of a flood from random sources. Ready: the control socket answers; from the command on, or for
take-overs from the command until the process before has left. Of each, the times of all rounds are printed; a flow that
is not there afterwards makes it exit with 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from realhosts import DEADLINE_S, UDP_PORT, running_testbed, wait_until

from lb.control.api.client import fetch
from lb.control.table_memory import BPF
from lb.errors import DaemonError
from lb.lab import floods
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP

HOWS = ("stop", "kill", "take-over", "supervised")
FLOODER, FLOOD_PPS, FLOOD_S = "client5", 150_000, 1.0
SERVICE = """
[flows]
capacity = {capacity}
idle_floor = "1h"
udp = "1h"
[[service]]
name = "datagrams"
address = "{vip}"
port = {port}
protocol = "udp"
policy = "round-robin"
"""
SERVER = '[[service.server]]\nname = "{name}"\naddress = "{address}"\nport = {port}\n'


class Programs:
    """`lb run` in the testbed's router, one after the other."""

    def __init__(self, testbed: Testbed, config: Path, state: Path) -> None:
        self._testbed, self._config, self._state = testbed, config, state
        self._count = self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    def status(self) -> Any:
        """Return the status of the one that answers, None when none does."""
        try:
            return fetch(self._control, "/status")
        except DaemonError:
            return None

    @property
    def _control(self) -> Path:
        return self._testbed.directory / "lb.sock"

    def flows(self) -> int:
        """Return how many flows the table has."""
        status = wait_until(self.status, "the balancer answers")
        return int(status["table"]["entries"])

    def start(self, *more: str) -> float:
        """Start one and wait until it answers; return the seconds that took."""
        self._count += 1
        began, options = time.monotonic(), ["--control", str(self._control), "--state", str(self._state)]
        before = self._pid
        process = self._testbed.spawn_python(
            ROUTER, f"lb-{self._count}", "lb", "run", "-c", str(self._config), *options, *more
        )
        self._wait_other_than(before)
        took_s = time.monotonic() - began
        if self._process is not None:
            assert self._process.wait(DEADLINE_S) == 0
        self._process = process
        return took_s

    def _wait_other_than(self, pid: int) -> None:
        status = wait_until(lambda: (status := self.status()) and status["pid"] != pid and status, "it answers")
        self._pid = status["pid"]

    def end(self, number: int) -> None:
        """End the one that runs, and wait for that."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(DEADLINE_S)
            self._process = None

    def renew(self, how: str) -> float:
        """Return the seconds until the next one is ready."""
        if how == "take-over":
            return self.start("--take-over")
        if how == "supervised":
            self.end(signal.SIGTERM)
            self.start("--supervise")
            began = time.monotonic()
            os.kill(self._pid, signal.SIGKILL)
            self._wait_other_than(self._pid)
            return time.monotonic() - began
        self.end(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        return self.start()


def text(testbed: Testbed, flows: int) -> str:
    """Return a configuration with a UDP service and room for the flows."""
    made = '[[interface]]\nname = "eth0"\n' + SERVICE.format(capacity=2 * flows, vip=VIP, port=UDP_PORT)
    servers = testbed.topology.of_role("server")
    return made + "".join(SERVER.format(name=server.name, address=server.address, port=UDP_PORT) for server in servers)


@contextmanager
def state_in(memory: str) -> Iterator[Path]:
    """Give a state directory in which the table is a map or a file."""
    state = Path(tempfile.mkdtemp(prefix="flowlb-ready-", dir="/dev/shm"))
    try:
        if memory == "map":
            (state / BPF).mkdir()
            subprocess.run(["mount", "-t", "bpf", "bpf", state / BPF], check=True)
        yield state
    finally:
        if (state / BPF).is_mount():
            subprocess.run(["umount", "-l", state / BPF], check=True)
        shutil.rmtree(state)


def measure(testbed: Testbed, memory: str, flows: int, rounds: int) -> int:
    """Print how long the starts take; return how many flows were lost."""
    config = testbed.directory / "ready.toml"
    config.write_text(text(testbed, flows))
    config.chmod(0o600)
    lost = 0
    with state_in(memory) as state:
        programs = Programs(testbed, config, state)
        try:
            programs.start()
            assert programs.status()["table_memory"]["memory"] == memory
            target = floods.Target(VIP, UDP_PORT, UDP_PORT)
            while programs.flows() < flows:
                with floods.Flood(testbed, FLOODER, "udp", target, FLOOD_PPS, FLOOD_S):
                    pass
            before = programs.flows()
            for how in HOWS:
                took = []
                for _ in range(rounds):
                    took.append(programs.renew(how))
                    lost += before - programs.flows()
                times = ", ".join(f"{each:.2f}" for each in sorted(took))
                print(f"{memory}, {before} flows, {how}: ready after {times} s", flush=True)
        finally:
            programs.end(signal.SIGTERM)
    return lost


def main() -> int:
    """Run from the command line. Exit with 1 when a flow was lost."""
    parser = argparse.ArgumentParser(description="How long `lb run` takes to be ready with a full table.")
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=("file", "map"), action="append", help="default: both")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this makes namespaces, and mounts a file system: run it as root")
    lost = 0
    with running_testbed("ready-", use_apache=False) as testbed:
        floods.prepare(testbed, FLOODER)
        for memory in arguments.memory or ("file", "map"):
            lost += measure(testbed, memory, arguments.flows, arguments.rounds)
    print(f"{lost} flows lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
