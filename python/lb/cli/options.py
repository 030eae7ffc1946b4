"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from lb.model.backend import BackendName

BackendOption: TypeAlias = Annotated[
    BackendName,
    typer.Option(help="Data path; auto: the configured one, else the fastest available."),
]
ControlOption: TypeAlias = Annotated[
    Path | None, typer.Option("--control", help="The balancer's control socket.", envvar="LB_CONTROL")
]
BytesOption: TypeAlias = Annotated[bool, typer.Option("--bytes", help="Show raw numbers, not 12.9 k or 54.0 MiB.")]
OutputOption: TypeAlias = Annotated[
    Literal["table", "json", "csv"], typer.Option("-o", "--output", help="table | json | csv")
]
