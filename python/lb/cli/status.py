"""`lb status` and `lb flows`: what the running balancer says about itself."""

from __future__ import annotations

from typing import Annotated

import typer

from lb.cli.options import ControlOption, OutputOption


def status(output: OutputOption = "table", control: ControlOption = None) -> None:
    """Show the running balancer: services, servers with state and health, flows, rates, counters."""
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_status

    print_status(fetch(control or default_control_path(), "/status"), output)


def flows(
    client: Annotated[str | None, typer.Option(help="Only those of this client's address.")] = None,
    service: Annotated[str | None, typer.Option(help="Only those of this service.")] = None,
    server: Annotated[str | None, typer.Option(help="Only those of this server: NAME, or SERVICE/NAME.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="Only those in this state: syn-sent, syn-received, established, closing, udp, pickup, udp-unreplied."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Show so many at most.", min=1, max=100_000)] = 1000,
    offset: Annotated[int, typer.Option(help="Leave out so many at the beginning.", min=0)] = 0,
    output: OutputOption = "table",
    control: ControlOption = None,
) -> None:
    """List the flows of the running balancer, ordered by client."""
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_flows

    if server is not None and "/" in server:
        service, _, server = server.partition("/")
    filters = {"client": client, "service": service, "server": server, "state": state}
    given = {key: value for key, value in filters.items() if value is not None}
    print_flows(fetch(control or default_control_path(), "/flows", limit=limit, offset=offset, **given), output)
