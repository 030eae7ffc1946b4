"""
Giving up what root has once the sockets are open (behaviour 34).

`CAP_NET_ADMIN` stays: asking the kernel for neighbours needs it, and so do the packet filter rules of a host that
forwards, up to their removal at the end. Everything else goes, for the process and for what it starts, and cannot come
back (`no_new_privs`). The user stays the same: root without capabilities is a user who owns root's files.

Capabilities belong to a thread and are inherited by those it starts: call this before any are. capabilities(7),
prctl(2).
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

CAP_SETPCAP = 8
CAP_NET_ADMIN = 12
KEPT = frozenset({CAP_NET_ADMIN})

# linux/capability.h, linux/prctl.h
VERSION_3 = 0x20080522
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Half of the sets: capabilities 0 to 31, or those from 32 on."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_privileges(kept: frozenset[int] = KEPT) -> None:
    """
    Give up every capability but the kept ones, in every set, and the way to get others.

    Raises:
        OSError: the kernel refuses, which it has no reason to.
    """
    header, sets = _Header(VERSION_3, 0), (_Sets * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(sets)))
    # The bounding set is what root gets back by starting a program.
    if sets[0].effective & 1 << CAP_SETPCAP:
        for number in range(int(LAST_CAP.read_text()) + 1):
            if number not in kept:
                _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0))
    for half, part in enumerate(sets):
        mask = sum(1 << number - 32 * half for number in kept if number // 32 == half)
        part.permitted &= mask
        part.effective &= mask
        # What is not inheritable is not ambient either.
        part.inheritable &= mask
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    log.debug("capabilities given up: kept %s", sorted(kept))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
