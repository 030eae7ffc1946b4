"""`lb bench`: measure this machine, peers side by side. The work is in `lb.lab.bench.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short turn of everything: within a minute.")] = False,
    turns: Annotated[int | None, typer.Option(help="Turns of each contestant. Default: 3.", min=1, max=1000)] = None,
    only: Annotated[
        str | None, typer.Option(help="Measures, with commas: keepalive,connections,bulk,packets,latency,memory,idle")
    ] = None,
    contestants: Annotated[
        str | None, typer.Option(help="Who takes part, with commas: routing,nft,haproxy,python,rust,direct")
    ] = None,
    twice: Annotated[
        str | None, typer.Option("--aa", help="Compare one contestant with itself: the noise of a run.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the order of the turns. Default: drawn.", min=0, max=2**63 - 1)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all values here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with pictures here.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    prefix: Annotated[str, typer.Option(help="Start of the namespaces' names.")] = "lb-bench-",
) -> None:
    """
    Measure this machine in namespaces of its own: plain routing, nft, HAProxy and the backends take turns.

    Nothing is left behind. Figures hold for this machine only; ratios are the headline.
    """
    from lb.lab.bench import command

    def named(option: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return command.parse_names(text, known)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"--{option}") from error

    if twice is not None and contestants is not None:
        raise typer.BadParameter("it names the contestant itself", param_hint="--aa with --contestants")
    chosen = named("contestants", contestants, command.CONTESTANTS)
    if twice is not None:
        try:
            chosen = command.twice(twice, command.CONTESTANTS)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--aa") from error
    settings = command.settings(quick, turns, named("only", only, command.MEASURES), chosen, prefix, seed)
    command.run(settings, json_file, report, output)
