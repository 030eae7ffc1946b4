"""`lb loadgen`: the load generator, which is in `lb.lab.loadgen`; `loadgen/loadgen.py` is the same program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import typer

RepeatOption: TypeAlias = Annotated[
    int, typer.Option(help="Each client plays the file so often, one after the other.", min=1, max=1_000_000)
]
ArrivalOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="poisson:RATE",
        help="Open loop: RATE fetches per second of all clients together, however long they take.",
    ),
]
NewConnectionOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--new-connection/--keep-alive",
        help="A new connection for each chunk, or one HTTP session per line, as the course's program had.",
    ),
]
AdaptiveOption: TypeAlias = Annotated[
    bool, typer.Option("--adaptive", help="Each line is a player: it buffers, and switches bitrates up to enum_size.")
]
TimeoutOption: TypeAlias = Annotated[float, typer.Option(help="Seconds that a fetch may take.", min=0.001, max=86400)]
RetriesOption: TypeAlias = Annotated[int, typer.Option(help="Try a failed fetch so often again.", min=0, max=1000)]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of the open loop's intended starts.", min=0)]
EchoOption: TypeAlias = Annotated[
    bool, typer.Option("--echo", help="The service is echo, not the web: exchange a greeting.")
]
ChunkOption: TypeAlias = Annotated[
    float, typer.Option("--chunk-duration", help="Seconds of video in a chunk, for --adaptive.", min=0.01, max=3600)
]
VerboseOption: TypeAlias = Annotated[bool, typer.Option("-v", "--verbose", help="Tell of every fetch.")]
LogOption: TypeAlias = Annotated[
    Path | None, typer.Option("-l", "--log", metavar="LOG", help="Append starts and mean times of the lines here.")
]
JsonOption: TypeAlias = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write figures and fetches.", dir_okay=False)
]
CsvOption: TypeAlias = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the fetches.", dir_okay=False)
]
ReportOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.", dir_okay=False)
]
WantOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SERVER=WEIGHT,...", help="What the policy wants, to compare shares with.")
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("-c", "--config", exists=True, dir_okay=False, help="Take what is wanted from a configuration."),
]
ControlOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Take what is wanted from the balancer behind this control socket.")
]
OutputOption: TypeAlias = Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")]


def loadgen(
    file: Annotated[
        Path, typer.Option("-e", "--events", metavar="FILE", help="The load.", exists=True, dir_okay=False)
    ],
    verbose: VerboseOption = False,
    log: LogOption = None,
    clients: Annotated[int, typer.Option(help="So many clients play the file.", min=1, max=10_000)] = 1,
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
    Fetch chunks as a load file says, and show what came of it.

    A line is: start_time vip vport enum_size interval chunk_num. Ends with 1 when no fetch succeeded.
    """
    from lb.lab.loadgen import command
    from lb.lab.loadgen.outcome import Wishes
    from lb.lab.loadgen.plan import Options

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
    wishes = Wishes(json_file, csv_file, report, output, verbose, log)
    raise typer.Exit(command.run(file, options, clients, wishes, parse_want(want), config, control))


def parse_arrival(text: str | None, adaptive: bool) -> float | None:
    """Return the rate of an open loop; None: there is none. Anything else is wrong usage."""
    from lb.lab.loadgen.plan import parse_arrival as parse

    if text is None:
        return None
    if adaptive:
        raise typer.BadParameter("a player asks when its buffer has room: not with --adaptive", param_hint="--arrival")
    return cast(float, _usage("--arrival", parse, text))


def parse_want(text: str | None) -> dict[str, float] | None:
    """Return weights by server; None: not given. Anything else is wrong usage."""
    from lb.lab.loadgen.wanted import parse

    return None if text is None else cast(dict[str, float], _usage("--want", parse, text))


def _usage(option: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
