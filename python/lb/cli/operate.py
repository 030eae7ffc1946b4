"""`lb drain | enable | disable | weight | add | remove | reload`: the operator's hand on the running balancer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lb.cli.options import ControlOption

ServerArgument = Annotated[str, typer.Argument(metavar="SERVICE/SERVER", help="Such as video/server2.")]
ResetOption = Annotated[bool, typer.Option("--reset", "--force", help="End its flows: clients and server get a RST.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until it has no active flows; 1 at the deadline.")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="How long to wait: 500ms, 60s, 2h.")]

DEFAULT_TIMEOUT = "60s"


def drain(
    server: ServerArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    control: ControlOption = None,
) -> None:
    """Let a server finish: no new flows, those it has go on."""
    path = _path(control)
    deadline_s = _seconds(timeout)
    _tell(_change(path, "/drain", server), f"{server} is draining", f"{server} was draining already")
    if wait:
        _wait(path, server, deadline_s)


def enable(server: ServerArgument, control: ControlOption = None) -> None:
    """Let a server take new flows again."""
    _tell(_change(_path(control), "/enable", server), f"{server} is active", f"{server} was active already")


def disable(server: ServerArgument, reset: ResetOption = False, control: ControlOption = None) -> None:
    """Take a server out: no new flows, whatever its health. Those it has go on, unless --reset."""
    answer = _change(_path(control), "/disable", server, reset=reset)
    _tell(answer, f"{server} is disabled", f"{server} was disabled already")


def weight(
    server: ServerArgument,
    weight: Annotated[int, typer.Argument(help="Its share among the servers; 0: no new flows.", min=0, max=65535)],
    control: ControlOption = None,
) -> None:
    """Set the weight of a server."""
    answer = _change(_path(control), "/weight", server, weight=weight)
    _tell(answer, f"{server} has weight {weight}", f"{server} had weight {weight} already")


def add(
    server: ServerArgument,
    address: Annotated[str, typer.Argument(help="Its IP address.")],
    port: Annotated[int, typer.Argument(help="Its port.", min=1, max=65535)],
    weight: Annotated[int, typer.Option(help="Its share among the servers.", min=0, max=65535)] = 1,
    mac: Annotated[str | None, typer.Option(help="Its MAC. Default: the kernel is asked.")] = None,
    control: ControlOption = None,
) -> None:
    """Add a server to a service. The file does not change: the next reload makes the list that of the file again."""
    from lb.control.api.client import change

    service, name = _split(server)
    described = {"name": name, "address": address, "port": port, "weight": weight}
    if mac is not None:
        described["mac"] = mac
    change(_path(control), "/add", {"service": service, "server": described})
    typer.echo(f"{server} is added", err=True)


def remove(
    server: ServerArgument,
    reset: ResetOption = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    control: ControlOption = None,
) -> None:
    """Remove a server. Its flows go on until they end, unless --reset. The next reload brings it back if listed."""
    path = _path(control)
    deadline_s = _seconds(timeout)
    _change(path, "/remove", server, reset=reset)
    typer.echo(f"{server} is removed", err=True)
    if wait:
        _wait(path, server, deadline_s)


def reload(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
    control: ControlOption = None,
) -> None:
    """Read the configuration again. A broken one changes nothing. Prints what changed."""
    from lb.control.api.client import change

    answer = change(_path(control), "/reload", {"dry_run": dry_run})
    for line in answer["diff"]:
        typer.echo(line)
    if not answer["diff"]:
        typer.echo("nothing changes" if dry_run else "nothing changed", err=True)
    if dry_run:
        for line in answer["lines"]:
            typer.echo(line)
    else:
        typer.echo(f"generation {answer['generation']}", err=True)


def _path(control: Path | None) -> Path:
    from lb.control.api.paths import default_control_path

    return control or default_control_path()


def _split(name: str) -> tuple[str, str]:
    """Return service and server of SERVICE/SERVER."""
    service, slash, server = name.partition("/")
    if not (service and slash and server):
        raise typer.BadParameter(f"{name!r}: SERVICE/SERVER is needed, such as video/server2")
    return service, server


def _seconds(text: str) -> float:
    from lb.fields.types import parse_duration

    try:
        return parse_duration(text) / 1e9
    except ValueError as error:
        raise typer.BadParameter(f"--timeout: {error}") from None


def _change(path: Path, resource: str, name: str, **arguments: Any) -> Any:
    from lb.control.api.client import change

    service, server = _split(name)
    return change(path, resource, {"service": service, "server": server, **arguments})


def _tell(answer: Any, done: str, nothing: str) -> None:
    typer.echo(done if answer["changed"] else nothing, err=True)


def _wait(path: Path, name: str, timeout_s: float) -> None:
    """Show the flows that are left; end with 1 at the deadline."""
    from lb.control.api.waiting import wait_until_empty

    left = wait_until_empty(path, *_split(name), timeout_s)
    if left:
        typer.echo(f"lb: {name} still has {left} active flow{'' if left == 1 else 's'}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{name} has no active flows", err=True)
