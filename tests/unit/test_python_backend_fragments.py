"""Fragments in every order, and what is refused of them (rule 6, fragments)."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from itertools import permutations

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    CLIENT_PORT,
    DNS_PORT,
    FAR,
    PROPERTY,
    ROUTER_MAC,
    SECOND,
    SERVER_MACS,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Box,
    answer,
    from_client,
    mac_bytes,
    make_next_hops,
    make_snapshot,
    query,
    request,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

import packets
from lb.backends.base import astuple
from lb.packet.offload import Offload

PROPERTY_FEW = settings(PROPERTY, max_examples=20)
DATA = bytes(range(256)) * 12  # 3072 bytes: three fragments of at most 1400


def pieces(source: str, destination: str, payload: Packet, sizes: tuple[int, ...], number: int = 77) -> list[bytes]:
    """Cut a datagram into fragments of these many bytes of data; the last takes the rest."""
    v6 = ":" in source
    layer = IPv6 if v6 else IP
    data = bytes(layer(bytes(layer(src=source, dst=destination) / payload)).payload)  # scapy fills in the checksum
    protocol = 6 if payload.name == "TCP" else 17 if payload.name == "UDP" else 1
    mac = CLIENT_MAC if source in (CLIENT, CLIENT6) else SERVER_MACS[31]
    frames, at = [], 0
    for size in (*sizes, len(data) - sum(sizes)):
        more, chunk = at + size < len(data), data[at : at + size]
        if v6:
            header = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(
                nh=protocol, offset=at // 8, m=more, id=number
            )
        else:
            header = IP(src=source, dst=destination, id=number, proto=protocol, frag=at // 8, flags="MF" if more else 0)
        frames.append(bytes(Ether(src=mac, dst=ROUTER_MAC) / header / Raw(chunk)))
        at += size
    return frames


def reassembled(frames: list[bytes]) -> Packet:
    """Put fragments together with scapy, and compute the checksum anew to compare."""
    arrived = [Ether(frame)[1] for frame in frames]
    v6 = isinstance(arrived[0], IPv6)
    whole = IPv6(bytes(defragment6(arrived))) if v6 else IP(bytes(defragment(arrived)[0]))
    again = whole.copy()
    del again[UDP].chksum
    assert type(whole)(bytes(again))[UDP].chksum == whole[UDP].chksum
    return whole


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_fragments_any_order_follow_the_first(backend: str, order: tuple[int, ...], client: str) -> None:
    """Rule 6, fragments: later fragments that arrive first are held, then all go to one server and fit together."""
    box = Box(backend)
    vip, server = (VIP6, SERVERS6[0]) if ":" in client else (VIP, SERVERS[0])
    frames = pieces(client, vip, query(DATA), (1400, 1000))
    out: list[bytes] = []
    for position, index in enumerate(order):
        result = box.send(frames[index])
        first_came = 0 in order[: position + 1]
        assert (result.verdict, result.reason) == (("forward", None) if first_came else ("hold", "fragment"))
        assert (result.server == "server1") == first_came
        out += [frame for _, frame in result.out]
    assert len(out) == 3
    whole = reassembled(sorted(out, key=lambda frame: order_key(frame)))
    assert (whole.dst, whole[UDP].dport, bytes(whole[UDP].payload)) == (server, 5353, DATA)
    verdicts = box.counters()["verdicts"]
    assert verdicts["forward"] == 3
    assert verdicts.get("hold.fragment", 0) == order.index(0)
    assert box.counters()["servers"]["dns6/server1" if ":" in client else "dns/server1"]["packets_forward"] == 3


def order_key(frame: bytes) -> int:
    packet = Ether(frame)
    return packet[IP].frag if IP in packet else packet[IPv6ExtHdrFragment].offset


def test_fragments_released_keep_their_order_of_arrival(backend: str) -> None:
    """Rule 6.9, first fragments: the first fragment's frame, then those that were held."""
    box = Box(backend)
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    box.send(frames[2])
    box.send(frames[1])
    assert [order_key(frame) for _, frame in box.send(frames[0]).out] == [0, 300, 175]


def test_fragments_reply_come_from_the_vip(backend: str) -> None:
    """Rule 6, fragments: the other direction too, to the client's last hop."""
    box = Box(backend)
    box.send(from_client(query()))
    frames = pieces(SERVERS[0], CLIENT, answer(DATA), (1400, 1000))
    out = []
    for index in (1, 0, 2):
        out += [frame for _, frame in box.send(frames[index]).out]
    whole = reassembled(out)
    assert (whole.src, whole[UDP].sport, bytes(whole[UDP].payload)) == (VIP, 53, DATA)
    assert {Ether(frame).dst for frame in out} == {CLIENT_MAC}


