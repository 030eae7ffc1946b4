"""`lb loadgen`: play a load from this host, and show the results."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Mapping
from pathlib import Path

from lb.lab.loadgen import lines, plan, target_weights
from lb.lab.loadgen.engine import play
from lb.lab.loadgen.lines import Load
from lb.lab.loadgen.plan import Options, Plan
from lb.lab.loadgen.results import Outcome, Outputs, settings


def run(
    file: Path,
    options: Options,
    clients: int,
    outputs: Outputs,
    want: Mapping[str, float] | None = None,
    config: Path | None = None,
    control: Path | None = None,
) -> int:
    """
    Play a load file.

    Args:
        file: what to play.
        options: how.
        clients: how many play it.
        outputs: what to show.
        want: the servers' weights; None: those that one of the next two says.
        config: a configuration.
        control: the control socket of a running balancer.

    Returns:
        The exit status: 0; 1 when no fetch succeeded; 130 when it was interrupted.

    Raises:
        ConfigError: the load or the configuration is invalid.
        LbError: what was wished for cannot be had.
    """
    load = lines.read(file)
    outputs.require()
    weights = weights_for(load, want, config, control)
    if load.events:
        print(
            "Events of the load (#! ... lose, return) are ignored: only `lb testbed load` plays them.", file=sys.stderr
        )
    made = plan.make(load, options, plan.client_names(clients))
    with Outcome(load, made, outputs) as outcome:
        try:
            asyncio.run(_play(made, outcome))
        except KeyboardInterrupt:
            outcome.interrupted = True
    return outcome.finish(settings(load, made), weights)


async def _play(made: Plan, outcome: Outcome) -> None:
    # Loaded modules stay: garbage collections that skip them pause for less time.
    gc.freeze()
    await play(made, outcome.take, asyncio.get_running_loop().time())


def weights_for(
    load: Load, want: Mapping[str, float] | None, config: Path | None, control: Path | None
) -> dict[str, float] | None:
    """Return the servers' weights from where they are known; as `run`."""
    if want is not None:
        return dict(want)
    if config is not None:
        return target_weights.of_config(config, load.lines[0])
    if control is not None:
        from lb.control.api.client import fetch

        return target_weights.of_status(fetch(control, "/status"), load.lines[0])
    return None
