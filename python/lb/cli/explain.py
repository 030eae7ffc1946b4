"""`lb explain CLIENT:PORT VIP:PORT`: show which server a flow gets, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.model.snapshot import Protocol


def explain(
    client: Annotated[str, typer.Argument(help="Client, as 198.18.1.21:40000 or [2001:db8::21]:40000.")],
    vip: Annotated[str, typer.Argument(metavar="VIP", help="Service, as 198.18.1.100:80.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            exists=True,
            dir_okay=False,
            help="Explain a configuration instead of the running balancer.",
        ),
    ] = None,
    protocol: Annotated[Protocol | None, typer.Option(help="Default: tcp if the VIP serves it, else udp.")] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="text | json")] = "text",
    control: Annotated[Path | None, typer.Option(help="The balancer's control socket.", envvar="LB_CONTROL")] = None,
) -> None:
    """
    Show which server a flow gets, and why.

    Shows the service, its servers, the plan, the choice, the next hop and the headers. Changes nothing.
    """
    import json

    from lb.explain.placement import Question, known_from, parse_endpoint
    from lb.explain.placement import explain as answer_to
    from lb.explain.text import render

    question = Question(parse_endpoint(client), parse_endpoint(vip), protocol)
    if config is not None:
        from lb.config import load
        from lb.config.unprivileged import enter_config

        enter_config(config)
        answer = answer_to(question, known_from(load(config)))
    else:
        from lb.control.api.ask import ask

        answer = ask(question, control)
    typer.echo(json.dumps(answer, indent=2) + "\n" if output == "json" else render(answer), nl=False)
