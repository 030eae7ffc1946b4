"""
Backends: the implementations that process packets, and the choice among them.

Each is a module with `NAME`, `DataPath` and `capabilities` (the contract is in `base.py`), and the single stages
`parse`, `checksum`, `checksum_update`, `flow_hash`, `source_hash`. The slow one is never chosen in silence: `auto` says
so on the log, `rust` refuses.
"""

from __future__ import annotations

import importlib
import logging
from typing import Protocol, cast

from lb.backends.base import Capabilities, DataPath
from lb.errors import BackendError
from lb.model.backend import BACKENDS, MISSING_BACKENDS
from lb.packet.headers import Headers

log = logging.getLogger(__name__)


class MakeDataPath(Protocol):
    """Makes a data path; arguments as in `lb.backends.base.Engine`."""

    def __call__(
        self, capacity: int, hash_key: bytes, seed: int, first_round: int = 0, table_fd: int | None = None, /
    ) -> DataPath:
        """Make one."""


class Backend(Protocol):
    """What the module of a backend holds."""

    NAME: str

    DataPath: MakeDataPath

    def capabilities(self) -> Capabilities:
        """Return what its data paths do as the rules say, and what they leave out."""

    def parse(self, frame: bytes) -> Headers:
        """Read the headers of one frame."""

    def checksum(self, data: bytes, initial: int = 0) -> int:
        """Compute the internet checksum (RFC 1071)."""

    def checksum_update(self, checksum: int, old: bytes, new: bytes) -> int:
        """Update a checksum after some words have changed (RFC 1624 equation 3)."""

    def flow_hash(self, seed: int, client: bytes, vip: bytes, client_port: int, vip_port: int, protocol: int) -> int:
        """Hash a 5-tuple, as the selector `hash-flow` does."""

    def source_hash(self, seed: int, client: bytes) -> int:
        """Hash a client address, as the selector `hash-source` does."""


def load(name: str) -> Backend:
    """
    Load a backend.

    Args:
        name: `rust`, `python`, or `auto`: rust when its extension is installed, else python with a warning on the log.

    Returns:
        The backend's module.

    Raises:
        BackendError: the backend is not installed, not in this version, or unknown.
    """
    if name == "auto":
        return load_any()
    if name in MISSING_BACKENDS:
        raise BackendError(f"backend {name!r} is not in this version: choose one of {', '.join(BACKENDS)}")
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(f"lb.backends.{name}"))


def load_any() -> Backend:
    """Load the rust backend, or the python one with a warning."""
    try:
        return load("rust")
    except BackendError as error:
        log.warning("%s; using the python backend, which is far slower", error)
        return load("python")
