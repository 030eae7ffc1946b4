"""`lb drain | enable | disable | weight | add | remove | reload | stop`: change the running balancer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lb.cli.options import ControlOption
from lb.model.limits import HIGHEST_PORT, HIGHEST_WEIGHT
from lb.model.snapshot import DEFAULT_WEIGHT

ServerArgument = Annotated[str, typer.Argument(metavar="SERVICE/SERVER", help="Server, as video/server2.")]
ResetOption = Annotated[bool, typer.Option("--reset", "--force", help="Reset its flows: client and server get a RST.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until drained; exit 1 on timeout.")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="Timeout of --wait: 500ms, 60s, 2h.")]

DEFAULT_TIMEOUT = "60s"


def drain(
    server: ServerArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    control: ControlOption = None,
) -> None:
    """Drain a server: no new flows, existing ones continue."""
    path = _path(control)
    deadline_s = _seconds(timeout)
    _tell(_change(path, "/drain", server), f"{server} is draining", f"{server} was draining already")
    if wait:
        _wait(path, server, deadline_s)


def enable(server: ServerArgument, control: ControlOption = None) -> None:
    """Enable a server: it gets new flows again."""
    _tell(_change(_path(control), "/enable", server), f"{server} is active", f"{server} was active already")


def disable(server: ServerArgument, reset: ResetOption = False, control: ControlOption = None) -> None:
    """
    Disable a server: no new flows, even while healthy.

    Existing flows continue, unless --reset is given.
    """
    answer = _change(_path(control), "/disable", server, reset=reset)
    _tell(answer, f"{server} is disabled", f"{server} was disabled already")


def weight(
    server: ServerArgument,
    weight: Annotated[
        int, typer.Argument(help="Weight among the servers; 0: no new flows.", min=0, max=HIGHEST_WEIGHT)
    ],
    control: ControlOption = None,
) -> None:
    """Set the weight of a server."""
    answer = _change(_path(control), "/weight", server, weight=weight)
    _tell(answer, f"{server} has weight {weight}", f"{server} had weight {weight} already")


def add(
    server: ServerArgument,
    address: Annotated[str, typer.Argument(help="IP address of the server.")],
    port: Annotated[int, typer.Argument(help="Port of the server.", min=1, max=HIGHEST_PORT)],
    weight: Annotated[int, typer.Option(help="Weight among the servers.", min=0, max=HIGHEST_WEIGHT)] = DEFAULT_WEIGHT,
    mac: Annotated[str | None, typer.Option(help="MAC address of the server. Default: resolved by the kernel.")] = None,
    control: ControlOption = None,
) -> None:
    """
    Add a server to a service, until the next reload.

    The configuration file does not change; the next reload restores its list of servers.
    """
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
    """
    Remove a server from a service, until the next reload.

    Existing flows continue until they end, unless --reset is given. The configuration file does not change: the next
    reload adds the server again if it is listed.
    """
    path = _path(control)
    deadline_s = _seconds(timeout)
    _change(path, "/remove", server, reset=reset)
    typer.echo(f"{server} is removed", err=True)
    if wait:
        _wait(path, server, deadline_s)


def reload(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    control: ControlOption = None,
) -> None:
    """
    Reload the configuration; print what changed.

    An invalid configuration changes nothing.
    """
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


def stop(
    drain: Annotated[bool, typer.Option("--drain", help="No new flows; stop when the others have ended.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="With --drain: stop after this time all the same.")] = (
        DEFAULT_TIMEOUT
    ),
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel a drain: servers get new flows again.")] = False,
    control: ControlOption = None,
) -> None:
    """
    Stop the balancer, and return when it has stopped.

    Flows that are left get what on_stop says. Ctrl-C ends the waiting, not the drain.
    """
    from lb.control.api.stop import cancel_stop, drain_and_wait, stop_and_wait

    path, timeout_s = _path(control), _seconds(timeout)
    if drain and cancel:
        raise typer.BadParameter("--drain cannot be used with --cancel: leave one of them out")
    if cancel:
        was_draining = cancel_stop(path)
        typer.echo("the balancer goes on: servers get new flows" if was_draining else "nothing to cancel", err=True)
        return
    if not drain:
        stop_and_wait(path)
        typer.echo("the balancer has stopped", err=True)
        return
    try:
        left = drain_and_wait(path, timeout_s)
    except KeyboardInterrupt:
        typer.echo("the balancer goes on draining, and stops by itself; `lb stop --cancel` cancels that", err=True)
        raise
    flows = f"{left} active flow{'' if left == 1 else 's'}"
    typer.echo(f"the balancer has stopped: {flows} left", err=True)


def _path(control: Path | None) -> Path:
    from lb.control.api.paths import default_control_path

    return control or default_control_path()


def _split(name: str) -> tuple[str, str]:
    """Return service and server of SERVICE/SERVER."""
    service, slash, server = name.partition("/")
    if not (service and slash and server):
        raise typer.BadParameter(f"{name!r} is not SERVICE/SERVER, such as video/server2")
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
    """Wait until a server has no active flows and say so; exit with 1 at the deadline."""
    from lb.control.api.waiting import wait_until_empty

    left = wait_until_empty(path, *_split(name), timeout_s)
    if left:
        typer.echo(f"lb: {name} still has {left} active flow{'' if left == 1 else 's'}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{name} has no active flows", err=True)
