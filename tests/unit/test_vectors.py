"""
The vectors of tests/vectors on every backend: frame in, verdict and frames out, byte by byte.

Also what the vectors must cover: every rule that users may count on and that can be shown offline, every reason, every
event, every selector.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import json
import os
import time
from ipaddress import ip_address
from typing import Any

import pytest

from lb.backends.base import astuple
from lb.model.snapshot import SELECTORS
from lb.model.verdict import DROP_REASONS, EVENTS, HOLD_REASONS, REPLY_REASONS
from lb.packet.offload import Offload
from vectors.load import HERE, Scene, golden_hashes, vectors

VECTORS = vectors()
# What users may count on of packets and flows; rule 18, changes, to rule 22, the packet thread, are about the control
# side and are proven by its tests.
PACKET_RULES = (
    *("3", "3.4", "4", "5", "5.4", "5.8", "6", "7", "7.A", "10", "11", "11.1", "12.2", "12.4"),
    *("8", "8.1", "8.8", "8.10", "8.12", "8.13", "8.14", "8.15", "8.17", "8.18", "8.20", "8.23", "18.2", "21.1"),
)
# Shown by tests in this file that are no vectors: 1.1 and 20.1.


@pytest.fixture
def module(backend: str) -> Any:
    """Return the backend's module."""
    return importlib.import_module(f"lb.backends.{backend}")


def show(frame_hex: str) -> str:
    """Describe a frame for people: scapy's summary where scapy is, then the bytes."""
    if not frame_hex:
        return "(empty frame)"
    try:
        from scapy.layers.l2 import Ether
    except ImportError:
        return frame_hex
    return f"{Ether(bytes.fromhex(frame_hex)).summary()}\n      {frame_hex}"


def difference(expected: list[Any], actual: list[Any]) -> str:
    """Describe output frames that are not as expected."""
    lines = [f"expected {len(expected)} frames, got {len(actual)}"]
    for number in range(max(len(expected), len(actual))):
        one = expected[number] if number < len(expected) else None
        two = actual[number] if number < len(actual) else None
        if one == two:
            continue
        for label, out in (("expected", one), ("actual", two)):
            lines.append(
                f"  {number} {label}: " + ("none" if out is None else f"{out[0]} {out[2:] or ''} {show(out[1])}")
            )
        if one and two and one[1] != two[1]:
            first, second = bytes.fromhex(one[1]), bytes.fromhex(two[1])
            places = [i for i in range(min(len(first), len(second))) if first[i] != second[i]]
            lines.append(f"    lengths {len(first)} and {len(second)}, differing at {places[:40]}")
    return "\n".join(lines)


class Player:
    """Plays one vector on one backend."""

    def __init__(self, module: Any, setup: dict[str, Any], hash_key: bytes | None = None) -> None:
        self.scene = Scene(**setup)
        key = hash_key or bytes.fromhex(self.scene.setup["hash_key"])
        self.path = module.DataPath(self.scene.setup["capacity"], key, self.scene.setup["seed"])
        self.path.publish(self.scene.snapshot())
        self.path.set_next_hops(self.scene.next_hops())
        self.now_ms = 0

    def play(self, number: int, step: dict[str, Any]) -> None:
        """Carry out a step and compare."""
        self.now_ms = step.get("at_ms", self.now_ms)
        for kind in ("in", "tick", "publish", "next_hops", "reset", "unresolved", "counters", "flows"):
            if kind in step:
                getattr(self, f"play_{kind}")(f"step {number}", step)
                return
        raise AssertionError(f"step {number} is of no known kind: {sorted(step)}")

    def compare(self, where: str, expected: list[Any], made: list[tuple[str, bytes, Any]]) -> None:
        wanted = [[name, frame, *[list(offload) for offload in rest]] for name, frame, *rest in expected]
        actual = [
            [name, frame.hex(), *([list(offload)] if offload is not None else [])] for name, frame, offload in made
        ]
        assert wanted == actual, f"{where}: {difference(wanted, actual)}"

    def play_in(self, where: str, step: dict[str, Any]) -> None:
        offload = Offload(*step["offload"]) if "offload" in step else None
        interface = self.scene.interfaces.index(step["interface"])
        result = self.path.process(bytes.fromhex(step["in"]), interface, self.now_ms * 10**6, offload)
        named = ("verdict", "reason", "direction", "service", "server")
        expected = {name: step.get(name) for name in named}
        actual = {name: getattr(result, name) for name in named}
        assert expected == actual, f"{where}: {show(step['in'])}"
        made = [(name, frame, offload) for (name, frame), offload in zip(result.out, result.offloads, strict=True)]
        self.compare(where, step.get("out", []), made)

    def play_tick(self, where: str, step: dict[str, Any]) -> None:
        self.compare(where, step.get("out", []), self.path.tick(self.now_ms * 10**6))

    def play_publish(self, _where: str, step: dict[str, Any]) -> None:
        self.scene.change(**step["publish"])
        self.path.publish(self.scene.snapshot())

    def play_next_hops(self, _where: str, step: dict[str, Any]) -> None:
        self.scene.change(**step["next_hops"])
        self.path.set_next_hops(self.scene.next_hops())

    def play_reset(self, where: str, step: dict[str, Any]) -> None:
        name, limit = step["reset"]
        server = None if name is None else self.scene.servers.index(name)
        removed = self.path.reset_flows(server, limit, self.now_ms * 10**6)
        assert step["removed"] == removed, where

    def play_unresolved(self, where: str, step: dict[str, Any]) -> None:
        expected = sorted(
            (self.scene.interfaces.index(name), ip_address(address)) for name, address in step["unresolved"]
        )
        assert expected == sorted(self.path.take_unresolved()), where

    def play_counters(self, where: str, step: dict[str, Any]) -> None:
        counters = self.path.counters()
        for group, expected in step["counters"].items():
            if isinstance(expected, int):
                assert expected == counters[group], f"{where}: {group}"
                continue
            for name, value in expected.items():
                actual = counters[group].get(name, 0)
                if isinstance(value, dict):
                    actual = {key: actual[key] for key in value}
                assert value == actual, f"{where}: {group}.{name} in {counters}"

    def play_flows(self, where: str, step: dict[str, Any]) -> None:
        rows = [row._asdict() for row in self.path.flows(self.now_ms * 10**6)]
        wanted = sorted(step["flows"], key=lambda row: (int(ip_address(row["client"])), row["client_port"]))
        assert len(wanted) == len(rows), f"{where}: {rows}"
        for expected, actual in zip(wanted, rows, strict=True):
            assert expected == {key: actual[key] for key in expected}, where

    def play_balance(self) -> None:
        """Check that each frame has one verdict: rule 1, inputs and outcome, for every vector."""
        counters = self.path.counters()
        final = sum(count for name, count in counters["verdicts"].items() if not name.startswith("hold."))
        held = sum(count for name, count in counters["verdicts"].items() if name.startswith("hold."))
        assert final <= counters["rx_packets"] <= final + held


