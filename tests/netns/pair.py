"""Two namespaces joined by one veth: the smallest network in which the kernel resolves neighbours."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.lab.testbed import isolation

DEADLINE_S = 20.0
_numbers = itertools.count()


class Pair:
    """
    A host `near` (198.18.1.1, 2001:db8:1::1) where the code under test runs, and a host `far` (.31, ::31), each with
    an interface eth0. FAR_MAC is far's. `backend`: what `lb run` is started with in near.
    """

    FAR_MAC = "aa:aa:aa:00:00:31"

    def __init__(self) -> None:
        start = f"t{os.getpid()}-{next(_numbers)}"
        self.near, self.far = f"{start}near", f"{start}far"
        self.backend = "python"

    def build(self) -> None:
        isolation.prepare_names()
        for name in (self.near, self.far):
            isolation.create_namespace(name)
        self.ip(self.near, f"link add eth0 type veth peer name eth0 netns {self.far}")
        self.ip(self.far, f"link set eth0 address {self.FAR_MAC}")
        for name, host in ((self.near, "1"), (self.far, "31")):
            self.ip(name, "link set eth0 up")
            self.ip(name, f"addr add 198.18.1.{host}/24 dev eth0")
            self.ip(name, f"addr add 2001:db8:1::{host}/64 dev eth0 nodad")
            # New namespaces take this over from the machine.
            self.forward(name, on=False)

    def remove(self) -> None:
        for name in (self.near, self.far):
            isolation.remove_namespace(name)

    @staticmethod
    def forward(name: str, *, on: bool) -> None:
        """Switch IPv4 forwarding of a host's kernel."""
        with isolation.inside(name):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1" if on else "0")

    @staticmethod
    def ip(name: str, command: str, text: str | None = None) -> None:
        subprocess.run(["ip", "-n", name, *command.split()], check=True, input=text, text=True, timeout=DEADLINE_S)


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Build a pair for the block. Skip where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip (iproute2) is not installed")
    if not isolation.has_capabilities():
        pytest.skip("making network namespaces needs CAP_NET_ADMIN and CAP_SYS_ADMIN")
    pair = Pair()
    try:
        pair.build()
        yield pair
    finally:
        pair.remove()


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until a condition gives something true and return it; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    return pytest.fail(f"not within {deadline_s} s: {what}")


def write_config(path: Path) -> Path:
    """Write the configuration for `near`."""
    path.write_text(CONFIG)
    path.chmod(0o600)
    return path


CONFIG = """\
[[interface]]
name = "eth0"
[[service]]
name = "echo"
address = "198.18.1.100"
port = 9876
  [[service.server]]
  name = "far"
  address = "198.18.1.31"
  port = 7000
[[service]]
name = "echo6"
address = "2001:db8:1::100"
port = 9876
  [[service.server]]
  name = "far"
  address = "2001:db8:1::31"
  port = 7000
"""
