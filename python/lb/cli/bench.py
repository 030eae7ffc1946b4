"""`lb bench`: compare the balancer with its peers on this machine. The work is in `lb.lab.bench.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short turn of each measure: under a minute.")] = False,
    turns: Annotated[int | None, typer.Option(help="Turns per contestant. Default: 3.", min=1, max=1000)] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Measures, separated by commas: keepalive, connections, bulk, packets, latency, memory, idle"
        ),
    ] = None,
    contestants: Annotated[
        str | None, typer.Option(help="Contestants, separated by commas: routing, nft, haproxy, python, rust, direct")
    ] = None,
    twice: Annotated[
        str | None, typer.Option("--aa", help="Compare this contestant with itself, to see the noise.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the order of turns. Default: random.", min=0, max=2**63 - 1)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all values to this file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with charts to this file.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    prefix: Annotated[str, typer.Option(help="Prefix of the namespaces' names.")] = "lb-bench-",
) -> None:
    """
    Compare routing, nft, HAProxy and the backends here.

    They take turns in network namespaces, which are removed afterwards. Figures hold for this machine only: compare
    their ratios.
    """
    from lb.lab.bench import command

    def named(option: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return command.parse_names(text, known)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"--{option}") from error

    if twice is not None and contestants is not None:
        raise typer.BadParameter("--aa names the only contestant: leave out --contestants", param_hint="--aa")
    chosen = named("contestants", contestants, command.CONTESTANTS)
    if twice is not None:
        try:
            chosen = command.twice(twice, command.CONTESTANTS)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--aa") from error
    settings = command.settings(quick, turns, named("only", only, command.MEASURES), chosen, prefix, seed)
    command.run(settings, json_file, report, output)
