"""
A testbed that stays until `down`: start its holder, find it, look at it, enter its hosts, end it.

`up` starts a separate process, the holder, which owns the testbed and waits. Without root the namespaces live only
in the holder's user namespace, and other processes join that first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lb.errors import LbError, PrivilegeError, TestbedError
from lb.lab.testbed import isolation
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.state_directory import Inventory, StateDirectory, sweep
from lb.lab.testbed.topology import DEFAULT_PREFIX, ROUTER, SWITCH, VIP, VIP6, VIP_PORT, one_segment

DOWN_DEADLINE_S = 15.0
NOT_UP = "no testbed is up: start one with `lb testbed up`"


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host of a running testbed. `programs`: label to whether it runs."""

    name: str
    namespace: str
    address: str
    address6: str
    mac: str
    programs: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Status:
    """What there is. `condition`: `up`, `down`, or `left over` when its owner was killed."""

    condition: str
    mode: str
    owner: int
    facts: dict[str, str]
    hosts: tuple[HostStatus, ...]


def up(prefix: str = DEFAULT_PREFIX, offloads: bool = True, use_apache: bool = True) -> Status:
    """
    Start a testbed that stays.

    Returns:
        Its status.

    Raises:
        TestbedError, PrivilegeError: as `Testbed.start`.
    """
    options = json.dumps({"prefix": prefix, "offloads": offloads, "use_apache": use_apache})
    command = [sys.executable, "-P", "-m", "lb.lab.testbed.manage", options]
    holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert holder.stdout is not None
    answer = holder.stdout.readline()
    holder.stdout.close()
    if not answer:
        raise TestbedError(f"the testbed's holder ended with status {holder.wait()} before it was ready")
    report: dict[str, Any] = json.loads(answer)
    if "error" in report:
        holder.wait()
        kind = PrivilegeError if report["exit_code"] == PrivilegeError.exit_code else TestbedError
        raise kind(report["error"])
    # It outlives this process: it is not waited for here.
    holder.returncode = 0
    return status(prefix)


def hold(prefix: str, offloads: bool, use_apache: bool) -> int:
    """Build a testbed, say on stdout how that went, and keep it until SIGTERM. Returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with Testbed(prefix=prefix, offloads=offloads, use_apache=use_apache) as testbed:
            _answer({"ready": True})
            _detach(testbed.directory / "holder.log")
            _wait_for_signal()
    except LbError as error:
        _answer({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except SystemExit:
        return 0
    return 0


def down(prefix: str = DEFAULT_PREFIX) -> bool:
    """
    End a testbed of any owner, and remove the remains of a killed one.

    Returns:
        Whether there was anything to end.

    Raises:
        TestbedError: its owner does not end in time.
    """
    directory = StateDirectory(prefix)
    was_owned = directory.owned_elsewhere()
    state = directory.read()
    if was_owned and state is not None:
        state.owner.signal(signal.SIGTERM)
        if not state.owner.wait_gone(DOWN_DEADLINE_S):
            raise TestbedError(
                f"process {state.owner.pid} owns the testbed and does not end: kill -9 {state.owner.pid}"
            )
    if not directory.acquire():
        raise TestbedError("the testbed is being built by another process: try again")
    rest = directory.read()
    if rest is not None:
        sweep(rest)
    directory.release()
    return state is not None


def status(prefix: str = DEFAULT_PREFIX) -> Status:
    """Look at a testbed."""
    directory = StateDirectory(prefix)
    state = directory.read()
    if state is None:
        return Status("down", "", 0, {}, ())
    condition = "up" if state.owner.alive() else "left over"
    facts = {name: text for name, text in state.facts.items() if name != "made_names_mount"}
    facts |= {"vip": f"{VIP} port {VIP_PORT}", "vip6": str(VIP6)} if condition == "up" else {}
    return Status(condition, state.mode, state.owner.pid, facts, _host_statuses(state))


def enter(host: str, prefix: str = DEFAULT_PREFIX) -> None:
    """
    Move this process, which must have one thread, into a host of a running testbed.

    Raises:
        TestbedError: no testbed is up, or it has no such host.
    """
    state = StateDirectory(prefix).read()
    if state is None or not state.owner.alive():
        raise TestbedError(NOT_UP)
    name = prefix + host
    if name not in state.namespaces:
        known = ", ".join(each.removeprefix(prefix) for each in state.namespaces)
        raise TestbedError(f"the testbed has no host {host!r}; it has {known}")
    try:
        if state.mode == "user":
            isolation.join_namespaces_of(state.owner.pid)
        isolation.enter_namespace(name)
    except OSError as error:
        raise TestbedError(f"cannot enter {host}: {error.strerror}") from error
    isolation.dress_as(host)


def execute(host: str, command: list[str], prefix: str = DEFAULT_PREFIX) -> NoReturn:
    """
    Become a program that runs in a host of a running testbed; its exit status becomes ours.

    Raises:
        TestbedError: no testbed, host or program.
    """
    enter(host, prefix)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise TestbedError(f"cannot run {command[0]!r}: {error.strerror}") from error


def _host_statuses(state: Inventory) -> tuple[HostStatus, ...]:
    found = []
    topology = one_segment()
    for namespace in state.namespaces:
        name = namespace.removeprefix(state.prefix)
        if name == SWITCH:
            continue
        host = topology.host(name)
        programs = {
            label.split("/", 1)[1]: process.alive()
            for label, process in state.processes.items()
            if label.startswith(f"{name}/")
        }
        address6 = str(host.address6) if state.facts.get("ipv6") == "yes" else ""
        found.append(HostStatus(name, namespace, str(host.address), address6, host.interfaces[0].mac, programs))
    return tuple(sorted(found, key=lambda each: (each.name != ROUTER, each.name)))


def _leave(_number: int, _frame: object) -> NoReturn:
    # A second signal must not cut the cleaning short.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _answer(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)


def _detach(log: Path) -> None:
    """Detach from the terminal and pipe of the parent."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.chdir("/")


def _wait_for_signal() -> NoReturn:
    while True:
        try:
            pid, outcome = os.wait()
            print(f"process {pid} ended with status {os.waitstatus_to_exitcode(outcome)}", flush=True)
        except ChildProcessError:
            signal.pause()


if __name__ == "__main__":
    sys.exit(hold(**json.loads(sys.argv[1])))
