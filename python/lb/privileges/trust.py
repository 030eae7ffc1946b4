"""
Which files a privileged `lb` believes: the configuration, and the policies it names, which are programs (rule 21.4,
trusted files).

A file is trusted when it and every directory and symbolic link on the way to it belong to root or to the caller, and
no other user or group can write them (a directory with the sticky bit keeps others from replacing what is in it). One
judgement for `lb run`, `lb doctor` and the loader of policies. The rule holds in a process that was started as root,
also after it has become another user; processes of other users may read what they like: they have nothing to lose.

`open_file` opens such files; a process that may not read them any more has them opened by a broker
(`lb.privileges.broker`).
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

ROOT = 0
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")
UID_MAP = Path("/proc/self/uid_map")
# What it says outside of every user namespace.
WHOLE_MAP = ["0", "0", "4294967295"]
# As many as the kernel follows (path_resolution(7)).
MOST_LINKS = 40


class Fault(NamedTuple):
    """Why a file is not trusted. `fix`: the command that changes it."""

    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}"


class UntrustedFileError(PermissionError):
    """A file is not opened because others decide what is in it. `strerror`: the fault."""


_opener: Callable[[Path], BinaryIO] | None = None


@functools.cache
def trusted_owners() -> frozenset[int] | None:
    """
    Return the users whose files are trusted; None when this process was not started as root.

    The first call decides: make it before the process becomes another user.
    """
    if os.geteuid() != ROOT:
        return None
    owners = {ROOT}
    # `sudo` says who called.
    caller = os.environ.get("SUDO_UID", "")
    if caller.isascii() and caller.isdigit():
        owners.add(int(caller))
    # In a user namespace the machine's own root is a user without a number.
    if UID_MAP.read_text().split() != WHOLE_MAP:
        owners.add(int(OVERFLOW_UID.read_text()))
    return frozenset(owners)


def find_fault(path: Path, owners: frozenset[int]) -> Fault | None:
    """
    Return the first reason not to trust a file, on the way to it from the root directory; None when there is none.

    Every directory, symbolic link and at last the file itself must belong to a trusted owner. Directories and the file
    must not be writable by a group either: any user may be in it, and where there is an access control list (acl(5)),
    the bits of the group are those of all users that it names.

    Args:
        path: of the file.
        owners: whose files are trusted.

    Raises:
        OSError: it cannot be looked at.
    """
    open_to_others: dict[Path, int] = {}  # with their modes
    for each, status in _on_the_way(path):
        if status.st_uid not in owners:
            what = "the symbolic link " if stat.S_ISLNK(status.st_mode) else ""
            message = f"{what}{each} belongs to user {status.st_uid}, who decides what lb does"
            return Fault(message, f"chown -h root {_quoted(each)}" if what else f"chown root {_quoted(each)}")
        if _is_open_to_others(status.st_mode):
            open_to_others[each] = stat.S_IMODE(status.st_mode)
    if not open_to_others:
        return None
    first, mode = next(iter(open_to_others.items()))
    # One command for all of them: with a umask of 002 each directory of a user's is among them.
    who = "go" if any(each & stat.S_IWOTH for each in open_to_others.values()) else "g"
    names = " ".join(map(_quoted, open_to_others))
    return Fault(f"{first} can be written by others (mode {mode:04o})", f"chmod {who}-w {names}")


def _is_open_to_others(mode: int) -> bool:
    """Tell whether others can write; the sticky bit keeps them from replacing files in a directory."""
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return False
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _on_the_way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """
    Yield all that leads to a file, as the kernel follows it: directories, symbolic links and what those lead through.

    Raises:
        OSError: something is not there, or there are too many links.
    """
    at, links = Path("/"), 0
    yield at, at.lstat()
    rest = [*reversed(path.absolute().parts[1:])]
    while rest:
        part = rest.pop()
        if part == "..":
            at = at.parent
            continue
        each = at / part
        status = each.lstat()
        yield each, status
        if not stat.S_ISLNK(status.st_mode):
            at = each
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = each.readlink()
        rest += reversed(target.parts[target.is_absolute() :])
        at = Path("/") if target.is_absolute() else at


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def require_trusted(path: Path) -> None:
    """
    Raise UntrustedFileError when this process was started as root and a file is not trusted. A file that is not there
    is no question of trust.
    """
    owners = trusted_owners()
    if owners is None or _opener is not None:
        return
    try:
        fault = find_fault(path, owners)
    except OSError:
        # Opening it says why.
        return
    if fault is not None:
        raise UntrustedFileError(os.EX_NOPERM, str(fault))


def open_file(path: Path) -> BinaryIO:
    """
    Open a configuration or policy file for reading, by the broker when there is one, which judges it too.

    Raises:
        UntrustedFileError: the broker does not trust it.
        OSError: it cannot be opened.
    """
    return path.open("rb") if _opener is None else _opener(path)


def use_opener(opener: Callable[[Path], BinaryIO] | None) -> None:
    """Have files opened by a function from now on; None: by this process itself."""
    global _opener
    _opener = opener
