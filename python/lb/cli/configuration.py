"""`lb config schema`: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import typer

app = typer.Typer(help="Tools for configuration files.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Make `schema` a subcommand: a Typer with a single command would drop its name."""


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    import json

    from lb.config import schema as config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
