"""
Write the seeds of the fuzz targets into corpus/TARGET: each vector as the input that plays it.

What the bytes mean is in src/player.rs: a raw frame is step 0, time that passes is step 1. Targets whose input is no
packets, `snapshot` and `image`, begin with drawn bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parents[1] / "tests" / "vectors"
NOT_VECTORS = {"base.json", "hash.json"}
HAS_OFFLOAD = 4
DRAWN = {"snapshot": 400, "image": 60}


def vectors() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each vector with its topic."""
    for path in sorted(VECTORS.glob("*.json")):
        if path.name not in NOT_VECTORS:
            yield from ((path.stem, vector) for vector in json.loads(path.read_text()))


def arrival(step: dict[str, Any]) -> bytes:
    """Say where and how a frame comes in."""
    bits = 1 if step.get("interface") == "eth1" else 0
    offload = step.get("offload")
    if offload is None:
        return bytes([bits])
    return bytes([bits | HAS_OFFLOAD]) + struct.pack(">BBHHHH", *offload)


def played(vector: dict[str, Any]) -> bytes:
    """Make the input that brings the frames of a vector, with the time between them."""
    made, now_ms = b"", 0
    for step in vector["steps"]:
        at_ms = step.get("at_ms", now_ms)
        if at_ms > now_ms:
            made += struct.pack(">BI", 1, at_ms - now_ms)
            now_ms = at_ms
        if "in" in step:
            frame = bytes.fromhex(step["in"])
            made += b"\x00" + arrival(step) + struct.pack(">H", len(frame)) + frame
    return made


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield the seeds, each with its target."""
    for topic, vector in vectors():
        yield "sequence", played(vector)
        if topic in ("fragments", "icmp"):
            yield topic, played(vector)
        for step in vector["steps"]:
            if "in" in step:
                yield "frame", arrival(step) + bytes.fromhex(step["in"])
    draw = random.Random(1)
    for target, most in DRAWN.items():
        yield from ((target, draw.randbytes(draw.randrange(most))) for _ in range(50))


def main() -> None:
    """Write all, each under its hash as libFuzzer does."""
    count = 0
    for target, seed in seeds():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
        count += 1
    print(f"{count} seeds in {HERE / 'corpus'}")


if __name__ == "__main__":
    main()
