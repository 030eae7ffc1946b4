"""
Loses servers: takes the switch's end of their links down, so that frames to and from them vanish without a word.

Runs in the switch's namespace as `python -m lb.lab.testbed.faults`: reads `lose SERVER` or `return SERVER`, a line
each, and answers `done` or what is wrong. Lost servers stay lost when it ends; the testbed's owner outlives it.
"""

from __future__ import annotations

import sys
from typing import Any

STATES = {"lose": "down", "return": "up"}
PORT = "eth0"


def main() -> None:
    """Do what standard input says, until it ends."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        for line in sys.stdin:
            print(_answer(netlink, *line.split()), flush=True)


def _answer(netlink: Any, action: str, server: str) -> str:
    indexes = netlink.link_lookup(ifname=f"{server}-{PORT}")
    if not indexes:
        return f"the testbed has no server {server!r} to {action}"
    netlink.link("set", index=indexes[0], state=STATES[action])
    return "done"


if __name__ == "__main__":
    main()
