"""
Frames with work left to the network card: partial checksums, segmentation (docs/rules.md rule 1, inputs and outcome;
rule 7, L4 headers; rule 8, flows; rule 12, sending).
"""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import in4_pseudoheader
from scapy.layers.inet6 import IPv6, in6_pseudoheader
from scapy.layers.l2 import Ether
from scapy.utils import checksum as internet_checksum
from scene import (
    BOTH,
    ROUTER_MAC,
    V4,
    Case,
    Family,
    Talk,
    ether,
    icmp_error,
    neighbours,
    pattern,
    pieces,
    tag,
    tcp,
    udp,
    with_ports,
)

from topics.mtu import chunks, narrow

PARTIAL = 1


def cases() -> list[Case]:
    """Make the cases."""
    made = []
    for f in BOTH:
        made += [*_partial(f), *_segments(f), *_too_big(f), _bad(f)]
    return [*made, _completed(), _cut_smaller()]


def unfinished(f: Family, frame: bytes) -> bytes:
    """Put the pseudo-header sum where the L4 checksum is: what a sender leaves for the card to finish."""
    parsed = Ether(frame)
    packet = parsed.getlayer("IP") or parsed.getlayer(IPv6)
    start = len(frame) - len(bytes(packet)) + f.header_len
    l4_length = len(frame) - start
    if f is V4:
        protocol = packet.proto
        pseudo = in4_pseudoheader(protocol, packet, l4_length)
    else:
        protocol = packet.nh
        pseudo = in6_pseudoheader(protocol, packet, l4_length)
        pseudo = bytes(pseudo)
    where = start + (16 if protocol == 6 else 6)
    total = 0xFFFF - internet_checksum(pseudo)
    return frame[:where] + total.to_bytes(2, "big") + frame[where + 2 :]


def _work(f: Family, kind: str, gso: int = 0, size: int = 0, hdr: int = 0, vlan: int = 0) -> list[int]:
    start = 14 + vlan + f.header_len
    return [PARTIAL, gso, hdr, size, start, 16 if kind == "tcp" else 6]


def _both(case: Case, talk: Talk, l4: Any, work: list[int], reply: bool = False, **ip: Any) -> None:
    """Send an unfinished frame one way and expect it unfinished."""
    f = talk.family
    make_in, make_out, names = (
        (talk.s_in, talk.s_out, talk.reply_names) if reply else (talk.c_in, talk.c_out, talk.names)
    )
    case.forward(
        unfinished(f, make_in(l4, **ip)), ["eth0", unfinished(f, make_out(l4, **ip)), work], offload=work, **names
    )


