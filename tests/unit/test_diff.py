"""What a reload prints before and after: the diff, and what becomes of new flows."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

import lb
from lb.compiler.compile import Compiler, offline_interfaces
from lb.compiler.edits import with_config, with_override
from lb.compiler.spec import Override, ServerKey, Spec
from lb.config import Config, parse
from lb.control.controller import Controller
from lb.control.diff import diff
from lb.control.forecast import remap_forecasts
from lb.control.seed import with_seed
from lb.fields.key import RESTART, keys_of, tables_of
from lb.fields.schema import choices, kind, properties_of
from lb.model.snapshot import HASH_SELECTORS, Interface, NewFlowLimit, Selector, Server, Service, Snapshot

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
    running = Spec(with_seed(parse(BASE), 9))
    assert diff(running, with_config(running, with_seed(parse("seed = 7\n" + BASE), 9))) == [
        "~ seed: 9 -> 7: random draws keep theirs until a restart"
    ]
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
        (
            "port = 8032\n",
            'port = 8032\n  mac = "aa:aa:aa:00:00:32"\n',
            ["~ video/server2: mac unset -> aa:aa:aa:00:00:32"],
        ),
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
            'transit = "forward"\nseed = 7\n[[interface]]',
            [
                "~ transit: drop -> forward",
                "~ seed: 1 -> 7: random draws keep theirs until a restart",
            ],
        ),
        (
            "[[interface]]",
            'backend = "python"\n[flows]\ncapacity = 9\nudp = "200s"\n[[interface]]',
            [
                "~ backend: auto -> python: takes effect after a restart",
                "~ flows.capacity: 262144 -> 9: takes effect after a restart",
                "~ flows.udp: 5m -> 200s",
            ],
        ),
    ],
)  # fmt: skip
def test_diff_says_what_a_reload_changes(old: str, new: str, lines: list[str]) -> None:
    """One line per change, nothing else."""
    before = Spec(with_seed(parse(BASE), 1))
    assert diff(before, with_config(before, with_seed(parse(BASE.replace(old, new)), 1))) == lines


def test_diff_services_that_come_and_go() -> None:
    """A whole service, with its servers."""
    before, after = Spec(parse(BASE)), Spec(parse(BASE + DNS))
    assert diff(before, after) == [
        "+ service dns  [2001:db8::100]:53/udp",
        "+ dns/ns1  [2001:db8::31]:5353, weight 3, draining",
    ]
    assert diff(after, with_config(after, parse(BASE))) == ["- service dns  [2001:db8::100]:53/udp: its flows go on"]


def test_diff_says_what_the_operator_keeps() -> None:
    """What stays although the file says otherwise is no surprise."""
    override = Override("draining", 5, "drained by operator")
    before = with_override(Spec(parse(BASE)), ServerKey("video", "server2"), override)
    assert diff(before, with_config(before, parse(BASE))) == [
        "= video/server2: weight 5 stays, set by operator (the file says 1)",
        "= video/server2: draining stays, drained by operator (the file says active)",
    ]
    changed = parse(BASE.replace("port = 8032\n", "port = 8032\n  weight = 2\n"))
    assert diff(before, with_config(before, changed))[0] == "~ video/server2: weight 5 -> 2"


# Another value for each key whose values have no order and no choices: (table, key) -> value.
OTHER_TEXT: dict[tuple[str, str], Any] = {
    ("flows", "snapshot"): "/var/lib/flowlb",
    ("metrics", "address"): "127.0.0.2",
    ("interface", "mac"): "aa:aa:aa:00:00:02",
    ("interface", "addresses"): ["198.18.1.2/24"],
    ("service", "name"): "film",
    ("service", "address"): "198.18.1.101",
    ("service", "policy"): "random",
    ("health", "path"): "/ready",
    ("health", "expect"): "204",
    ("server", "name"): "server9",
    ("server", "address"): "198.18.1.39",
    ("server", "mac"): "aa:aa:aa:00:00:39",
}
MODELS = {"": Config, **tables_of(Config)}
KEYS = {(table, declared.name): declared for table, model in MODELS.items() for declared in keys_of(model)}
# Keys that are tables, and an interface's name: another one is refused.
TABLE_KEYS = {*(where for where, declared in KEYS.items() if declared.table is not None), ("interface", "name")}
PLAIN_KEYS = [where for where in KEYS if where not in TABLE_KEYS]
# Tables whose keys are in snapshots where those have a field of the same name.
COMPILED = {"": Snapshot, "service": Service, "server": Server, "interface": Interface, "new_flow_limit": NewFlowLimit}
PACKAGE = Path(lb.__file__).parent


def attributes_read(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the names of all attributes that modules read."""
    for path in paths:
        yield from (node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))


