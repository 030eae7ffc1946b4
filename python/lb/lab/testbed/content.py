"""
What the testbed's web servers serve: the website with video, or files that stand in for it.

The page is in `www/`, and so is the script that makes the video with ffmpeg. It is made once per user and kept in
a cache. Where there is no ffmpeg, chunks with the same names and about the same sizes take its place: pseudo-random
bytes, the same everywhere, for loads that fetch and do not look.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lb.errors import TestbedError

CHUNK_S = 4
BITRATES_KBIT = (100, 500, 1000)
MEGABYTE = 1_000_000
WEBSITE = Path(__file__).parent / "www"
MAKE_VIDEO = WEBSITE / "make-video.sh"
_VIDEO = "vod"
_STAND_IN_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>flowlb testbed</title>
<h1>It works</h1>
<p>This page came through the balancer. The response header <code>X-Served-By</code> names the server that sent it.</p>
<p>Chunks: <a href="/vod/100Seg2-Frag7">100</a>, <a href="/vod/500Seg2-Frag7">500</a>,
<a href="/vod/1000Seg2-Frag7">1000</a> kbit/s; <a href="/1MB">1 MB</a>.</p>
</html>
"""


def write_website(root: Path) -> str:
    """
    Write the website below `root`, which is made, readable for everyone: servers may run as another user.

    Returns:
        What its video is: `H.264, 3 bitrates`, or that stand-ins take its place, and why.
    """
    write_stand_ins(root)
    shutil.copytree(WEBSITE, root, ignore=shutil.ignore_patterns("*.sh"), dirs_exist_ok=True)
    try:
        video = _made_video()
    except TestbedError as error:
        return f"stand-ins that no player plays: {error}"
    shutil.rmtree(root / _VIDEO)
    shutil.copytree(video, root / _VIDEO, symlinks=True)
    _make_readable(root)
    return "H.264 and AAC in 3 bitrates"


def write_stand_ins(root: Path) -> None:
    """Write a plain page, one stand-in chunk of each bitrate, and 1 MB; the rest as `write_website`."""
    (root / _VIDEO).mkdir(parents=True, exist_ok=True)
    (root / "index.html").write_text(_STAND_IN_PAGE)
    for bitrate in BITRATES_KBIT:
        _write_random(root / _VIDEO / f"{bitrate}Seg2-Frag7", chunk_bytes(bitrate))
    _write_random(root / "1MB", MEGABYTE)
    _make_readable(root)


def chunk_bytes(bitrate_kbit: int) -> int:
    """Return the size in bytes of a stand-in chunk of this bitrate."""
    return bitrate_kbit * 1000 // 8 * CHUNK_S


def _made_video() -> Path:
    """
    Return the directory with the video, which is made when it is not in the cache.

    Raises:
        TestbedError: it cannot be made here.
    """
    # The script's own text is the key: another script makes another video.
    key = hashlib.sha256(MAKE_VIDEO.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowlb"
    video = cache / f"video-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "video.lock"):
            if not video.exists():
                _make_video(video)
    except (OSError, RuntimeError) as error:  # the second: a user without a home
        raise TestbedError(f"no cache for it ({error})") from error
    return video


def _make_video(directory: Path) -> None:
    if shutil.which("ffmpeg") is None:
        raise TestbedError("ffmpeg is not installed (Debian: apt install ffmpeg)")
    print("making the website's video with ffmpeg, once: about ten seconds", file=sys.stderr, flush=True)
    outcome = subprocess.run(["bash", str(MAKE_VIDEO), str(directory)], capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise TestbedError(f"ffmpeg failed: {(outcome.stderr.strip().splitlines() or ['no message'])[-1]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock: of two testbeds that start at once one makes the video."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_readable(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _write_random(path: Path, size: int) -> None:
    path.write_bytes(random.Random(path.name).randbytes(size))