def test_fragments_same_id_again_is_a_new_datagram(backend: str) -> None:
    """Rule 6.12, complete datagrams: a complete datagram is forgotten."""
    box = Box(backend)
    for _ in range(2):
        for frame in pieces(CLIENT, VIP, query(DATA), (1400, 1000)):
            assert box.send(frame).verdict == "forward"


def test_fragments_first_refused_refuses_all(backend: str) -> None:
    """Rule 6.9, first fragments: held fragments share the fate of a first one that does not pass."""
    box = Box(backend)
    frames = pieces(CLIENT, VIP, UDP(sport=1, dport=9) / Raw(DATA), (1400, 1000))
    box.send(frames[2])
    assert box.send(frames[0]).reason == "no_service"
    assert box.send(frames[1]).reason == "fragment_refused"
    assert box.counters()["verdicts"] == {"hold.fragment": 1, "drop.no_service": 1, "drop.fragment_refused": 2}


def first_and_last(payload: Packet) -> tuple[bytes, bytes]:
    first, last = pieces(CLIENT, VIP, payload, (1400,))
    return first, last


def moved(frame: bytes, offset: int, *, more: bool) -> bytes:
    packet = Ether(frame)
    packet[IP].frag, packet[IP].flags = offset // 8, "MF" if more else 0
    del packet[IP].chksum
    return bytes(packet)


def fragment_at(offset: int, size: int, more: bool) -> bytes:
    """Build a UDP fragment of one datagram; that at offset 0 begins with a UDP header."""
    data = bytes(UDP(sport=1, dport=53, len=3000, chksum=0)) + bytes(size - 8) if offset == 0 else bytes(size)
    header = IP(src=CLIENT, dst=VIP, id=5, proto=17, frag=offset // 8, flags="MF" if more else 0)
    return bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / header / Raw(data))


OVERLAPS = [
    ("the same, now the last", [(800, 80, True)], (800, 80, False)),
    ("the last, now followed", [(800, 80, False)], (800, 80, True)),
    ("its tail", [(800, 80, True)], (872, 80, True)),
    ("its head", [(800, 80, True)], (728, 80, True)),
    ("around it", [(800, 80, True)], (720, 800, True)),
    ("across two", [(800, 80, True), (880, 80, True)], (800, 160, True)),
    ("across the first", [(0, 80, True)], (72, 80, True)),
    ("beyond the end", [(800, 80, False)], (880, 80, True)),
    ("a second end, further", [(800, 80, False)], (960, 80, False)),
    ("a second end, nearer", [(800, 80, False)], (640, 80, False)),
    ("an end before what is known", [(800, 80, True)], (640, 80, False)),
]


@pytest.mark.parametrize(("name", "before", "last"), OVERLAPS, ids=[row[0] for row in OVERLAPS])
def test_fragments_overlap_refuses_the_datagram(
    backend: str, name: str, before: list[tuple[int, int, bool]], last: tuple[int, int, bool]
) -> None:
    """Rule 6, fragments: overlapping fragments, or a datagram with two ends: this one, held ones, all that follow."""
    box = Box(backend)
    held = sum(box.send(fragment_at(*each)).verdict == "hold" for each in before)
    assert box.send(fragment_at(*last)).reason == "fragment_overlap"
    assert box.counters()["verdicts"]["drop.fragment_overlap"] == held + 1
    assert box.send(fragment_at(1600, 80, True)).reason == "fragment_refused"


def test_fragments_wrong_shape_is_dropped(backend: str) -> None:
    """Rule 6, fragments: tiny ones, odd lengths, nothing inside, and more than a datagram can hold."""
    box = Box(backend)
    first, last = first_and_last(query(DATA))
    assert box.send(moved(first[:-1], 0, more=True)).reason == "ip_truncated"
    odd = Ether(first)
    odd[IP].payload = Raw(bytes(odd[IP].payload)[:-1])
    del odd[IP].len, odd[IP].chksum
    assert box.send(odd).reason == "fragment_length"
    assert box.send(moved(last, 65528, more=False)).reason == "fragment_length"
    empty = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=CLIENT, dst=VIP, proto=17, frag=9)
    assert box.send(empty).reason == "fragment_length"
    tiny = (
        Ether(src=CLIENT_MAC, dst=ROUTER_MAC)
        / IP(src=CLIENT, dst=VIP, proto=6, flags="MF")
        / Raw(bytes(request())[:16])
    )
    assert box.send(tiny).reason == "fragment_tiny"
    eight = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=CLIENT, dst=VIP, proto=6, frag=1) / Raw(bytes(16))
    assert box.send(eight).reason == "fragment_tiny"


