"""`lb doctor`: each fault is found, named, and comes with what fixes it. Machines are made of facts."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lb.config import Config, parse
from lb.doctor import Finding, examine, render
from lb.doctor.diagnosis import CHECKS
from lb.doctor.facts import Facts, Hook, InterfaceFacts, ServerRoute, parse_hooks, parse_kernel
from lb.doctor.wire import Answer, arp_probe, read_answer, solicitation
from lb.net.big_tcp import BigTcp
from lb.privileges.trust import Fault

# ruff: noqa: E501 - one fault per row
VIP, SERVER1, SERVER2 = (ip_address(text) for text in ("198.18.1.100", "198.18.2.31", "198.18.2.32"))
CONFIG = """
[[interface]]
name = "eth0"
[[interface]]
name = "eth1"
[[service]]
name = "video"
address = "198.18.1.100"
port = 9876
server = [
  { name = "server1", address = "198.18.2.31", port = 8031 },
  { name = "server2", address = "198.18.2.32", port = 8032 },
]
"""
ETH0 = InterfaceFacts("eth0", up=True, mtu=1500, addresses=(ip_interface("198.18.1.1/24"),))
ETH1 = InterfaceFacts("eth1", up=True, mtu=1500, addresses=(ip_interface("198.18.2.1/24"),))
TRAFFIC = {"packets_forward": 50, "packets_reply": 40}


def status(**changes: Any) -> dict[str, Any]:
    servers = [{"name": name, **TRAFFIC} for name in ("server1", "server2")]
    return {
        "pid": 7, "backend": "rust", "config": "/etc/lb.toml", "trouble": None, "last_reload_error": None,
        "interfaces": [{"name": "eth0"}, {"name": "eth1"}],
        "services": [{"name": "video", **TRAFFIC, "servers": servers}],
        "counters": {"rx_packets": 1000, "verdicts": {"forward": 1000}, "io": {"rx_dropped": 0}}, **changes,
    }  # fmt: skip


HEALTHY = Facts(
    uid=0,
    capabilities=2**40 - 1,
    kernel=(6, 1),
    config_path="/etc/lb.toml",
    file_faults=(),
    links={"eth0": ETH0, "eth1": ETH1},
    addresses={"eth0": ETH0.addresses, "eth1": ETH1.addresses, "lo": (ip_interface("127.0.0.1/8"),)},
    routes={SERVER1: ServerRoute("eth1", neighbour="reachable"), SERVER2: ServerRoute("eth1", neighbour="stale")},
    has_nft=True,
    hooks=(),
    answers={(SERVER1, 8031): Answer(segment_bytes=1448), (SERVER2, 8032): Answer(segment_bytes=1448)},
    status=status(),
)


def changed(**links: Any) -> Facts:
    """Return healthy facts with changes to eth0."""
    return replace(HEALTHY, links={"eth0": replace(ETH0, **links), "eth1": ETH1})


def troubles(facts: Facts, text: str = CONFIG) -> list[Finding]:
    return [finding for finding in examine(parse(text), facts) if finding.level != "pass"]


def test_healthy_host_every_check_passes() -> None:
    """Nothing to say against it, and every check has said something."""
    findings = examine(parse(CONFIG), HEALTHY)
    assert [finding for finding in findings if finding.level != "pass"] == []
    assert len({finding.check for finding in findings}) == len(CHECKS)
    assert all(finding.fix is None for finding in findings)


# (the facts, the check, its level, what the message and the fix must say)
FAULTS = {
    "no capability": (replace(HEALTHY, capabilities=1 << 12), "privileges", "fail", "no CAP_NET_RAW", "sudo lb run"),
    "old kernel": (replace(HEALTHY, kernel=(4, 19)), "kernel", "fail", "Linux 4.19", "upgrade to Linux 4.20"),
    "file open": (replace(HEALTHY, file_faults=(Fault("/etc/lb.toml can be written by others (mode 0666)", "chmod go-w /etc/lb.toml"),)), "configuration", "fail", "written by others", "chmod go-w /etc/lb.toml"),
    "big frames": (changed(big_tcp=BigTcp("eth0", False, {"gro_max_size": 200000})), "frame size", "fail", "gro_max_size 200000", "ip link set dev eth0 gro_max_size 65536"),
    "big frames of the peer": (changed(big_tcp=BigTcp("veth7", True, {"gso_max_size": 200000})), "frame size", "fail", "its peer veth7", "ip link set dev veth7 gso_max_size 65536"),
    "big frames came": (replace(HEALTHY, status=status(counters={"rx_packets": 9, "verdicts": {}, "io": {"rx_truncated": 4}})), "frame size", "fail", "4 frames larger", "gso_max_size 65536"),
    "guard gone": (changed(claimed=True, guard="none"), "kernel stays out", "fail", "another program removed the rules", "log of `lb run`"),
    "guard left": (changed(guard="nftables"), "kernel stays out", "warn", "no balancer runs, and the kernel is kept from", "start `lb run`"),
    "no interface": (changed(missing="there is no interface 'eth0' here"), "interface", "fail", "no interface 'eth0'", "ip link"),
    "interface down": (changed(up=False), "interface", "fail", "eth0 is down", "ip link set eth0 up"),
    "no address": (changed(addresses=()), "interface", "warn", "eth0 has no address", "ip addr add"),
    "claimed": (replace(changed(claimed=True), status=None), "one balancer", "fail", "another balancer", "--control"),
    "large receive offload": (changed(lro=True), "offloads", "fail", "large receive offload", "ethtool -K eth0 lro off"),
    "guard in trouble": (replace(HEALTHY, status=status(host_guard={"means": None, "trouble": "nft: busy", "repairs": 1})), "kernel stays out", "fail", "nft: busy", "log of `lb run`"),
    "forwarding": (changed(forwards=(4, 6)), "kernel stays out", "warn", "nftables drops", "sysctl -w net.ipv4.ip_forward=0 && sysctl -w net.ipv6"),
    "forwarding, no nft": (replace(changed(forwards=(4,)), has_nft=False), "kernel stays out", "fail", "untranslated copies", "sysctl -w net.ipv4.ip_forward=0"),
    "strict rp_filter": (changed(rp_filter=1), "rp_filter", "warn", "strict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
    "egress hook": (replace(HEALTHY, hooks=(Hook("netdev", "t", "c", "egress", "accept", ("eth0",)),)), "packet filter", "warn", "netdev t c", "nft list chain netdev t c"),
    "input policy": (replace(HEALTHY, hooks=(Hook("inet", "f", "in", "input", "drop"),)), "packet filter", "warn", "health checks", "nft list chain inet f in"),
    "VIP here": (replace(HEALTHY, addresses={"lo": (ip_interface("198.18.1.100/32"),)}), "VIP conflict", "fail", "address of lo", "ip addr del 198.18.1.100 dev lo"),
    "VIP elsewhere": (replace(HEALTHY, owners={VIP: "aa:aa:aa:00:00:99"}), "VIP conflict", "fail", "another host, aa:aa:aa:00:00:99", "remove 198.18.1.100 from"),
    "no client comes": (replace(HEALTHY, status=status(services=[])), "clients come", "warn", "ARP requests of hosts on eth0", "ip route replace 198.18.1.100 via 198.18.1.1"),
    "no route": (replace(HEALTHY, routes={**HEALTHY.routes, SERVER1: ServerRoute(None)}), "server route", "fail", "no route", "ip route add 198.18.2.31"),
    "other way": (replace(HEALTHY, routes={**HEALTHY.routes, SERVER1: ServerRoute("wlan0")}), "server route", "fail", "through wlan0", 'name = "wlan0"'),
    "neighbour": (replace(HEALTHY, routes={**HEALTHY.routes, SERVER1: ServerRoute("eth1", neighbour="failed")}), "server route", "fail", "does not answer ARP", "ip neigh show 198.18.2.31"),
    "gateway": (replace(HEALTHY, routes={**HEALTHY.routes, SERVER1: ServerRoute("eth1", "198.18.2.9", neighbour="failed")}), "server route", "fail", "198.18.2.9 does not answer", "ip neigh show 198.18.2.9"),
    "refused": (replace(HEALTHY, answers={(SERVER1, 8031): Answer("connection refused")}), "server answers", "fail", "port 8031: connection refused", "on server1: `ss -ltn 'sport = :8031'`"),
    "route mtu": (replace(HEALTHY, routes={**HEALTHY.routes, SERVER1: ServerRoute("eth1", mtu=1400)}), "MTU", "warn", "packets of 1500 bytes come in, its path has an MTU of 1400", "ip link set eth1 mtu 1400"),
    "server mtu": (replace(HEALTHY, answers={(SERVER1, 8031): Answer(segment_bytes=1348)}), "MTU", "warn", "MTU of 1400", "path MTU discovery"),
    "trouble": (replace(HEALTHY, status=status(trouble="eth0 is down")), "running", "fail", "eth0 is down", "ip link"),
    "bad reload": (replace(HEALTHY, status=status(last_reload_error="lb.toml:3:1: unknown key")), "running", "warn", "unknown key", "lb check /etc/lb.toml"),
    "not checked": (replace(HEALTHY, blind=("packet filter rules: nft: denied",)), "not checked", "warn", "nft: denied", "as root"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_with_what_fixes_it(name: str) -> None:
    """One fault, one finding: its level, and the very command."""
    facts, check, level, message, fix = FAULTS[name]
    found = [finding for finding in troubles(facts) if finding.check == check]
    assert [finding.level for finding in found] == [level]
    assert message in found[0].message
    assert found[0].fix is not None
    assert fix in found[0].fix


@pytest.mark.parametrize(
    ("path", "message"),
    [("/sys/fs/bpf/flowlb-1-2/table.0", "map /sys/fs/bpf/flowlb-1-2/table.0: why"), (None, "map memory: why")],
)
def test_where_the_flow_table_is_and_why_is_told(path: str | None, message: str) -> None:
    facts = replace(HEALTHY, status=status(table_memory={"memory": "map", "path": path, "why": "why"}))
    found = [finding for finding in examine(parse(CONFIG), facts) if finding.check == "flow table"]
    assert [(finding.level, finding.message) for finding in found] == [("pass", message)]


@pytest.mark.parametrize(("sent", "back", "level"), [(50, 40, None), (3, 0, "fail"), (2, 0, None), (0, 0, None)])
def test_server_that_never_answers_through_here_fails(sent: int, back: int, level: str | None) -> None:
    """The return path: packets went to the server and none returned, though it has had time to answer."""
    rows = [{"name": "server1", "packets_forward": sent, "packets_reply": back}, {"name": "server2", **TRAFFIC}]
    facts = replace(HEALTHY, status=status(services=[{"name": "video", **TRAFFIC, "servers": rows}]))
    found = [finding for finding in troubles(facts) if finding.check == "return path"]
    assert [finding.level for finding in found] == ([level] if level else [])
    assert not found or found[0].fix == "on server1: `ip route replace CLIENTS via 198.18.2.1`"


@pytest.mark.parametrize(("protocol", "level"), [("udp", "pass"), ("tcp", "fail")])
def test_service_of_one_direction_does_not_fail(protocol: str, level: str) -> None:
    """UDP that is never answered (syslog) is no fault; TCP that is never answered is one."""
    text = CONFIG.replace("port = 9876\n", f'port = 9876\nprotocol = "{protocol}"\n')
    rows = [{"name": name, "packets_forward": 5000, "packets_reply": 0} for name in ("server1", "server2")]
    facts = replace(HEALTHY, status=status(services=[{"name": "video", **TRAFFIC, "servers": rows}]))
    found = [finding for finding in examine(parse(text), facts) if finding.check == "return path"]
    assert [finding.level for finding in found] == [level, level]


def test_servers_and_clients_on_one_link_are_warned_of() -> None:
    """Without a packet seen yet, servers in the VIP's own prefix will probably answer past the balancer."""
    text = CONFIG.replace("198.18.2.3", "198.18.1.3")
    near = {ip_address(f"198.18.1.3{number}"): ServerRoute("eth0", neighbour="reachable") for number in (1, 2)}
    facts = replace(HEALTHY, routes=near, answers={}, status=status(services=[]))
    found = [finding for finding in troubles(facts, text) if finding.check == "return path"]
    assert [finding.level for finding in found] == ["warn", "warn"]
    assert found[0].fix == "on server1: `ip route replace 198.18.1.0/24 via 198.18.1.1`"


