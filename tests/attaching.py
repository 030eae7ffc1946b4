"""Interfaces for `Attachment.attach`, from descriptors alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lb.backends.base import AttachedInterface


def attached(
    descriptors: Iterable[int], direct: Mapping[int, int] | None = None, workers: int = 1
) -> list[AttachedInterface]:
    """
    Return interfaces in order of id.

    Args:
        descriptors: packet sockets: those of the first worker, one per interface, then those of the next.
        direct: AF_XDP descriptors by interface id.
        workers: how many there are.
    """
    sockets, by_id = list(descriptors), direct or {}
    count = len(sockets) // workers
    return [
        AttachedInterface(f"eth{number}", tuple(sockets[number::count]), by_id.get(number)) for number in range(count)
    ]
