"""
The broker: a small process that stays root when `lb run` becomes an unprivileged user, and does two things for it.

It opens the configuration and the policy files that this configuration names, and nothing else, when they are trusted
(`lb.privileges.trust`), so that a reload works where only root or the caller may look; and it binds the control socket,
and removes it at the end, also after `lb run` was killed. It keeps two capabilities (to look into other users'
directories, and to remove from them), has no open file but its socket to `lb run`, and ends when that is closed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lb.errors import LbError
from lb.privileges import trust
from lb.privileges.drop import limit_capabilities
from lb.privileges.trust import UntrustedFileError

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITIES = frozenset({CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH})
MAX_REQUEST_BYTES = 8192
MAX_CONFIG_BYTES = 1 << 26
POLICY = re.compile(r"(?P<file>.+\.py)(:\w+)?")
# The first byte of an answer: a descriptor comes with it (and the inode of the control socket, if it is that), or the
# text of an error of one of two kinds.
OPENED, FAILED, UNTRUSTED = b"o", b"f", b"u"
# The first byte of a request. A path follows OPEN.
OPEN, BIND, ADOPT, LEAVE = b"o", b"b", b"a", b"l"
ENDED = "the process that opens files for lb run has ended, and only root could start another: restart `lb run`"

log = logging.getLogger(__name__)


class Broker:
    """
    The side of `lb run`. Call `start` while the process is root and has one thread.

    `end_fd`: a descriptor that becomes readable when the broker has ended; None: this kernel has none.

    Args:
        config: of the configuration that may be opened.
        control: where the control socket is to be.
        bind: returns a socket that listens there, or raises LbError; called in the broker.
    """

    def __init__(self, config: Path, control: Path, bind: Callable[[Path], socket.socket]) -> None:
        self._control = control.absolute()
        self._serve = functools.partial(_serve, config=config.absolute(), control=self._control, bind=bind)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0
        self.end_fd: int | None = None
        # Of the control socket, once it is bound.
        self._inode: int | None = None

    def start(self) -> None:
        """Fork the broker, and have trusted files opened by it. Raise OSError when no process can be made."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        trust.trusted_owners()
        self._pid = os.fork()
        if self._pid == 0:
            _be_broker(far, self._serve)
        far.close()
        self._socket = near
        with contextlib.suppress(OSError):
            self.end_fd = os.pidfd_open(self._pid)
        trust.use_opener(self.open)

    def bind(self) -> socket.socket:
        """Return the control socket, bound and listening. Raise LbError as the function that binds it."""
        answer, descriptor = self._ask(BIND)
        if descriptor is None:
            raise LbError(answer[1:].decode(errors="replace") or ENDED)
        self._inode = int(answer[1:])
        return socket.socket(fileno=descriptor)

    def adopt(self) -> None:
        """Remove the control socket at the end, which another process has bound."""
        with contextlib.suppress(OSError):
            self._inode = self._control.stat().st_ino
        self._ask(ADOPT)

    def leave(self) -> None:
        """Leave the control socket at the end: it is another process's now."""
        self._inode = None
        self._ask(LEAVE)

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading. Errors: as `lb.privileges.trust.open_file`."""
        answer, descriptor = self._ask(OPEN + os.fsencode(path.absolute()))
        if descriptor is not None:
            return os.fdopen(descriptor, "rb")
        message = answer[1:].decode(errors="replace") or ENDED
        raise (UntrustedFileError if answer[:1] == UNTRUSTED else OSError)(os.EX_NOPERM, message)

    def _ask(self, request: bytes) -> tuple[bytes, int | None]:
        """Return the answer to a request, and the descriptor that came with it; an empty one: the broker has ended."""
        with self._lock:
            if self._socket is None:
                return b"", None
            try:
                self._socket.send(request)
                answer, descriptors, _, _ = socket.recv_fds(self._socket, MAX_REQUEST_BYTES, 1)
            except ConnectionError:
                return b"", None
        return answer, descriptors[0] if descriptors else None

    def stop(self) -> None:
        """End the broker, and wait until it has removed what it owns; one that was killed has not."""
        trust.use_opener(None)
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        if self.end_fd is not None:
            os.close(self.end_fd)
            self.end_fd = None
        status = -1
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self._pid, 0)
        if status != 0:
            self._remove_socket()

    def _remove_socket(self) -> None:
        """Remove the control socket in the broker's place, or say that it stays."""
        try:
            if self._inode is not None and self._control.stat().st_ino == self._inode:
                self._control.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            log.warning("%s could not be removed: %s; `rm` it, or the next `lb run` does", self._control, reason)


def _be_broker(sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve until the other side is gone; never return."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _keep_only(sock.fileno())
        limit_capabilities(CAPABILITIES)
        serve(sock)
        status = 0
    finally:
        # Not `sys.exit`: nothing of what the parent has registered for its own end may happen here.
        os._exit(status)


def _keep_only(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, number)
    os.closerange(number + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(sock: socket.socket, config: Path, control: Path, bind: Callable[[Path], socket.socket]) -> None:
    owned: int | None = None
    with contextlib.suppress(OSError):
        while request := sock.recv(MAX_REQUEST_BYTES):
            more = b""
            try:
                if request[:1] in (ADOPT, LEAVE):
                    owned = control.stat().st_ino if request[:1] == ADOPT else None
                    sock.send(OPENED)
                    continue
                if request[:1] == BIND:
                    descriptor = bind(control).detach()
                    owned = control.stat().st_ino
                    more = str(owned).encode()
                else:
                    descriptor = open_allowed(config, Path(os.fsdecode(request[1:])))
            except UntrustedFileError as error:
                sock.send(UNTRUSTED + str(error.strerror).encode())
            except (OSError, ValueError, LbError) as error:
                sock.send(FAILED + str(getattr(error, "strerror", None) or error).encode())
            else:
                socket.send_fds(sock, [OPENED + more], [descriptor])
                os.close(descriptor)
    with contextlib.suppress(OSError):
        if owned is not None and control.stat().st_ino == owned:
            control.unlink()


def open_allowed(config: Path, path: Path) -> int:
    """
    Open a file that a configuration lets be opened.

    Args:
        config: of the configuration.
        path: of the file: the configuration itself or a policy's that it names.

    Returns:
        A descriptor for reading.

    Raises:
        UntrustedFileError: others decide what is in it, or the configuration does not name it.
        OSError: it cannot be opened.
    """
    real = os.path.realpath(path)
    if real != os.path.realpath(config) and real not in _policies(config):
        raise UntrustedFileError(os.EX_NOPERM, f"{path} is not named in {config}: correct its name there")
    fault = trust.find_fault(path, trust.trusted_owners() or frozenset({trust.ROOT}))
    if fault is not None:
        raise UntrustedFileError(os.EX_NOPERM, str(fault))
    return os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _policies(config: Path) -> set[str]:
    """Return the real paths of all files that look like policies in a configuration, which must be trusted itself."""
    if config.stat().st_size > MAX_CONFIG_BYTES:
        return set()
    descriptor = open_allowed(config, config)
    with os.fdopen(descriptor, "rb") as file:
        names = [match["file"] for text in _texts(tomllib.load(file)) if (match := POLICY.fullmatch(text))]
    return {os.path.realpath(config.parent / name) for name in names}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
