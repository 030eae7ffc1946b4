"""A running data path on pairs of UNIX sockets in place of packet sockets: a message is a header and a frame."""

from __future__ import annotations

import os
import socket

from helpers import make_datapath

from attaching import attached
from lb.model.snapshot import Snapshot
from lb.net.frames import OFFLOAD_HEADER

WAIT_S = 10


class Wire:
    """A running data path, and the far ends of its two interfaces."""

    def __init__(self, backend: str, snapshot: Snapshot, capacity: int = 1024) -> None:
        self.path = make_datapath(backend, snapshot, capacity=capacity)
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.news = os.eventfd(0)
        for _, far in self.pairs:
            far.settimeout(WAIT_S)
        self.path.attach(attached([near.fileno() for near, _ in self.pairs]), self.news)

    def put(self, frame: bytes, interface: int = 0) -> None:
        """Let a frame arrive."""
        self.pairs[interface][1].send(OFFLOAD_HEADER.pack(*bytes(6)) + frame)

    def get(self, interface: int = 0) -> bytes:
        """Return the next frame that was sent."""
        return self.pairs[interface][1].recv(100_000)[OFFLOAD_HEADER.size :]

    def close(self) -> None:
        self.path.detach()
        for pair in self.pairs:
            for end in pair:
                end.close()
        os.close(self.news)
