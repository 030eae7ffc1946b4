"""`lb flows`: list the flows of the running balancer; `lb flows dump | load`: store them, for after a reboot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lb.cli.options import BytesOption, ControlOption, OutputOption
from lb.model.flow_states import FLOW_STATES

app = typer.Typer(invoke_without_command=True)


@app.callback(invoke_without_command=True)
def flows(
    context: typer.Context,
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
    """
    List the running balancer's flows, ordered by client.

    `dump` and `load` store all of them in a file and restore them, for a reboot.
    """
    if context.invoked_subcommand is not None:
        return
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_flows

    if server is not None and "/" in server:
        service, _, server = server.partition("/")
    filters = {"client": client, "service": service, "server": server, "state": state}
    given = {key: value for key, value in filters.items() if value is not None}
    answer = fetch(control or default_control_path(), "/flows", limit=limit, offset=offset, **given)
    print_flows(answer, output, scaled=not raw)


@app.command("dump")
def dump(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="File to write; one there is replaced.")],
    control: ControlOption = None,
) -> None:
    """
    Write all flows to a file, while packets pass.

    Connections that are being opened are left out: their clients ask again.
    """
    from lb.control.api.paths import default_control_path
    from lb.control.api.stored import dump_flows

    count = dump_flows(control or default_control_path(), file)
    typer.echo(f"{count} flow{'' if count == 1 else 's'} written to {file}", err=True)


@app.command("load")
def load(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Of `lb flows dump`, or a snapshot."),
    ],
    control: ControlOption = None,
) -> None:
    """
    Load flows from a file into the running balancer.

    Flows that it has already stay as they are. Idle timers go on as if no time had passed.
    """
    from lb.control.api.paths import default_control_path
    from lb.control.api.stored import load_flows

    loaded = load_flows(control or default_control_path(), file)
    typer.echo(f"{loaded.flows} flow{'' if loaded.flows == 1 else 's'} loaded, {loaded.dropped} dropped", err=True)
