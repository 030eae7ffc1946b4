"""Where the control socket is, unless a command is told otherwise; and the resource of `lb explain`."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT = "LB_CONTROL"
EXPLAIN = "/explain"


def default_control_path() -> Path:
    """Return `$LB_CONTROL`, else a path in /run for root, in the user's runtime folder for others."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/flowlb/lb.sock")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "flowlb.sock"
