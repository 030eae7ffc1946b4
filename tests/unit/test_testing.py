"""`lb.testing`: a good policy passes, and each fault is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lb import cli
from lb.policies import POLICIES, NewFlow, Plan, ServerView, eligible
from lb.testing import check_policy, examine

FEW = 2000
EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"static"}))
def test_check_own_policies_pass(name: str) -> None:
    """Every policy of lb does what a policy must."""
    report = check_policy(name, flows=FEW, share_error=0.25)
    assert report.weighted_share_error < 0.15


def test_check_static_shares_nothing() -> None:
    """One server gets everything: the share is what fails, if it is looked at."""
    check_policy("static", flows=FEW, share_error=None)
    with pytest.raises(AssertionError, match=r"shares are off by up to 900.0%, more than 15.0%"):
        check_policy("static", flows=FEW)


class AllServers:
    """Places flows on all servers, eligible or not."""

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Any) -> Plan:
        return Plan("counter", tuple(server.id for server in servers))


class First:
    """Leaves all but the first server idle, and forgets that there may be none."""

    def choose(self, flow: NewFlow, servers: Sequence[ServerView]) -> ServerView:
        return servers[0]


class NoServer:
    """Places nothing."""

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Any) -> Plan:
        return Plan("counter", ())


class Fickle:
    """Places flows otherwise each time it is made."""

    made = 0

    def __init__(self) -> None:
        Fickle.made += 1

    def choose(self, flow: NewFlow, servers: Sequence[ServerView]) -> ServerView:
        return servers[(flow.client_port + Fickle.made) % len(servers)]


class Modulo:
    """Places by a hash, and moves nearly everything when a server leaves."""

    def plan(self, service: str, servers: Sequence[ServerView], measurements: Any) -> Plan:
        return Plan("hash-flow", tuple(server.id for server in eligible(servers)))


class Raises:
    def plan(self, service: str, servers: Sequence[ServerView], measurements: Any) -> Plan:
        raise LookupError("no idea")


class Nonsense:
    def choose(self, flow: NewFlow, servers: Sequence[ServerView]) -> str:
        return "nobody"


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (AllServers, "one drained: plan returned slots of servers that take no flows: ['9']"),
        (First, "shares are off by up to 900.0%, more than 15.0%"),
        (NoServer, "one drained: 100 flows found no server, though 9 take flows"),
        (Fickle, "it places the same flows otherwise when asked again"),
        (Modulo, "% of flows move needlessly when a server leaves, not 3.0%"),
        (Raises, "equal servers: LookupError: no idea (line"),
        (Nonsense, "one down: choose left 100 flows to the fall-back policy"),
        (Nonsense, "choose returned 'nobody', which is none of the given servers"),
    ],
)
def test_examine_faulty_policy_fault_is_named(policy: type[object], problem: str) -> None:
    """Each way to be wrong is told in words."""
    problems = examine(policy, flows=FEW).problems
    assert [each for each in problems if problem in each], problems


def test_examine_object_is_not_changed() -> None:
    """An object is copied for each situation."""

    class Counting:
        calls = 0

        def plan(self, service: str, servers: Sequence[ServerView], measurements: Any) -> Plan:
            self.calls += 1
            return Plan("counter", tuple(server.id for server in eligible(servers)))

    policy = Counting()
    assert check_policy(policy, flows=FEW).share_error == 0
    assert policy.calls == 0


def test_command_check_prints_figures_and_exits_by_the_result() -> None:
    """Figures on stdout; what is wrong is an error."""
    runner = CliRunner()
    # In a process of its own: it gives up what rights it has.
    command = [sys.executable, "-c", "from lb.cli import main; main()", "policy", "check"]
    command += [f"{EXAMPLES}/subnet.py:BySubnet", "--option", "prefix=32"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (good.returncode, "selector           ask" in good.stdout) == (0, True)
    bad = runner.invoke(cli.app, ["policy", "check", "static", "--flows", "1000"])
    assert bad.exit_code == 1
    assert "shares are off by up to 900.0%" in str(bad.exception)
    wrong = runner.invoke(cli.app, ["policy", "check", "maglev", "--option", "table_size"])
    assert wrong.exit_code == 2


def test_command_list_names_every_policy() -> None:
    """The names that a configuration may use."""
    listed = CliRunner().invoke(cli.app, ["policy", "list"]).stdout.split()
    assert set(POLICIES) <= set(listed)
