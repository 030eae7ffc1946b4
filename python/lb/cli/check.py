"""`lb check FILE`: validate a configuration, showing all errors at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(file: Annotated[Path, typer.Argument(help="Configuration file.", exists=True, dir_okay=False)]) -> None:
    """
    Validate a configuration; show all errors at once.

    Each error comes with its line and a hint. Root is not needed.
    """
    from lb.config import read
    from lb.config.unprivileged import enter_config
    from lb.errors import ConfigError

    enter_config(file)
    report = read(file)
    for warning in report.warnings:
        typer.echo(warning, err=True)
    if report.config is None:
        raise ConfigError(report.problems)
    services = len(report.config.services)
    servers = sum(len(service.servers) for service in report.config.services)
    typer.echo(f"{file}: ok: {_count(services, 'service')}, {_count(servers, 'server')}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
