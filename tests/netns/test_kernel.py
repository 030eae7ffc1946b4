"""The kernel's interfaces, routes and neighbours, read and watched on a real link."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from pair import CONFIG, DEADLINE_S, Pair, running_pair

from lb.compiler.compile import Compiler
from lb.config import parse
from lb.errors import InterfaceError, LbError, PrivilegeError
from lb.lab.testbed import isolation
from lb.model.snapshot import Address, Interface, NextHops, Route, Snapshot
from lb.net import host, nft, silence
from lb.net.kernel import Kernel, find_hop

pytestmark = pytest.mark.netns

CONFIGURED = parse(CONFIG)
FAR, FAR6 = ip_address("198.18.1.31"), ip_address("2001:db8:1::31")
FAR_MAC = bytes.fromhex(Pair.FAR_MAC.replace(":", ""))
OTHER_MAC = "aa:aa:aa:00:00:99"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as made:
        yield made


@dataclass
class Seen:
    """What a watched kernel told."""

    kernel: Kernel
    next_hops: list[NextHops] = field(default_factory=list)
    interfaces: list[tuple[Interface, ...]] = field(default_factory=list)
    troubles: list[Exception | None] = field(default_factory=list)

    def faults(self) -> list[Exception]:
        return [error for error in self.troubles if error is not None]

    def mac_of(self, address: Address) -> bytes | None:
        latest = self.next_hops[-1] if self.next_hops else NextHops()
        return next((entry.mac for entry in latest.neighbours if entry.address == address), None)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)
        assert condition(), what


def watch(pair: Pair, scenario: Callable[[Seen], Awaitable[None]]) -> None:
    """Run a scenario with a kernel that is watched from inside `near`."""

    async def main() -> None:
        seen = Seen(Kernel(CONFIGURED))
        await seen.kernel.open()
        try:
            await seen.kernel.read_interfaces()
            seen.next_hops.append(await seen.kernel.read_next_hops())
            seen.kernel.watch(seen.next_hops.append, seen.interfaces.append, seen.troubles.append)
            await scenario(seen)
        finally:
            await seen.kernel.close()

    with isolation.inside(pair.near):
        asyncio.run(main())


def test_read_tables_as_configured(pair: Pair) -> None:
    """Interfaces come with MAC, MTU and prefixes, link-local last; routes with gateway, metric order and MTU."""
    pair.ip(pair.near, "route add 10.9.0.0/16 via 198.18.1.31 mtu 1300")
    pair.ip(pair.near, "route add 10.8.0.0/16 via 198.18.1.32 metric 20")
    pair.ip(pair.near, "route add 10.8.0.0/16 via 198.18.1.31 metric 10")
    pair.ip(pair.near, "route add default nexthop via 198.18.1.31 nexthop via 198.18.1.32")
    pair.ip(pair.near, "route add blackhole 10.7.0.0/16")

    async def scenario(seen: Seen) -> None:
        (interface,) = await seen.kernel.read_interfaces()
        assert (interface.name, interface.mtu) == ("eth0", 1500)
        assert interface.addresses[:2] == (ip_interface("198.18.1.1/24"), ip_interface("2001:db8:1::1/64"))
        routes = (await seen.kernel.read_next_hops()).routes
        assert [route for route in routes if route.prefix == ip_network("10.9.0.0/16")] == [
            Route(ip_network("10.9.0.0/16"), 0, FAR, 1300)
        ]
        metrics = [str(route.gateway) for route in routes if route.prefix == ip_network("10.8.0.0/16")]
        assert metrics == ["198.18.1.31", "198.18.1.32"]
        assert Route(ip_network("0.0.0.0/0"), 0, FAR) in routes
        assert ip_network("10.7.0.0/16") not in [route.prefix for route in routes]

    watch(pair, scenario)


def shown(namespace: str) -> str:
    """Return what `ip` shows of a link."""
    command = ["ip", "-n", namespace, "link", "show", "eth0"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout


@pytest.mark.parametrize("ignores", [False, True], ids=["uses", "ignores"])
def test_link_without_carrier_keeps_its_routes_as_the_kernel_does(pair: Pair, ignores: bool) -> None:
    """
    Rule 11.2, choosing the hop: a cable that was out for a moment must not have clients told that there is no route,
    unless the host is set to give such routes up (`ignore_routes_with_linkdown`).
    """
    pair.ip(pair.near, "route add 10.9.0.0/16 via 198.18.1.31")
    with isolation.inside(pair.near):
        Path("/proc/sys/net/ipv4/conf/eth0/ignore_routes_with_linkdown").write_text(str(int(ignores)))

    async def scenario(seen: Seen) -> None:
        before = set((await seen.kernel.read_next_hops()).routes)
        await asyncio.to_thread(pair.ip, pair.far, "link set eth0 down")
        async with asyncio.timeout(DEADLINE_S):
            while "LOWER_UP" in await asyncio.to_thread(shown, pair.near):
                await asyncio.sleep(0.01)
        after = set((await seen.kernel.read_next_hops()).routes)
        behind = {ip_network("10.9.0.0/16"), ip_network("198.18.1.0/24")}
        lost = {route.prefix for route in before - after if route.prefix.version == 4}
        assert lost == (behind if ignores else set())

    watch(pair, scenario)


def test_tables_read_at_once_are_all_whole(pair: Pair) -> None:
    """A reload reads while the watch does: the kernel gives a socket one table at a time, and refuses a second."""
    routes = [f"10.20.{number}.0/24 via 198.18.1.31\n" for number in range(200)]
    pair.ip(pair.near, "-batch -", "".join(f"route add {route}" for route in routes))

    async def scenario(seen: Seen) -> None:
        reads = [*(seen.kernel.read_next_hops() for _ in range(8)), *(seen.kernel.read_interfaces() for _ in range(8))]
        found = await asyncio.gather(*reads)
        assert all(each == found[0] for each in found[:8])
        assert len(found[0].routes) >= 200
        assert all(each == found[8] for each in found[8:])

    try:
        watch(pair, scenario)
    finally:
        pair.ip(pair.near, "-batch -", "".join(f"route del {route}" for route in routes))


@pytest.mark.parametrize("address", [FAR, FAR6], ids=["arp", "nd"])
def test_resolve_unknown_neighbour_is_learned(pair: Pair, address: Address) -> None:
    """Rule 11, next hop: an unresolved neighbour is asked for by the kernel, and its MAC is handed on."""

    async def scenario(seen: Seen) -> None:
        assert seen.mac_of(address) is None
        await seen.kernel.resolve(0, address)
        await seen.until(lambda: seen.mac_of(address) == FAR_MAC, "the neighbour is known")

    watch(pair, scenario)


def test_use_servers_hops_resolved_without_packets(pair: Pair) -> None:
    """Rule 11, next hop: the hops of servers in use are asked for on their own, the gateway for one behind it."""
    pair.ip(pair.near, "route add 10.9.0.0/16 via 198.18.1.31")

    async def scenario(seen: Seen) -> None:
        seen.kernel.use([ip_address("10.9.0.5"), FAR6, ip_address("203.0.113.1")])
        await seen.until(lambda: seen.mac_of(FAR) == seen.mac_of(FAR6) == FAR_MAC, "both hops are known")

    watch(pair, scenario)


def test_neighbour_changed_mac_is_learned(pair: Pair) -> None:
    """Rule 11, next hop: what the kernel learns anew is handed on, and so is what it loses."""

    async def scenario(seen: Seen) -> None:
        await seen.kernel.resolve(0, FAR)
        await seen.until(lambda: seen.mac_of(FAR) == FAR_MAC, "the first MAC is known")
        pair.ip(pair.near, f"neigh replace 198.18.1.31 lladdr {OTHER_MAC} dev eth0")
        await seen.until(lambda: seen.mac_of(FAR) == bytes.fromhex(OTHER_MAC.replace(":", "")), "the new MAC is known")
        pair.ip(pair.near, "neigh del 198.18.1.31 dev eth0")
        await seen.until(lambda: seen.mac_of(FAR) is None, "the neighbour is forgotten")

    watch(pair, scenario)


def test_link_back_hops_in_use_are_asked_for_at_once(pair: Pair) -> None:
    """
    Rule 11.3, unresolved neighbours: the kernel forgets them with the carrier, and asks again a while after it has
    asked in vain; here that is longer than anybody waits.
    """
    with isolation.inside(pair.near):
        Path("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms").write_text(f"{10_000 * DEADLINE_S:.0f}")

    def carrier() -> bool:
        return "LOWER_UP" in shown(pair.near)

    async def scenario(seen: Seen) -> None:
        seen.kernel.use([FAR])
        await seen.until(lambda: seen.mac_of(FAR) == FAR_MAC, "the hop is known")
        await asyncio.to_thread(pair.ip, pair.far, "link set eth0 down")
        await seen.until(lambda: not carrier() and seen.mac_of(FAR) is None, "the hop is forgotten")
        await seen.kernel.resolve(0, FAR)
        await asyncio.to_thread(pair.ip, pair.far, "link set eth0 up")
        await seen.until(lambda: seen.mac_of(FAR) == FAR_MAC, "the hop is known again")

    watch(pair, scenario)


def test_link_back_before_its_loss_was_read_hops_are_asked_for_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where hops are renewed anyway before it is read that the kernel has forgotten them."""
    with isolation.inside(pair.near):
        Path("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms").write_text(f"{10_000 * DEADLINE_S:.0f}")

    async def scenario(seen: Seen) -> None:
        seen.kernel.use([FAR])
        await seen.until(lambda: seen.mac_of(FAR) == FAR_MAC, "the hop is known")
        gate, follow_carriers = asyncio.Event(), seen.kernel._follow_carriers

        async def followed() -> None:
            await gate.wait()
            await follow_carriers()
            await seen.kernel._renew()

        monkeypatch.setattr(seen.kernel, "_follow_carriers", followed)
        await asyncio.to_thread(pair.ip, pair.far, "link set eth0 down")
        await seen.until(lambda: seen.kernel._were_out, "the loss is told")
        await seen.kernel.resolve(0, FAR)
        await asyncio.to_thread(pair.ip, pair.far, "link set eth0 up")
        await seen.until(lambda: "LOWER_UP" in shown(pair.near), "the link is back")
        seen.next_hops.clear()
        gate.set()
        await seen.until(lambda: seen.mac_of(FAR) == FAR_MAC, "the hop is known again")

    watch(pair, scenario)


