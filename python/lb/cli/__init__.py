"""
The command `lb`: one module per command, without logic.

Errors become one line on stderr and an exit code here and nowhere else: 0 success, 1 run-time failure, 2 usage, 3
invalid configuration, 4 missing privilege or kernel feature, 5 no running balancer. Data goes to stdout, messages for
people go to stderr. Command modules import heavy packages inside their functions, so that `lb --help` answers within
0.3 s.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from lb.cli import (
    bench,
    chaos,
    check,
    configuration,
    doctor,
    experiment,
    explain,
    flows,
    init,
    loadgen,
    operate,
    policy,
    replay,
    run,
    status,
    testbed,
)
from lb.errors import WAYS_OUT, ConfigError, LbError, with_way_out

app = typer.Typer(
    name="lb",
    help="A flow-level L4 load balancer: one virtual address, many servers, clients and servers unchanged.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("check")(check.check)
app.command("status")(status.status)
app.command("explain")(explain.explain)
app.command("doctor")(doctor.doctor)
app.command("drain")(operate.drain)
app.command("enable")(operate.enable)
app.command("disable")(operate.disable)
app.command("weight")(operate.weight)
app.command("add")(operate.add)
app.command("remove")(operate.remove)
app.command("reload")(operate.reload)
app.command("stop")(operate.stop)
app.command("replay")(replay.replay)
app.command("init")(init.init)
app.command("bench")(bench.bench)
app.command("chaos")(chaos.chaos)
app.command("loadgen")(loadgen.loadgen)
app.add_typer(flows.app, name="flows")
app.add_typer(configuration.app, name="config")
app.add_typer(policy.app, name="policy")
app.add_typer(testbed.app, name="testbed")
app.add_typer(experiment.app, name="experiment")

# What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130
USAGE = 2
# A number, alone or as --option=NUMBER.
NUMBER = re.compile(r"(?:--[\w-]+=)?([+-]?[\d_.]*\d)")
_options = {"debug": False}


def _print_version(wanted: bool) -> None:
    if wanted:
        from lb.model.version import version

        typer.echo(f"lb {version()}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
    version: Annotated[  # noqa: ARG001 - the callback acts on it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _options["debug"] = debug


def main() -> None:
    """Run the command line and exit the process with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names that the locale cannot encode are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    _require_ascii_digits(sys.argv[1:])
    try:
        try:
            app(prog_name="lb")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except LbError as error:
        _fail(str(error) if error.exit_code == ConfigError.exit_code else f"lb: {error}", error.exit_code)
    except OSError as error:
        _drop_output()
        _fail(f"lb: {with_way_out(str(error), error)}" if error.errno != errno.EPIPE else "", LbError.exit_code)
    except MemoryError:
        _fail(f"lb: not enough memory: {WAYS_OUT[errno.ENOMEM]}", LbError.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        _fail(f"lb: internal error: {error!r}; `lb --debug` shows a traceback", LbError.exit_code)


def _require_ascii_digits(arguments: Sequence[str]) -> None:
    """End the process when a number has digits of another script: int() accepts them, other programs do not."""
    # The arguments after "--" belong to another program.
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for argument in ours:
        if (number := NUMBER.fullmatch(argument)) and not number[1].isascii():
            _fail(f"lb: {argument}: write numbers with the digits 0 to 9", USAGE)


def _fail(message: str, exit_code: int) -> NoReturn:
    """Print a message and end the process; called inside an `except` clause."""
    if _options["debug"]:
        traceback.print_exc()
    if message:
        typer.echo(message, err=True)
    sys.exit(exit_code)


def _drop_output() -> None:
    """Drop unwritten output: the interpreter would try to write it again at exit, and print an error."""
    if sys.stdout is not None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives as long as the process
