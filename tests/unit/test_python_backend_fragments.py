"""Fragments in every order, and what is refused of them (`behaviour.md` line 19)."""

from __future__ import annotations

from itertools import permutations

import pytest
from helpers import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    FAR,
    ROUTER_MAC,
    SERVER_MACS,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Box,
    answer,
    from_client,
    make_next_hops,
    make_snapshot,
    query,
    request,
)
from scapy.layers.inet import ICMP, IP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lb.backends.base import Offload

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
    packets = [Ether(frame)[1] for frame in frames]
    v6 = isinstance(packets[0], IPv6)
    whole = IPv6(bytes(defragment6(packets))) if v6 else IP(bytes(defragment(packets)[0]))
    again = whole.copy()
    del again[UDP].chksum
    assert type(whole)(bytes(again))[UDP].chksum == whole[UDP].chksum
    return whole


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_fragments_any_order_follow_the_first(backend: str, order: tuple[int, ...], client: str) -> None:
    """behaviour 19: later fragments that arrive first are held, then all go to one server and fit together."""
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
    """Rule 6.9: the first fragment's frame, then those that were held."""
    box = Box(backend)
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    box.send(frames[2])
    box.send(frames[1])
    assert [order_key(frame) for _, frame in box.send(frames[0]).out] == [0, 300, 175]


def test_fragments_reply_come_from_the_vip(backend: str) -> None:
    """behaviour 19: the other direction too, to the client's last hop."""
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
    """Rule 6.12: a complete datagram is forgotten."""
    box = Box(backend)
    for _ in range(2):
        for frame in pieces(CLIENT, VIP, query(DATA), (1400, 1000)):
            assert box.send(frame).verdict == "forward"


def test_fragments_first_refused_refuses_all(backend: str) -> None:
    """Rule 6.9: held fragments share the fate of a first one that does not pass."""
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
    ("the same again", [(800, 80, True)], (800, 80, True)),
    ("its tail", [(800, 80, True)], (872, 80, True)),
    ("its head", [(800, 80, True)], (728, 80, True)),
    ("around it", [(800, 80, True)], (720, 800, True)),
    ("the first again", [(0, 80, True)], (0, 80, True)),
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
    """behaviour 19: overlapping fragments, or a datagram with two ends: this one, held ones, all that follow."""
    box = Box(backend)
    held = sum(box.send(fragment_at(*each)).verdict == "hold" for each in before)
    assert box.send(fragment_at(*last)).reason == "fragment_overlap"
    assert box.counters()["verdicts"]["drop.fragment_overlap"] == held + 1
    assert box.send(fragment_at(1600, 80, True)).reason == "fragment_refused"


def test_fragments_wrong_shape_is_dropped(backend: str) -> None:
    """behaviour 19: tiny ones, odd lengths, nothing inside, and more than a datagram can hold."""
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
    """Rule 6.3: an ICMP message in pieces cannot be checked; other protocols have no service."""
    box = Box(backend)
    assert box.send(pieces(CLIENT, VIP, ICMP() / Raw(DATA), (1400,))[1]).reason == "icmp_fragment"
    gre = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=CLIENT, dst=VIP, proto=47, frag=9) / Raw(b"x" * 8)
    assert box.send(gre).reason == "l4_protocol"
    # All fragments of a datagram name what the fragment header names, so a header behind it makes UDP "another".
    hidden = IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / query(bytes(8))
    first = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IPv6(src=CLIENT6, dst=VIP6) / hidden
    assert box.send(first).reason == "l4_protocol"


def test_fragments_with_offload_are_dropped(backend: str) -> None:
    """Rule 6.1: a fragment's checksum cannot be finished."""
    first, _ = first_and_last(query(DATA))
    assert Box(backend).send(first, offload=Offload(1, csum_start=34, csum_offset=6)).reason == "bad_offload"


def test_fragments_ttl_exceeded_is_never_answered_for_later_ones(backend: str) -> None:
    """behaviour 27: no ICMP about a later fragment."""
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
    """behaviour 19: after 30 s what was held is given up, and counted."""
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


def test_fragments_held_bytes_are_bounded(backend: str) -> None:
    """behaviour 19: 4 MB of held frames, not a byte more."""
    box = Box(backend)
    chunk = Raw(bytes(60000))
    ip = IP(src=CLIENT, dst=VIP, proto=17, frag=1)
    reasons = []
    for number in range(72):
        frame = bytes(Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / ip.copy() / chunk)
        packet = Ether(frame)
        packet[IP].id = number
        del packet[IP].chksum
        reasons.append(box.send(packet).reason)
    fitting = 4 * 1024 * 1024 // 60034
    assert reasons == ["fragment"] * fitting + ["fragment_limit"] * (72 - fitting)


def test_fragments_datagrams_are_bounded(backend: str) -> None:
    """Rule 6.6: 1024 datagrams at a time."""
    box = Box(backend)
    frame = bytearray(pieces(CLIENT, VIP, query(DATA), (1400,), number=0)[1])
    checksum = int.from_bytes(frame[24:26], "big")
    for number in range(1025):
        frame[18:20] = number.to_bytes(2, "big")
        total = (checksum ^ 0xFFFF) + number
        frame[24:26] = ((total & 0xFFFF) + (total >> 16) ^ 0xFFFF).to_bytes(2, "big")
        expected = "fragment" if number < 1024 else "fragment_limit"
        assert box.send(bytes(frame)).reason == expected, number


def test_fragments_ranges_are_bounded(backend: str) -> None:
    """Rule 6.8: 64 holes are no honest datagram; what joins two ranges still fits."""
    box = Box(backend)
    piece = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=CLIENT, dst=VIP, proto=17, flags="MF") / Raw(bytes(8))
    frame = bytes(piece)
    reasons = [box.send(moved(frame, 16 * i + 16, more=True)).reason for i in range(65)]
    assert reasons == ["fragment"] * 64 + ["fragment_limit"]
    assert box.send(moved(frame, 24, more=True)).reason == "fragment"


def test_fragments_transit_pass_one_by_one(backend: str) -> None:
    """Rule 6.2: between strangers nothing is tracked."""
    box = Box(backend, make_snapshot(transit="forward"))
    frames = pieces(CLIENT, FAR, query(DATA), (1400, 1000))
    for index in (2, 1, 0):
        result = box.send(frames[index])
        assert (result.verdict, result.out[0][0], result.service) == ("forward", "eth1", None)
        assert Ether(result.out[0][1])[IP].ttl == 63


def test_fragments_wait_for_a_neighbour_like_packets(backend: str) -> None:
    """Rule 6.9: a first fragment that waits lets the others follow it; all leave in order."""
    box = Box(backend, next_hops=make_next_hops(without=SERVERS))
    frames = pieces(CLIENT, VIP, query(DATA), (1400, 1000))
    assert box.send(frames[1]).reason == "fragment"
    assert (box.send(frames[0]).reason, box.send(frames[2]).reason) == ("neighbour", "neighbour")
    box.path.set_next_hops(make_next_hops())
    assert [order_key(frame) for _, frame, _ in box.tick()] == [0, 175, 300]
    assert box.counters()["verdicts"] == {"hold.fragment": 1, "hold.neighbour": 3, "forward": 3}
