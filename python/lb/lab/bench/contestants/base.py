"""
What a contestant is: something that makes the router carry the traffic, and undoes that.

A contestant is asked first whether it can take part on this machine; then, in each of its turns, it works within a
`with` block and leaves the router as it found it, so that the next one meets the same machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Address

from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import VIP, VIP_PORT, Host


@dataclass(frozen=True, slots=True)
class Working:
    """A contestant at work. `address`, `port`: what clients ask; `pid`: its process, None when it is the kernel."""

    address: IPv4Address
    port: int
    pid: int | None = None


class Contestant(ABC):
    """
    One contestant. `name`: as in the document; `title`: for people; `protocols`: what it can carry; `kind`: its name on
    the command line, which differs when it takes part twice.
    """

    name: str
    title: str
    protocols: frozenset[str] = frozenset({"tcp", "udp"})

    @property
    def kind(self) -> str:
        """Its name on the command line."""
        return self.name

    @abstractmethod
    def version(self) -> str:
        """Return what exactly takes part."""

    @abstractmethod
    def obstacle(self) -> str | None:
        """Return why it cannot take part here, in a few words, or None."""

    @abstractmethod
    def work(self, testbed: Testbed, server: Host) -> AbstractContextManager[Working]:
        """
        Carry traffic for the VIP, TCP and UDP where it can, to this server's web port, within the block.

        Raises:
            LbError: it does not start.
        """


def at_vip(pid: int | None = None) -> Working:
    """Return what clients ask when there is a VIP."""
    return Working(VIP, VIP_PORT, pid)
