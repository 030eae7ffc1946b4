"""`lb loadgen`: the load generator, which is in `lb.lab.loadgen`; `loadgen/loadgen.py` is the same program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import typer

RepeatOption: TypeAlias = Annotated[
    int, typer.Option(help="Times that each client plays the file.", min=1, max=1_000_000)
]
ArrivalOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="poisson:RATE",
        help="Open loop: RATE fetches per second, all clients together.",
    ),
]
NewConnectionOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--new-connection/--keep-alive",
        help="One connection per chunk, or one HTTP session per line.",
    ),
]
AdaptiveOption: TypeAlias = Annotated[
    bool, typer.Option("--adaptive", help="Play each line as a video player: buffer, switch bitrates up to enum_size.")
]
TimeoutOption: TypeAlias = Annotated[float, typer.Option(help="Timeout of a fetch, seconds.", min=0.001, max=86400)]
RetriesOption: TypeAlias = Annotated[int, typer.Option(help="Retries per failed fetch.", min=0, max=1000)]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Seed of the open loop's start times.", min=0)]
EchoOption: TypeAlias = Annotated[
    bool, typer.Option("--echo", help="Exchange a greeting with an echo service instead of HTTP.")
]
ChunkOption: TypeAlias = Annotated[
    float, typer.Option("--chunk-duration", help="Seconds of video per chunk, for --adaptive.", min=0.01, max=3600)
]
VerboseOption: TypeAlias = Annotated[bool, typer.Option("-v", "--verbose", help="Print every fetch.")]
LogOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("-l", "--log", metavar="LOG", help="Append start and mean time of each line to this file."),
]
JsonOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures and all fetches as JSON.", dir_okay=False),
]
CsvOption: TypeAlias = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write all fetches as CSV.", dir_okay=False)
]
ReportOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write an HTML report with charts.", dir_okay=False)
]
WantOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SERVER=WEIGHT,...", help="Target weights, to compare the shares with.")
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("-c", "--config", exists=True, dir_okay=False, help="Take the target weights from a configuration."),
]
ControlOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Take the target weights from the balancer at this socket.")
]
OutputOption: TypeAlias = Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")]


def loadgen(
    file: Annotated[
        Path, typer.Option("-e", "--events", metavar="FILE", help="Load file.", exists=True, dir_okay=False)
    ],
    verbose: VerboseOption = False,
    log: LogOption = None,
    clients: Annotated[int, typer.Option(help="Number of clients.", min=1, max=10_000)] = 1,
    repeat: RepeatOption = 1,
    arrival: ArrivalOption = None,
    new_connection: NewConnectionOption = False,
    adaptive: AdaptiveOption = False,
    timeout: TimeoutOption = 10.0,
    retries: RetriesOption = 0,
    seed: SeedOption = 1,
    echo: EchoOption = False,
    chunk_duration: ChunkOption = 4.0,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    report: ReportOption = None,
    want: WantOption = None,
    config: ConfigOption = None,
    control: ControlOption = None,
    output: OutputOption = "table",
) -> None:
    """
    Fetch chunks as a load file says; show the results.

    A line of the file is: start_time vip vport enum_size interval chunk_num. Exits with 1 when no fetch succeeded.
    """
    from lb.lab.loadgen import command
    from lb.lab.loadgen.plan import Options
    from lb.lab.loadgen.results import Outputs

    options = Options(
        repeat=repeat,
        rate_hz=parse_arrival(arrival, adaptive),
        new_connection=new_connection,
        adaptive=adaptive,
        timeout_s=timeout,
        retries=retries,
        seed=seed,
        echo=echo,
        chunk_s=chunk_duration,
    )
    outputs = Outputs(json_file, csv_file, report, output, verbose, log)
    raise typer.Exit(command.run(file, options, clients, outputs, parse_want(want), config, control))


def parse_arrival(text: str | None, adaptive: bool) -> float | None:
    """Return the rate of the open loop, fetches per second; None without one. Raise BadParameter for wrong text."""
    from lb.lab.loadgen.plan import parse_arrival as parse

    if text is None:
        return None
    if adaptive:
        message = "an adaptive player fetches when its buffer has room: leave out --arrival or --adaptive"
        raise typer.BadParameter(message, param_hint="--arrival")
    return cast(float, _usage("--arrival", parse, text))


def parse_want(text: str | None) -> dict[str, float] | None:
    """Return the target weights by server; None when not given. Raise BadParameter for wrong text."""
    from lb.lab.loadgen.target_weights import parse

    return None if text is None else cast(dict[str, float], _usage("--want", parse, text))


def _usage(option: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
