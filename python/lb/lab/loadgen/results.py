"""
Take in what a run yields, and give out what was asked for: the course's prints, tables, JSON, CSV, a page.

One place for both ways to run: in this process (`command.py`) and from the hosts of the testbed
(`lb.lab.testbed.load_clients`).
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from lb.errors import LbError
from lb.lab.loadgen import document, table
from lb.lab.loadgen.course import FINISHED, CourseLog
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.plan import Plan
from lb.lab.loadgen.progress import Bars
from lb.lab.loadgen.records import Fetch, Playback, Record

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True)
class Outputs:
    """
    The outputs of a run.

    Args:
        json_file, csv_file, report: files to write; None: none.
        output: the format on standard output.
        verbose: print every fetch. log: the course's log file.
    """

    json_file: Path | None = None
    csv_file: Path | None = None
    report: Path | None = None
    output: Literal["table", "json"] = "table"
    verbose: bool = False
    log: Path | None = None

    def require(self) -> None:
        """
        Raise LbError when an output cannot be made; to be called before anything runs.

        Raises:
            LbError: the report needs a package that is missing, or a file cannot be written.
        """
        if self.report is not None:
            from lb.lab.pictures import page

            page.require()
        for path in (self.json_file, self.csv_file, self.report):
            if path is not None and not path.absolute().parent.is_dir():
                raise LbError(f"{path} cannot be written: there is no directory {path.absolute().parent}")


@dataclass(slots=True)
class Outcome:
    """
    What a run yields; a context manager that shows progress meanwhile.

    Args:
        load, plan: what is played.
        outputs: what to show.
        title: of the progress bar.
    """

    load: Load
    plan: Plan
    outputs: Outputs
    title: str = "all"
    fetches: list[Fetch] = field(default_factory=list)
    playbacks: list[Playback] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    interrupted: bool = False
    _bars: Bars = field(init=False)
    _course: CourseLog = field(init=False)

    def __enter__(self) -> Outcome:
        self._course = CourseLog(self.load.lines, len(self.plan.clients) > 1, self.outputs.log, self.outputs.verbose)
        self._bars = Bars(self.plan, self.title)
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)
        self._course.close()

    def take(self, record: Record) -> None:
        """Take in one record."""
        if isinstance(record, Fetch):
            self.fetches.append(record)
        elif isinstance(record, Playback):
            self.playbacks.append(record)
        self._bars.take(record)
        for line in self._course.take(record):
            self._bars.say(line)

    def happened(self, at_s: float, what: str) -> None:
        """Take in what happened to a server."""
        self.events.append((at_s, what))
        self._bars.say(f"{at_s:.1f} s: {what}")

    def finish(self, settings: Mapping[str, str], target_weights: Mapping[str, float] | None) -> int:
        """
        Print and write the outputs.

        Args:
            settings: what was played and how, in words.
            target_weights: of the servers, by name; None: not known.

        Returns:
            The exit status: 0; 1 when no fetch succeeded; 130 when it was interrupted.
        """
        print("Interrupted" if self.interrupted else FINISHED, file=sys.stderr)
        made = document.make(settings, self.fetches, self.playbacks, target_weights, self.events)
        text = document.to_json(made) if self.outputs.json_file or self.outputs.output == "json" else ""
        _write(self.outputs.json_file, text)
        _write(self.outputs.csv_file, document.to_csv(made) if self.outputs.csv_file else "")
        if self.outputs.report is not None:
            from lb.lab.loadgen import report

            _write(self.outputs.report, report.render(made))
        if self.outputs.output == "json":
            print(text)
        else:
            table.show(made.figures, target_weights)
        if self.interrupted:
            return INTERRUPTED
        return 0 if made.figures.total.fetches else FAILED


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LbError(f"{path} cannot be written: {error.strerror}") from error


def settings(load: Load, plan: Plan, extra: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Return in words what is played and how."""
    options = plan.options
    targets = sorted(
        {f"[{line.vip}]:{line.port}" if ":" in line.vip else f"{line.vip}:{line.port}" for line in load.lines}
    )
    way = "closed loop: each line waits for its answers"
    if options.adaptive:
        way = f"adaptive players, chunks of {options.chunk_s:g} s"
    elif options.rate_hz is not None:
        way = f"open loop: Poisson, {options.rate_hz:g} fetches/s, seed {options.seed}"
    return {
        "load": load.name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "target": ", ".join(targets),
        "clients": str(len(plan.clients)),
        "arrival": way,
        "connections": "a new one per chunk" if options.new_connection or options.echo else "kept by each line",
        "repeat": str(options.repeat),
        "timeout": f"{options.timeout_s:g} s",
        "retries": str(options.retries),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.platform()}, Python {platform.python_version()}",
        **dict(extra),
    }
