"""`lb status`: the state of the running balancer."""

from __future__ import annotations

from lb.cli.options import BytesOption, ControlOption, OutputOption


def status(output: OutputOption = "table", raw: BytesOption = False, control: ControlOption = None) -> None:
    """
    Show the running balancer's services and servers.

    Each with state, health, flows and rates; and the counters of the data path.
    """
    from lb.control.api.client import fetch
    from lb.control.api.paths import default_control_path
    from lb.control.api.render import print_status

    print_status(fetch(control or default_control_path(), "/status"), output, scaled=not raw)
