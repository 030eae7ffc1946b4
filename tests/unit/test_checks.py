"""Checks and controller together: which servers are checked, and what results do. Prober and clock are doubles."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lb.config import Config, parse
from lb.control.changes import Done, Prepare
from lb.control.controller import Controller
from lb.control.health import checks as lb_checks
from lb.control.health import slices as pace
from lb.control.health.checks import RAMP_TICK_S, Checks
from lb.control.health.prober import Key, OnResult, Target
from lb.control.tasks import Supervisor
from lb.errors import LbError
from lb.model.clock import ManualClock
from lb.model.snapshot import Interface, Snapshot

INTERFACES = (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),)
CHECK = 'health = { check = "tcp", fall = 2, rise = 1 }'
SLOW = 'health = { check = "tcp", fall = 1, rise = 1, slow_start = "10s" }'
ONE, TWO, THREE = ("video", "server1"), ("video", "server2"), ("video", "server3")
DEADLINE_S = 20.0


def config(health: str = CHECK, addresses: tuple[int, ...] = (31, 32, 33, 34)) -> Config:
    text = '[[interface]]\nname = "eth0"\n[[service]]\nname = "video"\naddress = "198.18.1.100"\nport = 9876\n' + health
    for number, octet in enumerate(addresses, start=1):
        text += f'\n[[service.server]]\nname = "server{number}"\naddress = "198.18.1.{octet}"\nport = 80\n'
    return parse(text)


class AtOnce:
    """A queue of changes that makes each at once."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def request(self, name: str, prepare: Prepare, done: Done) -> None:
        (outcome,) = self._controller.apply([prepare()])
        done(outcome)