def _partial(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    origin = "virtio 1.2 section 5.1.6.2"
    case = Case(f"a partial TCP checksum stays partial, its addresses updated, both ways, {v}", ["8.20"], origin)
    talk, work = Talk(case, f), _work(f, "tcp")
    _both(case, talk, tcp("S", 1000, options=[("MSS", 1460)]), work)
    _both(case, talk, tcp("SA", 5000, 1001), work, reply=True)
    _both(case, talk, tcp("A", 1001, 5001), work)
    _both(case, talk, tcp("PA", 1001, 5001, pattern(99)), work)
    made = [case]
    case = Case(f"a partial UDP checksum stays partial, both ways, tagged or not, {v}", ["8.20", "3.4"], origin)
    talk = Talk(case, f, "udp")
    _both(case, talk, udp(b"question"), _work(f, "udp"))
    _both(case, talk, udp(b"answer"), _work(f, "udp"), reply=True)
    talk = Talk(case, f, "udp", sport=40001, tags=(tag(4),))
    _both(case, talk, udp(b"question"), _work(f, "udp", vlan=4))
    made.append(case)
    case = Case(f"other offload flags are not sent on, {v}", ["8.20"], origin)
    talk = Talk(case, f)
    case.forward(talk.c_in(tcp("S", 1000)), talk.c_out(tcp("S", 1000)), offload=[2, 0, 0, 0, 0, 0], **talk.names)
    work = _work(f, "tcp")
    segment = tcp("SA", 5000, 1001)
    case.forward(
        unfinished(f, talk.s_in(segment)),
        ["eth0", unfinished(f, talk.s_out(segment)), work],
        offload=[7, *work[1:]],
        **talk.reply_names,
    )
    made.append(case)
    case = Case(
        f"a frame that waits for its neighbour keeps its offload, {v}",
        ["8.20", "11"],
        neighbours=[n for n in neighbours() if n[1] != f.servers[0]],
    )
    talk = Talk(case, f)
    segment = tcp("S", 1000)
    case.send(unfinished(f, talk.c_in(segment)), "hold", "neighbour", offload=work, **talk.names)
    case.next_hops(neighbours=neighbours())
    case.tick(["eth0", unfinished(f, talk.c_out(segment)), work])
    made.append(case)
    return made


def _segments(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    kind = 1 if f is V4 else 4
    marks: dict[str, Any] = {"flags": "DF"} if f is V4 else {}
    size = 1500 - f.header_len - 20
    case = Case(
        f"a TCP frame larger than the MTU passes whole with its segmentation header, {v}",
        ["12.2"],
        "virtio 1.2 section 5.1.6.2",
    )
    talk = Talk(case, f)
    talk.open()
    for gso in (kind, kind | 0x80):
        work = _work(f, "tcp", gso, size, 14 + f.header_len + 20)
        _both(case, talk, tcp("PA", 1001, 5001, pattern(4000)), work, **marks)
        _both(case, talk, tcp("PA", 5001, 1001, pattern(4500)), work, reply=True, **marks)
    made = [case]
    case = Case(
        f"a UDP frame of several datagrams passes whole with its segmentation header, {v}",
        ["12.2"],
        "virtio 1.2 section 5.1.6.2",
    )
    talk = Talk(case, f, "udp")
    work = _work(f, "udp", 5, 1200, 14 + f.header_len + 8)
    _both(case, talk, udp(pattern(3000)), work, **marks)
    _both(case, talk, udp(pattern(3500)), work, reply=True, **marks)
    made.append(case)
    return made


def _too_big(f: Family) -> list[Case]:
    v = f"IPv{f.version}"
    mtu, number = (600, 1) if f is V4 else (1280, 4)
    marks: dict[str, Any] = {"flags": "DF"} if f is V4 else {}
    kind = (3, 4) if f is V4 else (2, 0)
    case = Case(f"segments too big for the route are answered with the MTU, {v}", ["12.2"], **narrow(f, mtu))
    talk = Talk(case, f)
    talk.open()
    fits = mtu - f.header_len - 20
    work = _work(f, "tcp", number, fits, 14 + f.header_len + 20)
    _both(case, talk, tcp("PA", 1001, 5001, pattern(3000)), work, **marks)
    work = _work(f, "tcp", number, fits + 1, 14 + f.header_len + 20)
    frame = unfinished(f, talk.c_in(tcp("PA", 1001, 5001, pattern(3000)), **marks))
    case.reply(frame, "too_big", icmp_error(f, frame, kind, f.router, f.client, mtu), offload=work, **talk.names)
    other = Talk(case, f, "udp")
    work = _work(f, "udp", 5, mtu - f.header_len - 7, 14 + f.header_len + 8)
    frame = unfinished(f, other.c_in(udp(pattern(3000))))
    case.reply(frame, "too_big", icmp_error(f, frame, kind, f.router, f.client, mtu), offload=work, **other.names)
    return [case]


def _bad(f: Family) -> Case:
    case = Case(f"offload work that does not fit the packet is refused, IPv{f.version}", ["8.20", "12.2"])
    start = 14 + f.header_len
    other = 4 if f is V4 else 1
    own = 1 if f is V4 else 4
    segment = Talk(case, f).c_in(tcp("S", 1000, data=pattern(50)))
    datagram = Talk(case, f, "udp").c_in(udp(pattern(50)))
    table = [
        (segment, [1, 0, 0, 0, start + 2, 16]),
        (segment, [1, 0, 0, 0, start, 6]),
        (segment, [1, 0, 0, 0, 0, 0]),
        (datagram, [1, 0, 0, 0, start, 16]),
        (datagram, [1, 0, 0, 0, start - 20, 6]),
        (segment, [1, other, 0, 1000, start, 16]),
        (segment, [1, own, 0, 0, start, 16]),
        (segment, [1, 5, 0, 1000, start, 16]),
        (segment, [1, 3, 0, 1000, start, 16]),
        (segment, [1, 2, 0, 1000, start, 16]),
        (datagram, [1, own, 0, 1000, start, 6]),
        (datagram, [1, 3, 0, 1000, start, 6]),
        (datagram, [1, 5, 0, 0, start, 6]),
    ]
    for frame, work in table:
        case.drop(frame, "bad_offload", offload=work)
    case.flows()
    return case


def _completed() -> Case:
    f = V4
    case = Case(
        "a partial checksum is completed before the packet is cut into fragments", ["8.20", "12.2"], **narrow(f, 600)
    )
    talk = Talk(case, f, "udp")
    for size in (1300, 1301):
        out = pieces(
            f,
            talk.client,
            talk.server_address,
            with_ports(udp(pattern(size)), talk.sport, 5353),
            chunks(size + 8, 576),
            ttl=63,
            ident=7,
        )
        frames = [ether(ROUTER_MAC, talk.server_mac, packet) for packet in out]
        case.forward(unfinished(f, talk.c_in(udp(pattern(size)), id=7)), *frames, offload=_work(f, "udp"), **talk.names)
    return case


def _cut_smaller() -> Case:
    f = V4
    case = Case(
        "segments too big for the route that may be fragmented are cut smaller instead", ["12.2"], **narrow(f, 600)
    )
    talk = Talk(case, f)
    talk.open()
    before, after = _work(f, "tcp", 1, 1460, 54), _work(f, "tcp", 1, 560, 54)
    segment = tcp("PA", 1001, 5001, pattern(4000))
    case.forward(
        unfinished(f, talk.c_in(segment)),
        ["eth0", unfinished(f, talk.c_out(segment)), after],
        offload=before,
        **talk.names,
    )
    return case
