"""`lb chaos`: everything that can happen to a balancer, at random. The work is in `lb.lab.chaos.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.cli.options import BackendOption

DEFAULT_REPORT, DEFAULT_JSON = Path("chaos.html"), Path("chaos.json")


def chaos(
    duration: Annotated[float, typer.Option(help="Seconds.", min=20, max=86_400)] = 300.0,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn. Default: drawn itself, and shown.", min=0)] = None,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Run the same load without acts first, to compare with.")
    ] = True,
    offloads: Annotated[bool, typer.Option("--offloads/--no-offloads", help="Offloads of the testbed's links.")] = True,
    report: Annotated[
        Path, typer.Option(metavar="FILE", help="HTML report to write.", dir_okay=False)
    ] = DEFAULT_REPORT,
    json_file: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="JSON file to write.", dir_okay=False)
    ] = DEFAULT_JSON,
    backend: BackendOption = "auto",
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    prefix: Annotated[str, typer.Option(help="Prefix of the namespaces' names.")] = "lb-chaos-",
) -> None:
    """
    Let everything happen to a balancer that can, at random, in a new testbed; tell what became of the flows.

    Servers lost, links flapping, MTUs, neighbours, floods; drains, weights, reloads, restarts, take-overs, kill -9,
    pauses. Exits with 1 when something broke that should not. Ctrl-C exits with 130. The testbed is removed afterwards.
    """
    from lb.cli.testbed import require_prefix
    from lb.lab.chaos import command

    options = command.ChaosOptions(
        duration, seed, control, report, json_file, output, backend, require_prefix(prefix), offloads
    )
    raise typer.Exit(command.execute(options))
