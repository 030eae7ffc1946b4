"""`lb doctor`: find what keeps packets from flowing on this host, and how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            exists=True,
            dir_okay=False,
            help="Default: the running balancer's, else lb.toml.",
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Connect to the servers; ask other hosts for the VIPs.")
    ] = True,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="text | json")] = "text",
    control: Annotated[Path | None, typer.Option(help="The balancer's control socket.", envvar="LB_CONTROL")] = None,
) -> None:
    """
    Check this host for problems; show how to fix them.

    Changes nothing. Works with the running balancer, or with a configuration alone. Exits with 1 when a check fails.
    """
    from lb.config import outline
    from lb.config.model import DEFAULT_FILE
    from lb.config.toml.toml_file import require
    from lb.config.unprivileged import UntrustedConfigError, load
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.doctor import examine, gather, render
    from lb.errors import DaemonError

    try:
        status = fetch(control or default_control_path(), "/status")
    except DaemonError:
        status = None
    path = config or Path(status["config"] if status is not None else DEFAULT_FILE)
    if not path.exists():
        raise typer.BadParameter(f"no balancer answers, and {path} does not exist: name a configuration with -c")
    try:
        loaded = load(path)
    except UntrustedConfigError:
        # The findings say so; none of its policies is run.
        loaded = require(outline(path))
    findings = examine(loaded, gather(loaded, path, status, probe=probe))
    typer.echo(render(findings, output), nl=False)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)
