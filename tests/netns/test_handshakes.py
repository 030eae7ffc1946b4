"""
Handshakes as a packetdrill script would write them, over real hosts: both backends, both link modes, both families.

Each end is a raw socket; C is the client's first number, S the server's. What arrives at each end is asserted segment
by segment, and the state of the flow, at the end of each test as `lb flows -o json` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from rawhosts import Conversation, conversation
from realhosts import RunningBalancer

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP6

C, S = 1_000_000, 5_000_000
# Of the incarnation after a reboot: far beyond any window of the first.
C2, S2 = 2_900_000_000, 3_900_000_000


@pytest.fixture(params=[VIP, VIP6], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, hosts: Testbed, balancer: RunningBalancer) -> Iterator[Conversation]:
    """Give a client and a server by hand. In the end `lb flows -o json` must show the state that a test found."""
    vip: IPv4Address | IPv6Address = request.param
    with conversation(hosts, balancer, vip) as made:
        yield made
        assert made.shown_state() == made.state() is not None


def establish(ends: Conversation, client: int = C, server: int = S) -> None:
    """Open a connection in the usual three steps."""
    ends.client.send("S", client)
    ends.server.expect("S", client)
    ends.server.send("SA", server, client + 1)
    ends.client.expect("SA", server, client + 1)
    ends.client.send("A", client + 1, server + 1)
    ends.server.expect("A", client + 1, server + 1)
    ends.wait_state("established")


def exchange(ends: Conversation, client: int, server: int) -> None:
    """Send data both ways from these numbers on; each end acknowledges the other's."""
    ends.client.send("A", client, server, b"question")
    ends.server.expect("A", client, server, b"question")
    ends.server.send("A", server, client + 8, b"reply")
    ends.client.expect("A", server, client + 8, b"reply")
    ends.client.send("A", client + 8, server + 5)
    ends.server.expect("A", client + 8, server + 5)


def test_handshake_three_steps_states_shown(ends: Conversation) -> None:
    """SYN, SYN/ACK, ACK: syn-sent, syn-received, established; data passes (rule 8.8, states)."""
    ends.client.send("S", C)
    ends.server.expect("S", C)
    ends.wait_state("syn-sent")
    ends.server.send("SA", S, C + 1)
    ends.client.expect("SA", S, C + 1)
    ends.wait_state("syn-received")
    ends.client.send("A", C + 1, S + 1)
    ends.server.expect("A", C + 1, S + 1)
    ends.wait_state("established")
    exchange(ends, C + 1, S + 1)
    assert ends.state() == "established"


def test_handshake_simultaneous_open_established(ends: Conversation) -> None:
    """
    SYNs cross, each side acknowledges the other's: established, and data passes (rule 8.8, states, RFC 9293 figure 8).
    """
    ends.client.send("S", C)
    ends.server.expect("S", C)
    # The server's was under way before the client's came.
    ends.server.send("S", S)
    ends.client.expect("S", S)
    assert ends.state() in ("syn-sent", "syn-received")
    ends.client.send("SA", C, S + 1)
    ends.server.expect("SA", C, S + 1)
    assert ends.state() in ("syn-sent", "syn-received")
    ends.server.send("SA", S, C + 1)
    ends.client.expect("SA", S, C + 1)
    ends.wait_state("established")
    exchange(ends, C + 1, S + 1)
    assert ends.state() == "established"


def test_handshake_split_established(ends: Conversation) -> None:
    """
    The server acknowledges the SYN, then sends its own apart: established after the client's ACK (rule 8.8, states).
    """
    ends.client.send("S", C)
    ends.server.expect("S", C)
    ends.server.send("A", S, C + 1)
    ends.client.expect("A", S, C + 1)
    ends.server.send("S", S)
    ends.client.expect("S", S)
    assert ends.state() in ("syn-sent", "syn-received")
    # RFC 793 lets the client answer SYN/ACK: it is in SYN-RECEIVED, as after a simultaneous open.
    ends.client.send("SA", C, S + 1)
    ends.server.expect("SA", C, S + 1)
    ends.server.send("A", S + 1, C + 1)
    ends.client.expect("A", S + 1, C + 1)
    ends.wait_state("established")
    exchange(ends, C + 1, S + 1)


