"""
`lb experiment run --quick`: how long an experiment takes by its plan, and the same experiment within a budget.

Pure arithmetic. Loads are played for less time, with fewer chunks: an open loop keeps its rate, a line its interval, a
player its chunks' length, and the moments at which lines begin and servers are lost come sooner by as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lb.lab.experiment.file import Experiment, LoadEntry
from lb.lab.loadgen.lines import Load, LoadLine
from lb.lab.loadgen.player import BUFFER_S

# What loads may take by their plans, all policies together. The rest of the 90 s that `--quick` has is for the testbed
# (5 s), a balancer's start for each policy (1 to 2 s), and the chunks that are on their way when the last one was asked
# for.
QUICK_LOAD_S = 30.0
# A load of fewer chunks a line than that shows nothing.
FEWEST_CHUNKS = 2


def load_s(load: Load, entry: LoadEntry) -> float:
    """Return the seconds from the start of a load to its last intended fetch, when answers come at once."""
    total = sum(line.chunks for line in load.lines) * entry.clients
    return entry.repeat * max(_line_s(line, entry, total) for line in load.lines)


def _line_s(line: LoadLine, entry: LoadEntry, total: int) -> float:
    if entry.adaptive:
        # The buffer is filled at once; then each chunk waits for the one that plays.
        chunk_s = entry.chunk_duration / 1e9
        return line.start_s + max(0.0, line.chunks * chunk_s - max(BUFFER_S, 2 * chunk_s))
    if entry.arrival is not None:
        # A line has the share of the rate that it has of the chunks: all of them end together.
        return line.start_s + (total / entry.arrival if line.chunks else 0.0)
    return line.start_s + max(0, line.chunks - 1) * line.interval_s


def experiment_s(experiment: Experiment, loads: Sequence[Load], policies: int) -> float:
    """Return the seconds that all loads of an experiment take by their plans, given the number of policies."""
    pairs = zip(loads, experiment.loads, strict=True)
    return experiment.turns * policies * sum(load_s(load, entry) for load, entry in pairs)


def shortened(
    experiment: Experiment, loads: Sequence[Load], policies: int, budget_s: float = QUICK_LOAD_S
) -> tuple[Experiment, tuple[Load, ...]]:
    """
    Return an experiment of one turn whose loads take no more than a budget, as far as two chunks a line allow.

    Args:
        experiment: any.
        loads: those of it, in order.
        policies: how many take part.
        budget_s: seconds.
    """
    once = experiment.model_copy(
        update={"turns": 1, "loads": tuple(entry.model_copy(update={"repeat": 1}) for entry in experiment.loads)}
    )
    whole_s = experiment_s(once, loads, policies)
    if whole_s <= budget_s:
        return once, tuple(loads)
    share = budget_s / whole_s
    return once, tuple(_scaled(load, share) for load in loads)


def _scaled(load: Load, share: float) -> Load:
    lines = tuple(
        replace(
            line,
            start_s=line.start_s * share,
            chunks=min(line.chunks, max(FEWEST_CHUNKS, math.floor(line.chunks * share))),
        )
        for line in load.lines
    )
    return replace(load, lines=lines, events=tuple(replace(event, at_s=event.at_s * share) for event in load.events))
