"""Controller: every change goes through one place, is published once, and is noted with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from lb.compiler.spec import HealthStatus, ServerKey, Spec
from lb.config import Config, ServerConfig, parse
from lb.control.controller import Controller
from lb.control.outcome import Change, HealthUpdate
from lb.errors import ConfigError, LbError, RefusedError, UnknownNameError
from lb.model.snapshot import Interface, Server, Service, Snapshot

INTERFACES = (Interface("eth0", bytes.fromhex("aaaaaa000001"), 1500),)


def config(*servers: str, vip: str = "198.18.1.100", port: int = 9876) -> Config:
    top = f'[[interface]]\nname = "eth0"\n[[service]]\nname = "video"\naddress = "{vip}"\nport = {port}'
    return parse("\n".join([top, *servers]))


def server(number: int, more: str = "", octet: int | None = None) -> str:
    address = f"198.18.1.{30 + (octet or number)}"
    return f'[[service.server]]\nname = "server{number}"\naddress = "{address}"\nport = 8031\n{more}'


def extra(number: int, **more: object) -> ServerConfig:
    return ServerConfig.model_validate(
        {"name": f"server{number}", "address": f"198.18.1.{30 + number}", "port": 8031, **more}
    )


DNS_BESIDE = """\
[[interface]]
name = "eth0"
[[service]]
name = "dns"
address = "198.18.1.101"
{more}
[[service.server]]
name = "server1"
address = "198.18.1.50"
port = 53
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
[[service.server]]
name = "server1"
address = "198.18.1.31"
port = 8031
"""


class Recorder:
    """Records what the controller publishes; fails when `failure` is set."""

    def __init__(self) -> None:
        self.published: list[Snapshot] = []
        self.failure: LbError | None = None
        self.reset: list[int] = []

    def publish(self, snapshot: Snapshot) -> None:
        if self.failure is not None:
            raise self.failure
        self.published.append(snapshot)

    def reset_flows(self, server: int) -> None:
        self.reset.append(server)


def start_controller(loaded: Config) -> tuple[Controller, Recorder]:
    recorder = Recorder()
    controller = Controller(loaded, INTERFACES, recorder, now=lambda: 1000.0)
    controller.start()
    return controller, recorder


def service_of(snapshot: Snapshot, number: int = 0) -> Service:
    found = snapshot.services[number]
    assert found is not None
    return found


def removed_names(controller: Controller) -> list[str]:
    """Return the names of the servers that left."""
    return [server.name for service in controller.services() for server in service.servers if server.is_removed]


def names(snapshot: Snapshot, number: int = 0) -> list[str]:
    """Return the names in the slots of a service's plan."""
    servers = [snapshot.servers[slot] for slot in service_of(snapshot, number).plan.slots]
    return [found.name for found in servers if found is not None]


def present(snapshot: Snapshot) -> list[Server]:
    return [found for found in snapshot.servers if found is not None]


def named(controller: Controller, name: str) -> int:
    """Return the id of a server in the published snapshot."""
    return [found and found.name for found in controller.snapshot.servers].index(name)


def test_start_publishes_what_the_file_says() -> None:
    """The first snapshot is generation 1, with every server in the plan."""
    controller, recorder = start_controller(config(server(1), server(2, "weight = 2")))
    assert [snapshot.generation for snapshot in recorder.published] == [1]
    assert sorted(names(controller.snapshot)) == ["server1", "server2", "server2"]


@pytest.mark.parametrize("state", ["draining", "disabled"])
def test_set_state_server_keeps_its_id_and_leaves_the_plan(state: str) -> None:
    """
    Rule 18.2, servers that leave or fail: a drained server is in no slot, and still in the snapshot for its flows.
    """
    controller, recorder = start_controller(config(server(1), server(2)))
    controller.set_state("video", "server2", state)  # type: ignore[arg-type]
    assert names(controller.snapshot) == ["server1"]
    assert [found.name for found in present(controller.snapshot)] == ["server1", "server2"]
    assert [snapshot.generation for snapshot in recorder.published] == [1, 2]
    assert [(event.what, event.change, event.reason) for event in controller.history] == [
        ("video/server2", state, "by operator")
    ]
    controller.set_state("video", "server2", "active")
    assert sorted(names(controller.snapshot)) == ["server1", "server2"]
    assert controller.spec.overrides == {}


