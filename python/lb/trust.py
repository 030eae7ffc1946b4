"""
Which files a privileged `lb` believes: the configuration, and the policies it names, which are programs (behaviour 36).

A file is trusted when it and every directory on the way to it belong to root or to the caller, and nobody else can
write them (a directory with the sticky bit keeps others from replacing what is in it). One judgement for `lb run`,
`lb doctor` and the loader of policies. The rule holds in a process that was started as root, also after it has become
another user; processes of other users may read what they like: they have nothing to lose.

`open_file` opens such files; a process that may not read them any more has them opened by a broker (`lb.net.broker`).
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

ROOT = 0
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")
UID_MAP = Path("/proc/self/uid_map")
# What it says outside of every user namespace.
WHOLE_MAP = ["0", "0", "4294967295"]


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
    Return the first reason not to trust a file, from the file up to the root directory; None when there is none.

    Args:
        path: of the file; links are followed, and where they are is looked at too.
        owners: whose files are trusted.

    Raises:
        OSError: it cannot be looked at.
    """
    real = Path(os.path.realpath(path))
    ways = dict.fromkeys([real, *real.parents, *path.absolute().parents])
    for each in ways:
        status = each.stat()
        if status.st_uid not in owners:
            return Fault(f"{each} belongs to user {status.st_uid}, who decides what lb does", f"chown root {each}")
        others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != ROOT)
        if others and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            mode = stat.S_IMODE(status.st_mode)
            return Fault(f"{each} can be written by others (mode {mode:04o})", f"chmod go-w {each}")
    return None


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
