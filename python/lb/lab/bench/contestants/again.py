"""A contestant once more under another name: what two equal contestants differ by is the noise of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lb.lab.bench.contestants.base import Contestant, Working
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import Host

SUFFIX = "-again"


class Again(Contestant):
    """The same as another contestant in everything but the name."""

    def __init__(self, original: Contestant) -> None:
        self._original = original
        self.name, self.title = original.name + SUFFIX, f"{original.title}, once more"
        self.protocols = original.protocols

    @property
    def kind(self) -> str:
        """Its original's name on the command line."""
        return self._original.kind

    def version(self) -> str:
        """Return its original's version."""
        return self._original.version()

    def obstacle(self) -> str | None:
        """Return its original's obstacle."""
        return self._original.obstacle()

    def work(self, testbed: Testbed, server: Host) -> AbstractContextManager[Working]:
        """Do what its original does."""
        return self._original.work(testbed, server)