def test_fragments_of_icmp_and_others_are_dropped(backend: str) -> None:
    """Rule 6.3, protocols: an ICMP message in pieces cannot be checked; other protocols have no service."""
    box = Box(backend)
    assert box.send(pieces(CLIENT, VIP, ICMP() / Raw(DATA), (1400,))[1]).reason == "icmp_fragment"
    gre = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=CLIENT, dst=VIP, proto=47, frag=9) / Raw(b"x" * 8)
    assert box.send(gre).reason == "l4_protocol"
    # All fragments of a datagram name what the fragment header names, so a header behind it makes UDP "another".
    hidden = IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / query(bytes(8))
    first = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IPv6(src=CLIENT6, dst=VIP6) / hidden
    assert box.send(first).reason == "l4_protocol"


def test_fragments_with_offload_are_dropped(backend: str) -> None:
    """Rule 6.1, offload: a fragment's checksum cannot be finished."""
    first, _ = first_and_last(query(DATA))
    assert Box(backend).send(first, offload=Offload(1, csum_start=34, csum_offset=6)).reason == "bad_offload"


def test_fragments_ttl_exceeded_is_never_answered_for_later_ones(backend: str) -> None:
    """Rule 12.4, packets that we send: no ICMP about a later fragment."""
    box = Box(backend)
    frames = [Ether(frame) for frame in pieces(CLIENT, VIP, query(DATA), (1400, 1000))]
    for frame in frames[1:]:
        frame[IP].ttl = 1
        del frame[IP].chksum
    assert box.send(frames[2]).verdict == "hold"
    assert len(box.send(frames[0]).out) == 1
    result = box.send(frames[1])
    assert (result.verdict, result.reason, result.server, result.out) == ("drop", "ttl_exceeded", "server1", [])
    assert box.counters()["verdicts"]["drop.ttl_exceeded"] == 2


def test_fragments_held_time_out(backend: str) -> None:
    """Rule 6, fragments: after 30 s what was held is given up, and counted."""
    box = Box(backend)
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    box.send(frames[1])
    box.send(frames[2])
    box.now += 30 * 10**9 - 1
    box.tick()
    assert "drop.fragment_timeout" not in box.counters()["verdicts"]
    box.now += 1
    box.tick()
    assert box.counters()["verdicts"]["drop.fragment_timeout"] == 2
    assert box.send(frames[0]).out[0][1][-1:] == frames[0][-1:]


def waiting_fragment(source: str, number: int, size: int, offset: int = 8) -> bytes:
    """Build a later fragment of some datagram of a source: it waits for its first."""
    ends = ip_address(source).packed, ip_address(VIP).packed
    # Floods of them: `packets` makes one in a fiftieth of scapy's time.
    packet = packets.ip4(*ends, packets.UDP, bytes(size), ident=number, fragment=packets.MF | offset // 8)
    return packets.ether(mac_bytes(ROUTER_MAC), mac_bytes(CLIENT_MAC), packet)


def first_of(frame: bytes) -> bytes:
    """Build the first fragment of the datagram that a later one belongs to."""
    packet = Ether(frame)
    packet[IP].frag = 0
    packet[IP].payload = Raw(bytes(UDP(sport=CLIENT_PORT, dport=DNS_PORT, len=3000, chksum=0)))
    del packet[IP].len, packet[IP].chksum
    return bytes(packet)


def source_address(number: int) -> str:
    return f"198.51.{100 + number // 250}.{number % 250 + 1}"


def released(box: Box, frame: bytes) -> int:
    """Send the first fragment of the datagram of a frame that waits: how many others are sent on with it."""
    before = box.counters()["verdicts"].get("forward", 0)
    box.send(first_of(frame))
    return box.counters()["verdicts"]["forward"] - before - 1


def test_fragments_exact_duplicate_is_dropped_alone(backend: str) -> None:
    """Rule 6, fragments: the network may duplicate; content is not compared, offset, length and MF are."""
    box = Box(backend)
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    reasons = [box.send(frames[index]).reason for index in (2, 2, 0, 0, 1)]
    assert reasons == ["fragment", "fragment_duplicate", None, "fragment_duplicate", None]
    assert box.counters()["verdicts"]["forward"] == 3


def test_fragments_to_a_closed_port_leave_room_for_others(backend: str) -> None:
    """Rule 6, fragments: refused datagrams take no room: 1 500 first fragments a client never gets an answer for."""
    box = Box(backend)
    waits = waiting_fragment(CLIENT, 7, 8)
    assert box.send(waits).reason == "fragment"
    for number in range(1500):
        ip = IP(src=source_address(number % 400), dst=VIP, proto=17, id=number, flags="MF")
        closed = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / ip / UDP(sport=1, dport=9, len=3000, chksum=0)
        assert box.send(bytes(closed)).reason == "no_service"
    assert released(box, waits) == 1
    assert "drop.fragment_evicted" not in box.counters()["verdicts"]


def test_fragments_refused_are_remembered_up_to_a_limit(backend: str) -> None:
    """
    Rule 6.7, refused datagrams: the last 1024 refused datagrams; a later fragment of one that is forgotten waits like
    any other.
    """
    box = Box(backend)
    for number in range(1025):
        ip = IP(src=CLIENT, dst=VIP, proto=17, id=number, flags="MF")
        box.send(bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / ip / UDP(sport=1, dport=9, len=3000, chksum=0)))
    reasons = [box.send(waiting_fragment(CLIENT, number, 8)).reason for number in (1, 1024, 0)]
    assert reasons == ["fragment_refused", "fragment_refused", "fragment"]


