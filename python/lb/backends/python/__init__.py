"""
The data path in Python: the same stages as `rust/core`, readable, with nothing but the standard library.

The fall-back for machines without the extension, the oracle that Rust is tested against, and the version to read. A
packet goes through `loop` (rx), `pipeline` (the stages in order, over `lb.packet`), `fragment`, `lookup`, then `hit`
with `connection` and `measure` or `schedule` with `picker`, or `icmp_errors` or `transit`, and `send` with `next_hop`,
`reply` and `limit` (tx). `tables` holds what is remembered between packets, `forwarding_state` the compiled snapshot.
"""

from __future__ import annotations

from lb.backends.base import Capabilities
from lb.backends.python.datapath import DataPath, Result
from lb.backends.python.primitives import checksum, checksum_update, flow_hash, parse, source_hash

NAME = "python"

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


def capabilities() -> Capabilities:
    """Return what this backend can: the same, without a core of its own to wait on and memory of its own choice."""
    return Capabilities(polls=("sleep",), sends_directly=False, promises_memory=False, keeps_flows=False)
