"""
Capture files: read pcap and pcapng, write pcap.

Offline end of the packet walk: `lb replay` reads frames here instead of from a socket. Both byte orders, microseconds
and nanoseconds, and of pcapng the blocks that carry packets (draft-ietf-opsawg-pcapng: SHB, IDB, EPB, SPB); other
blocks are passed over. Frames come out as Ethernet whatever the link type (`lb.capture.link_types`). Compressed files
and link types that are not read are refused with a message.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import struct
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO, NamedTuple

from lb.capture import link_types as link
from lb.errors import CaptureError

NS_PER_S = 10**9
# No capture tool writes longer frames; a larger length means a damaged file, not memory to allocate.
MAX_FRAME_BYTES = 256 * 1024
MAX_BLOCK_BYTES = 16 * 1024 * 1024

PCAP_MAGICS = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
BYTE_ORDER_MAGIC = 0x1A2B3C4D
SECTION, INTERFACE, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 3, 6
OPTION_END, OPTION_TSRESOL = 0, 9
SMALLEST_BLOCK_BYTES = 12


class CaptureCutError(CaptureError):
    """A capture ends inside a packet, as that of a program that was killed does; all packets before it are whole."""


class Packet(NamedTuple):
    """
    One Ethernet frame of a capture. `number`: from 1; `time_ns`: since 1970; `original_len`: bytes on the wire, more
    than `frame` when cut.
    """

    number: int
    time_ns: int
    frame: bytes
    original_len: int


class _Link(NamedTuple):
    """
    An interface of a pcapng section. `link_type`: of its packets; `unit_s`: seconds per tick of its timestamps;
    `snap_len`: bytes kept of a frame, 0: all.
    """

    link_type: int
    unit_s: Fraction
    snap_len: int


def read_packets(
    path: str | pathlib.Path, mac: bytes = link.DEFAULT_MAC, opened: BinaryIO | None = None
) -> Iterator[Packet]:
    """
    Yield the packets of a capture file in file order.

    Args:
        path: of a pcap or pcapng file.
        mac: 6 bytes: where packets of a capture without Ethernet headers go to.
        opened: the file, where it is open already; it stays open.

    Raises:
        CaptureCutError: the file ends inside a packet.
        CaptureError: it cannot be read, is no capture, is damaged, or of a link type that is not read; says where in
            the file.
    """
    try:
        with contextlib.nullcontext(opened) if opened else pathlib.Path(path).open("rb") as file:
            if opened is not None:
                file.seek(0)
            yield from _Reader(file, str(path), mac).packets()
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(self, file: BinaryIO, name: str, mac: bytes) -> None:
        self.file = file
        self.name = name
        self.mac = mac
        self.in_packets = False
        self.offset = 0
        self.order = "<"
        self.links: list[_Link] = []

    def packets(self) -> Iterator[Packet]:
        magic = self.take(4, "the file's first bytes")
        if magic == PCAPNG_MAGIC:
            return self._pcapng()
        for order in "<>":
            if (unit_ns := PCAP_MAGICS.get(struct.unpack(f"{order}I", magic)[0])) is not None:
                self.order = order
                return self._pcap(unit_ns)
        hint = " (compressed: unpack it first)" if magic[:2] == b"\x1f\x8b" or magic == b"\x28\xb5\x2f\xfd" else ""
        raise CaptureError(f"{self.name}: is neither pcap nor pcapng{hint}")

    def fail(self, message: str) -> CaptureError:
        return CaptureError(f"{self.name}: at byte {self.offset}: {message}")

    def take(self, length: int, what: str) -> bytes:
        """Read exactly `length` bytes, or raise."""
        data = self.file.read(length)
        if len(data) < length:
            error = self.fail(f"the file ends inside {what}")
            raise CaptureCutError(str(error)) if self.in_packets else error
        self.offset += length
        return data

    def unpack(self, form: str, data: bytes, at: int = 0) -> tuple[int, ...]:
        return struct.unpack_from(self.order + form, data, at)

    def at_end(self) -> bool:
        byte = self.file.read(1)
        self.file.seek(-len(byte), 1)
        return not byte

    def require_read(self, link_type: int) -> int:
        if not link.is_read(link_type):
            raise self.fail(f"link type {link_type} is not read; those that are: {link.READ}")
        return link_type

    def packet(self, number: int, time_ns: int, link_type: int, data: bytes, original_len: int) -> Packet:
        """Return a packet, with an Ethernet header if it has none."""
        frame = link.to_ethernet(link_type, data, self.mac)
        return Packet(number, time_ns, frame, original_len + link.added_bytes(link_type))

    def _pcap(self, unit_ns: int) -> Iterator[Packet]:
        header = self.take(20, "the file header")
        link_type = self.require_read(self.unpack("I", header, 16)[0] & 0xFFFF)
        self.in_packets = True
        number = 0
        while not self.at_end():
            seconds, fraction, length, original_len = self.unpack("IIII", self.take(16, "a packet header"))
            if length > MAX_FRAME_BYTES:
                raise self.fail(f"a packet of {length} bytes: the file is damaged")
            number += 1
            data = self.take(length, f"packet {number}")
            yield self.packet(number, seconds * NS_PER_S + fraction * unit_ns, link_type, data, original_len)

    def _pcapng(self) -> Iterator[Packet]:
        number, last_ns, magic = 0, 0, PCAPNG_MAGIC
        while True:
            kind, body = self._block(magic)
            if kind == INTERFACE:
                self.links.append(self._link(body))
                self.in_packets = True
            elif kind in (ENHANCED_PACKET, SIMPLE_PACKET):
                number += 1
                link_type, last_ns, data, original_len = self._packet(kind, body, last_ns)
                yield self.packet(number, last_ns, link_type, data, original_len)
            if self.at_end():
                return
            magic = self.take(4, "a block header")

    def _block(self, magic: bytes) -> tuple[int, bytes]:
        """Read a block whose first 4 bytes were read; return its type and body."""
        length_bytes = self.take(4, "a block header")
        lead = b""
        if magic == PCAPNG_MAGIC:
            lead = self.take(4, "a section header")
            self.order = "<" if struct.unpack("<I", lead)[0] == BYTE_ORDER_MAGIC else ">"
            if self.unpack("I", lead)[0] != BYTE_ORDER_MAGIC:
                raise self.fail("the section's byte-order magic is wrong: the file is damaged")
            self.links = []
        (kind,), (length,) = self.unpack("I", magic), self.unpack("I", length_bytes)
        if length % 4 or not SMALLEST_BLOCK_BYTES + len(lead) <= length <= MAX_BLOCK_BYTES:
            raise self.fail(f"a block of {length} bytes: the file is damaged")
        body = lead + self.take(length - SMALLEST_BLOCK_BYTES - len(lead), "a block")
        if self.unpack("I", self.take(4, "a block"))[0] != length:
            raise self.fail("a block's two lengths differ: the file is damaged")
        return kind, body

    def _link(self, body: bytes) -> _Link:
        if len(body) < 8:
            raise self.fail("an interface block is too short: the file is damaged")
        link_type, _, snap_len = self.unpack("HHI", body)
        return _Link(self.require_read(link_type), self._resolution(body), snap_len)

    def _resolution(self, body: bytes) -> Fraction:
        """Return the seconds per tick that an interface block tells; without the option, microseconds."""
        at = 8
        while at + 4 <= len(body):
            code, length = self.unpack("HH", body, at)
            if code == OPTION_END:
                break
            if code == OPTION_TSRESOL and length == 1 and at + 5 <= len(body):
                exponent = body[at + 4]
                return Fraction(1, 2 ** (exponent & 0x7F) if exponent & 0x80 else 10**exponent)
            at += 4 + (length + 3) // 4 * 4
        return Fraction(1, 10**6)

    def _packet(self, kind: int, body: bytes, last_ns: int) -> tuple[int, int, bytes, int]:
        """Return link type, time, bytes and original length of a packet block; simple ones carry no time: it stays."""
        header_len = 20 if kind == ENHANCED_PACKET else 4
        if len(body) < header_len:
            raise self.fail("a packet block is too short: the file is damaged")
        if kind == ENHANCED_PACKET:
            link_id, high, low, length, original_len = self.unpack("IIIII", body)
            source = self._require_link(link_id)
            last_ns = int((high << 32 | low) * source.unit_s * NS_PER_S)
        else:
            source = self._require_link(0)
            (original_len,) = self.unpack("I", body)
            length = min(original_len, source.snap_len or original_len)
        if length > len(body) - header_len:
            raise self.fail("a packet is longer than its block: the file is damaged")
        return source.link_type, last_ns, body[header_len : header_len + length], original_len

    def _require_link(self, link_id: int) -> _Link:
        if link_id >= len(self.links):
            raise self.fail(f"a packet of interface {link_id}, which the file does not describe")
        return self.links[link_id]


class PcapWriter:
    """
    Writes frames to a pcap file with nanosecond timestamps. A context manager.

    Args:
        path: of the file.
        opened: the file, where it is open already.

    Raises:
        CaptureError: the file cannot be written.
    """

    def __init__(self, path: str | pathlib.Path, opened: BinaryIO | None = None) -> None:
        self.path = path
        try:
            self._file = pathlib.Path(path).open("wb") if opened is None else opened  # noqa: SIM115 - close() ends it
            if opened is not None and stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                opened.truncate(0)
            self._file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_FRAME_BYTES, link.ETHERNET))
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, time_ns: int, frame: bytes) -> None:
        """Append a frame. `time_ns`: since 1970; the format's seconds have 32 bits."""
        seconds, fraction = divmod(time_ns, NS_PER_S)
        try:
            self._file.write(struct.pack("<IIII", seconds & 0xFFFFFFFF, fraction, len(frame), len(frame)) + frame)
        except OSError as error:
            raise CaptureError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise CaptureError(f"{self.path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> PcapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
