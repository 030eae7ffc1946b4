"""The Python API of an offline balancer, on both backends."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

import lb
import lb.backends
import lb.config
from lb.backends.base import astuple

CLIENT_MAC, ROUTER_MAC, SERVER_MAC = "aa:aa:aa:00:00:21", "aa:aa:aa:00:00:01", "aa:aa:aa:00:00:31"
CONFIG = """\
[[interface]]
name = "eth0"
mac = "aa:aa:aa:00:00:01"
addresses = ["198.18.1.1/24"]

[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
policy = "round-robin"

  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031

  [[service.server]]
  name = "server2"
  address = "198.18.1.32"
  port = 8032
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "lb.toml").write_text(CONFIG)
    return tmp_path / "lb.toml"


@pytest.fixture
def balancer(config_file: Path, backend: str) -> lb.Balancer:
    made = lb.Balancer.from_file(config_file, backend=backend)
    made.add_neighbour("198.18.1.31", SERVER_MAC)
    made.add_neighbour(ip_address("198.18.1.32"), bytes.fromhex("aaaaaa000032"), interface="eth0")
    return made


def syn(port: int = 40000, flags: str = "S") -> bytes:
    packet = IP(src="198.18.1.21", dst="198.18.1.100") / TCP(sport=port, dport=9876, flags=flags)
    return bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / packet)


def test_process_new_flows_take_servers_in_turn(balancer: lb.Balancer) -> None:
    """A SYN to the VIP leaves to a server, the next flow to the next server, the same flow to the same."""
    first, second, again = balancer.process(syn(1)), balancer.process(syn(2)), balancer.process(syn(1))
    assert (first.verdict, first.reason, first.service, first.server) == ("forward", None, "video", "server1")
    assert (second.server, again.server) == ("server2", "server1")
    interface, frame = first.out[0]
    sent = Ether(frame)
    assert (interface, sent.dst, sent[IP].dst, sent[TCP].dport) == ("eth0", SERVER_MAC, "198.18.1.31", 8031)


def test_process_many_equals_process_one_by_one(config_file: Path, backend: str) -> None:
    """`process_many` is `process` in a loop, results and counters alike."""
    frames = [syn(port) for port in range(1, 20)] + [b"", syn(5, "A"), syn(7, "SF")]
    one, many = (lb.Balancer.from_file(config_file, backend=backend, seed=1) for _ in range(2))
    expected = [astuple(one.process(frame)) for frame in frames]
    assert [astuple(result) for result in many.process_many(frames)] == expected
    assert many.counters() == one.counters()


def test_add_neighbour_waiting_packet_leaves_at_tick(config_file: Path, backend: str) -> None:
    """Rule 11, next hop: a packet for an unknown neighbour waits, is asked for once, and leaves when it is known."""
    balancer = lb.Balancer.from_file(config_file, backend=backend)
    held = balancer.process(syn())
    assert (held.verdict, held.reason, held.out) == ("hold", "neighbour", [])
    assert balancer.take_unresolved() == [("eth0", ip_address("198.18.1.31"))]
    assert balancer.take_unresolved() == []
    balancer.add_neighbour("198.18.1.31", SERVER_MAC)
    assert [(name, Ether(frame).dst) for name, frame, _ in balancer.tick()] == [("eth0", SERVER_MAC)]


def test_clock_advance_half_open_flow_expires(balancer: lb.Balancer) -> None:
    """Rule 8.12, idle timeouts: time passes only when told, and 30 s end a flow that never answered."""
    balancer.process(syn())
    balancer.clock.advance(29.5)
    assert [flow.client_port for flow in balancer.flows()] == [40000]
    balancer.clock.advance(0.5)
    assert balancer.flows() == []


def test_reload_flow_keeps_its_server(balancer: lb.Balancer) -> None:
    """Rule 18.1, reloads and changes: after a reload that drains its server, a flow stays and new flows avoid it."""
    balancer.process(syn(1))
    balancer.reload(lb.config.parse(CONFIG.replace("port = 8031", 'port = 8031\nstate = "draining"')))
    assert balancer.process(syn(1)).server == "server1"
    assert {balancer.process(syn(port)).server for port in range(2, 6)} == {"server2"}
    assert balancer.snapshot.generation == 2


def test_reload_without_a_server_its_flows_go_on(balancer: lb.Balancer) -> None:
    """
    Rule 18.2, servers that leave or fail: a server that the new configuration does not list gets no new flow, and
    keeps those it has.
    """
    before = {port: balancer.process(syn(port)).server for port in range(1, 5)}
    without = lb.config.parse(CONFIG[: CONFIG.index("  [[service.server]]", CONFIG.index("server1"))])
    balancer.reload(without)
    assert {port: balancer.process(syn(port)).server for port in range(1, 5)} == before
    assert {balancer.process(syn(port)).server for port in range(5, 9)} == {"server1"}
    balancer.clock.advance(40.0)  # type: ignore[union-attr]
    balancer.tick()
    balancer.reload(without)
    assert [server.name for server in balancer.snapshot.servers if server is not None] == ["server1"]