class Host:
    """Publisher and prober of controller and checks: it records what is published and which servers are checked."""

    def __init__(self, loaded: Config) -> None:
        self.clock = ManualClock()
        self.reset: list[int] = []
        self.failure: LbError | None = None
        self.targets: dict[Key, Target] = {}
        # Whose checks were changed, in this order.
        self.told: list[Key] = []
        self.controller = Controller(loaded, INTERFACES, self)
        self.supervisor = Supervisor()
        self.checks = Checks(self.controller, AtOnce(self.controller), self.supervisor, self.clock.now_ns, self.asker)
        self.controller.listen(self.checks.follow)

    async def settle(self) -> None:
        """Let the checks follow."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.checks.is_current:
                await asyncio.sleep(0)

    def publish(self, snapshot: Snapshot) -> None:
        if self.failure is not None:
            raise self.failure
        self.published = snapshot

    def reset_flows(self, server: int) -> None:
        self.reset.append(server)

    def asker(self, on_result: OnResult) -> Host:
        return self

    def watch(self, key: Key, target: Target) -> None:
        self.targets[key] = target
        self.told.append(key)

    def drop(self, key: Key) -> None:
        del self.targets[key]
        self.told.append(key)

    def limit(self, concurrency: int) -> None:
        self.concurrency = concurrency

    async def stop(self) -> None:
        self.targets = {}

    def fail(self, key: Key, times: int) -> None:
        for _ in range(times):
            self.clock.advance(1)
            self.checks.on_result(key, "connection refused")

    def shares(self) -> dict[str, int]:
        """Return how many slots each server has in the plan that is published."""
        (service,) = (service for service in self.controller.snapshot.services if service)
        names = [server.name for slot in service.plan.slots if (server := self.controller.snapshot.servers[slot])]
        return {name: names.count(name) for name in names}

    def health(self) -> dict[str, str]:
        return {server.name: server.health for service in self.controller.services() for server in service.servers}


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def started(loaded: Config) -> Host:
    """Return a host whose servers are checked."""
    host = Host(loaded)
    host.checks.start()
    await host.settle()
    return host


def test_failed_checks_new_flows_avoid_the_server() -> None:
    """
    Rule 18.2, servers that leave or fail: down means out of the plan, with the reason in the history; up again means
    in.
    """

    async def scenario() -> None:
        host = await started(config())
        host.fail(ONE, 1)
        assert host.health()["server1"] == "up"
        host.fail(ONE, 1)
        assert host.shares() == {"server2": 1, "server3": 1, "server4": 1}
        event = host.controller.history[-1]
        assert (event.what, event.change, event.reason) == ("video/server1", "down", "connection refused")
        assert host.checks.last_failure(*ONE) == "connection refused"
        assert host.reset == [0]
        host.checks.on_result(ONE, None)
        assert set(host.shares()) == {"server1", "server2", "server3", "server4"}
        assert host.checks.last_failure(*ONE) is None

    run(scenario)


def test_failures_of_clients_hasten_the_verdict() -> None:
    """Passive checks count like failed active checks, of which one must follow."""

    async def scenario() -> None:
        host = await started(config())
        host.checks.on_passive_failure(ONE)
        assert host.health()["server1"] == "up"
        host.fail(ONE, 1)
        assert host.health()["server1"] == "down"

    run(scenario)


def test_slow_start_share_grows_and_ends_at_the_whole() -> None:
    """A server that came back gets a twentieth of its weight at first, half of it at half-time, then all."""

    async def scenario() -> None:
        host = await started(config(SLOW))
        host.fail(ONE, 1)
        host.checks.on_result(ONE, None)
        assert host.shares() == {"server1": 1, "server2": 20, "server3": 20, "server4": 20}
        host.clock.advance(5)
        async with asyncio.timeout(DEADLINE_S):
            while host.shares()["server1"] != 1 or host.shares()["server2"] != 2:
                await asyncio.sleep(RAMP_TICK_S / 10)
            host.clock.advance(5)
            while host.shares() != {"server1": 1, "server2": 1, "server3": 1, "server4": 1}:
                await asyncio.sleep(RAMP_TICK_S / 10)
        await host.checks.stop()

    run(scenario)


def test_slow_start_server_that_falls_again_is_out() -> None:
    """A server that fails while it starts is down, whatever its ramp."""

    async def scenario() -> None:
        host = await started(config(SLOW))
        host.fail(ONE, 1)
        host.checks.on_result(ONE, None)
        host.fail(ONE, 1)
        assert "server1" not in host.shares()
        await host.checks.stop()

    run(scenario)


def test_reload_same_server_keeps_its_health() -> None:
    """A reload that changes how servers are checked does not change their health."""

    async def scenario() -> None:
        host = await started(config())
        host.fail(ONE, 2)
        host.controller.reload(config('health = { check = "http", path = "/ready" }'))
        await host.settle()
        assert host.health()["server1"] == "down"
        assert host.targets[ONE].url == "http://198.18.1.31:80/ready"

    run(scenario)


def test_reload_other_address_starts_anew() -> None:
    """A name that means another machine now has no past."""

    async def scenario() -> None:
        host = await started(config())
        host.fail(ONE, 2)
        host.fail(TWO, 1)
        host.controller.reload(config(addresses=(41, 42, 33, 34)))
        await host.settle()
        assert set(host.health().values()) == {"up"}
        host.fail(TWO, 1)
        assert set(host.health().values()) == {"up"}

    run(scenario)


def test_reload_without_health_servers_are_up() -> None:
    """Without checks, no server is down."""

    async def scenario() -> None:
        host = await started(config())
        host.fail(ONE, 2)
        host.controller.reload(config(""))
        await host.settle()
        assert host.targets == {}
        assert set(host.health().values()) == {"up"}
        host.fail(ONE, 5)
        assert set(host.health().values()) == {"up"}

    run(scenario)


def test_servers_that_come_and_go_are_followed() -> None:
    """Added servers are checked, removed ones are not."""

    async def scenario() -> None:
        host = await started(config())
        extra = config(addresses=(51,)).services[0].servers[0].model_copy(update={"name": "server9"})
        host.controller.add("video", extra)
        host.controller.remove("video", "server1")
        await host.settle()
        assert {server for _, server in host.targets} == {"server2", "server3", "server4", "server9"}
        host.fail(("video", "server9"), 2)
        assert host.health()["server9"] == "down"

    run(scenario)


def test_server_removed_and_added_back_together_stays_down() -> None:
    """
    Rule 18.2, servers that leave or fail: what comes together is seen by the checks as no change: their verdict is not
    lost by it.
    """

    async def scenario() -> None:
        host = await started(config())
        host.fail(ONE, 2)
        (found,) = (each for each in host.controller.config.services[0].servers if each.name == ONE[1])
        outcomes = host.controller.apply(
            [lambda: host.controller.remove(*ONE), lambda: host.controller.add(ONE[0], found)]
        )
        assert [outcome.error for outcome in outcomes] == [None, None]
        await host.settle()
        assert host.health()["server1"] == "down"
        assert set(host.shares()) == {"server2", "server3", "server4"}
        assert host.checks.changes["video", "server1", "down"] == 1
        host.checks.on_result(ONE, None)
        assert host.health()["server1"] == "up"

    run(scenario)


def test_checks_ask_the_servers_own_address_or_the_port_given() -> None:
    """Probes go to the server, never to the VIP; `port` names another port of it."""

    async def scenario() -> None:
        host = await started(config())
        assert (host.targets[ONE].address.exploded, host.targets[ONE].port) == ("198.18.1.31", 80)
        other = await started(config('health = { check = "http", port = 8080 }'))
        assert other.targets[ONE].port == 8080

    run(scenario)


def test_verdict_that_cannot_be_published_is_published_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that fails has not happened; what the checks found is not forgotten."""
    monkeypatch.setattr(lb_checks, "RETRY_S", 0.001)

    async def scenario() -> None:
        host = await started(config())
        host.failure = LbError("no nft")
        host.fail(ONE, 2)
        assert host.health()["server1"] == "up"
        host.failure = None
        async with asyncio.timeout(DEADLINE_S):
            while host.health()["server1"] != "down":
                await asyncio.sleep(0.001)
        assert host.reset == [0]

    run(scenario)


