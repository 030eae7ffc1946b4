"""`lb run`: run the balancer in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.cli.options import BackendOption


def run(
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            exists=True,
            dir_okay=False,
            help="Configuration file. Default: lb.toml; with --testbed: video and echo on the testbed's servers.",
        ),
    ] = None,
    backend: BackendOption = "auto",
    control: Annotated[Path | None, typer.Option(help="Path of the control socket.", envvar="LB_CONTROL")] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format", help="Format of the log.")] = "text",
    user: Annotated[
        str | None,
        typer.Option(
            help="User to run as, when started by root.", envvar="LB_USER", show_default="flowlb, else nobody"
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory in memory that keeps flows over a restart. Without it, they end with the process.",
            envvar="LB_STATE",
        ),
    ] = None,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start it again whenever it ends by itself.")] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take over from the balancer that uses the state directory: no flow breaks."),
    ] = False,
    testbed: Annotated[
        bool, typer.Option("--testbed", help="Run in a testbed of network namespaces, with load.")
    ] = False,
    duration: Annotated[float | None, typer.Option(help="With --testbed: seconds to run.", min=0.1)] = None,
) -> None:
    """
    Run the balancer in the foreground.

    SIGTERM and Ctrl-C stop it; SIGHUP reloads the configuration. With --supervise and --state, SIGUSR2 has the
    program that is installed now take over.
    """
    if testbed and log_format != "text":
        raise typer.BadParameter("--log-format cannot be used with --testbed: leave one of them out")
    if testbed and supervise:
        raise typer.BadParameter("--supervise cannot be used with --testbed: leave one of them out")
    if testbed:
        from lb.cli.testbed import run_in_testbed

        run_in_testbed(config, backend, duration, control)
        return
    if duration is not None:
        raise typer.BadParameter("--duration needs --testbed")
    if take_over and state is None:
        raise typer.BadParameter("--take-over needs --state: the flows are handed over there")
    path = config or Path("lb.toml")
    if not path.exists():
        raise typer.BadParameter(f"{path} does not exist: `lb init` writes it, `lb run --testbed` needs none")
    from lb.control.process import run as run_daemon

    run_daemon(path, backend, control, log_format, user, state, supervise, take_over)
