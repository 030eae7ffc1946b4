"""What a reload prints before and after: the diff, and what becomes of new flows."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lb.compile import Compiler
from lb.config import Config, parse
from lb.control.diff import diff
from lb.control.moves import moves
from lb.control.seed import with_seed
from lb.control.state import Desired, ServerKey, Wish, with_config, with_wish
from lb.snapshot import Interface

INTERFACES = (Interface("eth0", bytes(6), 1500),)
BASE = """\
[[interface]]
name = "eth0"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
  [[service.server]]
  name = "server2"
  address = "198.18.1.32"
  port = 8032
"""
DNS = """\
[[service]]
name = "dns"
address = "2001:db8::100"
port = 53
protocol = "udp"
  [[service.server]]
  name = "ns1"
  address = "2001:db8::31"
  port = 5353
  weight = 3
  state = "draining"
"""


def test_diff_seed_shown_as_it_runs() -> None:
    """A file that sets a seed takes the place of the one that was drawn; one without keeps the one that runs."""
    running = Desired(with_seed(parse(BASE), 9))
    assert diff(running, with_config(running, with_seed(parse("seed = 7\n" + BASE), 9))) == ["~ seed: 9 -> 7"]
    assert diff(running, with_config(running, with_seed(parse(BASE), 9))) == []


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("", "", []),
        ("port = 8032\n", "port = 8032\n  weight = 4\n", ["~ video/server2: weight 1 -> 4"]),
        ("port = 8032\n", 'port = 8032\n  state = "disabled"\n', ["~ video/server2: active -> disabled"]),
        (
            'name = "server2"',
            'name = "server3"',
            ["+ video/server3  198.18.1.32:8032, weight 1", "- video/server2  198.18.1.32:8032: its flows go on"],
        ),
        ("198.18.1.32", "198.18.1.42", ["~ video/server2: 198.18.1.32:8032 -> 198.18.1.42:8032: old flows go on"]),
        ("port = 8032\n", 'port = 8032\n  mac = "aa:aa:aa:00:00:32"\n', ["~ video/server2: mac"]),
        (
            "port = 9876\n",
            'port = 9877\npolicy = { name = "static", server = "server1" }\non_server_down = "keep"\n',
            [
                "~ service video: 198.18.1.100:9876/tcp -> 198.18.1.100:9877/tcp: old flows go on",
                "~ service video: policy round-robin -> static (server=server1)",
                "~ service video: on_server_down reset -> keep",
            ],
        ),
        (
            "port = 9876\n",
            'port = 9876\nhealth = { check = "tcp" }\n',
            ["~ service video: health unchecked -> checked (tcp)"],
        ),
        (
            "[[interface]]",
            'transit = "forward"\n[[interface]]',
            ["~ transit: drop -> forward"],
        ),
        (
            "[[interface]]",
            'backend = "python"\n[flows]\ncapacity = 9\nudp = "200s"\n[[interface]]',
            [
                "~ flows: timeouts",
                "~ flows.capacity: 262144 -> 9: waits for a restart",
                "~ backend: auto -> python: waits for a restart",
            ],
        ),
    ],
)  # fmt: skip
def test_diff_says_what_a_reload_changes(old: str, new: str, lines: list[str]) -> None:
    """One line per change, nothing else."""
    before = Desired(parse(BASE))
    assert diff(before, with_config(before, parse(BASE.replace(old, new)))) == lines


def test_diff_services_that_come_and_go() -> None:
    """A whole service, with its servers."""
    before, after = Desired(parse(BASE)), Desired(parse(BASE + DNS))
    assert diff(before, after) == [
        "+ service dns  [2001:db8::100]:53/udp",
        "+ dns/ns1  [2001:db8::31]:5353, weight 3, draining",
    ]
    assert diff(after, with_config(after, parse(BASE))) == ["- service dns  [2001:db8::100]:53/udp: its flows go on"]


def test_diff_says_what_the_operator_keeps() -> None:
    """What stays although the file says otherwise is no surprise."""
    before = with_wish(Desired(parse(BASE)), ServerKey("video", "server2"), Wish("draining", 5, "drained by operator"))
    assert diff(before, with_config(before, parse(BASE))) == [
        "= video/server2: weight 5 stays, set by operator (the file says 1)",
        "= video/server2: draining stays, drained by operator (the file says active)",
    ]
    changed = parse(BASE.replace("port = 8032\n", "port = 8032\n  weight = 2\n"))
    assert diff(before, with_config(before, changed))[0] == "~ video/server2: weight 5 -> 2"


def many(servers: int, policy: str, version: int = 4, **changed: str) -> Config:
    address = "198.18.1.100" if version == 4 else "2001:db8::1:100"
    rows = [
        f'[[interface]]\nname = "eth0"\n[[service]]\nname = "s"\naddress = "{address}"\nport = 1\npolicy = "{policy}"'
    ]
    for number in range(1, servers + 1):
        name = f"s{number}"
        own = ip_address(f"198.18.2.{number}" if version == 4 else f"2001:db8::2:{number}")
        rows.append(f'[[service.server]]\nname = "{name}"\naddress = "{own}"\nport = 1\n{changed.get(name, "")}')
    return parse("\n".join(rows))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("policy", ["maglev", "source-hash"])
def test_moves_of_a_hash_are_counted(policy: str, version: int) -> None:
    """One of ten servers leaves: the clients it has must move; maglev moves few others."""
    compiler = Compiler()
    before = compiler.compile(many(10, policy, version), INTERFACES)
    after = compiler.draft(many(10, policy, version, s3='state = "draining"'), INTERFACES)
    (move,) = moves(before, after)
    assert move.share is not None
    assert move.forced == pytest.approx(0.1, abs=0.02)
    assert move.forced <= move.share <= 1
    if policy == "maglev":
        assert move.share - move.forced < 0.05


def test_moves_of_a_turn_cannot_be_told() -> None:
    """For policies without a hash no number would mean anything: that is said."""
    compiler = Compiler()
    before = compiler.compile(many(3, "round-robin"), INTERFACES)
    (move,) = moves(before, compiler.draft(many(4, "round-robin"), INTERFACES))
    assert move.share is None
    assert "placed by counter, not by a hash" in move.line()


def test_moves_nothing_when_the_plan_stays() -> None:
    """An equal plan is no line."""
    compiler = Compiler()
    before = compiler.compile(many(3, "maglev"), INTERFACES)
    assert moves(before, compiler.draft(many(3, "maglev"), INTERFACES)) == []


def test_moves_all_when_no_server_is_left() -> None:
    """A plan without a server takes every client its server."""
    compiler = Compiler()
    before = compiler.compile(many(1, "maglev"), INTERFACES)
    (move,) = moves(before, compiler.draft(many(1, "maglev", s1="weight = 0"), INTERFACES))
    assert (move.share, move.forced) == (1.0, 1.0)