def test_drops_are_told_with_what_they_mean() -> None:
    """Reasons that make up a share worth mentioning come with a hint; a few stray packets do not."""
    counters = {
        "rx_packets": 1000,
        "verdicts": {"forward": 700, "drop.no_flow": 290, "drop.no_service": 5, "drop.ip_checksum": 5},
        "io": {"rx_dropped": 12},
    }
    found = troubles(replace(HEALTHY, status=status(counters=counters)))
    assert [finding.message for finding in found] == [
        "290 of 1000 packets were dropped as no_flow",
        "12 frames did not fit the socket's queue: packets come faster than they are processed",
    ]
    assert "both directions" in str(found[0].fix)


def test_drops_refused_packets_are_told_too() -> None:
    """A client that was told of the trouble has it all the same; answers that are no trouble are not mentioned."""
    verdicts = {"forward": 700, "reply.neighbour_timeout": 200, "reply.ttl_exceeded": 50, "reply.too_big": 50}
    found = troubles(replace(HEALTHY, status=status(counters={"rx_packets": 1000, "verdicts": verdicts})))
    assert [finding.message for finding in found] == ["200 of 1000 packets were refused as neighbour_timeout"]


def test_transit_forward_on_forwarding_host_fails() -> None:
    """The kernel and the balancer would both send every packet on."""
    found = troubles(changed(forwards=(4,)), 'transit = "forward"\n' + CONFIG)
    assert ("kernel stays out", "fail") in [(finding.check, finding.level) for finding in found]


