"""
The Rust backend: what `lb._core` exports, under the names every backend has.

The rules it follows are in `docs/rules.md`, its stages in `rust/core`. Nothing is decided here.
"""

from __future__ import annotations

from lb.backends.base import Capabilities
from lb.errors import BackendError
from lb.packet.headers import Headers

try:
    from lb._core import DataPath, Result, checksum, checksum_update, flow_hash, source_hash
    from lb._core import parse as parse_fields
except ModuleNotFoundError as missing:
    raise BackendError(
        "the Rust extension lb._core is not installed: run `pip install .` with a Rust toolchain (rustup.rs), "
        "or choose --backend python"
    ) from missing
except ImportError as broken:
    raise BackendError(
        f"the Rust extension lb._core does not load ({broken}): reinstall with `pip install .`, "
        "or choose --backend python"
    ) from broken

__all__ = [
    "NAME",
    "DataPath",
    "Result",
    "capabilities",
    "checksum",
    "checksum_update",
    "flow_hash",
    "parse",
    "source_hash",
]

NAME = "rust"


def capabilities() -> Capabilities:
    """Return what this backend can: everything."""
    return Capabilities()


def parse(frame: bytes) -> Headers:
    """
    Read the headers of one frame, without any snapshot (`docs/rules.md` rule 14, the primitive parse).

    Args:
        frame: a whole Ethernet frame.

    Returns:
        The headers, as far as they are well formed.
    """
    return Headers(*parse_fields(frame))
