"""The admin API: what can be read, what can be changed, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import CONFIG, ServedBalancer, serving

from lb.config import Config, dump_config
from lb.control.api.client import change, fetch
from lb.errors import RemoteError


@pytest.fixture
def served(backend: str, tmp_path: Path) -> Iterator[ServedBalancer]:
    made = ServedBalancer(tmp_path, backend)
    with serving(made):
        yield made


def server_of(served: ServedBalancer, service: str, name: str) -> dict[str, Any]:
    status = fetch(served.control, "/status")
    servers = next(each for each in status["services"] if each["name"] == service)["servers"]
    return next(dict(each) for each in servers if each["name"] == name)


def refused(served: ServedBalancer, resource: str, **arguments: object) -> tuple[str, int]:
    """Return what the balancer says to a change that it refuses, and the exit code."""
    generation = served.controller.generation
    with pytest.raises(RemoteError) as caught:
        change(served.control, resource, arguments)
    assert served.controller.generation == generation
    return str(caught.value), caught.value.exit_code


@pytest.mark.parametrize(
    ("resource", "state"), [("/drain", "draining"), ("/disable", "disabled"), ("/enable", "active")]
)
def test_state_commands_change_the_state(served: ServedBalancer, resource: str, state: str) -> None:
    """A server's state is what the operator says, and a second time nothing changes."""
    served.controller.set_state("video", "server2", "disabled" if state != "disabled" else "draining")
    answer = change(served.control, resource, {"service": "video", "server": "server2"})
    assert answer == {"generation": 3, "changed": True}
    assert server_of(served, "video", "server2")["state"] == state
    again = change(served.control, resource, {"service": "video", "server": "server2"})
    assert again == {"generation": 3, "changed": False}


def test_weight_add_remove(served: ServedBalancer) -> None:
    """Weights change, servers come and go; the status says what is not as in the file."""
    change(served.control, "/weight", {"service": "video", "server": "server1", "weight": 7})
    described = {"name": "server9", "address": "198.18.1.39", "port": 80, "mac": "aa:aa:aa:00:00:39"}
    change(served.control, "/add", {"service": "video", "server": described})
    assert server_of(served, "video", "server1")["notes"] == ["weight 1 in the file"]
    assert server_of(served, "video", "server9")["notes"] == ["added by operator"]
    change(served.control, "/remove", {"service": "video", "server": "server9"})
    assert server_of(served, "video", "server9")["leaving"] is True


def test_disable_with_reset_ends_the_flows(served: ServedBalancer) -> None:
    """Rule 18.2, servers that leave or fail: on request, flows are reset; without that they stay."""
    name = served.open("198.18.1.21", 40000)
    change(served.control, "/disable", {"service": "video", "server": name})
    assert fetch(served.control, "/server", service="video", server=name)["flows_active"] == 1
    change(served.control, "/disable", {"service": "video", "server": name, "reset": True})
    assert fetch(served.control, "/server", service="video", server=name)["flows_active"] == 0


@pytest.mark.parametrize(
    ("resource", "arguments", "message"),
    [
        ("/drain", {}, "service: a name is needed"),
        ("/drain", {"service": "video", "server": 3}, "server: a name is needed"),
        ("/drain", {"service": "video", "server": "s", "when": 1}, "unknown: when; allowed: service, server, reset"),
        ("/drain", {"service": "video", "server": "server1", "reset": "yes"}, "reset: true or false is needed"),
        ("/drain", {"service": "vidoe", "server": "server1"}, "there is no service vidoe; did you mean video?"),
        ("/weight", {"service": "video", "server": "server1"}, "weight: "),
        ("/weight", {"service": "video", "server": "server1", "weight": -1}, "weight: -1 is not in 0..65535"),
        ("/weight", {"service": "video", "server": "server1", "weight": 2.5}, "weight: 2.5 is a float, not an"),
        ("/add", {"service": "video", "server": {"name": "x", "address": "198.18.1.39"}}, "server: required key "),
        ("/add", {"service": "video", "server": "x"}, "server: "),
        (
            "/add",
            {"service": "video", "server": {"name": "x", "address": "127.0.0.1", "port": 0, "wieght": 2}},
            "server.address: 127.0.0.1 is a loopback address (a unicast address of a host); "
            'server.port: 0 is not in 1..65535; server.wieght: unknown key (did you mean "weight"?)',
        ),
        (
            "/add",
            {"service": "video", "server": {"name": "x", "address": "2001:db8::1", "port": 1}},
            "2001:db8::1 is IPv6, the VIP 198.18.1.100 is IPv4",
        ),
        (
            "/add",
            {"service": "video", "server": {"name": "x", "address": "198.18.1.100", "port": 1}},
            "198.18.1.100 is the VIP of service video: a server has a real address",
        ),
        (
            "/add",
            {"service": "video", "server": {"name": "server1", "address": "198.18.1.39", "port": 1}},
            "video/server1 already exists",
        ),
        ("/reload", {"dry_run": "no"}, "dry_run: true or false is needed"),
    ],
)  # fmt: skip
def test_wrong_arguments_change_nothing(
    served: ServedBalancer, resource: str, arguments: dict[str, object], message: str
) -> None:
    """Wrong parameters get an error of one line, with exit code 2."""
    said, code = refused(served, resource, **arguments)
    assert said.startswith(message)
    assert (code, "\n" in said) == (2, False)


def test_add_with_the_address_of_an_interface_refused(served: ServedBalancer) -> None:
    """Only the machine knows its own addresses."""
    server = {"name": "x", "address": "198.18.1.1", "port": 1}
    said, code = refused(served, "/add", service="video", server=server)
    assert (said, code) == ("server video/x: 198.18.1.1 is an address of eth0: the host itself would answer", 3)