def test_fragments_held_bytes_of_a_source_are_an_eighth(backend: str) -> None:
    """Rule 6, fragments: of 4 MB a source has 512 KB; its own oldest datagrams make room, those of others stay."""
    box = Box(backend)
    other = waiting_fragment(CLIENT, 1, 1400)
    box.send(other)
    source = source_address(1)
    frames = [waiting_fragment(source, number, 60000) for number in range(20)]
    assert {box.send(frame).reason for frame in frames} == {"fragment"}
    fitting = 4 * 1024 * 1024 // 8 // 60034
    assert box.counters()["verdicts"]["drop.fragment_evicted"] == 20 - fitting
    assert [released(box, frame) for frame in frames] == [0] * (20 - fitting) + [1] * fitting
    assert released(box, other) == 1


def test_fragments_of_one_datagram_hold_no_more_than_a_share(backend: str) -> None:
    """
    Rule 6.11, held fragments: where the datagram itself would have to go, the fragment is dropped and the rest stays.
    """
    box = Box(backend)
    options = bytes([1] * 40)
    reasons = []
    for number in range(9):
        # As large as a fragment gets; offsets are apart only as far as the datagram's 65535 bytes go.
        header = IP(src=CLIENT, dst=VIP, proto=17, id=5, frag=number + 1, flags="MF", options=[])
        frame = bytearray(bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / header / Raw(bytes(8))))
        reasons.append(box.send(bytes(frame) + options * 1600).reason)  # padding is held with its frame
    fitting = 4 * 1024 * 1024 // 8 // (14 + 20 + 8 + 40 * 1600)
    assert reasons == ["fragment"] * fitting + ["fragment_limit"] * (9 - fitting)
    assert released(box, waiting_fragment(CLIENT, 5, 8)) == fitting


def test_fragments_held_bytes_of_all_are_bounded(backend: str) -> None:
    """Rule 6, fragments: 4 MB; a flood from many sources pushes out the oldest."""
    box = Box(backend)
    oldest = waiting_fragment(CLIENT, 1, 60000)
    box.send(oldest)
    newest = b""
    for number in range(80):
        newest = waiting_fragment(source_address(number), number, 60000)
        assert box.send(newest).reason == "fragment"
    fitting = 4 * 1024 * 1024 // 60034
    assert box.counters()["verdicts"]["drop.fragment_evicted"] == 81 - fitting
    assert (released(box, newest), released(box, oldest)) == (1, 0)


def test_fragments_datagrams_are_bounded(backend: str) -> None:
    """Rule 6.6, datagram entries: 1024 datagrams at a time, 128 of one source; the oldest makes room."""
    box = Box(backend)
    other = waiting_fragment(CLIENT, 0, 8)
    box.send(other)
    for number in range(200):
        assert box.send(waiting_fragment(source_address(0), number, 8)).reason == "fragment"
    assert box.counters()["verdicts"]["drop.fragment_evicted"] == 200 - 128
    for number in range(1024 - 129):
        box.send(waiting_fragment(source_address(1 + number), number, 8))
    assert box.counters()["verdicts"]["drop.fragment_evicted"] == 200 - 128
    newest = waiting_fragment(source_address(999), 1, 8)
    box.send(newest)
    assert box.counters()["verdicts"]["drop.fragment_evicted"] == 200 - 127
    assert (released(box, newest), released(box, other)) == (1, 0)


