"""
Snapshots of all flows on a disk, now and then, for after a reboot or a loss of power (`flows.snapshot`).

The directory has two places for one, `flows.0` and `flows.1`: the older one is written anew, so whenever the machine
stops, one is whole. `lock` is held as long as a process uses the directory. All are opened at the start, while this
process has the rights for it (`lb.control.state_files`), and used by their descriptors from then on. The format is
that of `lb flows dump` (`lb.control.flow_file`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lb.control import flow_file, state_files
from lb.control.flow_file import Contents, Source
from lb.errors import LbError, with_way_out

LOCK, PLACES = "lock", ("flows.0", "flows.1")

log = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """A snapshot that was left. `place`: its file; `contents`: what is in it."""

    place: str
    contents: Contents


class SnapshotDirectory:
    """
    The snapshots of this process. Close it at the end.

    Args:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._files: dict[str, int] = {}
        # Of the one that was written last, and where the next one goes; None: nobody has looked.
        self._sequence: int | None = None
        self._next = PLACES[0]
        self._has_warned = False
        self._lock_fd = -1
        # One at the end may meet a periodic one.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, lock: int | None = None) -> SnapshotDirectory:
        """
        Make the directory if there is none, and open its files.

        Args:
            path: of the directory.
            lock: the descriptor of the process to take over from, which holds the lock of this directory. None: there
                is no such process. It is closed with the directory.

        Raises:
            LbError: another process uses it, it is not ours alone, or it cannot be made.
        """
        snapshots = cls(path)
        try:
            snapshots._open_files(lock)
        except BaseException as error:
            snapshots.close()
            if isinstance(error, BlockingIOError):
                raise LbError(f"another balancer uses the snapshot directory {path}: stop it first") from None
            if isinstance(error, OSError):
                raise LbError(f"snapshot directory {path}: {(error.strerror or str(error)).lower()}") from None
            raise
        return snapshots

    def _open_files(self, held: int | None) -> None:
        if held is not None:
            self._lock_fd = self._owned(held)
        directory = self._owned(state_files.open_directory(self.path, "snapshot", in_memory=False))
        if held is None:
            self._lock_fd = self._owned(state_files.open_file(directory, LOCK))
            state_files.hold_lock(self._lock_fd)
        for place in PLACES:
            self._files[place] = descriptor = self._owned(state_files.open_file(directory, place))
            state_files.require_private(descriptor, self.path / place)

    def _owned(self, descriptor: int) -> int:
        """Close a descriptor with the directory."""
        self._stack.callback(os.close, descriptor)
        return descriptor

    def close(self) -> None:
        """Let another process have the directory."""
        self._stack.close()

    def descriptors(self) -> dict[str, int]:
        """Return what a successor goes on with."""
        return {lock_name(self.path): self._lock_fd}

    def latest(self) -> Snapshot | None:
        """Return the latest snapshot that is whole; None: there is none. The next one is written in the other place."""
        found = None
        for place in PLACES:
            contents = self._read(place)
            if contents is not None and (found is None or contents.names.sequence > found.contents.names.sequence):
                found = Snapshot(place, contents)
        self._sequence = 0
        if found is not None:
            self._sequence = found.contents.names.sequence
            self._next = PLACES[1 - PLACES.index(found.place)]
        return found

    def _read(self, place: str) -> Contents | None:
        """Return what is in a place; None when nothing is, or it is not whole, which the log says."""
        stream = self._stack.enter_context(os.fdopen(os.dup(self._files[place]), "rb"))
        try:
            return flow_file.read(stream) if os.fstat(stream.fileno()).st_size else None
        except (LbError, OSError) as error:
            log.warning("%s: %s: nothing of it is used", self.path / place, error)
            return None

    def write(self, source: Source) -> None:
        """
        Write a snapshot, from any thread. Where that fails the one before stays, and the log warns, once until it
        succeeds again.

        Args:
            source: where flows come from.
        """
        with self._lock:
            self._write(source)

    def _write(self, source: Source) -> None:
        if self._sequence is None:
            # What the process before wrote is older, also where its flows came another way.
            self.latest()
        sequence, descriptor = (self._sequence or 0) + 1, self._files[self._next]
        try:
            os.ftruncate(descriptor, 0)
            flow_file.write(source, state_files.Writer(descriptor), sequence)
            os.fsync(descriptor)
        except (OSError, LbError) as error:
            self._warn(error)
            return
        self._sequence = sequence
        self._next = PLACES[1 - PLACES.index(self._next)]
        self._has_warned = False

    async def keep_writing(self, source: Source, interval_s: float) -> None:
        """Write a snapshot every `interval_s`, for ever: a job for `Supervisor.run`."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.write, source)

    def _warn(self, error: OSError | LbError) -> None:
        if not self._has_warned:
            self._has_warned = True
            why = with_way_out(str(getattr(error, "strerror", None) or error).lower(), error)
            log.warning("%s: no snapshot of the flows can be written, the one before stays: %s", self.path, why)


def lock_name(path: Path) -> str:
    """Return what the lock of a directory is called among the descriptors that a successor gets."""
    return f"snapshots {path}"
