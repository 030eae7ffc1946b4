"""
The packet loop: a thread that reads frames from the sockets, processes them and sends the results.

First and last step of the walk (`rx -> ... -> tx`), and the only module of this backend that reads a clock or a socket.
Calls of the control thread run between two batches: both hold the same lock. `lb.net.sockets` opens and tunes the
sockets, `lb.net.frames` reads and writes them.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lb.backends.callbacks import CallbackChannel, start_answering
from lb.backends.python.next_hop import Output
from lb.backends.python.pauses import Histogram
from lb.backends.python.pipeline import process, tick
from lb.backends.python.tables import Tables
from lb.errors import LbError
from lb.net.frames import OFFLOAD_HEADER, IoCounters, receive, try_send
from lb.packet.parse import Packet

BATCH = 64
TICK_NS = 100_000_000
MILLISECOND_NS = 1_000_000
# Limits of the backlog of a full socket, per interface; frames beyond are dropped.
BACKLOG_FRAMES = 1024
BACKLOG_BYTES = 1 << 20
# Frames sent from the backlog between two polls.
BACKLOG_BATCH = 32
# How often a full socket is tried: the kernel reports room only when the socket is half empty.
FULL_POLL_MS = 1


class CallLock:
    """
    A lock for calls into the data path.

    A policy's `ask` function runs within a call. One that calls the data path would wait for itself for ever, so such
    a call raises LbError.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None
        # Nanoseconds that the packet loop has waited for the lock in this round.
        self.waited_ns = 0

    def enter_timed(self) -> None:
        """Acquire the lock for the packet loop, and add the time that took to `waited_ns`."""
        if self.lock.acquire(blocking=False):
            self.owner = threading.get_ident()
            return
        began_ns = time.monotonic_ns()
        self.__enter__()
        self.waited_ns += time.monotonic_ns() - began_ns

    def __enter__(self) -> None:
        if self.owner == threading.get_ident():
            raise LbError("the data path is in use: it was called from within an `ask` policy")
        self.lock.acquire()
        self.owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.owner = None
        self.lock.release()


class Backlog:
    """
    Frames that wait for a full socket, in order (rule 22.2, full interfaces).

    Args:
        sock: the socket.
        counters: gets the frames for which there is no room.
    """

    def __init__(self, sock: socket.socket, counters: IoCounters) -> None:
        self.sock = sock
        self.counters = counters
        self.frames: deque[Output] = deque()
        self.len_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.frames)

    def send(self, output: Output) -> None:
        """Send a frame, or queue it behind those that wait; beyond the limits it is dropped and counted."""
        if not self.frames and try_send(self.sock, output.frame, output.offload, self.counters):
            return
        len_bytes = self.len_bytes + OFFLOAD_HEADER.size + len(output.frame)
        if len(self.frames) >= BACKLOG_FRAMES or len_bytes > BACKLOG_BYTES:
            self.counters.tx_dropped += 1
            return
        self.frames.append(output)
        self.len_bytes = len_bytes

    def drain(self) -> None:
        """Send queued frames, as far as the socket has room, `BACKLOG_BATCH` at most."""
        for _ in range(min(BACKLOG_BATCH, len(self.frames))):
            output = self.frames[0]
            if not try_send(self.sock, output.frame, output.offload, self.counters):
                return
            self.frames.popleft()
            self.len_bytes -= OFFLOAD_HEADER.size + len(output.frame)


def duplicate(descriptor: int) -> socket.socket:
    """Return a socket over a copy of the caller's descriptor. Raise OSError when it is not a socket."""
    os.fstat(descriptor)
    theirs = socket.socket(fileno=descriptor)
    try:
        return theirs.dup()
    finally:
        theirs.detach()


