"""
Giving up what root has, before anything of the user's runs (rule 21.2, privileges).

`lb run` becomes an unprivileged user: the one it is told, else `flowlb`, else `nobody`. `CAP_NET_ADMIN` stays, in the
ambient set too, so that `nft`, which runs as a child, has it: asking the kernel for neighbours needs it, and so does
what keeps the host's kernel from the services' packets. Everything else goes, for the process and for what it starts,
and cannot come back (`no_new_privs`).

Capabilities belong to a thread and are inherited by those it starts: all of this happens while there is one.
capabilities(7), prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lb.errors import PrivilegeError
from lb.privileges.trust import UID_MAP, WHOLE_MAP

ROOT = 0
DEFAULT_USERS = ("flowlb", "nobody")
CAP_SETPCAP = 8
CAP_NET_ADMIN = 12
KEPT = frozenset({CAP_NET_ADMIN})
# What the running process imports from: another user must be able to read them.
NEEDED_MODULES = ("os", "lb", "lb._core", "aiohttp")

# linux/capability.h, linux/prctl.h
VERSION_3 = 0x20080522
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")

_libc = ctypes.CDLL(None, use_errno=True)


class Account(NamedTuple):
    """An unprivileged user. `uid`, `gid`: of it and its first group."""

    name: str
    uid: int
    gid: int


class Notice(NamedTuple):
    """What the log should say once the balancer runs. `level`: as `logging` has it."""

    level: int
    text: str


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Half of the sets: capabilities 0 to 31, or those from 32 on."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_privileges(user: str | None = None, kept: frozenset[int] = KEPT) -> Notice:
    """
    Become an unprivileged user, and give up every capability but the kept ones, for good.

    A process that is not root stays who it is. Where the default user cannot be had (a user namespace with one user, a
    container without CAP_SETUID, a Python that only root may read), it stays root with the kept capabilities alone.

    Args:
        user: the name to run as; `root`: stay root, with the kept capabilities alone. None: `flowlb` or `nobody`.
        kept: numbers of capabilities: CAP_NET_ADMIN, or none.

    Returns:
        What the log should say about it.

    Raises:
        PrivilegeError: there is no such user, or this process cannot become it.
        OSError: the kernel refuses to drop capabilities, which it has no reason to.
    """
    account, notice = choose_account(user, "CAP_NET_ADMIN only" if kept else "no capabilities")
    # Becoming another user forgets the request to die with the parent.
    death_signal = ctypes.c_int(0)
    _check(_libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death_signal), 0, 0, 0))
    parent = os.getppid()
    _drop_bounding(kept)
    if account is not None:
        _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        _become(account)
    limit_capabilities(kept)
    if account is not None and death_signal.value:
        _check(_libc.prctl(PR_SET_PDEATHSIG, death_signal.value, 0, 0, 0))
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.Signals(death_signal.value))
    return notice


def choose_account(user: str | None, rights: str) -> tuple[Account | None, Notice]:
    """
    Return the user to become (None: stay the current one), and the message for the log.

    Args:
        user: as of `drop_privileges`, and so are the errors.
        rights: what stays, in words.
    """
    if os.geteuid() != ROOT:
        if user is not None and user != _own_name():
            raise PrivilegeError(f"--user {user}: only root can become another user: run as root, or leave --user out")
        return None, Notice(logging.DEBUG, f"runs as user {_own_name()}")
    if user == "root":
        text = "--user root: what runs in this process, policies included, can change root's files"
        return None, Notice(logging.WARNING, text)
    account = find_account(user)
    reason = "there is no user flowlb or nobody" if account is None else why_not(account)
    if account is not None and reason is None:
        return account, Notice(logging.INFO, f"runs as user {account.name}, with {rights}")
    if user is not None:
        raise PrivilegeError(f"--user {user}: {reason}; --user root stays root, with {rights}")
    if UID_MAP.read_text().split() != WHOLE_MAP:
        # Its root is an ordinary user outside.
        return None, Notice(logging.INFO, f"stays root of this user namespace, with {rights}: {reason}")
    text = f"stays root, with {rights}, and can still change root's files: {reason}"
    return None, Notice(logging.WARNING, text)


def find_account(user: str | None) -> Account | None:
    """
    Return a user by name, or the first default one that exists; None when none of those does.

    Raises:
        PrivilegeError: the named one does not exist.
    """
    for name in DEFAULT_USERS if user is None else (user,):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != ROOT:
            return Account(name, entry.pw_uid, entry.pw_gid)
    if user is not None:
        raise PrivilegeError(f"--user {user}: there is no such user: `useradd --system {user}`")
    return None


def why_not(account: Account) -> str | None:
    """Return why this process could not run as a user, found out by a child that tries; None when it could."""
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(near)
            os.write(far, _try(account).encode())
        finally:
            os._exit(0)
    os.close(far)
    with os.fdopen(near, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text or None


def _try(account: Account) -> str:
    """Become a user and look around; return what is wrong."""
    try:
        _become(account)
    except OSError as error:
        return f"this process cannot become {account.name} ({(error.strerror or str(error)).lower()})"
    for path in _needed_files():
        if not os.access(path, os.R_OK):
            return f"{account.name} cannot read {path}: install lb, and its Python, where every user may read them"
    return ""


def _needed_files() -> Iterator[Path]:
    for name in NEEDED_MODULES:
        with contextlib.suppress(ImportError, ValueError):
            module = sys.modules.get(name)
            spec = None if module is not None else importlib.util.find_spec(name)
            origin = getattr(module, "__file__", None) or (spec and spec.origin)
            if origin:
                yield Path(origin)


def _become(account: Account) -> None:
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


def request_death_signal(number: int) -> None:
    """Ask the kernel to send this process a signal when its parent is gone, also after `drop_privileges`; prctl(2)."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0))


def limit_capabilities(kept: frozenset[int]) -> None:
    """
    Give up every capability but the kept ones, in every set, and the way to get others; hand the kept ones on to
    programs that this process starts.

    Raises:
        OSError: the kernel refuses, which it has no reason to.
    """
    _drop_bounding(kept)
    header, sets = _Header(VERSION_3, 0), (_Sets * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(sets)))
    for half, part in enumerate(sets):
        mask = sum(1 << number - 32 * half for number in kept if number // 32 == half)
        part.permitted &= mask
        # Becoming another user empties this one.
        part.effective = part.permitted
        part.inheritable = part.permitted
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)))
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in kept:
        if sets[number // 32].permitted >> number % 32 & 1:
            # Refused where securebits say so: then only root's children have it.
            _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _drop_bounding(kept: frozenset[int]) -> None:
    """Take capabilities out of the bounding set, from which root's programs get theirs, where that is allowed."""
    header, sets = _Header(VERSION_3, 0), (_Sets * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(sets)))
    if sets[0].effective & 1 << CAP_SETPCAP:
        for number in range(int(LAST_CAP.read_text()) + 1):
            if number not in kept:
                _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0))


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
