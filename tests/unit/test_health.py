"""Health: results become verdicts. Time is a ManualClock; no socket is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.control.health.judge import RAMP_STEPS, Rules, ServiceHealth, Transition
from lb.model.clock import ManualClock

INTERVAL_S = 1.0
RULES = Rules(interval_ns=10**9, fall=3, rise=2, slow_start_ns=0)
REFUSED = "connection refused"


def check_all(
    health: ServiceHealth, clock: ManualClock, results: str, server: str = "server1"
) -> list[Transition | None]:
    """Feed one result per interval: `+` passed, `-` failed. Return what came of each."""
    transitions = []
    for result in results:
        clock.advance(INTERVAL_S)
        transitions.append(health.checked(server, None if result == "+" else REFUSED, clock.now_ns()))
    return transitions


@pytest.mark.parametrize("results", ["-+" * 50, "+-" * 50, "--+" * 40])
def test_up_server_alternating_results_no_transition(results: str) -> None:
    """Rule 19, health: with fall 3 and rise 2, results that alternate never take a server out."""
    health = ServiceHealth(RULES, ["server1"])
    assert set(check_all(health, ManualClock(), results)) == {None}
    assert health.health("server1") == "up"


def test_down_server_alternating_results_no_transition() -> None:
    """Rule 19, health: nor do they bring one back."""
    health, clock = ServiceHealth(RULES, ["server1"]), ManualClock()
    check_all(health, clock, "---")
    assert set(check_all(health, clock, "+-" * 50)) == {None}
    assert health.health("server1") == "down"


def test_server_down_after_fall_up_after_rise() -> None:
    """The third failure in a row takes it out, the second success in a row brings it back; each tells once."""
    health, clock = ServiceHealth(RULES, ["server1"]), ManualClock()
    down = Transition("server1", "down", REFUSED)
    assert check_all(health, clock, "-+---") == [None, None, None, None, down]
    assert check_all(health, clock, "---") == [None, None, None]
    up = Transition("server1", "up", "checks pass")
    assert check_all(health, clock, "+-++") == [None, None, None, up]
    assert health.health("server1") == "up"


@given(st.text("+-", max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_any_results_health_is_what_the_last_run_said(results: str, fall: int, rise: int) -> None:
    """The verdict is that of the last run of equal results which was long enough."""
    health = ServiceHealth(Rules(10**9, fall, rise, 0), ["server1"])
    check_all(health, ManualClock(), results)
    expected, run = "up", ""
    for result in results:
        run = run + result if run.endswith(result) else result
        if run == "-" * fall:
            expected = "down"
        if run == "+" * rise:
            expected = "up"
    assert expected == health.health("server1")


@pytest.mark.parametrize(("servers", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_broken_checker_takes_out_half_per_interval(servers: int, at_once: int) -> None:
    """Rule 19, health: when all checks fail together, at most half go within one interval; a lone server may go."""
    names = [f"server{number}" for number in range(servers)]
    health, now_ns, gone = ServiceHealth(RULES, names), 0, []
    for _ in range(3 + servers):
        now_ns += RULES.interval_ns
        down = [name for name in names if health.checked(name, REFUSED, now_ns)]
        gone.append(len(down))
        assert len(down) <= at_once
    assert sum(gone) == servers
    assert gone[:3] == [0, 0, at_once]


def test_removal_cap_checker_mended_in_time_keeps_the_rest() -> None:
    """Rule 19, health: what the cap spared stays when checks pass again."""
    names = ["server1", "server2", "server3", "server4"]
    health, clock = ServiceHealth(RULES, names), ManualClock()
    for _ in range(3):
        clock.advance(INTERVAL_S)
        for name in names:
            health.checked(name, REFUSED, clock.now_ns())
    for _ in range(2):
        clock.advance(INTERVAL_S)
        for name in names:
            health.checked(name, None, clock.now_ns())
    assert [health.health(name) for name in names] == ["up"] * 4


def test_failures_of_clients_and_checks_together_no_cap() -> None:
    """What clients have met too is no fault of the checker: the cap does not hold for it."""
    names = ["server1", "server2", "server3"]
    health, clock = ServiceHealth(RULES, names), ManualClock()
    for _ in range(2):
        clock.advance(INTERVAL_S)
        for name in names:
            health.checked(name, REFUSED, clock.now_ns())
            health.failed_passive_check(name)
    assert [health.health(name) for name in names] == ["down"] * 3


def test_failures_of_clients_while_checks_pass_no_transition() -> None:
    """Passive health checks speed a verdict up; they never overrule an active check that passes."""
    health, clock = ServiceHealth(RULES, ["server1"]), ManualClock()
    for _ in range(20):
        clock.advance(INTERVAL_S)
        assert health.checked("server1", None, clock.now_ns()) is None
        for _ in range(RULES.fall):
            health.failed_passive_check("server1")
        assert health.health("server1") == "up"


def test_failures_of_clients_take_out_no_server_before_a_check_fails_after_them() -> None:
    """
    SYNs that were lost while a link was out for a moment are sent again a second later: so long do clients say that a
    server fails which is well.
    """
    health, clock = ServiceHealth(RULES, ["server1"]), ManualClock()
    assert health.checked("server1", REFUSED, clock.now_ns()) is None
    for _ in range(RULES.fall):
        health.failed_passive_check("server1")
        assert health.health("server1") == "up"
    assert health.checked("server1", None, clock.now_ns()) is None
    for _ in range(RULES.fall - 1):
        health.failed_passive_check("server1")
    found = health.checked("server1", REFUSED, clock.now_ns())
    assert found is not None
    assert (found.health, found.why) == ("down", REFUSED)


def test_slow_start_weight_grows_linearly() -> None:
    """After it came up a server has a linear share of its weight; before, and after the ramp, all of it."""
    rules = Rules(10**9, fall=1, rise=1, slow_start_ns=10 * 10**9)
    health, clock = ServiceHealth(rules, ["server1"]), ManualClock()
    assert health.ramp_step("server1", clock.now_ns()) == RAMP_STEPS
    check_all(health, clock, "-+")
    steps = []
    for _ in range(12):
        steps.append(health.ramp_step("server1", clock.now_ns()))
        clock.advance(1.0)
    assert steps == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20]


def test_know_server_keeps_health_new_one_is_up() -> None:
    """A reload keeps the health of servers that stay; a server that was removed and came back starts as new."""
    health, clock = ServiceHealth(RULES, ["server1", "server2"]), ManualClock()
    check_all(health, clock, "---")
    for name in ("server1", "server3"):
        health.know(name)
    health.forget("server2")
    assert [health.health(name) for name in ("server1", "server2", "server3")] == ["down", "up", "up"]
    assert health.checked("server2", REFUSED, clock.now_ns()) is None
    health.forget("server1")
    health.know("server1")
    assert health.health("server1") == "up"
