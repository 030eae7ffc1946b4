"""
Flows in a file, for after a reboot: what `lb flows dump` writes, `lb flows load` reads, and snapshots are.

A line that names format and layout; blocks of rows (`Engine.copy_flows`), each after its length in 4 bytes,
little-endian, the last one empty; what the ids in them mean, as a line (`lb.control.kept_names`); a line with the
SHA-256 of all that. Nothing of a file is believed before its checksum was. Used by the running balancer for its
snapshots and by the commands; streams in, streams out.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import IO, NamedTuple, Protocol, TypeVar

from lb.control.kept_names import MOST_BYTES, Names
from lb.errors import LbError

MAGIC = b"flowlb flows "
HEAD = MAGIC + b"1 "
MOST_HEAD_BYTES = 200
LENGTH = struct.Struct("<I")
CHECKSUM_BYTES = 2 * hashlib.sha256().digest_size + 1
# Far more than a block has; a file with a longer one is damaged.
MOST_BLOCK_BYTES = 1 << 26
READ_BYTES = 1 << 20

Row = TypeVar("Row")


class Source(Protocol):
    """Where flows come from: the data path, or a running balancer. May raise LbError."""

    def layout(self) -> str:
        """Return the layout of the rows."""

    def names(self) -> Names:
        """Return what the ids in rows mean now."""

    def rows(self, place: int) -> tuple[bytes, int | None]:
        """Return rows, and where the next ones are, as `Engine.copy_flows`."""


class Target(Protocol):
    """What a file is written to."""

    def write(self, data: bytes, /) -> object:
        """Write all of some data behind what was written before."""


class Contents(NamedTuple):
    """
    What is in a file whose checksum is right.

    Args:
        layout: of its rows.
        names: what the ids in them mean.
        blocks: yields the rows; the file must stay open.
    """

    layout: str
    names: Names
    blocks: Callable[[], Iterator[bytes]]


def write(source: Source, stream: Target, sequence: int = 0) -> int:
    """
    Write all flows to a stream.

    Args:
        source: where they come from.
        stream: that is empty.
        sequence: counts the files of a directory.

    Returns:
        How many bytes of rows.

    Raises:
        LbError: of the source; or ids got another meaning meanwhile, and nothing in the stream is of use.
        OSError: it could not be written.
    """
    hashed = _Hashed(stream)
    first, size = source.names(), 0
    hashed.write(HEAD + source.layout().encode() + b"\n")
    following: int | None = 0
    while following is not None:
        rows, following = source.rows(following)
        if rows:
            hashed.write(LENGTH.pack(len(rows)) + rows)
            size += len(rows)
    names = merged(first, source.names())
    if names is None:
        raise LbError("services or servers were replaced while their flows were copied: try again")
    hashed.write(LENGTH.pack(0) + names.model_copy(update={"sequence": sequence}).model_dump_json().encode() + b"\n")
    stream.write(hashed.checksum())
    return size


def merged(first: Names, last: Names) -> Names | None:
    """Return what ids meant at the beginning or at the end; None: one of them meant two things."""
    services, servers = _union(first.services, last.services), _union(first.servers, last.servers)
    if services is None or servers is None or first.interfaces != last.interfaces:
        return None
    return last.model_copy(update={"services": services, "servers": servers})


def _union(first: tuple[Row | None, ...], last: tuple[Row | None, ...]) -> tuple[Row | None, ...] | None:
    rows = tuple(zip_longest(first, last))
    if any(one is not None and other is not None and one != other for one, other in rows):
        return None
    return tuple(one if other is None else other for one, other in rows)


def read(stream: IO[bytes]) -> Contents:
    """
    Return what is in a file, once it is known to be whole.

    Args:
        stream: that can seek.

    Raises:
        LbError: it is no file of flows, damaged, or of another version.
        OSError: it could not be read.
    """
    stream.seek(0)
    head = stream.readline(MOST_HEAD_BYTES)
    if not head.startswith(MAGIC) or not head.endswith(b"\n"):
        raise LbError("it is no file of flows")
    if not head.startswith(HEAD):
        raise LbError("it is of another version of lb")
    end = stream.seek(0, io.SEEK_END) - CHECKSUM_BYTES
    if end < len(head) or _checksum_until(stream, end) != stream.read():
        raise LbError("it is damaged or cut short")
    begin = len(head)
    stream.seek(begin)
    for _ in _blocks(stream):
        pass
    names = _names(stream.read(max(0, min(end - stream.tell(), MOST_BYTES))))

    def blocks() -> Iterator[bytes]:
        stream.seek(begin)
        return _blocks(stream)

    return Contents(head[len(HEAD) : -1].decode(errors="replace"), names, blocks)


def _checksum_until(stream: IO[bytes], end: int) -> bytes:
    stream.seek(0)
    digest = hashlib.sha256()
    while stream.tell() < end:
        data = stream.read(min(READ_BYTES, end - stream.tell()))
        if not data:
            break
        digest.update(data)
    return digest.hexdigest().encode() + b"\n"


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the blocks from here on, and leave the stream behind the last one. Raise LbError when one is cut short."""
    while True:
        head = stream.read(LENGTH.size)
        length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else MOST_BLOCK_BYTES + 1
        if length == 0:
            return
        rows = stream.read(length) if length <= MOST_BLOCK_BYTES else b""
        if len(rows) != length:
            raise LbError("its rows are cut short")
        yield rows


def _names(line: bytes) -> Names:
    try:
        return Names.model_validate_json(line)
    except ValueError:
        raise LbError("what its ids mean cannot be read") from None


class _Hashed:
    """Writes to a stream, and keeps the checksum of what was written."""

    def __init__(self, stream: Target) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def checksum(self) -> bytes:
        return self._digest.hexdigest().encode() + b"\n"
