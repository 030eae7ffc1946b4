"""lb._core at its border: what it takes, what it refuses and how, and its single stages against known vectors."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from attaching import attached
from lb import _core
from lb.backends import base, rust
from lb.backends.base import AttachedInterface
from lb.errors import BackendError, LbError
from lb.model.snapshot import Interface, Neighbour, NextHops, Plan, Route, Server, Snapshot
from lb.model.verdict import EVENTS
from lb.packet.headers import Headers
from lb.packet.offload import Offload
from snapshots import complete_snapshot, make_service

ROUTER_MAC = bytes.fromhex("aaaaaa000001")
CLIENT_MAC = bytes.fromhex("aaaaaa000021")
SERVER_MAC = bytes.fromhex("aaaaaa000031")
VIP, CLIENT, SERVER = (IPv4Address(f"198.18.1.{last}") for last in (100, 21, 31))
KEY = bytes(range(16))
HOPS = NextHops((Route(IPv4Network("198.18.1.0/24"), 0),), (Neighbour(0, SERVER, SERVER_MAC),))


def make_snapshot(**changes: Any) -> Snapshot:
    """One UDP service with one server; `changes` replace fields."""
    given: dict[str, Any] = {
        "generation": 1,
        "seed": 1,
        "interfaces": (Interface("eth0", ROUTER_MAC, 1500, (IPv4Interface("198.18.1.1/24"),)),),
        "services": (make_service("dns", VIP, 53, "udp", Plan("counter", (0,))),),
        "servers": (Server("server1", 0, 0, SERVER, 5353),),
    }
    return complete_snapshot(**(given | changes))


def make_datapath(snapshot: Snapshot | None = None) -> _core.DataPath:
    path = _core.DataPath(16, KEY, 1)
    path.publish(snapshot or make_snapshot())
    path.set_next_hops(HOPS)
    return path


def request(port: int = 40000) -> bytes:
    """Return a UDP datagram from the client to the VIP."""
    header = bytearray.fromhex("45000020000000004011") + b"\0\0" + CLIENT.packed + VIP.packed
    header[10:12] = _core.checksum(bytes(header)).to_bytes(2, "big")
    return (
        ROUTER_MAC + CLIENT_MAC + b"\x08\0" + header + port.to_bytes(2, "big") + bytes.fromhex("0035000c0000") + b"ping"
    )


def ask_snapshot(ask: Any) -> Snapshot:
    plan = Plan("ask", (0, 1, 0), fallback=Plan("counter", (0,)))
    service = make_service("dns", VIP, 53, "udp", plan)
    servers = (Server("server1", 0, 0, SERVER, 5353), Server("server2", 0, 1, SERVER, 5354))
    return make_snapshot(services=(service,), servers=servers, ask=ask)


# --- results ---------------------------------------------------------------------------------------------------------


def test_result_of_forwarded_frame_names_everything() -> None:
    result = make_datapath().process(request(), 0, 1)
    assert isinstance(result, base.Result)
    assert base.astuple(result)[:5] == ("forward", None, "forward", "dns", "server1")
    [(interface, frame)] = result.out
    assert (interface, frame[:12], result.offloads) == ("eth0", SERVER_MAC + ROUTER_MAC, [None])


def test_result_of_dropped_frame_has_a_reason_and_nothing_to_send() -> None:
    result = make_datapath().process(b"", 0, 1)
    assert base.astuple(result) == ("drop", "frame_truncated", None, None, None, [], [])


def test_result_repr_reads_like_a_call() -> None:
    result = make_datapath().process(request(), 0, 1)
    expected = (
        "Result(verdict='forward', reason=None, direction='forward', service='dns', server='server1', "
        "out=[(eth0, 46 bytes)])"
    )
    assert repr(result) == expected


def test_result_attributes_are_read_only() -> None:
    result: Any = make_datapath().process(request(), 0, 1)
    with pytest.raises(AttributeError):
        result.verdict = "drop"


def test_result_offload_of_partial_frame_is_kept() -> None:
    """Rule 8.20, translation."""
    offload = Offload(flags=1, csum_start=34, csum_offset=6)
    assert make_datapath().process(request(), 0, 1, offload).offloads == [offload]


def test_result_of_old_generation_keeps_its_names() -> None:
    path = make_datapath()
    result = path.process(request(), 0, 1)
    path.publish(make_snapshot(generation=2, services=(None,), servers=(None,)))
    assert (result.service, result.server) == ("dns", "server1")


def test_process_frame_given_is_not_changed() -> None:
    frame = request()
    before = bytes(bytearray(frame))
    make_datapath().process(frame, 0, 1)
    assert frame == before


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_process_many_any_sequence_gives_results_in_order(kind: Any) -> None:
    frames = [request(1024), b"", request(1025)]
    verdicts = [each.verdict for each in make_datapath().process_many(kind(frames), 0, 1)]
    assert verdicts == ["forward", "drop", "forward"]


# --- reports ---------------------------------------------------------------------------------------------------------


def test_flows_are_named_tuples_of_the_contract() -> None:
    path = make_datapath()
    path.process(request(), 0, 10**9)
    assert path.flows(3 * 10**9) == [
        base.Flow("198.18.1.21", 40000, "dns", "server1", "udp", "udp-unreplied", 2.0, bytes_forward=32, bytes_reply=0)
    ]


def test_counters_of_removed_service_are_left_out() -> None:
    path = make_datapath()
    assert set(path.counters()["servers"]) == {"dns/server1"}
    path.publish(make_snapshot(generation=2, services=(None,), servers=(None,)))
    assert (path.counters()["services"], path.counters()["servers"]) == ({}, {})


def test_counters_events_are_those_of_the_contract() -> None:
    assert tuple(make_datapath().counters()["events"]) == EVENTS


def test_take_unresolved_gives_addresses_once_and_tick_the_frame() -> None:
    path = make_datapath()
    path.set_next_hops(NextHops(HOPS.routes))
    assert path.process(request(), 0, 1).reason == "neighbour"
    assert path.take_unresolved() == [(0, SERVER)]
    assert path.take_unresolved() == []
    path.set_next_hops(HOPS)
    [(interface, frame, offload)] = path.tick(2)
    assert (interface, frame[:6], offload) == ("eth0", SERVER_MAC, None)


# --- conversion ------------------------------------------------------------------------------------------------------


def test_publish_ipv6_and_all_options_is_accepted() -> None:
    address = IPv6Address("2001:db8::100")
    service = make_service("web", address, 80, "tcp", Plan("two-choices", (0,), (3,)), on_no_server="drop")
    server = Server("server1", 0, 0, IPv6Address("2001:db8::31"), 8080, weight=0, mac=SERVER_MAC)
    interface = Interface("eth0", ROUTER_MAC, 9000, (IPv6Interface("2001:db8::1/64"),), announce=True)
    path = make_datapath(make_snapshot(interfaces=(interface,), services=(service,), servers=(server,)))
    gateway = IPv6Address("2001:db8::fe")
    route = Route(IPv6Network("::/0"), 0, gateway, 1400)
    path.set_next_hops(NextHops((route,), (Neighbour(0, gateway, SERVER_MAC),)))
    assert set(path.counters()["services"]) == {"web"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, "Snapshot.seed"),
        ({"seed": "one"}, TypeError, "Snapshot.seed"),
        ({"transit": "maybe"}, ValueError, 'Snapshot.transit: "maybe" is none of drop, forward'),
        ({"ask": 5}, TypeError, "Snapshot.ask: not callable"),
        ({"interfaces": (Interface("eth0", b"\1" * 5, 1500),)}, ValueError, "Interface.mac: 5 bytes"),
        ({"services": (make_service("dns", VIP, 65536, "udp", Plan("counter", ())),)}, ValueError, "Service.port"),
        ({"services": (make_service("dns", VIP, 53, "sctp", Plan("counter", ())),)}, ValueError, "Service.protocol"),
        ({"services": (make_service("dns", VIP, 53, "udp", Plan("best", ())),)}, ValueError, "Plan.selector"),  # type: ignore[arg-type]
        ({"services": 5}, TypeError, "Snapshot.services"),
        ({"servers": (Server("s", 0, 0, 7, 53),)}, (TypeError, ValueError), "Server.address"),  # type: ignore[arg-type]
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_publish_wrong_value_names_class_and_field(change: dict[str, Any], error: Any, message: str) -> None:
    path = make_datapath()
    with pytest.raises(error) as raised:
        path.publish(make_snapshot(**change))
    assert message in str(raised.value)
    assert path.process(request(), 0, 1).verdict == "forward", "the published snapshot stays"


def test_publish_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(AttributeError):
        make_datapath().publish(dataclasses.replace)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, KEY, 1), LbError, "capacity 0"),
        ((2**40, KEY, 1), LbError, "capacity"),
        ((16, b"short", 1), ValueError, "hash_key: 5 bytes, 16 are needed"),
        ((16, "text", 1), TypeError, "hash_key"),
        ((16, KEY, -1), ValueError, "-1 does not fit into 64 unsigned bits"),
    ],
)
def test_data_path_wrong_argument_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.DataPath(*arguments)


def test_process_many_item_that_is_no_bytes_is_named() -> None:
    frames: list[Any] = [request(), "text"]
    with pytest.raises(TypeError, match=r"frames\[1\]: bytes are needed, not str"):
        make_datapath().process_many(frames, 0, 1)


def test_process_offload_of_wrong_shape_is_refused() -> None:
    offload: Any = (1, 2)
    with pytest.raises(ValueError, match="length 6"):
        make_datapath().process(request(), 0, 1, offload)


# --- ask -------------------------------------------------------------------------------------------------------------


def test_ask_gets_names_and_text_and_its_answer_counts() -> None:
    calls: list[tuple[str, str, int, list[str]]] = []

    def ask(service: str, client: str, port: int, names: Sequence[str]) -> str:
        calls.append((service, client, port, list(names)))
        return "server2"

    assert make_datapath(ask_snapshot(ask)).process(request(), 0, 1).server == "server2"
    assert calls == [("dns", "198.18.1.21", 40000, ["server1", "server2", "server1"])]


@pytest.mark.parametrize("answer", [None, "server9", 5, ZeroDivisionError], ids=str)
def test_ask_without_usable_answer_falls_back_and_is_counted(answer: Any) -> None:
    def ask(*_: object) -> Any:
        return 1 // 0 if answer is ZeroDivisionError else answer

    path = make_datapath(ask_snapshot(ask))
    assert path.process(request(), 0, 1).server == "server1"
    assert path.counters()["events"]["ask_fallback"] == 1


def test_ask_that_calls_its_own_data_path_meets_an_error() -> None:
    errors: list[LbError] = []

    def ask(*_: object) -> None:
        with pytest.raises(LbError) as raised:
            path.counters()
        errors.append(raised.value)

    path = make_datapath(ask_snapshot(ask))
    assert path.process(request(), 0, 1).server == "server1"
    assert "in use" in str(errors[0])


# --- the loop, over datagram sockets: they keep messages apart as packet sockets do ----------------------------------


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Give a port for the loop, our end of it, and an eventfd."""
    port, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.settimeout(10)
    news = os.eventfd(0)
    with closing(port), closing(ours):
        yield port, ours, news
    os.close(news)


