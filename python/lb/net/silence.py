"""
Keep the host's kernel from answering packets that it does not forward, where nftables is missing.

An IPv6 host that does not forward answers a packet for which it has no route with ICMPv6 "no route to destination"
(1/0). One routing rule per interface, after the one of the host's own addresses, discards those packets without a word.
It takes nothing away: with forwarding off, every packet that this rule sees would be discarded anyway. IPv4 does that
in silence by itself.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

# After the rule of the host's own addresses (0), before the operator's.
PRIORITY = 1
# Who made a rule (FRA_PROTOCOL): a number that linux/rtnetlink.h gives to no program.
PROTOCOL = 201
# linux/fib_rules.h: FR_ACT_BLACKHOLE.
BLACKHOLE = 6

T = TypeVar("T")


def silence(names: Iterable[str]) -> None:
    """
    Have packets of these interfaces discarded that are not for this host. Nothing is done twice.

    Raises:
        OSError: CAP_NET_ADMIN is missing.
    """
    missing = set(names) - set(silenced())
    _with_netlink(lambda netlink: _change(netlink, "add", missing))


def unsilence(names: Iterable[str]) -> None:
    """Undo `silence`. Errors: as there."""
    present = set(names) & set(silenced())
    _with_netlink(lambda netlink: _change(netlink, "del", present))


def silenced() -> list[str]:
    """Return the names of the interfaces that `silence` was called for."""

    def read(netlink: Any) -> list[str]:
        rows = netlink.get_rules(family=socket.AF_INET6)
        return [
            str(row.get("iifname")) for row in rows if row.get("protocol") == PROTOCOL and row["action"] == BLACKHOLE
        ]

    return _with_netlink(read)


def _change(netlink: Any, command: str, names: Iterable[str]) -> None:
    for name in sorted(names):
        netlink.rule(
            command,
            family=socket.AF_INET6,
            iifname=name,
            action="FR_ACT_BLACKHOLE",
            priority=PRIORITY,
            protocol=PROTOCOL,
        )


def _with_netlink(work: Callable[[Any], T]) -> T:
    """Return a function's result for a netlink socket, on a thread: pyroute2 runs its own event loop."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    outcome: list[T | OSError] = []

    def run() -> None:
        try:
            with IPRoute() as netlink:
                outcome.append(work(netlink))
        except NetlinkError as error:
            outcome.append(OSError(error.code or errno.EIO, str(error)))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="lb-silence")
    thread.start()
    thread.join()
    if not outcome:
        raise OSError(errno.EIO, "netlink gave no answer")
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]