def test_set_state_same_again_publishes_nothing() -> None:
    """A command that changes nothing makes no new generation."""
    controller, recorder = start_controller(config(server(1), server(2)))
    controller.set_state("video", "server1", "active")
    controller.set_weight("video", "server1", 1)
    assert len(recorder.published) == 1


def test_set_state_enable_overrides_the_file() -> None:
    """A server that the file has drained can be enabled."""
    controller, _ = start_controller(config(server(1), server(2, 'state = "draining"')))
    controller.set_state("video", "server2", "active")
    assert sorted(names(controller.snapshot)) == ["server1", "server2"]


def test_health_and_operator_state_are_two_fields() -> None:
    """A drained server that goes down and comes back is drained still."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.set_state("video", "server2", "draining")
    controller.set_health("video", "server2", up=False, reason="3 checks failed")
    controller.set_health("video", "server2", up=True, reason="2 checks passed")
    assert names(controller.snapshot) == ["server1"]
    found = controller.services()[0].servers[1]
    assert (found.state, found.health) == ("draining", "up")


def test_set_health_down_leaves_the_plan_with_a_reason() -> None:
    """A server that is down takes no new flow; the same verdict again changes nothing."""
    controller, recorder = start_controller(config(server(1), server(2)))
    controller.set_health("video", "server1", up=False, reason="3 checks failed")
    assert names(controller.snapshot) == ["server2"]
    controller.set_health("video", "server1", up=False, reason="4 checks failed")
    assert len(recorder.published) == 2
    assert controller.spec.health[ServerKey("video", "server1")].reason == "4 checks failed"
    assert [(event.change, event.reason) for event in controller.history] == [("down", "3 checks failed")]


@pytest.mark.parametrize(
    ("setting", "reset"), [("", [1]), ('on_server_down = "keep"', []), ('on_server_down = "reset"', [1])]
)
def test_set_health_down_resets_flows_when_the_service_says_so(setting: str, reset: list[int]) -> None:
    """
    Rule 18.2, servers that leave or fail: by default the clients of a server that is down learn at once; once, not at
    each failed check.
    """
    controller, recorder = start_controller(config(setting, server(1), server(2)))
    controller.set_health("video", "server2", up=False, reason="3 checks failed")
    controller.set_health("video", "server2", up=False, reason="4 checks failed")
    controller.set_health("video", "server2", up=True, reason="2 checks passed")
    assert recorder.reset == reset


@pytest.mark.parametrize(("setting", "reset"), [("", [1]), ('on_server_down = "keep"', [])])
def test_reset_down_finishes_what_the_process_before_began(setting: str, reset: list[int]) -> None:
    """Rule 18.2, servers that leave or fail: it may have ended before all clients of a server had learned."""
    loaded = config(setting, server(1), server(2))
    controller, recorder = start_controller(loaded)
    health = {ServerKey("video", "server2"): HealthStatus("down", 1.0, "3 checks failed")}
    controller.restore(replace(Spec(loaded), health=health))
    assert recorder.reset == []
    published = len(recorder.published)
    controller.reset_down()
    assert recorder.reset == reset
    assert len(recorder.published) == published


def test_remove_and_disable_with_reset() -> None:
    """Rule 18.2, servers that leave or fail: an operator may cut the flows; without that they go on."""
    controller, recorder = start_controller(config(server(1), server(2), server(3)))
    controller.set_state("video", "server1", "disabled")
    controller.remove("video", "server3")
    assert recorder.reset == []
    controller.set_state("video", "server1", "disabled", reset=True)
    controller.remove("video", "server2", reset=True)
    assert recorder.reset == [0, 1]


def test_all_servers_out_plan_is_empty() -> None:
    """Rule 8.18, refusals: with every server down or disabled the plan has no slot: clients are refused."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.set_health("video", "server1", up=False, reason="")
    controller.set_state("video", "server2", "disabled")
    assert names(controller.snapshot) == []


