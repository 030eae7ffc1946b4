"""`lb status`: what the running balancer says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def status(
    output: Annotated[Literal["table", "json", "csv"], typer.Option("-o", "--output", help="table | json | csv")] = (
        "table"
    ),
    control: Annotated[Path | None, typer.Option(help="The balancer's control socket.", envvar="LB_CONTROL")] = None,
) -> None:
    """Show the running balancer: services, servers, flows, counters."""
    from lb.control.client import fetch
    from lb.control.paths import default_control_path
    from lb.control.render import render_status

    typer.echo(render_status(fetch(control or default_control_path(), "/status"), output), nl=False)
