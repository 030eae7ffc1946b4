"""`lb replay IN.pcap -c FILE`: process a capture offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lb.cli.options import BackendOption


def replay(
    capture: Annotated[Path, typer.Argument(help="A pcap or pcapng file.", exists=True, dir_okay=False)],
    config: Annotated[Path, typer.Option("-c", "--config", help="Configuration file.", exists=True, dir_okay=False)],
    write: Annotated[Path | None, typer.Option("--write", help="Write the sent frames to this pcap file.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="table | json")] = "table",
    interface: Annotated[
        str | None, typer.Option(help="Interface that the packets came in by. Default: the first.")
    ] = None,
    backend: BackendOption = "auto",
    mac: Annotated[str | None, typer.Option(help="MAC address of the interface, if not configured.")] = None,
    address: Annotated[
        list[str] | None, typer.Option(help="Address of the interface, with prefix length; repeatable.")
    ] = None,
    mtu: Annotated[int | None, typer.Option(help="MTU of the interface in bytes, if not configured.")] = None,
    fix_checksums: Annotated[
        bool, typer.Option("--fix-checksums", help="First compute the checksums of IPv4, TCP and UDP.")
    ] = False,
) -> None:
    """
    Process a capture offline; show each packet's verdict.

    Prints one line per packet on stdout, then a summary on stderr. Reads pcap and pcapng of Ethernet, Linux cooked
    (tcpdump -i any) and raw IP. A capture that ends inside a packet is replayed up to there, with a warning. Exits with
    1, after the summary, when the capture is damaged.
    """
    from lb.capture.replay import Opened, Replay, format_json, format_table, header, summary, with_interface
    from lb.config import load
    from lb.config.unprivileged import enter_config
    from lb.errors import CaptureError

    opened = Opened(capture, write)
    enter_config(config, opened.open)
    loaded = load(config)
    try:
        loaded = with_interface(loaded, interface, mac, address or [], mtu)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    run = Replay(loaded, capture, interface, backend, write, fix_checksums, opened)
    if output == "table":
        typer.echo(header())
    form = format_table if output == "table" else format_json
    try:
        for packet in run.packets():
            sys.stdout.write(form(packet) + "\n")
    except CaptureError:
        sys.stdout.flush()
        if run.verdicts:
            typer.echo(summary(run), err=True)
        raise
    sys.stdout.flush()
    typer.echo(summary(run), err=True)
