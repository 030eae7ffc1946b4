"""`lb explain CLIENT:PORT VIP:PORT`: why a flow goes where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def explain(
    client: Annotated[str, typer.Argument(help="ADDRESS:PORT of the client: 198.18.1.21:40000, [2001:db8::21]:40000.")],
    vip: Annotated[str, typer.Argument(metavar="VIP", help="ADDRESS:PORT of the service.")],
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", exists=True, dir_okay=False, help="Answer from a file, not from what runs."),
    ] = None,
    protocol: Annotated[
        Literal["tcp", "udp"] | None, typer.Option(help="Default: whichever has a service there, TCP first.")
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="text | json")] = "text",
    control: Annotated[Path | None, typer.Option(help="The balancer's control socket.", envvar="LB_CONTROL")] = None,
) -> None:
    """Show why a flow goes where it goes: service, servers, plan, choice, next hop, headers. Changes nothing."""
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
