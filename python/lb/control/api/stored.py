"""
`lb flows dump` and `lb flows load`, the command's side: between a file (`lb.control.flow_file`) and a running balancer
(`lb.control.api.flow_rows`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lb.control import flow_file
from lb.control.api.client import change, fetch
from lb.control.api.paths import FLOW_LOAD, FLOW_NAMES, FLOW_ROWS
from lb.control.kept_names import Names, NamesPart
from lb.control.stored_flows import Loaded
from lb.errors import LbError

OWNER_ONLY = 0o600
# So many fit a request with all that the ids in them mean.
ROWS_PER_REQUEST = 200
# Where a row has the id of its server (`rust/core/src/flow/table/entry.rs`): 32 bits of the machine's byte order.
SERVER = struct.Struct("=I")
SERVER_AT = 24


class RemoteFlows:
    """
    The flows of a running balancer: a `Source` of a file.

    Args:
        path: of its control socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def layout(self) -> str:
        """Return the layout of the rows."""
        return str(fetch(self._path, FLOW_NAMES)["layout"])

    def names(self) -> Names:
        """Return what the ids in rows mean now."""
        return Names.model_validate_json(json.dumps(fetch(self._path, FLOW_NAMES)["names"]))

    def rows(self, place: int) -> tuple[bytes, int | None]:
        """Return rows, and where the next ones are."""
        answer = fetch(self._path, FLOW_ROWS, place=place)
        return base64.b64decode(answer["rows"]), answer["next"]


def dump_flows(path: Path, file: Path) -> int:
    """
    Write all flows of a running balancer to a file. It appears at once and whole, or not at all.

    Args:
        path: of the control socket.
        file: where to.

    Returns:
        How many.

    Raises:
        LbError: no balancer answers, or it has no rows.
        OSError: the file cannot be written.
    """
    source, made = RemoteFlows(path), file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            size = flow_file.write(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
        made.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink()
        raise
    return size // row_bytes(source.layout())


def load_flows(path: Path, file: Path) -> Loaded:
    """
    Load the flows of a file into a running balancer.

    Args:
        path: of the control socket.
        file: of `dump_flows`, or a snapshot.

    Raises:
        LbError: the file is none, damaged, or of another layout; no balancer answers.
        OSError: it cannot be read.
    """
    flows = dropped = 0
    with file.open("rb") as stream:
        try:
            contents = flow_file.read(stream)
        except LbError as error:
            raise LbError(f"{file}: {error}") from None
        size = row_bytes(contents.layout)
        for rows in _parts(contents.blocks(), size * ROWS_PER_REQUEST):
            loaded = Loaded(**change(path, FLOW_LOAD, _request(contents, rows, size)))
            flows, dropped = flows + loaded.flows, dropped + loaded.dropped
    return Loaded(flows, dropped)


def row_bytes(layout: str) -> int:
    """Return the bytes of a row. Raise LbError for a layout that is none of lb."""
    parts = layout.split()
    if len(parts) < 2 or not parts[1].isdecimal() or int(parts[1]) < SERVER_AT + SERVER.size:
        raise LbError(f"{layout!r} is no layout of flows")
    return int(parts[1])


def _parts(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for at in range(0, len(block), size):
            yield block[at : at + size]


def _request(contents: flow_file.Contents, rows: bytes, size: int) -> dict[str, Any]:
    """Return the parameters for some rows: with what the ids in these mean, and no others."""
    places = range(SERVER_AT, len(rows) - SERVER.size + 1, size)
    servers = sorted({SERVER.unpack_from(rows, place)[0] for place in places})
    names = NamesPart.of(contents.names, servers).model_dump(mode="json")
    return {"layout": contents.layout, "names": names, "rows": base64.b64encode(rows).decode()}
