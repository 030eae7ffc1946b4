"""
The data path in Python: the same stages as `rust/core`, readable, with nothing but the standard library.

The fall-back for machines without the extension, the oracle that Rust is tested against, and the place to read how it
works. Follow a packet through the modules: `loop` (rx), `parse` with `wire`, `pipeline` (the stages in order),
`fragment`, `nat` with `flow`, `tcp`, `plan` and `hashing`, `icmp` with `quoted`, `transit`, `rewrite`, `send` with
`next_hop`, `reply` and `limit` (tx). What lives from packet to packet is in `state`, what is known of the world in
`view`.
"""

from __future__ import annotations

from lb.backends.python.datapath import DataPath, Result
from lb.backends.python.primitives import checksum, checksum_update, flow_hash, parse, source_hash
from lb.backends.python.reply import frames_for_announcement

NAME = "python"

__all__ = [
    "NAME",
    "DataPath",
    "Result",
    "checksum",
    "checksum_update",
    "flow_hash",
    "frames_for_announcement",
    "parse",
    "source_hash",
]
