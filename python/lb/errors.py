"""
The exceptions of flowlb, in one tree. Packets never raise: they get verdicts.

    LbError                  exit code 1
    +-- ConfigError          3: the configuration is invalid
    +-- PrivilegeError       4: a capability or kernel feature is missing
    |   +-- InterfaceError   4: an interface is unknown, down, or taken by another `lb run`
    +-- BackendError         4: the chosen backend cannot be used
    +-- DaemonError          5: no running balancer answers
    +-- RemoteError          the running balancer refused: its message, its exit code
    +-- UnknownNameError     2: there is no service or server of that name
    +-- RequestError         2: the arguments of a command are wrong
    +-- RefusedError         2: a command does not apply now, as adding a server whose name exists
    +-- UnderWayError        6: a change takes longer than its caller waits, and continues
    +-- PolicyError          1: a user's policy cannot be loaded, or breaks a rule for policies
    +-- CaptureError         1: a capture file cannot be read or written
    +-- TestbedError         1: the testbed could not be built or is not there

Each message is one line: what is wrong, where or with which value, and what to do.
"""

from __future__ import annotations

import errno

# What helps where the system has no more of something.
WAYS_OUT = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n`, or LimitNOFILE= of a systemd unit)",
    errno.ENFILE: "raise the system's limit of open files (`sysctl fs.file-max`)",
    errno.EFBIG: "raise the limit of files' sizes (`ulimit -f`, or LimitFSIZE= of a systemd unit)",
    errno.ENOMEM: "raise the limit of memory (`ulimit -v`, MemoryMax= of a systemd unit, or a container's)",
    errno.ENOSPC: "make room on the file system, or make it larger",
    errno.EDQUOT: "make room on the file system, or raise the quota",
}


def with_way_out(why: str, error: BaseException) -> str:
    """Return why something failed, followed by the way out, if there is one for an error of this kind."""
    way_out = WAYS_OUT.get(getattr(error, "errno", None) or 0)
    return f"{why}: {way_out}" if way_out else why


class LbError(Exception):
    """An operation of flowlb failed."""

    exit_code = 1


class ConfigError(LbError):
    """A configuration is invalid. `problems` holds every problem found, in file order, each a printable block."""

    exit_code = 3

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PrivilegeError(LbError):
    """A capability or kernel feature is missing."""

    exit_code = 4


class InterfaceError(PrivilegeError):
    """An interface does not exist, is not usable, or is in use by another balancer."""


class BackendError(LbError):
    """The chosen backend is not installed or not usable."""

    exit_code = 4


class DaemonError(LbError):
    """No running balancer answers on the control socket."""

    exit_code = 5


class RemoteError(LbError):
    """
    The running balancer refused a command.

    Args:
        message: of the balancer.
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UnknownNameError(LbError):
    """There is no service or server of a name; the message has the nearest ones."""

    exit_code = 2


class RequestError(LbError):
    """The arguments of a command are wrong."""

    exit_code = 2


class RefusedError(LbError):
    """A change does not apply in the current state, such as adding a server whose name exists."""

    exit_code = 2


class UnderWayError(LbError):
    """A change takes longer than its caller waits. It continues and completes."""

    exit_code = 6


class PolicyError(LbError):
    """A user's policy cannot be loaded, or breaks a rule for policies."""


class CaptureError(LbError):
    """A capture file cannot be read or written."""


class TestbedError(LbError):
    """The testbed could not be built, or is not there."""

    __test__ = False  # pytest would collect a class of this name