@pytest.mark.parametrize("steps", range(6))
def test_links_are_back_at_the_end_watching_ends(pair: Pair, steps: int) -> None:
    """Whatever comes with it, a cancellation is not lost."""

    async def main() -> None:
        kernel = Kernel(CONFIGURED)
        await kernel.open()
        try:
            task = asyncio.create_task(kernel._keep_fresh())
            await asyncio.sleep(0.01)
            kernel._is_back.set()
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=DEADLINE_S)
            assert task.cancelled()
        finally:
            await kernel.close()

    with isolation.inside(pair.near):
        asyncio.run(main())


def test_refresh_permanent_entry_is_left_alone(pair: Pair) -> None:
    """Rule 20.1, restoring the host: an entry that the operator set by hand is used and stays as it is."""
    pair.ip(pair.near, f"neigh replace 198.18.1.31 lladdr {OTHER_MAC} nud permanent dev eth0")

    async def scenario(seen: Seen) -> None:
        seen.kernel.use([FAR, FAR6])
        await seen.until(lambda: seen.mac_of(FAR6) == FAR_MAC, "the hops were asked for")
        shown = subprocess.run(["ip", "neigh", "show", str(FAR)], capture_output=True, text=True, check=True).stdout
        assert shown.split() == ["198.18.1.31", "dev", "eth0", "lladdr", OTHER_MAC, "PERMANENT"]

    watch(pair, scenario)


