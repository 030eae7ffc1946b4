"""`lb testbed load`: play a load file from the client hosts of a testbed that is up, and show the sum of it all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lb.errors import TestbedError
from lb.lab.loadgen import lines, plan
from lb.lab.loadgen.command import weights_for
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.plan import Options
from lb.lab.loadgen.results import Outcome, Outputs, settings
from lb.lab.loadgen.target_weights import of_status
from lb.lab.testbed import manage
from lb.lab.testbed.load_clients import Faults, LoadClients, exec_command, spawn_with_exec
from lb.lab.testbed.topology import ROUTER, SWITCH, one_segment

POLL_S = 0.25


def run(
    file: Path,
    options: Options,
    clients: int,
    outputs: Outputs,
    want: Mapping[str, float] | None,
    config: Path | None,
    control: Path | None,
    prefix: str,
) -> int:
    """
    Play a load file; as `lb.lab.loadgen.command.run`, from client hosts.

    Args:
        file: what to play.
        options: how.
        clients: how many hosts play it.
        outputs: what to show.
        want: the servers' weights; None: what a configuration or a running balancer says.
        config: a configuration.
        control: a balancer's control socket; None: the default one in the router, if a balancer answers there.
        prefix: of the testbed.

    Raises:
        TestbedError: no testbed is up, or a client ended before its time.
    """
    load = lines.read(file)
    outputs.require()
    if manage.status(prefix).condition != "up":
        raise TestbedError(manage.NOT_UP)
    _check_events(load)
    weights = _weights(load, want, config, control, prefix)
    hosts = [host.name for host in one_segment().of_role("client")][:clients]
    made = plan.make(load, options, hosts)
    spawn = spawn_with_exec(prefix)
    with (
        Outcome(load, made, outputs) as outcome,
        Faults(load.events, spawn, SWITCH) as faults,
        LoadClients(made, spawn) as running,
    ):
        try:
            follow(running, faults, outcome)
        except KeyboardInterrupt:
            outcome.interrupted = True
            for record in running.drain():
                outcome.take(record)
    return outcome.finish(settings(load, made, [("from", "client hosts of the testbed")]), weights)


def follow(running: LoadClients, faults: Faults, outcome: Outcome) -> None:
    """Take in what the clients say until all have ended, and do what the load says about servers."""
    while running.running:
        for what in faults.due(running.now_s()):
            outcome.happened(running.now_s(), what)
        for record in running.poll(faults.wait_s(running.now_s(), POLL_S)):
            outcome.take(record)


def _check_events(load: Load) -> None:
    """Raise TestbedError when a load is about a server that the testbed does not have."""
    servers = [host.name for host in one_segment().of_role("server")]
    for event in load.events:
        if event.server not in servers:
            raise TestbedError(f"{load.name}: the testbed has no server {event.server!r}; it has {', '.join(servers)}")


def _weights(
    load: Load, want: Mapping[str, float] | None, config: Path | None, control: Path | None, prefix: str
) -> dict[str, float] | None:
    if want is not None or config is not None or control is not None:
        return weights_for(load, want, config, control)
    # Asked in the router: without root its control socket is where only the testbed's own programs see it.
    command = exec_command(prefix, ROUTER, "lb", "status", "-o", "json")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        print("No balancer answers in the router: shares are shown without target weights.", file=sys.stderr)
        return None
    return of_status(json.loads(done.stdout), load.lines[0])
