"""`lb chaos`: a run with acts and one without, progress meanwhile, a table, a file and a page at the end."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

import lb.backends
from lb.lab import outputs
from lb.lab.chaos import document, report, schedule, table
from lb.lab.chaos.document import Document
from lb.lab.chaos.judge import Outcome
from lb.lab.chaos.run import Run, Watcher
from lb.lab.chaos.schedule import Act
from lb.lab.loadgen.results import INTERRUPTED
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.live import stoppable

# The run without acts is a tenth of the other, but not shorter than this, nor longer.
CONTROL_SHARE, LEAST_CONTROL_S, MOST_CONTROL_S = 0.1, 15.0, 60.0
SEEDS = 1_000_000


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """
    The options of a run.

    Args:
        duration_s: of the run with acts.
        seed: of what is drawn; None: drawn itself.
        control: whether there is a run without acts.
        report, json_file: where to write; None: not at all.
        output: what goes to standard output.
        backend: as `lb run --backend`.
        prefix: of the namespaces' names.
        offloads: whether links keep their offloads.
    """

    duration_s: float
    seed: int | None
    control: bool
    report: Path | None
    json_file: Path | None
    output: Literal["table", "json"]
    backend: str
    prefix: str
    offloads: bool = True


def execute(options: ChaosOptions) -> int:
    """
    Run it.

    Returns:
        The exit status: 0; 1 when something broke that should not; 130 when stopped.

    Raises:
        LbError: the testbed does not come up, or what was wished for cannot be had.
    """
    outputs.require(options.report, options.json_file)
    try:
        with stoppable():
            made = _run(options)
    except KeyboardInterrupt:
        print("Interrupted: the testbed is removed; no report is written.", file=sys.stderr)
        return INTERRUPTED
    outputs.write(options.report, lambda: report.render(made), options.json_file, lambda: document.to_json(made))
    if options.output == "json":
        print(document.to_json(made))
    else:
        table.show(made)
    return 0 if made.is_good else 1


def _run(options: ChaosOptions) -> Document:
    backend = lb.backends.load("rust" if options.backend == "auto" else options.backend)
    keeps = backend.capabilities().keeps_flows
    seed = random.SystemRandom().randrange(SEEDS) if options.seed is None else options.seed
    control_s = (
        min(max(options.duration_s * CONTROL_SHARE, LEAST_CONTROL_S), MOST_CONTROL_S) if options.control else 0.0
    )
    with Testbed(prefix=options.prefix, offloads=options.offloads, use_apache=False) as testbed:
        names = [host.name for host in testbed.topology.of_role("server")]
        without = frozenset() if keeps else schedule.RESTARTS
        if without:
            print(f"  backend {backend.NAME} keeps no flows over a restart: there are none", file=sys.stderr)
        acts = schedule.make(seed, options.duration_s, names, without)
        facts = document.settings(seed, options.duration_s, control_s, backend.NAME, testbed.facts)

        def part(title: str, acts: Sequence[Act], duration_s: float) -> Outcome:
            with _progress(title, duration_s) as watcher:
                return Run(testbed, backend.NAME, keeps, seed, watcher).run(acts, duration_s)

        control = part("without acts", (), control_s) if control_s else None
        chaos = part(f"chaos, seed {seed}", acts, options.duration_s)
    return Document(facts, options.duration_s, chaos, control)


@contextmanager
def _progress(title: str, duration_s: float) -> Iterator[Watcher]:
    """Show on standard error what happens, a line each, and how far it is."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{title}: {duration_s:g} s", markup=False)
    with console.status("") as status:

        def passed(now_s: float, what: str) -> None:
            if what:
                console.print(f"  {now_s:7.1f} s  {what}", markup=False)
            status.update(f"{now_s:.0f} of {duration_s:g} s")

        yield Watcher(passed)
