"""Where the control socket is, unless a command is told otherwise; and resources that two sides name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ENVIRONMENT = "LB_CONTROL"
EXPLAIN, STOP = "/explain", "/stop"
FLOW_NAMES, FLOW_ROWS, FLOW_LOAD = "/flows/names", "/flows/rows", "/flows/load"
# Process ids mean the same to two processes where this is the same file.
PID_NAMESPACE = Path("/proc/self/ns/pid")


def default_control_path() -> Path:
    """Return `$LB_CONTROL`, else a path in /run for root, in the user's runtime folder for others."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/flowlb/lb.sock")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "flowlb.sock"


def process_identity() -> dict[str, Any]:
    """Return what tells a caller in the same PID namespace which process answers."""
    return {"pid": os.getpid(), "pid_namespace": PID_NAMESPACE.stat().st_ino}