def test_route_and_interface_changes_are_told(pair: Pair) -> None:
    """Rule 11, next hop: routes, MTU and addresses follow the kernel."""

    async def scenario(seen: Seen) -> None:
        pair.ip(pair.near, "route add 10.9.0.0/16 via 198.18.1.31")
        await seen.until(lambda: find_hop(seen.next_hops[-1], ip_address("10.9.1.1")) == (0, FAR), "the route is known")
        pair.ip(pair.near, "link set eth0 mtu 1400")
        await seen.until(lambda: seen.interfaces and seen.interfaces[-1][0].mtu == 1400, "the MTU is known")
        pair.ip(pair.near, "addr add 198.18.2.1/24 dev eth0")
        added = ip_interface("198.18.2.1/24")
        await seen.until(lambda: added in seen.interfaces[-1][0].addresses, "the address is known")

    watch(pair, scenario)


def test_burst_of_changes_few_publications(pair: Pair) -> None:
    """A thousand events are gathered: the last state is published, after a handful of publications."""
    wanted = 1000
    batch = "\n".join(
        f"neigh add 198.18.{3 + number // 250}.{1 + number % 250} lladdr {OTHER_MAC} dev eth0"
        for number in range(wanted)
    )

    async def scenario(seen: Seen) -> None:
        before = len(seen.next_hops)
        await asyncio.to_thread(pair.ip, pair.near, "-batch -", batch)
        known = lambda: sum(str(entry.address) != "198.18.1.31" for entry in seen.next_hops[-1].neighbours)  # noqa: E731
        await seen.until(lambda: known() >= wanted, "all neighbours are known")
        assert len(seen.next_hops) - before < wanted / 20

    watch(pair, scenario)