def exchange(ours: socket.socket, frame: bytes) -> bytes:
    ours.send(bytes(10) + frame)
    return ours.recv(2000)[10:]


def test_memory_is_promised_when_made_and_resident_when_the_loop_starts(wire: Any) -> None:
    """Rule 8.17, full table: the size is a promise, and it is there before the first packet."""
    port, _, news = wire
    capacity = 100_000
    path = _core.DataPath(capacity, bytes(16), 1)
    promised, resident = path.memory()
    assert promised - capacity * 128 in range(64, 257)
    assert resident < promised
    path.attach(attached([port.fileno()]), news)
    try:
        assert path.memory() == (promised, promised)
    finally:
        path.detach()


def test_start_without_enough_memory_is_refused_and_leaves_it_offline(wire: Any) -> None:
    port, _, news = wire
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    largest = 1 << 28
    if largest * 128 < total:
        pytest.skip("the largest table fits this machine")
    path = _core.DataPath(largest, bytes(16), 1)
    with pytest.raises(BackendError, match=r"flow table of \d+ bytes could not be allocated: \d+ bytes are available"):
        path.attach(attached([port.fileno()]), news)
    assert path.memory()[1] < 1 << 22


def test_loop_calls_are_answered_while_it_runs(wire: Any) -> None:
    port, ours, news = wire
    path = make_datapath()
    path.attach(attached([port.fileno()]), news)
    try:
        assert exchange(ours, request())[:6] == SERVER_MAC
        assert path.process(request(1024), 0, 1).verdict == "forward"
        assert [each.verdict for each in path.process_many([b"", request(1025)], 0, 1)] == ["drop", "forward"]
        path.publish(make_snapshot(generation=2))
        path.set_next_hops(HOPS)
        assert path.counters()["rx_packets"] == 4
        assert path.counters()["io"] == {
            "rx_truncated": 0,
            "rx_errors": 0,
            "rx_dropped": 0,
            "tx_dropped": 0,
            "tx_errors": 0,
        }
    finally:
        path.detach()
    assert path.counters()["rx_packets"] == 4
    path.detach()


