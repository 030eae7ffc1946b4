"""
A thousand servers with health checks, half of them coming back at once: every check is on time, and what they find is
a few publications (behaviour 30).
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pair import DEADLINE_S, Pair, running_pair, wait_until
from prometheus_client.parser import text_string_to_metric_families
from test_daemon import Run

from lb.control.client import change, fetch
from lb.testbed import isolation

# The answers of checks pass the data path too: one in Python takes the GIL from the checks for each.
SERVERS = {"rust": 1000, "python": 100}
PORT, METRICS_PORT = 8080, 9464
FIRST = ip_address("10.9.0.1")
# Well above what 1 000 servers in their first interval and their recovery take on a busy machine.
LONG_S = 90.0
PUBLICATIONS_PER_S = 10
# Answers 503 at every second address until SIGUSR1, and 200 after it; says when it listens.
WEB_SERVER = f"""
import asyncio, signal
well = asyncio.Event()

async def serve(reader, writer):
    try:
        await reader.readuntil(b"\\r\\n\\r\\n")
        octets = writer.get_extra_info("sockname")[0].split(".")
        status = b"200 OK" if well.is_set() or int(octets[3]) % 2 else b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, well.set)
    server = await asyncio.start_server(serve, "0.0.0.0", {PORT}, backlog=4096)
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
TOP = f"""\
[metrics]
port = {METRICS_PORT}
[[interface]]
name = "eth0"
[[service]]
name = "web"
address = "198.18.1.100"
port = 80
policy = "random"
health = {{ check = "http", interval = "6s", timeout = "6s", fall = 1, rise = 1, slow_start = "5s" }}
"""


@pytest.fixture(scope="module")
def pair(backend: str) -> Iterator[Pair]:
    with running_pair() as made:
        made.backend = backend
        made.ip(made.near, "link set lo up")
        # Every address of the prefix is far's own, without giving it one by one.
        made.ip(made.far, "route add local 10.9.0.0/16 dev lo")
        made.ip(made.near, "route add 10.9.0.0/16 via 198.18.1.31")
        yield made


@contextmanager
def serving(pair: Pair) -> Iterator[subprocess.Popen[str]]:
    """Run the web server in far for the block."""
    command = ["ip", "netns", "exec", pair.far, sys.executable, "-c", WEB_SERVER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        process.stdout.close()


@contextmanager
def balancing(pair: Pair, folder: Path) -> Iterator[Run]:
    text = TOP + "".join(
        f'  [[service.server]]\n  name = "s{number}"\n  address = "{FIRST + number}"\n  port = {PORT}\n'
        for number in range(SERVERS[pair.backend])
    )
    (folder / "lb.toml").write_text(text)
    (folder / "lb.toml").chmod(0o600)
    run = Run(pair, folder)
    try:
        run.wait_ready()
        yield run
    finally:
        run.end()


def scrape(pair: Pair) -> dict[str, float]:
    """Return the balancer's metrics, summed over their labels; those of servers by label `health` or `result`."""
    with isolation.inside(pair.near), urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as page:
        text = page.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            which = sample.labels.get("health") or sample.labels.get("result") or ""
            found[f"{sample.name}{which}"] = found.get(f"{sample.name}{which}", 0) + sample.value
    return found


def wait_for_lines(run: Run, words: str, count: int) -> str:
    """Wait until the log has so many lines with these words; return the last server they name. Costs it nothing."""

    def named() -> list[str]:
        return [line.partition("web/")[2].split(" ")[0] for line in run.text().splitlines() if words in line]

    wait_until(lambda: len(named()) >= count, f"{count} lines with {words!r}", LONG_S)
    return named()[-1]


def status(run: Run) -> dict[str, Any]:
    answer: dict[str, Any] = fetch(run.control, "/status")
    return answer


@pytest.mark.slow
def test_half_of_a_thousand_servers_recover_at_once(pair: Pair, tmp_path: Path) -> None:
    """No check is late, no task fails, and a publication per tick tells of all of them."""
    count = SERVERS[pair.backend]
    half = count // 2
    with serving(pair) as web, balancing(pair, tmp_path) as run:
        wait_for_lines(run, " is down: ", half)
        before, began = scrape(pair), time.monotonic()
        web.send_signal(signal.SIGUSR1)
        last = wait_for_lines(run, " is up: ", half)
        # Operators are heard meanwhile.
        assert change(run.control, "/drain", {"service": "web", "server": "s0"})["changed"]
        ramp = functools.partial(fetch, run.control, "/server", service="web", server=last)
        wait_until(lambda: ramp()["ramp"] == 1.0, "the last server has its whole weight", LONG_S)
        seconds, after = time.monotonic() - began, scrape(pair)
        made = after["lb_publications_total"] - before["lb_publications_total"]
        print(f"{made:.0f} publications in {seconds:.1f} s, {after['lb_health_checks_late_total']:.0f} late checks")
        assert after["lb_service_servers_available"] == count - 1
        assert after["lb_server_ramp_ratio"] == count
        assert (after["lb_health_checks_late_total"], after["lb_task_failures_total"]) == (0, 0)
        assert (after["lb_server_health_changes_totaldown"], after["lb_server_health_changes_totalup"]) == (half, half)
        # Twenty steps and a verdict of each server, at most one publication a tick, and the operator's.
        assert made <= seconds * PUBLICATIONS_PER_S + 2
        assert status(run)["generation"] == after["lb_config_generation"]
        assert "Traceback" not in run.text()
