"""Errors of packet sockets that need no privilege: one line that says what is wrong and how to fix it."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from lb.errors import InterfaceError, PrivilegeError
from lb.net import sockets


@pytest.mark.parametrize("name", ["missing0", "", "a-name-that-is-too-long", "nul\0byte"])
@pytest.mark.parametrize("call", [sockets.open_packet_socket, sockets.claim_interface, sockets.read_interface])
def test_interface_that_is_not_there_names_those_that_are(call: Any, name: str) -> None:
    with pytest.raises(InterfaceError, match=r"there is no interface .* here; there are: .*\blo\b"):
        call(name)


def test_open_packet_socket_without_capability_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def refuse(family: int = socket.AF_INET, *arguments: Any, **named: Any) -> Any:
        if family == socket.AF_PACKET:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(PrivilegeError, match="needs CAP_NET_RAW: run as root, or `lb run --testbed`"):
        sockets.new_socket("eth0")


def test_set_option_that_kernel_lacks_names_the_feature() -> None:
    """An option number that no kernel has stands for a new one on an old kernel."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(PrivilegeError, match="too old: it has no PACKET_WISHES"),
    ):
        sockets.set_option(sock, socket.SOL_SOCKET, 30000, 1, "PACKET_WISHES (Linux 9)")


def test_read_interface_loopback_gives_number_mac_and_mtu() -> None:
    facts = sockets.read_interface("lo")
    assert (facts.number, facts.mac) == (socket.if_nametoindex("lo"), bytes(6))
    assert facts.mtu > 1500
