"""`lb policy list|check`: the policies there are, and whether one of your own does what a policy must."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(help="List the policies; check one of your own.", no_args_is_help=True)


@app.command("list")
def list_policies() -> None:
    """List the policies: those of lb, then those of installed packages. docs/policies.md says what each is for."""
    from lb.policies import NAMES
    from lb.policies.loader import installed_names

    typer.echo("\n".join([*NAMES, *installed_names()]))


@app.command("check")
def check(
    policy: Annotated[str, typer.Argument(help="FILE.py:CLASS, or a name.")],
    option: Annotated[
        list[str] | None, typer.Option(help='An option of the policy, as in TOML: size=3, name="x".')
    ] = None,
    servers: Annotated[int, typer.Option(min=3, max=1000, help="Servers to share among.")] = 10,
    flows: Annotated[int, typer.Option(min=100, max=1_000_000, help="Flows that arrive.")] = 10_000,
    share_error: Annotated[float, typer.Option(help="Largest relative error of a share; 0: any.")] = 0.15,
    remapping: Annotated[
        float | None, typer.Option(help="Part of flows that may move needlessly when a server leaves.")
    ] = None,
) -> None:
    """
    Check a policy: that it picks no server that is drained or down, places alike each time, shares by weight, moves few
    flows when a server leaves, and neither fails nor takes too long. Exit code 1: it does not.
    """
    from lb.config.unprivileged import enter_policy
    from lb.errors import PolicyError
    from lb.testing import examine

    enter_policy(policy)
    report = examine(
        policy,
        options=_options(option or []),
        servers=servers,
        flows=flows,
        share_error=share_error or None,
        remapping=remapping,
    )
    typer.echo(f"selector           {report.selector}")
    typer.echo(f"share error        {report.share_error:.2%} ({servers} equal servers, {flows} flows)")
    typer.echo(f"                   {report.weighted_share_error:.2%} (weights 5, 3, 2)")
    typer.echo(f"needless moves     {report.remapping:.2%} (one server leaves)")
    for name, took_s in (("plan", report.plan_s), ("choose", report.choose_s)):
        if took_s is not None:
            typer.echo(f"{name:<18} {took_s * 1e6:.0f} us")
    if report.problems:
        raise PolicyError("; ".join(report.problems))


def _options(texts: list[str]) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads("\n".join(texts))
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{', '.join(texts)}: {error}", param_hint="--option") from None
