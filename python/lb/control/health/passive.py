"""
Passive health checks: clients' connects that a server refuses or does not answer (rule 19, health).

They find a failing server before an active check does. Pure: measurements of the data path go in, failures since the
last look come out. One look at a server yields at most one failure, and none when a connect succeeded as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

# By service and server name, then by measure, as `DataPath.measurements` gives them.
Measured = Mapping[str, Mapping[str, Mapping[str, int]]]


class _Seen(NamedTuple):
    connects: int
    refused: int
    unanswered: int


class PassiveChecks:
    """Compares the measurements with those of the last look."""

    def __init__(self) -> None:
        # By service and server, of the last look.
        self._seen: dict[str, dict[str, _Seen]] = {}

    def look(self, measured: Measured, services: Iterable[str]) -> Iterator[tuple[str, str]]:
        """
        Yield (service, server) for servers at which connects failed since the last look, and none succeeded.

        Args:
            measured: by the data path, until now.
            services: names of the services to look at; others are left for a later look.
        """
        for service in services:
            seen, kept = self._seen.get(service, {}), dict[str, _Seen]()
            for server, measures in measured.get(service, {}).items():
                # A SYN that is sent again is the first sign of a server that does not answer.
                silent = measures["unanswered"] + measures["syn_retransmitted"]
                now = _Seen(measures["connects"], measures["refused"], silent)
                before = seen.get(server)
                kept[server] = now
                if before is not None and _has_failed(before, now):
                    yield service, server
            self._seen[service] = kept

    def forget(self, service: str) -> None:
        """Forget the measurements of a service."""
        self._seen.pop(service, None)


def _has_failed(before: _Seen, now: _Seen) -> bool:
    connects, refused, unanswered = (new - old for new, old in zip(now, before, strict=True))
    # Below 0: the name belongs to another server now.
    return connects == 0 and min(refused, unanswered) >= 0 and refused + unanswered > 0
