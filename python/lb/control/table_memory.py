"""
Where the flow tables of a state directory are: in files of it, or in maps of the kernel.

A map is what the kernel's programs can read and write; it outlives the process while it is pinned in a BPF file system,
`/sys/fs/bpf` or one that is mounted in the state directory as `bpf`. Making and opening one needs CAP_BPF, so both are
done at the start, while this process has its rights; removing one needs only a descriptor of a directory that was given
to the user this process becomes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lb import _core
from lb.control import state_files
from lb.control.kept_names import Memory
from lb.errors import LbError

BPF, BPF_FILE_SYSTEM = "bpf", Path("/sys/fs/bpf")
TABLES = ("table.0", "table.1")
# The kernel keeps names with a dot for itself.
PINS = ("table-0", "table-1")
# Of a user id.
MOST_DIGITS = 10
# Mount options of a tmpfs that gives a flow table huge pages, which no map has (tmpfs(5)).
HUGE = frozenset({"huge=always", "huge=within_size", "huge=advise"})


class Where(NamedTuple):
    """
    Where a flow table is, and why there.

    Args:
        memory: what it is.
        path: of the file or the map.
        why: for people.
    """

    memory: Memory
    path: Path
    why: str


class TableMemory:
    """
    The two places for a table of a state directory. Close it at the end.

    Args:
        path: of the state directory.
        files: descriptors of its files for tables, by place.
    """

    def __init__(self, path: Path, files: tuple[int, int]) -> None:
        self._path, self._files = path, files
        self._stack = ExitStack()
        # The directory for maps: its path and a descriptor; None: there is none.
        self._pins: tuple[Path, int] | None = None
        self._why_no_map = ""
        # Descriptors of maps, by place, and for how many flows this process has made its own.
        self._maps: dict[int, int] = {}
        self._made: tuple[int, int] | None = None

    def close(self) -> None:
        """Forget all descriptors. What is in the places stays."""
        self._stack.close()

    def find_pins(self, directory: int, lock: int, owner: int | None) -> None:
        """
        Find or make the directory for maps. Where that fails, there are files only.

        Args:
            directory: a descriptor of the state directory.
            lock: of a file in it, which keeps the user id that the directory for maps was given to.
            owner: user id that this process is going to have; None: its own.
        """
        base = next((base for base in (self._path / BPF, BPF_FILE_SYSTEM) if _is_bpf(base)), None)
        if base is None:
            self._why_no_map = f"no BPF file system is mounted at {BPF_FILE_SYSTEM}"
            return
        status = os.fstat(directory)
        # Paths may be the same in two containers that share a BPF file system.
        path = base / f"flowlb-{status.st_dev:x}-{status.st_ino:x}"
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(state_files.OWNER_ONLY_FOLDER)
            pins = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._stack.callback(os.close, pins)
            _give(pins, path, lock, os.geteuid() if owner is None else owner)
        except (OSError, LbError) as error:
            self._why_no_map = str(error) if isinstance(error, LbError) else f"{path}: {_reason(error)}"
            return
        self._pins = path, pins

    def prepare(self, place: int, capacity: int | None) -> None:
        """
        Make a map for this process's table where that is better than a file: in a place whose table is of no use.

        Args:
            place: for the table.
            capacity: its flows; None: that is not known.
        """
        self._remove_map(place)
        if self._pins is None or capacity is None:
            return
        if _has_huge_pages(self._files[place]):
            self._why_no_map = "its file system gives huge pages, the kernel's maps have none"
            return
        try:
            made = _core.create_table_map(capacity, str(self._pinned(place)))
        except (OSError, LbError) as error:
            self._why_no_map = f"the kernel makes no BPF map: {_reason(error)}"
            return
        self._hold(place, made)
        self._made = place, capacity
        os.ftruncate(self._files[place], 0)

    def take(self, place: int, capacity: int) -> int | None:
        """Return a descriptor of the map that was made for a table; None: there is none, and the file is to be used."""
        if self._made is not None and self._made != (place, capacity):
            self.clear(self._made[0])
        return None if self._made is None else self._maps[place]

    def open_left(self, place: int, memory: Memory) -> int:
        """
        Return a descriptor of a table that was left.

        Raises:
            LbError: it cannot be opened.
        """
        if memory == "file":
            self._remove_map(place)
            return self._files[place]
        if self._pins is None:
            raise LbError(f"it is in a map of the kernel: {self._why_no_map}")
        try:
            self._hold(place, _core.open_table_map(str(self._pinned(place))))
        except OSError as error:
            raise LbError(f"the kernel's map {self._pins[0] / PINS[place]}: {_reason(error)}") from None
        return self._maps[place]

    def clear(self, place: int) -> None:
        """Have the room of a table. Raise OSError when its file does not let it go."""
        if self._made is not None and self._made[0] == place:
            self._made = None
        self._remove_map(place)
        os.ftruncate(self._files[place], 0)

    def drop_made(self) -> None:
        """Remove the map that this process has made, if it did."""
        if self._made is not None:
            self._remove_map(self._made[0])

    def has_any(self) -> bool:
        """Tell whether there is a table in any place."""
        return any(os.fstat(file).st_size for file in self._files) or any(map(self._has_map, (0, 1)))

    def paths(self) -> list[Path]:
        """Return the directories of all that outlives the process."""
        return [self._path] if self._pins is None else [self._path, self._pins[0]]

    def where(self, place: int) -> Where:
        """Return where this process's table is."""
        if place in self._maps and self._pins is not None:
            return Where("map", self._pins[0] / PINS[place], "the kernel's programs can use it there")
        return Where("file", self._path / TABLES[place], self._why_no_map)

    def _pinned(self, place: int) -> Path:
        assert self._pins is not None
        return Path(f"/proc/self/fd/{self._pins[1]}") / PINS[place]

    def _has_map(self, place: int) -> bool:
        if self._pins is None:
            return False
        try:
            os.stat(PINS[place], dir_fd=self._pins[1])
        except FileNotFoundError:
            return False
        return True

    def _hold(self, place: int, descriptor: int) -> None:
        self._maps[place] = descriptor
        self._stack.callback(self._let_go, place)

    def _let_go(self, place: int) -> None:
        if (descriptor := self._maps.pop(place, None)) is not None:
            os.close(descriptor)

    def _remove_map(self, place: int) -> None:
        """Remove a map's name; its memory goes with its last user."""
        self._let_go(place)
        if self._pins is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(PINS[place], dir_fd=self._pins[1])


def _is_bpf(path: Path) -> bool:
    try:
        return state_files.file_system(path.stat().st_dev) == "bpf"
    except OSError:
        return False


def _give(directory: int, path: Path, lock: int, owner: int) -> None:
    """
    Give a directory to its owner. Raise LbError when it is another user's than ours or the last owner's, or when others
    may look into it.
    """
    status, last = os.fstat(directory), state_files.content(lock, MOST_DIGITS)
    owners = {os.geteuid(), owner, int(last) if last.isdigit() else owner}
    if status.st_uid not in owners or stat.S_IMODE(status.st_mode) != state_files.OWNER_ONLY_FOLDER:
        raise LbError(f"{path} is another user's, or others may look into it: remove it")
    if status.st_uid != owner:
        os.fchown(directory, owner, -1)
    state_files.write_whole(lock, str(owner).encode())


def _has_huge_pages(file: int) -> bool:
    return bool(HUGE & state_files.mount_options(os.fstat(file).st_dev))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
