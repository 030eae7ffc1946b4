"""`lb explain`: what it says is what happens, and saying it changes nothing."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lb.backends.base import Engine
from lb.balancer import Balancer
from lb.compiler.edits import with_health, with_override
from lb.compiler.spec import HealthStatus, Override, ServerKey, Spec
from lb.config import Config, parse
from lb.errors import LbError, RequestError, UnknownNameError
from lb.explain.placement import Endpoint, Known, Question, explain, known_from, parse_endpoint
from lb.explain.text import render
from lb.model.snapshot import Plan

TEXT = """
[[interface]]
name = "eth0"
mac = "aa:aa:aa:00:00:01"
addresses = ["198.18.1.1/24", "2001:db8:1::1/64"]
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
policy = {policy}
server = [
  {{ name = "server1", address = "198.18.1.31", port = 8031, mac = "aa:aa:aa:00:00:31", weight = 3 }},
  {{ name = "server2", address = "198.18.1.32", port = 8032, mac = "aa:aa:aa:00:00:32" }},
  {{ name = "server3", address = "198.18.1.33", port = 8033, mac = "aa:aa:aa:00:00:33", state = "draining" }},
]
[[service]]
name = "dns"
address = "198.18.1.100"
port = 53
protocol = "udp"
policy = {policy}
server = [
  {{ name = "server1", address = "198.18.1.31", port = 5353, mac = "aa:aa:aa:00:00:31" }},
  {{ name = "server2", address = "198.18.1.32", port = 5353, mac = "aa:aa:aa:00:00:32" }},
]
[[service]]
name = "video6"
address = "2001:db8:1::100"
port = 9876
policy = {policy}
server = [
  {{ name = "server1", address = "2001:db8:1::31", port = 8031, mac = "aa:aa:aa:00:00:31" }},
  {{ name = "server2", address = "2001:db8:1::32", port = 8032, mac = "aa:aa:aa:00:00:32" }},
]
"""
CLIENT_MAC, ROUTER_MAC = "aa:aa:aa:00:00:21", "aa:aa:aa:00:00:01"
CLIENTS = {"198.18.1.100": "198.18.1.21", "2001:db8:1::100": "2001:db8:1::21"}


def config(policy: str = "round-robin") -> Config:
    return parse(TEXT.format(policy=f'"{policy}"'))


def ask(text: str, vip: str, protocol: Any = None) -> Question:
    return Question(parse_endpoint(text), parse_endpoint(vip), protocol)


def syn(port: int, vip: str) -> bytes:
    ip = IPv6 if ":" in vip else IP
    client = CLIENTS[vip]
    return bytes(
        Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / ip(src=client, dst=vip) / TCP(sport=port, dport=9876, flags="S")
    )


def datagram(port: int) -> bytes:
    return bytes(
        Ether(src=CLIENT_MAC, dst=ROUTER_MAC)
        / IP(src="198.18.1.21", dst="198.18.1.100")
        / UDP(sport=port, dport=53)
        / b"query"
    )


def known_of(balancer: Balancer, question: Question) -> Known:
    """Return what a balancer knows, as the daemon gathers it."""
    path: Engine = balancer._engine
    number = next(
        i for i, each in enumerate(balancer.snapshot.services) if each and (each.address, each.port) == question.vip
    )
    flow, next_round = path.peek(number, question.client.address, question.client.port, balancer.clock.now_ns())
    active = {name: each["flows_active"] for name, each in balancer.counters()["servers"].items()}
    return Known(
        Spec(balancer.config), balancer.snapshot, known_from(balancer.config).next_hops, active, flow, next_round
    )


@pytest.mark.parametrize("policy", ["static", "round-robin", "least-connections", "source-hash", "maglev"])
@pytest.mark.parametrize("vip", CLIENTS)
def test_explain_says_what_the_next_packet_gets(backend: str, policy: str, vip: str) -> None:
    """Where nothing is left to chance, the server named before is the server chosen; afterwards, the flow is there."""
    balancer = Balancer.from_config(config(policy), backend)
    for port in range(40000, 40040):
        question = Question(Endpoint(ip_address(CLIENTS[vip]), port), Endpoint(ip_address(vip), 9876))
        before = balancer.counters()
        answer = explain(question, known_of(balancer, question))
        assert balancer.counters() == before
        assert answer["flow"] is None
        assert answer["choice"]["server"] == balancer.process(syn(port, vip)).server
        after = explain(question, known_of(balancer, question))
        assert after["flow"]["state"] == "syn-sent"
        assert (after["choice"]["server"], after["choice"]["how"]) == (
            answer["choice"]["server"],
            "the flow exists: it keeps its server",
        )


@pytest.mark.parametrize("vip", CLIENTS)
def test_explain_headers_are_those_of_the_packet_that_leaves(backend: str, vip: str) -> None:
    """Every field of the `after` column is what scapy reads from the frame that the backend sends."""
    balancer = Balancer.from_config(config(), backend)
    question = Question(Endpoint(ip_address(CLIENTS[vip]), 40000), Endpoint(ip_address(vip), 9876))
    answer = explain(question, known_of(balancer, question))
    sent = Ether(balancer.process(syn(40000, vip)).out[0][1])
    ip = sent[IPv6 if ":" in vip else IP]
    assert answer["headers"]["forward"]["after"] == {
        "ethernet_source": sent.src, "ethernet_destination": sent.dst, "source": ip.src, "destination": ip.dst,
        "ttl": ip.hlim if ":" in vip else ip.ttl, "source_port": sent[TCP].sport, "destination_port": sent[TCP].dport,
    }  # fmt: skip
    hop = {"interface": "eth0", "address": ip.dst, "mac": sent.dst, "mtu": 1500}
    assert answer["next_hop"] == hop


def test_explain_servers_each_in_or_out_with_its_reason() -> None:
    """Drained by the file or by the operator, down and why, weight 0: each is said."""
    spec = with_health(Spec(config()), ServerKey("video", "server2"), HealthStatus("down", reason="refused"))
    known = known_from(config())
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), Known(spec, known.snapshot, known.next_hops, {}))
    assert [(server["name"], server["candidate"], server["why"]) for server in answer["servers"]] == [
        ("server1", True, "takes new flows"),
        ("server2", False, "down: refused"),
        ("server3", False, "draining, by the configuration"),
    ]
    spec = with_override(spec, ServerKey("video", "server1"), Override(state="disabled"))
    spec = with_override(spec, ServerKey("video", "server3"), Override(state="active", weight=0))
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), Known(spec, known.snapshot, known.next_hops, {}))
    assert [server["why"] for server in answer["servers"]] == [
        "disabled, by the operator", "down: refused", "weight 0",
    ]  # fmt: skip


def test_explain_user_policy_is_not_asked(tmp_path: Path) -> None:
    """A policy of the user's decides when the flow comes: none is promised; what its fall-back would do is said."""
    policy = tmp_path / "mine.py"
    policy.write_text("class Mine:\n    def choose(self, flow, servers):\n        raise SystemError('asked')\n")
    text = TEXT.format(policy=f'"{policy}:Mine"')
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), known_from(parse(text)))
    choice = answer["choice"]
    assert (answer["plan"]["selector"], choice["server"], choice["verdict"]) == ("ask", None, "forward")
    assert choice["asked"] == ["server1", "server2"]
    assert choice["chances"] == {"server1": 1.0}
    assert "choice      as the user's policy answers; without an answer: server1" in render(answer).splitlines()


