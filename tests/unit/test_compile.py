"""The compiler: a configuration becomes a snapshot; the same thing keeps its id."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from lb.compiler.compile import Compiler, connected_routes, describe_interface, offline_interfaces
from lb.config import Config, parse
from lb.errors import ConfigError
from lb.model.snapshot import Interface, Plan, Route, Timeouts

MAC = bytes.fromhex("aaaaaa000001")
INTERFACES = (Interface("eth0", MAC, 1500, (ip_interface("198.18.1.1/24"),)),)


def config(*services: str, top: str = "") -> Config:
    return parse(f'{top}\n[[interface]]\nname = "eth0"\n' + "\n".join(services))


def service(name: str, port: int, *servers: str, protocol: str = "tcp") -> str:
    rows = [f'[[service]]\nname = "{name}"\naddress = "198.18.1.100"\nport = {port}\nprotocol = "{protocol}"']
    return "\n".join([*rows, *servers])


def server(number: int, port: int = 80, more: str = "") -> str:
    return f'[[service.server]]\nname = "s{number}"\naddress = "198.18.1.{30 + number}"\nport = {port}\n{more}'


def test_compile_config_gives_snapshot() -> None:
    """Every setting arrives in the snapshot."""
    text = """
seed = 9
transit = "forward"
answer_echo = true
icmp_rate = 5
[flows]
udp = "200s"
idle_floor = "1s"
[cluster]
replies = "any"
"""
    loaded = config(
        service("a", 1, server(1, more="weight = 2"), server(2, more='mac = "aa:aa:aa:00:00:32"')), top=text
    )
    snapshot = Compiler().compile(loaded, INTERFACES)
    assert (snapshot.generation, snapshot.seed, snapshot.transit) == (1, 9, "forward")
    assert (snapshot.answer_echo, snapshot.icmp_rate, snapshot.interfaces) == (True, 5, INTERFACES)
    assert snapshot.any_replies
    assert snapshot.timeouts == Timeouts(*(seconds * 10**9 for seconds in (30, 7440, 120, 200, 1)))
    assert [entry and entry.plan for entry in snapshot.services] == [Plan("counter", (0, 1, 0))]
    assert [entry and entry.mac for entry in snapshot.servers] == [None, bytes.fromhex("aaaaaa000032")]


def test_compile_seed_argument_wins() -> None:
    """A seed given by the caller takes the place of the configuration's, also when it is 0."""
    assert Compiler().compile(config(service("a", 1), top="seed = 9"), INTERFACES, seed=0).seed == 0


def test_compile_reload_same_things_keep_their_ids() -> None:
    """Rule 18.1, reloads and changes: order and names may change; ids follow address, port and protocol."""
    compiler = Compiler()
    first = compiler.compile(config(service("a", 1, server(1), server(2)), service("b", 2, server(3))), INTERFACES)
    second = compiler.compile(config(service("bb", 2, server(3)), service("a", 1, server(2), server(1))), INTERFACES)
    assert [entry and entry.name for entry in first.services] == ["a", "b"]
    assert [entry and entry.name for entry in second.services] == ["a", "bb"]
    assert [entry and str(entry.address) for entry in second.servers] == [
        "198.18.1.31", "198.18.1.32", "198.18.1.33"
    ]  # fmt: skip
    assert second.services[0] is not None
    assert second.services[0].plan.slots == (1, 0)
    assert second.generation == 2


def test_compile_removed_id_is_none_and_never_given_to_another() -> None:
    """A removed service or server leaves a hole; a new one gets a new id, the same one its old id."""
    compiler = Compiler()
    compiler.compile(config(service("a", 1, server(1)), service("b", 2, server(2))), INTERFACES)
    without = compiler.compile(config(service("b", 2, server(2))), INTERFACES)
    assert (without.services[0], without.servers[0]) == (None, None)
    changed = compiler.compile(config(service("b", 2, server(2), server(4))), INTERFACES)
    assert [entry and entry.name for entry in changed.servers] == [None, "s2", "s4"]
    back = compiler.compile(config(service("a", 1, server(1))), INTERFACES)
    assert [entry and entry.name for entry in back.services] == ["a", None]
    assert [entry and entry.name for entry in back.servers] == ["s1", None, None]


def test_compile_shared_endpoint_one_id() -> None:
    """Two services may share a server's port: one endpoint; another protocol is another endpoint."""
    loaded = config(
        service("a", 1, server(1)), service("b", 2, server(1)), service("c", 1, server(1), protocol="udp")
    )  # fmt: skip
    assert [entry and entry.endpoint for entry in Compiler().compile(loaded, INTERFACES).servers] == [0, 0, 1]


@pytest.mark.parametrize("more", ["weight = 0", 'state = "draining"', 'state = "disabled"'])
def test_compile_server_without_new_flows_stays_for_its_old_ones(more: str) -> None:
    """Rule 18.2, servers that leave or fail: such a server is in the snapshot and in no slot."""
    snapshot = Compiler().compile(config(service("a", 1, server(1, more=more), server(2))), INTERFACES)
    assert snapshot.services[0] is not None
    assert snapshot.services[0].plan.slots == (1,)
    assert snapshot.servers[0] is not None


def test_compile_address_of_interface_refused() -> None:
    """What only the machine shows is checked too: a VIP that the host has itself."""
    interfaces = (Interface("eth0", MAC, 1500, (ip_interface("198.18.1.100/32"), ip_interface("198.18.1.31/24"))),)
    with pytest.raises(ConfigError) as caught:
        Compiler().compile(config(service("a", 1, server(1))), interfaces)
    assert caught.value.problems == [
        "VIP of service a: 198.18.1.100 is an address of eth0: the host itself would answer",
        "server a/s1: 198.18.1.31 is an address of eth0: the host itself would answer",
    ]


def test_offline_interfaces_without_mac_refused() -> None:
    """Offline there is no kernel to ask: the message names the keys."""
    with pytest.raises(ConfigError, match=r"interface eth0: mac is not given.*mac = .*addresses = .*mtu = "):
        offline_interfaces(config(service("a", 1)))


def test_offline_interfaces_from_config_round_trip() -> None:
    """What `lb status` prints about an interface is what a configuration takes."""
    text = '[[interface]]\nname = "eth0"\nmac = "aa:aa:aa:00:00:01"\naddresses = ["198.18.1.1/24"]\n' + service("a", 1)
    interfaces = offline_interfaces(parse(text))
    assert interfaces == INTERFACES
    assert connected_routes(interfaces) == (Route(ip_network("198.18.1.0/24"), 0),)
    described = describe_interface(interfaces[0])
    assert described == {
        "name": "eth0", "mac": "aa:aa:aa:00:00:01", "mtu": 1500, "addresses": ["198.18.1.1/24"], "announce": False
    }  # fmt: skip