def test_announced_or_given_mac_nothing_to_warn_of() -> None:
    """What the configuration says makes some warnings needless."""
    text = CONFIG.replace('name = "eth0"', 'name = "eth0"\nannounce = true')
    text = text.replace("port = 8031", 'port = 8031, mac = "aa:aa:aa:00:00:31"')
    routes = {**HEALTHY.routes, SERVER1: ServerRoute("eth1", neighbour="failed")}
    facts = replace(HEALTHY, routes=routes, status=status(services=[]))
    assert {finding.check for finding in troubles(facts, text)} == set()


def test_render_many_passes_are_cut_in_text_only() -> None:
    """A thousand fine servers are no thousand lines; every fault is."""
    findings = [Finding("a", "pass", f"fine {number}") for number in range(100)]
    findings += [Finding("b", "fail", f"broken {number}", "fix it") for number in range(10)]
    text = render(findings, "text")
    assert (text.count("fine"), text.count("broken"), text.count("fix: fix it")) == (4, 10, 10)
    assert text.endswith("10 fail, 0 warn, 100 pass (96 of them not shown: `-o json` has all)\n")
    document = json.loads(render(findings, "json"))
    assert len(document["findings"]) == 110
    assert document["totals"] == {"fail": 10, "warn": 0, "pass": 100}
    assert document["findings"][-1] == {"check": "b", "level": "fail", "message": "broken 9", "fix": "fix it"}