def test_explain_random_gives_the_chances() -> None:
    """With weights 3 and 1, three quarters and one; no server is named."""
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), known_from(config("random")))
    assert answer["choice"]["chances"] == {"server1": 0.75, "server2": 0.25}
    assert (answer["choice"]["server"], answer["headers"]) == (None, None)


@pytest.mark.parametrize("scores", [(), (1, 1, 5, 2)])
@pytest.mark.parametrize("active", [(0, 0), (3, 1), (1, 3), (2, 2)])
def test_explain_two_choices_chances_are_exact(active: tuple[int, int], scores: tuple[int, ...]) -> None:
    """The chances are those of drawing every pair of slots once."""
    known = known_from(config("two-choices"))
    service = known.snapshot.services[0]
    assert service is not None
    plan = Plan("two-choices", (0, 0, 1, 1), scores)
    services = (replace(service, plan=plan),)
    snapshot = replace(known.snapshot, services=services, servers=known.snapshot.servers[:3])
    load = {"video/server1": active[0], "video/server2": active[1]}
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), Known(known.spec, snapshot, known.next_hops, load))
    wins = {"server1": 0, "server2": 0}
    cost = [(active[slot] + 1) * (scores[index] if scores else 1) for index, slot in enumerate(plan.slots)]
    for first, second in itertools.permutations(range(4), 2):
        chosen = second if cost[second] < cost[first] else first
        wins[f"server{plan.slots[chosen] + 1}"] += 1
    expected = {name: count / 12 for name, count in wins.items() if count}
    assert {name: share for name, share in answer["choice"]["chances"].items() if share} == pytest.approx(expected)


def test_explain_no_server_says_what_the_client_gets() -> None:
    """No slot: a reset, or silence where the service says so."""
    text = TEXT.format(policy='"round-robin"')
    for before in ("weight = 3", 'mac = "aa:aa:aa:00:00:32"'):
        text = text.replace(before, f'{before}, state = "disabled"', 1)
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), known_from(parse(text)))
    assert (answer["choice"]["verdict"], answer["choice"]["reason"]) == ("reply", "no_server")
    assert "the client gets a TCP RST" in answer["notes"]
    silent = text.replace('policy = "round-robin"', 'policy = "round-robin"\non_no_server = "drop"', 1)
    answer = explain(ask("198.18.1.21:1", "198.18.1.100:9876"), known_from(parse(silent)))
    assert answer["choice"]["verdict"] == "drop"


