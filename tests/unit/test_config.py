"""The configuration: what is accepted, and what each mistake gets, with its place."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
import typing
from collections.abc import Container
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lb import config
from lb.config import reference
from lb.config.template import template, write_template
from lb.config.toml.locator import locate
from lb.config.toml.problem import dotted
from lb.errors import ConfigError, LbError
from lb.fields.key import keys_of, tables_of
from lb.fields.schema import kind, properties_of
from lb.policies import POLICIES, user
from lb.policies.adaptive import Adaptive

GOOD = """\
[[interface]]
name = "eth0"
addresses = ["198.18.1.1/24", "fd00:1::1/64"]

[[service]]
name = "video"
address = "198.18.1.100"
port = 9876

  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 8031
"""

# ruff: noqa: E501 - one mistake per row
# (what is replaced in GOOD, by what, the first line of each problem after "lb.toml:")
MISTAKES = [
    ('name = "video"', 'nam = "video"', ['5:1: service[0]: required key "name" is missing', "6:1: service[0].nam: unknown key"]),
    ("port = 9876", "port = 0", ["8:8: service[0].port: 0 is not in 1..65535"]),
    ("port = 9876", "port = 70000", ["8:8: service[0].port: 70000 is not in 1..65535"]),
    ("port = 9876", 'port = "80"', ['8:8: service[0].port: "80" is a string, not an integer']),
    ("port = 9876", "port = true", ["8:8: service[0].port: true is a boolean, not an integer"]),
    ("port = 9876", "port = 9876\nhealth = {}", ['9:10: service[0].health: required key "check" is missing']),
    ("port = 9876", "port = 9876\nhealth = 1", ["9:10: service[0].health: 1 is an integer, not a table"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "ping" }', ['9:20: service[0].health.check: "ping" is not allowed']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", fal = 3 }', ["9:28: service[0].health.fal: unknown key"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", fall = 0 }', ["9:35: service[0].health.fall: 0 is not in 1..100"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", interval = 1 }', ["9:39: service[0].health.interval: 1 has no unit"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", timeout = "2s" }', ["9:38: service[0].health.timeout: the timeout is longer than the interval"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", interval = "100ms" }', ["9:39: service[0].health.interval: the timeout is longer than the interval"]),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", expect = 99 }', ['9:37: service[0].health.expect: "99" is not an HTTP status or range of them']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", expect = "399-200" }', ['9:37: service[0].health.expect: "399-200" is not an HTTP status or range of them']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", path = "x" }', ['9:35: service[0].health.path: "x" is not the path of a URL']),
    ("port = 9876", 'port = 9876\nhealth = { check = "tcp", path = "/" }', ["9:27: service[0].health.path: a check by TCP asks for nothing"]),
    ("port = 9876", 'port = 9876\nprotocol = "udp"\nhealth = { check = "tcp" }', ["10:10: service[0].health: checks are TCP connections: a UDP service has to say to which port"]),
    ("port = 9876", 'port = 9876\nprotocol = "sctp"', ['9:12: service[0].protocol: "sctp" is not allowed']),
    ("port = 9876", 'port = 9876\npolicy = "round-robbin"', ['9:10: service[0].policy: unknown policy "round-robbin"']),
    ("port = 9876", 'port = 9876\npolicy = { name = "maglev", table_size = 100 }', ["9:42: service[0].policy.table_size: 100 is not a prime"]),
    ("port = 9876", 'port = 9876\npolicy = { name = "maglev", table_size = "9" }', ['9:42: service[0].policy.table_size: "9" is a string, not an integer']),
    ("port = 9876", 'port = 9876\npolicy = { name = "source-hash", table_size = 1 }', ["9:47: service[0].policy.table_size: 1 is not in 2..16777216"]),
    ("port = 9876", 'port = 9876\npolicy = "./m.py:P"', [f"9:10: service[0].policy: m.py: No such file or directory ({Path.cwd()}/m.py)"]),
    ("port = 9876", 'port = 9876\npolicy = { name = "static", server = "x" }', ['9:38: service[0].policy.server: "x" is not a server of this service']),
    ("port = 9876", 'port = 9876\npolicy = { name = "static", srv = "x" }', ["9:29: service[0].policy.srv: policy static has no such option"]),
    ("port = 9876", 'port = 9876\npolicy = { name = "static", server = 1 }', ["9:38: service[0].policy.server: 1 is an integer, not a string"]),
    ("port = 9876", "port = 9876\npolicy = {}", ["9:10: service[0].policy: the policy has no name"]),
    ("port = 9876", "port = 9876\npolicy = 3", ["9:10: service[0].policy: 3 is an integer, not a string or a table"]),
    ("port = 8031", "port = 8031\n  weight = -1", ["14:12: service[0].server[0].weight: -1 is not in 0..65535"]),
    ("port = 8031", 'port = 8031\n  state = "actve"', ['14:11: service[0].server[0].state: "actve" is not allowed']),
    ("port = 8031", 'port = 8031\n  mac = "01:00:5e:00:00:01"', ['14:9: service[0].server[0].mac: "01:00:5e:00:00:01" is a group address']),
    ("port = 8031", 'port = 8031\n  mac = "aa:bb"', ['14:9: service[0].server[0].mac: "aa:bb" is not a MAC address']),
    ("port = 8031", 'port = 8031\n  mac = "00:00:00:00:00:00"', ['14:9: service[0].server[0].mac: "00:00:00:00:00:00" is not a host\'s address']),
    ('"198.18.1.31"', '"198.18.1.300"', ['12:13: service[0].server[0].address: "198.18.1.300" is not an IP address']),
    ('"198.18.1.31"', '"fd00::31"', ["12:13: service[0].server[0].address: fd00::31 is IPv6, the VIP 198.18.1.100 is IPv4"]),
    ('"198.18.1.31"', '"198.18.1.1"', ["12:13: service[0].server[0].address: 198.18.1.1 is an address of the balancer itself"]),
    ('"198.18.1.31"', '"198.18.1.100"', ['12:13: service[0].server[0].address: 198.18.1.100 is the VIP of service "video"']),
    ('"198.18.1.31"', '"198.18.1.255"', ["12:13: service[0].server[0].address: 198.18.1.255 is the broadcast address of 198.18.1.0/24"]),
    ('"198.18.1.31"', '"198.18.1.0"', ["12:13: service[0].server[0].address: 198.18.1.0 is the network address of 198.18.1.0/24"]),
    ('"198.18.1.100"', '"127.0.0.1"', ["7:11: service[0].address: 127.0.0.1 is a loopback address"]),
    ('"198.18.1.100"', '"224.0.0.5"', ["7:11: service[0].address: 224.0.0.5 is a multicast address"]),
    ('"198.18.1.100"', '"0.0.0.0"', ["7:11: service[0].address: 0.0.0.0 is an unspecified address"]),
    ('"198.18.1.100"', '"0.1.2.3"', ["7:11: service[0].address: 0.1.2.3 is an unspecified address"]),
    ('"198.18.1.100"', '"255.255.255.255"', ["7:11: service[0].address: 255.255.255.255 is the broadcast address"]),
    ('"198.18.1.100"', '"240.0.0.1"', ["7:11: service[0].address: 240.0.0.1 is a reserved address"]),
    ('"198.18.1.100"', '"169.254.1.1"', ["7:11: service[0].address: 169.254.1.1 is a link-local address"]),
    ('"198.18.1.100"', '"::ffff:10.0.0.1"', ["7:11: service[0].address: ::ffff:10.0.0.1 is an IPv4-mapped address"]),
    ('"198.18.1.100"', '"fe80::1"', ["7:11: service[0].address: fe80::1 is a link-local address"]),
    ('"198.18.1.100"', '"2001:db8::1%eth0"', ['7:11: service[0].address: "2001:db8::1%eth0" has a zone']),
    ('"198.18.1.100"', '"198.18.1.1"', ["7:11: service[0].address: 198.18.1.1 is an address of the balancer itself"]),
    ('"198.18.1.100"', "3.14", ["7:11: service[0].address: 3.14 is a float, not a string"]),
    ('"198.18.1.1/24"', '"198.18.1.1"', ['3:14: interface[0].addresses[0]: "198.18.1.1" has no prefix length']),
    ('name = "eth0"', 'name = "eth0"\nmtu = 10', ["3:7: interface[0].mtu: 10 is not in 68..65535"]),
    ('name = "eth0"', 'name = "eth 0"', ['2:8: interface[0].name: "eth 0" is not a valid name']),
    ('name = "eth0"', 'name = "eth0"\nannounce = "yes"', ['3:12: interface[0].announce: "yes" is a string, not a boolean']),
    ('name = "video"', 'name = "a/b"', ['6:8: service[0].name: "a/b" is not a valid name']),
    ("[[interface]]", 'backend = "ebpf"\n[[interface]]', ['1:11: backend: backend "ebpf" is not in this version']),
    ("[[interface]]", 'backend = "c"\n[[interface]]', ['1:11: backend: "c" is not a backend']),
    ("[[interface]]", "seed = -1\n[[interface]]", ["1:8: seed: -1 is not in 0..18446744073709551615"]),
    ("[[interface]]", "icmp_rate = 1.5\n[[interface]]", ["1:13: icmp_rate: 1.5 is a float, not an integer"]),
    ("[[interface]]", "workers = 0\n[[interface]]", ["1:11: workers: 0 is not in 1..64"]),
    ("[[interface]]", 'transit = "pass"\n[[interface]]', ['1:11: transit: "pass" is not allowed']),
    ("[[interface]]", "flows = 1\n[[interface]]", ["1:9: flows: 1 is an integer, not a table"]),
    ("[[interface]]", "[flows]\nudp = 300\n[[interface]]", ["2:7: flows.udp: 300 has no unit"]),
    ("[[interface]]", '[flows]\nudp = "300"\n[[interface]]', ['2:7: flows.udp: "300" is not a duration']),
    ("[[interface]]", '[flows]\nudp = "0s"\n[[interface]]', ['2:7: flows.udp: "0s" is not in 1s..8784h']),
    ("[[interface]]", '[flows]\nhalf_open = "1ns"\n[[interface]]', ['2:13: flows.half_open: "1ns" is not in 1s..8784h']),
    ("[[interface]]", '[flows]\nestablished = "999ms"\n[[interface]]', ['2:15: flows.established: "999ms" is not in 1s..8784h']),
    ("[[interface]]", '[flows]\nclosing = "8785h"\n[[interface]]', ['2:11: flows.closing: "8785h" is not in 1s..8784h']),
    ("[[interface]]", '[flows]\nidle_floor = "1us"\n[[interface]]', ['2:14: flows.idle_floor: "1us" is not in 1s..8784h']),
    ("[[interface]]", '[flows]\nclosing = "\u0661s"\n[[interface]]', ['2:11: flows.closing: "\u0661s" is not a duration']),
    ("port = 9876", 'port = 9876\nhealth = { check = "tcp", interval = "1ns", timeout = "1ns" }', ['9:38: service[0].health.interval: "1ns" is not in 10ms..24h', '9:55: service[0].health.timeout: "1ns" is not in 10ms..24h']),
    ("port = 9876", 'port = 9876\nhealth = { check = "tcp", interval = "25h" }', ['9:38: service[0].health.interval: "25h" is not in 10ms..24h']),
    ("port = 9876", 'port = 9876\nhealth = { check = "tcp", slow_start = "1ms" }', ['9:40: service[0].health.slow_start: "1ms" is not in 100ms..24h']),
    ("port = 9876", 'port = 9876\npolicy = { name = "adaptive", interval = "1ns" }', ['9:42: service[0].policy.interval: "1ns" is not in 10ms..24h']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", path = "/a b" }', ['9:35: service[0].health.path: "/a b" is not the path of a URL']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", path = "/a\\r\\nX: y" }', ['9:35: service[0].health.path: "/a\\r\\nX: y" is not the path of a URL']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", path = "/a#b" }', ['9:35: service[0].health.path: "/a#b" is not the path of a URL']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", path = "/\u0661" }', ['9:35: service[0].health.path: "/\u0661" is not the path of a URL']),
    ("port = 9876", 'port = 9876\nhealth = { check = "http", expect = "\u0662\u0660\u0660" }', ['9:37: service[0].health.expect: "\u0662\u0660\u0660" is not an HTTP status or range of them']),
    ('"198.18.1.31"', '"198.18.1.\u0663\u0661"', ['12:13: service[0].server[0].address: "198.18.1.\u0663\u0661" is not an IP address']),
    ('"198.18.1.31"', '"2001:db8::31%eth0"', ['12:13: service[0].server[0].address: "2001:db8::31%eth0" has a zone']),
    ("port = 8031", 'port = 8031\n  mac = "\u0660\u0662:00:00:00:00:31"', ['14:9: service[0].server[0].mac: "\u0660\u0662:00:00:00:00:31" is not a MAC address']),
    ('"198.18.1.1/24"', '"fe80::1%eth0/64"', ['3:14: interface[0].addresses[0]: "fe80::1%eth0/64" has a zone']),
    ('"198.18.1.1/24"', '"198.18.1.1/\u0662\u0664"', ['3:14: interface[0].addresses[0]: "198.18.1.1/\u0662\u0664" is not an address with a prefix length']),
    ('name = "eth0"', 'name = "éééééééé"', ['2:8: interface[0].name: "éééééééé" is not a valid name']),
    ('name = "eth0"', 'name = ".."', ['2:8: interface[0].name: ".." is not a valid name']),
    ("[[interface]]", '[metrics]\naddress = "198.18.1.100"\nport = 9876\n[[interface]]', ['2:11: metrics.address: 198.18.1.100 is the VIP of service "video"']),
    ("[[interface]]", '[metrics]\naddress = "::ffff:198.18.1.100"\n[[interface]]', ['2:11: metrics.address: 198.18.1.100 is the VIP of service "video"']),
    ("[[interface]]", '[metrics]\naddress = "198.18.1.100"\n[[interface]]', ['2:11: metrics.address: 198.18.1.100 is the VIP of service "video"']),
    ("[[interface]]", '[metrics]\naddress = "224.0.0.1"\n[[interface]]', ["2:11: metrics.address: 224.0.0.1 is not an address of a host"]),
    ("[[interface]]", '[metrics]\naddress = "2001:db8::1%eth0"\n[[interface]]', ['2:11: metrics.address: "2001:db8::1%eth0" has a zone']),
    ("[[interface]]", '[flows]\nhalf-open = "1s"\n[[interface]]', ["2:1: flows.half-open: unknown key"]),
    ("[[interface]]", "[flows]\ncapacity = 0\n[[interface]]", ["2:12: flows.capacity: 0 is not in 1..268435456"]),
    ("[[interface]]", "[interface]", ["1:1: interface: {...} is a table, not an array"]),
    ("[[interface]]", "[metrics]\nport = 0\n[[interface]]", ["2:8: metrics.port: 0 is not in 1..65535"]),
    ("[[interface]]", '[metrics]\naddress = "here"\n[[interface]]', ['2:11: metrics.address: "here" is not an IP address']),
    ("[[interface]]", "[metrics]\naddres = 1\n[[interface]]", ["2:1: metrics.addres: unknown key"]),
    ("[[interface]]", "metrics = true\n[[interface]]", ["1:11: metrics: true is a boolean, not a table"]),
    ("[[interface]]", 'flow_log = "yes"\n[[interface]]', ['1:12: flow_log: "yes" is a string, not a boolean']),
    ("port = 9876", "port = 9876 8", ["8:13: Expected newline or end of document after a statement"]),
]  # fmt: skip

TABLES = {"": config.Config, **tables_of(config.Config)}


def first_lines(problems: list[str]) -> list[str]:
    return [block.partition("\n")[0].removeprefix("lb.toml:") for block in problems]


def test_parse_good_config_gives_typed_values() -> None:
    """What is written arrives as addresses, numbers and defaults."""
    loaded = config.parse(GOOD)
    service = loaded.services[0]
    assert (service.name, service.address, service.port) == ("video", ip_address("198.18.1.100"), 9876)
    assert (service.protocol, service.policy.name, service.on_no_server) == ("tcp", "round-robin", "reset")
    assert service.servers[0].weight == 1
    assert loaded.interfaces[0].addresses == (ip_interface("198.18.1.1/24"), ip_interface("fd00:1::1/64"))
    assert (loaded.seed, loaded.icmp_rate, loaded.flows.capacity) == (None, 1000, 262144)


def test_parse_health_gives_defaults_and_ranges() -> None:
    """A check needs only its kind; a status alone is a range of one."""
    text = GOOD.replace("port = 9876", 'port = 9876\nhealth = { check = "http", slow_start = "10s" }')
    health = config.parse(text).services[0].health
    assert health is not None
    assert (health.path, health.expect, health.port) == ("/", (200, 399), None)
    assert (health.interval, health.timeout, health.fall, health.rise) == (10**9, 5 * 10**8, 3, 2)
    assert health.slow_start == 10 * 10**9
    ranged = config.parse(text.replace("slow_start", "expect = 204, slow_start")).services[0].health
    assert ranged is not None
    assert ranged.expect == (204, 204)
    assert config.parse(GOOD).services[0].health is None


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[row[2][0] for row in MISTAKES])
def test_inspect_mistake_named_with_its_place(old: str, new: str, expected: list[str]) -> None:
    """Each mistake is one problem, at its line and column."""
    assert old in GOOD
    report = config.inspect(GOOD.replace(old, new, 1), "lb.toml")
    assert first_lines(report.problems) == expected
    assert report.config is None


def test_inspect_duration_out_of_range_hint_names_the_range() -> None:
    """Too short or too long is told with what is allowed."""
    text = GOOD.replace("[[interface]]", '[flows]\nudp = "1ns"\n[[interface]]')
    (problem,) = config.inspect(text, "lb.toml").problems
    assert problem.endswith("  hint: a duration in 1s..8784h")


def test_every_duration_of_the_configuration_has_a_minimum() -> None:
    """No key that takes a duration takes one that is too short for a timer."""
    accepted, found = [], []
    for model in (config.FlowsConfig, config.HealthConfig, user.Settings, Adaptive):
        for name in durations_of(model):
            found.append(name)
            given = {"check": "tcp"} if model is config.HealthConfig else {}
            with contextlib.suppress(ValueError):
                TypeAdapter(model).validate_python({**given, name: "99us"})
                accepted.append(f"{model.__name__}.{name}")
    assert len(found) == 6 + 3 + 2 + 1
    assert accepted == []


def durations_of(model: type) -> list[str]:
    """Return the fields of a model that take a duration, as its schema describes them."""
    return [name for name, schema in properties_of(model).items() if kind(schema) == "duration"]


def test_inspect_mistake_shows_line_caret_and_hint() -> None:
    """Under the message stand the line, a caret below the column, and a hint."""
    report = config.inspect(GOOD.replace("port = 9876", 'port = 9876\n\tpolicy = "statc"'), "lb.toml")
    assert report.problems == [
        'lb.toml:9:11: service[0].policy: unknown policy "statc"\n'
        '    9 | \tpolicy = "statc"\n'
        "      | \t         ^\n"
        '  hint: did you mean "static"?'
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('policy = "maglv"', 'did you mean "maglev"?'),
        ('policy = { name = "maglev", size = 3 }', "allowed: table_size"),
        ('policy = { name = "random", size = 3 }', "it has no options"),
        ('policy = { name = "maglev", table_size = 100 }', "the next one: 101"),
        ('on_no_sever = "drop"', 'did you mean "on_no_server"?'),
        ('protocol = "upd"', 'did you mean "udp"?'),
        ("seed = 3", '"seed" is about the whole file: it goes above the first [table]'),
        (
            "colour = 1",
            "allowed: name, address, port, protocol, policy, on_no_server, on_no_flow, new_flow_limit, "
            "on_server_down, drain_timeout, health, server",
        ),
    ],
)
def test_inspect_mistake_hint_names_what_is_near(text: str, hint: str) -> None:
    """The hint offers the nearest word, or all of them."""
    report = config.inspect(GOOD.replace("port = 9876", f"port = 9876\n{text}"), "lb.toml")
    assert [block.rpartition("  hint: ")[2] for block in report.problems] == [hint]


def test_inspect_many_mistakes_all_reported_in_file_order() -> None:
    """Errors of fields, of unknown keys and between fields come together, sorted by line."""
    source = GOOD.replace("port = 9876", 'port = 0\ntyop = 1\npolicy = "nope"').replace("8031", '"x"')
    assert first_lines(config.inspect(source, "lb.toml").problems) == [
        "8:8: service[0].port: 0 is not in 1..65535",
        "9:1: service[0].tyop: unknown key",
        '10:10: service[0].policy: unknown policy "nope"',
        '15:10: service[0].server[0].port: "x" is a string, not an integer',
    ]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        (
            '[[interface]]\nname = "eth0"',
            '15:8: interface[1].name: duplicate interface "eth0", first defined at lb.toml:2',
        ),
        (
            '[[service]]\nname = "video"\naddress = "198.18.1.101"\nport = 1\nserver = []',
            '15:8: service[1].name: duplicate service name "video", first defined at lb.toml:6',
        ),
        (
            '[[service]]\nname = "other"\naddress = "198.18.1.100"\nport = 9876\nserver = []',
            "16:11: service[1].address: duplicate listener 198.18.1.100:9876/tcp, first defined at lb.toml:7",
        ),
        (
            '  [[service.server]]\n  name = "server1"\n  address = "198.18.1.32"\n  port = 1',
            '15:10: service[0].server[1].name: duplicate server name "server1", first defined at lb.toml:11',
        ),
        (
            '  [[service.server]]\n  name = "server2"\n  address = "198.18.1.31"\n  port = 8031',
            "16:13: service[0].server[1].address: duplicate server 198.18.1.31:8031, first defined at lb.toml:12",
        ),
    ],
)
def test_inspect_duplicate_refused_at_second(addition: str, expected: str) -> None:
    """Names and addresses that must differ do; the later one is pointed at."""
    assert first_lines(config.inspect(GOOD + addition, "lb.toml").problems) == [expected]


def test_inspect_same_vip_other_protocol_accepted() -> None:
    """A VIP and port may serve TCP and UDP."""
    addition = '[[service]]\nname = "u"\naddress = "198.18.1.100"\nport = 9876\nprotocol = "udp"\nserver = []'
    assert config.inspect(GOOD + addition, "lb.toml").problems == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ["1:1: interface: no [[interface]]: at least one is needed", "1:1: service: no [[service]]: at least one is needed"]),
        ("interface = []\nservice = []", ["1:13: interface: no [[interface]]: at least one is needed", "2:11: service: no [[service]]: at least one is needed"]),
        ("a = [", ["1:6: Invalid value, but the file ends here"]),
        ("x = " + "[" * 5000, ["1:1: nested too deeply"]),
    ],
    ids=["empty", "empty-arrays", "unfinished", "deep"],
)  # fmt: skip
def test_inspect_degenerate_document_reported(source: str, expected: list[str]) -> None:
    """Nothing at all, and what is no TOML, get problems too and no exception."""
    assert first_lines(config.inspect(source, "lb.toml").problems) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[[interface]]", '[flows]\nudp = "30s"\n[[interface]]', ["2:7: warning: flows.udp: UDP flows will be forgotten early"]),
        ("[[interface]]", '[metrics]\naddress = "0.0.0.0"\n[[interface]]', ["2:11: warning: metrics.address: 0.0.0.0 is not a loopback address"]),
        ("[[interface]]", '[metrics]\naddress = "::1"\n[[interface]]', []),
        ('name = "eth0"', 'name = "eth0"\nannounce = true', []),
        ('"198.18.1.100"', '"203.0.113.9"', []),
        ("", "", []),
    ],
)  # fmt: skip
def test_inspect_doubtful_value_warned_but_used(old: str, new: str, expected: list[str]) -> None:
    """Rule 8.12, idle timeouts: a UDP timeout below 120 s is used, with a warning."""
    report = config.inspect(GOOD.replace(old, new, 1), "lb.toml")
    assert first_lines(report.warnings) == expected
    assert report.config is not None


def test_inspect_announce_without_vip_in_prefix_warned() -> None:
    """Announcing where no VIP lies in a prefix cannot have an effect."""
    source = GOOD.replace('name = "eth0"', 'name = "eth0"\nannounce = true').replace("198.18.1.100", "203.0.113.9")
    report = config.inspect(source, "lb.toml")
    assert first_lines(report.warnings) == [
        "3:1: warning: interface[0].announce: no VIP lies in a prefix of this interface, so no neighbour asks for one"
    ]


SECOND = """
[[service]]
name = "second"
address = "198.18.1.100"
port = 443
policy = "%s"
[[service.server]]
name = "again"
address = "198.18.1.31"
port = 8031
"""


@pytest.mark.parametrize(
    ("replies", "policy", "expected"),
    [
        ("same", "adaptive", []),
        ("any", "adaptive", ["clients cannot speak to servers directly at a service's port", "adaptive measures nothing here", "whether a reply of 198.18.1.31:8031 is of video or of second often nobody can tell"]),
        ("any", "maglev", ["clients cannot speak to servers directly at a service's port", "whether a reply of 198.18.1.31:8031 is of video or of second often nobody can tell"]),
    ],
)  # fmt: skip
def test_inspect_what_goes_badly_with_replies_through_any_balancer_warned(
    replies: str, policy: str, expected: list[str]
) -> None:
    """Rule 8.23, replies through any balancer: by an endpoint alone two services are not told apart."""
    source = f'transit = "forward"\n[cluster]\nreplies = "{replies}"\n' + GOOD + SECOND % policy
    report = config.inspect(source, "lb.toml")
    assert [line.split(": ")[-1] for line in first_lines(report.warnings)] == expected
    assert report.config is not None


def test_read_file_troubles_reported(tmp_path: Path) -> None:
    """A missing file, bytes that are no UTF-8 and CRLF line ends are reported or read, never raised."""
    assert config.read(tmp_path / "none.toml").problems == [
        f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    ]
    (tmp_path / "latin.toml").write_bytes(b"# \xc3\xa4\nname = '\xe4'")
    assert config.read(tmp_path / "latin.toml").problems == [f"{tmp_path}/latin.toml:2:9: byte 0xe4 is not UTF-8"]
    (tmp_path / "dos.toml").write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert config.load(tmp_path / "dos.toml") == config.parse(GOOD)


def test_read_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """What some editors put first counts neither as text nor as a column."""
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfseeed = 1\n" + GOOD.encode())
    problems = config.read(tmp_path / "bom.toml").problems
    assert [problem.partition("\n")[0] for problem in problems] == [f"{tmp_path}/bom.toml:1:1: seeed: unknown key"]


def test_inspect_huge_integer_named_with_its_place() -> None:
    """More digits than Python converts are a mistake like any other."""
    report = config.inspect(f"{GOOD}\n  port = {'9' * 5000}\n", "lb.toml")
    line = GOOD.count("\n") + 2
    assert report.problems == [f"lb.toml:{line}:10: an integer of 5000 digits"]


def test_inspect_control_characters_never_reach_the_terminal() -> None:
    """A value cannot write control sequences or lines of its own into a message."""
    report = config.inspect('"a\\nb" = 1\nbackend = "\\u001b[31mfast"\n' + GOOD, "lb.toml")
    text = "\n".join(report.problems)
    assert "\x1b" not in text
    assert text.startswith("lb.toml:1:1: a\\nb: unknown key\n")
    assert 'lb.toml:2:11: backend: "\\x1b[31mfast" is not a backend\n' in text


def test_load_invalid_file_raises_with_all_problems(tmp_path: Path) -> None:
    """`load` raises ConfigError, whose message is every block."""
    (tmp_path / "lb.toml").write_text(GOOD.replace("9876", "0").replace("8031", "0"))
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "lb.toml")
    assert len(caught.value.problems) == 2
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_template_as_written_is_valid(tmp_path: Path) -> None:
    """What `lb init` writes passes, commented keys taken in too, and shows the real defaults."""
    write_template(tmp_path / "lb.toml", overwrite=False)
    plain = config.load(tmp_path / "lb.toml")
    lines = template().split("\n")
    full = config.parse(taken_in(lines, range(len(lines))))
    assert full.flows == plain.flows.model_copy(update={"snapshot": "/var/lib/flowlb"})
    assert (full.backend, full.transit, full.seed, full.icmp_rate) == ("auto", "drop", 1, 1000)
    assert full.services[0].policy == plain.services[0].policy
    with pytest.raises(LbError, match="--force"):
        write_template(tmp_path / "lb.toml", overwrite=False)


# A commented key or header of the template.
COMMENTED = re.compile(r"( *)# (?=\w+ = |\[)")


def taken_in(lines: list[str], numbers: Container[int]) -> str:
    """Return the template with some of its commented lines taken in."""
    return "\n".join(
        COMMENTED.sub(r"\1", line, count=1) if number in numbers else line for number, line in enumerate(lines)
    )


def test_template_each_commented_key_alone_is_valid() -> None:
    """Any key may be taken in by itself: of a table that is commented too, with its header and what it must have."""
    lines = template().split("\n")
    header: set[int] = set()
    taken = 0
    for number, line in enumerate(lines):
        if line == "" or line.lstrip().startswith("[["):
            header = set()
        elif COMMENTED.match(line):
            if (table := re.match(r" *# \[(?:\w+\.)?(\w+)\]", line)) is not None:
                required = sum(declared.required for declared in keys_of(TABLES[table[1]]))
                header = set(range(number, number + 1 + required))
            report = config.inspect(taken_in(lines, {*header, number}), "lb.toml")
            assert report.problems == [], line
            taken += 1
    keys = [declared for model in TABLES.values() for declared in keys_of(model) if declared.table is None]
    assert taken == len([declared for declared in keys if not declared.required]) + len(
        ("[flows]", "[cluster]", "[metrics]", "[service.health]", "check", "[service.new_flow_limit]", "rate")
    )


def test_template_lines_are_short_and_aligned() -> None:
    """Comments stand below each other, and no line is wider than a screen of 120 columns."""
    lines = template().split("\n")
    assert max(map(len, lines)) < 120
    beside = [re.search(r"(?<=\S)( +)# ", line[2:]) for line in lines[4:]]
    assert len({match.end() for match in beside if match}) == 1


def test_several_workers_neither_send_directly_nor_serve_any_number_of_vips() -> None:
    """What one worker may, several may not: the message says which key to change."""
    direct = 'name = "eth0"\ntransmit = "direct"'
    assert config.parse("workers = 1\n" + GOOD.replace('name = "eth0"', direct)).workers == 1
    report = config.inspect("workers = 2\n" + GOOD.replace('name = "eth0"', direct), "lb.toml")
    assert first_lines(report.problems) == [
        "4:12: interface[0].transmit: frames go straight to the driver from one worker only"
    ]
    service = '[[service]]\nname = "s{0}"\naddress = "10.0.{1}.{2}"\nport = 80\n  [[service.server]]\n'
    service += '  name = "x"\n  address = "10.1.0.1"\n  port = 80\n'
    many = "".join(service.format(number, number // 200, number % 200 + 1) for number in range(400))
    report = config.inspect("workers = 2\n" + GOOD + many, "lb.toml")
    assert first_lines(report.problems) == ["1:11: workers: several workers serve at most 400 VIPs"]
    assert config.parse("workers = 1\n" + GOOD + many).workers == 1


def test_schema_names_every_key_and_refuses_others() -> None:
    """The JSON Schema has the keys of TOML, not of Python, and is closed."""
    schema = config.schema()
    assert list(schema["properties"]) == [declared.name for declared in keys_of(config.Config)]
    assert {"backend", "flows", "interface", "service"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["interface", "service"]
    assert schema["$defs"]["ServerConfig"]["properties"]["port"]["maximum"] == 65535
    json.dumps(schema)


def test_every_key_is_declared_whole() -> None:
    """Each key of each table, and each option of a policy, has a description, a value to show, and a reload mode."""
    for model in (*TABLES.values(), *POLICIES.values(), user.Settings):
        keys = {declared.name: declared for declared in keys_of(model)}
        assert list(keys) == list(properties_of(model)), model
        for name, schema in properties_of(model).items():
            key = keys[name].key
            assert re.fullmatch(r"[A-Za-z].{3,}[^.]", key.description), (model, name)
            assert keys[name].table is not None or {"default", "examples"} & schema.keys(), (model, name)
            assert schema.get("x-reload") == key.reload, (model, name)
            assert keys[name].required or "default" in schema or key.unset or keys[name].table, (model, name)


def test_every_example_is_accepted() -> None:
    """What the schema and the page show as an example is valid for its key, and within its range."""
    for model in (*TABLES.values(), *POLICIES.values(), user.Settings):
        for declared in keys_of(model):
            if declared.key.example is not None:
                kind_of = typing.get_type_hints(model, include_extras=True)[declared.attribute]
                TypeAdapter(kind_of).validate_python(declared.key.example)


def test_schema_says_what_each_key_does_and_offers_the_options_of_policies() -> None:
    """Editors show a description for every key, and complete the options of policies too."""
    schema = config.schema()
    tables = [schema, *schema["$defs"].values()]
    assert all(key["description"] for table in tables for key in table["properties"].values())
    policy = schema["$defs"]["ServiceConfig"]["properties"]["policy"]["anyOf"][1]["properties"]
    assert {"name", "table_size", "server", "interval", "deadline", "fallback"} == set(policy)


def test_reference_page_is_what_the_models_declare() -> None:
    """`docs/configuration.md` is made from the code: `make docs` writes it."""
    path = Path(__file__).parents[2] / reference.PAGE
    assert path.read_text(encoding="utf-8") == reference.page()


TRICKY = '''\
"quoted key" = 1 # comment = 2
a.b . "c" = """
[[not a table]]
x = 1 \\""" still""""
'd' = [ 1, # first
  [2, 3], { e = "}", f.g = 'x]' },
]
[t."u v"]
k = 1979-05-27T07:32:00Z
[[arr]]
[[arr.sub]]
z = 0x1F
[[arr.sub]]
z = -inf
[arr.table]
y = "\\u00e9"
[[arr]]
w = {}
'''


def test_locate_tricky_document_finds_every_key() -> None:
    """Strings, comments, dotted keys, inline and nested tables do not lead the locator astray."""
    tomllib.loads(TRICKY)
    found = locate(TRICKY)
    lines = TRICKY.split("\n")
    expected: dict[tuple[Any, ...], str] = {
        ("quoted key",): '"quoted key"', ("a", "b", "c"): '"c"', ("d",): "'d'", ("d", 1, 0): "2", ("d", 2, "e"): "e",
        ("d", 2, "f", "g"): "g", ("t", "u v"): "[t", ("t", "u v", "k"): "k", ("arr", 0): "[[arr]]",
        ("arr", 0, "sub", 1): "[[arr.sub]]", ("arr", 0, "sub", 1, "z"): "z", ("arr", 0, "table", "y"): "y",
        ("arr", 1): "[[arr]]", ("arr", 1, "w"): "w",
    }  # fmt: skip
    for path, text in expected.items():
        line, column = found.keys[path]
        assert lines[line - 1][column - 1 :].startswith(text), dotted(path)
    assert found.keys["arr", 0, "sub", 0, "z"].line == 12
    assert found.keys["arr", 0, "sub", 1, "z"].line == 14
    assert found.keys["arr", 1, "w"].line == 18


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [found for key, item in items for found in [(*path, key), *paths_of(item, (*path, key))]]


def test_locate_any_document_knows_every_path() -> None:
    """Whatever tomllib found has a place."""
    for source in (TRICKY, GOOD, template()):
        found = locate(source)
        assert set(paths_of(tomllib.loads(source))) <= set(found.keys)


@given(st.text(alphabet=" \t\n[]{}=,.\"'#\\aé1-", max_size=60))
@settings(max_examples=400)
def test_inspect_any_text_reports_and_never_raises(source: str) -> None:
    """Garbage is a problem, never an exception or a hang."""
    assert config.inspect(source, "lb.toml").config is None