@pytest.mark.parametrize("vector", VECTORS, ids=[f"{one['topic']}: {one['name']}" for one in VECTORS])
def test_vector(module: Any, vector: dict[str, Any]) -> None:
    """Frames in give the stated verdicts and frames out (the vector names the rules it proves)."""
    player = Player(module, vector["setup"])
    for number, step in enumerate(vector["steps"]):
        player.play(number, step)
    player.play_balance()


def test_vectors_all_packet_rules_are_covered() -> None:
    """Every rule that can be shown offline has a vector."""
    assert set(PACKET_RULES) - {rule for vector in VECTORS for rule in vector["rules"]} == set()


def test_vectors_all_reasons_are_covered() -> None:
    """Every drop, reply and hold reason is the outcome of a vector, or counted by one (where only time gives it)."""
    seen: set[str] = set()
    for vector in VECTORS:
        for step in vector["steps"]:
            if "verdict" in step:
                seen.add(f"{step['verdict']}.{step.get('reason')}")
            seen.update(step.get("counters", {}).get("verdicts", {}))
    wanted = {
        # There is overload only while packets come from sockets: rust/core/tests/pipeline.rs.
        *(f"drop.{name}" for name in DROP_REASONS if name != "overload"),
        *(f"reply.{name}" for name in REPLY_REASONS),
        # For an answer packets wait only while they come from sockets: tests/unit/test_asking.py.
        *(f"hold.{name}" for name in HOLD_REASONS if name != "ask"),
        "forward.None",
        "pass.None",
    }
    assert wanted - seen == set()


def test_vectors_all_events_are_covered() -> None:
    """Every event is counted above zero by a vector."""
    seen: set[str] = set()
    for vector in VECTORS:
        for step in vector["steps"]:
            events = step.get("counters", {}).get("events", {})
            seen.update(name for name, count in events.items() if count > 0)
    assert set(EVENTS) - seen == set()


def test_vectors_all_selectors_are_covered() -> None:
    """Every selector places the flows of a vector."""
    seen = {
        service["plan"]["selector"]
        for vector in VECTORS
        for service in vector["setup"].get("services", [])
        if service["plan"]["slots"]
    }
    assert set(SELECTORS) - seen == set()


def test_vectors_both_ip_versions_are_covered() -> None:
    """There are at least 150 packets, IPv4 and IPv6 in like number, in every topic that is not about one version."""
    packets = [bytes.fromhex(step["in"]) for vector in VECTORS for step in vector["steps"] if "in" in step]
    assert len(packets) >= 150
    one_version = {"arp_nd", "ipv4", "ipv6"}
    for path in sorted({vector["topic"] for vector in VECTORS} - one_version):
        frames = [
            step["in"] for vector in VECTORS if vector["topic"] == path for step in vector["steps"] if "in" in step
        ]
        assert any(frame[24:28] == "0800" for frame in frames), path
        assert any(frame[24:28] == "86dd" for frame in frames), path


