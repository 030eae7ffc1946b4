"""
The selector `ask` while a loop runs: a user's function has a deadline, and whatever it does, packets flow.

Both backends, on pairs of UNIX sockets in place of packet sockets: a message is a header and a frame.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers import SERVERS, WEB, from_client, make_datapath, make_snapshot, query
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from lb.backends.asking import Questions, serve
from lb.net.frames import OFFLOAD_HEADER
from lb.snapshot import Plan, Snapshot

WAIT_S = 10
# Long enough for any machine, short enough for a test.
SHORT_NS, LONG_NS = 50_000_000, 10 * 10**9
FALLBACK = SERVERS[2]


def asking(function: Callable[..., Any], deadline_ns: int) -> Snapshot:
    """Return the small world, where every service asks, and falls back to its third server."""
    made = make_snapshot("ask", fallback=Plan("counter", (2,)), ask=function)
    services = [
        service and replace(service, plan=replace(service.plan, deadline_ns=deadline_ns)) for service in made.services
    ]
    return replace(made, services=tuple(services))


class Wire:
    """A running data path, and the far ends of its interfaces."""

    def __init__(self, backend: str, snapshot: Snapshot) -> None:
        self.path = make_datapath(backend, snapshot)
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.news = os.eventfd(0)
        self.pairs[0][1].settimeout(WAIT_S)
        self.path.start([near.fileno() for near, _ in self.pairs], self.news)

    def exchange(self, port: int) -> str:
        """Send a client's datagram; return the address of the server it went to."""
        self.pairs[0][1].send(OFFLOAD_HEADER.pack(*bytes(6)) + bytes(from_client(query(port=port))))
        return str(Ether(self.pairs[0][1].recv(2000)[OFFLOAD_HEADER.size :])[IP].dst)

    def fallbacks(self) -> int:
        return int(self.path.counters()["events"]["ask_fallback"])

    def close(self) -> None:
        self.path.stop()
        for pair in self.pairs:
            for end in pair:
                end.close()
        os.close(self.news)


@pytest.fixture
def wire(backend: str) -> Iterator[Callable[..., Wire]]:
    """Start data paths, and stop them afterwards."""
    made = []

    def start(function: Callable[..., Any], deadline_ns: int = LONG_NS) -> Wire:
        made.append(Wire(backend, asking(function, deadline_ns)))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_ask_answer_in_time_decides(wire: Any) -> None:
    """The function gets names and text, on a thread that is not the packets', and its answer counts."""
    seen: list[object] = []

    def ask(service: str, client: str, port: int, names: Sequence[str]) -> str:
        seen.append((service, client, port, list(names), threading.current_thread().name))
        return "server2"

    running = wire(ask)
    assert SERVERS[1] == running.exchange(4000)
    assert seen == [("dns", "198.18.1.21", 4000, ["server1", "server2", "server3"], "lb-ask")]
    assert running.fallbacks() == 0


def test_ask_that_hangs_packets_flow_and_it_is_not_asked_again(wire: Any) -> None:
    """A hang costs one deadline: later flows fall back at once, known ones go on, until it has answered."""
    asked, release, back = [], threading.Event(), threading.Event()

    def ask(service: str, client: str, port: int, names: Sequence[str]) -> str:
        asked.append(port)
        if port == 4000:
            release.wait()
            back.set()
        return "server2"

    running = wire(ask, SHORT_NS)
    assert running.exchange(4000) == FALLBACK
    for port in (4001, 4002, 4000, 4001):
        assert running.exchange(port) == FALLBACK
    assert (asked, running.fallbacks()) == ([4000], 3)
    release.set()
    assert back.wait(WAIT_S)
    ports = iter(range(5000, 6000))
    # The thread that answers needs a moment to say that it is back.
    assert any(running.exchange(next(ports)) == SERVERS[1] for _ in range(500))


@pytest.mark.parametrize("failure", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_ask_that_raises_falls_back_and_is_asked_again(wire: Any, failure: BaseException) -> None:
    """Whatever is raised, the packet gets its verdict and the next flow asks again."""

    def ask(service: str, client: str, port: int, names: Sequence[str]) -> str:
        if port == 4000:
            raise failure
        return "server2"

    running = wire(ask)
    assert [FALLBACK, SERVERS[1]] == [running.exchange(4000), running.exchange(4001)]
    assert running.fallbacks() == 1


@pytest.mark.parametrize("answer", [None, 3, "nobody", b"server2", ["server2"]], ids=repr)
def test_ask_that_answers_nonsense_falls_back(wire: Any, answer: object) -> None:
    """What is no server's name is no answer."""
    running = wire(lambda *_: answer)
    assert running.exchange(4000) == FALLBACK
    assert running.fallbacks() == 1


def test_ask_that_calls_its_data_path_gets_through_after_the_deadline(wire: Any) -> None:
    """The packet loop waits for the answer, which waits for the loop: the deadline ends that."""
    results: list[object] = []
    done = threading.Event()

    def ask(*_: object) -> str:
        results.append(running.path.counters()["rx_packets"])
        done.set()
        return "server2"

    running = wire(ask, SHORT_NS)
    assert running.exchange(4000) == FALLBACK
    assert done.wait(WAIT_S)
    assert results == [1]


def test_ask_after_stop_is_called_directly(wire: Any) -> None:
    """Offline there is no clock: the function is waited for, on the caller's thread."""
    threads: list[str] = []

    def ask(*_: object) -> str:
        threads.append(threading.current_thread().name)
        return "server2"

    running = wire(ask, 1)
    running.path.stop()
    result = running.path.process(bytes(from_client(query())), 0, 1)
    assert (result.server, threads) == ("server2", [threading.current_thread().name])


def test_questions_closed_let_the_thread_end() -> None:
    """A loop that stops leaves no thread behind."""
    questions = Questions()
    thread = threading.Thread(target=serve, args=(questions,))
    thread.start()
    questions.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert questions.ask((lambda *_: "a", "web", "198.18.1.21", 1, ["a"]), LONG_NS) is None


def test_questions_nobody_answers_is_taken_back() -> None:
    """A question that nobody has begun with leaves room for the next."""
    questions = Questions()
    question = (lambda *_: "a", "web", "198.18.1.21", WEB, ["a"])
    assert [questions.ask(question, 1), questions.ask(question, 1)] == [None, None]
    thread = threading.Thread(target=serve, args=(questions,))
    thread.start()
    assert questions.ask(question, LONG_NS) == "a"
    questions.close()
    thread.join(WAIT_S)
