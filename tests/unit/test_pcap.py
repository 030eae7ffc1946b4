"""Capture files: what is written can be read, every accepted form is read alike, damage is named."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, CookedLinuxV2

from lb.capture.pcap import CaptureCutError, Packet, PcapWriter, read_packets
from lb.errors import CaptureError

FRAME = bytes(range(60))
TIME_NS = 1_700_000_000 * 10**9 + 123_456_000


def pcap(
    order: str, magic: int, fraction: int, frame: bytes = FRAME, link: int = 1, length: int | None = None
) -> bytes:
    header = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262144, link)
    lengths = (len(frame) if length is None else length, len(frame) + 5)
    return header + struct.pack(f"{order}IIII", TIME_NS // 10**9, fraction, *lengths) + frame


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, resolution: int | None = None, link: int = 1, snap_len: int = 0) -> bytes:
    options = b"" if resolution is None else struct.pack(f"{order}HHBxxxHH", 9, 1, resolution, 0, 0)
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, snap_len) + options)


def enhanced(order: str, ticks: int, link: int = 0, frame: bytes = FRAME) -> bytes:
    head = struct.pack(f"{order}IIIII", link, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame) + 5)
    return block(order, 6, head + frame)


def read(tmp_path: Path, data: bytes) -> list[Packet]:
    (tmp_path / "in.pcap").write_bytes(data)
    return list(read_packets(tmp_path / "in.pcap"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "fraction"), [(0xA1B2C3D4, 123_456), (0xA1B23C4D, 123_456_000)], ids=["us", "ns"])
def test_read_pcap_any_form_same_packet(tmp_path: Path, order: str, magic: int, fraction: int) -> None:
    """Both byte orders and both resolutions give the same packet."""
    assert read(tmp_path, pcap(order, magic, fraction)) == [Packet(1, TIME_NS, FRAME, 65)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "per_second"),
    [(None, 10**6), (9, 10**9), (3 + 0x80, 8)],
    ids=["default", "ns", "power-of-two"],
)
def test_read_pcapng_any_form_same_packet(tmp_path: Path, order: str, resolution: int | None, per_second: int) -> None:
    """Byte order and timestamp resolution are those that the file tells; unknown blocks are passed over."""
    ticks = TIME_NS * per_second // 10**9
    data = section(order) + interface(order, resolution) + block(order, 5, b"statistics") + enhanced(order, ticks)
    expected_ns = ticks * 10**9 // per_second
    assert read(tmp_path, data) == [Packet(1, expected_ns, FRAME, 65)]


def test_read_pcapng_simple_packet_cut_to_snap_len(tmp_path: Path) -> None:
    """A simple packet block carries neither time nor captured length: the interface's snap length holds."""
    simple = block("<", 3, struct.pack("<I", 65) + FRAME)
    data = section("<") + interface("<", snap_len=60) + enhanced("<", 5) + simple
    assert [packet[1:] for packet in read(tmp_path, data)] == [(5000, FRAME, 65), (5000, FRAME, 65)]


def test_read_pcapng_two_sections_interfaces_start_anew(tmp_path: Path) -> None:
    """Files put one behind the other are two sections, of whatever byte order."""
    data = section("<") + interface("<", 9) + enhanced("<", 7) + section(">") + interface(">", 3) + enhanced(">", 7)
    assert [packet[:2] for packet in read(tmp_path, data)] == [(1, 7), (2, 7_000_000)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at byte 0: the file ends inside the file's first bytes"),
        (b"not a capture", "is neither pcap nor pcapng"),
        (b"\x1f\x8b\x08\x00", "is neither pcap nor pcapng (compressed: unpack it first)"),
        (pcap("<", 0xA1B2C3D4, 0)[:20], "at byte 4: the file ends inside the file header"),
        (pcap("<", 0xA1B2C3D4, 0)[:30], "at byte 24: the file ends inside a packet header"),
        (pcap("<", 0xA1B2C3D4, 0)[:-1], "at byte 40: the file ends inside packet 1"),
        (pcap("<", 0xA1B2C3D4, 0, length=10**9), "at byte 40: a packet of 1000000000 bytes: the file is damaged"),
        (
            pcap("<", 0xA1B2C3D4, 0, link=105),
            "at byte 24: link type 105 is not read; those that are: Ethernet (1), Linux cooked (113, 276) and raw IP",
        ),
        (section("<") + interface("<", link=0), "link type 0 is not read"),
        (section("<") + enhanced("<", 1), "a packet of interface 0, which the file does not describe"),
        (section("<") + struct.pack("<II", 1, 14), "a block of 14 bytes: the file is damaged"),
        (section("<") + struct.pack("<II", 1, 2**31), "a block of 2147483648 bytes: the file is damaged"),
        (section("<")[:-4] + bytes(4), "a block's two lengths differ: the file is damaged"),
        (section("<") + interface("<") + block("<", 6, b""), "a packet block is too short: the file is damaged"),
        (section("<") + block("<", 1, b""), "an interface block is too short: the file is damaged"),
        (
            section("<") + interface("<") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 99, 99)),
            "a packet is longer than its block: the file is damaged",
        ),
    ],
)
def test_read_damaged_file_names_file_and_place(tmp_path: Path, data: bytes, message: str) -> None:
    """Damage is a CaptureError that says where."""
    with pytest.raises(CaptureError) as caught:
        read(tmp_path, data)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/in.pcap: ")


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (pcap("<", 0xA1B2C3D4, 0)[:-1], True),
        (pcap("<", 0xA1B2C3D4, 0)[:30], True),
        (section("<") + interface("<") + enhanced("<", 1)[:-1], True),
        (pcap("<", 0xA1B2C3D4, 0)[:20], False),
        (pcap("<", 0xA1B2C3D4, 0, length=10**9), False),
        (section("<")[:-1], False),
    ],
)
def test_read_cut_file_told_from_a_damaged_one(tmp_path: Path, data: bytes, cut: bool) -> None:
    """A file that ends inside a packet is one kind of error, damage and a file without packets another."""
    with pytest.raises(CaptureError) as caught:
        read(tmp_path, data)
    assert isinstance(caught.value, CaptureCutError) is cut