def test_interface_down_is_told_and_comes_back(pair: Pair) -> None:
    """An interface that goes down is a trouble with its remedy; after it is up again, routes are told anew."""

    async def scenario(seen: Seen) -> None:
        pair.ip(pair.near, "link set eth0 down")
        await seen.until(seen.faults, "the trouble is told")
        assert str(seen.faults()[0]) == "eth0 is down: `ip link set eth0 up`"
        pair.ip(pair.near, "link set eth0 up")
        pair.ip(pair.near, "route add 10.9.0.0/16 via 198.18.1.31")
        await seen.until(lambda: find_hop(seen.next_hops[-1], ip_address("10.9.1.1")) == (0, FAR), "the route is known")
        await seen.until(lambda: seen.troubles[-1] is None, "the trouble is over")

    watch(pair, scenario)


def test_interface_made_anew_ends_the_watch(pair: Pair) -> None:
    """Another interface of the same name is not the one whose sockets are open: that is for good."""

    async def scenario(seen: Seen) -> None:
        pair.ip(pair.near, "link del eth0")
        pair.ip(pair.near, "link add eth0 type veth peer name eth1")
        pair.ip(pair.near, "link set eth0 up")
        lost = lambda: [error for error in seen.faults() if not isinstance(error, InterfaceError)]  # noqa: E731
        await seen.until(lost, "the loss is told")
        assert isinstance(lost()[0], LbError)

    watch(pair, scenario)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch0", "there is no interface 'nosuch0' here; there are: eth0, lo"),
        ("lo", "lo is not an Ethernet interface"),
    ],
)
def test_read_interfaces_unusable_refused(pair: Pair, name: str, message: str) -> None:
    """What cannot be used is said in one line."""

    async def main() -> None:
        kernel = Kernel(parse(CONFIG.replace("eth0", name)))
        await kernel.open()
        try:
            with pytest.raises(InterfaceError) as caught:
                await kernel.read_interfaces()
            assert str(caught.value) == message
        finally:
            await kernel.close()

    with isolation.inside(pair.near):
        asyncio.run(main())


SNAPSHOT = Compiler().compile(CONFIGURED, (Interface("eth0", bytes(6), 1500),))


@pytest.fixture
def forwarding(pair: Pair) -> Iterator[Snapshot]:
    """Stay inside `near`, whose kernel forwards IPv4."""
    if shutil.which("nft") is None:
        pytest.skip("the command nft (nftables) is not installed")
    pair.forward(pair.near, on=True)
    with isolation.inside(pair.near):
        yield SNAPSHOT


def ruleset() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def test_guard_forwarding_host_blocks_just_the_services(forwarding: Snapshot) -> None:
    """
    Rule 20.1, restoring the host: the services' packets are kept from the forwarding kernel, and stopping removes the
    table.
    """
    guard = host.HostGuard()
    guard.apply(forwarding)
    guard.apply(replace(forwarding, generation=2))
    text = ruleset()
    assert text.count("table inet flowlb_if") == 1
    assert "elements = { 198.18.1.100 }" in text
    assert "elements = { 198.18.1.31 . tcp . 7000 }" in text
    assert "elements = { 2001:db8:1::100 }" in text
    assert 'iifname "eth0" ip daddr @vips4 fib daddr type != local drop' in text
    guard.remove()
    assert ruleset() == ""


def test_guard_left_by_killed_process_is_replaced(forwarding: Snapshot) -> None:
    """A table left behind does not add up at the next start."""
    host.HostGuard().apply(forwarding)
    second = host.HostGuard()
    second.apply(forwarding)
    assert ruleset().count("table inet flowlb_if") == 1
    second.remove()
    assert ruleset() == ""


