"""`lb testbed load`: play a load file from the client hosts of a testbed that is up, and show the sum of it all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lb.control.paths import default_control_path
from lb.errors import DaemonError, TestbedError
from lb.loadgen import lines, plan
from lb.loadgen.command import weights_for
from lb.loadgen.lines import Load
from lb.loadgen.outcome import Outcome, Wishes, settings
from lb.loadgen.plan import Options
from lb.testbed import manage
from lb.testbed.load import Faults, LoadClients, spawn_with_exec
from lb.testbed.topology import SWITCH, one_segment

POLL_S = 0.25


def run(
    file: Path,
    options: Options,
    clients: int,
    wishes: Wishes,
    want: Mapping[str, float] | None,
    config: Path | None,
    control: Path | None,
    prefix: str,
) -> int:
    """
    Play a load file; as `lb.loadgen.command.run`, from client hosts.

    Args:
        file: what to play.
        options: how.
        clients: how many hosts play it.
        wishes: what to show.
        want: the servers' weights; None: what a configuration or a running balancer says.
        config: a configuration.
        control: a balancer's control socket; None: the usual one, when somebody answers there.
        prefix: of the testbed.

    Raises:
        TestbedError: no testbed is up, or a client ended before its time.
    """
    load = lines.read(file)
    wishes.require()
    if manage.status(prefix).condition != "up":
        raise TestbedError(manage.NOT_UP)
    _check_events(load)
    weights = _weights(load, want, config, control)
    hosts = [host.name for host in one_segment().of_role("client")][:clients]
    made = plan.make(load, options, hosts)
    spawn = spawn_with_exec(prefix)
    with (
        Outcome(load, made, wishes) as outcome,
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
    load: Load, want: Mapping[str, float] | None, config: Path | None, control: Path | None
) -> dict[str, float] | None:
    try:
        return weights_for(load, want, config, control or default_control_path())
    except DaemonError as error:
        if control is not None:
            raise
        print(f"No balancer answers here ({error}): shares are shown without what is wanted.", file=sys.stderr)
        return None