# Keys are read by the control side, or by a property of the model.
READ = set(attributes_read([*(PACKAGE / "control").rglob("*.py"), PACKAGE / "config" / "model.py"]))


def base_tables() -> dict[str, dict[str, Any]]:
    """Return the tables of a configuration that has every one of them."""
    return {
        "": {},
        "flows": {},
        "cluster": {},
        "metrics": {"port": 9464},
        "interface": {"name": "eth0", "mac": "aa:aa:aa:00:00:01", "mtu": 1500},
        "service": {"name": "video", "address": "198.18.1.100", "port": 9876},
        "health": {"check": "tcp"},
        "new_flow_limit": {"rate": 100},
        "server": {"name": "server1", "address": "198.18.1.31", "port": 8031},
    }


def other(table: str, key: str) -> Any:
    """Return a value for a key, other than the one in `base_tables` or the default."""
    if (table, key) in OTHER_TEXT:
        return OTHER_TEXT[table, key]
    schema = properties_of(MODELS[table])[key]
    now = base_tables()[table].get(key, schema.get("default"))
    if schema.get("type") == "boolean":
        return not now
    if choices(schema):
        return next(choice for choice in choices(schema) if choice != now)
    if kind(schema) == "duration":
        return "131s"
    return now + 1 if now is not None and now < schema["maximum"] else schema["minimum"]


def document(table: str = "", key: str = "", value: object = None) -> Config:
    """Return a configuration with every table in it, one key changed."""
    tables = base_tables()
    if key:
        tables[table][key] = value
    inner = {name: tables[name] for name in ("health", "new_flow_limit")}
    service = {**tables["service"], **inner, "server": [tables["server"]]}
    return Config.model_validate(
        {
            **tables[""],
            "flows": tables["flows"],
            "cluster": tables["cluster"],
            "metrics": tables["metrics"],
            "interface": [tables["interface"]],
            "service": [service],
        }
    )


@pytest.mark.parametrize(("table", "key"), PLAIN_KEYS)
def test_diff_each_key_is_applied_or_announced(table: str, key: str) -> None:
    """
    Rule 18.1, reloads and changes: what a reload changes is in the diff; it reaches the snapshot, or the line says
    that it waits.
    """
    waits = KEYS[table, key].key.reload == "restart"
    before, after = Spec(document()), Spec(document(table, key, other(table, key)))
    lines = diff(before, with_config(before, after.config))
    assert lines
    assert [line.endswith(f": {RESTART}") for line in lines] == [waits] * len(lines)
    if (table, key) == ("interface", "mac"):
        # The daemon compiles with the MACs of the start.
        return
    compiler = Compiler()
    interfaces = [offline_interfaces(each.config) for each in (before, after)]
    drafts = [compiler.draft(each, own) for each, own in zip((before, after), interfaces, strict=True)]
    is_compiled = table in COMPILED and key in {field.name for field in fields(COMPILED[table])}
    if waits or is_compiled or table == "flows":
        assert (drafts[0] == drafts[1]) is waits
    else:
        assert drafts[0] != drafts[1] or KEYS[table, key].attribute in READ, "nothing reads it"


class Host:
    """Takes what is published."""

    def __init__(self) -> None:
        self.generations: list[int] = []

    def publish(self, snapshot: Snapshot) -> None:
        self.generations.append(snapshot.generation)

    def reset_flows(self, server: int) -> None:
        raise AssertionError(f"flows of server {server} are reset")