@pytest.mark.parametrize(
    ("release", "version"), [("6.18.44-fc", (6, 18)), ("5.4.0-generic", (5, 4)), ("4.20", (4, 20)), ("odd", (0, 0))]
)
def test_parse_kernel_reads_the_version(release: str, version: tuple[int, int]) -> None:
    assert parse_kernel(release) == version


def test_parse_hooks_takes_base_chains() -> None:
    """As `nft -j list chains` prints them: one device is a string, several are a list, chains without a hook are none."""
    rows: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "inet", "table": "f", "name": "in", "handle": 1, "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "f", "name": "helper", "handle": 2}},
        {"chain": {"family": "netdev", "table": "n", "name": "i", "handle": 3, "dev": "eth0", "hook": "ingress"}},
        {"chain": {"family": "netdev", "table": "n", "name": "j", "handle": 4, "dev": ["eth0", "eth1"], "hook": "egress"}},
    ]  # fmt: skip
    assert list(parse_hooks(rows)) == [
        Hook("inet", "f", "in", "input", "drop"),
        Hook("netdev", "n", "i", "ingress", "accept", ("eth0",)),
        Hook("netdev", "n", "j", "egress", "accept", ("eth0", "eth1")),
    ]


MAC = bytes.fromhex("aaaaaa000001")


