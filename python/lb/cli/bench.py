"""`lb bench`: measure this machine, peers side by side. The work is in `lb.bench.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short turn of everything: within a minute.")] = False,
    turns: Annotated[int | None, typer.Option(help="Turns of each contestant. Default: 4.", min=1, max=1000)] = None,
    only: Annotated[
        str | None, typer.Option(help="Measures, with commas: keepalive,connections,bulk,packets,latency,memory,idle")
    ] = None,
    contestants: Annotated[
        str | None, typer.Option(help="Who takes part, with commas: routing,nft,haproxy,python,rust")
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
    from lb.bench import command

    def named(option: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return command.parse_names(text, known)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"--{option}") from error

    settings = command.settings(
        quick,
        turns,
        named("only", only, command.MEASURES),
        named("contestants", contestants, command.CONTESTANTS),
        prefix,
    )
    command.run(settings, json_file, report, output)
