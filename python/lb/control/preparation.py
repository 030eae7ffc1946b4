"""
The part of `lb run` that needs rights, before they are given up: before any thread, and before any code of the user.

Reading a configuration runs the policies that it names. So only its interfaces are read first, as plain TOML; the
packet sockets are made, not bound to any interface yet, and a broker is started for what needs rights later
(`lb.privileges.broker`); then the rights are dropped (`lb.privileges.drop`). Mistakes in the configuration are reported
when it is read in full, afterwards.
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

from lb.config import Config, FlowsConfig, unprivileged
from lb.control.api.listener import bind_socket
from lb.control.kept import SUCCESSORS, StateDirectory
from lb.control.predecessor import Predecessor
from lb.control.snapshots import SnapshotDirectory, lock_name
from lb.errors import LbError
from lb.fields.key import default_of
from lb.model.limits import MOST_FLOWS, MOST_WORKERS
from lb.net.sockets import new_socket, open_direct_socket
from lb.privileges import trust
from lb.privileges.broker import Broker
from lb.privileges.drop import Notice, choose_account, drop_privileges

# Most interfaces that sockets are made for; a configuration with more is a mistake.
MOST_INTERFACES = 256


@dataclass
class Prepared:
    """
    What was made while this process had all its rights.

    Args:
        packet, direct: unbound sockets, for packets and for handing frames to drivers.
        broker: binds the control socket; None: this process binds it itself.
        state: keeps the flows over a restart; None: they end with this process.
        predecessor: the running balancer to take over from; None: there is none.
        snapshots: of the flows, on a disk; None: there are none.
        notice: a log line about the user that this process runs as; None: none.
    """

    packet: list[socket.socket] = field(default_factory=list)
    direct: list[socket.socket] = field(default_factory=list)
    broker: Broker | None = None
    state: StateDirectory | None = None
    predecessor: Predecessor | None = None
    snapshots: SnapshotDirectory | None = None
    notice: Notice | None = None

    def take_left(self, what: str) -> socket.socket | None:
        """Return a socket of the running balancer, which the caller closes; None when there is none."""
        descriptor = None if self.predecessor is None else self.predecessor.take(what)
        return None if descriptor is None else socket.socket(fileno=descriptor)

    def take_packet(self) -> socket.socket | None:
        """Return a packet socket, which the caller closes; None when there is none."""
        return self.packet.pop() if self.packet else None

    def take_direct(self, interface_name: str) -> socket.socket:
        """Return a socket for handing frames to a driver; the caller closes it. Raise PrivilegeError when refused."""
        return self.direct.pop() if self.direct else open_direct_socket(interface_name)

    def take_control(self, path: Path) -> socket.socket:
        """Return the control socket, bound; the caller closes it. Errors: as `lb.control.api.listener.bind_socket`."""
        if (left := self.take_left(control_name(path))) is not None:
            return left
        return bind_socket(path) if self.broker is None else self.broker.bind()

    def own_control(self) -> None:
        """Remove the control socket at the end, although another process has bound it."""
        if self.broker is not None:
            self.broker.adopt()

    def leave_control(self) -> None:
        """Leave the control socket where it is at the end: it is another process's now."""
        if self.broker is not None:
            self.broker.leave()


def control_name(path: Path) -> str:
    """Return what a control socket is called among the descriptors that a successor gets."""
    return f"control {path.absolute()}"


@contextmanager
def prepared(
    config: Path, control: Path, user: str | None, state: Path | None = None, take_over: bool = False
) -> Iterator[Prepared]:
    """
    Make what needs rights, and drop them; close what was made at the end of the block.

    Args:
        config: path of the configuration.
        control: path of the control socket.
        user: as for `lb.privileges.drop.drop_privileges`.
        state: path of the state directory. None: flows end with this process.
        take_over: from the balancer that uses the state directory, if one does.

    Raises:
        LbError: the configuration is not trusted, this process cannot become the user, it cannot have the state or the
            snapshot directory, or the running balancer does not let it take over.
    """
    unprivileged.require_trusted(config)
    with ExitStack() as stack:
        made = Prepared()
        if os.geteuid() == trust.ROOT:
            made.broker = Broker(config, control, bind_socket)
            made.broker.start()
            stack.callback(made.broker.stop)
        if state is not None and take_over:
            made.predecessor = Predecessor.find(state / SUCCESSORS)
        if made.predecessor is not None:
            stack.callback(made.predecessor.close)
        outline = _outline(config)
        if state is not None:
            account, _ = choose_account(user, "")
            owner = None if account is None else account.uid
            made.state = StateDirectory.open(state, made.predecessor, _capacity(outline), owner)
            stack.callback(made.state.close)
        if (folder := _snapshot_folder(outline)) is not None:
            held = None if made.predecessor is None else made.predecessor.take(lock_name(folder))
            made.snapshots = SnapshotDirectory.open(folder, held)
            stack.callback(made.snapshots.close)
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
    workers = outline.get("workers", default_of(Config, "workers"))
    if not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS or len(interfaces) > MOST_INTERFACES:
        return
    for table in interfaces * workers:
        made.packet.append(new_socket(str(table.get("name"))))
        if table.get("transmit") == "direct":
            made.direct.append(open_direct_socket(str(table.get("name"))))


def _capacity(outline: dict[str, Any]) -> int | None:
    """Return how many flows the table of a configuration is for, when it has no mistake there."""
    flows = outline.get("flows", {})
    capacity = flows.get("capacity", default_of(FlowsConfig, "capacity")) if isinstance(flows, dict) else None
    is_one = type(capacity) is int and 1 <= capacity <= MOST_FLOWS and outline.get("workers", 1) == 1
    return capacity if is_one else None


def _snapshot_folder(outline: dict[str, Any]) -> Path | None:
    """Return the directory for snapshots that a configuration names, when it has no mistake there."""
    flows = outline.get("flows")
    folder = flows.get("snapshot") if isinstance(flows, dict) else None
    return Path(folder) if isinstance(folder, str) and folder.startswith("/") and "\0" not in folder else None


def _outline(config: Path) -> dict[str, Any]:
    """Return a configuration as plain TOML; empty when it has mistakes, which are reported later."""
    try:
        with trust.open_file(config) as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