LIVE = [where for where in PLAIN_KEYS if KEYS[where].key.reload == "live"]


@pytest.mark.parametrize(("table", "key"), LIVE)
def test_reload_live_key_is_in_use_at_once(table: str, key: str) -> None:
    """What needs no restart is part of what the running balancer works by: snapshot, checks, drains, logs, metrics."""
    host, after = Host(), document(table, key, other(table, key))
    controller = Controller(document(), offline_interfaces(document()), host)
    controller.start()
    lines = controller.reload(after, offline_interfaces(after))
    assert lines
    assert not any(RESTART in line for line in lines)
    assert controller.spec.config == after
    assert host.generations == [1, 2]


@pytest.mark.parametrize(("table", "key"), [where for where in PLAIN_KEYS if where not in LIVE])
def test_diff_restart_is_said_again_at_each_reload_until_it_is_undone(table: str, key: str) -> None:
    """What waits for a restart is compared with what runs, not with the file before."""
    running, changed = document(), document(table, key, other(table, key))
    before = Spec(changed)
    again = diff(before, with_config(before, changed), running)
    assert [line.endswith(f": {RESTART}") for line in again] == [True]
    assert diff(before, with_config(before, running), running) == []


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
def test_remap_forecast_of_a_hash_is_counted(policy: str, version: int) -> None:
    """One of ten servers leaves: the clients it has must move; maglev moves few others."""
    compiler = Compiler()
    before = compiler.compile(many(10, policy, version), INTERFACES)
    after = compiler.draft(many(10, policy, version, s3='state = "draining"'), INTERFACES)
    (forecast,) = remap_forecasts(before, after)
    assert forecast.share is not None
    assert forecast.forced == pytest.approx(0.1, abs=0.02)
    assert forecast.forced <= forecast.share <= 1
    if policy == "maglev":
        assert forecast.share - forecast.forced < 0.05


@pytest.mark.parametrize("selector", sorted(HASH_SELECTORS))
def test_remap_forecast_repeats_every_hash(selector: Selector) -> None:
    """A hash selector that the forecast does not repeat would be an error and not a wrong figure."""
    before = Compiler().compile(many(2, "maglev"), INTERFACES)
    (service,) = before.services
    assert service is not None
    plans = (replace(service.plan, selector=selector, slots=slots) for slots in ((0, 1), (1, 0)))
    one, other = (replace(before, services=(replace(service, plan=plan),)) for plan in plans)
    (forecast,) = remap_forecasts(one, other)
    assert (forecast.share, forecast.forced) == (1.0, 0.0)


def test_remap_forecast_unknown_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A selector that was added to the hashes alone."""
    monkeypatch.setattr("lb.control.forecast.HASH_SELECTORS", {"counter"})
    before, after = (Compiler().compile(many(count, "round-robin"), INTERFACES) for count in (2, 3))
    with pytest.raises(ValueError, match="counter is no hash selector"):
        remap_forecasts(before, after)


def test_remap_forecast_of_a_round_cannot_be_told() -> None:
    """For policies without a hash no number would mean anything: that is said."""
    compiler = Compiler()
    before = compiler.compile(many(3, "round-robin"), INTERFACES)
    (forecast,) = remap_forecasts(before, compiler.draft(many(4, "round-robin"), INTERFACES))
    assert forecast.share is None
    assert "placed by counter, not by a hash" in forecast.line()


def test_remap_forecast_nothing_when_the_plan_stays() -> None:
    """An equal plan is no line."""
    compiler = Compiler()
    before = compiler.compile(many(3, "maglev"), INTERFACES)
    assert remap_forecasts(before, compiler.draft(many(3, "maglev"), INTERFACES)) == []


def test_remap_forecast_all_when_no_server_is_left() -> None:
    """A plan without a server takes every client its server."""
    compiler = Compiler()
    before = compiler.compile(many(1, "maglev"), INTERFACES)
    (forecast,) = remap_forecasts(before, compiler.draft(many(1, "maglev", s1="weight = 0"), INTERFACES))
    assert (forecast.share, forecast.forced) == (1.0, 1.0)
