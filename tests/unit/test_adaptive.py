"""The policy `adaptive`: what measurements make of a plan; and the timer that brings them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from lb import config
from lb.control.controller import Controller
from lb.control.measurement_timer import IDLE_NS, MeasurementTimer, Recent
from lb.model.snapshot import Snapshot
from lb.policies import Plan, ServerView, make
from lb.policies.adaptive import MAX_SLOTS, WORST, Adaptive, slot_counts, stepped

MS, S = 10**6, 10**9
SERVERS = [ServerView(0, "a"), ServerView(1, "b"), ServerView(2, "c")]
NAMES = ("a", "b", "c")


def doing(answer_s: float = 0.1, answers: float = 50, size: float = 500_000, **more: float) -> dict[str, float]:
    """Make the measurements of a server's recent answers: their number, and seconds and bytes of each."""
    return {
        "recent_answers": answers,
        "recent_requests": answers,
        "recent_active": answers,
        "recent_flows": answers,
        "recent_answer_s": answers * answer_s,
        "recent_bytes": answers * size,
        "first_byte_peak_ns": 1e6,
        **more,
    }


def planned(*measures: dict[str, float]) -> tuple[dict[int, int], dict[int, int]]:
    """Return (slots, score) by server."""
    plan = Adaptive().plan("video", SERVERS, dict(zip(NAMES, measures, strict=False)))
    return dict(Counter(plan.slots)), dict(zip(plan.slots, plan.scores, strict=False))


EQUAL = Plan("two-choices", (0, 1, 2))


def test_plan_nothing_measured_is_two_choices() -> None:
    """At the start all servers are as good as their weight."""
    assert Adaptive().plan("video", SERVERS, {}) == EQUAL
    weighted = [ServerView(0, "a", 2), ServerView(1, "b")]
    expected, plan = make("two-choices", {}).plan("video", weighted, {}), Adaptive().plan("video", weighted, {})
    assert (Counter(plan.slots)[0], Counter(plan.slots)[1]) == (2, 1)
    assert plan.scores[0] * 2 == plan.scores[plan.slots.index(1)]
    assert expected.selector == plan.selector


def test_plan_equal_servers_chance_changes_nothing() -> None:
    """A fifth more or less is chance: the plan stays, and nothing is published."""
    measurements = {"a": doing(0.1), "b": doing(0.12), "c": doing(0.09)}
    assert Adaptive().plan("video", SERVERS, measurements) == EQUAL


def test_plan_server_of_a_quarter_of_the_rate_gets_little() -> None:
    """It is drawn a quarter as often, and each flow on it counts for four."""
    slots, scores = planned(doing(), doing(), doing(0.4))
    assert slots == {0: 4, 1: 4, 2: 1}
    assert scores[2] == 4 * scores[0]


def test_plan_shared_server_is_not_slow() -> None:
    """Answers that took twice as long on twice as many flows are of a server as quick as the others."""
    assert Adaptive().plan("video", SERVERS, {"a": doing(), "b": doing(0.2, recent_active=100), "c": doing()}) == EQUAL


def test_plan_failing_fast_attracts_nothing() -> None:
    """Quick answers of few bytes are a low rate; refused flows are failures."""
    slots, scores = planned(doing(), doing(), doing(0.001, size=300))
    assert slots[2] * 8 <= slots[0]
    assert scores[2] > 8 * scores[0]
    slots, _ = planned(doing(), doing(), {"recent_flows": 10, "recent_failures": 10})
    assert slots == {0: 1, 1: 1}


def test_plan_one_failure_is_no_proof_and_all_failing_is_no_servers_fault() -> None:
    """A single failure excludes no server; nor do failures of all servers."""
    one = {"recent_flows": 1, "recent_failures": 1}
    assert Adaptive().plan("video", SERVERS, dict.fromkeys("c", one)) == EQUAL
    assert (
        Adaptive().plan("video", SERVERS, {name: {"recent_flows": 9, "recent_failures": 9} for name in NAMES}) == EQUAL
    )


def test_plan_stalled_server_is_avoided_before_it_answers() -> None:
    """A client that waits for a first byte shows at once."""
    _, scores = planned(doing(), doing(), doing(stalled_ns=2e9))
    assert scores[2] > 8 * scores[0]
    _, scores = planned(doing(), doing(), {"stalled_ns": 2e9})
    assert scores[2] > 4 * scores[0]


def test_plan_forgotten_server_is_tried_again() -> None:
    """What was seen long ago counts for little."""
    _, scores = planned(doing(), doing(), doing(0.4, answers=0.05))
    assert not scores


def test_plan_only_eligible() -> None:
    """A drained server is in no plan, however quick."""
    servers = [*SERVERS[:2], ServerView(2, "c", 1, "draining")]
    assert Plan("two-choices", (0, 1)) == Adaptive().plan("video", servers, {"c": doing()})


@pytest.mark.parametrize(("quality", "step"), [(1, 1), (0.7, 1), (0.5, 0.5), (0.26, 0.25), (0, WORST)])
def test_stepped_nearest_step(quality: float, step: float) -> None:
    """Plans change by steps, not by whims."""
    assert stepped(quality) == step


# --- the timer -------------------------------------------------------------------------------------------------------


def counts(**more: int) -> dict[str, int]:
    zero = ("flows_created", "refused", "unanswered", "failed", "requests", "requests_active", "first_bytes")
    return {**dict.fromkeys(zero, 0), "answer_ns": 0, "bytes_reply": 0, **more}


