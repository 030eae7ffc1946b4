"""
Namespaces of this process and of its children: create, enter, name, remove.

Python 3.11 has neither `setns` nor `unshare`, so they are called through libc. Network namespaces get names as
iproute2 gives them, under /run/netns, so that `ip netns exec` finds them too. Without root the caller first moves into
a separate user namespace, with a private mount of /run. Nothing here knows what a testbed is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lb.errors import PrivilegeError

NETNS_DIR = Path("/run/netns")

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 2, 4, 4096, 16384, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21

# The user namespace first: it gives the right to join the other.
_JOINED = (("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS))

_own_user_namespace = False
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (CLONE_NEW... flags). Raise OSError when refused."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """
    Move the calling thread into the namespace behind a descriptor; `kind`: its CLONE_NEW... flag. Raise OSError when
    refused.
    """
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, filesystem: str | None, flags: int, data: str | None = None) -> None:
    """Attach a filesystem; the arguments are those of the system call. Raise OSError when refused."""
    encoded = [None if text is None else text.encode() for text in (source, target, filesystem, data)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def unmount(target: Path) -> None:
    """Detach a mount. Raise OSError when there is none."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def die_with_parent(signal_number: int, parent: int) -> None:
    """
    Ask the kernel to signal this process when its parent dies.

    To be called in the child, after its last change of user: a change forgets the request.

    Args:
        signal_number: the signal to get.
        parent: pid of the parent; when it is gone already, this process exits at once.
    """
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def in_own_user_namespace() -> bool:
    """Tell whether this process has moved into a user namespace by `enter_user_namespace`: its root is root there."""
    return _own_user_namespace


def has_capabilities() -> bool:
    """Tell whether this process may make network namespaces and mounts as it is."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    effective = int(fields["CapEff"], 16)
    return bool(effective >> CAP_NET_ADMIN & 1 and effective >> CAP_SYS_ADMIN & 1)


def enter_user_namespace(keep: Path) -> None:
    """
    Move this process, which must have one thread, into a user, network and mount namespace in which it is root.

    Args:
        keep: a directory that stays visible although /run becomes a private tmpfs.

    Raises:
        PrivilegeError: the kernel or its configuration does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET)
        map_user(0, user, 0, group)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        _hide_run(keep)
    except OSError as error:
        raise PrivilegeError(_user_namespace_hint(error)) from error
    global _own_user_namespace
    _own_user_namespace = True


def _hide_run(keep: Path) -> None:
    """Put a private tmpfs over /run; `keep` stays visible through it."""
    # Opened in the new mount namespace: a mount of the old one could not be bound here.
    descriptor = os.open(keep, os.O_PATH | os.O_DIRECTORY)
    try:
        mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        if keep.is_relative_to("/run"):
            keep.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", str(keep), None, MS_BIND)
    finally:
        os.close(descriptor)


def _user_namespace_hint(error: OSError) -> str:
    knobs = {
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    fix = "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
    for path, (bad, command) in knobs.items():
        with suppress(OSError):
            if Path(path).read_text().strip() == bad:
                fix = f"run as root, or allow them: {command}"
    return f"the testbed needs root or unprivileged user namespaces, and has neither ({error.strerror}); fix: {fix}"


def join_namespaces_of(pid: int) -> None:
    """
    Move this process, which must have one thread, into the user and mount namespace of another process of the same
    user.

    Raises:
        OSError: it is gone, or belongs to another user.
    """
    here = Path.cwd()
    descriptors = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), kind) for name, kind in _JOINED]
    for descriptor, kind in descriptors:
        setns(descriptor, kind)
        os.close(descriptor)
    # Joining a mount namespace moves to its root.
    with suppress(OSError):
        os.chdir(here)


def map_user(inner_user: int, outer_user: int, inner_group: int, outer_group: int) -> None:
    """Map one user and one group into the user namespace this process has just made. Raise OSError when refused."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inner_user} {outer_user} 1")
    Path("/proc/self/gid_map").write_text(f"{inner_group} {outer_group} 1")


def drop_root_in_user_namespace(user: int) -> None:
    """Become `user` in a nested user namespace, for programs that refuse to be root. Raise OSError when refused."""
    outer_user, outer_group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    map_user(user, outer_user, user, outer_group)


def prepare_names() -> bool:
    """
    Make /run/netns as iproute2 does: a separate shared mount, or names made by one would be busy for the other.

    Returns:
        Whether the mount was made now.
    """
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    try:
        mount("none", str(NETNS_DIR), None, MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(str(NETNS_DIR), str(NETNS_DIR), None, MS_BIND | MS_REC)
        mount("none", str(NETNS_DIR), None, MS_SHARED | MS_REC)
        return True
    return False


def remove_names() -> None:
    """Undo `prepare_names`, when no name is left."""
    with suppress(OSError):
        if not any(NETNS_DIR.iterdir()):
            unmount(NETNS_DIR)
            NETNS_DIR.rmdir()


def create_namespace(name: str) -> int:
    """
    Make a network namespace with a name and stay in the present one.

    Returns:
        The inode number of the namespace, which identifies it.

    Raises:
        FileExistsError: the name is taken.
    """
    path = NETNS_DIR / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    with _restored_namespace():
        unshare(CLONE_NEWNET)
        mount("/proc/self/ns/net", str(path), None, MS_BIND)
    return path.stat().st_ino


def remove_namespace(name: str) -> None:
    """Remove a name; the namespace ends with its last process. Does nothing when there is no such name."""
    path = NETNS_DIR / name
    with suppress(OSError):
        unmount(path)
    path.unlink(missing_ok=True)


def enter_namespace(name: str) -> None:
    """Move the calling thread into the network namespace of this name. Raise OSError when there is none."""
    descriptor = os.open(NETNS_DIR / name, os.O_RDONLY)
    try:
        setns(descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


def dress_as(host: str) -> None:
    """
    Give this process a host name and a /sys that lists its own network namespace's devices, where the kernel allows
    it.
    """
    with suppress(OSError):
        unshare(CLONE_NEWNS | CLONE_NEWUTS)
        socket.sethostname(host)
        mount("none", "/", None, MS_REC | MS_SLAVE)
        mount("sysfs", "/sys", "sysfs", 0)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Work in the named network namespace within the block: sockets opened there stay there. One thread only."""
    with _restored_namespace():
        enter_namespace(name)
        yield


@contextmanager
def _restored_namespace() -> Iterator[None]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)