US, SENDER = bytes.fromhex("aaaaaa000001"), bytes.fromhex("aaaaaa000021")
MADE_UP, ALL, OTHER = bytes.fromhex("0204c6120115"), b"\xff" * 6, bytes.fromhex("02ffffffffff")
IP4, IP6 = bytes(IP(src="198.18.1.21") / UDP() / b"x"), bytes(IPv6(src="2001:db8::21") / UDP() / b"x")


def sll(kind: int, packet: bytes = IP4, address: bytes = SENDER, proto: int = 0x0800) -> bytes:
    return bytes(CookedLinux(pkttype=kind, lladdrlen=len(address), src=address.ljust(8, b"\0"), proto=proto)) + packet


def sll2(kind: int, packet: bytes = IP4, address: bytes = SENDER, proto: int = 0x0800) -> bytes:
    header = CookedLinuxV2(pkttype=kind, lladdrlen=len(address), src=address.ljust(8, b"\0"), proto=proto, ifindex=7)
    return bytes(header) + packet


@pytest.mark.parametrize(
    ("link", "data", "expected"),
    [
        (113, sll(0), US + SENDER + b"\x08\0" + IP4),
        (276, sll2(0), US + SENDER + b"\x08\0" + IP4),
        (276, sll2(0, IP6, proto=0x86DD), US + SENDER + b"\x86\xdd" + IP6),
        (113, sll(0, b"\0\1\x08\0" + IP4, proto=0x8100), US + SENDER + b"\x81\0\0\1\x08\0" + IP4),
        (113, sll(1), ALL + SENDER + b"\x08\0" + IP4),
        (113, sll(3), OTHER + SENDER + b"\x08\0" + IP4),
        (113, sll(4, address=US), ALL + US + b"\x08\0" + IP4),
        (276, sll2(4, address=b""), ALL + US + b"\x08\0" + IP4),
        (113, sll(0, address=b""), US + MADE_UP + b"\x08\0" + IP4),
        (113, sll(0)[:15], b""),
        (101, IP4, US + MADE_UP + b"\x08\0" + IP4),
        (12, IP4, US + MADE_UP + b"\x08\0" + IP4),
        (14, IP4, US + MADE_UP + b"\x08\0" + IP4),
        (228, IP4, US + MADE_UP + b"\x08\0" + IP4),
        (229, IP6, US + bytes.fromhex("020600000021") + b"\x86\xdd" + IP6),
        (101, IP6, US + bytes.fromhex("020600000021") + b"\x86\xdd" + IP6),
        (101, b"\x45", US + OTHER + b"\x08\0\x45"),
    ],
)
def test_read_link_without_ethernet_gets_a_header(tmp_path: Path, link: int, data: bytes, expected: bytes) -> None:
    """Packets of cooked and raw captures come out as frames for the balancer, unless the capture says otherwise."""
    path = tmp_path / "in.pcap"
    for content in (
        pcap("<", 0xA1B2C3D4, 0, data, link),
        section(">") + interface(">", link=link) + enhanced(">", 5, frame=data),
    ):
        path.write_bytes(content)
        (packet,) = read_packets(path, US)
        assert packet.frame == expected
        # `pcap` and `enhanced` say that 5 bytes are missing.
        assert packet.original_len == len(data) + 5 + {113: -2, 276: -6}.get(link, 14)


@given(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"",
            section("<"),
            section("<") + interface("<"),
            pcap("<", 0xA1B2C3D4, 0),
            *(pcap("<", 0xA1B2C3D4, 0, link=link) for link in (101, 113, 276)),
        ]
    ),
)
def test_read_any_bytes_packets_or_capture_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes
) -> None:
    """Garbage never raises anything but CaptureError."""
    path = tmp_path_factory.mktemp("garbage") / "in.pcap"
    path.write_bytes(head + tail)
    with contextlib.suppress(CaptureError):
        assert all(isinstance(packet, Packet) for packet in read_packets(path))


def test_write_then_read_same_packets(tmp_path: Path) -> None:
    """What is written is read back, to the nanosecond."""
    packets = [Packet(1, TIME_NS + 1, FRAME, 60), Packet(2, TIME_NS + 2, b"", 0)]
    with PcapWriter(tmp_path / "out.pcap") as writer:
        for packet in packets:
            writer.write(packet.time_ns, packet.frame)
    assert list(read_packets(tmp_path / "out.pcap")) == packets


def test_files_unreachable_named(tmp_path: Path) -> None:
    """A file that is not there or cannot be made is a CaptureError."""
    with pytest.raises(CaptureError, match="cannot be read: No such file"):
        list(read_packets(tmp_path / "none"))
    with pytest.raises(CaptureError, match="cannot be written: No such file"):
        PcapWriter(tmp_path / "none" / "out.pcap")