def test_reload_changes_the_cap_on_checks() -> None:
    """`check_concurrency` is applied by a reload."""

    async def scenario() -> None:
        host = await started(config())
        assert host.concurrency == 512
        loaded = config().model_copy(update={"check_concurrency": 7})
        host.controller.reload(loaded)
        await host.settle()
        assert host.concurrency == 7

    run(scenario)


def test_one_change_touches_one_check() -> None:
    """What a change costs goes by what it changes: the checks of the others are not even looked up."""

    async def scenario() -> None:
        host = await started(config())
        extra = config(addresses=(51,)).services[0].servers[0].model_copy(update={"name": "server9"})
        changes: list[tuple[Callable[[], object], list[Key]]] = [
            (lambda: host.controller.add("video", extra), [("video", "server9")]),
            (lambda: host.controller.set_weight(*TWO, 7), []),
            (lambda: host.controller.remove(*ONE), [ONE]),
            (lambda: host.controller.reload(config(addresses=(31, 32, 43, 34))), [ONE, THREE, ("video", "server9")]),
        ]
        for change, told in changes:
            host.told.clear()
            change()
            await host.settle()
            assert host.told == told

    run(scenario)


def test_follow_lets_others_have_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 000 servers that come, ramp or go do not hold up the loop: other tasks run in between."""
    monkeypatch.setattr(pace, "SLICE_S", 0.0)

    async def scenario() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        host, others = Host(config(SLOW, tuple(range(31, 81)))), asyncio.create_task(count())
        host.checks.start()
        await host.settle()
        assert (len(host.targets), turns >= 50) == (50, True)
        turns = 0
        host.controller.reload(config(""))
        await host.settle()
        assert (len(host.targets), turns >= 50) == (0, True)
        others.cancel()
        await host.checks.stop()

    run(scenario)


def test_follow_that_raises_begins_anew() -> None:
    """A fault while checks are taken up leaves no server unchecked: it is noted, and all is looked at again."""

    async def scenario() -> None:
        host, watch = Host(config()), Host.watch

        def fail(key: Key, target: Target) -> None:
            host.watch = functools.partial(watch, host)  # type: ignore[method-assign]
            raise KeyError("a fault")

        host.watch = fail  # type: ignore[method-assign]
        host.checks.start()
        await host.settle()
        assert len(host.targets) == 4
        assert host.supervisor.states()["checked servers"].failures == 1

    run(scenario)


def test_server_that_is_gone_leaves_nothing_behind() -> None:
    """Servers come and go for ever: what is counted and known of them goes with them."""

    async def scenario() -> None:
        host = await started(config(SLOW))
        host.fail(ONE, 1)
        host.checks.on_result(ONE, None)
        host.controller.reload(config("", (31,)))
        await host.settle()
        checks = host.checks
        kept = (checks.results, checks.changes, checks._targets, checks._health, checks._last_failure, checks._ramping)
        assert [len(each) for each in kept] == [0] * 6
        await checks.stop()

    run(scenario)