def test_loop_started_twice_is_refused(wire: Any) -> None:
    port, _, news = wire
    path = make_datapath()
    path.attach(attached([port.fileno()]), news)
    with pytest.raises(LbError, match="runs already"):
        path.attach(attached([port.fileno()]), news)
    path.detach()


@pytest.mark.parametrize("poll", ["adaptive", "busy", "sleep"])
def test_loop_forwards_however_it_polls(wire: Any, poll: str) -> None:
    port, ours, news = wire
    path = make_datapath()
    path.attach(attached([port.fileno()]), news, poll)
    try:
        assert exchange(ours, request())[36:38] == (5353).to_bytes(2, "big")
    finally:
        path.detach()


def test_loop_unknown_way_to_poll_is_refused(wire: Any) -> None:
    port, _, news = wire
    with pytest.raises(ValueError, match=r"often. is none of adaptive, busy, sleep"):
        make_datapath().attach(attached([port.fileno()]), news, "often")
    with pytest.raises(ValueError, match="eth0: 2 sockets for one worker"):
        make_datapath().attach([AttachedInterface("eth0", (port.fileno(), port.fileno()))], news)


def test_loop_that_failed_tells_and_stop_raises(wire: Any) -> None:
    port, _, news = wire
    path = make_datapath()
    with Path(os.devnull).open("rb") as nothing:
        path.attach(attached([port.fileno()]), news)
        os.dup2(nothing.fileno(), port.fileno())
        assert os.eventfd_read(news) == 1
        with pytest.raises(LbError, match="the packet loop has failed"):
            path.counters()
        with pytest.raises(LbError, match="the packet loop has failed"):
            path.detach()
    assert path.process(request(), 0, 1).verdict == "forward", "offline calls go on"