def test_arp_probe_asks_without_saying_who_asks() -> None:
    """RFC 5227 2.1.1: the sender's protocol address is all zero, so that no cache changes."""
    frame = Ether(arp_probe(MAC, IPv4Address("198.18.1.100")))
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", "aa:aa:aa:00:00:01")
    assert (frame[ARP].op, frame[ARP].psrc, frame[ARP].pdst) == (1, "0.0.0.0", "198.18.1.100")
    assert frame[ARP].hwsrc == "aa:aa:aa:00:00:01"


def test_solicitation_is_one_of_duplicate_address_detection() -> None:
    """RFC 4862 5.4.2: from the unspecified address to the solicited-node group, with a right checksum."""
    raw = solicitation(MAC, IPv6Address("2001:db8:1::1:2345"))
    frame = Ether(raw)
    assert (frame.dst, frame[IPv6].src, frame[IPv6].dst) == ("33:33:ff:01:23:45", "::", "ff02::1:ff01:2345")
    assert (frame[IPv6].hlim, frame[ICMPv6ND_NS].tgt) == (255, "2001:db8:1::1:2345")
    again = Ether(raw)
    del again[ICMPv6ND_NS].cksum
    assert bytes(again) == raw


def test_read_answer_tells_who_has_an_address() -> None:
    """Replies and announcements tell; probes, other protocols and cut frames do not."""
    theirs = "aa:aa:aa:00:00:99"
    reply = Ether(src=theirs) / ARP(op=2, hwsrc=theirs, psrc="198.18.1.100")
    assert read_answer(bytes(reply)) == (IPv4Address("198.18.1.100"), bytes.fromhex("aaaaaa000099"))
    advertisement = (
        Ether(src=theirs) / IPv6(dst="ff02::1") / ICMPv6ND_NA(tgt="2001:db8::1") / ICMPv6NDOptDstLLAddr(lladdr=theirs)
    )
    assert read_answer(bytes(advertisement)) == (IPv6Address("2001:db8::1"), bytes.fromhex("aaaaaa000099"))
    for nothing in (arp_probe(MAC, IPv4Address("198.18.1.100")), solicitation(MAC, IPv6Address("2001:db8::1")), b"",
                    bytes(reply)[:30], bytes(advertisement)[:60], bytes(Ether() / IPv6())):  # fmt: skip
        assert read_answer(nothing) is None


def test_config_of_these_tests_is_valid() -> None:
    assert isinstance(parse(CONFIG), Config)
