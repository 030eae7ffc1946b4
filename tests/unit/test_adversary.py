"""
Rule 8.10, believed segments, and rule 8.13, last hop: a sender off the path who knows the addresses and ports of a
conversation, but none of its numbers.

The property that `rust/core/tests/adversary.rs` shows for 100 000 drawn conversations, with Hypothesis looking for the
sequence that breaks it, on both backends. The adversary may use the server's name from where the servers are, too, and
the server may answer its SYNs, as one with SYN cookies does; only a whole handshake that it plays in both names, each
side acknowledging the other's SYN, is left out: that looks like any other. A guess may find room in both windows, the
larger they are the more often: such a one ends nothing, hides no true end, and makes no number that the next guess can
use.

The segments are tens of thousands, so `packets` makes and reads them, which test_differential.py holds against scapy.
"""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Literal, NamedTuple

from helpers import (
    CLIENT,
    CLIENT_MAC,
    CLIENT_PORT,
    PROPERTY,
    ROUTER_MAC,
    ROUTER_MAC_1,
    SERVER_MACS,
    SERVER_PORT,
    SERVERS,
    VIP,
    WEB_PORT,
    Box,
    mac_bytes,
    make_snapshot,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import packets
from lb.backends.base import Result

ADVERSARY_MAC = "aa:aa:aa:00:00:66"
FLAGS = ("A", "PA", "R", "RA", "S", "SA", "FA", "FPA", "P", "UA", "SEC", "RP")
GUESSES = (0, 2**31, 0x12345678, 0x87654321, 0xDEADBEEF)


class Forged(NamedTuple):
    """
    A segment of the adversary. `seq`, `ack`: a guess and what is added to it; it comes in by eth1, or `beside` the
    servers.
    """

    flags: str
    seq: tuple[int, int]
    ack: tuple[int, int]
    window: int
    data: bool
    as_server: bool
    beside: bool = False


# One of them is in a window of 2^30.
FAR_GUESSES = tuple(eighth << 29 for eighth in range(8))
NUMBERS = st.tuples(st.sampled_from(GUESSES), st.sampled_from((0, 1, 1460, -1)))
FORGED = st.builds(
    Forged, st.sampled_from(FLAGS), NUMBERS, NUMBERS, st.sampled_from((0, 1, 65535)), *(st.booleans(),) * 3
)
FAR = st.tuples(st.sampled_from(FAR_GUESSES), st.sampled_from((0, 1, 1460, -1)))


class Segment(NamedTuple):
    """A TCP segment between two addresses with ports. `flags`: letters as scapy has them."""

    source: tuple[str, int]
    target: tuple[str, int]
    flags: str
    seq: int
    ack: int
    data: bytes = b""
    window: int = 8192
    options: bytes = b""

    def frame(self, source_mac: str, target_mac: str = ROUTER_MAC) -> bytes:
        """Make its frame."""
        source, target = (ip_address(address).packed for address, _ in (self.source, self.target))
        bits = sum(1 << "FSRPAUEC".index(letter) for letter in self.flags)
        ports = self.source[1], self.target[1]
        numbers = self.seq % 2**32, self.ack % 2**32
        segment = packets.tcp(source, target, *ports, *numbers, bits, self.data, self.options, self.window)
        packet = packets.ip4(source, target, packets.TCP, segment, ident=1)
        return packets.ether(mac_bytes(target_mac), mac_bytes(source_mac), packet)


def ends(by_client: bool, index: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return where a segment of a side comes from and goes to; `index`: of the server."""
    client = (CLIENT, CLIENT_PORT)
    return (client, (VIP, WEB_PORT)) if by_client else ((SERVERS[index], SERVER_PORT["tcp"]), client)


def server_mac(index: int) -> str:
    return SERVER_MACS[31 + index]


def only_packet(result: Result) -> tuple[str, str, str, str]:
    """Return where the one packet that a result sends leaves: interface, MAC, source, target; its checksums tested."""
    [(interface, frame)] = result.out
    seen = packets.look(frame)
    assert seen is not None
    assert seen.header_ok
    assert packets.l4_right(seen)
    return interface, frame[:6].hex(":"), str(ip_address(seen.src)), str(ip_address(seen.dst))


class Conversation:
    """
    A client and a server that know their numbers, through a box, and the adversary beside them.

    Args:
        backend: of the box.
        selector: of the service.
        secret: what its numbers are drawn from.
        shift: that both SYNs offer, None: no window scale.
        window: what the window fields say.
        transit: what becomes of packets straight to a server.
    """

    def __init__(
        self,
        backend: str,
        selector: str,
        secret: int,
        shift: int | None = None,
        window: int = 8192,
        transit: Literal["drop", "forward"] = "drop",
    ) -> None:
        self.box = Box(backend, make_snapshot(selector, transit=transit))
        self.shift = shift
        self.window = window
        # Secrets are not drawn by Hypothesis: it would learn them.
        self.client, self.server = (random.Random(secret).getrandbits(32) for _ in range(2))
        self.index = 0
        # The SYNs of the adversary: whether in the server's name, and their sequence numbers.
        self.syns: list[tuple[bool, int]] = []

    def say(self, by_client: bool, flags: str, data: bytes = b"") -> tuple[str, str, str]:
        """Send a segment with the true numbers; return where it left: interface, MAC, address."""
        seq, ack = (self.client, self.server) if by_client else (self.server, self.client)
        scale = b"\x01\x03\x03" + bytes([self.shift]) if self.shift is not None and "S" in flags else b""
        segment = Segment(
            *ends(by_client, self.index), flags, seq, ack if "A" in flags else 0, data, self.window, scale
        )
        result = self.box.send(segment.frame(CLIENT_MAC if by_client else server_mac(self.index)))
        end = (seq + len(data) + ("S" in flags) + ("F" in flags)) % 2**32
        if by_client:
            self.client = end
        else:
            self.server = end
        interface, mac, source, target = only_packet(result)
        assert by_client or source == VIP, "no server is seen"
        return interface, mac, target

    def begin(self, half_closed: bool) -> None:
        """Open it, and let the server have its say."""
        self.index = SERVERS.index(self.say(True, "S")[2])
        self.say(False, "SA")
        self.say(True, "A")
        self.say(True, "PA", b"GET")
        self.say(False, "PA", b"200")
        if half_closed:
            self.say(False, "FA")
        self.say(True, "A")

    def begin_as(self, begins: str) -> None:
        """Open it, or let it be picked up from one of its sides; afterwards each was heard and all is acknowledged."""
        if begins == "with a SYN":
            self.begin(half_closed=False)
            self.say(False, "A")
            return
        if begins == "before us, the server first":
            self.index = self.hashed()
        way = self.say(True, "PA", b"GET")
        self.index = SERVERS.index(way[2])
        self.say(False, "PA", b"200")
        self.say(True, "A")
        self.say(False, "A")

    def hashed(self) -> int:
        """Let servers speak in turn; return the index of the one that the hash names."""
        for index in range(len(SERVERS)):
            segment = Segment(*ends(False, index), "A", self.server, self.client, window=self.window)
            if self.box.send(segment.frame(server_mac(index))).verdict == "forward":
                return index
        raise AssertionError("the hash names none")

    def reach(self, begins: str) -> int:
        """Return how far a number may be from what is acknowledged, at most."""
        return (self.window << (14 if begins != "with a SYN" else self.shift or 0)) + 1

    def near(self, flags: str, by_client: bool, seq: int, ack: int, data: bytes = b"") -> None:
        """Send a segment of the adversary in the name of a side, with numbers so far from what was sent so far."""
        own, other = (self.client, self.server) if by_client else (self.server, self.client)
        segment = Segment(*ends(by_client, self.index), flags, own + seq, other + ack, data)
        self.box.send(segment.frame(ADVERSARY_MAC if by_client else server_mac(self.index)))

    def forge(self, forged: Forged, *, straight: bool = False) -> None:
        """Send a segment of the adversary, to the service or straight to the server."""
        seq, ack = (sum(number) % 2**32 for number in (forged.seq, forged.ack))
        server = SERVERS[self.index], SERVER_PORT["tcp"]
        client, target = (CLIENT, CLIENT_PORT), server if straight else (VIP, WEB_PORT)
        way = (server, client) if forged.as_server else (client, target)
        interface = 0 if forged.beside else 1
        segment = Segment(*way, forged.flags, seq, ack, b"x" * forged.data, forged.window)
        frame = segment.frame(ADVERSARY_MAC, (ROUTER_MAC, ROUTER_MAC_1)[interface])
        self.box.send(frame, interface=interface)
        if "S" in forged.flags and not straight:
            self.syns.append((forged.as_server, seq))

    def plays_both(self, forged: Forged) -> bool:
        """Tell whether a segment answers a SYN of the adversary in the other side's name."""
        offsets = [(sum(forged.ack) - seq - 1) % 2**32 for as_server, seq in self.syns if as_server != forged.as_server]
        is_opening = not forged.as_server or self.seen()[0] == "syn-sent"
        return is_opening and "A" in forged.flags and any(offset <= 1 for offset in offsets)

    def attack(self, attack: list[Forged]) -> None:
        """Send what the adversary sends, but for a handshake of its own."""
        for forged in attack:
            if not self.plays_both(forged):
                self.forge(forged)

    def answer_by_cookies(self) -> None:
        """Let the server answer the SYNs in the client's name, as one does that remembers none."""
        for number, (as_server, seq) in enumerate(self.syns):
            if not as_server:
                cookie = Segment(*ends(False, self.index), "SA", self.server + 7919 * (number + 1), seq + 1)
                assert only_packet(self.box.send(cookie.frame(server_mac(self.index))))[2] == VIP

    def seen(self) -> tuple[str, str, float]:
        """State, server, idle time."""
        [flow] = self.box.path.flows(self.box.now)
        return flow.state, flow.server, flow.idle_s


BEGINS = st.sampled_from(("with a SYN", "before us, the client first", "before us, the server first"))
SHIFTS = st.one_of(st.none(), st.integers(0, 14))


@given(
    selector=st.sampled_from(("counter", "hash-flow", "least")),
    half_closed=st.booleans(),
    secret=st.integers(0, 2**32),
    idle=st.sampled_from((0.0, 0.5, 70.0, 7000.0)),
    attack=st.lists(FORGED, min_size=1, max_size=8),
    more=st.lists(FORGED, max_size=4),
)
@settings(PROPERTY, max_examples=400)
def test_adversary_without_numbers_changes_nothing(
    backend: str,
    selector: str,
    half_closed: bool,
    secret: int,
    idle: float,
    attack: list[Forged],
    more: list[Forged],
) -> None:
    """
    Rule 8.10, believed segments, and rule 8.13, last hop: state, server, idle time and last hop stay, and what the
    ends send next passes.
    """
    conversation = Conversation(backend, selector, secret)
    conversation.begin(half_closed)
    there, back = conversation.say(True, "A"), conversation.say(False, "A")
    conversation.box.after(idle)
    before = conversation.seen()
    conversation.attack(attack)
    conversation.answer_by_cookies()
    conversation.attack(more)
    assert conversation.seen() == before
    assert conversation.say(False, "A") == back
    assert conversation.say(True, "A", b"more") == there
    assert conversation.seen()[2] == 0, "the ends are still believed"


@given(
    selector=st.sampled_from(("counter", "hash-flow", "least")),
    heard=st.booleans(),
    secret=st.integers(0, 2**32),
    attack=st.lists(FORGED, min_size=1, max_size=8),
)
@settings(PROPERTY, max_examples=200)
def test_adversary_amid_a_handshake_changes_nothing(
    backend: str, selector: str, heard: bool, secret: int, attack: list[Forged]
) -> None:
    """
    Rule 8.8, states, and rule 8.10, believed segments: a handshake goes on as if nothing had been, though the server
    answers every sender.
    """
    conversation = Conversation(backend, selector, secret)
    conversation.index = SERVERS.index(conversation.say(True, "S")[2])
    if heard:
        conversation.say(False, "SA")
    before = conversation.seen()
    conversation.attack(attack)
    assert conversation.seen() == before
    if not heard:
        conversation.say(False, "SA")
    conversation.answer_by_cookies()
    conversation.say(True, "A")
    assert conversation.seen() == ("established", before[1], 0)
    conversation.box.after(70)
    conversation.say(False, "PA", b"hello")
    assert conversation.seen()[2] == 0, "the ends are believed"


@given(
    begins=st.sampled_from(("before us, the client first", "before us, the server first", "in the end")),
    secret=st.integers(0, 2**32),
    attack=st.lists(FORGED, min_size=1, max_size=6),
)
@settings(PROPERTY, max_examples=200)
def test_adversary_straight_to_the_server_changes_nothing(
    backend: str, begins: str, secret: int, attack: list[Forged]
) -> None:
    """
    Rule 8.15, server packets of no flow, and rule 9.1, direct connections: a connection that was there before us, or
    is over, goes on, and shows no server.
    """
    conversation = Conversation(backend, "hash-flow", secret, transit="forward")
    before_us = begins != "in the end"
    # Both begin as the same hash says.
    conversation.index = Conversation(backend, "hash-flow", secret).hashed()
    if not before_us:
        conversation.begin(half_closed=True)
        conversation.say(True, "FA")
        conversation.say(False, "A")
    for forged in attack:
        # A SYN takes the place of what is over.
        if before_us or "S" not in forged.flags or "A" in forged.flags:
            conversation.forge(forged._replace(as_server=False), straight=True)
    if before_us:
        conversation.begin_as(begins)
        assert conversation.seen()[0] == "established"
        return
    assert conversation.seen()[0] == "closing"
    conversation.server = (conversation.server - 1) % 2**32
    conversation.say(False, "FA")
    conversation.say(True, "A")


@given(
    begins=st.sampled_from(("with a SYN", "before us", "before us, its server silent")),
    by_server=st.booleans(),
    secret=st.integers(0, 2**32),
    flags=st.lists(st.sampled_from(FLAGS), min_size=1, max_size=6),
    numbers=st.lists(st.tuples(FAR, FAR), min_size=6, max_size=6),
    data=st.booleans(),
)
@settings(PROPERTY, max_examples=150)
def test_adversary_in_the_largest_windows_closes_nothing(
    backend: str,
    begins: str,
    by_server: bool,
    secret: int,
    flags: list[str],
    numbers: list[tuple[tuple[int, int], tuple[int, int]]],
    data: bool,
) -> None:
    """
    Rule 8.2, reset acceptance: a guess that finds room in a window of 2^30 is no number that a RST is believed at.
    """
    conversation = Conversation(backend, "hash-flow", secret, shift=14, window=65535)
    is_silent = begins == "before us, its server silent"
    if begins == "with a SYN":
        conversation.begin(half_closed=False)
    else:
        conversation.index = SERVERS.index(conversation.say(True, "PA", b"GET")[2])
        if not is_silent:
            conversation.say(False, "PA", b"200")
    there = conversation.say(True, "A")
    before = conversation.seen()[:2]
    assert before[0] == ("pickup" if is_silent else "established")
    # A pickup is confirmed by any segment in the name of its server.
    as_server = by_server and not is_silent
    for kind, (seq, ack) in zip(flags, numbers, strict=False):
        # Where the server is, else it is dropped as spoofed.
        conversation.forge(Forged(kind, seq, ack, 65535, data, as_server, as_server))
        end = (seq[0], seq[1] + data + ("F" in kind) + ("S" in kind))
        for number in (end, seq, ack):
            conversation.forge(Forged("R", number, ack, 65535, False, as_server, as_server))
            conversation.forge(Forged("RA", number, ack, 65535, False, as_server, as_server))
    assert conversation.seen()[:2] == before
    conversation.say(False, "A")
    assert conversation.say(True, "A", b"more") == there
    assert conversation.seen()[:2] == ("established", before[1])
    # Whatever FIN the guesses had: that of the other side makes no two.
    conversation.say(as_server, "FA")
    conversation.say(as_server, "A")
    assert conversation.seen()[:2] == ("established", before[1])


@given(
    begins=BEGINS,
    secret=st.integers(0, 2**32),
    shift=SHIFTS,
    window=st.sampled_from((64, 501, 2000, 8192)),
    attack=st.lists(
        st.tuples(
            st.sampled_from(FLAGS), st.booleans(), st.booleans(), st.integers(1, 2**31), st.integers(-(2**31), 2**31)
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(PROPERTY, max_examples=100)
def test_adversary_outside_the_windows_changes_nothing(
    backend: str,
    begins: str,
    secret: int,
    shift: int | None,
    window: int,
    attack: list[tuple[str, bool, bool, int, int]],
) -> None:
    """Rule 8.10, believed segments: no guess beyond a window counts, whose scale is 14 where it is unknown."""
    conversation = Conversation(backend, "hash-flow", secret, shift, window)
    conversation.begin_as(begins)
    there, back = conversation.say(True, "A"), conversation.say(False, "A")
    conversation.box.after(70)
    before = conversation.seen()
    reach = conversation.reach(begins)
    for flags, by_client, at_seq, beyond, any_number in attack:
        if "S" in flags or ("R" in flags and not at_seq):
            continue
        outside = reach + 1 + (beyond - 1) % (2**32 - 2 * reach - 1)
        numbers = (outside, any_number) if at_seq else (any_number, outside)
        conversation.near(flags, by_client, *numbers)
    assert conversation.seen() == before
    assert conversation.say(False, "A") == back
    assert conversation.say(True, "A", b"more") == there
    assert conversation.seen()[2] == 0, "the ends are still believed"


@given(
    begins=BEGINS,
    secret=st.integers(0, 2**32),
    shift=SHIFTS,
    by_client=st.booleans(),
    sizes=st.lists(st.integers(1, 1460), max_size=5),
    flags=st.sampled_from(("R", "RA")),
    attack=st.lists(FORGED, max_size=4),
)
@settings(PROPERTY, max_examples=100)
def test_abort_behind_data_without_acknowledgement_closes(
    backend: str,
    begins: str,
    secret: int,
    shift: int | None,
    by_client: bool,
    sizes: list[int],
    flags: str,
    attack: list[Forged],
) -> None:
    """
    Rule 8.8, states: a side that gives up behind what it has sent leaves no active flow; no other host's RST does.
    """
    conversation = Conversation(backend, "hash-flow", secret, shift)
    conversation.begin_as(begins)
    if begins == "with a SYN" and not shift:
        conversation.attack(attack)
    for size in sizes:
        conversation.say(by_client, "PA", b"x" * size)
    for beside in (1, 2, 1460):
        conversation.near(flags, by_client, beside, 0)
    for beside in range(2, sum(sizes), 97):
        conversation.near(flags, by_client, 1 - beside, 0)
    assert conversation.seen()[0] == "established"
    conversation.say(by_client, flags)
    assert conversation.seen()[0] == "closing"
    assert conversation.box.counters()["services"]["web"]["flows_active"] == 0


@given(
    begins=BEGINS,
    secret=st.integers(0, 2**32),
    shift=SHIFTS,
    by_client=st.booleans(),
    half_closed=st.booleans(),
    steps=st.lists(
        st.tuples(st.integers(0, 500), st.booleans(), st.lists(st.integers(-3000, 3000), max_size=3)), max_size=5
    ),
    last=st.lists(st.integers(-3000, 3000), max_size=3),
)
@settings(PROPERTY, max_examples=100)
def test_forged_fins_close_nothing_and_hide_none(
    backend: str,
    begins: str,
    secret: int,
    shift: int | None,
    by_client: bool,
    half_closed: bool,
    steps: list[tuple[int, bool, list[int]]],
    last: list[int],
) -> None:
    """Rule 8.8, states: a FIN counts at its own number; one beside it that finds room neither counts nor hides it."""
    conversation = Conversation(backend, "hash-flow", secret, shift)
    conversation.begin_as(begins)
    if half_closed:
        conversation.say(not by_client, "FA")
        conversation.say(by_client, "A")
    left = sum(size for size, _, _ in steps)
    gone = 0

    def forge(offsets: list[int]) -> None:
        # Before all that is outstanding, or behind all that the side will send: its FIN, too.
        for offset in offsets:
            conversation.near("FA", by_client, offset + left + 2 if offset >= 0 else offset - gone - 1, 0)

    for size, acknowledged, offsets in steps:
        forge(offsets)
        conversation.say(by_client, "PA", b"x" * size)
        left, gone = left - size, gone + size
        if acknowledged:
            conversation.say(not by_client, "A")
        forge(offsets)
    assert conversation.seen()[0] == "established"
    conversation.say(by_client, "FA")
    forge(last)
    conversation.say(not by_client, "A")
    if not half_closed:
        assert conversation.seen()[0] == "established"
        conversation.say(not by_client, "FA")
    assert conversation.seen()[0] == "closing"