def test_fragments_pieces_are_bounded(backend: str) -> None:
    """Rule 6.8, pieces and overlaps: 256 pieces of a datagram."""
    box = Box(backend)
    reasons = [box.send(waiting_fragment(CLIENT, 1, 8, 8 * i + 8)).reason for i in range(257)]
    assert reasons == ["fragment"] * 256 + ["fragment_limit"]


# What may come of a datagram: a first fragment that passes or is refused, or a later one, small or large.
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(("first", "closed", "later", "later", "large")),
        st.sampled_from((0, 0, 0, 0, 0, 0, 1, 2, 3)),
        st.integers(0, 200),
        st.integers(1, 12),
        st.sampled_from((0, 0, 0, 0, SECOND // 10, 29 * SECOND, 30 * SECOND)),
    ),
    min_size=100,
    max_size=400,
)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(arrivals=ARRIVALS)
def test_fragments_any_arrivals_both_backends_agree_within_bounds(
    arrivals: list[tuple[str, int, int, int, int]],
) -> None:
    """Rule 6, fragments: never more than the bounds, of one source never more than an eighth; verdicts are the same."""
    boxes = [Box(backend) for backend in ("python", "rust")]
    for kind, source, number, at, pause in arrivals:
        frame = waiting_fragment(source_address(source), number, 8000 if kind == "large" else 8, at * 8)
        if kind in ("first", "closed"):
            frame = first_of(frame)
        if kind == "closed":
            frame = frame[:36] + (9).to_bytes(2, "big") + frame[38:]
        for box in boxes:
            box.now += pause
        one, two = (box.send(frame) for box in boxes)
        assert astuple(one) == astuple(two)
        table = boxes[0].path._tables.fragments
        assert len(table.datagrams) <= 1024
        assert table.held_bytes <= 4 * 1024 * 1024
        assert all(len(share.datagrams) <= 128 and share.held_bytes <= 512 * 1024 for share in table.shares.values())
    for box in boxes:
        box.now += 31 * SECOND
        box.tick()
    assert boxes[0].counters() == boxes[1].counters()
    verdicts = boxes[0].counters()["verdicts"]
    assert sum(n for name, n in verdicts.items() if not name.startswith("hold.")) == len(arrivals)
    table = boxes[0].path._tables.fragments
    assert (table.datagrams, table.shares, table.waiting, table.refused, table.held_bytes) == ({}, {}, {}, {}, 0)


@PROPERTY_FEW
@given(data=st.data())
def test_fragments_flood_of_one_source_spares_the_others(backend: str, data: st.DataObject) -> None:
    """
    Rule 6, fragments: while one source sends whatever it likes, datagrams of others come through whole, in any order.
    """
    box = Box(backend)
    flood = iter(data.draw(st.lists(st.tuples(st.integers(0, 65535), st.booleans()), min_size=300, max_size=600)))
    others = [pieces(CLIENT, VIP, query(DATA), (1400, 1000), number) for number in range(20)]
    arrivals = data.draw(st.permutations([(one, at) for one in range(20) for at in range(3)]))
    out = 0
    for one, at in arrivals:
        for number, is_large in itertools.islice(flood, 10):
            box.send(waiting_fragment(source_address(0), number, 60000 if is_large else 8))
        out += len(box.send(others[one][at]).out)
    assert out == 60


def test_fragments_transit_pass_one_by_one(backend: str) -> None:
    """Rule 6.2, transit fragments: between strangers nothing is tracked."""
    box = Box(backend, make_snapshot(transit="forward"))
    frames = pieces(CLIENT, FAR, query(DATA), (1400, 1000))
    for index in (2, 1, 0):
        result = box.send(frames[index])
        assert (result.verdict, result.out[0][0], result.service) == ("forward", "eth1", None)
        assert Ether(result.out[0][1])[IP].ttl == 63


def test_fragments_wait_for_a_neighbour_like_packets(backend: str) -> None:
    """Rule 6.9, first fragments: a first fragment that waits lets the others follow it; all leave in order."""
    box = Box(backend, next_hops=make_next_hops(without=SERVERS))
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    assert box.send(frames[1]).reason == "fragment"
    assert (box.send(frames[0]).reason, box.send(frames[2]).reason) == ("neighbour", "neighbour")
    box.path.set_next_hops(make_next_hops())
    assert [order_key(frame) for _, frame, _ in box.tick()] == [0, 175, 300]
    assert box.counters()["verdicts"] == {"hold.fragment": 1, "hold.neighbour": 3, "forward": 3}
