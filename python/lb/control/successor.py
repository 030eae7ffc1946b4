"""
The running balancer's side of a take-over: it lets one successor in, leaves it everything, and ends.

The messages are in `lb.control.handover`. Belongs to the asyncio loop of the daemon. Until the successor forwards,
nothing is final: when it goes away this balancer goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Protocol

from lb.control.handover import FORMAT, receive, send

# How long a successor may take to say hello, and to prepare itself.
HELLO_S, PREPARE_S = 5.0, 60.0

log = logging.getLogger(__name__)


class Replaced(Protocol):
    """What is left to a successor: `lb.control.daemon.Daemon`."""

    def open_descriptors(self) -> dict[str, int]:
        """Return what the successor goes on with, by what it is."""

    async def leave(self) -> dict[str, Any]:
        """Stop forwarding; return what goes on beside the flows, for the message. Raise LbError when it cannot."""

    async def resume(self) -> None:
        """Go on forwarding: the successor has failed."""

    def end_replaced(self) -> None:
        """End: the successor forwards."""


class Successors:
    """
    Waits for successors on a listening socket.

    Args:
        listener: bound; stays its owner's.
        balancer: what is left to them.
    """

    def __init__(self, listener: socket.socket, balancer: Replaced) -> None:
        self._listener = listener
        self._balancer = balancer
        self._is_closed = False
        # Whether the one that is taking over may forward, or is about to.
        self._is_leaving = False
        # Whether none is taking over now.
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._conversations: set[asyncio.Task[None]] = set()
        # To the successor that forwards: it waits for this process's end, which closes it.
        self._last: socket.socket | None = None

    async def wait(self) -> None:
        """Let successors in, one at a time, until cancelled."""
        self._listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._talk(sock))
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)

    async def close(self, *, has_failed: bool = False) -> None:
        """
        Let no successor in any more, and wait until it is clear whether the one that is there takes over. `has_failed`:
        there is nothing to take over, and one that only prepares itself is not waited for.
        """
        self._is_closed = True
        if has_failed and not self._is_leaving:
            self.stop()
        await self._is_idle.wait()

    def stop(self) -> None:
        """End conversations, but the one with a successor that forwards."""
        for task in self._conversations:
            task.cancel()

    async def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(HELLO_S)
        try:
            hello = await _message(sock)
            if hello is None:
                return
            if (why := self._refusal(hello)) is not None:
                await _answer(sock, {"refused": why})
                return
            with self._being_busy():
                await self._replace(sock)
        finally:
            if sock is not self._last:
                # A thread may wait for it still.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _refusal(self, hello: dict[str, Any]) -> str | None:
        """Return why a successor is not let in; None: it is."""
        if self._is_closed:
            return "the running balancer is stopping: try again"
        if not self._is_idle.is_set():
            return "another process is taking over already"
        if hello.get("hello") != FORMAT:
            versions = f"it speaks format {FORMAT}, and the successor {hello.get('hello')}"
            return f"the running balancer cannot be taken over from: {versions}; restart it"
        return None

    @contextlib.contextmanager
    def _being_busy(self) -> Iterator[None]:
        self._is_idle.clear()
        try:
            yield
        finally:
            self._is_idle.set()

    async def _replace(self, sock: socket.socket) -> None:
        sock.settimeout(PREPARE_S)
        has = self._balancer.open_descriptors()
        log.info("another process is taking over")
        await _answer(sock, {"pid": os.getpid(), "open": list(has)}, list(has.values()))
        if await _message(sock) is None:
            log.warning("the process that was taking over has gone: this one goes on")
            return
        self._is_leaving = True
        try:
            await self._leave(sock)
        finally:
            self._is_leaving = False

    async def _leave(self, sock: socket.socket) -> None:
        # Without an end: as long as the successor is there, it may forward.
        sock.settimeout(None)
        try:
            yours = await self._balancer.leave()
        except Exception as error:
            await _answer(sock, {"refused": f"the running balancer cannot stop: {error}"})
            raise
        if await _answer(sock, yours) and await _message(sock) is not None:
            self._last = sock
            self._balancer.end_replaced()
            return
        log.warning("the process that was taking over has failed: this one goes on")
        await self._balancer.resume()


async def _message(sock: socket.socket) -> dict[str, Any] | None:
    """Return the next message; None when the other side is gone."""
    try:
        message, descriptors = await asyncio.to_thread(receive, sock)
    except OSError:
        return None
    for descriptor in descriptors:
        os.close(descriptor)
    return message


async def _answer(sock: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None) -> bool:
    """Send a message; tell whether the other side is there."""
    try:
        await asyncio.to_thread(send, sock, message, descriptors or ())
    except OSError:
        return False
    return True
