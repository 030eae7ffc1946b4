"""
Policies are programs: what a command does with them when root calls it (rule 21.2, privileges, and rule 21.4, trusted
files).

`lb run` gives up its rights by itself (`lb.control.preparation`). The other commands that read a configuration come
here first. One that needs no rights afterwards gives them up for good (`enter_config`, `enter_policy`); one that does
has what runs policies done by a child process that has none (`load`, `inspect`, `in_child`), and runs no policy
itself. Which files are believed is judged as `lb run` does; they are opened while they can be. A configuration that
names no policy but lb's own runs no user's code, and changes nothing about the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lb import config as lb_config
from lb.config import Config
from lb.config.rules import policy_names
from lb.config.toml.toml_file import MAX_FILE_BYTES, require
from lb.errors import ConfigError, LbError
from lb.policies.loader import file_of
from lb.policies.registry import is_users
from lb.privileges import trust
from lb.privileges.drop import drop_privileges

USER_VARIABLE = "LB_USER"


class UntrustedConfigError(ConfigError):
    """Others decide what is in a configuration."""


def require_trusted(config: Path) -> None:
    """Raise UntrustedConfigError when this process was started as root and a configuration is not trusted."""
    try:
        trust.require_trusted(config)
    except trust.UntrustedFileError as error:
        raise UntrustedConfigError([f"{config}: refused: {error.strerror}"]) from None


def enter_config(config: Path, before: Callable[[], object] | None = None) -> None:
    """
    Make this process fit to read a configuration: started as root, it becomes an unprivileged user, for good.

    Args:
        config: of the configuration. One that names no policy of a user's changes nothing.
        before: called before the rights go.

    Raises:
        UntrustedConfigError: it is not trusted.
        PrivilegeError: this process cannot become the user that `LB_USER` names.
    """
    require_trusted(config)
    if os.geteuid() == trust.ROOT and (names := _users_policies(_outline(config))):
        if before is not None:
            before()
        _give_up([config, *_files(names, config.parent)])


def enter_policy(name: str, base: Path = Path()) -> None:
    """Make this process fit to load a policy by its name, as `enter_config`."""
    if os.geteuid() == trust.ROOT and is_users(name):
        _give_up(_files([name], base))


def load(config: Path) -> Config:
    """
    Return a valid configuration. As root this process runs none of its policies: a child without rights does.

    Raises:
        UntrustedConfigError: it is not trusted.
        ConfigError: it is invalid.
    """
    if os.geteuid() != trust.ROOT:
        return lb_config.load(config)
    require_trusted(config)
    outline = require(lb_config.outline(config))
    if _users_policies(_outline(config)):
        _require_none(in_child(lambda: _problems(config)))
    return outline


def inspect(source: str, name: str) -> list[str]:
    """Return the problems of a configuration's text. As root this process runs none of its policies, as `load`."""
    names = _users_policies(_parsed(source)) if os.geteuid() == trust.ROOT else []
    if not names:
        return lb_config.inspect(source, name).problems

    def work() -> list[str]:
        _give_up(_files(names, Path()))
        return lb_config.inspect(source, name).problems

    return list(map(str, in_child(work)))


def in_child(work: Callable[[], Any]) -> Any:
    """
    Have something done by a child process.

    Args:
        work: returns what JSON holds; begins with giving up its rights.

    Returns:
        What it returned: not to be trusted, for the process runs users' code.

    Raises:
        LbError: it raised one, or ended without an answer.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(near)
            _answer(far, work)
        finally:
            # Not `sys.exit`: nothing of what the parent has registered for its own end may happen here.
            os._exit(0)
    os.close(far)
    with os.fdopen(near, encoding="utf-8", errors="replace") as stream:
        # A line, and not all there is: a policy may have started what keeps the other end open.
        text = stream.readline(MAX_FILE_BYTES)
    os.waitpid(child, 0)
    try:
        answer: Mapping[str, Any] = json.loads(text)
    except ValueError:
        raise LbError("the process that runs the policies ended without an answer") from None
    if "error" in answer:
        error = LbError(str(answer["error"]))
        error.exit_code = int(answer["exit_code"])
        raise error
    return answer["result"]


def _answer(descriptor: int, work: Callable[[], Any]) -> None:
    try:
        answer = {"result": work()}
    except LbError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    except BaseException as error:  # what it did to the process is not the parent's
        answer = {"error": repr(error), "exit_code": LbError.exit_code}
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(answer) + "\n")
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            output.flush()


def _problems(config: Path) -> list[str]:
    enter_config(config)
    return lb_config.read(config).problems


def _require_none(problems: Iterable[object]) -> None:
    if found := [str(problem) for problem in problems]:
        raise ConfigError(found)


def _outline(config: Path) -> dict[str, Any]:
    """Return a configuration as TOML has it; empty when it has mistakes, which its reader tells."""
    try:
        with trust.open_file(config) as file:
            return _parsed(file.read(MAX_FILE_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError):
        return {}


def _parsed(source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(source)
    except (ValueError, RecursionError):
        return {}


def _users_policies(document: Mapping[str, Any]) -> list[str]:
    """Return the names of all policies in a configuration that are users' own: reading it runs their code."""
    return [name for name in policy_names(document) if is_users(name)]


def _files(names: Iterable[str], base: Path) -> list[Path]:
    """Return the files of those policies that are in files."""
    return [path for name in names if (path := file_of(name, base)) is not None]


def _give_up(files: Iterable[Path]) -> None:
    """Open files that only root may read, become an unprivileged user without capabilities, and have those used."""
    trust.use_opener(_Opened(files))
    notice = drop_privileges(os.environ.get(USER_VARIABLE) or None, kept=frozenset())
    if notice.level >= logging.WARNING:
        sys.stderr.write(f"warning: {notice.text}\n")


class _Opened:
    """Opens files that were opened before; raises what kept one from being opened."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {path.absolute(): _opened(path) for path in files}

    def __call__(self, path: Path) -> BinaryIO:
        found = self._files.get(path.absolute())
        if found is None:
            raise trust.UntrustedFileError(os.EX_NOPERM, f"{path} is not named in the configuration")
        if isinstance(found, OSError):
            raise found
        # The position is one for all descriptors of a file.
        os.lseek(found, 0, os.SEEK_SET)
        return io.FileIO(os.dup(found))


def _opened(path: Path) -> int | OSError:
    """Return a descriptor of a file, or why there is none."""
    try:
        trust.require_trusted(path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error
