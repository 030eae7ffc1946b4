"""
What `lb run` does while it still has all its rights: before any thread, and before any code of the user's.

Reading a configuration runs the policies that it names. So it is looked at first without that, for the names of the
interfaces; the packet sockets are made, still bound to nothing, and a broker is started for what needs rights later
(`lb.privileges.broker`); then the rights go (`lb.privileges.drop`). Mistakes in the configuration are told when it is
read properly, afterwards.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.config import unprivileged
from lb.control.api.listener import bind_socket
from lb.errors import LbError
from lb.model.limits import MOST_WORKERS
from lb.net.sockets import new_socket, open_direct_socket
from lb.privileges import trust
from lb.privileges.broker import Broker
from lb.privileges.drop import Notice, drop_privileges

# Interfaces for which sockets are made; more in one configuration is a mistake.
MOST_INTERFACES = 256


@dataclass
class Prepared:
    """
    What was made with all rights.

    Args:
        packet, direct: sockets that are bound to nothing, for packets and for handing frames to drivers.
        broker: binds the control socket; None: this process does so itself.
        notice: what the log should say about the user this process has become.
    """

    packet: list[socket.socket] = field(default_factory=list)
    direct: list[socket.socket] = field(default_factory=list)
    broker: Broker | None = None
    notice: Notice | None = None

    def take_packet(self) -> socket.socket | None:
        """Return a packet socket, which the caller closes; None when there is none."""
        return self.packet.pop() if self.packet else None

    def take_direct(self, interface_name: str) -> socket.socket:
        """Return a socket for handing frames to a driver; the caller closes it. Raise PrivilegeError when refused."""
        return self.direct.pop() if self.direct else open_direct_socket(interface_name)

    def take_control(self, path: Path) -> socket.socket:
        """Return the control socket, bound; the caller closes it. Errors: as `lb.control.api.listener.bind_socket`."""
        return bind_socket(path) if self.broker is None else self.broker.bind()


@contextmanager
def prepared(config: Path, control: Path, user: str | None) -> Iterator[Prepared]:
    """
    Make what needs rights, give them up, and undo the rest at the end of the block.

    Args:
        config: of the configuration.
        control: where the control socket is to be.
        user: as for `lb.privileges.drop.drop_privileges`.

    Raises:
        LbError: the configuration is not trusted, or this process cannot become the user.
    """
    unprivileged.require_trusted(config)
    with ExitStack() as stack:
        made = Prepared()
        if os.geteuid() == trust.ROOT:
            made.broker = Broker(config, control, bind_socket)
            made.broker.start()
            stack.callback(made.broker.stop)
        outline = _outline(config)
        with contextlib.suppress(LbError):
            _open_sockets(made, outline)
        for sock in (*made.packet, *made.direct):
            stack.callback(sock.close)
        made.notice = drop_privileges(user)
        yield made


def _open_sockets(made: Prepared, outline: dict[str, Any]) -> None:
    """Make the sockets that a configuration needs. Raise PrivilegeError when that is not allowed."""
    tables = outline.get("interface")
    interfaces = [table for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []
    workers = outline.get("workers", 1)
    if not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS or len(interfaces) > MOST_INTERFACES:
        return
    for table in interfaces * workers:
        made.packet.append(new_socket(str(table.get("name"))))
        if table.get("transmit") == "direct":
            made.direct.append(open_direct_socket(str(table.get("name"))))


def _outline(config: Path) -> dict[str, Any]:
    """Return a configuration as TOML has it; empty when it has mistakes, which its reader tells."""
    try:
        with trust.open_file(config) as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
