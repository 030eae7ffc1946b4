"""
The running balancer as the one sees it that takes over from it: `lb run --take-over`.

The messages are in `lb.control.handover`. The conversation begins while this process has all its rights, before it has
prepared anything; what it is given then, it uses once the running one has stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lb.control.handover import FORMAT, receive, send
from lb.errors import LbError

# How long the running one may take to answer; it has its hands full for far less.
ANSWER_S = 10.0


class Left(NamedTuple):
    """
    What the running balancer leaves when it has stopped.

    Args:
        carried: as `lb.backends.base.Engine.carried` returns it.
        rings: by interface name, where to go on reading its packet socket.
    """

    carried: Any
    rings: dict[str, int | None]


class Predecessor:
    """
    A running balancer that has let this process in. Close it at the end.

    `pid`: of its process.

    Args:
        sock: connected to it.
        pid: of its process.
        descriptors: what it has open, by what it is.
    """

    def __init__(self, sock: socket.socket, pid: int, descriptors: dict[str, int]) -> None:
        self._socket = sock
        self.pid = pid
        self._descriptors = descriptors

    @classmethod
    def find(cls, path: Path) -> Predecessor | None:
        """
        Return the balancer that listens at a path, None when there is none.

        Raises:
            LbError: it does not let this process in.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_S)
        try:
            _connect(sock, path)
            send(sock, {"hello": FORMAT})
            welcome, descriptors = receive(sock)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError as error:
            sock.close()
            raise LbError(f"take-over: the running balancer does not answer: {error}") from None
        why, names = welcome.get("refused"), welcome.get("open", ())
        if why is not None or "pid" not in welcome or len(names) != len(descriptors):
            sock.close()
            _close(descriptors)
            raise LbError(f"take-over: {why or 'the running balancer sent less than it said'}")
        return cls(sock, welcome["pid"], dict(zip(names, descriptors, strict=True)))

    def take(self, what: str) -> int | None:
        """Return a descriptor of the running one, which the caller closes; None when it has none such."""
        return self._descriptors.pop(what, None)

    def stop(self) -> Left:
        """Have it stop its packet loop; return what it leaves. Raise LbError when it does not."""
        try:
            send(self._socket, {"ready": True})
            yours, _ = receive(self._socket)
        except OSError as error:
            raise LbError(f"take-over: the running balancer does not stop: {error}") from None
        if (why := yours.get("refused")) is not None:
            raise LbError(f"take-over: {why}")
        return Left(yours["carried"], yours["rings"])

    def dismiss(self) -> None:
        """Let it end: this process forwards."""
        # If it has ended already, so much the better.
        with contextlib.suppress(OSError):
            send(self._socket, {"done": True})

    def wait_for_end(self) -> None:
        """Return when its process has ended."""
        self._socket.settimeout(None)
        with contextlib.suppress(OSError):
            self._socket.recv(1)

    def close(self) -> None:
        """End the conversation, and close what was not taken. Before `dismiss`, the running one goes on then."""
        # A thread may wait for its end, and a socket that is closed does not wake it.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        _close(self._descriptors.values())
        self._descriptors.clear()


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect by way of the directory's descriptor: a path of a socket may have 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
