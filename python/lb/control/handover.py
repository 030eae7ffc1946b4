"""
What a running balancer and the one that takes over from it say to each other: messages with descriptors, over a UNIX
socket in the state directory.

    successor    running one
    hello    ->              a format, so that two versions that cannot talk say so
             <-  welcome     what it has open: sockets, claims, the lock of the state directory
    ready    ->              all is prepared but the flows; the running one stops its packet loop
             <-  yours       what goes on beside the flows, and where the sockets were left off
    done     ->              the successor forwards; the running one ends and leaves all that is the successor's

Until `done` a successor that goes away has changed nothing: the running one goes on (`lb.control.successor`, and
`lb.control.predecessor` for the other side). A message is its length and its number of descriptors, the descriptors,
then JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

FORMAT = 1
# Of a message; that of 10 000 servers has 6 MB.
MOST_BYTES = 256 << 20
MOST_DESCRIPTORS = 4096
HEADER = struct.Struct("!II")
# The kernel passes 253 at a time.
AT_ONCE = 128


def send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message. Raise OSError when the other side is gone or does not read."""
    body = json.dumps(message).encode()
    sock.sendall(HEADER.pack(len(body), len(descriptors)))
    for start in range(0, len(descriptors), AT_ONCE):
        socket.send_fds(sock, [b"+"], list(descriptors[start : start + AT_ONCE]))
    sock.sendall(body)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """
    Return the next message, and its descriptors, which the caller closes.

    Raises:
        OSError: the other side is gone, says nothing for the socket's timeout, or says no message.
    """
    length, count = HEADER.unpack(_exactly(sock, HEADER.size))
    if length > MOST_BYTES or count > MOST_DESCRIPTORS:
        raise ConnectionError("no message")
    descriptors: list[int] = []
    try:
        while len(descriptors) < count:
            _, more, _, _ = socket.recv_fds(sock, 1, AT_ONCE)
            if not more:
                raise ConnectionError("the other side is gone")
            descriptors += more
            for descriptor in more:
                os.set_inheritable(descriptor, False)
        message = _parsed(_exactly(sock, length))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ConnectionError("no message")
    return message


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = sock.recv(min(length - len(data), 1 << 20))
        if not part:
            raise ConnectionError("the other side is gone")
        data += part
    return bytes(data)