def test_set_ramp_scales_the_weights_of_the_service() -> None:
    """Slow start: half the weight is half the share; the whole weight is as before."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.set_ramp("video", "server2", 0.5)
    assert sorted(names(controller.snapshot)) == ["server1", "server1", "server2"]
    assert [found.weight for found in present(controller.snapshot)] == [100, 50]
    controller.set_ramp("video", "server2", 0.001)
    assert names(controller.snapshot).count("server2") == 1
    controller.set_ramp("video", "server2", 1.0)
    assert [found.weight for found in present(controller.snapshot)] == [1, 1]
    with pytest.raises(ValueError, match=r"part: 0 is not in \(0, 1\]"):
        controller.set_ramp("video", "server2", 0)


def test_set_weight_zero_takes_no_flow() -> None:
    """Weight 0 means no new flows."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.set_weight("video", "server1", 0)
    assert names(controller.snapshot) == ["server2"]
    assert [event.change for event in controller.history] == ["weight 1 -> 0"]


def test_add_then_remove_server_leaves_until_forgotten() -> None:
    """A removed server stays for its flows, and is gone once it has none."""
    controller, _ = start_controller(config(server(1)))
    controller.add("video", extra(4, weight=2))
    assert sorted(names(controller.snapshot)) == ["server1", "server4", "server4"]
    controller.remove("video", "server4")
    assert names(controller.snapshot) == ["server1"]
    assert [found.name for found in present(controller.snapshot)] == ["server1", "server4"]
    ((identity, number),) = controller.removed_servers().items()
    assert present(controller.snapshot)[number].name == "server4"
    controller.forget([identity])
    assert [found.name for found in present(controller.snapshot)] == ["server1"]
    assert controller.removed_servers() == {}


def test_add_back_while_leaving_keeps_the_id() -> None:
    """Rule 18.2, servers that leave or fail: a server that returns while its flows go on is the same one."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.remove("video", "server2")
    controller.add("video", extra(2))
    assert [found.name for found in present(controller.snapshot)] == ["server1", "server2"]
    assert controller.removed_servers() == {}
    assert controller.spec.added == {"video": ()} or not any(controller.spec.added.values())


def test_leaving_server_whose_name_is_taken_is_told_apart() -> None:
    """Two servers never share a name: the one that leaves gets its address behind it."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.remove("video", "server2")
    controller.add("video", ServerConfig.model_validate({"name": "server2", "address": "198.18.1.39", "port": 8031}))
    assert [found.name for found in present(controller.snapshot)] == ["server1", "server2@198.18.1.32:8031", "server2"]
    assert sorted(names(controller.snapshot)) == ["server1", "server2"]


def test_leaving_servers_of_one_name_are_told_apart() -> None:
    """Counters, metrics and status are by name: of two that left under one, the later has its address behind it."""
    controller, _ = start_controller(config(server(1)))
    for octet in (32, 39, 40):
        controller.add("video", extra(2, address=f"198.18.1.{octet}"))
        controller.remove("video", "server2")
    assert removed_names(controller) == ["server2", "server2@198.18.1.39:8031", "server2@198.18.1.40:8031"]


def test_leaving_services_of_one_name_are_told_apart() -> None:
    """The same for services: by address and port, and where these are one by protocol."""
    controller, _ = start_controller(config(server(1)))
    for more in ("port = 80", "port = 81", 'port = 81\nprotocol = "udp"'):
        controller.reload(parse(DNS_BESIDE.format(more=more)))
    controller.reload(config(server(1)))
    assert [service.name for service in controller.services()] == [
        "video", "dns", "dns@198.18.1.101:81", "dns@198.18.1.101:81/udp"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "octet", "message"),
    [
        (1, 49, "video/server1 already exists"),
        (7, 31, "198.18.1.31 port 8031 is video/server1 already"),
    ],
)
def test_add_what_is_taken_refused(number: int, octet: int, message: str) -> None:
    """A name or a socket that another server has."""
    controller, recorder = start_controller(config(server(1)))
    with pytest.raises(RefusedError, match=message):
        controller.add("video", extra(number, address=f"198.18.1.{octet}"))
    assert len(recorder.published) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.set_state("vidoe", "server1", "draining"), "there is no service vidoe; did you mean video?"),
        (lambda s: s.set_weight("video", "sever2", 3), "there is no server video/sever2; did you mean video/server2"),
        (lambda s: s.remove("video", "x"), "there is no server video/x; there are: video/server1, video/server2"),
        (lambda s: s.set_health("dns", "x", up=True, reason=""), "there is no service dns; there is: video"),
        (lambda s: s.replan("q", {}), "there is no service q; there is: video"),
    ],
)  # fmt: skip
def test_unknown_name_says_which_are_near(call: Callable[[Controller], None], message: str) -> None:
    """A name that is not there: the nearest ones, and nothing has changed."""
    controller, recorder = start_controller(config(server(1), server(2)))
    with pytest.raises(UnknownNameError) as caught:
        call(controller)
    assert str(caught.value).startswith(message)
    assert len(recorder.published) == 1