def test_flows_are_filtered_and_paged(served: ServedBalancer) -> None:
    """A page is part of what fits the filters, and says how much that is."""
    servers = {port: served.open("198.18.1.21", port) for port in range(40000, 40020)}
    served.open("198.18.1.22", 50000)
    served.open("198.18.1.22", 50001, "dns")

    def ports(**asked: str | int) -> tuple[int, list[int]]:
        answer = fetch(served.control, "/flows", **asked)
        return answer["total"], [flow["client_port"] for flow in answer["flows"]]

    assert ports(limit=3) == (22, [40000, 40001, 40002])
    assert ports(limit=5, offset=20) == (22, [50000, 50001])
    assert ports(client="198.18.1.22", service="dns") == (1, [50001])
    assert ports(state="udp-unreplied") == (1, [50001])
    assert ports(state="udp") == (0, [])
    assert ports(state="syn-sent", client="198.18.1.22") == (1, [50000])
    wanted = [port for port, server in servers.items() if server == "server2"]
    assert ports(client="198.18.1.21", server="server2") == (len(wanted), wanted)
    assert ports(limit=-4, offset=-3) == (22, [])


def test_flows_page_is_bounded(served: ServedBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 21.3, control socket: an answer has an upper bound, whatever the limit of the request."""
    for port in range(40000, 40009):
        served.open("198.18.1.21", port)
    monkeypatch.setattr("lb.control.api.handlers.MAX_FLOWS", 7)
    assert len(fetch(served.control, "/flows", limit=1_000_000)["flows"]) == 7


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": "x"}, "limit: 'x' is not a number"),
        ({"offset": "9" * 20}, f"offset: {'9' * 20} is not in 0..4294967296"),
        ({"offset": str(2**64)}, f"offset: {2**64} is not in 0..4294967296"),
        ({"limit": "1e3"}, "limit: '1e3' is not a number"),
        ({"offset": "9" * 21}, f"offset: '{'9' * 21}' is not a number"),
        ({"service": "nope"}, "there is no service nope"),
        ({"service": "video", "server": "nope"}, "there is no server video/nope"),
        ({"server": "nope"}, "there is no server nope"),
        ({"colour": "red"}, "flows have no colour: filter by client, service, server, state"),
        ({"client": "somebody"}, "client: 'somebody' is not an IP address"),
        ({"client": "fe80::1%eth0"}, "client: 'fe80::1%eth0' is not an IP address"),
        (
            {"state": "open"},
            "state: 'open' is none of syn-sent, syn-received, established, closing, udp, pickup, udp-unreplied, "
            "one-way",
        ),
    ],
)
def test_flows_wrong_filter_is_said(served: ServedBalancer, query: dict[str, str], message: str) -> None:
    """A filter that is none is no empty answer."""
    with pytest.raises(RemoteError) as caught:
        fetch(served.control, "/flows", **query)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)


def test_status_counts_and_rates(served: ServedBalancer) -> None:
    """The status has the table's use and the flows of each service."""
    for port in range(40000, 40005):
        served.open("198.18.1.21", port)
    status = fetch(served.control, "/status")
    assert status["table"] == {"entries": 5, "capacity": 1000}
    assert [service["flows_active"] for service in status["services"]] == [5, 0]


def test_config_dump_is_a_configuration(served: ServedBalancer) -> None:
    """What is dumped can be read again, and says what the operator changed."""
    served.controller.set_state("video", "server2", "draining")
    served.controller.remove("dns", "ns1")
    dumped = fetch(served.control, "/config")
    assert dump_config(Config.model_validate(dumped["config"])) == dump_config(served.controller.config)
    assert dumped["changes"] == {"video/server2": {"state": "draining", "weight": None}}
    assert (dumped["added"], dumped["removed"]) == ({}, ["dns/ns1"])


def test_history_tells_what_happened_and_why(served: ServedBalancer) -> None:
    """The last changes, with their reason."""
    served.controller.set_health("video", "server1", up=False, reason="3 checks failed")
    change(served.control, "/drain", {"service": "video", "server": "server2"})
    told = [(event["what"], event["change"], event["reason"]) for event in fetch(served.control, "/history")]
    assert told == [
        ("video/server1", "down", "3 checks failed"), ("video/server2", "draining", "by operator")
    ]  # fmt: skip


def test_reload_dry_run_tells_and_changes_nothing(served: ServedBalancer) -> None:
    """`--dry-run`: the diff, and which share of new flows would go elsewhere; nothing happens."""
    served.path.write_text(CONFIG.replace("port = 8032\n", 'port = 8032\n  state = "disabled"\n'))
    answer = change(served.control, "/reload", {"dry_run": True})
    assert answer["diff"] == ["~ video/server2: active -> disabled"]
    (forecast,) = answer["moves"]
    assert forecast["service"] == "video"
    assert forecast["share"] == forecast["forced"] == pytest.approx(0.5, abs=0.02)
    assert served.controller.generation == 1
    done = change(served.control, "/reload", {})
    assert (done["diff"], done["generation"]) == (answer["diff"], 2)


def test_reload_broken_file_says_where(served: ServedBalancer) -> None:
    """Rule 18.1, reloads and changes: file, line and column; exit code 3."""
    served.path.write_text(CONFIG.replace("port = 9876", "port = 0"))
    for arguments in ({}, {"dry_run": True}):
        said, code = refused(served, "/reload", **arguments)
        assert said.startswith(f"{served.path}:6:8: service[0].port: 0 is not in 1..65535")
        assert code == 3
