"""
The files that the testbed's web servers serve, made when it starts.

Stand-ins with the names and sizes that the course's load files fetch: a page, 4-second chunks of 100, 500 and 1000
kbit/s, and 1 MB. Their bytes are pseudo-random but the same everywhere; they are no real video.
"""

from __future__ import annotations

import random
from pathlib import Path

CHUNK_S = 4
BITRATES_KBIT = (100, 500, 1000)
MEGABYTE = 1_000_000
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>flowlb testbed</title>
<h1>It works</h1>
<p>This page came through the balancer. The response header <code>X-Served-By</code> names the server that sent it.</p>
<p>Chunks: <a href="/vod/100Seg2-Frag7">100</a>, <a href="/vod/500Seg2-Frag7">500</a>,
<a href="/vod/1000Seg2-Frag7">1000</a> kbit/s; <a href="/1MB">1 MB</a>.</p>
</html>
"""


def chunk_bytes(bitrate_kbit: int) -> int:
    """Return the size in bytes of a chunk of this bitrate."""
    return bitrate_kbit * 1000 // 8 * CHUNK_S


def write_content(root: Path) -> None:
    """Write every file below `root`, which is made, readable for everyone: servers may run as another user."""
    (root / "vod").mkdir(parents=True, exist_ok=True)
    (root / "index.html").write_text(_PAGE)
    for bitrate in BITRATES_KBIT:
        _write_random(root / "vod" / f"{bitrate}Seg2-Frag7", chunk_bytes(bitrate))
    _write_random(root / "1MB", MEGABYTE)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_random(path: Path, size: int) -> None:
    path.write_bytes(random.Random(path.name).randbytes(size))