def test_guard_two_forwarders_refused(forwarding: Snapshot) -> None:
    """With transit = "forward" every packet would go out twice."""
    with pytest.raises(PrivilegeError, match=r"twice: `sysctl -w net.ipv4.ip_forward=0`"):
        host.HostGuard().apply(replace(forwarding, transit="forward"))


def test_guard_without_nft_says_what_to_do(forwarding: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nftables the command that helps is named."""
    monkeypatch.setattr(nft.shutil, "which", lambda _: None)
    with pytest.raises(PrivilegeError, match=r"`sysctl -w net.ipv4.ip_forward=0`, or install nftables"):
        host.HostGuard().apply(forwarding)


def test_guard_servers_change_only_elements_do(forwarding: Snapshot) -> None:
    """
    Rule 20.2, the host's kernel: the table follows the configuration; a change of servers makes it nothing but other
    elements.
    """
    guard = host.HostGuard()
    guard.apply(forwarding)
    before = ruleset()
    server = replace(forwarding.servers[0], address=ip_address("198.18.1.77"))
    guard.apply(replace(forwarding, servers=(server, None)))
    assert ruleset() == "".join(
        line.replace("198.18.1.31", "198.18.1.77") for line in before.splitlines(keepends=True) if "::31" not in line
    )
    guard.apply(forwarding)
    assert ruleset() == before
    assert not guard.repair()
    guard.remove()


def test_guard_table_gone_when_servers_change_is_made_anew(forwarding: Snapshot) -> None:
    """A change finds the table flushed before the watch has seen that: the whole of it is made."""
    guard = host.HostGuard()
    guard.apply(replace(forwarding, servers=()))
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    guard.apply(forwarding)
    assert "198.18.1.31 . tcp . 7000" in ruleset()
    guard.remove()
    assert ruleset() == ""


@pytest.fixture
def guard(pair: Pair) -> Iterator[host.HostGuard]:
    """A guard in `near`, which does not forward; what it made is gone at the end."""
    if shutil.which("nft") is None:
        pytest.skip("the command nft (nftables) is not installed")
    pair.forward(pair.near, on=False)
    with isolation.inside(pair.near):
        guard = host.HostGuard()
        yield guard
        guard.remove()
        assert ruleset() == ""
        assert silence.silenced() == []


def flush() -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True)


Runs = Callable[..., str]


def changing(monkeypatch: pytest.MonkeyPatch, run: Callable[[Runs, str, tuple[str, ...]], str]) -> None:
    """Have a function do what `nft` is run for; it is given what really runs it."""
    real = nft.run_nft
    monkeypatch.setattr(nft, "run_nft", lambda script, *arguments: run(real, script, arguments))


def test_guard_flushed_between_making_and_looking_is_repaired(
    guard: host.HostGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 20.2, the host's kernel: another program that is quicker than our next look takes nothing away for good."""
    flushes = 3

    def run(real: Runs, script: str, arguments: tuple[str, ...]) -> str:
        nonlocal flushes
        printed = real(script, *arguments)
        if script and flushes:
            flushes -= 1
            flush()
        return printed

    changing(monkeypatch, run)
    guard.apply(SNAPSHOT)
    assert ruleset() == ""
    assert [guard.repair() for _ in range(4)] == [True, True, True, False]
    assert "198.18.1.100" in ruleset()
    assert guard.state() == host.GuardState("nftables", None, 3)


def test_guard_that_is_left_to_another_process_is_not_repaired(guard: host.HostGuard) -> None:
    """Rule 23.2, taking over: a repair would put back what another snapshot needs."""
    guard.apply(SNAPSHOT)
    before = ruleset()
    guard.leave()
    assert ruleset() == before
    flush()
    assert not guard.repair()
    assert ruleset() == ""


def test_guard_rules_flushed_before_an_addition_come_back(guard: host.HostGuard) -> None:
    """
    Rule 20.2, the host's kernel: what is found when servers change is not taken for ours: it is what the snapshot
    wants, or not.
    """
    guard.apply(replace(SNAPSHOT, servers=()))
    before = ruleset()
    table = re.search(r"table inet (flowlb_if\d+)", before)
    assert table is not None
    for damage in (f"flush chain inet {table[1]} prerouting", f"add table inet {table[1]} {{ flags dormant; }}"):
        guard.apply(replace(SNAPSHOT, servers=()))
        subprocess.run(["nft", damage], check=True)
        guard.apply(SNAPSHOT)
        guard.repair()
        assert "198.18.1.31 . tcp . 7000" in ruleset()
        assert "flags" not in ruleset()
        guard.apply(replace(SNAPSHOT, servers=()))
        assert ruleset() == before


@pytest.mark.parametrize("damage", ["flush set inet {} vips6", "add element inet {} vips4 {{ 192.0.2.1 }}",
                                    "add chain inet {} more", "flush chain inet {} prerouting",
                                    "delete table inet {}", "insert rule inet {} prerouting accept",
                                    "add table inet {} {{ flags dormant; }}"])  # fmt: skip
def test_guard_table_changed_is_repaired(guard: host.HostGuard, damage: str) -> None:
    """
    Rule 20.2, the host's kernel: whatever another program does to the table, one look later it is as the snapshot
    wants it.
    """
    guard.apply(SNAPSHOT)
    before = ruleset()
    table = re.search(r"table inet (flowlb_if\d+)", before)
    assert table is not None
    subprocess.run(["nft", damage.format(table[1])], check=True)
    assert ruleset() != before
    assert guard.repair()
    assert sorted(ruleset().split()) == sorted(before.split())
    assert not guard.repair()


def test_guard_nft_fails_once_the_addition_gets_in_later(
    guard: host.HostGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 20.2, the host's kernel: a new VIP that nft refused when it came is in the table once nft works again."""
    guard.apply(replace(SNAPSHOT, services=SNAPSHOT.services[:1], servers=SNAPSHOT.servers[:1]))
    assert "2001:db8:1::100" not in ruleset()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> str:
            raise nft.NftError("nft: busy")

        changing(patch, fail)
        guard.apply(SNAPSHOT)
        assert guard.state() == host.GuardState("rule", None, 0)
        assert silence.silenced() == ["eth0"]
        # With no rule to be had either, it is said, once.
        patch.setattr(silence, "silenced", list)
        patch.setattr(silence, "silence", raise_oserror)
        assert not guard.repair()
        assert not guard.repair()
        trouble = guard.state().trouble
        assert trouble is not None
        assert "nft: busy" in trouble
        assert caplog.text.count("cannot block the services' packets for the host's kernel") == 1
    assert not guard.repair()
    assert "2001:db8:1::100" in ruleset()
    assert silence.silenced() == []
    assert guard.state() == host.GuardState("nftables", None, 0)


def raise_oserror(*_: object) -> None:
    raise OSError(95, "not supported")


def test_guard_removed_between_making_and_looking_leaves_nothing(
    guard: host.HostGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Rule 20.1, restoring the host: a table is removed though nothing was ever seen of it; and a look that comes late
    makes none.
    """

    def run(real: Runs, script: str, arguments: tuple[str, ...]) -> str:
        if arguments[:2] == ("-j", "list"):
            raise nft.NftError("nft: Error: No such file or directory")
        return real(script, *arguments)

    changing(monkeypatch, run)
    guard.apply(SNAPSHOT)
    assert "198.18.1.100" in ruleset()
    guard.remove()
    assert not guard.repair()
    assert ruleset() == ""


def test_guard_refused_on_a_forwarding_host_old_table_stays(
    forwarding: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 20.2, the host's kernel: a change that cannot be guarded is refused, and what was wanted before is kept."""
    guard = host.HostGuard()
    guard.apply(replace(forwarding, servers=()))
    before = ruleset()
    with monkeypatch.context() as patch:

        def run(real: Runs, script: str, arguments: tuple[str, ...]) -> str:
            real(script, *arguments)
            raise nft.NftError("nft: timed out after it was done")

        changing(patch, run)
        with pytest.raises(PrivilegeError, match="untranslated copies"):
            guard.apply(forwarding)
    guard.repair()
    assert ruleset() == before
    guard.remove()


def test_guard_quiet_host_blocked_too(pair: Pair) -> None:
    """Rule 20.2, the host's kernel: a host that does not forward now may do so later, or answer in IPv6."""
    if shutil.which("nft") is None:
        pytest.skip("the command nft (nftables) is not installed")
    with isolation.inside(pair.near):
        guard = host.HostGuard()
        guard.apply(SNAPSHOT)
        assert "198.18.1.100" in ruleset()
        guard.remove()
        assert ruleset() == ""