def test_reload_keeps_the_operators_state_and_weight() -> None:
    """
    Rule 18.1, reloads and changes: a reload changes what the file changes; drained stays drained, a weight set stays
    set.
    """
    controller, _ = start_controller(config(server(1), server(2), server(3)))
    controller.set_state("video", "server2", "draining")
    controller.set_weight("video", "server3", 4)
    controller.reload(config(server(1), server(2), server(3), server(4)))
    now = {found.name: (found.weight, found.state) for found in controller.services()[0].servers}
    assert now == {
        "server1": (1, "active"), "server2": (1, "draining"), "server3": (4, "active"), "server4": (1, "active")
    }  # fmt: skip


def test_reload_file_that_changes_the_value_is_heard() -> None:
    """The latest change wins: a weight that the file itself changes replaces the operator's."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.set_weight("video", "server1", 4)
    controller.set_state("video", "server1", "draining")
    controller.reload(config(server(1, "weight = 7"), server(2)))
    found = controller.services()[0].servers[0]
    assert (found.weight, found.state) == (7, "draining")


def test_reload_makes_the_list_of_servers_that_of_the_file() -> None:
    """A server added at run time leaves, one removed at run time returns; ids stay."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.add("video", extra(4))
    controller.remove("video", "server2")
    ids = {found.name: number for number, found in enumerate(controller.snapshot.servers) if found is not None}
    controller.reload(config(server(1), server(2)))
    assert sorted(names(controller.snapshot)) == ["server1", "server2"]
    assert removed_names(controller) == ["server4"]
    assert ids == {found.name: number for number, found in enumerate(controller.snapshot.servers) if found is not None}


def test_reload_keeps_health_while_the_address_stays() -> None:
    """What the checks know is about an address: another one starts without a record."""
    controller, _ = start_controller(config(server(1), server(2)))
    for name in ("server1", "server2"):
        controller.set_health("video", name, up=False, reason="3 checks failed")
    controller.reload(config(server(1), server(2, octet=9)))
    now = {found.name: found.health for found in controller.services()[0].servers if not found.is_removed}
    assert now == {"server1": "down", "server2": "up"}


def test_reload_without_a_service_its_flows_go_on() -> None:
    """
    Rule 18.2, servers that leave or fail: a service that is gone stays, with an empty plan, for the flows of its
    servers.
    """
    controller, _ = start_controller(config(server(1)))
    controller.reload(config(server(1), port=80))
    assert [(service.name, service.is_removed) for service in controller.services()] == [
        ("video", False), ("video@198.18.1.100:9876", True)
    ]  # fmt: skip
    assert service_of(controller.snapshot).plan.slots == ()
    assert service_of(controller.snapshot, 1).plan.slots == (1,)
    controller.forget(controller.removed_servers())
    assert controller.snapshot.services[0] is None


def test_reload_address_in_two_roles_ends_the_old_flows() -> None:
    """A removed server whose address is a VIP now cannot be kept: the file wins."""
    controller, _ = start_controller(config(server(1), server(2)))
    controller.reload(config(server(1), vip="198.18.1.32"))
    assert removed_names(controller) == ["server1"]


def test_change_that_cannot_be_published_changes_nothing() -> None:
    """Rule 18.1, reloads and changes: what failed has not happened."""
    controller, recorder = start_controller(config(server(1), server(2)))
    recorder.failure = LbError("no")
    before = controller.spec
    for call in (
        lambda: controller.set_state("video", "server1", "draining"),
        lambda: controller.reload(config(server(1))),
    ):
        with pytest.raises(LbError):
            call()
    assert controller.spec is before
    assert (controller.generation, list(controller.history)) == (1, [])


