"""Frames on packet sockets: the offload header, VLAN tags, and what is counted instead of raised."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Any, cast

import pytest

from lb.net import frames
from lb.net.frames import IoCounters
from lb.packet.offload import Offload

ADDRESSES = bytes(range(12))
REST = b"\x08\x00payload"
FRAME = ADDRESSES + REST
NO_OFFLOAD = Offload()


class FakeSocket:
    """A socket whose receives and sends are scripted: each item is an answer to give or an error to raise."""

    def __init__(self, script: Sequence[Any]) -> None:
        self.script = list(script)
        self.sent: list[bytes] = []
        # A real descriptor, always writable, for the wait between two attempts.
        self.pair = socket.socketpair()

    def fileno(self) -> int:
        return self.pair[0].fileno()

    def recvmsg(self, _size: int, _control: int) -> Any:
        return self.answer()

    def sendmsg(self, parts: list[bytes]) -> Any:
        answer = self.answer()
        self.sent.append(b"".join(parts))
        return answer

    def answer(self) -> Any:
        item = self.script.pop(0)
        if isinstance(item, OSError):
            raise item
        return item

    def close(self) -> None:
        for end in self.pair:
            end.close()


def message(frame: bytes, offload: Offload = NO_OFFLOAD, control: Sequence[Any] = (), flags: int = 0) -> Any:
    return frames.OFFLOAD_HEADER.pack(*offload) + frame, list(control), flags, None


def auxdata(status: int, tci: int, tpid: int) -> tuple[int, int, bytes]:
    return frames.SOL_PACKET, frames.PACKET_AUXDATA, struct.pack("=IIIHHHH", status, 0, 0, 0, 0, tci, tpid)


def blocked() -> OSError:
    return BlockingIOError(errno.EAGAIN, "no data")


def run_receive(script: Sequence[Any]) -> tuple[Any, IoCounters]:
    counters = IoCounters()
    sock = FakeSocket(script)
    try:
        return frames.receive(cast(socket.socket, sock), counters), counters
    finally:
        sock.close()


def run_send(script: Sequence[Any], offload: Offload | None = None) -> tuple[bool, list[bytes], IoCounters]:
    counters = IoCounters()
    sock = FakeSocket(script)
    try:
        return frames.send(cast(socket.socket, sock), FRAME, offload, counters), sock.sent, counters
    finally:
        sock.close()


def test_receive_plain_frame_has_no_offload() -> None:
    assert run_receive([message(FRAME)]) == ((FRAME, None), IoCounters())


def test_receive_checksum_already_verified_is_no_offload() -> None:
    """DATA_VALID (flag 2) leaves nothing to do."""
    assert run_receive([message(FRAME, Offload(flags=2))]) == ((FRAME, None), IoCounters())


def test_receive_partial_frame_keeps_its_offload() -> None:
    """Rule 8.20, translation"""
    offload = Offload(flags=1, csum_start=34, csum_offset=16)
    assert run_receive([message(FRAME, offload)])[0] == (FRAME, offload)


@pytest.mark.parametrize(
    ("status", "tpid", "expected"),
    [(0x50, 0x88A8, "88a8"), (0x10, 0x88A8, "8100"), (0x50, 0x8100, "8100")],
)
def test_receive_stripped_tag_is_put_back(status: int, tpid: int, expected: str) -> None:
    """Rule 3.4, VLAN tags: a tag goes back behind the two addresses; without a told protocol it is 802.1Q."""
    frame = ADDRESSES + bytes.fromhex(expected) + b"\x20\x07" + REST
    assert run_receive([message(FRAME, control=[auxdata(status, 0x2007, tpid)])])[0] == (frame, None)


def test_receive_tag_zero_without_valid_bit_adds_nothing() -> None:
    assert run_receive([message(FRAME, control=[auxdata(0, 0, 0)])])[0] == (FRAME, None)


def test_receive_tag_moves_offsets_of_offload() -> None:
    """Rule 8.20, translation, and rule 3.4, VLAN tags: offsets count from the start of the frame."""
    offload = Offload(1, 1, 54, 1448, 34, 16)
    control = [auxdata(0x50, 7, 0x8100)]
    received = run_receive([message(FRAME, offload, control)])[0]
    assert received[1] == Offload(1, 1, 58, 1448, 38, 16)


def test_receive_empty_queue_is_none() -> None:
    assert run_receive([blocked()]) == (None, IoCounters())


def test_receive_truncated_frame_is_counted_and_skipped() -> None:
    script = [message(FRAME, flags=socket.MSG_TRUNC), message(FRAME)]
    assert run_receive(script) == ((FRAME, None), IoCounters(rx_truncated=1))


def test_receive_interface_down_is_counted() -> None:
    assert run_receive([OSError(errno.ENETDOWN, "down")]) == (None, IoCounters(rx_errors=1))


def test_send_without_offload_sends_zero_header() -> None:
    assert run_send([1]) == (True, [bytes(10) + FRAME], IoCounters())


def test_send_offload_precedes_frame() -> None:
    """Rule 12.2, frames over the MTU: a GSO frame keeps its header."""
    offload = Offload(1, 1, 54, 1448, 34, 16)
    sent = run_send([1], offload)[1]
    assert sent == [struct.pack("=BBHHHH", *offload) + FRAME]


def test_send_queue_full_is_tried_again() -> None:
    assert run_send([OSError(errno.ENOBUFS, "full"), blocked(), 1]) == (True, [bytes(10) + FRAME], IoCounters())


def test_send_queue_stays_full_drops_frame() -> None:
    assert run_send([blocked()] * frames.SEND_ATTEMPTS) == (False, [], IoCounters(tx_dropped=1))


def test_send_refused_frame_is_counted() -> None:
    assert run_send([OSError(errno.EMSGSIZE, "too long")]) == (False, [], IoCounters(tx_errors=1))


def test_io_counters_names_match_loop_of_rust() -> None:
    assert set(IoCounters().as_dict()) == {"rx_truncated", "rx_errors", "rx_dropped", "tx_dropped", "tx_errors"}