def test_reload_servers_of_one_name_that_left_keep_their_flows(balancer: lb.Balancer) -> None:
    """
    Rule 18.2, servers that leave or fail: a server that has moved twice when its name goes leaves two of that name;
    each keeps its flows.
    """
    first = balancer.process(syn(1)).server
    moved = CONFIG.replace("1.31", "1.41").replace("1.32", "1.42")
    renamed = CONFIG.replace("1.31", "1.51").replace("1.32", "1.52").replace('"server', '"other')
    for text in (moved, renamed, renamed):
        balancer.reload(lb.config.parse(text))
    assert balancer.process(syn(1)).server == first


def test_reload_a_thousand_times_no_flow_moves(balancer: lb.Balancer) -> None:
    """
    Rule 18.1, reloads and changes: 1 000 reloads, each with other weights, between the packets of 50 flows lose and
    move none.
    """
    before = {port: balancer.process(syn(port)).server for port in range(1, 51)}
    assert set(before.values()) == {"server1", "server2"}
    configs = [lb.config.parse(CONFIG.replace("8031", f"8031\nweight = {weight}")) for weight in range(1, 5)]
    for number in range(1000):
        balancer.reload(configs[number % len(configs)])
        port = number % 50 + 1
        assert balancer.process(syn(port)).server == before[port]
    assert balancer.snapshot.generation == 1001
    assert len(balancer.flows()) == 50


@pytest.mark.parametrize("change", [("port = 9876", "port = 0"), ('mac = "aa:aa:aa:00:00:01"', "")])
def test_reload_bad_file_changes_nothing(balancer: lb.Balancer, config_file: Path, change: tuple[str, str]) -> None:
    """Rule 18.1, reloads and changes: an invalid configuration is refused and the one before stays."""
    config_file.write_text(CONFIG.replace(*change))
    with pytest.raises(lb.ConfigError):
        balancer.reload(config_file)
    assert balancer.snapshot.generation == 1
    assert balancer.process(syn()).server == "server1"


def test_reload_other_interfaces_refused(balancer: lb.Balancer) -> None:
    """Interfaces are taken at start: a reload cannot exchange them."""
    with pytest.raises(ValueError, match=r"interfaces cannot change while running \(eth0 to eth1\)"):
        balancer.reload(lb.config.parse(CONFIG.replace("eth0", "eth1")))


def test_bad_arguments_raise_with_reason(balancer: lb.Balancer, config_file: Path) -> None:
    """What the caller got wrong is said; packets are never the reason."""
    with pytest.raises(ValueError, match="interface: 'eth9' is not one of eth0"):
        balancer.process(syn(), interface="eth9")
    with pytest.raises(TypeError, match="frame: str is not bytes"):
        balancer.process("frame")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mac: 5 bytes, not 6"):
        balancer.add_neighbour("198.18.1.33", bytes(5))
    with pytest.raises(ValueError, match="is not a MAC address"):
        balancer.add_neighbour("198.18.1.33", "aa:bb")
    with pytest.raises(ValueError, match="has a zone"):
        balancer.add_neighbour("fe80::1%eth0", SERVER_MAC)
    with pytest.raises(ValueError, match="seed: -1 is not in"):
        lb.Balancer.from_file(config_file, seed=-1)
    with pytest.raises(lb.BackendError, match="no backend 'fast'"):
        lb.Balancer.from_file(config_file, backend="fast")
    with pytest.raises(lb.ConfigError, match="mac is not given"):
        lb.Balancer.from_config(lb.config.parse(CONFIG.replace('mac = "aa:aa:aa:00:00:01"', "")))


def test_process_empty_frame_is_a_verdict(balancer: lb.Balancer) -> None:
    """Nothing at all is a malformed frame, not an error."""
    result = balancer.process(b"")
    assert (result.verdict, result.reason) == ("drop", "frame_truncated")


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_manual_clock_never_runs_backwards(seconds: float) -> None:
    """Rule 1.1, monotonic time: time only passes."""
    clock = lb.ManualClock(5)
    with pytest.raises(ValueError, match="is not a time that can pass"):
        clock.advance(seconds)
    clock.advance_to(3)
    assert clock.now_ns() == 5
    clock.advance(1.5)
    assert clock.now_ns() == 1_500_000_005
    with pytest.raises(ValueError, match="more than a clock of 64 bits"):
        clock.advance(2e10)
    assert clock.now_ns() == 1_500_000_005


def test_system_clock_is_monotonic() -> None:
    """Two readings never decrease."""
    clock = lb.SystemClock()
    assert clock.now_ns() <= clock.now_ns()


def test_backend_that_needs_interfaces_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backend's capabilities leave out is said at once, with a choice that works."""
    python = lb.backends.load("python")
    module = ModuleType("lb.backends.rust")
    module.NAME = "rust"  # type: ignore[attr-defined]
    module.capabilities = lambda: replace(python.capabilities(), offline=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lb.backends.rust", module)
    with pytest.raises(lb.BackendError, match="'rust' takes packets from interfaces only: offline, choose another"):
        lb.Balancer.from_config(lb.config.parse(CONFIG), backend="rust")
