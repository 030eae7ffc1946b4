"""`lb config schema`: what a configuration may hold, for editors."""

from __future__ import annotations

import typer

app = typer.Typer(help="About configuration files.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keep `schema` a command of its own: a Typer with a single command would swallow its name."""


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    import json

    from lb.config import schema as config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