def test_set_interfaces_conflict_refused_and_forgotten() -> None:
    """An interface that got a server's address: the old snapshot stays, and the next change is made as before."""
    controller, recorder = start_controller(config(server(1), server(2)))
    with pytest.raises(ConfigError, match="the host itself would answer"):
        controller.set_interfaces([Interface("eth0", bytes(6), 1500, (ip_interface("198.18.1.31/24"),))])
    controller.set_state("video", "server1", "draining")
    assert recorder.published[-1].interfaces == INTERFACES


def test_replan_same_plan_publishes_nothing() -> None:
    """A timer that finds nothing new makes no generation."""
    controller, recorder = start_controller(config(server(1), server(2)))
    assert controller.replan("video", {"server1": {"connect_s": 0.1}}) is False
    assert len(recorder.published) == 1


def test_listen_called_after_each_change() -> None:
    """Who hooks in learns of every change, and sees the new state."""
    controller, _ = start_controller(config(server(1), server(2)))
    seen: list[int] = []
    controller.listen(lambda: seen.append(controller.generation))
    controller.set_state("video", "server1", "draining")
    controller.set_health("video", "server2", up=False, reason="x")
    assert seen == [2, 3]


def test_apply_many_changes_one_publication_each_with_its_own_event() -> None:
    """Changes that wait together become one generation; each is in the history under its own name."""
    controller, recorder = start_controller(config(server(1), server(2), server(3)))
    heard: list[int] = []
    controller.listen(lambda: heard.append(controller.generation))
    outcomes = controller.apply(
        [
            lambda: controller.set_health("video", "server1", up=False, reason="3 checks failed"),
            lambda: controller.set_ramp("video", "server2", 0.5),
            lambda: controller.set_state("video", "server3", "draining"),
            lambda: controller.set_weight("video", "server2", 1),
        ]
    )
    assert [snapshot.generation for snapshot in recorder.published] == [1, 2]
    assert [(outcome.generation, outcome.changed) for outcome in outcomes] == [
        (2, True), (2, True), (2, True), (2, False)
    ]  # fmt: skip
    assert [(event.generation, event.what, event.change) for event in controller.history] == [
        (2, "video/server1", "down"), (2, "video/server3", "draining")
    ]  # fmt: skip
    assert (recorder.reset, heard) == ([0], [2])


def test_apply_change_that_raises_has_not_happened_and_the_others_have() -> None:
    """A wrong name fails alone, before anything is published."""
    controller, recorder = start_controller(config(server(1), server(2)))
    outcomes = controller.apply(
        [lambda: controller.set_weight("video", "nope", 3), lambda: controller.set_weight("video", "server1", 3)]
    )
    assert isinstance(outcomes[0].error, UnknownNameError)
    assert (outcomes[0].changed, outcomes[1].changed, len(recorder.published)) == (False, True, 2)
    assert controller.services()[0].servers[0].weight == 3


def test_apply_publication_that_fails_because_of_one_change_fails_that_one_alone() -> None:
    """Rule 18.1, reloads and changes: of changes made together, one that cannot be compiled takes none with it."""
    own = Interface("eth0", bytes(6), 1500, (ip_interface("198.18.1.34/32"),))
    controller, recorder = start_controller(config(server(1), server(2)))
    controller.set_interfaces([own])
    outcomes = controller.apply(
        [
            lambda: controller.set_state("video", "server1", "draining"),
            lambda: controller.add("video", extra(4)),
            lambda: controller.set_health("video", "server2", up=False, reason="3 checks failed"),
        ]
    )
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ConfigError, type(None)]
    assert names(controller.snapshot) == []
    assert [found.name for found in present(recorder.published[-1])] == ["server1", "server2"]
    assert recorder.reset == [1]


def test_apply_publication_that_always_fails_changes_nothing() -> None:
    """Each change learns that it has not happened; state, history and resets are as before."""
    controller, recorder = start_controller(config(server(1), server(2)))
    recorder.failure = LbError("no nft")
    outcomes = controller.apply(
        [
            lambda: controller.set_health("video", "server1", up=False, reason="3 checks failed"),
            lambda: controller.set_weight("video", "server2", 4),
        ]
    )
    assert [str(outcome.error) for outcome in outcomes] == ["no nft", "no nft"]
    assert (controller.generation, list(controller.history), recorder.reset) == (1, [], [])
    assert controller.spec.health == controller.spec.overrides == {}


