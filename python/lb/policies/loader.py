"""
Loading a user's policy class: in a file, `./mine.py:MyPolicy`, or under a name that an installed package gives it
(entry point group `lb.policies`).

Control side of the walk: `config -> policy`. The file is run when the configuration is read, and again after it has
changed. It is code that runs with the rights of `lb`: started as root, it refuses a file that others can write
(rule 21.4, trusted files, `lb.privileges.trust`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from lb.errors import PolicyError
from lb.privileges.trust import UntrustedFileError, open_file, require_trusted

GROUP = "lb.policies"
REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")

# By file: the digest of its text, and what running that gave.
_loaded: dict[Path, tuple[str, ModuleType]] = {}


def is_file(name: str) -> bool:
    """Tell whether a policy's name means a file."""
    return ".py:" in name or name.endswith(".py")


def file_of(name: str, base: Path) -> Path | None:
    """Return the file of a policy by its name, None for one that is in none. `base`: as of `load_class`."""
    match = REFERENCE.fullmatch(name)
    return None if match is None else (base / match["file"]).absolute()


def installed_names() -> list[str]:
    """Return the names that installed packages give to their policies."""
    return sorted(entry_points(group=GROUP).names)


def load_class(name: str, base: Path) -> type[object]:
    """
    Find a class.

    Args:
        name: `FILE.py:CLASS`, or the name of an entry point.
        base: the folder that a relative FILE starts from: the configuration's.

    Raises:
        PolicyError: there is none, or its module does not run.
    """
    found = _from_file(name, base) if is_file(name) else _from_entry_point(name)
    if not isinstance(found, type):
        raise PolicyError(f"{name} is not a class")
    if not (callable(getattr(found, "plan", None)) or callable(getattr(found, "choose", None))):
        raise PolicyError(f"{name}: the class has neither `plan` nor `choose`")
    return found


def digest_of(name: str, base: Path) -> str:
    """Return a digest of the file that a class was loaded from last; empty for an entry point."""
    match = REFERENCE.fullmatch(name)
    known = None if match is None else _loaded.get(_path(match, base))
    return "" if known is None else known[0]


def _path(match: re.Match[str], base: Path) -> Path:
    return (base / match["file"]).absolute()


def _from_file(name: str, base: Path) -> object:
    match = REFERENCE.fullmatch(name)
    if match is None:
        raise PolicyError(f'{name}: it names no class: write "FILE.py:CLASS"')
    module = _module(_path(match, base))
    if not hasattr(module, match["name"]):
        classes = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise PolicyError(f"{match['file']} has no {match['name']}; it has: {', '.join(classes) or 'none'}")
    return getattr(module, match["name"])


def _from_entry_point(name: str) -> object:
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except (Exception, SystemExit) as error:  # user code
            raise PolicyError(f"{name} ({entry.value}): {describe(error)}") from error
    raise PolicyError(f"there is no policy {name}")


def _module(path: Path) -> ModuleType:
    """Return a file's module; it is run anew when the file has changed since."""
    try:
        require_trusted(path)
        with open_file(path) as file:
            source = file.read()
    except UntrustedFileError as error:
        raise PolicyError(f"{path.name}: refused: {error.strerror}") from None
    except OSError as error:
        raise PolicyError(f"{path.name}: {error.strerror} ({path})") from None
    digest = hashlib.blake2b(source, digest_size=16).hexdigest()
    known = _loaded.get(path)
    if known is not None and known[0] == digest:
        return known[1]
    module = _run(path, source)
    _loaded[path] = (digest, module)
    return module


def _run(path: Path, source: bytes) -> ModuleType:
    # A unique name, so that it can neither hide nor be an installed module; dataclasses look it up there.
    name = f"lb_policy_{hashlib.blake2b(bytes(path), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        # Not `exec_module`: its cache of compiled code goes by whole seconds, and a file may change within one.
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # user code
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise PolicyError(f"{path}: {describe(error)}") from error
    return module


def describe(error: BaseException) -> str:
    """Return an exception as one line, with the line of code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    where = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})" if trace else ""
    return f"{type(error).__name__}: {error}".partition("\n")[0] + where
