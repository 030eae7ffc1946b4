"""Policies of one's own: found, made, asked, and kept from doing harm."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from helpers import from_client, request

import lb
from lb import config, policies
from lb.control.controller import Controller
from lb.control.policy_threads import close_policies
from lb.errors import LbError, PolicyError
from lb.policies import NewFlow, OptionsError, Plan, ServerView, UserPolicy, executor
from lb.policies.executor import DeadlineExecutor
from lb.policies.loader import load_class
from lb.policies.registry import wrap
from lb.policies.user import require_usable, restricted

WAIT_S = 10
SERVERS = [ServerView(4, "a"), ServerView(5, "b", 2), ServerView(6, "c", 1, "draining")]
MINE = """
    from dataclasses import dataclass
    from lb.policies import Plan, eligible

    @dataclass
    class Last:
        count: int = 1

        def plan(self, service, servers, measurements):
            return Plan("counter", tuple(server.id for server in eligible(servers)[-self.count:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(dedent(MINE))
    return tmp_path


def mine(folder: Path, **options: Any) -> UserPolicy:
    made = policies.make("./mine.py:Last", options, folder)
    assert isinstance(made, UserPolicy)
    return made


# --- found -----------------------------------------------------------------------------------------------------------


def test_make_from_file_plans(folder: Path) -> None:
    """A file beside the configuration; options are the fields of the class."""
    assert Plan("counter", (5,)) == mine(folder).plan("video", SERVERS, {})
    assert Plan("counter", (4, 5)) == mine(folder, count=2).plan("video", SERVERS, {})


def test_load_changed_file_is_run_again(folder: Path) -> None:
    """A reload takes what the file says now; an unchanged file is the same class."""
    before = load_class("mine.py:Last", folder)
    assert load_class("./mine.py:Last", folder) is before
    (folder / "mine.py").write_text(dedent(MINE).replace("int = 1", "int = 2"))
    assert load_class("mine.py:Last", folder) is not before
    assert Plan("counter", (4, 5)) == mine(folder).plan("video", SERVERS, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./none.py:Last", "none.py: No such file or directory"),
        ("mine.py", 'mine.py: it names no class: write "FILE.py:CLASS"'),
        ("mine.py:Lst", "mine.py has no Lst; it has: Last"),
        ("mine.py:eligible", "mine.py:eligible is not a class"),
        ("mine.py:Plan", "mine.py:Plan: the class has neither `plan` nor `choose`"),
        ("broken.py:X", "broken.py: line 2: invalid syntax"),
        ("raises.py:X", "raises.py: ZeroDivisionError: division by zero (line 1 of raises.py)"),
        ("nobody", "there is no policy nobody"),
    ],
)
def test_load_mistake_says_what(folder: Path, name: str, message: str) -> None:
    """Each mistake is one line that says how to fix it."""
    (folder / "broken.py").write_text("x = 1\nclass:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    with pytest.raises(PolicyError) as raised:
        load_class(name, folder)
    assert message in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses files that others can write")
def test_load_file_that_others_can_write_refused_as_root(folder: Path) -> None:
    """Rule 21.4, trusted files: root runs no code that other users may change."""
    (folder / "mine.py").chmod(0o666)
    with pytest.raises(PolicyError, match=r"mine.py can be written by others \(mode 0666\): chmod go-w"):
        load_class("mine.py:Last", folder)


def test_entry_point_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group `lb.policies`: an installed package gives its policies names."""
    info = folder / "sample-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lb.policies]\nlast-of-all = mine:Last\nlost = nowhere:Last\n")
    monkeypatch.syspath_prepend(folder)
    assert Plan("counter", (5,)) == policies.make("last-of-all", {}).plan("video", SERVERS, {})
    with pytest.raises(PolicyError, match=r"lost \(nowhere:Last\): ModuleNotFoundError"):
        policies.make("lost", {})
    [problem] = policies.problems("last-of-al", {}, [])
    assert problem.hint == 'did you mean "last-of-all"?'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 3}, "speed: policy ./mine.py:Last has no such option"),
        ({"count": "x"}, "count: Input should be a valid integer"),
        ({"deadline": 5}, "deadline: 5 has no unit"),
        ({"fallback": "x"}, 'fallback: "x" is not a policy of lb'),
    ],
)
def test_make_wrong_option_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    """The user's options and ours are both read by their types."""
    with pytest.raises(OptionsError, match=message):
        mine(folder, **options)


def test_settings_are_ours(folder: Path) -> None:
    """`deadline`, `interval` and `fallback` are options of every policy of one's own."""
    made = mine(folder, deadline="20ms", interval="100ms", fallback="least-connections")
    assert (made.settings.deadline, made.interval_ns) == (20_000_000, 100_000_000)


def test_config_policy_file_problems_have_their_place(folder: Path) -> None:
    """A mistake in the policy is reported as one of the configuration, at its line and column."""
    file = folder / "lb.toml"
    file.write_text(CONFIG.format(policy='"mine.py:Lst"'))
    [block] = config.read(file).problems
    assert block.startswith(f"{file}:8:10: service[0].policy: mine.py has no Lst; it has: Last")
    file.write_text(CONFIG.format(policy='{ name = "mine.py:Last", cuont = 3 }'))
    [block] = config.read(file).problems
    assert "8:35: service[0].policy.cuont: policy mine.py:Last has no such option" in block
    assert 'did you mean "count"?' in block
    file.write_text(CONFIG.format(policy='{ name = "mine.py:Last", count = 3 }'))
    loaded = config.load(file)
    assert loaded.services[0].policy.make() is loaded.services[0].policy.make()
    assert loaded == config.load(file)


CONFIG = """
[[interface]]
name = "eth0"
mac = "aa:aa:aa:00:00:01"

[[service]]
name = "web"
policy = {policy}
address = "198.18.1.100"
port = 9876
server = [
    {{ name = "server1", address = "198.18.1.31", port = 8031, mac = "aa:aa:aa:00:00:31" }},
    {{ name = "server2", address = "198.18.1.32", port = 8032, mac = "aa:aa:aa:00:00:32" }},
]
"""


# --- plan ------------------------------------------------------------------------------------------------------------


class Scripted:
    """Returns or raises one thing after the other; the last one for ever."""

    def __init__(self, *steps: Any) -> None:
        self.steps: Iterator[Any] = iter(steps)
        self.last: Any = None

    def plan(self, service: str, servers: Any, measurements: Any) -> Any:
        self.last = next(self.steps, self.last)
        if isinstance(self.last, BaseException):
            raise self.last
        return self.last() if callable(self.last) else self.last


def scripted(*steps: Any) -> UserPolicy:
    made = wrap(Scripted(*steps), {})
    assert isinstance(made, UserPolicy)
    return made


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (ValueError("no idea"), "ValueError: no idea"),
        (SystemExit(3), r"RuntimeError: SystemExit\(3\)"),
        (None, "plan returned NoneType, not a Plan"),
        (Plan("ask", (4,)), "the selector 'ask'"),
        (Plan("fastest", (4,)), "the selector 'fastest'"),  # type: ignore[arg-type]
        (Plan("counter", (6,)), r"servers that take no flows: \['6'\]"),
        (Plan("counter", ("a",)), r"servers that take no flows: \['a'\]"),  # type: ignore[arg-type]
        (Plan("counter", 4), "not iterable"),  # type: ignore[arg-type]
        (Plan("two-choices", (4, 5), (1,)), "1 scores for 2 slots"),
        (Plan("two-choices", (4,), (0,)), "a score that is not a whole number"),
        (Plan("two-choices", (4,), (0.5,)), "a score that is not a whole number"),  # type: ignore[arg-type]
    ],
)
def test_plan_that_fails_last_good_one_goes_on(
    returned: object, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception or nonsense costs nothing but a line in the log and a count."""
    policy = scripted(Plan("counter", (5,)), returned)
    with caplog.at_level(logging.WARNING):
        plans = [policy.plan("video", SERVERS, {}) for _ in range(3)]
    assert [Plan("counter", (5,))] * 3 == plans
    assert policy.failures.count == 2
    [record] = caplog.records
    assert re.search(message, record.getMessage())


def test_plan_that_never_worked_fall_back_decides() -> None:
    """Without a good plan the fall-back policy makes one."""
    assert Plan("counter", (5, 4, 5)) == scripted(ValueError("no")).plan("video", SERVERS, {})


def test_plan_last_good_one_loses_servers_that_left() -> None:
    """What goes on places nothing on a server that is drained meanwhile, and ends when nothing is left of it."""
    policy = scripted(Plan("counter", (4, 5, 4)), ValueError("no"))
    policy.plan("video", SERVERS, {})
    only_b = [ServerView(4, "a", 1, "draining"), ServerView(5, "b")]
    assert Plan("counter", (5,)) == policy.plan("video", only_b, {})
    assert Plan("counter", (7,)) == policy.plan("video", [ServerView(7, "d")], {})


def test_plan_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang costs one deadline; nothing more is asked until it is back."""
    release = threading.Event()
    monkeypatch.setattr("lb.policies.user.PLAN_DEADLINE_S", 0.05)
    policy = scripted(release.wait, Plan("counter", (5,)))
    assert Plan("counter", (5, 4, 5)) == policy.plan("video", SERVERS, {})
    assert Plan("counter", (5, 4, 5)) == policy.plan("video", SERVERS, {})
    assert (policy.failures.count, policy.failures.last) == (2, "the call before has not returned yet")
    release.set()


@pytest.fixture
def wait_for_threads() -> Callable[[int], None]:
    """Return a function that waits for a number of policy threads beyond those at the start of the test."""

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("lb-plan")}

    before = threads()

    def wait(count: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while len(threads() - before) != count:
            assert time.monotonic() < deadline, threads() - before
            gc.collect()

    return wait


def test_close_ends_the_thread_and_a_later_plan_starts_another(wait_for_threads: Callable[[int], None]) -> None:
    """A policy that is replaced leaves no thread behind."""
    policy = scripted(Plan("counter", (5,)))
    policy.plan("video", SERVERS, {})
    wait_for_threads(1)
    policy.close()
    wait_for_threads(0)
    assert Plan("counter", (5,)) == policy.plan("video", SERVERS, {})
    policy.close()
    wait_for_threads(0)


def test_policy_that_nothing_refers_to_ends_its_thread(wait_for_threads: Callable[[int], None]) -> None:
    """However a policy goes, its thread goes with it."""
    policy = scripted(Plan("counter", (5,)))
    policy.plan("video", SERVERS, {})
    wait_for_threads(1)
    del policy
    wait_for_threads(0)


def test_reloads_leave_one_thread_per_policy_in_use(folder: Path, wait_for_threads: Callable[[int], None]) -> None:
    """Twenty reloads, dry runs and broken ones once left 25 threads."""
    text = CONFIG.format(policy='"./mine.py:Last"')

    class Target:
        def publish(self, snapshot: object) -> None:
            if broken:
                raise LbError("no")

        def reset_flows(self, server: int) -> None:
            raise AssertionError

    broken = False
    controller = Controller(config.inspect(text, "x", folder).config, (), Target())
    wait_for_threads(1)
    for _ in range(20):
        controller.reload(config.inspect(text, "x", folder).config)
        controller.preview(config.inspect(text, "x", folder).config)
        broken = True
        refused = config.inspect(text, "x", folder).config
        with pytest.raises(LbError):
            controller.reload(refused)
        close_policies(refused, controller.config)
        broken = False
    wait_for_threads(1)
    close_policies(controller.config, config.inspect(text.replace("./mine.py:Last", "random"), "x", folder).config)
    wait_for_threads(0)


def test_stuck_threads_are_counted_and_bounded(
    monkeypatch: pytest.MonkeyPatch, wait_for_threads: Callable[[int], None]
) -> None:
    """A thread that hangs in user code cannot be ended: it is counted while it hangs, and too many start no more."""
    monkeypatch.setattr(executor, "MAX_STUCK", 2)
    release = threading.Event()
    hanging = [DeadlineExecutor("lb-plan hanging") for _ in range(2)]
    try:
        for each in hanging:
            with pytest.raises(PolicyError, match="no answer within"):
                each.call(release.wait, 0.001)
            each.close()
        assert executor.stuck_threads() == 2
        with pytest.raises(PolicyError, match="2 calls of policies have not returned: restart lb"):
            DeadlineExecutor("lb-plan more").call(lambda: 1, WAIT_S)
    finally:
        release.set()
    wait_for_threads(0)
    assert executor.stuck_threads() == 0
    assert DeadlineExecutor("lb-plan more").call(lambda: 1, WAIT_S) == 1


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import sys\nclass Mine:\n    plan = sys.exit(3)"])
def test_load_file_that_exits_is_an_error(tmp_path: Path, code: str) -> None:
    """`sys.exit()` in a policy's file ends no balancer."""
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(PolicyError, match="SystemExit: 3"):
        load_class("mine.py:Mine", tmp_path)


def test_restricted_keeps_scores_beside_their_slots() -> None:
    """Slots and scores stay together."""
    plan = Plan("two-choices", (4, 6, 5), (1, 2, 3))
    assert Plan("two-choices", (4, 5), (1, 3)) == restricted(plan, SERVERS)
    assert restricted(Plan("counter", (6,)), SERVERS) is None


def test_require_usable_takes_lists() -> None:
    """A list of slots is as good as a tuple."""
    assert Plan("counter", (4, 5)) == require_usable(Plan("counter", [4, 5]), SERVERS)  # type: ignore[arg-type]


def test_caller_function_that_raises_timeout_itself_is_no_hang() -> None:
    """The function's own TimeoutError is its own."""

    def fail() -> None:
        raise TimeoutError("mine")

    calls = DeadlineExecutor("test")
    with pytest.raises(TimeoutError, match="mine"):
        calls.call(fail, WAIT_S)
    assert calls.call(lambda: 3, WAIT_S) == 3


# --- choose ----------------------------------------------------------------------------------------------------------


class Picker:
    """Returns what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[object] = []

    def choose(self, flow: NewFlow, servers: Any) -> Any:
        self.seen.append((flow, [server.name for server in servers]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return servers[-1] if self.answer is None else self.answer


def test_choose_plan_asks_and_falls_back() -> None:
    """The plan of a policy that chooses asks, with the fall-back's plan behind it."""
    policy = wrap(Picker("a"), {"deadline": "7ms", "fallback": "random"})
    expected = Plan("ask", (4, 5), fallback=Plan("random", (5, 4, 5)), deadline_ns=7_000_000)
    assert expected == policy.plan("video", SERVERS, {})
    assert policy.interval_ns is None


@pytest.mark.parametrize("answer", [None, "b", SERVERS[1]], ids=["last", "name", "server"])
def test_choose_answers_a_server_or_its_name(answer: object) -> None:
    """Either will do; the flow is who asks."""
    picker = Picker(answer)
    policy = wrap(picker, {})
    assert isinstance(policy, UserPolicy)
    assert policy.picker("video", SERVERS)("video", "198.18.1.21", 4000, ["a", "b"]) == "b"
    assert picker.seen == [(NewFlow("video", "198.18.1.21", 4000), ["a", "b"])]


@pytest.mark.parametrize("answer", ["c", 3, SERVERS[2], ValueError("no")], ids=repr)
def test_choose_that_fails_is_counted_and_told(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    """The data path hears an exception and falls back; the log tells once."""
    policy = wrap(Picker(answer), {})
    assert isinstance(policy, UserPolicy)
    ask = policy.picker("video", SERVERS)
    for _ in range(2):
        with pytest.raises((PolicyError, ValueError)):
            ask("video", "198.18.1.21", 4000, ["a", "b"])
    assert (policy.failures.count, len(caplog.records)) == (2, 1)


def test_balancer_asks_a_policy_from_a_file(backend: str, folder: Path) -> None:
    """From a configuration to a packet, on both backends: each service asks its own policy."""
    (folder / "mine.py").write_text(
        "class Mine:\n  def choose(self, flow, servers): return servers[flow.client_port % 2]\n"
    )
    file = folder / "lb.toml"
    file.write_text(CONFIG.format(policy='"./mine.py:Mine"'))
    balancer = lb.Balancer.from_file(file, backend=backend)
    placed = [balancer.process(bytes(from_client(request(port=port)))).server for port in (4000, 4001)]
    assert placed == ["server1", "server2"]
    assert balancer.counters()["events"]["ask_fallback"] == 0
