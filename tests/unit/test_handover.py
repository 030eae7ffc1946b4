"""Messages between a running balancer and its successor, and what each makes of the other's silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lb.control import successor
from lb.control.daemon import Daemon
from lb.control.handover import AT_ONCE, FORMAT, HEADER, MOST_BYTES, receive, send
from lb.control.predecessor import Predecessor
from lb.control.successor import Successors
from lb.errors import LbError


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two ends of a connection."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near.settimeout(5)
    far.settimeout(5)
    with near, far:
        yield near, far


def in_thread(call: Callable[[], object]) -> threading.Thread:
    """Return a thread that has begun with a call."""
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_message_arrives_whole_with_its_descriptors_in_order(count: int) -> None:
    message = {"text": "x" * 3_000_000, "number": 2**80}
    with pair() as (near, far), contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        thread = in_thread(lambda: send(near, message, [file.fileno() for file in files]))
        found, descriptors = receive(far)
        thread.join()
        assert found == message
        inodes = [os.fstat(each).st_ino for each in descriptors]
        assert not any(map(os.get_inheritable, descriptors))
        for each in descriptors:
            os.close(each)
        assert inodes == [os.fstat(file.fileno()).st_ino for file in files]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        HEADER.pack(10, 0) + b"short",
        HEADER.pack(MOST_BYTES + 1, 0),
        HEADER.pack(2, 1 << 30),
        HEADER.pack(2, 1) + b"+{}",
        HEADER.pack(2, 0) + b"[]",
        HEADER.pack(2, 0) + b"{x",
        HEADER.pack(1, 0) + b"\xff",
    ],
)
def test_anything_else_is_no_message(data: bytes) -> None:
    """It ends with an OSError, whatever is said, and never waits for what was not announced."""
    with pair() as (near, far):
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError):
            receive(far)


class Balancer:
    """A running balancer that notes what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.successors: Successors
        self.loop: asyncio.AbstractEventLoop
        self.error = error
        self.file = os.memfd_create("test")

    def open_descriptors(self) -> dict[str, int]:
        """Return one."""
        return {"file": self.file}

    async def leave(self) -> dict[str, Any]:
        """Stop, or not."""
        self.calls.append("leave")
        if self.error is not None:
            raise self.error
        return {"carried": {"totals": {}}, "rings": {"eth0": 7}}

    async def resume(self) -> None:
        """Go on."""
        self.calls.append("resume")

    def end_replaced(self) -> None:
        """End."""
        self.calls.append("end")


@contextlib.contextmanager
def waiting(balancer: Balancer) -> Iterator[Path]:
    """Let successors in, on an asyncio loop of its own; give the path of the socket."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path = Path(folder) / "successors"
        listener.bind(str(path))
        listener.listen(1)
        loop = asyncio.new_event_loop()
        balancer.loop = loop
        balancer.successors = successors = Successors(listener, balancer)
        end = asyncio.Event()

        async def stopped() -> None:
            task = loop.create_task(successors.wait())
            await end.wait()
            task.cancel()
            successors.stop()
            await asyncio.gather(task, *successors._conversations, return_exceptions=True)
            await loop.shutdown_default_executor()

        thread = in_thread(lambda: loop.run_until_complete(stopped()))
        try:
            yield path
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()
            loop.close()
            if successors._last is not None:
                # The end of a process closes it.
                successors._last.close()
            os.close(balancer.file)


def found(path: Path) -> Predecessor:
    """Return the balancer that waits there."""
    predecessor = Predecessor.find(path)
    assert predecessor is not None
    return predecessor


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own time limit ends it."""
    while not condition():
        threading.Event().wait(0.005)


def test_successor_gets_what_is_open_and_what_is_left() -> None:
    balancer = Balancer()
    with waiting(balancer) as path:
        predecessor = found(path)
        assert predecessor.pid == os.getpid()
        descriptor = predecessor.take("file")
        assert descriptor is not None
        assert os.fstat(descriptor).st_ino == os.fstat(balancer.file).st_ino
        os.close(descriptor)
        assert predecessor.take("file") is None
        assert predecessor.stop() == ({"totals": {}}, {"eth0": 7})
        predecessor.dismiss()
        until(lambda: balancer.calls == ["leave", "end"])
        predecessor.close()


@pytest.mark.parametrize("has_stopped", [False, True])
def test_successor_that_goes_away_is_noticed(has_stopped: bool) -> None:
    balancer = Balancer()
    with waiting(balancer) as path:
        predecessor = found(path)
        if has_stopped:
            predecessor.stop()
        predecessor.close()
        until(lambda: balancer.calls == (["leave", "resume"] if has_stopped else []))
        # And another one is let in.
        until(lambda: closed_or_let_in(path))
        assert "end" not in balancer.calls


def closed_or_let_in(path: Path) -> bool:
    """Tell whether a successor is let in now."""
    try:
        found(path).close()
    except LbError:
        return False
    return True


def test_second_successor_is_refused() -> None:
    with waiting(Balancer()) as path:
        first = found(path)
        with pytest.raises(LbError, match="take-over: another process is taking over already"):
            Predecessor.find(path)
        first.close()


