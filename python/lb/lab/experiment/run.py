"""
Run an experiment: a separate testbed, its links limited as the file says, and every policy over every load, in turns.

Turns go A B C A B C: what drifts on the machine meets all policies alike. Each policy has its own balancer,
started for its turn; testbed and client processes are the same for all. In any case, the testbed is removed with
the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.lab.experiment.file import Experiment, policy_name, service_toml
from lb.lab.experiment.result import Collected, Turn
from lb.lab.loadgen import plan
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.plan import Plan
from lb.lab.loadgen.records import Fetch, Playback, Record
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import spawn_in, start_balancer
from lb.lab.testbed.load_clients import Faults, LoadClients, Workers
from lb.lab.testbed.topology import ROUTER, SWITCH

POLL_S = 0.25
INTERFACE = "eth0"


@dataclass(frozen=True, slots=True)
class Step:
    """What runs now. `turn`: from 1."""

    turn: int
    turns: int
    policy: str
    load: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Watcher:
    """
    An observer of the run.

    Args:
        begins: a step does.
        record: a client has said something.
        ended: a step has ended; with its result.
    """

    begins: Callable[[Step], None]
    record: Callable[[Record], None]
    ended: Callable[[Step, Turn], None]


def run(
    testbed: Testbed,
    experiment: Experiment,
    loads: Sequence[Load],
    policies: Sequence[str | Mapping[str, Any]],
    backend: str,
    watcher: Watcher,
    collected: Collected,
) -> None:
    """
    Run an experiment in a testbed.

    A KeyboardInterrupt goes through; what was complete before it is in `collected`.

    Args:
        testbed: up, with its servers, and ours alone; its links stay as slow as they are made here.
        experiment: what to do.
        loads: those of the experiment, in order.
        policies: who takes part.
        backend: as `lb run --backend`.
        watcher: the observer.
        collected: takes each turn when it is complete.

    Raises:
        LbError: a balancer or a client does not start, or ends before its time.
    """
    for name, server in experiment.servers.items():
        if server.bandwidth is not None:
            build.limit_bandwidth(testbed.prefix, name, INTERFACE, server.bandwidth)
    with Workers(spawn_in(testbed)) as workers:
        for turn in range(1, experiment.turns + 1):
            for policy in policies:
                path = _write_configuration(testbed, experiment, policy)
                start_balancer(testbed, path, backend)
                for step, load in _steps(testbed, experiment, loads, policy_name(policy), turn):
                    watcher.begins(step)
                    done = _play(testbed, workers, step, load, watcher)
                    collected.add(step.policy, step.load, done)
                    watcher.ended(step, done)
                testbed.end(ROUTER, "lb")


def _write_configuration(testbed: Testbed, experiment: Experiment, policy: str | Mapping[str, Any]) -> Path:
    path = testbed.directory / "experiment.toml"
    path.write_text(service_toml(experiment, policy))
    # For any umask: a file that its group can write is not trusted (`lb.privileges.trust`).
    path.chmod(0o644)
    return path


def _steps(
    testbed: Testbed, experiment: Experiment, loads: Sequence[Load], policy: str, turn: int
) -> Iterator[tuple[Step, Load]]:
    hosts = [host.name for host in testbed.topology.of_role("client")]
    for entry, load in zip(experiment.loads, loads, strict=True):
        # Another turn draws other arrivals; every policy of one turn gets the same.
        options = entry.options(experiment.seed * 1000 + turn)
        made = plan.make(load, options, hosts[: entry.clients])
        yield Step(turn, experiment.turns, policy, entry.name, made), load


def _play(testbed: Testbed, workers: Workers, step: Step, load: Load, watcher: Watcher) -> Turn:
    fetches: list[Fetch] = []
    playbacks: list[Playback] = []

    def take(record: Record) -> None:
        if isinstance(record, Fetch):
            fetches.append(record)
        elif isinstance(record, Playback):
            playbacks.append(record)
        watcher.record(record)

    spawn = spawn_in(testbed)
    with Faults(load.events, spawn, SWITCH) as faults, LoadClients(step.plan, spawn, workers) as clients:
        while clients.running:
            for _ in faults.due(clients.now_s()):
                pass
            for record in clients.poll(faults.wait_s(clients.now_s(), POLL_S)):
                take(record)
    return Turn(fetches, playbacks)
