"""
The directory and files that a process leaves to the next one: opened so that nobody else decides what is in them.

Used by the state directory (`lb.control.kept`). What leads to the directory is judged as the way to a configuration is
(rule 21.4, trusted files); the directory and its files are judged by their descriptors, so that nothing can be put in
their place in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
import time
from pathlib import Path

from lb.errors import LbError
from lb.privileges import trust

# statfs(2): what /run and /dev/shm are. On a disk the kernel would write a table back all the time.
IN_MEMORY = frozenset({"tmpfs"})
OWNER_ONLY, OWNER_ONLY_FOLDER, FOLDER = 0o600, 0o700, 0o755
# How long a process that was killed may take to let go of its lock.
LOCK_S, RETRY_S = 5.0, 0.02


def open_directory(path: Path, what: str = "state", *, in_memory: bool = True) -> int:
    """
    Make a directory if there is none, and return a descriptor of it, which the caller closes.

    Args:
        path: of the directory.
        what: it is for, in messages.
        in_memory: whether it must be in memory.

    Raises:
        LbError: it would not be in memory, it is another user's, or others may write there or on the way to it.
        OSError: it cannot be made or opened.
    """
    path = path.absolute()
    if in_memory:
        require_memory(path, _nearest(path, *path.parents).stat())
    owners = trust.trusted_owners()
    fault = None if owners is None else trust.find_fault(_nearest(*path.parents, path), owners)
    if fault is not None:
        raise LbError(f"{what} directory {path}: {fault}")
    for folder in (*reversed(path.parents), path):
        if not os.path.lexists(folder):
            folder.mkdir(OWNER_ONLY_FOLDER if folder == path else FOLDER)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if in_memory:
            require_memory(path, os.fstat(descriptor))
        _require_ours(path, os.fstat(descriptor), what)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _nearest(*folders: Path) -> Path:
    """Return the first that is there."""
    return next(folder for folder in folders if os.path.lexists(folder))


def _require_ours(path: Path, status: os.stat_result, what: str) -> None:
    """Raise LbError unless only this user may write in a directory."""
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LbError(f"{what} directory {path} is another user's, or others may write there: remove it")


def require_memory(path: Path, status: os.stat_result) -> None:
    """Raise LbError unless a directory, or what it would be made in, is in memory."""
    if (kind := file_system(status.st_dev)) not in IN_MEMORY:
        raise LbError(f"state directory {path} is on {kind}, not in memory: choose one in /run or /dev/shm")


def file_system(device: int) -> str:
    """Return the kind of file system that a device number (stat(2)) is of, as /proc/self/mountinfo has it."""
    return _mount(device)[0]


def mount_options(device: int) -> frozenset[str]:
    """Return the options of the file system that a device number is of; none for one that is not mounted here."""
    return frozenset(_mount(device)[1].split(","))


def _mount(device: int) -> tuple[str, str]:
    """Return kind and options of a file system."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            kind, *_, options = after.split()
            return kind, options
    return "an unknown file system", ""


def open_file(directory: int, name: str) -> int:
    """
    Make a file in a directory if there is none, and return a descriptor of it, which the caller closes. OSError: it
    cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, OWNER_ONLY, dir_fd=directory)


def listen(directory: int, name: str) -> socket.socket:
    """
    Return a UNIX socket that listens in a directory whose lock this process holds, in the place of one that a process
    before left. OSError: it cannot be made.
    """
    path = Path(f"/proc/self/fd/{directory}") / name
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(OWNER_ONLY)
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def require_private(descriptor: int, path: Path) -> None:
    """Raise LbError unless an open file is a regular one that this user alone can open, by this one name."""
    status = os.fstat(descriptor)
    is_private = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == OWNER_ONLY
    if not (stat.S_ISREG(status.st_mode) and is_private and status.st_nlink == 1):
        raise LbError(f"{path} is no file that only its owner can open, under one name: remove {path.parent}")


def hold_lock(descriptor: int) -> None:
    """Lock a file. Raise BlockingIOError when another process still holds the lock after a moment."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
        time.sleep(RETRY_S)


def free_bytes(descriptor: int) -> int:
    """Return how much the file system of an open file has room for."""
    room = os.fstatvfs(descriptor)
    # A tmpfs without a limit (size=0) has no blocks.
    return room.f_bavail * room.f_frsize if room.f_blocks else sys.maxsize


def content(descriptor: int, most: int) -> bytes:
    """Return what is in a file; nothing when it has more than `most` bytes."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0) if size <= most else b""


class Writer:
    """Writes to an open file from its beginning on. `descriptor`: of the file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def write(self, data: bytes) -> None:
        """Write data behind what was written before. Raise OSError unless there is room for all of it."""
        rest = memoryview(data)
        while rest:
            # Short where the file system is nearly full; the next call says so.
            count = os.pwrite(self._descriptor, rest, self._at)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._at += count
            rest = rest[count:]


def write_whole(descriptor: int, data: bytes) -> None:
    """Make data the content of a file. Raise OSError unless all of it is there."""
    os.ftruncate(descriptor, 0)
    Writer(descriptor).write(data)
    if content(descriptor, len(data)) != data:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
