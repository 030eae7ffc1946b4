"""Progress bars on standard error while a load runs: one for all, one per client when there are several."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lb.lab.loadgen.plan import Plan
from lb.lab.loadgen.records import Fetch, Record

REFRESH_HZ = 4
MAX_BARS = 10


class Bars:
    """
    A context manager; `say` prints a line above the bars. Without a terminal there are no bars.

    Args:
        plan: what is played.
        title: what stands before the bar of all.
    """

    def __init__(self, plan: Plan, title: str = "all") -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
            transient=True,
            refresh_per_second=REFRESH_HZ,
        )
        self._all = self._progress.add_task(title, total=plan.fetches, note="")
        self._clients: dict[str, TaskID] = {}
        if 1 < len(plan.clients) <= MAX_BARS:
            for client in plan.clients:
                total = plan.only(client.name).fetches
                self._clients[client.name] = self._progress.add_task(client.name, total=total, note="")
        self._counts: Counter[TaskID] = Counter()
        self._failures, self._drawn_s = 0, 0.0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False)

    def take(self, record: Record) -> None:
        """Move the bars on; what came in between is added up, for a load may fetch thousands of times a second."""
        if not isinstance(record, Fetch) or self._progress.disable:
            return
        self._failures += not record.ok
        self._counts[self._all] += 1
        if record.client in self._clients:
            self._counts[self._clients[record.client]] += 1
        now_s = time.monotonic()
        if now_s - self._drawn_s < 1 / REFRESH_HZ:
            return
        self._drawn_s = now_s
        for task, count in self._counts.items():
            self._progress.update(task, completed=count)
        self._progress.update(self._all, note=f"{self._failures} failures" if self._failures else "")