def test_update_conditions_of_many_servers_is_one_publication() -> None:
    """Verdicts and ramps of any number of servers; unknown servers are returned, the others are updated."""
    controller, recorder = start_controller(config(server(1), server(2), server(3)))
    gone = controller.update_health(
        {
            ServerKey("video", "server1"): HealthUpdate("down", reason="3 checks failed"),
            ServerKey("video", "server2"): HealthUpdate(ramp=0.05),
            ServerKey("video", "server9"): HealthUpdate("down", reason="3 checks failed"),
        }
    )
    assert gone == [ServerKey("video", "server9")]
    assert len(recorder.published) == 2
    assert [(event.what, event.change, event.reason) for event in controller.history] == [
        ("video/server1", "down", "3 checks failed")
    ]
    assert names(controller.snapshot).count("server3") == 20


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("198.18.1.255", "198.18.1.255 is the broadcast address of 198.18.1.0/24"),
        ("198.18.1.0", "198.18.1.0 is the network address of 198.18.1.0/24"),
        ("198.18.1.100", "198.18.1.100 is the VIP of service video"),
    ],
)
def test_add_address_no_host_can_have_refused(address: str, message: str) -> None:
    """As for a server of the file: what the interfaces' prefixes tell is known at run time too."""
    controller, recorder = start_controller(config(server(1)))
    controller.set_interfaces([Interface("eth0", bytes(6), 1500, (ip_interface("198.18.1.1/24"),))])
    with pytest.raises(RefusedError, match=message):
        controller.add("video", extra(7, address=address))
    assert len(recorder.published) == 2


class Clock:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 10**9)


def started(loaded: Config) -> tuple[Controller, Recorder, Clock]:
    recorder, clock = Recorder(), Clock()
    controller = Controller(loaded, INTERFACES, recorder, now=lambda: 1000.0, monotonic_ns=clock)
    controller.start()
    return controller, recorder, clock


def moving(controller: Controller) -> list[str]:
    """Return the names of the servers that UDP flows leave."""
    return [found.name for found in present(controller.snapshot) if found.moves_udp]


UDP = 'protocol = "udp"'