def test_handshake_syn_crosses_without_acknowledgement_not_established(ends: Conversation) -> None:
    """Two SYNs that neither side acknowledges make no established flow (rule 8.8, states)."""
    ends.client.send("S", C)
    ends.server.expect("S", C)
    ends.server.send("S", S)
    ends.client.expect("S", S)
    ends.client.send("S", C)
    ends.server.expect("S", C)
    assert ends.state() in ("syn-sent", "syn-received")


@pytest.mark.parametrize("first", ["client", "server"])
def test_reset_from_both_sides_both_arrive(ends: Conversation, first: str) -> None:
    """
    Each side resets, the RSTs cross: both arrive, the flow is closing after the first (rule 8.8, states, and rule 8.2,
    reset acceptance).
    """
    establish(ends)
    exchange(ends, C + 1, S + 1)
    resets = {
        "client": lambda: (ends.client.send("R", C + 9), ends.server.expect("R", C + 9)),
        "server": lambda: (ends.server.send("R", S + 6), ends.client.expect("R", S + 6)),
    }
    resets[first]()
    ends.wait_state("closing")
    resets[{"client": "server", "server": "client"}[first]]()
    assert ends.state() == "closing"


def test_reset_ahead_of_what_was_seen_handed_on_challenge_answered(ends: Conversation) -> None:
    """
    A RST behind a lost segment passes and changes nothing; the exact one that follows closes (rule 8.2, reset
    acceptance).
    """
    establish(ends)
    exchange(ends, C + 1, S + 1)
    # 100 bytes at C + 9 were lost before the balancer: the RST stands behind them.
    ends.client.send("R", C + 109)
    ends.server.expect("R", C + 109)
    assert ends.state() == "established"
    ends.server.send("A", S + 6, C + 9)
    ends.client.expect("A", S + 6, C + 9)
    ends.client.send("R", C + 9)
    ends.server.expect("R", C + 9)
    ends.wait_state("closing")


def test_new_incarnation_client_rebooted_old_entry_gives_way(ends: Conversation) -> None:
    """
    The client reboots and takes the same port: its SYN meets the server's challenge ACK, its exact RST ends the old
    connection, and its next SYN opens the new one (rule 8.8, states; rule 8.2, reset acceptance; rule 8.1, port reuse;
    RFC 9293 3.5.1).
    """
    establish(ends)
    exchange(ends, C + 1, S + 1)
    ends.client.send("S", C2)
    ends.server.expect("S", C2)
    assert ends.state() == "established"
    ends.server.send("A", S + 6, C + 9)
    ends.client.expect("A", S + 6, C + 9)
    ends.client.send("R", C + 9)
    ends.server.expect("R", C + 9)
    ends.wait_state("closing")
    establish(ends, C2, S2)
    exchange(ends, C2 + 1, S2 + 1)
    assert ends.state() == "established"


def test_new_incarnation_client_rebooted_server_forgot_numbers_start_anew(ends: Conversation) -> None:
    """
    Client and server both forgot the connection: the SYN/ACK that acknowledges the SYN we saw on the established flow
    starts its numbers anew, and a RST at the new ones closes it (rule 8.2, reset acceptance).
    """
    establish(ends)
    exchange(ends, C + 1, S + 1)
    ends.client.send("S", C2)
    ends.server.expect("S", C2)
    ends.server.send("SA", S2, C2 + 1)
    ends.client.expect("SA", S2, C2 + 1)
    ends.client.send("A", C2 + 1, S2 + 1)
    ends.server.expect("A", C2 + 1, S2 + 1)
    ends.wait_state("established")
    exchange(ends, C2 + 1, S2 + 1)
    ends.client.send("R", C2 + 9)
    ends.server.expect("R", C2 + 9)
    ends.wait_state("closing")


def test_new_incarnation_server_rebooted_reset_reaches_client(ends: Conversation) -> None:
    """
    The server reboots: it answers the client's data with a RST at the number the client acknowledged, which closes the
    flow; the client's new connection from the same port opens at once (rule 8.10, believed segments, and rule 8.1,
    port reuse).
    """
    establish(ends)
    exchange(ends, C + 1, S + 1)
    ends.client.send("A", C + 9, S + 6, b"still there?")
    ends.server.expect("A", C + 9, S + 6, b"still there?")
    # RFC 9293 3.5.2: the RST takes its number from the ACK of what it answers.
    ends.server.send("R", S + 6)
    ends.client.expect("R", S + 6)
    ends.wait_state("closing")
    establish(ends, C2, S2)
    exchange(ends, C2 + 1, S2 + 1)
