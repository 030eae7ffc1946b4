"""Short programs inside a host of the testbed, run to their end, and what they say about their version."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from lb.errors import TestbedError
from lb.lab.testbed.lifecycle import Testbed

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VERSION_DEADLINE_S = 5.0
GRACE_S = 20.0


def find(program: str) -> str | None:
    """Return the path of an installed program; system directories count for every user."""
    return shutil.which(program) or shutil.which(program, path=SEARCH_PATH)


def version(command: Sequence[str]) -> str:
    """Return the first line a program says about its version, on either stream; empty when it says nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_DEADLINE_S, check=False
        )
        lines = (done.stdout or done.stderr).decode(errors="replace").strip().splitlines()
        return lines[0].strip() if lines else ""
    return ""


def run(testbed: Testbed, host: str, command: Sequence[str], text: str = "", seconds: float = 0.0) -> str:
    """
    Run a program in a host and return what it wrote on standard output.

    Args:
        testbed: where the host is.
        host: its name.
        command: the program and its arguments.
        text: its standard input.
        seconds: how long it is meant to run; it gets some grace on top.

    Raises:
        TestbedError: it failed or did not end; says its last words.
    """
    label = command[0].rpartition("/")[2]
    child = testbed.spawn(host, label, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        output, _ = child.communicate(text.encode(), timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired as error:
        raise TestbedError(f"{label} on {host} did not end within {seconds + GRACE_S:.0f} s") from error
    finally:
        testbed.end(host, label)
    if child.returncode != 0:
        words = testbed.last_log_line(host, label) or output.decode(errors="replace").strip()[-200:]
        raise TestbedError(f"{label} on {host} failed: {words or f'status {child.returncode}'}")
    return output.decode()
