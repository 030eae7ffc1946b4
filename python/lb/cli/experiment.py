"""`lb experiment run`: policies over the same load, compared. The work is in `lb.lab.experiment.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.cli.options import BackendOption

app = typer.Typer(no_args_is_help=True, help="Experiments: policies over the same load, in turns, in one report.")
DEFAULT_REPORT, DEFAULT_JSON = Path("experiments.html"), Path("experiments.json")


@app.callback()
def _group() -> None:
    """Keep `run` a command of its own, although there is no other."""


@app.command()
def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    report: Annotated[Path, typer.Option(metavar="FILE", help="The page.", dir_okay=False)] = DEFAULT_REPORT,
    json_file: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="The figures.", dir_okay=False)
    ] = DEFAULT_JSON,
    quick: Annotated[bool, typer.Option("--quick", help="One turn of shorter loads: within 90 s.")] = False,
    turns: Annotated[int | None, typer.Option(help="Instead of what the file says.", min=1, max=1000)] = None,
    only: Annotated[str | None, typer.Option(help="Policies, with commas; the baseline comes along.")] = None,
    backend: BackendOption = "auto",
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    prefix: Annotated[str, typer.Option(help="Start of the namespaces' names.")] = "lb-exp-",
) -> None:
    """
    Run experiments in a testbed of their own, and compare the policies.

    Ends with 1 when something that the file expects does not hold. Ctrl-C keeps the runs that were complete, and ends
    with 130. Nothing is left behind.
    """
    from lb.cli.testbed import require_prefix
    from lb.lab.experiment import command

    names = None if only is None else tuple(name.strip() for name in only.split(","))
    wishes = command.Wishes(report, json_file, output, turns, quick, names, backend, require_prefix(prefix))
    raise typer.Exit(command.execute(files, wishes))
