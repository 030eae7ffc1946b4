"""
An abort after a lost segment, between real hosts: the other end's connection ends too (rule 8.8, states, and
rule 8.10, believed segments).
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from rawhosts import list_flows, lossy_wire
from realhosts import (
    DEADLINE_S,
    LISTEN_PORT,
    PIPE_PORT,
    RunningBalancer,
    connect,
    listen,
    receive_exactly,
    wait_until,
)

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP6

# The reset, a challenge ACK and the second reset follow each other without a timer; today's other end waits for hours.
END_DEADLINE_S = 5.0


def abort(connection: socket.socket) -> None:
    """Close with a RST (SO_LINGER with 0 seconds)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("lost", ["data", "acknowledgement", "nothing"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_abort_other_end_is_reset_at_once(
    hosts: Testbed, balancer: RunningBalancer, side: str, lost: str, vip: Any
) -> None:
    """
    One end sends a segment and aborts. Its RST stands behind that segment. Lost are the data: the other end's challenge
    ACK brings the exact RST; or their acknowledgement: the RST is exact for the other end, which is silent then; or
    nothing. Its connection ends; the flow is closing.
    """
    with (
        listen(hosts, "server1", vip) as listener,
        connect(hosts, "client1", PIPE_PORT, vip) as client,
        listener.accept()[0] as server,
    ):
        client_port = client.getsockname()[1]
        client.sendall(b"question")
        assert receive_exactly(server, 8) == b"question"
        server.sendall(b"reply")
        assert receive_exactly(client, 5) == b"reply"
        leaving, staying = (client, server) if side == "client" else (server, client)
        loser = side if lost == "data" else {"client": "server", "server": "client"}[side]
        ports = f"tcp sport {client_port}" if loser == "client" else f"tcp sport {LISTEN_PORT} tcp dport {client_port}"
        # Everything but the RST, or a retransmission would fill the gap: no timer decides what is tested.
        match = "tcp sport 0" if lost == "nothing" else f"{ports} tcp flags & rst == 0"
        with lossy_wire(hosts, f"{loser}1", match):
            leaving.sendall(b"x" * 100)
            if lost != "data":
                assert receive_exactly(staying, 100) == b"x" * 100
            abort(leaving)
            staying.settimeout(END_DEADLINE_S)
            with pytest.raises(ConnectionResetError):
                staying.recv(1)

    host = hosts.topology.host("client1")
    address = host.address6 if vip is VIP6 else host.address

    def closing() -> bool:
        states = [row["state"] for row in list_flows(balancer, address) if row["client_port"] == client_port]
        return states == ["closing"]

    wait_until(closing, "the flow is closing")


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])
def test_client_forgot_connection_that_only_the_server_knows_connects_again(
    hosts: Testbed, balancer: RunningBalancer, vip: Any
) -> None:
    """
    Neither the client nor the balancer knows the connection before, from the same port (RFC 9293 3.5.1): the server
    answers the SYN with an ACK, the client that with a RST at its number, which ends the server's half; the next SYN
    opens. Rule 8.2, reset acceptance: a RST that no window can be held against is handed on.
    """
    with listen(hosts, "server1", vip) as listener:
        before = connect(hosts, "client1", PIPE_PORT, vip)
        name = before.getsockname()
        with listener.accept()[0] as forgotten:
            balancer.stop()
            # Its RST finds no way.
            abort(before)
            balancer.start()
            with hosts.socket("client1", before.family) as client:
                client.settimeout(DEADLINE_S)
                client.bind(name)
                client.connect((str(vip), PIPE_PORT))
                with listener.accept()[0] as server:
                    client.sendall(b"again")
                    assert receive_exactly(server, 5) == b"again"
            forgotten.settimeout(END_DEADLINE_S)
            with pytest.raises(ConnectionResetError):
                forgotten.recv(1)
