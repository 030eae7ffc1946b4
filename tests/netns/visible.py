"""
Run a command where every user may read Python, this package and its dependencies: in a mount namespace of its own, in
which directories that hide them from other users (a Python below /root, say) hold nothing else.

Usage: visible.py COMMAND ...
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

import lb
from lb.lab.testbed import isolation


def hidden_below(path: Path) -> Path | None:
    """Return the first directory on the way to a path that other users may not pass; None when they may."""
    return next((each for each in reversed(path.parents) if not each.stat().st_mode & stat.S_IXOTH), None)


def show(paths: list[Path]) -> None:
    """Make paths readable that a directory hides. The mount namespace is this process's own."""
    descriptors = {path: os.open(path, os.O_PATH) for path in paths}
    holders = {hidden for path in paths if (hidden := hidden_below(path)) is not None}
    for holder in holders:
        isolation.mount("tmpfs", str(holder), "tmpfs", 0, "mode=755")
    for path, descriptor in descriptors.items():
        if not path.exists():
            path.mkdir(parents=True)
            isolation.mount(f"/proc/self/fd/{descriptor}", str(path), None, isolation.MS_BIND | isolation.MS_REC)
        os.close(descriptor)


def main() -> None:
    isolation.unshare(isolation.CLONE_NEWNS)
    isolation.mount("none", "/", None, isolation.MS_REC | isolation.MS_PRIVATE)
    needed = [Path(sys.base_prefix), Path(sys.prefix), Path(lb.__file__).parent]
    os.chdir(tempfile.gettempdir())
    show([path for path in dict.fromkeys(needed) if hidden_below(path) is not None])
    os.execv(sys.argv[1], sys.argv[1:])


main()
