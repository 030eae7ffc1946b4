"""
What outlives a process: the flow table's memory, and what its ids mean, in a state directory.

Used by the runtime where `lb run --state` asks for it. The directory has two places for a table, `table.0` and
`table.1`, and two for what its ids mean, `names.0` and `names.1`, and a table may be a map of the kernel instead
(`lb.control.table_memory`): a process writes where the one before it did not, so
whenever it is killed, one of each is whole. `lock` is held as long as a process uses the directory. All files are
opened at the start, while this process has the rights for it (`lb.control.state_files`), and used by their descriptors
from then on. The core believes nothing of a table that it has not checked (`rust/core/src/flow/table/image.rs`), and
names are believed only whole (`lb.control.kept_names`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lb.backends.base import Engine
from lb.compiler.spec import Spec
from lb.control import state_files
from lb.control.kept_names import MOST_BYTES, Content, Names, parsed, signature, translations, written
from lb.control.predecessor import Predecessor
from lb.control.standing import Standing
from lb.control.standing import signature as signature_of
from lb.control.table_memory import TABLES, TableMemory, Where
from lb.errors import LbError, with_way_out
from lb.model.snapshot import Snapshot

LOCK, NAMES = "lock", ("names.0", "names.1")
STANDINGS = ("standing.0", "standing.1")
# The socket at which this process waits for one that takes over from it.
SUCCESSORS = "successors"
# Bytes per flow, everything included, as `docs/rules.md` rule 8.17, full table, promises, and its header.
FLOW_BYTES, MORE_BYTES = 128, 4096
# Of names: per file, and at most per service or server in it.
NAMES_BYTES, NAME_BYTES = 1 << 16, 160

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """
    What became of the flows that were left.

    Args:
        flows: how many were taken over.
        dropped: how many entries were not.
        trouble: why all that was left is lost; None: it is not.
    """

    flows: int = 0
    dropped: int = 0
    trouble: str | None = None


class StateDirectory:
    """
    The state directory of this process. Close it at the end.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # What the process before left; None: nothing that can be used.
        self.left: Names | None = None
        self.standing_left: Standing | None = None
        # Whether that process still runs: its files are not to be touched.
        self.is_beside = False
        self._stack = ExitStack()
        self._files: dict[str, int] = {}
        self._tables: TableMemory
        # A descriptor of the table that was left; None: there is none that can be used.
        self._table_left: int | None = None
        # Where a successor finds this process.
        self.successors: socket.socket
        # Which of the tables is this process's.
        self._place = 0
        self._sequence = 0
        self._drawn_seed: int | None = None
        self._is_keeping = False
        # The snapshot that packets use, or will at once. Held while it is written down, by the one or the other thread.
        self._latest: Snapshot | None = None
        self._noting = threading.Lock()
        # What the names that were written last say; None: there are none that can be believed.
        self._noted: object = None
        self._stands: object = None
        self._standing_sequence = 0
        self._has_warned = False
        self._trouble: str | None = None

    @classmethod
    def open(
        cls, path: Path, predecessor: Predecessor | None = None, capacity: int | None = None, owner: int | None = None
    ) -> StateDirectory:
        """
        Make the directory if there is none, open its files, and make what needs rights.

        Args:
            path: where it is.
            predecessor: the process that uses it, to take over from; None: none does.
            capacity: flows of this process's table, which may be a map of the kernel then; None: it is a file.
            owner: user id that this process is going to have; None: its own.

        Raises:
            LbError: another process uses it, it is not in memory, it is not ours alone, or it cannot be made.
        """
        state = cls(path)
        try:
            state._open_files(predecessor, owner)
            state.read_left()
            state._open_tables(capacity)
        except BlockingIOError:
            state.close()
            raise LbError(f"another balancer uses the state directory {path}: stop it first") from None
        except OSError as error:
            state.close()
            raise state._failed(error) from None
        except BaseException:
            state.close()
            raise
        return state

    def _open_files(self, predecessor: Predecessor | None, owner: int | None) -> None:
        """Open lock, tables and names, the lock first: nothing is judged while another process may change it."""
        directory = state_files.open_directory(self.path)
        self._stack.callback(os.close, directory)
        # The lock belongs to an open file: with the descriptor of the process before, it goes on without a gap.
        shared = None if predecessor is None else predecessor.take(LOCK)
        self.is_beside = shared is not None
        for name in (LOCK, *TABLES, *NAMES, *STANDINGS):
            is_shared = name == LOCK and shared is not None
            descriptor = shared if name == LOCK and shared is not None else state_files.open_file(directory, name)
            self._files[name] = descriptor
            self._stack.callback(os.close, descriptor)
            if name == LOCK and not is_shared:
                state_files.hold_lock(descriptor)
            state_files.require_private(descriptor, self.path / name)
        self._tables = TableMemory(self.path, (self._files[TABLES[0]], self._files[TABLES[1]]))
        self._stack.callback(self._tables.close)
        self._stack.callback(self._drop_unkept)
        self._tables.find_pins(directory, self._files[LOCK], owner)
        waiting = None if predecessor is None else predecessor.take(SUCCESSORS)
        listens = state_files.listen(directory, SUCCESSORS) if waiting is None else socket.socket(fileno=waiting)
        self.successors = self._stack.enter_context(listens)

    def read_left(self) -> None:
        """Read what the process before has written down, also while it runs."""
        found = self._parsed(NAMES, Names)
        self.left = max(found, key=lambda names: names.sequence, default=None)
        if self.left is not None:
            self._place, self._sequence = 1 - self.left.table, self.left.sequence
        elif self._tables.has_any():
            self._trouble = "what was left cannot be read: flows begin empty"
        standings = self._parsed(STANDINGS, Standing)
        self.standing_left = max(standings, key=lambda standing: standing.sequence, default=None)
        if self.standing_left is not None:
            self._standing_sequence = self.standing_left.sequence

    def _open_tables(self, capacity: int | None) -> None:
        """Open the table that was left, and make this process's."""
        trouble = None
        if self.left is not None:
            try:
                self._table_left = self._tables.open_left(self.left.table, self.left.memory)
            except LbError as error:
                trouble = f"the flow table that was left cannot be opened: {error}"
                self.left, self._trouble = None, f"{trouble}: flows begin empty"
        if self.is_beside and self.left is None:
            # Nothing tells which table is theirs, or it is out of reach.
            why = trouble or "what the running balancer's flows mean cannot be read"
            raise LbError(f"take-over: {why}: restart it instead")
        self._tables.prepare(self._place, capacity)

    def _drop_unkept(self) -> None:
        """Remove the map of a process that has failed at its start: no later one would look for it."""
        if not self._is_keeping:
            self._tables.drop_made()

    def _parsed(self, names: tuple[str, ...], kind: type[Content]) -> list[Content]:
        contents = (state_files.content(self._files[name], MOST_BYTES) for name in names)
        return [found for data in contents if (found := parsed(data, kind)) is not None]

    def close(self) -> None:
        """Let another process have the directory."""
        self._stack.close()

    @property
    def where(self) -> Where:
        """Where this process's table is."""
        return self._tables.where(self._place)

    def descriptors(self) -> dict[str, int]:
        """Return what a successor goes on with."""
        return {LOCK: self._files[LOCK], SUCCESSORS: self.successors.fileno()}

    @property
    def seed_left(self) -> int | None:
        """The seed that the process before had drawn, or had from one before it; None: there is none."""
        return self.left.seed if self.left is not None and self.left.drawn else None

    def new_table(self, capacity: int, ids: int = 0) -> int:
        """
        Return a descriptor of the empty file, or map of the kernel, for this process's table. Of files, a first process
        needs room for two: the next one has its own beside it. Where that is gone, what was left is given up for it.

        Args:
            capacity: flows of the table.
            ids: how many services and servers there are.

        Raises:
            LbError: there is not enough room for it.
        """
        names = len(NAMES) * (NAMES_BYTES + ids * NAME_BYTES)
        try:
            made = self._tables.take(self._place, capacity)
            if made is not None:
                if self.left is None and not self.is_beside:
                    self._tables.clear(1 - self._place)
                self._require_room(names, "what the flows' ids mean")
                return made
            self._make_room(capacity * FLOW_BYTES + MORE_BYTES, names)
        except OSError as error:
            raise self._failed(error) from None
        return self._files[TABLES[self._place]]

    def _make_room(self, table: int, names: int) -> None:
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY and most < table:
            way_out = "raise that (`ulimit -f`, or LimitFSIZE= of a systemd unit), or make flows.capacity smaller"
            raise LbError(f"the flow table is a file of {table} bytes, this process may write {most}: {way_out}")
        lock, whose, needed = self._files[LOCK], "the flow table", table + names
        self._tables.clear(self._place)
        if self.left is None and not self.is_beside:
            self._tables.clear(1 - self._place)
            needed, whose = needed + table, "two flow tables, that of the next start is made beside the one in use"
        elif self._leaves_file() and state_files.free_bytes(lock) < needed:
            self.give_up("there is no room for a table beside the one that was left")
        self._require_room(needed, whose)

    def _leaves_file(self) -> bool:
        """Tell whether a process that is gone left a table in a file: a map would leave no room in the directory."""
        return self.left is not None and not self.is_beside and self.left.memory == "file"

    def _require_room(self, needed: int, whose: str) -> None:
        if (free := state_files.free_bytes(self._files[LOCK])) < needed:
            way_out = "make its file system larger, or flows.capacity smaller"
            raise LbError(f"{needed} bytes are needed in {self.path} for {whose}; {free} are free: {way_out}")

    def give_up(self, why: str) -> bool:
        """Have the room of the table that was left, if nobody uses it; tell whether there was."""
        if self.left is None or self.is_beside:
            return False
        self.left = None
        self._trouble = f"{why}: its flows are lost"
        # Names go first: they mean nothing without it.
        self._invalidate()
        self._clear_left()
        return True

    def _clear_left(self) -> None:
        self._table_left = None
        self._tables.clear(1 - self._place)

    def keep(self, engine: Engine, snapshot: Snapshot, now_ns: int, drawn_seed: int | None = None) -> Kept:
        """
        Have an engine take over the flows that were left, once it has the first snapshot; from then on this process's
        table is the one that the next process finds. `begin` and `forget_left` follow.

        Args:
            engine: whose table is in the file of `new_table`.
            snapshot: the first one.
            now_ns: monotonic nanoseconds.
            drawn_seed: the seed that was drawn, by this process or one before it; None: none was.

        Raises:
            LbError: what was left could not be read for now, or by this version while the process before still runs. It
                stays as it is.
        """
        kept = self._take_over(engine, snapshot, now_ns)
        self._drawn_seed, self._is_keeping = drawn_seed, True
        return kept

    def begin(self, snapshot: Snapshot, spec: Spec) -> None:
        """Write down what stands now: the process before has stopped for good."""
        self.is_beside, self.left = False, None
        self.note(snapshot)
        self.note_standing(spec)

    def forget_left(self) -> None:
        """Have the room of the table that was left, once no process looks at it."""
        # A process that is killed before this leaves two tables, and the names say which of them counts.
        with contextlib.suppress(OSError):
            self._clear_left()
        # Where there was no room for names beside two tables, there is now.
        with self._noting:
            if self._latest is not None:
                self._note(self._latest)

    def _take_over(self, engine: Engine, snapshot: Snapshot, now_ns: int) -> Kept:
        if self.left is None or self._table_left is None:
            if self.is_beside:
                raise LbError("take-over: what the running balancer's flows mean cannot be read any more")
            return Kept(trouble=self._trouble)
        ids = translations(self.left, snapshot)
        try:
            return Kept(*engine.keep_flows(self._table_left, ids.rows, ids.interfaces, now_ns))
        except OSError as error:
            way_out = f"start again, or remove {' and '.join(map(str, self._tables.paths()))} to begin without them"
            raise LbError(
                f"{self.path}: the flows that were left cannot be read now: {_why(error)}: {way_out}"
            ) from None
        except LbError as error:
            if self.is_beside:
                raise LbError(f"take-over: the running balancer's flow table cannot be read: {error}") from None
            return Kept(trouble=f"the flows that were left are lost: {error}")

    def note(self, snapshot: Snapshot) -> None:
        """
        Write down what the ids of a snapshot mean, before packets use them; nothing before `keep`.

        Where that fails the snapshot is used all the same, and no later process believes older names.
        """
        with self._noting:
            self._latest = snapshot
            self._note(snapshot)

    def _note(self, snapshot: Snapshot) -> None:
        if not self._is_keeping:
            return
        meaning = signature(snapshot)
        if meaning == self._noted:
            return
        self._noted = None
        try:
            self._write(snapshot)
            self._noted = meaning
        except (OSError, ValueError) as error:
            self._invalidate()
            if not self._has_warned:
                self._has_warned = True
                what = "what the flows' ids mean cannot be written down, so they are not kept over a restart"
                log.warning("%s: %s: %s", self.path, what, _why(error))

    def note_standing(self, spec: Spec) -> None:
        """
        Write down what stands beside the configuration, after a change of it; nothing before `keep`. Where that fails,
        the next process knows of it what was written before.
        """
        stands = signature_of(spec)
        if not self._is_keeping or self.is_beside or stands == self._stands:
            return
        self._standing_sequence += 1
        standing = Standing.of(spec, self._standing_sequence)
        try:
            state_files.write_whole(self._files[STANDINGS[standing.sequence % 2]], written(standing))
            self._stands = stands
        except OSError as error:
            log.warning("%s: the last change would not survive a restart: %s", self.path, _why(error))

    def _write(self, snapshot: Snapshot) -> None:
        """Write names with the next sequence number, where the last ones are not."""
        self._sequence += 1
        drawn = snapshot.seed == self._drawn_seed
        names = Names.of(snapshot, self._sequence, self._place, drawn, self.where.memory)
        state_files.write_whole(self._files[NAMES[self._sequence % 2]], written(names))

    def _invalidate(self) -> None:
        """Leave no names that a later process could believe."""
        for name in NAMES:
            with contextlib.suppress(OSError):
                os.ftruncate(self._files[name], 0)

    def _failed(self, error: OSError) -> LbError:
        return LbError(f"state directory {self.path}: {_why(error)}")


def _why(error: Exception) -> str:
    """Return the reason of an error, on one line, with the way out."""
    why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return with_way_out(why.lower(), error)
