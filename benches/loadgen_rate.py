"""
How fast the load generator is: one process, an open loop of small chunks, and how late its fetches start.

    python benches/loadgen_rate.py [--rate 2000] [--seconds 10]

One client and one server of the testbed (veth, kernel routing, nginx with one worker), the generator as `lb testbed
load` runs it: one process in the client. Small chunks are those of 100 kbit/s, 50 kB. The bar: 2 000 fetches/s or
more, and less than 5 ms of scheduling lag at p99.
"""

from __future__ import annotations

import argparse
import os
import sys

from lb.lab.bench import web_server
from lb.lab.loadgen import plan
from lb.lab.loadgen.figures import Figures, figure
from lb.lab.loadgen.lines import Load, LoadLine
from lb.lab.loadgen.plan import Options
from lb.lab.loadgen.records import Fetch
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import spawn_in
from lb.lab.testbed.load_clients import LoadClients

BAR_HZ, BAR_LAG_S = 2000, 0.005
LINES = 4


def measure(testbed: Testbed, rate_hz: float, seconds: float, new_connection: bool) -> Figures:
    """Play one open loop from client1 to server1 and return its figures."""
    server = testbed.topology.host("server1")
    line = LoadLine(0.0, str(server.address), server.web_port, 100, 0.0, round(rate_hz * seconds / LINES))
    made = plan.make(
        Load("rate", (line,) * LINES), Options(rate_hz=rate_hz, new_connection=new_connection), ["client1"]
    )
    fetches: list[Fetch] = []
    with LoadClients(made, spawn_in(testbed)) as clients:
        while clients.running:
            fetches += (record for record in clients.poll(1.0) if isinstance(record, Fetch))
    return figure(fetches)


def main() -> int:
    """Measure with kept and with new connections. Returns 0 when both reach the bar."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rate", type=float, default=2100, help="fetches per second")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f}, {len(os.sched_getaffinity(0))} cores", file=sys.stderr)
    print("connections  offered/s  fetches/s  failures  lag p50 ms  lag p99 ms  fetch p50 ms  fetch p99 ms")
    reached = True
    with Testbed(prefix="lb-rate-", servers=False) as testbed:
        build.set_kernel_forwarding(testbed.prefix, True)
        web_server.start(testbed, as_root=os.geteuid() == 0)
        for name, new_connection in (("kept", False), ("new", True)):
            found = measure(testbed, options.rate, options.seconds, new_connection)
            assert found.lag is not None
            assert found.total.latency is not None
            times = (found.lag.p50_s, found.lag.p99_s, found.total.latency.p50_s, found.total.latency.p99_s)
            shown = "".join(f"{value * 1000:>{width}.2f}" for value, width in zip(times, (12, 12, 14, 14), strict=True))
            print(f"{name:<11}{options.rate:>11.0f}{found.rate_hz:>11.0f}{found.total.failures:>10}{shown}")
            reached = reached and not found.total.failures and found.rate_hz >= BAR_HZ and found.lag.p99_s < BAR_LAG_S
    print(
        "reached" if reached else "not reached",
        f"(at least {BAR_HZ} fetches/s, lag p99 below {BAR_LAG_S * 1000:.0f} ms)",
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
