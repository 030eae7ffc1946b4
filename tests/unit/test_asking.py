"""
The selector `ask` while a loop runs: a user's function has a deadline, and whatever it does, packets flow.

Both backends, on pairs of UNIX sockets in place of packet sockets: a message is a header and a frame.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers import SERVERS, WEB, from_client, make_datapath, make_snapshot, query
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from attaching import attached
from lb.backends.callbacks import CallbackChannel, serve
from lb.model.snapshot import NewFlowLimit, Plan, Snapshot
from lb.net.frames import OFFLOAD_HEADER

WAIT_S = 10
# Long enough for any machine, short enough for a test.
SHORT_NS, LONG_NS = 50_000_000, 10 * 10**9
FALLBACK = SERVERS[2]


def asking(function: Callable[..., Any], deadline_ns: int) -> Snapshot:
    """Return the small topology, where every service asks, and falls back to its third server."""
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
        self.path.attach(attached([near.fileno() for near, _ in self.pairs]), self.news)

    def put(self, datagram: Packet) -> None:
        """Send a client's datagram."""
        self.put_frame(bytes(from_client(datagram)))

    def put_frame(self, frame: bytes) -> None:
        """Send a frame."""
        self.pairs[0][1].send(OFFLOAD_HEADER.pack(*bytes(6)) + frame)

    def get(self) -> bytes:
        """Return the next frame that was sent."""
        return self.pairs[0][1].recv(2000)[OFFLOAD_HEADER.size :]

    def exchange(self, port: int) -> str:
        """Send a client's datagram; return the address of the server it went to."""
        self.put(query(port=port))
        return str(Ether(self.get())[IP].dst)

    def fallbacks(self) -> int:
        return int(self.path.counters()["events"]["ask_fallback"])

    def close(self) -> None:
        self.path.detach()
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


def test_ask_new_flow_limit_takes_one_token_of_a_flow_that_waits(wire: Any) -> None:
    """Rule 8.22, limits of new flows: before it waits for its answer, not again after it; a second flow is dropped."""
    running = wire(lambda *_: "server2")
    limit = NewFlowLimit(1, 1, 24, 56)
    made = asking(lambda *_: "server2", LONG_NS)
    services = tuple(service and replace(service, new_flow_limit=limit) for service in made.services)
    running.path.publish(replace(made, services=services))
    assert running.exchange(4000) == SERVERS[1]
    running.put(query(port=4001))
    # The next packet of the flow that is there comes out: the one before it did not.
    assert running.exchange(4000) == SERVERS[1]
    assert running.path.counters()["verdicts"]["drop.new_flow_limit"] == 1


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


def test_ask_that_calls_its_data_path_is_answered(wire: Any) -> None:
    """The packet loop does not wait for the answer: it has time for what the policy asks it."""
    results: list[object] = []

    def ask(*_: object) -> str:
        results.append(running.path.counters()["rx_packets"])
        return "server2"

    running = wire(ask)
    assert running.exchange(4000) == SERVERS[1]
    assert results == [1]


def test_ask_that_is_slow_holds_up_its_own_flow_only(wire: Any) -> None:
    """
    Rule 22.1, bounded pauses: while a policy thinks, packets of known flows pass; those of its flow wait, and leave in
    order.
    """
    asked, release = threading.Event(), threading.Event()

    def ask(service: str, client: str, port: int, names: Sequence[str]) -> str:
        if port == 5000:
            asked.set()
            release.wait(WAIT_S)
        return "server2"

    running = wire(ask)
    assert running.exchange(4000) == SERVERS[1]
    for data in (b"first", b"second"):
        running.put(query(data, port=5000))
    assert asked.wait(WAIT_S)
    assert running.exchange(4000) == SERVERS[1]
    counters = running.path.counters()
    assert (counters["verdicts"]["forward"], counters["verdicts"]["hold.ask"]) == (2, 3)
    release.set()
    left = [Ether(running.get()) for _ in range(2)]
    assert [(bytes(frame[UDP].payload), frame[IP].dst) for frame in left] == [
        (b"first", SERVERS[1]),
        (b"second", SERVERS[1]),
    ]
    counters = running.path.counters()
    assert (counters["rx_packets"], counters["verdicts"]["forward"], counters["events"]["ask_fallback"]) == (4, 4, 0)


def test_ask_more_waits_than_there_is_room_for_falls_back(wire: Any) -> None:
    """64 packets wait at most; the flow of one more is placed at once, by the fall-back."""
    release = threading.Event()

    def ask(*_: object) -> str:
        release.wait(WAIT_S)
        return "server2"

    running = wire(ask)
    for port in range(5000, 5064):
        running.put(query(port=port))
    assert running.exchange(6000) == FALLBACK
    assert running.fallbacks() == 1
    release.set()
    left = [Ether(running.get()) for _ in range(64)]
    assert {frame[IP].dst for frame in left} == {SERVERS[1]}
    assert [frame[UDP].sport for frame in left] == list(range(5000, 5064))


def test_ask_about_a_fragment_falls_back(wire: Any) -> None:
    """The first fragment of a datagram does not wait: the others follow it."""
    running = wire(lambda *_: "server2")
    datagram = from_client(UDP(sport=4000, dport=53, len=28) / Raw(bytes(8)), flags="MF")
    running.put_frame(bytes(datagram))
    assert Ether(running.get())[IP].dst == FALLBACK
    assert running.fallbacks() == 1


def test_ask_after_stop_is_called_directly(wire: Any) -> None:
    """Offline there is no clock: the function is waited for, on the caller's thread."""
    threads: list[str] = []

    def ask(*_: object) -> str:
        threads.append(threading.current_thread().name)
        return "server2"

    running = wire(ask, 1)
    running.path.detach()
    result = running.path.process(bytes(from_client(query())), 0, 1)
    assert (result.server, threads) == ("server2", [threading.current_thread().name])


QUESTION = (lambda *_: "a", "web", "198.18.1.21", WEB, ["a"])


def answering() -> tuple[CallbackChannel, threading.Thread, threading.Event]:
    """Start a thread that answers; the event is set with each answer."""
    told = threading.Event()
    channel = CallbackChannel(told.set)
    thread = threading.Thread(target=serve, args=(channel,))
    thread.start()
    return channel, thread, told


def test_questions_closed_let_the_thread_end() -> None:
    """A loop that stops leaves no thread behind, and may ask nothing more."""
    channel, thread, _ = answering()
    channel.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not channel.post(1, QUESTION, time.monotonic_ns() + LONG_NS)


def test_questions_no_packet_waits_for_are_not_asked() -> None:
    """What is past its deadline before its turn comes is left out; the next one is answered, with its ticket."""
    channel, thread, told = answering()
    channel.post(1, QUESTION, 0)
    channel.post(2, QUESTION, time.monotonic_ns() + LONG_NS)
    assert told.wait(WAIT_S)
    assert channel.take_answers() == [(2, "a")]
    channel.close()
    thread.join(WAIT_S)
