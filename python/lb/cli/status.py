"""`lb status` and `lb flows`: the state of the running balancer."""

from __future__ import annotations

from typing import Annotated

import typer

from lb.cli.options import BytesOption, ControlOption, OutputOption
from lb.model.flow_states import FLOW_STATES


def status(output: OutputOption = "table", raw: BytesOption = False, control: ControlOption = None) -> None:
    """
    Show the running balancer's services and servers.

    Each with state, health, flows and rates; and the counters of the data path.
    """
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_status

    print_status(fetch(control or default_control_path(), "/status"), output, scaled=not raw)


def flows(
    client: Annotated[str | None, typer.Option(help="Only flows of this client address.")] = None,
    service: Annotated[str | None, typer.Option(help="Only flows of this service.")] = None,
    server: Annotated[str | None, typer.Option(help="Only flows of this server: NAME or SERVICE/NAME.")] = None,
    state: Annotated[str | None, typer.Option(help=f"Only flows in this state: {', '.join(FLOW_STATES)}.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of flows to show.", min=1, max=100_000)] = 1000,
    offset: Annotated[int, typer.Option(help="Number of flows to skip.", min=0)] = 0,
    output: OutputOption = "table",
    raw: BytesOption = False,
    control: ControlOption = None,
) -> None:
    """List the running balancer's flows, ordered by client."""
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_flows

    if server is not None and "/" in server:
        service, _, server = server.partition("/")
    filters = {"client": client, "service": service, "server": server, "state": state}
    given = {key: value for key, value in filters.items() if value is not None}
    answer = fetch(control or default_control_path(), "/flows", limit=limit, offset=offset, **given)
    print_flows(answer, output, scaled=not raw)