def test_recent_counts_become_what_happened_lately() -> None:
    """What is new since the last look is added to what is left of before; a tenth of a minute fades it to 1/e."""
    recent = Recent()
    first = recent.update(0, {"a": counts(flows_created=100, refused=7)})
    assert (first["a"]["recent_flows"], first["a"]["flows_created"]) == (0, 100)
    second = recent.update(S, {"a": counts(flows_created=110, refused=8, failed=1, answer_ns=S)})
    assert (second["a"]["recent_flows"], second["a"]["recent_failures"], second["a"]["recent_answer_s"]) == (10, 2, 1)
    third = recent.update(11 * S, {"a": counts(flows_created=110, refused=8, failed=1, answer_ns=S)})
    assert third["a"]["recent_flows"] == pytest.approx(10 / 2.718281828)


def test_recent_other_server_of_the_same_name_starts_anew() -> None:
    """Counts that are lower than before are another server's: nothing is known of it yet."""
    recent = Recent()
    recent.update(0, {"a": counts(flows_created=100)})
    recent.update(1, {"a": counts(flows_created=3)})
    assert recent.update(2, {"a": counts(flows_created=4)})["a"]["recent_flows"] == pytest.approx(1)


CONFIG = """
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "198.18.1.100"
port = 80
policy = { name = "adaptive", interval = "200ms" }
server = [
    { name = "a", address = "198.18.1.31", port = 80 },
    { name = "b", address = "198.18.1.32", port = 80 },
]
[[service]]
name = "echo"
address = "198.18.1.100"
port = 7
server = [{ name = "a", address = "198.18.1.31", port = 7 }]
"""


class Host:
    """Takes what is published."""

    def __init__(self) -> None:
        self.published: list[Snapshot] = []

    def publish(self, snapshot: Snapshot) -> None:
        self.published.append(snapshot)

    def reset_flows(self, server: int) -> None:
        raise AssertionError("nothing is reset here")


def controlled(text: str = CONFIG) -> tuple[Host, Controller, Any]:
    host = Host()
    controller = Controller(config.parse(text), (), host)
    return host, controller, MeasurementTimer(lambda: controller.config)


def test_measurement_timer_service_is_due_at_its_interval() -> None:
    """Only policies that want it, each at its own pace."""
    _, _, timer = controlled()
    assert timer.due(1000) == []
    assert timer.wait_s(1000) == 0.2
    assert timer.due(1000 + 200 * MS) == ["video"]
    assert timer.due(1001 + 200 * MS) == []
    assert timer.wait_s(1000 + 300 * MS) == 0.1


def test_measurement_timer_without_such_policy_looks_again_later() -> None:
    """A reload may bring a policy that does."""
    _, controller, timer = controlled(CONFIG.replace("adaptive", "static").replace(', interval = "200ms"', ""))
    assert (timer.due(0), timer.wait_s(0)) == ([], IDLE_NS / S)
    controller.reload(config.parse(CONFIG))
    assert timer.due(0) == []
    assert timer.due(200 * MS) == ["video"]


def test_measurement_timer_publishes_what_changed_only() -> None:
    """A plan that stays the same costs nothing."""
    host, controller, timer = controlled()
    quick = {"flows_created": 50, "requests": 50, "requests_active": 50, "first_bytes": 50, "bytes_reply": 10**7}
    now = 0
    for step in range(3):
        now += 200 * MS
        timer.due(now)
        measured = {
            "a": counts(**{key: value * step for key, value in quick.items()}, answer_ns=step * S),
            "b": counts(**{key: value * step for key, value in quick.items()}, answer_ns=step * 8 * S),
        }
        controller.replan_all(timer.measured(["video", "gone"], now, {"video": measured}))
    assert len(host.published) == 1
    plan = host.published[0].services[0].plan  # type: ignore[union-attr]
    assert Counter(plan.slots)[0] > 4 * Counter(plan.slots)[1]


# --- cost ------------------------------------------------------------------------------------------------------------


def test_plan_large_weights_are_a_bounded_table_of_the_same_shares() -> None:
    """Ten servers of weight about 1 000 need no 65 536 slots: shares are within half a slot, scores are exact."""
    servers = [ServerView(number, f"s{number}", 1000 + number) for number in range(10)]
    measured = {f"s{number}": doing(0.1 * (1 + number % 3)) for number in range(10)}
    plan = Adaptive().plan("video", servers, measured)
    quality = [2 ** (-round(4 * math.log2(1 + number % 3)) / 4) for number in range(10)]
    worth = [server.weight * quality[server.id] for server in servers]
    counts = Counter(plan.slots)
    assert len(plan.slots) <= MAX_SLOTS + len(servers)
    for server in servers:
        share = worth[server.id] / sum(worth)
        assert abs(counts[server.id] / len(plan.slots) - share) <= 1 / MAX_SLOTS
        score = plan.scores[plan.slots.index(server.id)]
        assert score * worth[server.id] == pytest.approx(plan.scores[0] * worth[plan.slots[0]], rel=0.02)


def test_plan_equal_large_weights_are_as_those_of_1() -> None:
    """Weights that have a common divisor are what is left of them without it."""
    thousands = [ServerView(server.id, server.name, 1000) for server in SERVERS]
    measured = {"a": doing(), "b": doing(), "c": doing(0.4)}
    assert Adaptive().plan("video", thousands, measured) == Adaptive().plan("video", SERVERS, measured)


def test_slot_counts_many_servers_keep_their_proportion() -> None:
    """A service of 10 000 servers still tells a slow one from a quick one."""
    counts = slot_counts([1.0] * 9_999 + [0.25])
    assert counts[0] >= 4 * counts[-1] >= 4
    assert sum(counts) <= 8 * 10_000 + 10_000
