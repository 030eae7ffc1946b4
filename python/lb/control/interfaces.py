"""
What follows when the kernel reports a change of the interfaces: a publication, a warning, or the end.

Between `lb.net.kernel`, which watches, and `lb.control.controller`. Belongs to one asyncio loop.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from lb.control.changes import Changes
from lb.control.tasks import Supervisor
from lb.errors import InterfaceError, LbError
from lb.model.snapshot import Interface

log = logging.getLogger(__name__)


class Published(Protocol):
    """What follows the interfaces: `lb.control.controller.Controller`."""

    def set_interfaces(self, interfaces: Sequence[Interface]) -> None:
        """Publish a change of the interfaces. Raise ConfigError when one has got the address of a VIP or server."""


class InterfaceFollower:
    """
    Follows the interfaces of a running balancer.

    Args:
        published: follows their changes.
        changes: the queue of changes.
        supervisor: runs what takes a while.
        fail: ends the balancer with an error.

    `trouble`: which interface is down or gone, in words; None: all are there.
    """

    def __init__(
        self, published: Published, changes: Changes, supervisor: Supervisor, fail: Callable[[Exception], None]
    ) -> None:
        self.trouble: str | None = None
        self._published = published
        self._changes = changes
        self._supervisor = supervisor
        self._fail = fail

    def on_change(self, interfaces: tuple[Interface, ...]) -> None:
        """Publish that a MAC, an MTU or an address of the interfaces has changed."""
        log.info("the interfaces changed: %s", describe_interfaces(interfaces))
        self._supervisor.spawn("interfaces", self._publish(interfaces))

    async def _publish(self, interfaces: tuple[Interface, ...]) -> None:
        outcome = await self._changes.make(functools.partial(self._published.set_interfaces, interfaces))
        if isinstance(outcome.error, LbError):
            log.error("the change cannot be followed: %s", outcome.error)
            return
        outcome.result()

    def on_trouble(self, error: Exception | None) -> None:
        """
        Note that an interface is down or gone, and log it once; None: that all are there. Any other error means that
        watching has failed, and ends the balancer.
        """
        if error is None:
            if self.trouble is not None:
                log.info("the interfaces are back")
            self.trouble = None
        elif not isinstance(error, InterfaceError):
            self._fail(error)
        elif self.trouble != str(error):
            self.trouble = str(error)
            log.warning("%s", error)


def describe_interfaces(interfaces: Sequence[Interface]) -> str:
    """Return interfaces for a log line."""
    return ", ".join(f"{entry.name} ({entry.mac.hex(':')}, mtu {entry.mtu})" for entry in interfaces)