def test_drain_udp_flows_move_at_the_deadline() -> None:
    """Rule 18.2, servers that leave or fail: 60 s by default, not before; published once, and noted."""
    controller, recorder, clock = started(config(UDP, server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    for seconds in (0, 59.9):
        clock.advance(seconds)
        controller.end_drains()
    assert moving(controller) == []
    published = len(recorder.published)
    clock.advance(0.1)
    controller.end_drains()
    controller.end_drains()
    assert moving(controller) == ["server1"]
    assert len(recorder.published) == published + 1
    assert (controller.history[-1].what, controller.history[-1].change) == ("video/server1", "drain timed out")
    controller.set_state("video", "server1", "active")
    assert moving(controller) == []
    controller.set_state("video", "server1", "disabled")
    clock.advance(59.9)
    controller.end_drains()
    assert moving(controller) == [], "its time starts anew"
    clock.advance(0.1)
    controller.end_drains()
    assert moving(controller) == ["server1"]


def test_drain_deadline_survives_a_reload() -> None:
    """
    Rule 18.2, servers that leave or fail: neither the time that ran nor the end of it is forgotten; the new file's
    timeout holds.
    """
    controller, _, clock = started(config(UDP, server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    clock.advance(8)
    controller.reload(config(UDP, 'drain_timeout = "10s"', server(1, "weight = 2"), server(2), server(3)))
    clock.advance(1.9)
    controller.end_drains()
    assert moving(controller) == []
    clock.advance(0.1)
    controller.end_drains()
    assert moving(controller) == ["server1"]
    controller.reload(config(UDP, 'drain_timeout = "10s"', server(1), server(2), server(3)))
    assert moving(controller) == ["server1"]


def test_drain_of_the_file_counts_from_the_start() -> None:
    """A server that the file lists as draining has the same time."""
    controller, _, clock = started(config(UDP, server(1, 'state = "draining"'), server(2)))
    clock.advance(60)
    controller.end_drains()
    assert moving(controller) == ["server1"]


def test_remove_udp_flows_move_at_once() -> None:
    """
    Rule 18.2, servers that leave or fail: by the operator or by a reload; a whole service that goes has its drain
    timeout.
    """
    controller, _, clock = started(config(UDP, server(1), server(2), server(3)))
    controller.remove("video", "server1")
    assert moving(controller) == ["server1"]
    controller.reload(config(UDP, server(2)))
    assert moving(controller) == ["server1", "server3"]
    controller.reload(config(UDP, server(2), port=9877))
    assert moving(controller) == []
    clock.advance(60)
    controller.end_drains()
    assert sorted(moving(controller)) == ["server1", "server2", "server3"]


def test_drain_tcp_flows_go_on_unless_there_is_a_deadline() -> None:
    """Rule 18.2, servers that leave or fail: TCP flows end by themselves; with `drain_timeout` they are reset, once."""
    controller, recorder, clock = started(config(server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    controller.remove("video", "server2")
    clock.advance(10**6)
    controller.end_drains()
    assert (recorder.reset, moving(controller)) == ([], [])
    controller, recorder, clock = started(config('drain_timeout = "5s"', server(1), server(2), server(3)))
    controller.set_state("video", "server1", "draining")
    controller.remove("video", "server2")
    clock.advance(5)
    controller.end_drains()
    controller.end_drains()
    assert (recorder.reset, moving(controller)) == ([0, 1], [])


def drain_again(controller: Controller, name: str = "server1") -> list[Change]:
    """Return two changes after which a draining server is draining anew."""
    return [
        lambda: controller.set_state("video", name, "active"),
        lambda: controller.set_state("video", name, "draining"),
    ]


def make_all(controller: Controller, *changes: Change) -> list[object]:
    """Make changes with one publication, all of which must succeed."""
    published = controller.publications
    values = [outcome.result() for outcome in controller.apply(changes)]
    assert controller.publications <= published + 1
    return values


def test_apply_enable_and_drain_together_begin_the_drain_anew() -> None:
    """
    Rule 18.2, servers that leave or fail: what comes together means what it means alone: the time starts with the last
    drain.
    """
    controller, _, clock = started(config(UDP, server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    clock.advance(50)
    make_all(controller, *drain_again(controller))
    clock.advance(59.9)
    controller.end_drains()
    assert moving(controller) == []
    clock.advance(0.1)
    controller.end_drains()
    assert moving(controller) == ["server1"]


def test_apply_enable_and_drain_together_after_the_deadline_give_the_whole_time() -> None:
    """
    Rule 18.2, servers that leave or fail: flows of a server whose time was over stay again, until the new drain's time
    is over.
    """
    controller, _, clock = started(config(UDP, server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    clock.advance(60)
    controller.end_drains()
    assert moving(controller) == ["server1"]
    make_all(controller, *drain_again(controller))
    assert moving(controller) == []
    clock.advance(60)
    controller.end_drains()
    assert moving(controller) == ["server1"]


def test_apply_enable_drain_and_sweep_together_do_not_end_the_new_drain() -> None:
    """Rule 18.2, servers that leave or fail: the sweep of the same batch sees the new drain, not the one before."""
    controller, recorder, clock = started(config('drain_timeout = "5s"', server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    clock.advance(5)
    make_all(controller, *drain_again(controller), controller.end_drains)
    assert recorder.reset == []
    clock.advance(5)
    controller.end_drains()
    assert recorder.reset == [0]


def test_apply_add_back_and_remove_together_begin_the_drain_anew() -> None:
    """Rule 18.2, servers that leave or fail: a server that left, came back and left again has its whole time."""
    controller, recorder, clock = started(config('drain_timeout = "5s"', server(1), server(2)))
    controller.remove("video", "server1")
    clock.advance(4)
    make_all(controller, lambda: controller.add("video", extra(1)), lambda: controller.remove("video", "server1"))
    clock.advance(4)
    controller.end_drains()
    assert recorder.reset == []
    clock.advance(1)
    controller.end_drains()
    assert recorder.reset == [0]


def test_apply_enable_that_fails_leaves_the_drain_as_it_is() -> None:
    """What has not happened begins nothing anew: neither one change of several nor a publication."""
    controller, recorder, clock = started(config(UDP, server(1), server(2)))
    controller.set_state("video", "server1", "draining")
    clock.advance(30)

    def enable_and_fail() -> None:
        controller.set_state("video", "server1", "active")
        raise RefusedError("no")

    controller.apply([enable_and_fail, lambda: controller.set_weight("video", "server2", 3)])
    recorder.failure = LbError("no")
    controller.apply(drain_again(controller))
    recorder.failure = None
    clock.advance(30)
    controller.end_drains()
    assert moving(controller) == ["server1"]


@pytest.mark.parametrize("undone", [False, True])
def test_apply_drain_and_enable_together_leave_no_drain(undone: bool) -> None:
    """A drain that was taken back in the same batch, and one that was there before, do not count later."""
    controller, _, clock = started(config(UDP, server(1), server(2)))
    changes = drain_again(controller)
    if undone:
        changes[1]()
        clock.advance(59)
        make_all(controller, changes[0])
    else:
        make_all(controller, changes[1], changes[0])
    clock.advance(10)
    changes[1]()
    clock.advance(59)
    controller.end_drains()
    assert moving(controller) == []


def test_apply_preview_after_add_and_reset_resets_the_right_server() -> None:
    """A dry run between other changes takes and releases no id: a reset before it is of the same server."""
    controller, recorder = start_controller(config(server(1), server(2)))
    make_all(
        controller,
        lambda: controller.add("video", extra(7)),
        lambda: controller.add("video", extra(8)),
        lambda: controller.set_state("video", "server8", "disabled", reset=True),
        lambda: controller.preview(config(server(3), server(1), server(2), server(4))),
    )
    assert [recorder.reset] == [[named(controller, "server8")]]
    controller.set_state("video", "server7", "disabled", reset=True)
    assert recorder.reset[1:] == [named(controller, "server7")]


def test_apply_preview_sees_what_comes_before_it() -> None:
    """A dry run tells what the reload would do then: with the changes before it made, as if each came alone."""
    alone, _ = start_controller(config(server(1), server(2)))
    alone.add("video", extra(7))
    expected = alone.preview(config(server(1), server(3)))
    controller, _ = start_controller(config(server(1), server(2)))
    values = make_all(
        controller,
        lambda: controller.add("video", extra(7)),
        lambda: controller.preview(config(server(1), server(3))),
    )
    assert values[1] == expected
    assert any("server7" in line for line in expected.diff)


def test_apply_preview_alone_publishes_nothing() -> None:
    """A dry run is no change, whatever it comes with."""
    controller, recorder = start_controller(config(server(1)))
    before = controller.snapshot
    for _ in range(3):
        make_all(controller, lambda: controller.preview(config(server(1), server(2), vip="198.18.1.200")))
    assert (controller.snapshot, len(recorder.published)) == (before, 1)
    controller.reload(config(server(1), server(2), port=9877))
    assert [found and found.name for found in controller.snapshot.services] == ["video@198.18.1.100:9876", "video"]


def test_publication_that_fails_takes_no_ids() -> None:
    """What was never published leaves no hole in the tables of the next snapshot."""
    controller, recorder = start_controller(config(server(1)))
    recorder.failure = LbError("no")
    for number in range(2, 20):
        with pytest.raises(LbError):
            controller.add("video", extra(number))
        with pytest.raises(LbError):
            controller.reload(config(server(1), vip=f"198.18.1.{200 + number}"))
    recorder.failure = None
    controller.add("video", extra(30))
    assert [found and found.name for found in controller.snapshot.servers] == ["server1", "server30"]
    assert len(controller.snapshot.services) == 1
    assert present(controller.snapshot)[1].endpoint == 1


def test_apply_replan_of_a_service_that_a_reload_moved_is_no_fault() -> None:
    """A service that has another VIP in the same batch has no plan yet to compare with."""
    controller, _ = start_controller(config(server(1), server(2)))
    outcomes = controller.apply(
        [lambda: controller.reload(config(server(1), vip="198.18.1.101")), lambda: controller.replan_all({"video": {}})]
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