def test_loop_never_stopped_ends_with_its_data_path(wire: Any) -> None:
    """An `ask` that waits for the GIL must not hang the last reference's end."""
    port, ours, news = wire
    path = make_datapath(ask_snapshot(lambda *_: "server1"))
    path.attach(attached([port.fileno()]), news)
    ours.send(bytes(10) + request())
    del path
    assert "lb-packets" not in {task_name(task) for task in Path("/proc/self/task").iterdir()}


def task_name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except FileNotFoundError:
        return ""


# --- the single stages -----------------------------------------------------------------------------------------------


def test_checksum_worked_example_of_rfc1071() -> None:
    """The sum of the words of section 3 is DDF2."""
    assert _core.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


@pytest.mark.parametrize(
    ("data", "initial", "expected"),
    [(b"", 0, 0xFFFF), (b"\x12", 0, 0xEDFF), (b"\xff\xff", 1, 0xFFFE), (b"", 2**64 - 1, 0), (b"\0\1", 0x1FFFF, 0xFFFD)],
)
def test_checksum_odd_length_and_initial_sum(data: bytes, initial: int, expected: int) -> None:
    assert _core.checksum(data, initial) == expected


def test_checksum_update_vector_of_rfc1624() -> None:
    """Rule 8.20, translation: section 4, equation 3 gives 0x0000."""
    assert _core.checksum_update(0xDD2F, b"\x55\x55", b"\x32\x85") == 0x0000


@pytest.mark.parametrize(("old", "new"), [(b"ab", b"abcd"), (b"abc", b"abd")])
def test_checksum_update_lengths_that_do_not_fit_are_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(ValueError, match="not the same whole number of 16-bit words"):
        _core.checksum_update(0, old, new)


def test_hash_ipv4_equals_its_mapped_form() -> None:
    mapped = IPv6Address("::ffff:198.18.1.21").packed
    assert _core.source_hash(1, CLIENT.packed) == _core.source_hash(1, mapped)
    assert _core.flow_hash(1, CLIENT.packed, VIP.packed, 1, 2, 6) == _core.flow_hash(
        1, mapped, IPv6Address("::ffff:198.18.1.100").packed, 1, 2, 6
    )


def test_hash_address_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="an address of 5 bytes: 4 or 16 are allowed"):
        _core.source_hash(1, b"12345")
    with pytest.raises(ValueError, match="an address of 0 bytes"):
        _core.flow_hash(1, CLIENT.packed, b"", 1, 2, 6)


def test_parse_gives_headers() -> None:
    headers = rust.parse(request())
    assert isinstance(headers, Headers)
    assert (headers.reason, headers.ethertype, headers.source, headers.destination_port) == (
        None,
        0x800,
        CLIENT.packed,
        53,
    )
    assert rust.parse(b"").reason == "frame_truncated"


def test_build_profile_says_what_runs() -> None:
    assert _core.BUILD_PROFILE in ("release", "debug")


# Ethernet, IPv4 without options, UDP: the least that a flood is made from.
UDP_FRAME = bytes(12) + bytes.fromhex("08004500001c0000000040110000") + bytes(34)


@pytest.mark.parametrize(
    ("frame", "words", "rate", "error"),
    [
        (bytes(60), (), 1.0, LbError),
        (UDP_FRAME, ((13, 0xFFFF),), 1.0, LbError),
        (UDP_FRAME, ((24, 0xFFFF),), 1.0, LbError),
        (UDP_FRAME, (), 0.0, ValueError),
        (UDP_FRAME, (), float("nan"), ValueError),
    ],
)
def test_scatter_what_is_no_packet_is_refused(
    frame: bytes, words: tuple[tuple[int, int], ...], rate: float, error: type[Exception]
) -> None:
    """Before anything is asked of the kernel."""
    with pytest.raises(error, match=r"(no IPv4 frame|rate_pps)"):
        _core.scatter(1, frame, words, 0.01, rate)