@pytest.mark.parametrize("forwards", [True, False], ids=["successor-forwards", "successor-goes-away"])
def test_running_one_that_stops_lets_nobody_in_and_waits_for_the_one_that_is_there(forwards: bool) -> None:
    balancer = Balancer()
    with waiting(balancer) as path:
        first = found(path)
        closing = asyncio.run_coroutine_threadsafe(balancer.successors.close(), balancer.loop)
        until(lambda: balancer.successors._is_closed)
        with pytest.raises(LbError, match="take-over: the running balancer is stopping: try again"):
            Predecessor.find(path)
        first.stop()
        assert not closing.done()
        if forwards:
            first.dismiss()
        else:
            first.close()
        closing.result(5)
        assert balancer.calls == ["leave", "end" if forwards else "resume"]
        first.close()


@pytest.mark.parametrize("has_left", [True, False], ids=["leaves", "cannot"])
def test_daemon_finishes_resets_before_it_leaves(has_left: bool) -> None:
    """Rule 23.2, taking over: after the last change, which may have begun one; what cannot be left goes on."""
    asked: list[str] = []

    def part(**answers: Any) -> Any:
        def asking(name: str, answer: Any) -> Any:
            def ask() -> Any:
                asked.append(name)
                return answer()

            return ask

        return SimpleNamespace(**{name: asking(name, answer) for name, answer in answers.items()})

    async def nothing() -> None: ...

    def leave() -> dict[str, Any]:
        if not has_left:
            raise LbError("the packet loop has failed")
        return {}

    daemon = Daemon.__new__(Daemon)
    daemon._metrics = daemon._listener = part(pause=nothing, serve=nothing)
    daemon._changes = part(hold=nothing, release=lambda: None)
    daemon._runtime = part(finish_resets=nothing, leave=leave, resume=lambda: None)
    with contextlib.nullcontext() if has_left else pytest.raises(LbError):
        asyncio.run(daemon.leave())
    expected = ["pause", "pause", "hold", "finish_resets", "leave"]
    assert asked == expected + ([] if has_left else ["resume", "release", "serve", "serve"])


@pytest.mark.parametrize("is_leaving", [False, True], ids=["successor-prepares", "successor-may-forward"])
def test_running_one_that_has_failed_waits_for_no_preparation(is_leaving: bool) -> None:
    """Nothing is forwarded meanwhile, and there is nothing to take over; but one that may forward is waited for."""
    balancer = Balancer()
    with waiting(balancer) as path:
        first = found(path)
        if is_leaving:
            first.stop()
        close = balancer.successors.close(has_failed=True)
        closing = asyncio.run_coroutine_threadsafe(close, balancer.loop)
        if is_leaving:
            until(lambda: balancer.successors._is_closed)
            assert not closing.done()
            first.dismiss()
        closing.result(5)
        assert balancer.calls == (["leave", "end"] if is_leaving else [])
        first.close()


def test_running_one_that_nobody_takes_over_from_stops_at_once() -> None:
    balancer = Balancer()
    with waiting(balancer):
        asyncio.run_coroutine_threadsafe(balancer.successors.close(), balancer.loop).result(5)


def test_path_of_any_length_is_found() -> None:
    """An address of a UNIX socket has room for 107 bytes."""
    balancer = Balancer()
    with waiting(balancer) as path, tempfile.TemporaryDirectory() as folder:
        far = Path(folder).joinpath(*["x" * 50] * 3)
        far.parent.mkdir(parents=True)
        far.symlink_to(path.parent)
        found(far / path.name).close()


@pytest.mark.parametrize("message", [{}, {"open": ["a"]}, {"refused": None, "open": []}])
def test_running_one_that_says_something_else_is_told(tmp_path: Path, message: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "successors"))
        listener.listen(1)

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                receive(sock)
                send(sock, message)

        thread = in_thread(answer)
        with pytest.raises(LbError, match="take-over: the running balancer sent less than it said"):
            Predecessor.find(tmp_path / "successors")
        thread.join()


def test_running_one_that_cannot_stop_says_why() -> None:
    balancer = Balancer(LbError("the packet loop has failed"))
    with waiting(balancer) as path:
        predecessor = found(path)
        with pytest.raises(LbError, match="take-over: the running balancer cannot stop: the packet loop has failed"):
            predecessor.stop()
        predecessor.close()


def test_successor_of_another_format_is_told() -> None:
    with waiting(Balancer()) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        send(sock, {"hello": FORMAT + 1})
        message, _ = receive(sock)
        assert f"it speaks format {FORMAT}, and the successor {FORMAT + 1}; restart it" in message["refused"]


def test_successor_that_says_nothing_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before it has said hello, nor for long afterwards."""
    monkeypatch.setattr(successor, "PREPARE_S", 0.05)
    with waiting(Balancer()) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        silent = found(path)
        until(lambda: closed_or_let_in(path))
        silent.close()


def test_nobody_there_is_nobody(tmp_path: Path) -> None:
    assert Predecessor.find(tmp_path / "successors") is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "successors"))
        assert Predecessor.find(tmp_path / "successors") is None
