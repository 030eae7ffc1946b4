"""Capture files: what is written can be read, every accepted form is read alike, damage is named."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import CaptureError
from lb.net.pcap import Packet, PcapWriter, read_packets

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
        (pcap("<", 0xA1B2C3D4, 0, link=113), "at byte 24: link type 113 is not Ethernet (1)"),
        (section("<") + interface("<", link=276), "link type 276 is not Ethernet (1)"),
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


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", section("<"), section("<") + interface("<"), pcap("<", 0xA1B2C3D4, 0)]),
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
