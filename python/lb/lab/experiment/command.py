"""`lb experiment run`: experiments one after the other, progress meanwhile, one report at the end."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lb.errors import LbError
from lb.lab import outputs
from lb.lab.experiment import file, quick, result, run, table
from lb.lab.experiment.file import Experiment, policy_name
from lb.lab.experiment.result import Collected, Result, Turn
from lb.lab.experiment.run import Step, Watcher
from lb.lab.loadgen.figures import figure
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.records import Fetch, Record
from lb.lab.loadgen.results import INTERRUPTED
from lb.lab.loadgen.table import milliseconds
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import stoppable
from lb.model.units import count
from lb.model.version import version

DEFAULT_PREFIX = "lb-exp-"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """
    The options of a run.

    Args:
        report, json_file: where to write; None: not at all.
        output: what goes to standard output.
        turns: instead of the experiments' own.
        quick: one turn of shorter loads (`lb.lab.experiment.quick`).
        only: names of policies; None: all that an experiment names.
        backend: as `lb run --backend`.
        prefix: of the namespaces' names.
    """

    report: Path | None
    json_file: Path | None
    output: Literal["table", "json"] = "table"
    turns: int | None = None
    quick: bool = False
    only: tuple[str, ...] | None = None
    backend: str = "auto"
    prefix: str = DEFAULT_PREFIX


def execute(paths: Sequence[Path], options: RunOptions) -> int:
    """
    Run experiments. One that is stopped keeps the turns that were complete: they are shown and written.

    Returns:
        The exit status: 0; 1 when something expected does not hold, or nothing succeeded; 130 when stopped.

    Raises:
        ConfigError: an experiment is invalid.
        LbError: the testbed does not come up, or what was wished for cannot be had.
    """
    experiments = [file.read(path) for path in paths]
    outputs.require(options.report, options.json_file)
    results: list[Result] = []
    interrupted = _run_all(experiments, options, results)
    if not results:
        print("Interrupted: the testbed is removed; no report is written.", file=sys.stderr)
        return INTERRUPTED
    if interrupted:
        print("Interrupted: the complete runs are reported; the testbed is removed.", file=sys.stderr)
    _write(results, options)
    if options.output == "json":
        print(result.to_json(results))
    else:
        table.show(results)
    if interrupted:
        return INTERRUPTED
    failed = any(verdict.holds is False for each in results for verdict in each.verdicts)
    silent = not any(entry.figures.total.fetches for each in results for entry in each.entries)
    return 1 if failed or silent else 0


def _run_all(
    experiments: Sequence[tuple[Experiment, Sequence[Load]]], options: RunOptions, results: list[Result]
) -> bool:
    """Run experiments and add their results, whole or not; return whether they were stopped."""
    with stoppable():
        for experiment, loads in experiments:
            made, interrupted = _run(experiment, loads, options)
            if made is not None:
                results.append(made)
            if interrupted:
                return True
    return False


def _run(experiment: Experiment, loads: Sequence[Load], options: RunOptions) -> tuple[Result | None, bool]:
    """Run an experiment; return what was complete of it, None: nothing, and whether it was stopped."""
    policies = _chosen(experiment, options.only)
    if options.turns is not None:
        experiment = experiment.model_copy(update={"turns": options.turns})
    if options.quick:
        experiment, loads = quick.shortened(experiment, loads, len(policies))
    collected, settings, interrupted = Collected(), dict[str, str](), False
    steps = experiment.turns * len(policies) * len(loads)
    try:
        with Testbed(prefix=options.prefix) as testbed, _progress(experiment.title, steps) as watcher:
            settings = _settings(experiment, testbed.facts)
            print(f"  web server: {settings['web server']}; chunks: {settings['chunks']}", file=sys.stderr)
            run.run(testbed, experiment, loads, policies, options.backend, watcher, collected)
    except KeyboardInterrupt:
        interrupted = True
        if not collected.turns:
            return None, True
        settings["interrupted"] = f"after {sum(map(len, collected.turns.values()))} of {steps} runs"
    if options.quick:
        settings["loads"] = "shortened (--quick): expectations are not judged"
    names = [policy_name(policy) for policy in policies]
    return result.make(experiment, collected, names, settings, judged=not options.quick), interrupted


def _chosen(experiment: Experiment, only: tuple[str, ...] | None) -> list[str | dict[str, Any]]:
    """Return the policies that take part: the baseline always does."""
    if only is None:
        return list(experiment.policies)
    known = [policy_name(policy) for policy in experiment.policies]
    if unknown := [name for name in only if name not in known]:
        raise LbError(f"{experiment.title}: {unknown[0]!r} is not one of its policies: {', '.join(known)}")
    wanted = {policy_name(experiment.baseline), *only}
    return [policy for policy in experiment.policies if policy_name(policy) in wanted]


def _settings(experiment: Experiment, facts: dict[str, str]) -> dict[str, str]:
    speeds = experiment.bandwidths() or {}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, Linux {os.uname().release}",
        "load average at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "lb": version(),
        "web server": facts.get("web", "-"),
        "chunks": facts.get("video", "-"),
        "turns": str(experiment.turns),
        "seed": str(experiment.seed),
        "bandwidth of servers": ", ".join(f"{name} {value / 1e6:g} Mbit/s" for name, value in speeds.items()) or "-",
    }


@contextmanager
def _progress(title: str, steps: int) -> Iterator[Watcher]:
    """Show bars on standard error: steps of the experiment, fetches of the step; and a line for each step."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(title, markup=False)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
        refresh_per_second=4,
    )
    whole = progress.add_task("steps", total=steps)
    part = progress.add_task("", total=None)

    def begins(step: Step) -> None:
        progress.reset(part, description=f"{step.policy}, {step.load}", total=step.plan.fetches)

    def record(said: Record) -> None:
        if isinstance(said, Fetch):
            progress.advance(part)

    def ended(step: Step, turn: Turn) -> None:
        progress.advance(whole)
        console.print(_line(step, turn), markup=False)

    with progress:
        yield Watcher(begins, record, ended)


def _line(step: Step, turn: Turn) -> str:
    figures = figure(turn.fetches, turn.playbacks)
    latency, players = figures.total.response, figures.players
    words = [f"{count(figures.total.fetches)} fetches", f"{count(figures.total.failures)} failures"]
    if latency is not None:
        words += [f"mean {milliseconds(latency.mean_s)}", f"p95 {milliseconds(latency.p95_s)}"]
    if players is not None:
        words.append(f"{players.stalls} stalls, {players.stalled_s:.1f} s")
    return f"  turn {step.turn} of {step.turns}  {step.policy:<18} {step.load:<12} {', '.join(words)}"


def _write(results: Sequence[Result], options: RunOptions) -> None:
    def render() -> str:
        from lb.lab.experiment import report

        return report.render(results)

    outputs.write(options.report, render, options.json_file, lambda: result.to_json(results))
