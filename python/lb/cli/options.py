"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

BackendOption: TypeAlias = Annotated[
    Literal["auto", "rust", "python"],
    typer.Option(help="What processes the packets; auto: what the configuration says, else the fastest there is."),
]
ControlOption: TypeAlias = Annotated[
    Path | None, typer.Option("--control", help="The balancer's control socket.", envvar="LB_CONTROL")
]
OutputOption: TypeAlias = Annotated[
    Literal["table", "json", "csv"], typer.Option("-o", "--output", help="table | json | csv")
]