@pytest.mark.parametrize("client", ["198.18.1.1", "198.18.1.100", "127.0.0.1", "198.18.1.255", "224.0.0.1"])
def test_explain_client_that_no_packet_comes_from(backend: str, client: str) -> None:
    """A source that is refused before any service is looked at, as the backend does."""
    question = ask(f"{client}:40000", "198.18.1.100:9876")
    balancer = Balancer.from_config(config(), backend)
    answer = explain(question, known_of(balancer, question))
    assert (answer["choice"]["verdict"], answer["choice"]["reason"]) == ("drop", "martian_source")
    frame = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=client, dst="198.18.1.100") / TCP(sport=40000, dport=9876)
    assert balancer.process(bytes(frame)).reason == "martian_source"


def test_explain_protocol_tcp_before_udp_unless_asked() -> None:
    """A port that only UDP serves is found without being told so."""
    assert explain(ask("198.18.1.21:1", "198.18.1.100:53"), known_from(config()))["service"]["name"] == "dns"
    with pytest.raises(UnknownNameError):
        explain(ask("198.18.1.21:1", "198.18.1.100:53", "tcp"), known_from(config()))


@pytest.mark.parametrize(
    ("vip", "error", "message"),
    [
        ("198.18.1.100:987", UnknownNameError,
         "198.18.1.100:987 is not a service: such packets are dropped (no_service); "
         "on this VIP: 198.18.1.100:9876/tcp (video), 198.18.1.100:53/udp (dns)"),
        ("198.18.1.10:9876", UnknownNameError, "198.18.1.10 is not a VIP: .*198.18.1.100:9876/tcp"),
        ("[2001:db8:1::100]:9876", RequestError, "198.18.1.21 is IPv4, 2001:db8:1::100 is IPv6: no packet has both"),
    ],
)  # fmt: skip
def test_explain_no_such_service_names_what_is_near(vip: str, error: type[LbError], message: str) -> None:
    """One line: what happens to such packets, and which services there are."""
    with pytest.raises(error) as raised:
        explain(ask("198.18.1.21:1", vip), known_from(config()))
    assert re.match(message.replace("(", r"\(").replace(")", r"\)"), str(raised.value))
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "198.18.1.21", "198.18.1.21:", "198.18.1.21:0", "198.18.1.21:70000", "a:1", ":1",
                                  "2001:db8::1", "198.18.1.21:-1", "198.18.1.21:+1", "[198.18.1.21:1",
                                  "198.18.1.21:\u0661", "198.18.1.\u0661:1", "[fe80::1%eth0]:1"])  # fmt: skip
def test_parse_endpoint_nonsense_refused(text: str) -> None:
    """What is no address with a port is told with an example."""
    with pytest.raises(RequestError, match=re.escape("such as 198.18.1.21:40000")):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["198.18.1.21:40000", "[2001:db8::21]:80"])
def test_parse_endpoint_reads_what_it_shows(text: str) -> None:
    assert str(parse_endpoint(text)) == text


def test_render_shows_choice_servers_and_what_changes() -> None:
    """The text names the server, who is out and why, and marks the fields that are rewritten."""
    text = render(explain(ask("198.18.1.21:40000", "198.18.1.100:9876"), known_from(config())))
    lines = text.splitlines()
    assert "choice      server1" in lines
    assert "because     round 0: slot 0 of 4, if no other flow comes first" in lines
    assert any(line.startswith("out  server3") and line.endswith("draining, by the configuration") for line in lines)
    assert any(line.split() == ["destination", "198.18.1.100", "198.18.1.31", "*"] for line in lines)
    assert any(line.split() == ["source", "198.18.1.21", "198.18.1.21"] for line in lines)


def test_command_answers_from_a_file_and_ends_with_2_for_what_is_unknown(tmp_path: Path) -> None:
    """`lb explain -c FILE -o json` is JSON on stdout; an unknown service is one line on stderr and exit code 2."""
    path = tmp_path / "lb.toml"
    path.write_text(TEXT.format(policy='"maglev"'))

    def run(vip: str) -> subprocess.CompletedProcess[str]:
        code = "from lb.cli import main; main()"
        command = [sys.executable, "-c", code, "explain", "198.18.1.21:40000", vip, "-c", str(path), "-o", "json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = run("198.18.1.100:9876")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["service"]["policy"] == "maglev"
    done = run("198.18.1.100:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
