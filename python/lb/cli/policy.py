"""`lb policy list|check`: list the policies; test a user's policy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(help="List the policies; test your own.", no_args_is_help=True)


@app.command("list")
def list_policies() -> None:
    """
    List the policies that can be configured.

    Those of lb come first, then those of installed packages. docs/policies.md describes them.
    """
    from lb.policies import NAMES
    from lb.policies.loader import installed_names

    typer.echo("\n".join([*NAMES, *installed_names()]))


@app.command("check")
def check(
    policy: Annotated[str, typer.Argument(help="Policy, as FILE.py:CLASS or a name.")],
    option: Annotated[
        list[str] | None, typer.Option(help='Option of the policy, as in TOML: size=3, name="x"; repeatable.')
    ] = None,
    servers: Annotated[int, typer.Option(min=3, max=1000, help="Number of servers.")] = 10,
    flows: Annotated[int, typer.Option(min=100, max=1_000_000, help="Number of flows.")] = 10_000,
    share_error: Annotated[float, typer.Option(help="Largest relative error of a server's share; 0: any.")] = 0.15,
    remapping: Annotated[
        float | None, typer.Option(help="Largest share of flows remapped needlessly when a server leaves.")
    ] = None,
) -> None:
    """
    Test whether a policy does what a policy must.

    It must pick only eligible servers, place flows alike each time, share by weight, move few flows when a server
    leaves, and answer in time without errors. Exits with 1 when it does not.
    """
    from lb.config.unprivileged import enter_policy
    from lb.errors import PolicyError
    from lb.model.units import count
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
    typer.echo(f"share error        {report.share_error:.2%} ({servers} equal servers, {count(flows)} flows)")
    typer.echo(f"                   {report.weighted_share_error:.2%} (weights 5, 3, 2)")
    typer.echo(f"needless remapping {report.remapping:.2%} (one server leaves)")
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