class PacketLoop:
    """
    Moves packets while it runs.

    Args:
        tables: of the data path.
        lock: held for each batch, and by the control thread for each of its calls.
    """

    def __init__(self, tables: Tables, lock: CallLock) -> None:
        self.tables = tables
        self.lock = lock
        self.io = IoCounters()
        # Time between two polls of the sockets; and the part of it spent waiting for calls of other threads.
        self.pauses = Histogram()
        self.control = Histogram()
        self.sockets: list[socket.socket] = []
        self.backlogs: list[Backlog] = []
        self.notify_fd = -1
        self.wake_fd = -1
        self.thread: threading.Thread | None = None
        self.stopping = False
        self.failure: Exception | None = None
        self.hops_asked = 0
        self.callbacks = CallbackChannel(lambda: None)

    def start(self, sockets: Sequence[int], notify_fd: int) -> None:
        """
        Start the thread.

        Args:
            sockets: one packet socket per interface id; duplicated, so that the caller may close its own at any time
            after `stop`.
            notify_fd: an eventfd for news.

        Raises:
            LbError: it runs already.
            OSError: a descriptor is not open, or one of `sockets` is no socket.
        """
        if self.thread is not None:
            raise LbError("the packet loop runs already: stop it first")
        os.fstat(notify_fd)
        with ExitStack() as opened:
            self.sockets = [opened.enter_context(duplicate(descriptor)) for descriptor in sockets]
            opened.pop_all()
        for each in self.sockets:
            each.setblocking(False)
        self.backlogs = [Backlog(each, self.io) for each in self.sockets]
        self.notify_fd = notify_fd
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.stopping = False
        self.failure = None
        self.callbacks = CallbackChannel(self.wake)
        start_answering(self.callbacks)
        self.tables.picker.callbacks = self.callbacks
        self.thread = threading.Thread(target=self.run, name="lb-packets", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """
        Stop the thread and wait for its end. Does nothing when there is none.

        Raises:
            LbError: the loop had failed.
        """
        if self.thread is None:
            return
        self.stopping = True
        os.eventfd_write(self.wake_fd, 1)
        self.thread.join()
        self.thread = None
        self.tables.picker.callbacks = None
        # Before the eventfd is closed: a late answer must not write to it.
        self.callbacks.close()
        os.close(self.wake_fd)
        for each in self.sockets:
            each.close()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise LbError when the loop has failed."""
        if self.failure is not None:
            raise LbError(f"the packet loop failed: {self.failure!r}") from self.failure

    def run(self) -> None:
        """Move packets until stopped. A failure is kept for `stop`, and signalled at once."""
        try:
            self.serve()
        except Exception as failure:  # packets never raise; a broken socket or an internal error does
            self.failure = failure
            os.eventfd_write(self.notify_fd, 1)

    def serve(self) -> None:
        """Wait for frames, move them, and tick."""
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        by_descriptor = {each.fileno(): number for number, each in enumerate(self.sockets)}
        for descriptor in by_descriptor:
            poller.register(descriptor, select.POLLIN)
        tick_at = time.monotonic_ns()
        while not self.stopping:
            ready = poller.poll(self.wait_ms(tick_at))
            looked_ns = time.monotonic_ns()
            for descriptor, _ in ready:
                if descriptor in by_descriptor:
                    self.move_batch(by_descriptor[descriptor])
                elif not self.stopping:
                    os.eventfd_read(self.wake_fd)
            for backlog in self.backlogs:
                backlog.drain()
            if self.hear_answers() or time.monotonic_ns() >= tick_at:
                self.tick()
                # While more flows are due than a tick removes, the next tick follows the next poll.
                tick_at = time.monotonic_ns() + (0 if self.tables.is_behind else TICK_NS)
            self.tell_news()
            self.note_pause(time.monotonic_ns() - looked_ns)
        # Resets that were made since the last one leave, too.
        self.tick()

    def wait_ms(self, tick_at: int) -> int:
        """Return how long to wait for frames at most."""
        dues = [each.due_ns for each in self.tables.picker.held.packets]
        wait_ms = max(0, min([tick_at, *dues]) - time.monotonic_ns()) // MILLISECOND_NS
        return min(wait_ms, FULL_POLL_MS) if any(self.backlogs) else wait_ms

    def wake(self) -> None:
        """Wake the loop from its poll."""
        os.eventfd_write(self.wake_fd, 1)

    def hear_answers(self) -> bool:
        """Take the policy's answers. Tell whether a held packet may continue: answered, or past its deadline."""
        held = self.tables.picker.held
        if not held.packets:
            self.callbacks.take_answers()
            return False
        with self.alone():
            for ticket, answer in self.callbacks.take_answers():
                held.answer(ticket, answer)
        return held.is_due(time.monotonic_ns())

    def note_pause(self, ns: int) -> None:
        """Record how long a round took, and how much of it was spent waiting for other threads' calls."""
        self.pauses.record(ns)
        if self.lock.waited_ns:
            self.control.record(self.lock.waited_ns)
            self.lock.waited_ns = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the data path's lock for a batch."""
        self.lock.enter_timed()
        try:
            yield
        finally:
            self.lock.__exit__()

    def move_batch(self, interface: int) -> None:
        """Process the frames of one socket, `BATCH` at most so that no interface starves another."""
        with self.alone():
            for _ in range(BATCH):
                received = receive(self.sockets[interface], self.io)
                if received is None:
                    return
                frame, offload = received
                process(self.tables, Packet(frame, interface, offload), time.monotonic_ns())
                self.send_all(self.tables.out)

    def tick(self) -> None:
        """Expire and release what is due."""
        with self.alone():
            tick(self.tables, time.monotonic_ns())
            self.send_all(self.tables.out)

    def send_all(self, outputs: list[Output]) -> None:
        """Send frames through their interfaces without waiting; failures are counted in `io`."""
        for output in outputs:
            if output.interface < len(self.backlogs):
                self.backlogs[output.interface].send(output)
            else:
                self.io.tx_errors += 1

    def tell_news(self) -> None:
        """Wake the control thread when there are new neighbours to resolve."""
        if self.tables.waiting.asked != self.hops_asked:
            self.hops_asked = self.tables.waiting.asked
            os.eventfd_write(self.notify_fd, 1)
