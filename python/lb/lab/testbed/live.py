"""
`lb run --testbed`: build the testbed, run the balancer in its router, replay a load from the clients, show it, leave
nothing behind.

Everything is a child of this process and dies with it. Ends on Ctrl-C, SIGTERM, after a duration, or when the balancer
ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lb.errors import DaemonError, LbError, TestbedError
from lb.lab.loadgen.lines import MAX_CHUNKS, Load, LoadLine
from lb.lab.loadgen.plan import Options, Plan
from lb.lab.loadgen.plan import make as make_plan
from lb.lab.testbed.lifecycle import READY_DEADLINE_S, Testbed
from lb.lab.testbed.load_clients import PIPES, LoadClients, Spawn
from lb.lab.testbed.tally import ServerTally, Tally, plain_table, rich_table
from lb.lab.testbed.topology import DEFAULT_PREFIX, ECHO_PORT, ROUTER

if TYPE_CHECKING:
    from lb.config import Config, ServiceConfig

DEFAULT_CONFIG = Path(__file__).with_name("default.toml")
PLAIN_INTERVAL_S = 1.0
TERMINAL_INTERVAL_S = 0.25
# Two players per client: (bitrate class in kbit/s, seconds between its chunks). All together about 100 fetches/s.
PLAYERS = ((100, 0.06), (500, 0.2))
TIMEOUT_S = 5.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Balancer:
    """A running `lb run` in the router. `control`: path of its control socket. `backend`: which one processes."""

    process: subprocess.Popen[bytes]
    control: Path
    backend: str


def run(
    config: Path | None = None,
    backend: str = "auto",
    duration_s: float | None = None,
    prefix: str = DEFAULT_PREFIX,
    control: Path | None = None,
) -> int:
    """
    Run the testbed with a balancer and a load, until told to stop.

    Args:
        config: the balancer's configuration; None: video and echo behind one address.
        backend: as `lb run --backend`.
        duration_s: seconds of load; None: until a signal.
        prefix: of the namespaces' names.
        control: path of the control socket; None: in the testbed's state directory.

    Returns:
        The exit status: 0, or 1 when no fetch succeeded.

    Raises:
        LbError: the configuration is invalid, or the testbed or the balancer does not start. Nothing stays.
    """
    import lb.backends
    from lb.balancer import choose_backend
    from lb.config.unprivileged import load

    path = (config or DEFAULT_CONFIG).resolve()
    loaded = load(path)
    service = _loaded_service(loaded, path)
    # Before anything is built: a backend that is missing is told here, and so is the slow one.
    chosen = lb.backends.load(choose_backend(backend, loaded)).NAME
    try:
        with stoppable(), Testbed(prefix=prefix) as testbed:
            _say(f"Testbed: 5 clients, router, 3 servers; web server: {testbed.facts['web']}")
            path = path if config else copy_config(path, testbed.directory)
            balancer = start_balancer(testbed, path, chosen, control and control.absolute())
            return _run_load(testbed, balancer, service, duration_s)
    except KeyboardInterrupt:
        _say("Stopped before the load ran.")
        return 1


def copy_config(path: Path, directory: Path) -> Path:
    """Return a copy of the packaged configuration that `lb run` trusts, installed with any umask."""
    copy = directory / path.name
    shutil.copyfile(path, copy)
    copy.chmod(0o644)
    return copy


def start_balancer(testbed: Testbed, config: Path, backend: str, control: Path | None = None) -> Balancer:
    """
    Start `lb run` in the router and wait until it answers.

    Raises:
        LbError: it ended; with its message and exit code.
    """
    control = control or testbed.directory / "lb.sock"
    arguments = ("run", "-c", str(config), "--control", str(control), "--backend", backend)
    # The user's own balancer has its state directory there.
    environment = {name: value for name, value in os.environ.items() if name != "LB_STATE"}
    process = testbed.spawn_python(ROUTER, "lb", "lb", *arguments, env=environment)
    deadline = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < deadline:
        status = process.poll()
        if status is not None:
            raise _failure(testbed, status)
        if read_status(control) is not None:
            return Balancer(process, control, backend)
        time.sleep(0.02)
    raise TestbedError(f"`lb run` does not answer on {control} after {READY_DEADLINE_S:.0f} s")


def read_status(control: Path) -> dict[str, Any] | None:
    """Ask a balancer for its status. Returns None when it does not answer."""
    from lb.control.api.client import fetch

    try:
        status: dict[str, Any] = fetch(control, "/status")
    except DaemonError:
        return None
    return status


def _failure(testbed: Testbed, status: int) -> LbError:
    message = testbed.last_log_line(ROUTER, "lb").removeprefix("lb: ")
    error = LbError(message or f"`lb run` ended with status {status}")
    error.exit_code = status if status > 0 else 1
    return error


def _loaded_service(config: Config, path: Path) -> ServiceConfig:
    """Return the service that gets the load: the first one over TCP."""
    for service in config.services:
        if service.protocol == "tcp":
            return service
    raise TestbedError(f'{path}: the load needs a service with protocol = "tcp", and there is none')


def _run_load(testbed: Testbed, balancer: Balancer, service: ServiceConfig, duration_s: float | None) -> int:
    tally = Tally({server.name: ServerTally() for server in service.servers})
    plan = _endless_plan(testbed, service)
    with ExitStack() as stack:
        show = _display(stack, tally)
        with suppress(KeyboardInterrupt):
            clients = stack.enter_context(LoadClients(plan, spawn_in(testbed)))
            _explain(testbed, balancer, service)
            _follow(clients, balancer, tally, show, duration_s)
        ended = balancer.process.poll()
        _ignore_signals()
        _take_status(balancer, tally)
    print(plain_table(tally), flush=True)
    if ended is not None:
        raise _failure(testbed, ended)
    return 0 if tally.fetches else 1


def _endless_plan(testbed: Testbed, service: ServiceConfig) -> Plan:
    # An echo service has no chunks to fetch: its clients exchange a greeting instead.
    echo = all(server.port == ECHO_PORT for server in service.servers)
    lines = tuple(
        LoadLine(0.0, str(service.address), service.port, size, interval_s, MAX_CHUNKS) for size, interval_s in PLAYERS
    )
    # Every fetch uses a new connection, so that each is placed.
    options = Options(new_connection=True, timeout_s=TIMEOUT_S, echo=echo)
    return make_plan(Load("live", lines), options, [host.name for host in testbed.topology.of_role("client")])


def spawn_in(testbed: Testbed) -> Spawn:
    """Return how to start a program in a host of a testbed that this process owns."""
    return lambda host, module: testbed.spawn_python(host, "load", module, **PIPES)


def _explain(testbed: Testbed, balancer: Balancer, service: ServiceConfig) -> None:
    target = f"[{service.address}]" if service.address.version == 6 else str(service.address)
    _say(
        f"Balancer: process {balancer.process.pid} in the router, backend {balancer.backend}, "
        f"service {service.name} at {target}:{service.port}"
    )
    _say(f"Servers: {testbed.facts['web']}; video: {testbed.facts['video']}")
    prefix = "" if testbed.prefix == DEFAULT_PREFIX else f" --prefix {testbed.prefix}"
    _say("From another terminal:")
    _say(f"  lb testbed exec{prefix} client1 -- curl -sD- -o /dev/null http://{target}:{service.port}/")
    _say(f"  lb status --control {balancer.control}")
    _say("Ctrl-C stops it and removes the testbed.")


def _follow(
    clients: LoadClients,
    balancer: Balancer,
    tally: Tally,
    show: Callable[[float], None],
    duration_s: float | None,
) -> None:
    """Count what the clients report until the duration is over, or until the balancer or all clients ended."""
    interval_s = TERMINAL_INTERVAL_S if sys.stdout.isatty() else PLAIN_INTERVAL_S
    shown_s = 0.0
    while clients.running and balancer.process.poll() is None:
        now_s = clients.now_s()
        if duration_s is not None and now_s >= duration_s:
            return
        if now_s - shown_s >= interval_s:
            shown_s = now_s
            _take_status(balancer, tally)
            show(now_s)
        for record in clients.poll(interval_s if duration_s is None else min(interval_s, duration_s - now_s)):
            tally.add(record)


def _take_status(balancer: Balancer, tally: Tally) -> None:
    status = read_status(balancer.control)
    if status is not None:
        tally.take_status(status)


def _display(stack: ExitStack, tally: Tally) -> Callable[[float], None]:
    """Return what shows the present state, given the seconds so far: a live table on a terminal, else a line."""
    if not sys.stdout.isatty():
        return lambda elapsed_s: print(tally.line(elapsed_s), flush=True)
    from rich.live import Live

    live = stack.enter_context(Live(auto_refresh=False, transient=True))
    return lambda elapsed_s: live.update(rich_table(tally, elapsed_s), refresh=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the signals that stop a program raise KeyboardInterrupt, once."""
    previous = {number: signal.signal(number, _interrupt) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """Let nothing cut the cleaning short."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
