"""
The commands `lb testbed up|down|status|exec|load`: arguments and printing.

The work is in `lb.lab.testbed.manage`.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from lb.cli.loadgen import (
    AdaptiveOption,
    ArrivalOption,
    ChunkOption,
    ConfigOption,
    ControlOption,
    CsvOption,
    EchoOption,
    JsonOption,
    LogOption,
    NewConnectionOption,
    OutputOption,
    RepeatOption,
    ReportOption,
    RetriesOption,
    SeedOption,
    TimeoutOption,
    VerboseOption,
    WantOption,
    parse_arrival,
    parse_want,
)
from lb.errors import TestbedError

if TYPE_CHECKING:
    from lb.lab.testbed.manage import Status

app = typer.Typer(no_args_is_help=True, help="Manage a test network in namespaces on this machine.")

PREFIX_VARIABLE = "LB_TESTBED_PREFIX"


def require_prefix(prefix: str) -> str:
    """Return a valid prefix of namespace names. Raise BadParameter for any other."""
    from lb.lab.testbed.state_directory import StateDirectory

    try:
        return StateDirectory(prefix).prefix
    except TestbedError as error:
        raise typer.BadParameter(str(error)) from None


PrefixOption = Annotated[
    str,
    typer.Option(
        envvar=PREFIX_VARIABLE,
        callback=require_prefix,
        help="Prefix of the namespaces' names; each prefix is a separate testbed.",
    ),
]
_DEFAULT_PREFIX = "lb-"


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


class Format(StrEnum):
    """Output format."""

    TABLE = "table"
    JSON = "json"


@app.command()
def up(
    offloads: Annotated[
        Switch,
        typer.Option(help="Checksum and segmentation offloads of the links; off: frames as on a real wire."),
    ] = Switch.ON,
    prefix: PrefixOption = _DEFAULT_PREFIX,
) -> None:
    """
    Build the testbed; it stays until `lb testbed down`.

    It has 5 clients, a router and 3 servers. Root is not needed where user namespaces are allowed.
    """
    from lb.lab.testbed import manage

    _print_status(manage.up(prefix, offloads is Switch.ON), sys.stderr)
    print("\nTry: lb testbed exec router -- lb run -c examples/echo.toml", file=sys.stderr)
    print("and: lb testbed exec client1 -- python3 examples/echo_client.py", file=sys.stderr)


@app.command()
def down(prefix: PrefixOption = _DEFAULT_PREFIX) -> None:
    """Remove the testbed, also one whose process was killed."""
    from lb.lab.testbed import manage

    was_there = manage.down(prefix)
    print("The testbed is down." if was_there else "No testbed was up.", file=sys.stderr)


@app.command()
def status(
    output: Annotated[Format, typer.Option("--output", "-o", help="table | json")] = Format.TABLE,
    prefix: PrefixOption = _DEFAULT_PREFIX,
) -> None:
    """Show the testbed's hosts, addresses and programs."""
    from dataclasses import asdict

    from lb.lab.testbed import manage

    found = manage.status(prefix)
    if output is Format.JSON:
        print(json.dumps(asdict(found), indent=2))
    else:
        _print_status(found, sys.stdout)


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--prefix TEXT]",
)
def execute(
    host: Annotated[str, typer.Argument(help="Host: router, client1 to client5, server1 to server3, or switch.")],
    command: Annotated[list[str], typer.Argument(help="Program and arguments, after `--`.")],
    prefix: PrefixOption = _DEFAULT_PREFIX,
) -> None:
    """Run a program in a host; exit with its status."""
    from lb.lab.testbed import manage

    manage.execute(host, command[1:] if command[0] == "--" else command, prefix)


@app.command("load")
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Load file.", exists=True, dir_okay=False)],
    verbose: VerboseOption = False,
    log: LogOption = None,
    clients: Annotated[int, typer.Option(help="Number of client hosts.", min=1, max=5)] = 5,
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
    prefix: PrefixOption = _DEFAULT_PREFIX,
) -> None:
    """
    Play a load file from the client hosts; show the results.

    The testbed must be up, and a balancer must run in its router. Exits with 1 when no fetch succeeded.
    """
    from lb.lab.loadgen.plan import Options
    from lb.lab.loadgen.results import Outputs
    from lb.lab.testbed import play

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
    raise typer.Exit(play.run(file, options, clients, outputs, parse_want(want), config, control, prefix))


def run_in_testbed(
    config: Path | None, backend: str, duration_s: float | None = None, control: Path | None = None
) -> None:
    """
    Run `lb run --testbed` and exit with its status.

    Args:
        config: the balancer's configuration; None: the embedded one.
        backend: as `lb run --backend`.
        duration_s: seconds of load; None: until Ctrl-C.
        control: path of the control socket; None: in the testbed's state directory.
    """
    from lb.lab.testbed import live

    prefix = require_prefix(os.environ.get(PREFIX_VARIABLE, _DEFAULT_PREFIX))
    raise typer.Exit(live.run(config, backend, duration_s, prefix, control))


def _print_status(found: Status, stream: TextIO) -> None:
    """Print a table for people."""
    print(f"testbed: {found.condition}", file=stream)
    if found.condition == "left over":
        print("Its owner was killed: `lb testbed down` or the next `up` removes the rest.", file=stream)
    lines = [(name, text) for name, text in found.facts.items()]
    if found.condition == "up":
        lines.append(
            (
                "owner",
                f"process {found.owner}, {'root' if found.mode == 'root' else 'in a user namespace, without root'}",
            )
        )
    for name, text in lines:
        print(f"{name + ':':11}{text}", file=stream)
    if not found.hosts:
        return
    row = "{:<9}{:<13}{:<18}{:<19}{}"
    print("\n" + row.format("HOST", "ADDRESS", "IPV6", "MAC", "RUNS"), file=stream)
    for host in found.hosts:
        programs = ", ".join(name if runs else f"{name} (ended)" for name, runs in host.programs.items())
        print(row.format(host.name, host.address, host.address6, host.mac, programs or "-"), file=stream)
