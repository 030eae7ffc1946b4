"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

BackendOption: TypeAlias = Annotated[
    Literal["auto", "rust", "python"],
    typer.Option(help="What processes the packets; auto: what the configuration says, else the fastest there is."),
]
