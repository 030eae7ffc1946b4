"""What `lb bench` does: settings from its options, a run with its progress shown, and the files it writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lb.errors import LbError
from lb.lab.bench import order, report, table
from lb.lab.bench import run as runner
from lb.lab.bench import settings as presets
from lb.lab.bench.catalogue import CONTESTANTS, MEASURES
from lb.lab.bench.contestants.again import SUFFIX
from lb.lab.bench.settings import Settings
from lb.lab.pictures import page

__all__ = ["CONTESTANTS", "MEASURES", "parse_names", "run", "settings", "twice"]


def parse_names(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """
    Read a list of names with commas.

    Returns:
        The known names that it holds, in the order of `known`; all of them for None.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    if text is None:
        return known
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(known))
    if unknown or not names:
        raise ValueError(f"{unknown[0] if unknown else text!r} is none of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def settings(
    quick: bool,
    turns: int | None,
    measures: tuple[str, ...],
    contestants: tuple[str, ...],
    prefix: str,
    seed: int | None = None,
) -> Settings:
    """Return what the options of the command line ask for. `seed`: None draws one."""
    chosen = presets.quick() if quick else Settings()
    return replace(
        chosen,
        turns=turns or chosen.turns,
        measures=measures,
        contestants=contestants,
        prefix=prefix,
        seed=order.draw_seed() if seed is None else seed,
    )


def twice(name: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return a contestant and its double, for a comparison of it with itself.

    Raises:
        ValueError: it is unknown.
    """
    (only,) = parse_names(name, known) if name is not None and "," not in name else ("",)
    if not only:
        raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    return only, only + SUFFIX


def run(settings: Settings, json_file: Path | None, report_file: Path | None, output: Literal["table", "json"]) -> None:
    """
    Measure, write the files, print the figures.

    Raises:
        LbError: it cannot be measured, or a file cannot be written.
    """
    writable(json_file)
    writable(report_file)
    if report_file is not None:
        page.require()
    with _progress(runner.count_steps(settings)) as show:
        document = runner.execute(settings, show)
    text = document.model_dump_json(indent=1) + "\n"
    if json_file is not None:
        json_file.write_text(text)
    print(text if output == "json" else table.render(document), end="", flush=True)
    if report_file is not None:
        report_file.write_text(report.render(document))
        print(f"report: {report_file}", file=sys.stderr)


def writable(path: Path | None) -> None:
    """Raise LbError when a file cannot be written: before minutes of measuring, not after."""
    if path is None:
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise LbError(f"{path}: {error.strerror}") from error


@contextmanager
def _progress(steps: int) -> Iterator[runner.Show]:
    """Show progress on stderr: a bar on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda line, _done: print(line, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Refreshed by hand: a thread of rich's would forbid the testbed to enter a user namespace.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("starting", total=steps)

        def show(line: str, done: bool) -> None:
            progress.update(task, advance=int(done), description=line, refresh=True)

        yield show
