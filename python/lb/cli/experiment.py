"""`lb experiment run`: compare policies under the same load. The work is in `lb.lab.experiment.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.cli.options import BackendOption

app = typer.Typer(no_args_is_help=True, help="Compare policies under the same load.")
DEFAULT_REPORT, DEFAULT_JSON = Path("experiments.html"), Path("experiments.json")


@app.callback()
def _group() -> None:
    """Make `run` a subcommand: a Typer with a single command would drop its name."""


@app.command()
def run(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Experiment files.", exists=True, dir_okay=False)
    ],
    report: Annotated[
        Path, typer.Option(metavar="FILE", help="HTML report to write.", dir_okay=False)
    ] = DEFAULT_REPORT,
    json_file: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="JSON file to write.", dir_okay=False)
    ] = DEFAULT_JSON,
    quick: Annotated[bool, typer.Option("--quick", help="One turn of shorter loads: under 90 s.")] = False,
    turns: Annotated[int | None, typer.Option(help="Turns per policy. Default: the file's.", min=1, max=1000)] = None,
    only: Annotated[
        str | None, typer.Option(help="Policies to run, separated by commas; the baseline always runs.")
    ] = None,
    backend: BackendOption = "auto",
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    prefix: Annotated[str, typer.Option(help="Prefix of the namespaces' names.")] = "lb-exp-",
) -> None:
    """
    Run experiments in a new testbed; compare the policies.

    Exits with 1 when an expectation of the file does not hold. Ctrl-C keeps the complete runs and exits with 130. The
    testbed is removed afterwards.
    """
    from lb.cli.testbed import require_prefix
    from lb.lab.experiment import command

    names = None if only is None else tuple(name.strip() for name in only.split(","))
    options = command.RunOptions(report, json_file, output, turns, quick, names, backend, require_prefix(prefix))
    raise typer.Exit(command.execute(files, options))
