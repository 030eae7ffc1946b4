"""
A build whose flow table has another layout takes over from one of today, in both link modes (rule 23.2, taking over):
no flow breaks, none moves; one of today that takes over from it is refused, and the running one goes on.

    python tests/netns/layouts.py [--flows 2000]  # `make soak-layout`, as root

The other build is made first, with the feature `next-layout` of rust/bindings, in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from churn import balancing, configuration, echo, open_flows, placements
from lbrun import LbRun
from realhosts import DEADLINE_S, RunningBalancer, running_testbed

from lb.errors import LbError
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER

ROOT = Path(__file__).resolve().parent.parent.parent
REFUSED = "its layout is that of another version"


def build(folder: Path) -> Path:
    """Build the package with another layout; return where it can be imported from."""
    maturin = [sys.executable, "-m", "maturin", "build", "--release", "--quiet", "--features", "next-layout"]
    subprocess.run([*maturin, "--out", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def take_over(balancer: RunningBalancer, site: Path) -> None:
    """Have the other build take over, as a program. Raise LbError with what it says when it does not."""
    assert balancer.running is not None
    successor = LbRun(
        balancer.testbed.prefix + ROUTER,
        balancer.testbed.directory,
        ["--backend", "rust", "--take-over"],
        wrapper=(),
        environment={**os.environ, "PYTHONPATH": str(site)},
        config=balancer.config,
        log=balancer.testbed.directory / "other.log",
        state=balancer.state,
    )
    if not successor.gets_ready():
        raise LbError(successor.text())
    before, balancer.running = balancer.running, successor
    before.process.wait(DEADLINE_S)


def there_and_not_back(testbed: Testbed, state: Path, site: Path, flows: int) -> int:
    """Take over with the other build, then try to with this one; return how many flows broke or moved."""
    wrong = 0
    with balancing(testbed, "rust", configuration(testbed), str(state)) as balancer, ExitStack() as stack:
        opened = open_flows(testbed, flows, stack)
        assert all(echo(flow, b"first") for flow in opened)
        where = placements(balancer)
        take_over(balancer, site)
        assert balancer.running is not None
        assert f"{flows} taken over, 0 dropped" in balancer.running.text(), balancer.running.text()
        wrong += sum(not echo(flow, b"other layout") for flow in opened)
        with pytest.raises(LbError, match=REFUSED):
            balancer.take_over()
        wrong += sum(not echo(flow, b"still") for flow in opened)
        found = placements(balancer)
        wrong += sum(found.get(flow) != server for flow, server in where.items())
    return wrong


def main() -> int:
    """Run from the command line. Exit with 1 when a flow broke or moved."""
    parser = argparse.ArgumentParser(description="Take over with a build whose flow table has another layout.")
    parser.add_argument("--flows", type=int, default=2000)
    arguments = parser.parse_args()
    # Both ends of a flow need a descriptor, one here and one in a server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    folder = Path(tempfile.mkdtemp(prefix="flowlb-layouts-", dir="/dev/shm"))
    failed = 0
    try:
        site = build(folder)
        for offloads in (True, False):
            with running_testbed("layouts-", use_apache=False, offloads=offloads) as testbed:
                wrong = there_and_not_back(testbed, folder / f"state-{offloads}", site, arguments.flows)
            print(f"offloads {offloads}: {arguments.flows} flows, {wrong} broken or moved", flush=True)
            failed += wrong
    finally:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