def test_vectors_names_are_unique_and_origins_given() -> None:
    """Each vector has its own name and says where it comes from."""
    names = [(vector["topic"], vector["name"]) for vector in VECTORS]
    assert len(names) == len(set(names))
    assert all(vector["origin"] and vector["rules"] for vector in VECTORS)


def explode(*_: Any) -> None:
    """Stand in for a clock that must not be read."""
    raise AssertionError("a wall clock was read")


def test_datapath_wall_clock_is_never_read(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is an argument: a data path plays its vectors where every clock explodes (rule 1.1, monotonic time)."""

    class NoDatetime(datetime.datetime):
        now = utcnow = today = staticmethod(explode)  # type: ignore[assignment]

    chosen = [vector for vector in VECTORS if vector["topic"] in ("flows", "fragments", "limits")]
    players = [Player(module, vector["setup"]) for vector in chosen]
    with monkeypatch.context() as patched:
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "localtime", "gmtime"):
            patched.setattr(time, name, explode)
        patched.setattr(datetime, "datetime", NoDatetime)
        for player, vector in zip(players, chosen, strict=True):
            for number, step in enumerate(vector["steps"]):
                player.play(number, step)


def test_datapath_hash_key_changes_no_outcome(module: Any) -> None:
    """
    The flow table's hash key is secret and unseen: other keys give the same outcomes (rule 21.1, secrets and seeds).
    """
    for vector in VECTORS:
        if vector["topic"] in ("flows", "selectors", "icmp"):
            player = Player(module, vector["setup"], hash_key=b"\xff" * 16)
            for number, step in enumerate(vector["steps"]):
                player.play(number, step)


def test_datapath_hash_key_is_not_shown(module: Any) -> None:
    """The key appears neither in a data path's text nor in its counters (rule 21.1, secrets and seeds)."""
    key = b"sixteen secrets!"
    path = module.DataPath(4, key, 1)
    told = repr(path) + str(path) + json.dumps(path.counters())
    assert "secrets" not in told
    assert key.hex() not in told


def test_datapath_made_and_dropped_leaves_nothing_open(module: Any) -> None:
    """
    A data path that never ran leaves no descriptor open (rule 20.1, restoring the host, as far as it shows offline).
    """
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        Player(module, {})
    gc.collect()
    assert before == len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_selector_seed_changes_placement(module: Any) -> None:
    """Balancers with one seed agree, with another they place otherwise (rule 21.1, secrets and seeds)."""
    placed = {}
    for seed in (1, 1, 2):
        names = []
        for vector in VECTORS:
            if vector["name"] != "hash-flow places by SipHash-2-4 of the 5-tuple, seed 1, IPv4":
                continue
            player = Player(module, {**vector["setup"], "seed": seed})
            for step in vector["steps"]:
                names.append(player.path.process(bytes.fromhex(step["in"]), 0, 0).server)
        assert placed.setdefault(seed, names) == names
    assert placed[1] != placed[2]


def test_flow_hash_golden_placements(module: Any) -> None:
    """The placement hash gives its golden values: SipHash-2-4 keyed by the seed (rule 21.1, secrets and seeds)."""
    for row in golden_hashes()["placements"]:
        client, vip = ip_address(row["client"]), ip_address(row["vip"])
        made = module.flow_hash(
            row["seed"], client.packed, vip.packed, row["client_port"], row["vip_port"], row["protocol"]
        )
        assert int(row["hash_flow"], 16) == made, row
        assert int(row["hash_source"], 16) == module.source_hash(row["seed"], client.packed), row


def test_checksum_known_vectors(module: Any) -> None:
    """The known vectors of RFC 1624 section 4 and RFC 1071 section 3 (rule 8.20, translation)."""
    assert module.checksum_update(0xDD2F, b"\x55\x55", b"\x32\x85") == 0x0000
    assert module.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_process_many_equals_process(module: Any) -> None:
    """Frames processed together have the outcomes of frames processed one by one."""
    vector = next(
        one
        for one in VECTORS
        if one["name"].startswith("a connection is translated both ways") and "IPv4" in one["name"]
    )
    frames = [bytes.fromhex(step["in"]) for step in vector["steps"] if "in" in step]
    one, two = Player(module, vector["setup"]), Player(module, vector["setup"])
    singly = [astuple(one.path.process(frame, 0, 5)) for frame in frames]
    assert singly == [astuple(result) for result in two.path.process_many(frames, 0, 5)]
    assert one.path.counters() == two.path.counters()


def test_vectors_readme_describes_every_key() -> None:
    """The format's description names every key that the files use."""
    text = (HERE / "README.md").read_text()
    keys = {key for vector in VECTORS for step in vector["steps"] for key in step}
    keys |= {key for vector in VECTORS for key in vector["setup"]} | set(VECTORS[0])
    assert {key for key in keys if f"`{key}`" not in text} == {"topic"}
