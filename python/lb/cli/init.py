"""`lb init [FILE]`: write a commented configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    file: Annotated[Path, typer.Argument(help="File to write.", dir_okay=False)] = Path("lb.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from lb.config.template import write_template

    write_template(file, overwrite=force)
    typer.echo(f"wrote {file}: adapt it, then `lb check {file}` and `lb run -c {file}`", err=True)
