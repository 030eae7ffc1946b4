"""
Rule 8.23, replies through any balancer: what a sender off the path, who knows the addresses and ports of a flow but
none of its numbers, can do to it.
"""

from __future__ import annotations

import random

import pytest
from helpers import Box, from_client, from_server, make_snapshot, request, response

# Sequence numbers of the client and the server are near these; the adversary's are nowhere near.
CLIENT_AT, SERVER_AT = 0x20000000, 0x70000000
GUESSES = [eighth << 29 for eighth in (2, 4, 5, 6, 7)]
FLAGS = ("S", "S", "A", "A", "PA", "FA", "FA", "R", "RA", "SA", "F", "P")
ROUNDS = 40
BURST = 12


class Talk:
    """A client that speaks through a balancer, and its server, which may answer by another way."""

    def __init__(self, backend: str, is_seen: bool) -> None:
        self.box = Box(backend, make_snapshot(any_replies=True))
        self.sent = CLIENT_AT
        opened = self.box.send(from_client(request("S", self.sent)))
        self.server = opened.server
        self.number = int((self.server or "server1")[-1]) - 1
        self.sent += 1
        if is_seen:
            self.box.send(from_server(response("SA", SERVER_AT, self.sent), self.number))
        self.speak("A", b"")

    def speak(self, flags: str, data: bytes = b"data") -> None:
        """Send from the client; it must come to its server."""
        result = self.box.send(from_client(request(flags, self.sent, SERVER_AT + 1, data)))
        assert (result.verdict, result.server) == ("forward", self.server)
        self.sent += len(data) + ("F" in flags)

    def forge(self, dice: random.Random) -> None:
        """Send in the client's name, some segments in a row."""
        number = dice.choice(GUESSES) + dice.randrange(3)
        for _ in range(dice.randrange(BURST)):
            flags = dice.choice(FLAGS)
            data = dice.choice((b"", b"guess"))
            self.box.send(from_client(request(flags, number, dice.choice(GUESSES), data)))
            number += dice.choice((0, 1, len(data), 5))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("is_seen", [False, True], ids=["one-way", "both-ways"])
def test_adversary_without_numbers_neither_moves_nor_closes_a_flow(backend: str, is_seen: bool, seed: int) -> None:
    talk, dice = Talk(backend, is_seen), random.Random(seed)
    state = "established" if is_seen else "one-way"
    for _ in range(ROUNDS):
        talk.forge(dice)
        assert talk.box.states() == [state]
        if dice.random() < 0.3:
            # Its idle time is that of an open flow still.
            talk.box.after(1000)
        talk.speak("PA")
    talk.speak("FA", b"")
    assert talk.box.states() == ["closing"]


@pytest.mark.parametrize("seed", range(8))
def test_adversary_without_numbers_moves_no_flow_that_one_side_has_closed(backend: str, seed: int) -> None:
    """A download may go on for long behind the client's FIN: each of its acknowledgements comes to its server."""
    talk, dice = Talk(backend, False), random.Random(seed)
    talk.speak("FA", b"")
    for _ in range(ROUNDS):
        talk.forge(dice)
        talk.box.after(100)
        talk.speak("A", b"")
    assert talk.box.path.counters()["events"]["flow_reused"] == 0
